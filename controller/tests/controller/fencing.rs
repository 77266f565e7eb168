//! A node is lost and powered off by its BMC: its VM runs elsewhere by that proof, and by nothing that a BMC says which
//! lies, hangs, fails or stands for another machine.

use std::time::Duration;

use crate::cloud::bmc::{FakeBmc, Manner, PASSWORD, USER};
use crate::cloud::node::Node;
use crate::cloud::{Cloud, User, eventually};
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

/// A cloud of two nodes, of which one runs the VM.
struct Loss {
    cloud: Cloud,
    admin: User,
    at: String,
    nodes: Vec<Node>,
    vm: String,
    /// Which of them.
    lost: usize,
}

impl Loss {
    async fn new() -> Self {
        let cloud = Cloud::found_as("", |config| config.session_timeout = Duration::from_secs(2)).await;
        let (at, admin) = (cloud.address(0).to_owned(), cloud.admin());
        let nodes = vec![Node::join(&cloud, "n1").await, Node::join(&cloud, "n2").await];
        assert_eq!(admin.post(&at, "/v1/agencies", r#"{"metadata": {"name": "health"}}"#).await.status, 200);
        let vm = json!({"metadata": {"name": "web"}, "spec": {"vcpus": 1, "memory_mib": 256}}).to_string();
        let made = admin.post(&at, "/v1/agencies/health/vms", &vm).await;
        assert_eq!(made.status, 200, "{:?}", made.body);
        let vm = made.json()["metadata"]["id"].as_str().unwrap().to_owned();
        let lost = eventually("the VM runs", || async {
            nodes.iter().position(|node| node.runs().contains_key(&vm))
        })
        .await;
        Self { cloud, admin, at, nodes, vm, lost }
    }

    fn path(&self) -> String {
        format!("/v1/nodes/{}", self.nodes[self.lost].name)
    }

    /// Gives the node that will be lost these BMCs, and drills it.
    async fn give(&self, bmcs: &[&FakeBmc]) -> Value {
        let mut told = Vec::new();
        for bmc in bmcs {
            told.push(
                json!({"url": bmc.serve().await, "username": USER, "password": PASSWORD, "unverified": true}),
            );
        }
        let body = json!({"spec": {"bmcs": told}}).to_string();
        let path = format!("{}?update_mask=spec.bmcs", self.path());
        let set = self.admin.call(&self.at, Method::PATCH, &path, &body).await;
        assert_eq!(set.status, 200, "{:?}", set.body);
        let drilled = self.admin.post(&self.at, &format!("{}:drillFencing", self.path()), "{}").await;
        assert_eq!(drilled.status, 200, "{:?}", drilled.body);
        assert!(!String::from_utf8_lossy(&drilled.body).contains(PASSWORD), "a password is shown");
        drilled.json()
    }

    async fn node(&self) -> Value {
        self.admin.get(&self.at, &self.path()).await.json()
    }

    async fn vm(&self) -> Value {
        self.admin.get(&self.at, "/v1/agencies/health/vms/web").await.json()
    }

    fn survivor(&self) -> &Node {
        &self.nodes[1 - self.lost]
    }

    async fn evacuated(&self) -> Value {
        eventually("the VM runs elsewhere", || async { self.survivor().runs().get(&self.vm).copied() }).await;
        let vm = self.vm().await;
        let past = &vm["status"]["evacuations"];
        assert_eq!(past.as_array().map(Vec::len), Some(1), "{vm}");
        past[0].clone()
    }
}

fn condition(resource: &Value, of: &str) -> Value {
    let all = resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|one| one["type"] == of).unwrap_or_default()
}

fn host(loss: &Loss) -> Uuid {
    loss.nodes[loss.lost].host_uuid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_powered_off_and_its_vm_runs_elsewhere_by_that_proof() {
    let loss = Loss::new().await;
    let bmc = FakeBmc::new(host(&loss), Manner::OffAfter(Duration::from_secs(2)));
    assert_eq!(condition(&loss.vm().await, "Protected")["reason"], "NoSharedDisk");
    let node = loss.give(&[&bmc]).await;
    let good = condition(&node, "Fenceable");
    assert_eq!(
        (&good["status"], &good["reason"]),
        (&json!("CONDITION_STATUS_TRUE"), &json!("Good")),
        "{node}"
    );
    assert_eq!(condition(&loss.vm().await, "Protected")["status"], "CONDITION_STATUS_TRUE");
    let url = node["spec"]["bmcs"][0]["url"].as_str().unwrap().to_owned();
    assert_eq!(bmc.with(|machine| machine.commands), 0, "a drill switches nothing");
    // The node without the password is the node as it was: it may be written back.
    let again = json!({"spec": node["spec"]}).to_string();
    let set = loss.admin.call(&loss.at, Method::PATCH, &loss.path(), &again).await;
    assert_eq!(set.json()["metadata"]["generation"], node["metadata"]["generation"], "{:?}", set.body);

    loss.nodes[loss.lost].cut();
    let past = loss.evacuated().await;
    assert!(bmc.is_off(), "the VM was restarted before the power was off");
    assert_eq!(bmc.with(|machine| machine.commands), 1);
    let proof = &past["proof"];
    assert_eq!(
        (proof["kind"].as_str(), proof["observed_by"].as_str()),
        (Some("PowerOff"), Some("controller c1"))
    );
    let evidence = proof["evidence"].as_str().unwrap();
    assert!(evidence.contains(&url) && evidence.contains(&host(&loss).to_string()), "{evidence}");
    assert!(proof["observed_time"].is_string(), "{proof}");
    let node = loss.node().await;
    assert_eq!(node["status"]["phase"], "NODE_PHASE_FENCED", "{node}");
    let events = loss.admin.get(&loss.at, "/v1/events").await.json().to_string();
    assert!(events.contains("PoweringOff"), "{events}");
    assert!(!events.contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_hangs_fails_or_is_another_machine_lets_nothing_run_twice() {
    let loss = Loss::new().await;
    let bmcs: Vec<_> = (0..4).map(|_| FakeBmc::new(host(&loss), Manner::Honest)).collect();
    let [liar, other, broken, hanging] = &bmcs[..] else { panic!("four") };
    liar.with(|machine| machine.manner = Manner::SaysOff);
    let node = loss.give(&[liar, other, broken, hanging]).await;
    let reasons: Vec<_> =
        (0..4).map(|at| node["status"]["fence_drill"][at]["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(reasons, ["SaysOff", "Good", "Good", "Good"], "{node}");

    other.with(|machine| machine.uuid = Uuid::new_v4());
    broken.with(|machine| machine.manner = Manner::Status(500));
    hanging.with(|machine| machine.manner = Manner::Hangs);
    loss.nodes[loss.lost].cut();
    let told = eventually("it is told what is wrong with each", || async {
        let told = condition(&loss.node().await, "PoweredOff");
        (told["reason"] == "NotDrilled").then_some(told)
    })
    .await;
    let message = told["message"].as_str().unwrap();
    let wrongs =
        ["not been known to say On", "stands for the machine", "status 500", "did not answer within"];
    assert!(wrongs.iter().all(|wrong| message.contains(wrong)), "{message}");
    let vm = loss.vm().await;
    assert_eq!(vm["status"]["evacuations"].as_array().map(Vec::len), None, "{vm}");
    assert!(loss.survivor().runs().is_empty(), "it runs twice");
    assert_eq!(loss.node().await["status"]["phase"], "NODE_PHASE_FENCING");
    assert_eq!(bmcs.iter().map(|bmc| bmc.with(|machine| machine.commands)).sum::<usize>(), 0);

    // One that is repaired is believed at its next turn.
    hanging.with(|machine| machine.manner = Manner::Honest);
    let past = loss.evacuated().await;
    assert_eq!(past["proof"]["kind"], "PowerOff");
    assert!(hanging.is_off() && other.with(|machine| machine.off_at.is_none()));
    drop(loss.cloud);
}
