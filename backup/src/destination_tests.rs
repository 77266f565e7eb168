//! A destination that is a directory. Buckets are tested against a real server, with the controller.

use std::fs;

use super::*;
use crate::file::{About, Content, write};
use crate::seal::{Identities, Recipients};

fn access() -> Access {
    Access {
        endpoint: String::new(),
        region: "r".into(),
        credentials: Credentials::default(),
        ca_pem: String::new(),
    }
}

/// A backup as a schedule names it.
fn backup(revision: u64) -> (String, Bytes) {
    let about = About {
        cluster: uuid::Uuid::from_u128(7),
        cluster_name: "north".into(),
        revision,
        level: 1,
        time_ms: 1_800_000_000_000 + revision,
        version: "0.2.0".into(),
    };
    let (_, recipient) = Identities::generate();
    let recipients = Recipients::parse([recipient.as_str()]).unwrap();
    let file = write(about, &Content { cluster_key: [9; 32], entries: vec![] }, &recipients).unwrap();
    let name = BackupName::of(&head(&file).unwrap(), &hex::encode(Sha256::digest(&file)));
    (name.to_string(), file.into())
}

async fn verdicts(destination: &Destination) -> Vec<(String, Verdict)> {
    let all = destination.survey(&[]).await.unwrap();
    all.into_iter().map(|(found, verdict)| (found.name, verdict)).collect()
}

#[test]
fn a_place_is_a_bucket_or_a_directory() {
    let bucket = |bucket: &str, prefix: &str| Place::Bucket { bucket: bucket.into(), prefix: prefix.into() };
    assert_eq!(Place::parse("s3://cloud-1"), Ok(bucket("cloud-1", "")));
    assert_eq!(Place::parse("s3://cloud-1/a/b/"), Ok(bucket("cloud-1", "a/b")));
    assert_eq!(Place::parse("s3://cloud-1/a/b/").unwrap().to_string(), "s3://cloud-1/a/b");
    assert_eq!(Place::parse("/srv/backups"), Ok(Place::Directory("/srv/backups".into())));
    for wrong in ["", "s3://", "s3:///a", "s3://Cloud", "gs://cloud", "s3://cloud/a//b", "s3://c/../b"] {
        assert_eq!(Place::parse(wrong), Err(DestinationError::Place(wrong.into())));
    }
}

