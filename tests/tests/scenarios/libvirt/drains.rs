//! Nodes are emptied for maintenance and get their guests back, while nobody notices: ticks go on without a gap, no guest
//! boots again, and none ever runs twice.

use anyhow::{Context, ensure};
use serde_json::Value;
use tamdao_proto::v1::{JoinTokenKind, Node, NodePhase, VmPhase};
use tamdao_tests::guest::READY;
use tamdao_tests::wait::{BOOT, SOON};
use tamdao_tests::watcher::Watcher;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

use super::moves::{gapless, id, log_file, read};

/// Keeps a processor busy, so that the watcher sees where the guest runs.
const BUSY: &str = "(while :; do :; done &) ; echo b''usy now.";

/// Makes guests that tick on one node, the first of them busy.
pub(super) async fn guests(cloud: &Cloud, node: &str, names: &[&str]) -> Result<Vec<Guest>> {
    let others: Vec<String> =
        cloud.agents.iter().map(|agent| agent.name.clone()).filter(|name| name != node).collect();
    for other in &others {
        cloud.cli.run(&["node", "cordon", other]).await?;
    }
    let mut guests = Vec::new();
    for name in names {
        let vm = cloud.create_tiny(name, &[]).await?;
        ensure!(api::node(&vm) == node, "{name} is on {}", api::node(&vm));
        cloud.guest(name).says(READY, 1).await?;
        // The node that it leaves clears its log; by another name what is written to it stays.
        let kept = cloud.slot.directory.join(format!("kept-{name}.log"));
        std::fs::hard_link(log_file(cloud, &id(&vm), node)?, &kept)?;
        guests.push(Guest { name: (*name).to_owned(), id: id(&vm), kept });
    }
    for other in &others {
        cloud.cli.run(&["node", "uncordon", other]).await?;
    }
    cloud.guest(names[0]).answers(BUSY, "busy now.").await?;
    Ok(guests)
}

/// A guest with what its first node has logged of it.
pub(super) struct Guest {
    pub name: String,
    pub id: String,
    pub kept: std::path::PathBuf,
}

impl Guest {
    /// Where it is; it has left with one boot, and ticked without a gap.
    async fn has_moved_from(&self, cloud: &Cloud, left: &[&str]) -> Result<String> {
        let vm = cloud.reaches(&self.name, VmPhase::Running).await?;
        let node = api::node(&vm).to_owned();
        ensure!(!left.contains(&node.as_str()), "{} is on {node}", self.name);
        let there = cloud.guest(&self.name).ticks_on(&node)?.len();
        eventually("it ticks on over there", BOOT, async || {
            let now = cloud.guest(&self.name).ticks_on(&node)?.len();
            if now > there + 1 { Ok(()) } else { not_yet(format!("{now} ticks")) }
        })
        .await?;
        let log = read(&self.kept) + &read(&log_file(cloud, &self.id, &node)?);
        gapless(&log).with_context(|| self.name.clone())?;
        ensure!(log.matches("tamdao-tiny: booted").count() == 1, "{} booted once", self.name);
        Ok(node)
    }
}

fn drain_phase(node: &Node) -> Option<i32> {
    node.status.as_ref().and_then(|status| status.drain.as_ref()).map(|drain| drain.phase)
}

async fn node(cloud: &Cloud, name: &str) -> Result<Node> {
    let nodes = cloud.nodes().await?;
    let found = nodes.into_iter().find(|node| node.metadata.as_ref().is_some_and(|m| m.name == name));
    found.with_context(|| format!("a node {name}"))
}

