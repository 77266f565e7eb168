//! The leader makes backups by itself and keeps as many as it should, in a directory and in the bucket of a real S3 server;
//! what breaks on the way leaves nothing half, is told, and is made good by the next attempt.

use std::path::Path;
use std::time::Duration;

use crate::cloud::s3::{Line, S3};
use crate::cloud::{Cloud, Running, eventually};
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tamdao_backup::{
    About, Access, BackupName, Content, Credentials, Destination, Identities, Keep, Place, Recipients,
};
use tamdao_controller::assembly::Controller;
use tamdao_controller::backups::Settings;
use tamdao_controller::clock::Clock;
use tamdao_controller::clock::SystemClock;
use tamdao_controller::drill;
use tamdao_controller::identity::Identity;

const HOUR: Duration = Duration::from_secs(3_600);
const SECOND: Duration = Duration::from_secs(1);
const MONTH: Keep = Keep { last: 24, daily_days: 30 };

fn nowhere() -> Access {
    let credentials = Credentials::default();
    Access { endpoint: String::new(), region: "r".into(), credentials, ca_pem: String::new() }
}

/// What is configured, and who can read the backups.
fn settings(place: Place, access: Access, every: Duration, keep: Keep) -> (Settings, Identities) {
    let (identities, recipient) = Identities::generate();
    let recipients = Recipients::parse([recipient.as_str()]).unwrap();
    (Settings { place, access, recipients, every, keep }, identities)
}

async fn cloud(settings: Settings) -> Cloud {
    Cloud::found_as("", |config| config.backup = Some(settings)).await
}

async fn listed(cloud: &Cloud) -> Value {
    let answer = cloud.admin().get(cloud.address(0), "/v1/cluster:backups").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()
}

