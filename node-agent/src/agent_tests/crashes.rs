//! Killed at every step of a create: after a restart the VM is there exactly once.

use tamdao_proto::agent::v1::*;

use super::bed::{Bed, VM, VOLUME};
use super::controller::{Ca, Controller};
use crate::checkpoint::hang;
use crate::hypervisor::{DomainState, Hypervisor};

async fn killed_at(step: &'static str) {
    let ca = Ca::new();
    let controller = Controller::start(&ca, 5).await;
    let bed = Bed::joined(&ca, &controller);
    let reached = hang::at(step);
    let agent = bed.start();
    controller.assign(bed.whole()).await;
    tokio::time::timeout(std::time::Duration::from_secs(30), reached).await.expect(step).unwrap();
    agent.kill().await;
    let before = bed.hypervisor.observe().await.unwrap();
    let sessions = controller.now().sessions;
    let _agent = bed.start();
    controller.wait("a new session", |p| p.sessions > sessions && p.up).await;
    controller
        .wait("running, by this agent's word", |p| {
            p.sessions > sessions
                && p.vms.get(&VM.to_string()).is_some_and(|vm| vm.state() == GuestState::Running)
        })
        .await;
    let after = bed.hypervisor.observe().await.unwrap();
    assert_eq!(after.ours.len(), 1);
    assert_eq!(after.ours[0].state, DomainState::Running);
    if let Some(domain) = before.ours.first() {
        assert_eq!(domain.started, after.ours[0].started, "what had been started was not started again");
    }
    assert_eq!(bed.volume_files(), [format!("{VOLUME}.qcow2")]);
    let report = controller.now().vms[&VM.to_string()].clone();
    assert_eq!((report.restarts, report.problem), (0, None));
}

macro_rules! killed_at {
    ($($name:ident $step:literal),* $(,)?) => {
        $(#[tokio::test]
        async fn $name() {
            killed_at($step).await;
        })*
    };
}

killed_at! {
    with_the_volume_aside "volume-aside",
    with_the_volume_renamed "volume-renamed",
    with_the_volume_made "volume",
    with_the_seed_made "seed",
    with_the_start_written_down "define",
    with_the_domain_paused "start",
    with_the_guest_resumed "resumed",
    with_the_guest_running "running",
    before_the_report "report",
    after_the_report "reported",
}
