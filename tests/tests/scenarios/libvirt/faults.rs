//! What breaks on a node, and what the cloud makes of it.

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tamdao_proto::v1::{ConditionStatus, Vm, VmPhase};
use tamdao_tests::cloud::POOL;
use tamdao_tests::guest::READY;
use tamdao_tests::process::signal;
use tamdao_tests::wait::{BOOT, SOON};
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

#[tokio::test]
async fn a_killed_guest_is_restarted_by_its_policy() -> Result<()> {
    let cloud = Cloud::builder().nodes(1).start().await?;
    cloud.create_tiny("web", &[]).await?;
    let guest = cloud.guest("web");
    guest.says(READY, 1).await?;
    kill_qemu(&cloud)?;
    let restarted = |vm: &Vm| {
        api::phase(vm) == VmPhase::Running && vm.status.as_ref().is_some_and(|status| status.restarts == 1)
    };
    cloud.becomes("web", "running after one restart", BOOT, restarted).await?;
    guest.says(READY, 2).await?;
    ensure!(guest.boots().await? == 2, "it is the same disk");
    cloud.event("web", "Restarted").await?;

    // A guest that shuts itself down stays off under on_failure, and comes back under always.
    guest.answers("echo going.; kill -USR2 1", "going.").await?;
    cloud.reaches("web", VmPhase::Stopped).await?;
    cloud.event("web", "ShutDownByItself").await?;
    ensure!(cloud.testbed.domains("n1")?.is_empty(), "it has no domain");
    cloud.cli.run(&["vm", "update", "web", "--run", "always"]).await?;
    guest.says(READY, 3).await?;
    guest.answers("echo going.; kill -USR2 1", "going.").await?;
    guest.says(READY, 4).await?;
    cloud.reaches("web", VmPhase::Running).await?;
    cloud.done()
}

#[tokio::test]
async fn a_restart_of_libvirtd_touches_no_guest() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(1).start().await?;
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    let qemus = cloud.testbed.qemus("n1")?;
    cloud.testbed.restart_libvirtd("n1")?;
    cloud.create_tiny("next", &[]).await?;
    cloud.nodes_ready().await?;
    let now = cloud.testbed.qemus("n1")?;
    ensure!(qemus.iter().all(|id| now.contains(id)), "{qemus:?} became {now:?}");
    let vm = cloud.reaches("web", VmPhase::Running).await?;
    ensure!(vm.status.unwrap_or_default().restarts == 0, "it was restarted");
    cloud.done()
}

#[tokio::test]
async fn a_vanished_volume_is_an_error_and_is_not_made_again() -> Result<()> {
    let cloud = Cloud::builder().nodes(1).start().await?;
    cloud.create_tiny("web", &[]).await?;
    cloud.guest("web").says(READY, 1).await?;
    cloud.cli.run(&["vm", "stop", "web"]).await?;
    let files = || cloud.testbed.shell("n1", &format!("find {POOL}/volumes -type f"));
    let file = files()?;
    cloud.testbed.shell("n1", &format!("mv {file} {POOL}/aside"))?;
    cloud.cli.run(&["vm", "start", "web", "--no-wait"]).await?;
    let told = eventually("a condition says that the file is missing", SOON, async || {
        let vm = cloud.vm("web").await?;
        let conditions = vm.status.clone().unwrap_or_default().conditions;
        let missing = |c: &&tamdao_proto::v1::Condition| {
            c.status() == ConditionStatus::False && c.reason.contains("Missing")
        };
        match conditions.iter().find(missing) {
            Some(condition) => Ok(condition.clone()),
            None => not_yet(api::told(&vm)),
        }
    })
    .await?;
    ensure!(told.message.contains("not there"), "{told:?}");
    ensure!(files()?.is_empty(), "it was made again");
    // The cause goes away, and so does the trouble.
    cloud.testbed.shell("n1", &format!("mv {POOL}/aside {file}"))?;
    cloud.reaches("web", VmPhase::Running).await?;
    cloud.guest("web").says(READY, 2).await?;
    ensure!(cloud.guest("web").boots().await? == 2, "it is the same disk");
    cloud.done()
}