#[tokio::test]
async fn a_node_is_drained_while_the_leader_dies_and_gets_its_guests_back() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(3).start().await?;
    let guests = guests(&cloud, "n1", &["web", "mail", "db", "log"]).await?;
    let plan: Value = cloud.cli.json(&["node", "drain", "n1", "--dry-run"]).await?;
    let steps = plan["steps"].as_array().context("steps")?;
    ensure!(steps.len() == 4 && plan["rounds"] == 2, "{plan}");
    ensure!(steps.iter().all(|step| step["way"] == "DRAIN_WAY_LIVE_WITH_DISKS"), "{plan}");
    ensure!(drain_phase(&node(&cloud, "n1").await?).is_none(), "a dry run changes nothing");

    let watcher = Watcher::begin(&guests[0].id);
    cloud.cli.run(&["node", "drain", "n1", "--yes", "--no-wait", "--reason", "new fan"]).await?;
    eventually("a guest is on its way", SOON, async || {
        let moves: Value = cloud.cli.json(&["move", "list"]).await?;
        if moves["moves"].as_array().is_some_and(|moves| !moves.is_empty()) {
            return Ok(());
        }
        not_yet(moves)
    })
    .await?;
    cloud.controllers[0].kill()?;
    cloud.start_controller(0)?;
    // To wait for a drain that is going on, one asks for it again.
    cloud.cli.run(&["node", "drain", "n1", "--yes", "--timeout", "10m"]).await?;
    watcher.end()?;
    ensure!(cloud.testbed.qemus("n1")?.is_empty(), "nothing runs on n1");
    for guest in &guests {
        guest.has_moved_from(&cloud, &["n1"]).await?;
    }
    let drained = node(&cloud, "n1").await?;
    let status = drained.status.context("a status")?;
    ensure!(status.vms == 0 && status.drain.is_some_and(|drain| drain.vms_away == 4), "four are away");

    let watcher = Watcher::begin(&guests[0].id);
    cloud.cli.run(&["node", "return", "n1", "--yes", "--timeout", "10m"]).await?;
    watcher.end()?;
    ensure!(cloud.testbed.qemus("n1")?.len() == 4, "all are back");
    for guest in &guests {
        let vm = cloud.reaches(&guest.name, VmPhase::Running).await?;
        ensure!(api::node(&vm) == "n1", "{} is on {}", guest.name, api::node(&vm));
    }
    let back = node(&cloud, "n1").await?;
    ensure!(drain_phase(&back).is_none() && !back.spec.context("a spec")?.cordoned, "n1 is in use again");
    cloud.done()
}

#[tokio::test]
async fn a_drain_that_is_cancelled_leaves_every_guest_running_once() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).start().await?;
    let guests = guests(&cloud, "n1", &["web", "mail"]).await?;
    cloud.agent("n1")?.limit_moves(2)?;
    cloud.agent_mut("n1")?.stop().await?;
    cloud.agent_mut("n1")?.start()?;
    cloud.nodes_ready().await?;
    let watcher = Watcher::begin(&guests[0].id);
    cloud.cli.run(&["node", "drain", "n1", "--yes", "--no-wait"]).await?;
    eventually("a guest is being sent", SOON, async || {
        let moves: Value = cloud.cli.json(&["move", "list", "--phase", "sending"]).await?;
        if moves["moves"].as_array().is_some_and(|moves| !moves.is_empty()) {
            return Ok(());
        }
        not_yet(moves)
    })
    .await?;
    cloud.cli.run(&["node", "drain", "n1", "--cancel"]).await?;
    eventually("no move is open", BOOT, async || {
        let moves: Value = cloud.cli.json(&["move", "list"]).await?;
        let over = |one: &Value| one["status"]["phase"] == "MOVE_PHASE_CANCELLED";
        match moves["moves"].as_array().is_some_and(|moves| moves.iter().all(over)) {
            true => Ok(()),
            false => not_yet(moves),
        }
    })
    .await?;
    watcher.end()?;
    let after = node(&cloud, "n1").await?;
    ensure!(drain_phase(&after).is_none() && after.spec.context("a spec")?.cordoned, "it stays cordoned");
    ensure!(cloud.testbed.qemus("n1")?.len() == 2, "both are where they were");
    for guest in &guests {
        let vm = cloud.reaches(&guest.name, VmPhase::Running).await?;
        ensure!(api::node(&vm) == "n1");
        ensure!(gapless(&read(&guest.kept))? > 0);
    }
    cloud.done()
}

