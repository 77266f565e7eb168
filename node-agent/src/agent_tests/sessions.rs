//! Sessions: found, kept, lost, refused.

use tamdao_proto::agent::v1::*;
use uuid::Uuid;

use super::bed::{Bed, VM, bare_vm, vm};
use super::controller::{Ca, Controller};
use crate::hypervisor::Hypervisor;

#[tokio::test]
async fn a_follower_s_hint_is_followed_and_remembered() {
    let ca = Ca::new();
    let (leader, follower) = (Controller::start(&ca, 5).await, Controller::start(&ca, 5).await);
    *follower.redirect.lock().unwrap() = Some(leader.address());
    let bed = Bed::joined(&ca, &follower);
    let agent = bed.start();
    leader.wait("session", |p| p.sessions == 1).await;
    agent.kill().await;
    drop(follower);
    let _agent = bed.start();
    leader.wait("again, without the follower", |p| p.sessions == 2).await;
}

/// As a leader whose host hangs: its kernel takes connections, and nobody ever answers.
#[tokio::test]
async fn a_controller_that_stands_still_is_given_up() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    *controller.redirect.lock().unwrap() = Some(frozen.local_addr().unwrap().to_string());
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    let _held = frozen.accept().await.unwrap();
    *controller.redirect.lock().unwrap() = None;
    controller.wait("session with another one", |p| p.up).await;
}

#[tokio::test]
async fn a_lower_epoch_is_refused_and_a_higher_one_taken() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    controller.wait_vm(Uuid::from_u128(1), GuestState::Running).await;
    // An old leader wakes up and wants the guest gone.
    let stop = AssignedVm { intent: Intent::Stop.into(), stop_force: true, ..bare_vm(1) };
    controller.tell(Assignment { epoch: 4, vms: vec![stop.clone()], ..Assignment::default() }).await;
    controller.wait("the stream is ended", |p| p.sessions == 2).await;
    *controller.epoch.lock().unwrap() = 3;
    *controller.assignment.lock().unwrap() =
        Some(Assignment { complete: true, vms: vec![stop], ..Assignment::default() });
    controller.hang_up();
    controller.wait("it says what it has seen", |p| p.sessions >= 4 && p.hello.highest_epoch == 5).await;
    assert_eq!(bed.hypervisor.observe().await.unwrap().ours.len(), 1, "the guest was not touched");
    *controller.epoch.lock().unwrap() = 6;
    controller
        .wait("the right leader is obeyed", |p| {
            p.vms.get(&Uuid::from_u128(1).to_string()).is_some_and(|vm| vm.gone)
        })
        .await;
}

#[tokio::test]
async fn without_a_leader_guests_run_on_and_crashes_are_mended_on_the_same_boot() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let address = controller.address().parse().unwrap();
    let bed = Bed::joined(&ca, &controller);
    let agent = bed.start();
    let id = Uuid::from_u128(1);
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    let first = controller.wait_vm(id, GuestState::Running).await;
    drop(controller);
    bed.hypervisor.crash(id);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while bed.hypervisor.observe().await.unwrap().ours.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "not restarted while cut off");
        tokio::task::yield_now().await;
    }
    // After a boot of the host, with nobody to ask, nothing starts; it does when the leader is back.
    agent.kill().await;
    bed.boot("boot-2");
    let _agent = bed.start();
    let controller = Controller::start_at(&ca, 6, address).await;
    let picture = controller.wait("a first report", |p| p.complete_reports == 1).await;
    assert_eq!(picture.hello.boot_id, "boot-2");
    assert!(picture.vms.is_empty() && bed.hypervisor.observe().await.unwrap().ours.is_empty());
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(1)], ..Assignment::default() }).await;
    let second = controller.wait_vm(id, GuestState::Running).await;
    assert_ne!(first.started_time, second.started_time);
}

#[tokio::test]
async fn what_no_entry_names_is_unknown_and_kept() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    let both = vec![bare_vm(1), bare_vm(2)];
    controller.assign(Assignment { complete: true, vms: both, ..Assignment::default() }).await;
    controller.wait_vm(Uuid::from_u128(1), GuestState::Running).await;
    controller.wait_vm(Uuid::from_u128(2), GuestState::Running).await;
    controller.assign(Assignment { complete: true, vms: vec![bare_vm(2)], ..Assignment::default() }).await;
    let one = Uuid::from_u128(1).to_string();
    controller.wait("unknown", |p| p.vms[&one].unknown && p.vms[&one].state() == GuestState::Running).await;
    // An incremental message about another VM changes nothing for it.
    controller.tell(Assignment { vms: vec![bare_vm(3)], ..Assignment::default() }).await;
    controller.wait_vm(Uuid::from_u128(3), GuestState::Running).await;
    assert_eq!(bed.hypervisor.observe().await.unwrap().ours.len(), 3);
}

#[tokio::test]
async fn a_silent_leader_is_given_up() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    *controller.mute.lock().unwrap() = true;
    let bed = Bed::joined(&ca, &controller);
    let _agent = bed.start();
    controller.wait("a second session after silence", |p| p.sessions == 2).await;
}

#[tokio::test]
async fn an_older_incarnation_is_refused_after_a_restart_too() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let agent = bed.start();
    let stale = AssignedVm { intent: Intent::Stale.into(), ..vm(4) };
    controller.assign(Assignment { complete: true, vms: vec![stale], ..Assignment::default() }).await;
    controller.wait("gone", |p| p.vms.get(&VM.to_string()).is_some_and(|vm| vm.gone)).await;
    agent.kill().await;
    controller.assign(Assignment { vms: vec![vm(3)], ..bed.whole() }).await;
    let _agent = bed.start();
    controller
        .wait("refused", |p| {
            let problem = p.vms.get(&VM.to_string()).and_then(|vm| vm.problem.as_ref());
            problem.is_some_and(|problem| problem.reason == "StaleAssignment" && problem.permanent)
        })
        .await;
    assert!(bed.hypervisor.observe().await.unwrap().ours.is_empty());
}

#[tokio::test]
async fn an_idle_node_says_goodbye_with_nothing_running() {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let agent = bed.start();
    controller.wait("session", |p| p.complete_reports == 1).await;
    agent.end().await;
    controller.wait("goodbye", |p| p.goodbye == Some(true)).await;
}