#[tokio::test]
async fn a_corrupt_image_is_not_used() -> Result<()> {
    let cloud = Cloud::builder().nodes(1).start().await?;
    // Another image than the furnished one, so that no node has it yet.
    let tiny = tamdao_tests::testbed::tiny()?.join("kernel");
    let file = tiny.to_str().context("the path")?;
    cloud.cli.run(&["image", "import", "kernel", "--kind", "kernel", "--file", file]).await?;
    let image: serde_json::Value = cloud.cli.json(&["image", "get", "kernel"]).await?;
    let digest = image["status"]["sha256"].as_str().context("a digest")?.to_owned();
    let data = cloud.controllers[0].data_dir.display().to_string();
    let found = tamdao_tests::process::run(std::process::Command::new("find").args([
        &data,
        "-type",
        "f",
        "-name",
        &format!("*{digest}*"),
    ]))?;
    let blob = std::path::PathBuf::from(found.lines().next().context("the blob on the controller")?);
    let good = std::fs::read(&blob)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0xff;
    std::fs::write(&blob, &bad)?;
    let arguments =
        ["vm", "create", "web", "--vcpus", "1", "--memory", "128M", "--kernel", "kernel", "--no-wait"];
    cloud.cli.run(&arguments).await?;
    let told =
        |vm: &Vm| api::told(vm).to_lowercase().contains("checksum") || api::told(vm).contains("Digest");
    cloud.becomes("web", "a condition names the checksum", SOON, told).await?;
    ensure!(cloud.testbed.domains("n1")?.is_empty(), "nothing was started from it");
    std::fs::write(&blob, &good)?;
    cloud.reaches("web", VmPhase::Running).await?;
    cloud.done()
}

#[tokio::test]
async fn an_image_download_that_breaks_off_goes_on_where_it_stopped() -> Result<()> {
    let mut cloud = Cloud::builder().nodes(1).start().await?;
    // Large enough that it is still on its way when the first bytes are seen.
    let content: Vec<u8> = (0u64..32 << 20).flat_map(u64::to_le_bytes).collect();
    let file = cloud.slot.directory.join("large.raw");
    std::fs::write(&file, &content)?;
    cloud.cli.run(&["image", "import", "large", "--file", file.to_str().context("the path")?]).await?;
    let image: serde_json::Value = cloud.cli.json(&["image", "get", "large"]).await?;
    let digest = image["status"]["sha256"].as_str().context("a digest")?.to_owned();
    let images = cloud.agent("n1")?.data_dir.join("images");
    let part = images.join(format!("{digest}.part"));
    let here = || std::fs::metadata(&part).map_or(0, |metadata| metadata.len());

    cloud.cli.run(&["vm", "create", "web", "--flavor", "tiny", "--image", "large", "--no-wait"]).await?;
    let begun = async {
        while here() < 1 << 20 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, begun).await.context("the download begins")?;
    cloud.controllers[0].kill()?;
    let log = cloud.agent("n1")?.log.clone();
    eventually("the agent notices that it broke off", SOON, async || {
        let text = std::fs::read_to_string(&log)?;
        if text.contains("broke off after") { Ok(()) } else { not_yet(format!("{} bytes", here())) }
    })
    .await?;
    let kept = here();
    ensure!(kept > 0 && kept < content.len() as u64, "{kept} bytes are a part of it");

    cloud.start_controller(0)?;
    cloud.reaches("web", VmPhase::Running).await?;
    let text = std::fs::read_to_string(&log)?;
    ensure!(text.contains(&format!("from_bytes={kept}")), "it went on from byte {kept}:\n{text}");
    ensure!(std::fs::read(images.join(&digest))? == content, "it is the same file");
    cloud.done()
}

#[tokio::test]
async fn a_guest_paused_by_a_full_pool_goes_on_when_there_is_room() -> Result<()> {
    let cloud = Cloud::builder().nodes(1).start().await?;
    let small = "/var/lib/libvirt/small";
    cloud.testbed.shell("n1", &format!("mkdir -p {small} && mount -t tmpfs -o size=320m tmpfs {small}"))?;
    cloud.cli.run(&["pool", "create", "small", "--path", small, "--timeout", "90s"]).await?;
    cloud.create_tiny("web", &["--disk", "size=200M,pool=small"]).await?;
    let guest = cloud.guest("web");
    guest.says(READY, 1).await?;
    cloud.testbed.shell("n1", &format!("head -c 260M /dev/zero >{small}/filler"))?;
    let line = "dd if=/dev/zero of=/dev/vdb bs=1M seek=4 count=150 conv=fsync 2>/dev/null; echo written.";
    let arguments = ["vm", "console", "web", "--force"];
    let typed = format!("{line}\n");
    cloud.cli.converse(&arguments, typed.as_bytes(), BOOT, |heard| heard.contains("vdb")).await?;
    cloud.reaches("web", VmPhase::Paused).await?;
    cloud.event("web", "PausedByStorage").await?;
    cloud.testbed.shell("n1", &format!("rm {small}/filler"))?;
    cloud.reaches("web", VmPhase::Running).await?;
    guest.says("written.", 2).await?;
    ensure!(guest.log().await?.matches("tamdao-tiny: booted").count() == 1, "it did not boot again");
    cloud.done()
}

fn kill_qemu(cloud: &Cloud) -> Result<()> {
    let qemus = cloud.testbed.qemus("n1")?;
    ensure!(qemus.len() == 1, "one QEMU: {qemus:?}");
    signal(qemus[0], Signal::KILL)
}
