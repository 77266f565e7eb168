//! Links that flap, and a second machine under one identity: what is decided, and what is not.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::cloud::node::Node;
use crate::cloud::{Cloud, User, eventually};

async fn cloud() -> (Cloud, User, String) {
    let cloud = Cloud::found_as("", |config| {
        config.session_timeout = Duration::from_secs(1);
        config.steady = Duration::from_secs(8);
    })
    .await;
    let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
    assert_eq!(admin.post(&at, "/v1/agencies", r#"{"metadata": {"name": "health"}}"#).await.status, 200);
    (cloud, admin, at)
}

async fn create(admin: &User, at: &str, name: &str) -> String {
    let vm = json!({"metadata": {"name": name}, "spec": {"vcpus": 1, "memory_mib": 256}}).to_string();
    let made = admin.post(at, "/v1/agencies/health/vms", &vm).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    made.json()["metadata"]["id"].as_str().unwrap().to_owned()
}

/// The node's phase, and why it is Ready or not.
async fn ready(admin: &User, at: &str) -> (String, String) {
    let node = admin.get(at, "/v1/nodes/n1").await.json();
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = all.into_iter().find(|one| one["type"] == "Ready").unwrap_or_default();
    (text(&node["status"]["phase"]), text(&ready["reason"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The reasons of all events about nodes.
async fn told(admin: &User, at: &str) -> Vec<String> {
    let events = admin.get(at, "/v1/events?page_size=500").await.json();
    let events = events["events"].as_array().cloned().unwrap_or_default();
    events.iter().map(|event| text(&event["reason"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_flaps_moves_nothing_and_takes_nothing_new_until_it_is_steady() {
    let (cloud, admin, at) = cloud().await;
    let node = Node::join(&cloud, "n1").await;
    let first = create(&admin, &at, "first").await;
    eventually("it runs", || async { node.runs().get(&first).copied() }).await;
    for _ in 0..3 {
        node.link(false);
        eventually("the silence is noticed", || async {
            (ready(&admin, &at).await.1 == "AgentSilent").then_some(())
        })
        .await;
        node.link(true);
        eventually("it is heard", || async { (ready(&admin, &at).await.1 != "AgentSilent").then_some(()) })
            .await;
    }
    assert_eq!(ready(&admin, &at).await, ("NODE_PHASE_NOT_READY".into(), "Unsteady".into()));
    let second = create(&admin, &at, "second").await;
    let waits = eventually("its wait is told", || async {
        let vm = admin.get(&at, "/v1/agencies/health/vms/second").await.json();
        let all = vm["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["type"] == "Placed" && one["status"] == "CONDITION_STATUS_FALSE")
    })
    .await;
    assert!(text(&waits["message"]).contains("not ready"), "{waits}");
    assert_eq!(node.runs().get(&first), Some(&1), "what ran was left alone");
    // Nobody has to do anything.
    eventually("the second runs too", || async { node.runs().get(&second).copied() }).await;
    assert_eq!(ready(&admin, &at).await.0, "NODE_PHASE_READY");
    assert_eq!(node.runs().get(&first), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_machine_under_one_identity_is_refused_and_told_of() {
    let (cloud, admin, at) = cloud().await;
    let (_, user, host_uuid) = cloud.host("n1").await;
    let node = Node::speak(&cloud, "n1", user.clone(), host_uuid);
    let vm = create(&admin, &at, "web").await;
    eventually("it runs", || async { node.runs().get(&vm).copied() }).await;
    // A copied disk in another machine, and a copy of a machine with its UUID.
    let other = Node::speak(&cloud, "n1", user.clone(), Uuid::new_v4());
    let twin = Node::speak(&cloud, "n1", user, host_uuid);
    let count = async |reason: &str| told(&admin, &at).await.iter().filter(|one| *one == reason).count();
    for reason in ["ClonedNode", "SecondSession"] {
        eventually(reason, || async { (count(reason).await > 0).then_some(()) }).await;
    }
    // They try again and again meanwhile.
    let third = create(&admin, &at, "third").await;
    eventually("it runs", || async { node.runs().get(&third).copied() }).await;
    for reason in ["ClonedNode", "SecondSession"] {
        assert_eq!(count(reason).await, 1, "{reason} is told of once, not at each try");
    }
    assert!(other.runs().is_empty() && twin.runs().is_empty());
    assert_eq!(ready(&admin, &at).await.0, "NODE_PHASE_READY", "the node itself is heard as ever");
    assert_eq!(node.runs().get(&vm), Some(&1));
}
