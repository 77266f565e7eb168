//! A node is lost, and its guests run elsewhere as soon as it is proven that they do not run there; while a lookout is kept
//! at every QEMU process of the machine, so that no VM ever runs twice.

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tamdao_proto::v1::{Node, NodePhase, Vm, VmPhase};
use tamdao_tests::bmc::Bmc;
use tamdao_tests::guarded::Guarded;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

const ON_SHARED: [&str; 2] = ["--disk", "size=256M,image=tiny,pool=shared"];

pub(super) async fn cloud(nodes: u8) -> Result<Cloud> {
    Cloud::builder().nodes(nodes).shared().start().await
}

/// Makes a VM on the shared pool and waits until it is guarded; the node that it runs on.
pub(super) async fn protected(cloud: &Cloud, name: &str) -> Result<String> {
    let arguments = ["vm", "create", name, "--flavor", "tiny", "--network", "lan"];
    let _: Vm = cloud.cli.json(&[&arguments[..], &ON_SHARED].concat()).await?;
    cloud.guest(name).says(READY, 1).await?;
    let guarded = |vm: &Vm| vm.status.as_ref().is_some_and(|status| status.protected);
    let vm = cloud.becomes(name, "protected", BOOT, guarded).await?;
    Ok(api::node(&vm).to_owned())
}

pub(super) fn phase(node: &Node) -> NodePhase {
    node.status.as_ref().map_or(NodePhase::Unspecified, |status| status.phase())
}

