//! The audit log on its way to a real rsyslog by mutual TLS: nothing is lost while that is down, killed or not who it should
//! be, nor when a controller restarts or another one leads; and a journal waits for it beyond its time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::audit::log;
use crate::cloud::rsyslog::Rsyslog;
use crate::cloud::{Cloud, Running, eventually};
use http::Method;
use serde_json::{Value, json};
use tamdao_controller::assembly::Controller;
use tamdao_controller::config::Config;
use tamdao_controller::identity::Identity;
use tamdao_controller::syslog::deliver;
use tamdao_proto::v1;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn create(cloud: &Cloud, at: usize, name: &str) {
    let body = json!({"metadata": {"name": name, "display_name": "Sở Y tế"}}).to_string();
    let answer = eventually("a leader answers", || async {
        cloud.admin().call(cloud.address(at), Method::POST, "/v1/agencies", &body).await.of_a_leader()
    })
    .await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
}

/// The lines of a controller's own export, by the record's id.
async fn exported(cloud: &Cloud, at: usize) -> BTreeMap<String, Value> {
    let lines = log(&cloud.admin(), cloud.address(at), v1::WatchAuditRequest::default()).await;
    let lines = lines.into_iter().map(|line| serde_json::to_value(line).unwrap());
    lines.map(|line| (line["record"]["id"].as_str().unwrap().to_owned(), line)).collect()
}

/// Waits until the receiver has all that a controller's journal has; says how often it has each.
async fn delivered(cloud: &Cloud, at: usize, rsyslog: &Rsyslog) -> BTreeMap<String, usize> {
    let name = cloud.running[at].config.name.to_string();
    eventually("the receiver has all", || async {
        let wanted = exported(cloud, at).await;
        let mut counts = BTreeMap::new();
        for message in rsyslog.received().into_iter().filter(|message| message.host() == name) {
            *counts.entry(message.id().to_owned()).or_insert(0) += 1;
            if let Some(line) = wanted.get(message.id()) {
                assert_eq!(*line, message.line, "it is what an export prints");
            }
        }
        wanted.keys().all(|id| counts.contains_key(id)).then_some(counts)
    })
    .await
}

async fn stop(cloud: &mut Cloud, at: usize) -> Config {
    let Running { config, controller } = cloud.running.remove(at);
    controller.stop().await;
    config
}

async fn start(cloud: &mut Cloud, config: Config) {
    let controller = Controller::start(&config, Identity::of(&config).unwrap()).await.unwrap();
    cloud.running.push(Running { config, controller });
    cloud.settled().await;
}

async fn verified(cloud: &Cloud, at: usize) -> Value {
    cloud.admin().get(cloud.address(at), "/v1/audit:verify").await.json()
}

