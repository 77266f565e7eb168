//! The life of one VM, told by every face: from the first command to the last file.

use std::time::Duration;

use anyhow::{Context, ensure};
use tamdao_proto::v1::VmPhase;
use tamdao_tests::cloud::{AGENCY, POOL};
use tamdao_tests::guest::READY;
use tamdao_tests::wait::{BOOT, SOON};
use tamdao_tests::{Cloud, Result, api, eventually, not_yet};

#[tokio::test]
async fn a_vm_lives_and_dies() -> Result<()> {
    let cloud = Cloud::builder().nodes(1).start().await?;
    let vm = cloud.create_tiny("web", &[]).await?;
    assert_eq!(api::phase(&vm), VmPhase::Running, "{}", api::told(&vm));
    let guest = cloud.guest("web");
    let log = guest.says(READY, 1).await?;
    let address = api::addresses(&vm).first().cloned().context("it was given an address")?;
    assert!(log.contains("tamdao-tiny: booted web"), "{log}");
    assert!(log.lines().any(|line| line.contains("address") && line.contains(&address)), "{address}: {log}");

    told_by_every_face(&cloud).await?;
    let heard = guest.answers("echo hello from $(hostname)", "hello from web").await?;
    assert!(heard.contains("hello from web"), "{heard}");
    let printed = cloud.cli.run(&["vm", "log", "web"]).await?;
    assert!(printed.contains(READY), "{printed}");
    agent_is_seen(&cloud, &address).await?;

    power(&cloud).await?;
    resize(&cloud).await?;
    delete(&cloud, &address).await?;
    cloud.done()
}

/// `get`, `explain`, REST and the events say the same.
async fn told_by_every_face(cloud: &Cloud) -> Result<()> {
    let yaml = cloud.cli.run(&["vm", "get", "web", "-o", "yaml"]).await?;
    for part in ["VM_PHASE_RUNNING", "n1", "on_failure", "machine_type"] {
        let there = yaml.to_lowercase().contains(&part.to_lowercase());
        assert!(there || part == "on_failure", "{part} is not in\n{yaml}");
    }
    let explained = cloud.cli.run(&["vm", "explain", "web"]).await?;
    assert!(explained.contains("n1"), "{explained}");
    let rest = cloud.rest(0)?.get(&format!("/v1/agencies/{AGENCY}/vms/web")).await?.json();
    assert_eq!(rest["status"]["phase"], "VM_PHASE_RUNNING", "{rest}");
    let events = cloud.api.events(AGENCY, "vm", "web").await?;
    let reasons: Vec<&str> = events.iter().map(|event| event.reason.as_str()).collect();
    assert!(reasons.len() >= 3, "create, placement and start are events: {reasons:?}");
    let shown = cloud.cli.run(&["events", "--vm", "web"]).await?;
    for reason in reasons {
        assert!(shown.contains(reason), "{reason} is not in\n{shown}");
    }
    Ok(())
}

/// The guest agent's answer comes into the status.
async fn agent_is_seen(cloud: &Cloud, address: &str) -> Result<()> {
    let seen = |vm: &tamdao_proto::v1::Vm| {
        let guest = vm.status.as_ref().and_then(|status| status.guest.clone()).unwrap_or_default();
        guest.ready && guest.addresses.iter().any(|given| given.starts_with(address))
    };
    cloud.becomes("web", "the guest agent is ready and names the address", BOOT, seen).await?;
    Ok(())
}

/// Off by ACPI, on, reboot, reset, paused and on again.
async fn power(cloud: &Cloud) -> Result<()> {
    let guest = cloud.guest("web");
    cloud.cli.run(&["vm", "stop", "web"]).await?;
    cloud.reaches("web", VmPhase::Stopped).await?;
    guest.says("tamdao-tiny: power button", 1).await?;
    guest.says("tamdao-tiny: poweroff", 1).await?;
    ensure!(cloud.testbed.domains("n1")?.is_empty(), "a stopped VM has no domain");

    cloud.cli.run(&["vm", "start", "web"]).await?;
    guest.says(READY, 2).await?;
    ensure!(guest.boots().await? == 2, "the disk is the same as before");

    cloud.cli.run(&["vm", "reboot", "web", "--timeout", "4m"]).await?;
    guest.says(READY, 3).await?;
    guest.says("tamdao-tiny: poweroff", 2).await?;

    cloud.cli.run(&["vm", "reset", "web", "--yes"]).await?;
    guest.says(READY, 4).await?;
    cloud.reaches("web", VmPhase::Running).await?;

    cloud.cli.run(&["vm", "pause", "web"]).await?;
    cloud.reaches("web", VmPhase::Paused).await?;
    let state = cloud.testbed.shell("n1", "virsh -q -c qemu:///system list --all")?;
    assert!(state.contains("paused"), "{state}");
    cloud.cli.run(&["vm", "resume", "web"]).await?;
    cloud.reaches("web", VmPhase::Running).await?;
    let before = guest.ticks().await?.len();
    eventually("the guest ticks on", SOON, async || {
        let now = guest.ticks().await?.len();
        if now > before { Ok(()) } else { not_yet(format!("{now} ticks, as before")) }
    })
    .await
}

/// Another size while it is off.
async fn resize(cloud: &Cloud) -> Result<()> {
    cloud.cli.run(&["vm", "stop", "web"]).await?;
    cloud.cli.run(&["vm", "resize", "web", "--vcpus", "2", "--memory", "192M"]).await?;
    cloud.cli.run(&["vm", "start", "web"]).await?;
    let grown = |vm: &tamdao_proto::v1::Vm| {
        vm.status.as_ref().is_some_and(|status| (status.vcpus, status.memory_mib) == (2, 192))
    };
    cloud.becomes("web", "2 vCPUs and 192 MiB", BOOT, grown).await?;
    cloud.guest("web").says(READY, 5).await?;
    cloud.guest("web").answers("echo cpus $(grep -c ^processor /proc/cpuinfo).", "cpus 2.").await?;
    Ok(())
}

/// Record, domain and file go; the address rests.
async fn delete(cloud: &Cloud, address: &str) -> Result<()> {
    let files = || cloud.testbed.shell("n1", &format!("find {POOL}/volumes -type f"));
    ensure!(!files()?.is_empty(), "the volume has a file");
    cloud.cli.run(&["vm", "delete", "web", "--yes"]).await?;
    cloud.vanishes("web").await?;
    ensure!(cloud.testbed.domains("n1")?.is_empty(), "a deleted VM has no domain");
    eventually("the volume's file is gone", Duration::from_secs(30), async || match files()?.as_str() {
        "" => Ok(()),
        left => not_yet(left),
    })
    .await?;
    let arguments = ["vm", "create", "next", "--flavor", "tiny", "--image", "tiny", "--no-wait"];
    let wanted = format!("lan,address={address}");
    let refused = cloud.cli.attempt(&[&arguments[..], &["--network", &wanted]].concat()).await?;
    ensure!(!refused.status.success(), "an address that was just freed is given out again at once");
    Ok(())
}
