//! The cloud on etcd: VMs come to run, while a leading controller dies and then a member of etcd. The nodes are
//! sessions without hypervisors, because only the records are looked at.

use anyhow::{Context, ensure};
use tamdao_proto::v1::VmPhase;
use tamdao_tests::process::said;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually, not_yet};

const NODES: usize = 2;

#[tokio::test]
async fn on_etcd_vms_run_whoever_dies() -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).etcd().start().await?;
    let _fleet = cloud.fleet(NODES).await?;
    let first = runs(&cloud, "first").await?;

    let led = cloud.leader().await?;
    cloud.controllers[led].kill()?;
    runs(&cloud, "without-leader").await?;

    cloud.etcd.as_mut().context("the cloud is on etcd")?.kill(0)?;
    runs(&cloud, "without-member").await?;

    cloud.start_controller(led)?;
    cloud.controllers_ready(3).await?;
    let again = cloud.reaches("first", VmPhase::Running).await?;
    ensure!(again.metadata.unwrap_or_default().id == first, "it is another VM");
    ensure!(cloud.api.vms().await?.len() == 3, "{:?}", cloud.api.vms().await?);

    // What etcd keeps for itself cannot be changed here, and says so.
    let other = cloud.controllers[(led + 1) % 3].name.clone();
    let refused = cloud.cli.attempt(&["controller", "transfer-leader", &other]).await?;
    ensure!(!refused.status.success() && said(&refused).contains("on etcd"), "{}", said(&refused));
    cloud.done()
}

/// Creates a VM, however often that has to be tried, and waits until it runs; its id.
async fn runs(cloud: &Cloud, name: &str) -> Result<String> {
    let create = ["vm", "create", name, "--flavor", "tiny", "--disk", "size=1G", "--no-wait"];
    eventually(&format!("{name} is created"), SOON, async || {
        let tried = cloud.cli.attempt(&create).await?;
        match tried.status.success() || cloud.vm(name).await.is_ok() {
            true => Ok(()),
            false => not_yet(said(&tried)),
        }
    })
    .await?;
    Ok(cloud.reaches(name, VmPhase::Running).await?.metadata.unwrap_or_default().id)
}