async fn happened(cloud: &Cloud, at: usize, reason: &str, name: &str) {
    eventually(reason, || async {
        let answer = cloud.admin().get(cloud.address(at), "/v1/events?page_size=1000").await.json();
        let events = answer["events"].as_array().cloned().unwrap_or_default();
        let found = events.iter().any(|event| event["reason"] == reason && event["name"] == name);
        found.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_arrives_whoever_was_down_meanwhile() {
    let mut rsyslog = Rsyslog::plan();
    let settings = rsyslog.settings();
    let mut cloud = Cloud::found_as("", |config| config.syslog = Some(settings.clone())).await;
    for name in ["c2", "c3"] {
        cloud.join_as(name, |config| config.syslog = Some(settings.clone())).await;
    }
    create(&cloud, 0, "health").await;
    assert_eq!(cloud.anonymous().get(cloud.address(1), "/v1/vms").await.status, 401);
    // Nobody receives: that is told of each, also by those who do not lead.
    for name in ["c1", "c2", "c3"] {
        happened(&cloud, 0, "AuditReceiverSilent", name).await;
    }
    let told = verified(&cloud, 0).await;
    assert!(told["trouble"].as_str().unwrap().contains("no connection"), "{told}");
    assert_eq!(told["receiver"], settings.receiver);

    rsyslog.start();
    let mut first = BTreeMap::new();
    for at in 0..3 {
        first.insert(at, delivered(&cloud, at, &rsyslog).await);
        let name = cloud.running[at].config.name.to_string();
        happened(&cloud, 0, "AuditReceiverBack", &name).await;
    }
    let refused = rsyslog.received().into_iter().filter(|m| m.head[0] == "<108>1").collect::<Vec<_>>();
    assert!(refused.iter().any(|m| m.line["record"]["reason"] == "NoCredentials"), "{refused:?}");
    assert!(rsyslog.text().is_ascii() && !rsyslog.text().contains(&cloud.token));

    // It dies in the midst of it, and the leader goes.
    rsyslog.kill();
    create(&cloud, 0, "works").await;
    let leader = cloud.running.iter().position(|running| running.controller.shared.leads()).unwrap();
    let config = stop(&mut cloud, leader).await;
    create(&cloud, 0, "culture").await;
    rsyslog.start();
    start(&mut cloud, config).await;
    create(&cloud, 0, "justice").await;
    for at in 0..3 {
        let counts = delivered(&cloud, at, &rsyslog).await;
        let told = exported(&cloud, at).await;
        let made: BTreeSet<&str> = told.values().filter_map(|l| l["record"]["name"].as_str()).collect();
        assert!(["health", "works", "culture", "justice"].iter().all(|name| made.contains(name)), "{made:?}");
        // What was proven is not sent again, also after a restart.
        let name = cloud.running[at].config.name.to_string();
        let before: Vec<_> = first.values().flat_map(BTreeMap::keys).collect();
        let twice: Vec<_> = counts.iter().filter(|(id, n)| **n > 1 && before.contains(id)).collect();
        assert!(twice.is_empty(), "{name}: {twice:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_another_one_gets_nothing() {
    let mut rsyslog = Rsyslog::plan();
    rsyslog.trust(false);
    rsyslog.start();
    let settings = rsyslog.settings();
    let cloud = Cloud::found_as("", |config| config.syslog = Some(settings.clone())).await;
    create(&cloud, 0, "health").await;
    happened(&cloud, 0, "AuditReceiverSilent", "c1").await;
    let told = verified(&cloud, 0).await;
    assert!(told["delivered"].is_null(), "{told}");
    assert_eq!(rsyslog.text(), "");
    // Its files are read anew for each connection.
    rsyslog.trust(true);
    delivered(&cloud, 0, &rsyslog).await;
    eventually("it is known to have all", || async {
        let told = verified(&cloud, 0).await;
        (told["trouble"].is_null() && told["delivered"].is_string()).then_some(())
    })
    .await;
    // Without a certificate of its CA it reads nothing, so nothing counts as delivered.
    let anybody = tamdao_controller::syslog::Settings { identity: None, ..settings };
    assert!(deliver(&anybody, b"10 <109>1 - -").await.is_err());
}

/// The files of a journal, the oldest first.
fn files(config: &Config) -> Vec<PathBuf> {
    let all = std::fs::read_dir(config.data_dir.join("journal")).unwrap().map(|file| file.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_lets_go_what_is_old_and_what_the_receiver_has() {
    let mut rsyslog = Rsyslog::plan();
    let settings = rsyslog.settings();
    let week = 7 * DAY;
    let mut cloud = Cloud::found_as("", |config| {
        config.syslog = Some(settings);
        config.journal.age_ms = u64::try_from(week.as_millis()).unwrap();
    })
    .await;
    create(&cloud, 0, "health").await;
    let old: BTreeSet<String> = exported(&cloud, 0).await.into_keys().collect();
    // Ten days pass.
    let config = stop(&mut cloud, 0).await;
    let first = files(&config).remove(0);
    let then = SystemTime::now() - 10 * DAY;
    OpenOptions::new().write(true).open(&first).unwrap().set_modified(then).unwrap();
    start(&mut cloud, config).await;
    create(&cloud, 0, "works").await;
    let config = cloud.running[0].config.clone();
    eventually("the day has a file of its own", || async { (files(&config).len() == 2).then_some(()) }).await;
    // A look for what is old comes with each start.
    let config = stop(&mut cloud, 0).await;
    start(&mut cloud, config.clone()).await;
    create(&cloud, 0, "culture").await;
    let all = exported(&cloud, 0).await;
    assert!(old.iter().all(|id| all.contains_key(id)), "the receiver has none of it yet");

    rsyslog.start();
    delivered(&cloud, 0, &rsyslog).await;
    eventually("the proof is written", || async {
        let file = File::open(config.data_dir.join("journal/delivered.json")).ok()?;
        let position: Value = serde_json::from_reader(file).ok()?;
        (position["delivered"].as_u64()? > u64::try_from(old.len()).unwrap()).then_some(())
    })
    .await;
    let config = stop(&mut cloud, 0).await;
    start(&mut cloud, config.clone()).await;
    eventually("what is old goes", || async { (!first.exists()).then_some(()) }).await;
    let (all, told) = (exported(&cloud, 0).await, verified(&cloud, 0).await);
    assert!(!all.is_empty() && old.iter().all(|id| !all.contains_key(id)));
    assert!(told["damage"].is_null() && told["first"] != "1", "{told}");
    let kept: BTreeSet<String> = rsyslog.received().iter().map(|message| message.id().to_owned()).collect();
    assert!(old.is_subset(&kept));
}
