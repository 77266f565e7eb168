//! Guests' lives through the whole agent.

use tamdao_proto::agent::v1::*;
use tamdao_proto::v1::Power;

use super::bed::{Bed, VM, VOLUME, bare_vm, vm, volume};
use super::controller::{Ca, Controller};
use crate::hypervisor::fake::Script;
use crate::hypervisor::{DomainState, Hypervisor};
use crate::ledger::Ledger;

#[tokio::test]
async fn a_vm_is_made_and_runs_and_the_leader_hears_of_it() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(bed.whole()).await;
    let report = controller.wait_vm(VM, GuestState::Running).await;
    assert_eq!((report.incarnation, report.generation, report.vcpus), (1, 1, 1));
    assert!(report.platform.is_some() && report.started_time.is_some());
    let picture = controller
        .wait("volume made, inventory and guest told", |p| {
            p.volumes.values().any(|volume| volume.state() == VolumeState::Made)
                && p.inventory.is_some()
                && p.vms[&VM.to_string()].guest.as_ref().is_some_and(|guest| guest.ready)
        })
        .await;
    assert_eq!(picture.inventory.unwrap().agent_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(picture.hello.boot_id, "boot-1");
    assert_eq!(bed.volume_files(), [format!("{VOLUME}.qcow2")]);
    assert!(bed.config.data_dir.join(format!("seeds/{VM}.iso")).exists());
}

#[tokio::test]
async fn off_and_on_and_stop_and_delete() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(bed.whole()).await;
    controller.wait_vm(VM, GuestState::Running).await;
    let part = |vm: AssignedVm| Assignment { vms: vec![vm], ..Assignment::default() };
    controller.tell(part(AssignedVm { power: Power::Off.into(), ..vm(1) })).await;
    assert_eq!(controller.wait_vm(VM, GuestState::Stopped).await.exit(), GuestExit::OnOrder);
    controller.tell(part(vm(1))).await;
    controller.wait_vm(VM, GuestState::Running).await;
    controller.tell(part(AssignedVm { power: Power::Paused.into(), ..vm(1) })).await;
    controller.wait_vm(VM, GuestState::Paused).await;
    controller.tell(part(vm(1))).await;
    controller.wait_vm(VM, GuestState::Running).await;
    // A volume does not go from under its guest.
    controller
        .tell(Assignment { volumes: vec![volume(VolumeIntent::Delete)], ..Assignment::default() })
        .await;
    let in_use = |v: &VolumeReport| v.problem.as_ref().is_some_and(|problem| problem.reason == "InUse");
    controller.wait("volume in use", |p| p.volumes.values().any(in_use)).await;
    controller.tell(part(AssignedVm { intent: Intent::Stop.into(), machine: None, ..vm(1) })).await;
    controller.wait("vm gone", |p| p.vms[&VM.to_string()].gone).await;
    controller
        .wait("volume deleted", |p| p.volumes.values().all(|v| v.state() == VolumeState::Deleted))
        .await;
    assert!(bed.volume_files().is_empty());
    assert!(!bed.config.data_dir.join(format!("seeds/{VM}.iso")).exists());
}

#[tokio::test]
async fn a_crash_is_restarted_and_a_shutdown_is_not() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    let id = uuid::Uuid::from_u128(1);
    controller.wait_vm(id, GuestState::Running).await;
    bed.hypervisor.crash(id);
    let picture = controller
        .wait("restarted", |p| {
            p.vms[&id.to_string()].restarts == 1 && p.vms[&id.to_string()].state() == GuestState::Running
        })
        .await;
    assert_eq!(picture.vms[&id.to_string()].exit(), GuestExit::Failed);
    bed.hypervisor.power_off(id);
    let off = controller.wait_vm(id, GuestState::Stopped).await;
    assert_eq!(off.exit(), GuestExit::ByItself);
    // A start is asked for as a reboot of what is off.
    let action =
        Action { id: uuid::Uuid::from_u128(8).to_string(), kind: ActionKind::Reboot.into(), deadline_s: 0 };
    let again = AssignedVm { action: Some(action), ..bare_vm(1) };
    controller.tell(Assignment { vms: vec![again], ..Assignment::default() }).await;
    controller.wait_vm(id, GuestState::Running).await;
}

