//! A cloud of the release before is upgraded, controllers first, then agents, while guests run: none of them notices,
//! and between the two versions of agents they move both ways.

use anyhow::ensure;
use tamdao_proto::v1::VmPhase;
use tamdao_tests::binaries::Version;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::{Lookout, running};
use tamdao_tests::wait::BOOT;
use tamdao_tests::watcher::Watcher;
use tamdao_tests::{Cloud, Hopeless, Result, api, eventually, not_yet};

use super::moves::id;

#[tokio::test]
async fn guests_run_on_through_an_upgrade() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).nodes(2).released().start().await?;
    for name in ["web", "db", "off"] {
        cloud.create_tiny(name, &[]).await?;
        cloud.guest(name).says(READY, 1).await?;
    }
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
    lookout.end()?;
    // On its way a guest has a process on either end; that only one of them runs is the watcher's to see.
    let watcher = Watcher::begin(&id(&cloud.vm("web").await?));
    let from = api::node(&cloud.vm("web").await?).to_owned();
    let to = if from == "n1" { "n2" } else { "n1" };
    cloud.cli.run(&["vm", "migrate", "web", "--to", to]).await?;
    eventually("it moves back, once nothing is left of it there", BOOT, async || {
        let asked = cloud.cli.attempt(&["vm", "migrate", "web", "--to", &from]).await?;
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        match asked.status.success() {
            true => Ok(()),
            false if said.contains("still clears away") => not_yet(said),
            false => Err(Hopeless(said).into()),
        }
    })
    .await?;

    watcher.end()?;

    let lookout = Lookout::start();
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
    }
    ensure!(cloud.guest("db").boots().await? == 1, "it has booted again");
    cloud.guest("web").answers("echo a''live.", "alive.").await?;
    lookout.end()?;
    cloud.check()?;
    cloud.done()
}
