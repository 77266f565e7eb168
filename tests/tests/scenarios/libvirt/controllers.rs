//! Without any controller, or with followers only, guests run on, and controllers that come back touch none.

use anyhow::ensure;
use tamdao_proto::v1::{Node, NodePhase, VmPhase};
use tamdao_tests::guest::READY;
use tamdao_tests::island::Way;
use tamdao_tests::wait::{BOOT, SOON};
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

#[tokio::test]
async fn guests_outlive_all_controllers() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(1).start().await?;
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let log = cloud.guest("web").log_file().await?;
    let ticks = || -> Result<Vec<u64>> {
        let text = std::fs::read_to_string(&log)?.replace('\r', "");
        Ok(text.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect())
    };
    let qemus = cloud.testbed.qemus("n1")?;
    ensure!(qemus.len() == 1, "one QEMU: {qemus:?}");

    for controller in &mut cloud.controllers {
        controller.kill()?;
    }
    let before = ticks()?.len();
    // Longer than the agent's session can live unheard.
    eventually("the guest ticks on without controllers", BOOT, async || {
        let now = ticks()?.len();
        if now >= before + 15 { Ok(()) } else { not_yet(format!("{now} ticks after {before}")) }
    })
    .await?;
    cloud.agents[0].check()?;

    for index in 0..3 {
        cloud.start_controller(index)?;
    }
    cloud.controllers_ready(3).await?;
    cloud.nodes_ready().await?;
    let vm = cloud.reaches("web", VmPhase::Running).await?;
    ensure!(vm.status.unwrap_or_default().restarts == 0, "nothing was restarted");
    let resumed = ticks()?.len();
    eventually("the guest ticks on with controllers", SOON, async || {
        if ticks()?.len() > resumed + 2 { Ok(()) } else { not_yet("no further tick") }
    })
    .await?;
    ensure!(cloud.testbed.qemus("n1")? == qemus, "it is another QEMU");
    ensure!(cloud.guest("web").boots().await? == 1, "the guest booted again");
    let ticks = ticks()?;
    let gapless = ticks.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(gapless, "there is a gap in the ticks: {ticks:?}");

    // And the cloud works: another guest comes up.
    cloud.create_tiny("next", &[]).await?;
    cloud.done()
}

#[tokio::test]
async fn a_node_that_reaches_only_followers_keeps_its_guests() -> Result<()> {
    let cloud = Cloud::builder().controllers(3).apart().nodes(1).start().await?;
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let qemus = cloud.testbed.qemus("n1")?;
    let leader = cloud.leader().await?;
    cloud.islands[leader].cut(&[cloud.testbed.address(11)], Way::Both)?;
    // The others know who leads, and say so; the agent hears it and does not get there.
    cloud.node_becomes("n1", "Unreachable", |node| phase(node) == NodePhase::Unreachable).await?;
    ensure!(cloud.leader().await? == leader, "the leader leads on: its followers hear it");
    let vm = cloud.vm("web").await?;
    ensure!(api::phase(&vm) == VmPhase::Unknown, "{}", api::told(&vm));
    ensure!(cloud.testbed.qemus("n1")? == qemus, "it is another QEMU");
    cloud.islands[leader].heal()?;
    cloud.node_becomes("n1", "Ready", |node| phase(node) == NodePhase::Ready).await?;
    let vm = cloud.reaches("web", VmPhase::Running).await?;
    ensure!(vm.status.unwrap_or_default().restarts == 0, "nothing was restarted");
    ensure!(cloud.testbed.qemus("n1")? == qemus, "it is another QEMU");
    ensure!(cloud.guest("web").boots().await? == 1, "the guest booted again");
    cloud.done()
}

fn phase(node: &Node) -> NodePhase {
    node.status.as_ref().map(|status| status.phase()).unwrap_or_default()
}