#[tokio::test]
async fn a_reboot_is_done_once_across_restarts_of_the_agent() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let id = uuid::Uuid::from_u128(1);
    let agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    let first = controller.wait_vm(id, GuestState::Running).await;
    let action =
        Action { id: uuid::Uuid::from_u128(8).to_string(), kind: ActionKind::Reboot.into(), deadline_s: 0 };
    let again = AssignedVm { action: Some(action.clone()), ..bare_vm(1) };
    controller.assign(Assignment { complete: true, vms: vec![again], ..Assignment::default() }).await;
    let second = controller
        .wait("rebooted", |p| {
            let vm = &p.vms[&id.to_string()];
            vm.action_id == action.id
                && vm.state() == GuestState::Running
                && vm.started_time != first.started_time
        })
        .await
        .vms[&id.to_string()]
        .clone();
    agent.kill().await;
    let sessions = controller.now().sessions;
    let _agent = bed.start();
    controller.wait("a new session's report", |p| p.sessions > sessions && p.complete_reports >= 2).await;
    // The assignment with the action has been taken again when something after it has been done.
    controller.tell(Assignment { vms: vec![bare_vm(2)], ..Assignment::default() }).await;
    controller.wait_vm(uuid::Uuid::from_u128(2), GuestState::Running).await;
    assert_eq!(controller.now().vms[&id.to_string()].started_time, second.started_time, "not rebooted again");
}

#[tokio::test]
async fn a_deaf_guest_is_forced_off_at_its_deadline() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let id = uuid::Uuid::from_u128(1);
    bed.hypervisor.script(id, Script { obeys_acpi: false, guest_agent: false });
    let _agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    controller.wait_vm(id, GuestState::Running).await;
    let off = AssignedVm { power: Power::Off.into(), stop_deadline_s: 1, ..bare_vm(1) };
    controller.tell(Assignment { vms: vec![off], ..Assignment::default() }).await;
    assert_eq!(controller.wait_vm(id, GuestState::Stopped).await.exit(), GuestExit::OnOrder);
}

#[tokio::test]
async fn a_pause_for_want_of_room_ends_when_there_is_room() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(bed.whole()).await;
    controller.wait_vm(VM, GuestState::Running).await;
    bed.hypervisor.io_error(VM);
    let running = |domain: &crate::hypervisor::Domain| domain.state == DomainState::Running;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !bed.hypervisor.observe().await.unwrap().ours.iter().all(running) {
        assert!(tokio::time::Instant::now() < deadline, "it stayed paused");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_vanished_file_is_missing_and_never_made_again() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let agent = bed.start();
    let off = AssignedVm { power: Power::Off.into(), ..vm(1) };
    controller.assign(Assignment { vms: vec![off], ..bed.whole() }).await;
    let made = |p: &super::controller::Picture| p.volumes.values().any(|v| v.state() == VolumeState::Made);
    controller.wait("made", made).await;
    agent.kill().await;
    std::fs::remove_file(bed.pool_path().join(format!("volumes/{VOLUME}.qcow2"))).unwrap();
    let _agent = bed.start();
    controller.assign(bed.whole()).await;
    let missing = |p: &super::controller::Picture| {
        p.volumes.values().any(|v| v.state() == VolumeState::Missing)
            && p.vms[&VM.to_string()]
                .problem
                .as_ref()
                .is_some_and(|problem| problem.reason == "VolumeMissing")
    };
    controller.wait("missing, and said of the vm too", missing).await;
    assert!(bed.volume_files().is_empty());
}

#[tokio::test]
async fn a_refused_start_is_told_in_libvirt_s_words_and_tried_again() {
    use crate::hypervisor::HypervisorError;
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let id = uuid::Uuid::from_u128(1);
    let locked = HypervisorError::ImageLocked { message: "Failed to get \"write\" lock".into() };
    bed.hypervisor.refuse_start(id, Some(locked));
    let _agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    let told = |p: &super::controller::Picture| {
        p.vms.get(&id.to_string()).and_then(|vm| vm.problem.as_ref()).is_some_and(|problem| {
            problem.reason == "ImageLocked" && problem.message.contains("write") && problem.attempts >= 1
        })
    };
    controller.wait("told", told).await;
    bed.hypervisor.refuse_start(id, None);
    let report = controller.wait_vm(id, GuestState::Running).await;
    assert_eq!(report.problem, None);
}

#[tokio::test]
async fn libvirt_away_is_told_and_nothing_is_touched() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    let id = uuid::Uuid::from_u128(1);
    controller.wait_vm(id, GuestState::Running).await;
    bed.hypervisor.disconnect();
    controller.wait("health", |p| !p.health.is_empty()).await;
    assert_eq!(controller.now().vms[&id.to_string()].state(), GuestState::Running, "as last seen");
    bed.hypervisor.reconnect();
    controller.wait("well again", |p| p.health.is_empty()).await;
    assert_eq!(bed.hypervisor.observe().await.unwrap().ours.len(), 1);
}

#[tokio::test]
async fn the_end_of_an_agent_is_the_end_of_no_guest() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    controller.wait_vm(uuid::Uuid::from_u128(1), GuestState::Running).await;
    agent.end().await;
    controller.wait("goodbye, and something runs", |p| p.goodbye == Some(false)).await;
    assert_eq!(bed.hypervisor.observe().await.unwrap().ours.len(), 1);
    let ledger = Ledger::open(&bed.config.data_dir).unwrap().state();
    assert_eq!((ledger.epoch, ledger.cluster_id.as_str()), (5, "c"));
}
