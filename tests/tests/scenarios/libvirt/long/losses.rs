//! Nodes that are lost in ways that are seldom, or together with something else.

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tamdao_proto::v1::NodePhase;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::process::signal;
use tamdao_tests::watcher::Watcher;
use tamdao_tests::{Cloud, Result, api};

use super::super::loss::{cloud, phase, proof, protected, runs_elsewhere};
use super::super::moves::{LOAD, id, one_guest_where_the_record_says, over, under_way};

fn is_lost(phase: NodePhase) -> bool {
    matches!(phase, NodePhase::Unreachable | NodePhase::Fencing)
}

/// Its guests are ended and then its agent, as a host that shuts down does it.
#[tokio::test]
async fn a_node_that_says_goodbye_has_its_guests_run_elsewhere() -> Result<()> {
    let mut cloud = cloud(2).await?;
    let node = protected(&cloud, "web").await?;
    let lookout = Lookout::start();
    // It must not bring the guest back in between.
    cloud.agent(&node)?.signal(Signal::STOP)?;
    let domains = cloud.testbed.domains(&node)?;
    for domain in &domains {
        cloud.testbed.shell(&node, &format!("virsh -q -c qemu:///system destroy {domain}"))?;
    }
    ensure!(domains.len() == 1 && running()?.is_empty(), "the guest is off: {domains:?}");
    cloud.agent(&node)?.signal(Signal::TERM)?;
    cloud.agent(&node)?.signal(Signal::CONT)?;
    cloud.agent_mut(&node)?.dies().await?;
    runs_elsewhere(&cloud, "web", &node).await?;
    ensure!(proof(&cloud, "web").await? == "Goodbye");
    cloud.agent_mut(&node)?.start()?;
    cloud.node_becomes(&node, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(cloud.testbed.qemus(&node)?.is_empty(), "nothing came back with it");
    lookout.end()?;
    cloud.done()
}

/// The leader dies when it has found the node silent; the next one judges by what it has seen itself.
#[tokio::test]
async fn a_node_is_lost_while_the_leader_changes() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).shared().start().await?;
    let lost = protected(&cloud, "web").await?;
    let stays = if lost == "n1" { "n2" } else { "n1" };
    cloud.create_tiny("own", &["--pin-node", stays]).await?;
    cloud.guest("own").says(READY, 1).await?;
    let own = id(&cloud.vm("own").await?);
    let before = running()?[&own].clone();
    let lookout = Lookout::start();
    cloud.power_cut(&lost)?;
    cloud.node_becomes(&lost, "lost", |node| is_lost(phase(node))).await?;
    let leader = cloud.leader().await?;
    cloud.controllers[leader].kill()?;
    runs_elsewhere(&cloud, "web", &lost).await?;
    ensure!(proof(&cloud, "web").await? == "StorageSilence");
    ensure!(running()?[&own] == before, "no other node was taken for lost");
    // The next one stands still while the node comes back, and wakes with what it believed.
    let leader = cloud.leader().await?;
    let process = cloud.controllers[leader].id().context("it leads")?;
    signal(process, Signal::STOP)?;
    cloud.boot(&lost).await?;
    let first = (0..3).find(|at| !cloud.controllers[*at].is_started()).context("one is dead")?;
    cloud.start_controller(first)?;
    let ready = cloud.node_becomes(&lost, "ready again", |node| phase(node) == NodePhase::Ready).await;
    signal(process, Signal::CONT)?;
    ready?;
    cloud.controllers_ready(3).await?;
    cloud.node_becomes(&lost, "ready still", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(cloud.testbed.qemus(&lost)?.is_empty(), "nothing came back with it");
    lookout.end()?;
    ensure!(running()?.len() == 2);
    cloud.done()
}

/// It stands still for longer than every timeout while its storage goes: it wakes with an assignment that has its guest on
/// it, under a lease that was broken meanwhile.
#[tokio::test]
async fn an_agent_that_slept_through_its_node_s_fencing_starts_nothing() -> Result<()> {
    let mut cloud = cloud(2).await?;
    let node = protected(&cloud, "web").await?;
    let lookout = Lookout::start();
    cloud.agent(&node)?.signal(Signal::STOP)?;
    cloud.guarded(&node)?.unmount()?;
    runs_elsewhere(&cloud, "web", &node).await?;
    ensure!(proof(&cloud, "web").await? == "StorageSilence");
    cloud.guarded(&node)?.mount()?;
    cloud.agent(&node)?.signal(Signal::CONT)?;
    cloud.node_becomes(&node, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(cloud.testbed.qemus(&node)?.is_empty(), "it has started nothing");
    ensure!(api::node(&cloud.vm("web").await?) != node);
    lookout.end()?;
    cloud.check()?;
    cloud.done()
}

/// No node hears a controller or another node; their storage works.
#[tokio::test]
async fn the_whole_network_goes_and_comes_back() -> Result<()> {
    let mut cloud = cloud(2).await?;
    protected(&cloud, "web").await?;
    protected(&cloud, "mail").await?;
    let before = running()?;
    let lookout = Lookout::start();
    for node in ["n1", "n2"] {
        cloud.guarded(node)?.link(false)?;
    }
    for node in ["n1", "n2"] {
        cloud.node_becomes(node, "lost", |node| is_lost(phase(node))).await?;
    }
    for node in ["n1", "n2"] {
        cloud.guarded(node)?.link(true)?;
    }
    for node in ["n1", "n2"] {
        cloud.node_becomes(node, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    }
    ensure!(running()? == before && before.len() == 2, "every guest runs on: {before:?}");
    lookout.end()?;
    cloud.check()?;
    cloud.done()
}

/// Agents, libvirtds and leaders: `libvirt::moves`.
#[tokio::test]
async fn a_move_survives_the_death_of_either_qemu_and_of_either_keeper() -> Result<()> {
    let mut cloud = cloud(2).await?;
    protected(&cloud, "web").await?;
    let vm = id(&cloud.vm("web").await?);
    for node in ["n1", "n2"] {
        cloud.agent(node)?.limit_moves(8)?;
        cloud.agent_mut(node)?.stop().await?;
        cloud.agent_mut(node)?.start()?;
    }
    cloud.nodes_ready().await?;
    for dies in ["the source's keeper", "the target's keeper", "the target's QEMU", "the source's QEMU"] {
        let from = api::node(&cloud.vm("web").await?).to_owned();
        let to = if from == "n1" { "n2" } else { "n1" };
        let node = if dies.contains("source") { &from } else { to };
        cloud.nodes_ready().await?;
        cloud.guest("web").answers(&LOAD.replace("/dev/vdb", "/run/more"), "busy now.").await?;
        let watcher = Watcher::begin(&vm);
        cloud.cli.run(&["vm", "migrate", "web", "--to", to, "--no-wait"]).await?;
        under_way(&cloud).await?;
        match dies.contains("keeper") {
            true => cloud.guarded_mut(node)?.kill_keeper().await?,
            false => {
                let qemus = cloud.testbed.qemus(node)?;
                ensure!(qemus.len() == 1, "one QEMU on {node}: {qemus:?}");
                signal(qemus[0], Signal::KILL)?;
            }
        }
        let one = over(&cloud).await.with_context(|| format!("{dies} died"))?;
        let now = one_guest_where_the_record_says(&cloud, "web").await;
        now.with_context(|| format!("{dies} died; {:?}", one.status))?;
        watcher.end().with_context(|| format!("{dies} died"))?;
    }
    cloud.done()
}