#[tokio::test]
async fn a_rack_of_two_is_drained_by_the_policies_of_its_guests_and_a_node_of_it_replaced() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(3).start().await?;
    for (name, rack) in [("n1", "rack=r1"), ("n2", "rack=r1"), ("n3", "rack=r2")] {
        cloud.cli.run(&["node", "update", name, "--failure-domain", rack]).await?;
    }
    let first = guests(&cloud, "n1", &["web", "mail"]).await?;
    let second = guests(&cloud, "n2", &["db", "log"]).await?;
    cloud.cli.run(&["vm", "update", "mail", "--maintenance", "block"]).await?;
    cloud.cli.run(&["vm", "update", "log", "--maintenance", "shut-down"]).await?;
    let refused = cloud.cli.attempt(&["failure-domain", "drain", "rack=r1", "--dry-run"]).await?;
    let told = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(!refused.status.success() && told.contains("policy is to block"), "{told}");

    let watchers = [Watcher::begin(&first[0].id), Watcher::begin(&second[0].id)];
    cloud.cli.run(&["failure-domain", "drain", "rack=r1", "--yes", "--no-wait"]).await?;
    eventually("n2 is drained, and mail holds n1 up", BOOT, async || {
        let (one, two) = (node(&cloud, "n1").await?, node(&cloud, "n2").await?);
        let told = one.status.clone().unwrap_or_default().conditions;
        let drained = told.iter().find(|one| one.r#type == "Drained").cloned().unwrap_or_default();
        if drain_phase(&two) == Some(2) && drained.reason == "Blocked" && drained.message.contains("mail") {
            return Ok(());
        }
        not_yet(format!("{drained:?} {:?}", two.status))
    })
    .await?;
    cloud.cli.run(&["vm", "update", "mail", "--maintenance", "migrate"]).await?;
    cloud.cli.run(&["failure-domain", "drain", "rack=r1", "--yes", "--timeout", "10m"]).await?;
    for watcher in watchers {
        watcher.end()?;
    }
    for name in ["n1", "n2"] {
        ensure!(cloud.testbed.qemus(name)?.is_empty(), "nothing runs on {name}");
    }
    for guest in first.iter().chain(&second[..1]) {
        ensure!(guest.has_moved_from(&cloud, &["n1", "n2"]).await? == "n3");
    }
    let log = cloud.reaches("log", VmPhase::Stopped).await?;
    ensure!(api::node(&log) == "n2", "it was shut down where it was");

    cloud.cli.run(&["failure-domain", "return", "rack=r1", "--yes", "--timeout", "10m"]).await?;
    for (name, home) in [("web", "n1"), ("mail", "n1"), ("db", "n2"), ("log", "n2")] {
        let vm = cloud.reaches(name, VmPhase::Running).await?;
        ensure!(api::node(&vm) == home, "{name} is on {}", api::node(&vm));
    }

    // A node of which anything is left is not removed; an empty one is, and another takes its name.
    let refused = cloud.cli.attempt(&["node", "remove", "n1", "--yes"]).await?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && told.contains("web"), "{told}");
    cloud.cli.run(&["node", "drain", "n1", "--yes", "--timeout", "10m"]).await?;
    let before = id_of(&node(&cloud, "n1").await?);
    cloud.agent_mut("n1")?.stop().await?;
    cloud.cli.run(&["node", "remove", "n1", "--yes"]).await?;
    let data = cloud.agent("n1")?.data_dir.clone();
    std::fs::remove_dir_all(&data)?;
    let token = cloud.join_token(JoinTokenKind::Node, "n1").await?;
    let addresses: Vec<String> = cloud.controllers.iter().map(|one| one.address.clone()).collect();
    cloud.agent("n1")?.join(&addresses, &token)?;
    cloud.agent_mut("n1")?.start()?;
    eventually("the new n1 is ready", SOON, async || {
        let node = node(&cloud, "n1").await?;
        let ready = node.status.as_ref().is_some_and(|status| status.phase() == NodePhase::Ready);
        if ready && id_of(&node) != before { Ok(()) } else { not_yet(format!("{node:?}")) }
    })
    .await?;
    cloud.cli.run(&["vm", "migrate", "web", "--to", "n1"]).await?;
    cloud.done()
}

fn id_of(node: &Node) -> String {
    node.metadata.as_ref().map(|metadata| metadata.id.clone()).unwrap_or_default()
}