/// The names of those that are as they were written.
fn whole(listed: &Value) -> Vec<String> {
    let all = listed["backups"].as_array().into_iter().flatten();
    all.filter(|one| one["proven"] == true).map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

async fn events(cloud: &Cloud) -> String {
    let answer = cloud.admin().get(cloud.address(0), "/v1/events?page_size=1000").await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    String::from_utf8_lossy(&answer.body).into_owned()
}

async fn happened(cloud: &Cloud, reason: &str) {
    eventually(reason, || async { events(cloud).await.contains(reason).then_some(()) }).await;
}

/// Waits until so many are kept that are whole.
async fn kept(cloud: &Cloud, count: usize) -> Vec<String> {
    eventually("the backups are made", || async {
        let names = whole(&listed(cloud).await);
        (names.len() == count).then_some(names)
    })
    .await
}

/// A new leader, with nothing in its memory. Its archivist has looked.
async fn again(cloud: &mut Cloud) {
    let Running { config, controller } = cloud.running.remove(0);
    controller.stop().await;
    let controller = Controller::start(&config, Identity::of(&config).unwrap()).await.unwrap();
    cloud.running.push(Running { config, controller });
    cloud.settled().await;
    eventually("the archivist has looked", || async {
        cloud.running[0].controller.shared.backups.outcome().next.is_some().then_some(())
    })
    .await;
}

fn flip(path: &Path) {
    let mut file = std::fs::read(path).unwrap();
    let last = file.len() - 1;
    file[last] ^= 1;
    std::fs::write(path, file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_goes_on_where_the_old_one_was_and_does_not_count_what_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::Directory(directory.path().to_owned());
    let (settings, identities) = settings(place, nowhere(), HOUR, MONTH);
    let mut cloud = cloud(settings).await;
    let first = kept(&cloud, 1).await.remove(0);
    happened(&cloud, "BackupMade").await;
    let list = listed(&cloud).await;
    assert_eq!((&list["overdue"], &list["every_minutes"]), (&Value::Null, &60.into()), "{list}");
    let loops = cloud.admin().get(cloud.address(0), "/v1/loops").await;
    assert!(String::from_utf8_lossy(&loops.body).contains("archivist"));

    // It can be restored, and nothing is left of trying.
    let (file, scratch) =
        (std::fs::read(directory.path().join(&first)).unwrap(), tempfile::tempdir().unwrap());
    let drilled = drill::drill(&file, &identities, scratch.path(), SystemClock.now()).unwrap();
    assert_eq!(drilled.faults, Vec::<String>::new());
    assert_eq!((drilled.kinds["cluster"], drilled.kinds["controller"]), ((1, 1), (1, 0)));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);

    again(&mut cloud).await;
    assert_eq!(whole(&listed(&cloud).await), std::slice::from_ref(&first), "it was not due");

    flip(&directory.path().join(&first));
    again(&mut cloud).await;
    let second = kept(&cloud, 1).await.remove(0);
    assert_ne!(second, first);
    happened(&cloud, "BackupDamaged").await;
    let list = listed(&cloud).await;
    let damaged =
        list["backups"].as_array().unwrap().iter().find(|one| one["name"] == first.as_str()).unwrap();
    assert!(damaged["fault"].as_str().unwrap().contains("not as it was written"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_ones_go_and_what_is_not_its_own_stays() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::Directory(directory.path().to_owned());
    let (settings, _) = settings(place, nowhere(), SECOND, Keep { last: 2, daily_days: 0 });
    // Of another cluster, by hand, and nothing of the sort; all older than what comes.
    let (name, file) = other();
    let by_hand = "test-1.tamdao-backup";
    std::fs::write(directory.path().join(&name), &file).unwrap();
    std::fs::write(directory.path().join(by_hand), &file).unwrap();
    std::fs::write(directory.path().join("notes.txt"), "mine").unwrap();
    let cloud = cloud(settings).await;
    let made = async || {
        let events = events(&cloud).await;
        events.matches("BackupMade").count()
    };
    eventually("some are made", || async { (made().await >= 5).then_some(()) }).await;
    eventually("as many are kept as should be", || async {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let (ours, mut others): (Vec<String>, Vec<String>) = names.partition(|name| name.contains("_test_r"));
        others.sort();
        assert_eq!(others, [name.as_str(), "notes.txt", by_hand]);
        (ours.len() == 2).then_some(())
    })
    .await;
}

/// A good backup of another cluster, of the year 2001.
fn other() -> (String, Vec<u8>) {
    let (_, recipient) = Identities::generate();
    let recipients = Recipients::parse([recipient.as_str()]).unwrap();
    let about = About {
        cluster: uuid::Uuid::from_u128(5),
        cluster_name: "other".into(),
        revision: 9,
        level: 1,
        time_ms: 1_000_000_000_000,
        version: "0.2.0".into(),
    };
    let file = tamdao_backup::write(about, &Content { cluster_key: [1; 32], entries: vec![] }, &recipients);
    let file = file.unwrap();
    let head = tamdao_backup::head(&file).unwrap();
    (BackupName::of(&head, &hex::encode(Sha256::digest(&file))).to_string(), file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_whose_server_dies_in_the_middle_has_nothing_half_and_the_next_attempt_a_whole_one() {
    let s3 = S3::start().await;
    let line = Line::to(&s3, 0).await;
    let (settings, identities) = settings(s3.place(), s3.access_by(line.address), SECOND, MONTH);
    let cloud = cloud(settings).await;
    eventually("the upload breaks", || async { line.is_cut().then_some(()) }).await;
    happened(&cloud, "BackupFailed").await;
    let direct = Destination::open(s3.place(), &s3.access()).unwrap();
    assert_eq!(direct.list().await.unwrap(), []);
    let list = listed(&cloud).await;
    assert!(list["overdue"] == true && !list["error"].as_str().unwrap().is_empty(), "{list}");

    line.mend();
    happened(&cloud, "BackupMade").await;
    let names = whole(&listed(&cloud).await);
    let file = direct.get(&names[0]).await.unwrap();
    assert!(tamdao_backup::open(&file, &identities).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_breaks_off_between_its_parts_is_not_there() {
    let s3 = S3::start().await;
    // Two parts come through, and the third breaks.
    let line = Line::to(&s3, 2).await;
    let name = "large.tamdao-backup";
    let file: Bytes = (0..6 << 20).flat_map(u32::to_be_bytes).collect::<Vec<u8>>().into();
    let broken = Destination::open(s3.place(), &s3.access_by(line.address)).unwrap();
    broken.put(name, file.clone()).await.unwrap_err();
    assert!(line.is_cut());
    let direct = Destination::open(s3.place(), &s3.access()).unwrap();
    assert_eq!(direct.list().await.unwrap(), []);
    line.mend();
    broken.put(name, file.clone()).await.unwrap();
    assert!(direct.get(name).await.unwrap() == file);
    direct.remove(name).await.unwrap();
    assert_eq!(direct.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_told_and_never_shown() {
    let s3 = S3::start().await;
    let mut access = s3.access();
    access.credentials.secret = "not-the-secret-that-it-should-be".into();
    let (settings, _) = settings(s3.place(), access, HOUR, MONTH);
    let cloud = cloud(settings).await;
    happened(&cloud, "BackupFailed").await;
    happened(&cloud, "BackupOverdue").await;
    let list = listed(&cloud).await;
    let error = list["error"].as_str().unwrap();
    assert!(error.contains("credentials are refused (SignatureDoesNotMatch)"), "{error}");
    let told = format!("{list}{}{:?}", events(&cloud).await, cloud.running[0].config);
    assert!(!told.contains("not-the-secret"), "{told}");
}
