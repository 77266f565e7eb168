//! A cloud of the release before is upgraded, controllers first, then agents, while guests run: none of them notices,
//! and between the two versions of agents they move both ways.

use anyhow::ensure;
use tamdao_proto::v1::VmPhase;
use tamdao_tests::binaries::Version;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::{Cloud, Result, api};

#[tokio::test]
async fn guests_run_on_through_an_upgrade() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).released().start().await?;
    for name in ["web", "db"] {
        cloud.create_tiny(name, &[]).await?;
        cloud.guest(name).says(READY, 1).await?;
    }
    cloud.create_tiny("off", &[]).await?;
    cloud.cli.run(&["vm", "stop", "off", "--force", "--yes"]).await?;
    cloud.reaches("off", VmPhase::Stopped).await?;
    let (lookout, before) = (Lookout::start(), running()?);
    ensure!(before.len() == 2, "{before:?}");

    for index in 0..3 {
        cloud.controllers[index].stop().await?;
        cloud.controllers[index].version = Version::Present;
        cloud.start_controller(index)?;
        cloud.controllers_ready(3).await?;
        cloud.nodes_ready().await?;
        for name in ["web", "db"] {
            cloud.reaches(name, VmPhase::Running).await?;
        }
    }
    ensure!(running()? == before, "old agents under new controllers let them run");

    cloud.agents[0].stop().await?;
    cloud.agents[0].version = Version::Present;
    cloud.agents[0].start()?;
    cloud.nodes_ready().await?;
    ensure!(running()? == before, "a new agent lets them run");
    let from = api::node(&cloud.vm("web").await?).to_owned();
    let to = if from == "n1" { "n2" } else { "n1" };
    cloud.cli.run(&["vm", "migrate", "web", "--to", to]).await?;
    cloud.cli.run(&["vm", "migrate", "web", "--to", &from]).await?;

    cloud.agents[1].stop().await?;
    cloud.agents[1].version = Version::Present;
    cloud.agents[1].start()?;
    cloud.nodes_ready().await?;
    cloud.create_tiny("new", &[]).await?;
    cloud.guest("new").says(READY, 1).await?;
    cloud.cli.run(&["vm", "start", "off"]).await?;
    cloud.guest("off").says(READY, 2).await?;
    ensure!(cloud.guest("off").boots().await? == 2, "it is the same disk");
    for name in ["web", "db"] {
        let vm = cloud.reaches(name, VmPhase::Running).await?;
        ensure!(vm.status.unwrap_or_default().restarts == 0, "{name} was restarted");
        ensure!(cloud.guest(name).boots().await? == 1, "{name} booted again");
    }
    lookout.end()?;
    cloud.check()?;
    cloud.done()
}
