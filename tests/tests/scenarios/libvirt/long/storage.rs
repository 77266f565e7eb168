//! Storage that hangs instead of failing: who asks it waits, and whoever is killed may wait on. Guests on it are off before
//! they run elsewhere, and nothing runs twice.

use anyhow::ensure;
use serde_json::Value;
use tamdao_proto::v1::{NodePhase, VmPhase};
use tamdao_tests::guarded::Hang;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

use super::super::loss::{phase, proof, protected, runs_elsewhere};
use super::super::moves::id;

async fn pool_becomes(cloud: &Cloud, phase: &str) -> Result<()> {
    eventually(&format!("the pool is {phase}"), BOOT, async || {
        let pool: Value = cloud.cli.json(&["pool", "get", "shared"]).await?;
        if pool["status"]["phase"] == phase { Ok(()) } else { not_yet(pool["status"].to_string()) }
    })
    .await
}

/// Its node is heard throughout, and another guest there, whose disk is its own, does not notice.
#[tokio::test]
async fn a_guest_whose_node_is_heard_and_whose_storage_hangs_is_killed_and_runs_elsewhere() -> Result<()> {
    let cloud = Cloud::builder().nodes(2).may_hang(Hang::Dies).start().await?;
    let node = protected(&cloud, "web").await?;
    cloud.create_tiny("own", &["--pin-node", &node]).await?;
    cloud.guest("own").says(READY, 1).await?;
    let (web, own) = (id(&cloud.vm("web").await?), id(&cloud.vm("own").await?));
    let before = running()?;
    let lookout = Lookout::start();
    cloud.guarded(&node)?.hang(true)?;
    runs_elsewhere(&cloud, "web", &node).await?;
    cloud.event("web", "Moved").await?;
    let now = cloud.node_becomes(&node, "ready", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(now.status.unwrap_or_default().fence_proofs.is_empty(), "nothing had to be proven of it");
    pool_becomes(&cloud, "POOL_PHASE_DEGRADED").await?;
    let after = running()?;
    ensure!(before[&own] == after[&own] && before[&web] != after[&web], "{before:?} became {after:?}");
    // The storage is back: what has gone stays where it is.
    cloud.guarded(&node)?.hang(false)?;
    pool_becomes(&cloud, "POOL_PHASE_READY").await?;
    ensure!(api::node(&cloud.reaches("web", VmPhase::Running).await?) != node, "it stays where it is");
    ensure!(running()? == after, "and runs on");
    lookout.end()?;
    cloud.done()
}

/// A QEMU that waits for its disk cannot be reaped, so the keeper has the host reset; before that nobody has it elsewhere.
async fn a_host_is_reset(cut_off: bool) -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).may_hang(Hang::Stays).start().await?;
    let node = protected(&cloud, "web").await?;
    let lookout = Lookout::start();
    if cut_off {
        cloud.guarded(&node)?.link(false)?;
    }
    cloud.guarded(&node)?.hang(true)?;
    let log = cloud.guarded(&node)?.log.clone();
    eventually("the watchdog fires", BOOT, async || match std::fs::read_to_string(&log)? {
        text if text.contains("its power is cut") => Ok(()),
        text => not_yet(text),
    })
    .await?;
    ensure!(std::fs::read_to_string(&log)?.contains("killing a guest"), "the keeper tried before");
    // What entered the host for the storage has stopped with it, and would not let it go.
    cloud.powerless(&node)?;
    cloud.power_cut(&node)?;
    runs_elsewhere(&cloud, "web", &node).await?;
    ensure!(proof(&cloud, "web").await? == "StorageSilence");
    if cut_off {
        cloud.guarded(&node)?.link(true)?;
    }
    cloud.boot(&node).await?;
    cloud.node_becomes(&node, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    ensure!(cloud.testbed.qemus(&node)?.is_empty(), "nothing came back with it");
    lookout.end()?;
    ensure!(running()?.values().all(|processes| processes.len() == 1));
    cloud.done()
}

#[tokio::test]
async fn a_host_that_is_cut_off_and_whose_guest_waits_for_its_disk_is_reset() -> Result<()> {
    a_host_is_reset(true).await
}

#[tokio::test]
async fn a_host_that_is_heard_and_whose_guest_waits_for_its_disk_is_reset() -> Result<()> {
    a_host_is_reset(false).await
}
