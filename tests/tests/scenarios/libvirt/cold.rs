//! A VM that is off moves with the disks that only its node has: its data is as it was, and it boots over there.

use anyhow::ensure;
use tamdao_proto::v1::{Move, MovePhase, MoveWay, VmPhase};
use tamdao_tests::guest::READY;
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

use super::moves::{files_are_only_on, fill, id, log_file, newest, phase, read, sum, under_way};

/// How many MiB a second an agent's moves may send; 0 does not limit.
async fn limit(cloud: &mut Cloud, node: &str, mib: u32) -> Result<()> {
    cloud.agent(node)?.limit_moves(mib)?;
    cloud.agent_mut(node)?.stop().await?;
    cloud.agent_mut(node)?.start()?;
    cloud.nodes_ready().await?;
    // While its node was not heard nobody knew.
    cloud.reaches("web", VmPhase::Stopped).await.map(drop)
}

/// It is off there, and its files are nowhere else.
async fn off_on(cloud: &Cloud, node: &str, other: &str) -> Result<()> {
    let vm = cloud.reaches("web", VmPhase::Stopped).await?;
    ensure!(api::node(&vm) == node, "it is on {}", api::node(&vm));
    ensure!(cloud.testbed.qemus(node)?.is_empty() && cloud.testbed.qemus(other)?.is_empty());
    files_are_only_on(cloud, other, node).await
}

/// Starts it where it is, and says what its second disk holds.
async fn boots(cloud: &Cloud, node: &str) -> Result<String> {
    let vm_id = id(&cloud.vm("web").await?);
    let log = log_file(cloud, &vm_id, node)?;
    let before = read(&log).matches(READY).count();
    cloud.cli.run(&["vm", "start", "web"]).await?;
    eventually("it has booted", BOOT, async || {
        if read(&log).matches(READY).count() > before { Ok(()) } else { not_yet("not ready") }
    })
    .await?;
    let heard = read(&log);
    ensure!(!heard.contains("other writer") && !heard.contains("disk error"), "{heard}");
    sum(cloud, "web").await
}

#[tokio::test]
async fn a_vm_that_is_off_moves_with_its_disks_and_boots() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).start().await?;
    // Its boot disk is an overlay on a cached image, its second one is its own.
    cloud.create_tiny("web", &["--disk", "size=64M"]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let before = fill(&cloud, "web").await?;
    let from = api::node(&cloud.vm("web").await?).to_owned();
    let to = if from == "n1" { "n2" } else { "n1" };
    cloud.cli.run(&["vm", "stop", "web"]).await?;

    // Cancelled while its disks are on their way it stays where it was, and nothing of it is left over there.
    limit(&mut cloud, &from, 1).await?;
    cloud.cli.run(&["vm", "migrate", "web", "--to", to, "--no-wait"]).await?;
    under_way(&cloud).await?;
    let one: Move = newest(&cloud).await?;
    ensure!(one.spec.as_ref().is_some_and(|spec| spec.way() == MoveWay::ColdWithDisks), "{one:?}");
    let name = one.metadata.map(|metadata| metadata.name).unwrap_or_default();
    cloud.cli.run(&["move", "cancel", &name]).await?;
    ensure!(phase(&newest(&cloud).await?) == MovePhase::Cancelled);
    off_on(&cloud, &from, to).await?;
    ensure!(boots(&cloud, &from).await? == before, "its data is the same after a cancelled move");
    cloud.cli.run(&["vm", "stop", "web"]).await?;

    limit(&mut cloud, &from, 0).await?;
    cloud.cli.run(&["vm", "migrate", "web", "--to", to]).await?;
    off_on(&cloud, to, &from).await?;
    let after = boots(&cloud, to).await?;
    ensure!(before == after, "its data was {before} and is {after}");
    ensure!(cloud.testbed.qemus(&from)?.is_empty() && cloud.testbed.qemus(to)?.len() == 1);

    // A drain of who runs leaves it where it is unless cold moves are allowed; then it goes along.
    cloud.cli.run(&["vm", "stop", "web"]).await?;
    off_on(&cloud, to, &from).await?;
    cloud.cli.run(&["node", "cordon", &from]).await?;
    cloud.create_tiny("runs", &[]).await?;
    cloud.guest("runs").says(READY, 1).await?;
    cloud.cli.run(&["node", "uncordon", &from]).await?;
    cloud.cli.run(&["node", "drain", to, "--allow-cold", "--yes"]).await?;
    let web = cloud.reaches("web", VmPhase::Stopped).await?;
    ensure!(api::node(&web) == from, "it is on {}", api::node(&web));
    ensure!(boots(&cloud, &from).await? == before, "its data is the same after a drain");
    cloud.done()
}
