//! The records go back in time under nodes that have seen more.

use std::process::Command;

use anyhow::ensure;
use serde_json::Value;
use tamdao_tests::etcd::Etcd;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::running;
use tamdao_tests::process::run;
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, Result, eventually, not_yet};

/// Ends controllers and etcd, copies etcd's data one way, and starts both again.
async fn while_stopped(cloud: &mut Cloud, put_back: bool) -> Result<()> {
    for controller in &mut cloud.controllers {
        controller.kill()?;
    }
    let home = cloud.slot.directory.clone();
    let Some(etcd) = &mut cloud.etcd else { anyhow::bail!("the records are not on etcd") };
    etcd.end().await?;
    for member in Etcd::directories() {
        let (data, aside) = (home.join(&member), home.join(format!("{member}-aside")));
        let (from, to) = if put_back { (&aside, &data) } else { (&data, &aside) };
        if put_back {
            std::fs::remove_dir_all(to)?;
        }
        run(Command::new("cp").arg("-a").arg(from).arg(to))?;
    }
    etcd.begin(&cloud.slot)?;
    for at in 0..cloud.controllers.len() {
        cloud.start_controller(at)?;
    }
    Ok(())
}

/// Old disks were put under etcd. The node that has seen more makes the cloud recover, and no guest notices.
#[tokio::test]
async fn an_etcd_that_was_put_back_makes_the_cloud_recover_and_touches_nothing() -> Result<()> {
    let mut cloud = Cloud::builder().etcd().nodes(1).start().await?;
    cloud.create_tiny("kept", &[]).await?;
    cloud.guest("kept").says(READY, 1).await?;
    while_stopped(&mut cloud, false).await?;
    cloud.nodes_ready().await?;
    cloud.create_tiny("new", &[]).await?;
    cloud.guest("new").says(READY, 1).await?;
    let before = running()?;
    ensure!(before.len() == 2, "{before:?}");
    while_stopped(&mut cloud, true).await?;
    let status = eventually("the node has said what it runs", BOOT, async || {
        let status: Value = cloud.cli.json(&["recovery", "status"]).await?;
        match status["reported"].as_array().map_or(0, Vec::len) {
            1 => Ok(status),
            _ => not_yet(status.to_string()),
        }
    })
    .await?;
    ensure!(status["cause"] == "RECOVERY_CAUSE_WENT_BACK", "{status}");
    ensure!(status["unknown"].as_array().map_or(0, Vec::len) == 1, "{status}");
    ensure!(running()? == before, "nothing was touched");
    cloud.cli.run(&["recovery", "end", "--yes"]).await?;
    cloud.nodes_ready().await?;
    cloud.create_tiny("next", &[]).await?;
    let after = running()?;
    ensure!(after.len() == 3, "{after:?}");
    ensure!(before.iter().all(|(vm, process)| after.get(vm) == Some(process)), "{before:?} became {after:?}");
    cloud.done()
}