/// What the search for evidence says.
fn evidence(node: &Node) -> String {
    let conditions = node.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    conditions.into_iter().find(|one| one.r#type == "Fenced").map(|one| one.reason).unwrap_or_default()
}

/// Waits until the VM runs on another node than this, as the next incarnation, from the same disk.
pub(super) async fn runs_elsewhere(cloud: &Cloud, name: &str, lost: &str) -> Result<()> {
    let moved = |vm: &Vm| {
        let incarnation = vm.status.as_ref().map_or(0, |status| status.incarnation);
        api::phase(vm) == VmPhase::Running && api::node(vm) != lost && incarnation == 2
    };
    cloud.becomes(name, "running elsewhere", BOOT, moved).await?;
    cloud.guest(name).says(READY, 1).await?;
    ensure!(cloud.guest(name).boots().await? == 2, "it is the same disk");
    Ok(())
}

/// The kind of the proof by which the VM went, as `vm history` shows it.
pub(super) async fn proof(cloud: &Cloud, name: &str) -> Result<String> {
    let history: serde_json::Value = cloud.cli.json(&["vm", "history", name]).await?;
    let proof = &history["evacuations"][0]["proof"];
    ensure!(proof["observed_time"].is_string() && proof["observed_by"].is_string(), "{history}");
    Ok(proof["kind"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_power_cut_restarts_its_guests_elsewhere() -> Result<()> {
    let mut cloud = cloud(3).await?;
    let lost = protected(&cloud, "web").await?;
    let lookout = Lookout::start();
    cloud.power_cut(&lost)?;
    runs_elsewhere(&cloud, "web", &lost).await?;
    ensure!(proof(&cloud, "web").await? == "StorageSilence");
    // It comes back, gives up what runs elsewhere by now, and takes part again.
    cloud.boot(&lost).await?;
    cloud.node_becomes(&lost, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    let vm = cloud.reaches("web", VmPhase::Running).await?;
    ensure!(api::node(&vm) != lost, "it stays where it is");
    lookout.end()?;
    ensure!(running()?.values().all(|processes| processes.len() == 1));
    cloud.done()
}

#[tokio::test]
async fn a_node_without_storage_and_network_kills_its_guests_before_they_run_elsewhere() -> Result<()> {
    let mut cloud = cloud(3).await?;
    let lost = protected(&cloud, "web").await?;
    let lookout = Lookout::start();
    cloud.guarded(&lost)?.link(false)?;
    cloud.guarded(&lost)?.unmount()?;
    runs_elsewhere(&cloud, "web", &lost).await?;
    ensure!(proof(&cloud, "web").await? == "StorageSilence");
    ensure!(cloud.testbed.qemus(&lost)?.is_empty(), "the keeper killed it");
    // Everything comes back at once.
    cloud.guarded(&lost)?.mount()?;
    cloud.guarded(&lost)?.link(true)?;
    cloud.node_becomes(&lost, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(cloud.testbed.qemus(&lost)?.is_empty(), "and it stays dead there");
    lookout.end()?;
    cloud.check()?;
    cloud.done()
}

/// Its BMC takes its power for real, before its storage lease has ended.
#[tokio::test]
async fn a_node_that_is_heard_no_more_is_powered_off_and_its_guests_run_elsewhere() -> Result<()> {
    let mut cloud = cloud(3).await?;
    let lost = protected(&cloud, "web").await?;
    let bmc = Bmc::start(&cloud.testbed, &lost).await?;
    let password = cloud.slot.directory.join("bmc-password");
    std::fs::write(&password, "secret\n")?;
    let given = format!("{},user=fencer,password-file={},unverified", bmc.url, password.display());
    cloud.cli.run(&["node", "update", &lost, "--bmc", &given]).await?;
    cloud.cli.run(&["node", "fence-drill", &lost]).await?;
    let lookout = Lookout::start();
    cloud.guarded(&lost)?.link(false)?;
    cloud.guarded(&lost)?.unmount()?;
    runs_elsewhere(&cloud, "web", &lost).await?;
    ensure!(proof(&cloud, "web").await? == "PowerOff");
    bmc.has_cut()?;
    cloud.powerless(&lost)?;
    cloud.boot(&lost).await?;
    cloud.node_becomes(&lost, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    lookout.end()?;
    ensure!(running()?.values().all(|processes| processes.len() == 1));
    cloud.done()
}

#[tokio::test]
async fn two_nodes_lost_at_once_are_both_evacuated() -> Result<()> {
    let mut cloud = cloud(3).await?;
    let first = protected(&cloud, "web").await?;
    cloud.cli.run(&["node", "cordon", &first]).await?;
    let second = protected(&cloud, "mail").await?;
    cloud.cli.run(&["node", "uncordon", &first]).await?;
    let lookout = Lookout::start();
    cloud.power_cut(&first)?;
    cloud.power_cut(&second)?;
    runs_elsewhere(&cloud, "web", &first).await?;
    runs_elsewhere(&cloud, "mail", &second).await?;
    // One of them comes back while nobody waits for it.
    cloud.boot(&second).await?;
    cloud.node_becomes(&second, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    lookout.end()?;
    ensure!(running()?.len() == 2);
    cloud.done()
}

/// Nodes and controllers at once; the nodes are back first.
#[tokio::test]
async fn the_whole_site_loses_its_power_and_comes_back() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).shared().start().await?;
    protected(&cloud, "web").await?;
    cloud.create_tiny("db", &[]).await?;
    cloud.guest("db").says(READY, 1).await?;
    cloud.create_tiny("off", &[]).await?;
    cloud.cli.run(&["vm", "stop", "off", "--force", "--yes"]).await?;
    cloud.reaches("off", VmPhase::Stopped).await?;
    let lookout = Lookout::start();
    // The last thing that was acknowledged.
    cloud.create_tiny("late", &["--no-wait"]).await?;
    for node in ["n1", "n2"] {
        cloud.power_cut(node)?;
    }
    for controller in &mut cloud.controllers {
        controller.kill()?;
    }
    ensure!(running()?.is_empty(), "the power is off");

    cloud.boot("n2").await?;
    cloud.boot("n1").await?;
    cloud.start_controller(2)?;
    ensure!(running()?.is_empty(), "a host that has booted starts nothing by itself");
    cloud.start_controller(0)?;
    cloud.start_controller(1)?;
    cloud.controllers_ready(3).await?;
    cloud.nodes_ready().await?;
    for (name, boots) in [("web", 2), ("db", 2)] {
        cloud.guest(name).says(&format!("boot-count {boots} "), 1).await?;
    }
    cloud.guest("late").says(READY, 1).await?;
    cloud.reaches("off", VmPhase::Stopped).await?;
    lookout.end()?;
    let running = running()?;
    ensure!(running.len() == 3 && running.values().all(|processes| processes.len() == 1), "{running:?}");
    cloud.check()?;
    cloud.done()
}

#[tokio::test]
async fn a_node_whose_storage_lease_is_alive_keeps_its_guests() -> Result<()> {
    let mut cloud = cloud(2).await?;
    let cut = protected(&cloud, "web").await?;
    let before = running()?;
    let lookout = Lookout::start();
    cloud.guarded(&cut)?.link(false)?;
    let told = |node: &Node| evidence(node) == "StorageLeaseAlive";
    let node = cloud.node_becomes(&cut, "said to be alive", told).await?;
    ensure!(phase(&node) == NodePhase::Fencing, "it is not fenced: {node:?}");
    let vm = cloud.reaches("web", VmPhase::Unknown).await?;
    ensure!(api::node(&vm) == cut && running()? == before, "the guest stays: {vm:?}");
    cloud.guarded(&cut)?.link(true)?;
    cloud.node_becomes(&cut, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    cloud.reaches("web", VmPhase::Running).await?;
    ensure!(running()? == before, "it was not restarted");
    // An agent that stands still is no other case: its keeper goes on.
    cloud.agent(&cut)?.signal(Signal::STOP)?;
    cloud.node_becomes(&cut, "said to be alive", told).await?;
    cloud.agent(&cut)?.signal(Signal::CONT)?;
    cloud.node_becomes(&cut, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(running()? == before, "it was not restarted");
    lookout.end()?;
    cloud.check()?;
    cloud.done()
}

#[tokio::test]
async fn a_keeper_that_hangs_has_its_host_reset_and_without_one_nothing_starts_on_a_shared_pool() -> Result<()>
{
    let mut cloud = cloud(1).await?;
    let log = cloud.guarded("n1")?.log.clone();
    cloud.guarded("n1")?.signal_keeper(Signal::STOP)?;
    eventually("the watchdog fires", BOOT, async || match std::fs::read_to_string(&log)? {
        text if text.contains("its power is cut") => Ok(()),
        text => not_yet(text),
    })
    .await?;
    // What entered the host for the keeper has stopped with it, and would not let it go.
    cloud.guarded.iter_mut().for_each(Guarded::end);
    cloud.power_cut("n1")?;
    // It boots, and its keeper does not come.
    cloud.testbed.boot("n1", 1)?;
    cloud.guarded("n1")?.mount()?;
    cloud.agent_mut("n1")?.start()?;
    cloud.node_becomes("n1", "ready again", |node| phase(node) == NodePhase::Ready).await?;
    let arguments = ["vm", "create", "web", "--flavor", "tiny", "--network", "lan", "--no-wait"];
    cloud.cli.run(&[&arguments[..], &ON_SHARED].concat()).await?;
    let told = |vm: &Vm| api::told(vm).contains("KeeperAway");
    cloud.becomes("web", "told why it does not start", BOOT, told).await?;
    ensure!(cloud.testbed.domains("n1")?.is_empty(), "nothing was started");
    let place = cloud.guarded.iter_mut().find(|guarded| guarded.node == "n1");
    place.context("what guards it")?.begin(&cloud.slot).await?;
    cloud.guest("web").says(READY, 1).await?;
    cloud.done()
}
