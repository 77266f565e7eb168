//! The agent is killed at each step of a create: when it is back the VM is there exactly once. And it ends as planned.

use anyhow::{Context, ensure};
use tamdao_proto::v1::{NodePhase, VmPhase};
use tamdao_tests::cloud::POOL;
use tamdao_tests::guest::READY;
use tamdao_tests::wait::{SOON, eventually};
use tamdao_tests::{Cloud, Result, not_yet};

/// In the order of a create; what they are is told by node-agent/src/checkpoint.rs.
const STEPS: &[&str] = &[
    "volume-aside",
    "volume-renamed",
    "volume",
    "seed",
    "define",
    "start",
    "resumed",
    "running",
    "report",
    "reported",
];

#[tokio::test]
async fn a_create_survives_the_agent_s_death_at_each_step() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(1).start().await?;
    for step in STEPS {
        survive(&mut cloud, step).await.with_context(|| format!("the agent died at {step}"))?;
    }
    cloud.done()
}

#[tokio::test]
async fn a_planned_end_of_an_idle_node_is_recorded() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(1).start().await?;
    cloud.agent_mut("n1")?.stop().await?;
    let told = eventually("the node is known to be gone", SOON, async || {
        let node = cloud.nodes().await?.pop().context("one node")?;
        let status = node.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|condition| condition.r#type == "Ready").cloned();
        match (status.phase(), ready) {
            (NodePhase::Unreachable, Some(ready)) => Ok(ready),
            (phase, ready) => not_yet(format!("{phase:?} {ready:?}")),
        }
    })
    .await?;
    // And not because it was silent for long enough.
    ensure!(told.reason == "Goodbye", "{told:?}");
    cloud.agent_mut("n1")?.start()?;
    cloud.nodes_ready().await?;
    cloud.done()
}

async fn survive(cloud: &mut Cloud, step: &str) -> Result<()> {
    let name = format!("at-{step}");
    cloud.agent_mut("n1")?.kill().await?;
    cloud.agent_mut("n1")?.start_to_die_at(step)?;
    let arguments =
        ["vm", "create", &name, "--flavor", "tiny", "--image", "tiny", "--network", "lan", "--no-wait"];
    cloud.cli.run(&arguments).await?;
    cloud.agent_mut("n1")?.dies().await?;
    cloud.agent_mut("n1")?.start()?;
    cloud.nodes_ready().await?;
    cloud.reaches(&name, VmPhase::Running).await?;

    let domains = cloud.testbed.domains("n1")?;
    ensure!(domains.len() == 1, "one domain: {domains:?}");
    ensure!(cloud.testbed.qemus("n1")?.len() == 1, "one QEMU");
    let files = cloud.testbed.shell("n1", &format!("find {POOL}/volumes -type f"))?;
    ensure!(files.lines().count() == 1, "one file:\n{files}");
    let log = cloud.guest(&name).says(READY, 1).await?;
    ensure!(log.matches("tamdao-tiny: booted").count() == 1, "it booted once:\n{log}");

    cloud.cli.run(&["vm", "delete", &name, "--yes", "--force"]).await?;
    cloud.vanishes(&name).await?;
    eventually("nothing is left on the node", SOON, async || {
        let files = cloud.testbed.shell("n1", &format!("find {POOL}/volumes -type f"))?;
        if files.is_empty() && cloud.testbed.domains("n1")?.is_empty() { Ok(()) } else { not_yet(files) }
    })
    .await
}