#[test]
fn credentials_are_read_in_amazons_form_and_never_shown() {
    let text = "[default]\n# of the test\naws_access_key_id = AKIA\naws_secret_access_key=a/b+c=\n";
    let read = Credentials::parse(text).unwrap();
    assert_eq!((read.key_id.as_str(), read.secret.as_str()), ("AKIA", "a/b+c="));
    assert!(!format!("{:?}", Access { credentials: read, ..access() }).contains("a/b+c"));
    let twice = "aws_access_key_id = A\naws_secret_access_key = B\n[other]\naws_secret_access_key = C";
    for wrong in ["", "aws_access_key_id = A", "aws_access_key_id =\naws_secret_access_key = B", twice] {
        assert_eq!(Credentials::parse(wrong), None, "{wrong:?}");
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::Directory(directory.path().join("not-mounted"));
    assert!(matches!(Destination::open(place.clone(), &access()), Err(DestinationError::Failed { .. })));
    assert!(!directory.path().join("not-mounted").exists());
}

#[tokio::test]
async fn what_is_put_is_listed_whole_and_what_was_changed_since_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let destination = Destination::open(Place::Directory(directory.path().to_owned()), &access()).unwrap();
    let made: Vec<_> = (1..=5).map(backup).collect();
    for (name, file) in &made {
        destination.put(name, file.clone()).await.unwrap();
    }
    assert_eq!(destination.get(&made[0].0).await.unwrap(), made[0].1);
    let names = |all: &[(String, Verdict)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let all = verdicts(&destination).await;
    assert_eq!(names(&all), made.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    assert!(all.iter().all(|(_, verdict)| matches!(verdict, Verdict::Whole(..))), "{all:?}");

    // One bit, the end, another backup under this name, and one by hand; what is no backup is not looked at.
    let mut flipped = made[0].1.to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    fs::write(at(&made[0].0), flipped).unwrap();
    fs::write(at(&made[1].0), &made[1].1[..made[1].1.len() - 1]).unwrap();
    fs::write(at(&made[2].0), &made[3].1).unwrap();
    fs::write(at(&made[4].0), b"").unwrap();
    fs::write(at("by-hand.tamdao-backup"), &made[3].1).unwrap();
    fs::write(at("notes.txt"), b"mine").unwrap();
    let all = verdicts(&destination).await;
    let what = |verdict: &Verdict| match verdict {
        Verdict::Whole(..) => "whole",
        Verdict::Unproven(_) => "unproven",
        Verdict::Damaged(_) => "damaged",
        Verdict::Unread(_) => "unread",
    };
    let told: Vec<&str> = all.iter().map(|(_, verdict)| what(verdict)).collect();
    assert_eq!(told, ["damaged", "damaged", "damaged", "whole", "damaged", "unproven"], "{all:?}");

    destination.remove(&made[3].0).await.unwrap();
    destination.remove(&made[3].0).await.unwrap();
    let absent = destination.get(&made[3].0).await;
    assert!(matches!(absent, Err(DestinationError::Absent { .. })), "{absent:?}");
    assert!(at("notes.txt").exists());
}

#[tokio::test]
async fn a_file_of_many_parts_comes_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let destination = Destination::open(Place::Directory(directory.path().to_owned()), &access()).unwrap();
    let file: Bytes = (0..2 * PART as u32 / 4 + 9).flat_map(u32::to_be_bytes).collect::<Vec<u8>>().into();
    destination.put("large.tamdao-backup", file.clone()).await.unwrap();
    assert!(destination.get("large.tamdao-backup").await.unwrap() == file);
}

/// Where a process of this test finds its small disk.
const SMALL_DISK: &str = "TAMDAO_TEST_SMALL_DISK";

/// It runs itself once more in a namespace where a directory is a file system of 10 MiB.
#[test]
fn on_a_full_disk_nothing_is_left_and_the_next_one_fits() {
    let Some(disk) = std::env::var_os(SMALL_DISK) else {
        let directory = tempfile::tempdir().unwrap();
        let mount = "mount -t tmpfs -o size=10m none \"$TAMDAO_TEST_SMALL_DISK\" && exec \"$0\" \"$@\"";
        let mut again = std::process::Command::new("unshare");
        again.args(["--map-root-user", "--mount", "sh", "-c", mount]).arg(std::env::current_exe().unwrap());
        again.args(["--exact", "destination::tests::on_a_full_disk_nothing_is_left_and_the_next_one_fits"]);
        let done = again.env(SMALL_DISK, directory.path()).output().unwrap();
        let said =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("1 passed"), "{said}");
        return;
    };
    let disk = PathBuf::from(disk);
    let files = || fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let destination = Destination::open(Place::Directory(disk.clone()), &access()).unwrap();
        let large = Bytes::from(vec![1; 2 * PART + 1]);
        let full = destination.put("large.tamdao-backup", large).await.unwrap_err();
        assert!(full.to_string().contains("No space left"), "{full}");
        fs::write(disk.join("other"), vec![1; 6 << 20]).unwrap();
        let small = Bytes::from(vec![1; 7 << 20]);
        let full = destination.put("small.tamdao-backup", small.clone()).await.unwrap_err();
        assert!(full.to_string().contains("No space left"), "{full}");
        assert_eq!(files(), ["other"]);
        fs::remove_file(disk.join("other")).unwrap();
        destination.put("small.tamdao-backup", small).await.unwrap();
        assert_eq!(files(), ["small.tamdao-backup"]);
    });
}
