//! A node comes back at each step of its evacuation, and without any controller: wherever its guest runs then, it runs once.

use anyhow::{Context, ensure};
use tamdao_proto::v1::{NodePhase, Vm, VmPhase};
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::wait::BOOT;
use tamdao_tests::{Cloud, Result, api};

use super::super::loss::{phase, protected};

/// The one guest is up once more, on one node.
async fn is_up(cloud: &Cloud, boots: usize) -> Result<()> {
    cloud.reaches("web", VmPhase::Running).await?;
    cloud.guest("web").says(&format!("boot-count {boots} "), 1).await?;
    let running = running()?;
    ensure!(running.values().all(|processes| processes.len() == 1), "{running:?}");
    Ok(())
}

#[tokio::test]
async fn a_node_comes_back_at_each_step_of_its_evacuation() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(2).shared().start().await?;
    protected(&cloud, "web").await?;
    let lookout = Lookout::start();
    let steps = ["unreachable", "fencing", "given elsewhere", "running elsewhere", "without controllers"];
    for (at, step) in steps.iter().enumerate() {
        let guarded = |vm: &Vm| vm.status.as_ref().is_some_and(|status| status.protected);
        let vm = cloud.becomes("web", "protected", BOOT, guarded).await?;
        let node = api::node(&vm).to_owned();
        cloud.power_cut(&node)?;
        match *step {
            "unreachable" => {
                cloud.node_becomes(&node, step, |node| phase(node) != NodePhase::Ready).await?;
            }
            "fencing" => {
                cloud.node_becomes(&node, step, |node| phase(node) == NodePhase::Fencing).await?;
            }
            "given elsewhere" => {
                cloud.becomes("web", step, BOOT, |vm| api::node(vm) != node).await?;
            }
            "running elsewhere" => {
                let runs = |vm: &Vm| api::node(vm) != node && api::phase(vm) == VmPhase::Running;
                cloud.becomes("web", step, BOOT, runs).await?;
            }
            _ => cloud.controllers[0].kill()?,
        }
        cloud.boot(&node).await.with_context(|| format!("back while {step}"))?;
        if *step == "without controllers" {
            ensure!(running()?.is_empty(), "without a controller nothing starts");
            cloud.start_controller(0)?;
        }
        is_up(&cloud, at + 2).await.with_context(|| format!("back while {step}"))?;
        let ready = cloud.node_becomes(&node, "ready again", |node| phase(node) == NodePhase::Ready).await;
        ready.with_context(|| format!("back while {step}"))?;
        cloud.guest("web").says(READY, 1).await?;
    }
    lookout.end()?;
    cloud.done()
}
