//! The suite that every hypervisor passes, the fake and the real one alike: what the trait's words mean.
//!
//! Invariant: a case makes its own VMs, leaves none behind, and waits for states and never for times; the deadline
//! is there only so that a broken hypervisor does not hang the suite. Deliberately absent: what only one of them
//! can do.

mod moves;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_proto::agent::v1::MachineCell;
use tamdao_proto::v1::Platform;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use self::moves::{
    a_guest_arrives_paused_and_runs_when_told, a_guest_that_cannot_be_sent_runs_on,
    what_a_guest_dirties_is_measured,
};
use super::{
    Change, Domain, DomainEvent, DomainSpec, DomainState, Exit, Hypervisor, HypervisorError, PauseReason,
    Resized,
};

/// Emulated guests on a busy machine boot slowly.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often a state is looked at when no event comes.
const LOOK: Duration = Duration::from_millis(200);

/// What kind of guest a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Boots, runs a guest agent, shuts down when its button is pressed, echoes its serial port.
    Obedient,
    /// Ignores its power button.
    Stubborn,
    /// Powers itself off some time after `let_power_off`.
    ShortLived,
    /// Its first write fails, until `make_room`.
    OnFullPool,
}

/// What a case needs of the world around the hypervisor.
#[async_trait]
pub trait Fixture: Send + Sync {
    fn hypervisor(&self) -> &dyn Hypervisor;
    /// Another host that shares the disks of the specs.
    fn other(&self) -> &dyn Hypervisor;
    /// How the other host is reached for a migration: its URI, and a directory for sockets that both see.
    fn route(&self) -> (String, PathBuf);
    /// A fresh VM that can be started: incarnation 1, generation 1, one virtual CPU, one shared disk, one interface.
    async fn spec(&self, guest: Guest) -> DomainSpec;
    /// Takes away the file of the spec's first disk.
    async fn lose_disk(&self, spec: &DomainSpec);
    /// Lets a short-lived guest end.
    async fn let_power_off(&self, vm: Uuid);
    /// Gives the pool of `Guest::OnFullPool` room again.
    async fn make_room(&self);
    /// Kills the QEMU process of a VM.
    async fn kill_qemu(&self, vm: Uuid);
    /// Stops libvirtd; guests go on.
    async fn stop_libvirt(&self);
    async fn start_libvirt(&self);
    /// Starts a domain that is not ours, whose name looks like ours.
    async fn start_foreign(&self) -> String;
    async fn foreign_runs(&self, name: &str) -> bool;
    async fn stop_foreign(&self, name: &str);
}

pub type Case = for<'a> fn(&'a dyn Fixture) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// All cases by name.
pub fn cases() -> Vec<(&'static str, Case)> {
    macro_rules! list {
        ($($case:ident),* $(,)?) => {
            vec![$((stringify!($case), |fixture| Box::pin($case(fixture)))),*]
        };
    }
    list![
        a_host_tells_what_it_has,
        a_start_leaves_the_guest_paused,
        a_platform_is_kept,
        orders_name_their_incarnation,
        what_is_not_there_is_not_found,
        a_guest_pauses_and_goes_on,
        a_generation_is_recorded,
        a_button_shuts_an_obedient_guest_down,
        a_stubborn_guest_is_destroyed,
        a_guest_may_end_by_itself,
        a_killed_guest_is_a_crash,
        an_image_has_one_user,
        a_lost_disk_is_said,
        a_full_pool_pauses_its_guest,
        a_foreign_domain_is_only_counted,
        virtual_cpus_grow_live,
        a_guest_lies_on_its_cell,
        a_guest_agent_answers,
        a_console_has_one_holder,
        counters_are_of_our_domains,
        what_a_guest_dirties_is_measured,
        a_guest_arrives_paused_and_runs_when_told,
        a_guest_that_cannot_be_sent_runs_on,
        a_lost_connection_comes_back,
    ]
}

async fn a_host_tells_what_it_has(fixture: &dyn Fixture) {
    let inventory = fixture.hypervisor().inventory().await.expect("inventory");
    assert!(!inventory.hostname.is_empty());
    assert!(["kvm", "qemu"].contains(&inventory.acceleration.as_str()));
    assert!(inventory.cpus > 0 && inventory.memory_mib > 0);
    assert!(inventory.machine_types.iter().any(|name| name.starts_with("pc-q35-")));
    assert!(inventory.firmware.iter().any(|name| name == "bios"));
}

async fn a_start_leaves_the_guest_paused(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut events = hypervisor.events();
    let spec = fixture.spec(Guest::Obedient).await;
    let started = hypervisor.start(&spec).await.expect("start");
    assert_eq!(started.state, DomainState::Paused(PauseReason::NotYetRun));
    assert_eq!((started.vm, started.incarnation, started.generation), (spec.vm, 1, 1));
    let inventory = hypervisor.inventory().await.expect("inventory");
    assert!(inventory.machine_types.contains(&started.platform.machine_type));
    assert!(inventory.cpu_models.contains(&started.platform.cpu_model));
    assert_eq!(find(hypervisor, spec.vm).await, Some(started.clone()));
    wait_for_change(&mut events, spec.vm, Change::Started).await;

    let again = hypervisor.start(&spec).await;
    assert_eq!(again, Err(HypervisorError::Exists { vm: spec.vm, incarnation: 1 }));
    for _ in 0..2 {
        hypervisor.resume(spec.vm, 1).await.expect("resume");
        let running = find(hypervisor, spec.vm).await.expect("it runs");
        assert_eq!(running.state, DomainState::Running);
        assert_eq!((running.platform, running.started), (started.platform.clone(), started.started));
    }
    wait_for_change(&mut events, spec.vm, Change::Resumed).await;
    // Several at once, each of which has found it paused.
    hypervisor.pause(spec.vm, 1).await.expect("pause");
    for resumed in futures::future::join_all((0..8).map(|_| hypervisor.resume(spec.vm, 1))).await {
        resumed.expect("a guest that runs already is no error");
    }
    end(hypervisor, &spec).await;
}

async fn a_platform_is_kept(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let machine_types = hypervisor.inventory().await.expect("inventory").machine_types;
    let oldest = machine_types.iter().find(|name| name.starts_with("pc-q35-")).expect("a machine type");
    let mut spec = fixture.spec(Guest::Obedient).await;
    let asked = Platform { machine_type: oldest.clone(), cpu_model: "qemu64".to_owned() };
    spec.machine.platform = Some(asked.clone());
    assert_eq!(hypervisor.start(&spec).await.expect("start").platform, asked);
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    assert_eq!(find(hypervisor, spec.vm).await.expect("it runs").platform, asked);
    end(hypervisor, &spec).await;
}

async fn orders_name_their_incarnation(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut spec = fixture.spec(Guest::Obedient).await;
    spec.incarnation = 5;
    let vm = spec.vm;
    hypervisor.start(&spec).await.expect("start");
    for asked in [4, 6] {
        let stale = HypervisorError::Stale { vm, asked, running: 5 };
        assert_eq!(hypervisor.resume(vm, asked).await, Err(stale.clone()));
        assert_eq!(hypervisor.pause(vm, asked).await, Err(stale.clone()));
        assert_eq!(hypervisor.shutdown(vm, asked).await, Err(stale.clone()));
        assert_eq!(hypervisor.reset(vm, asked).await, Err(stale.clone()));
        assert_eq!(hypervisor.resize(vm, asked, 2, 128).await, Err(stale.clone()));
        assert_eq!(hypervisor.set_generation(vm, asked, 2).await, Err(stale));
    }
    let stale = HypervisorError::Stale { vm, asked: 4, running: 5 };
    assert_eq!(hypervisor.destroy(vm, 4).await, Err(stale));
    assert!(find(hypervisor, vm).await.is_some());
    // An order to destroy means this incarnation and every lower one.
    hypervisor.destroy(vm, 9).await.expect("destroy");
    assert_eq!(find(hypervisor, vm).await, None);
}

async fn what_is_not_there_is_not_found(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let vm = Uuid::new_v4();
    let absent = HypervisorError::NotFound { vm };
    assert_eq!(hypervisor.resume(vm, 1).await, Err(absent.clone()));
    assert_eq!(hypervisor.pause(vm, 1).await, Err(absent.clone()));
    assert_eq!(hypervisor.shutdown(vm, 1).await, Err(absent.clone()));
    assert_eq!(hypervisor.reset(vm, 1).await, Err(absent.clone()));
    assert_eq!(hypervisor.resize(vm, 1, 1, 128).await, Err(absent.clone()));
    assert_eq!(hypervisor.guest(vm).await, Err(absent.clone()));
    assert_eq!(hypervisor.console(vm, true).await.err(), Some(absent));
    assert_eq!(hypervisor.last_exit(vm).await, Ok(None));
    assert_eq!(hypervisor.destroy(vm, 1).await, Ok(()));
}

async fn a_guest_pauses_and_goes_on(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    for _ in 0..2 {
        hypervisor.pause(spec.vm, 1).await.expect("pause");
        let state = find(hypervisor, spec.vm).await.map(|domain| domain.state);
        assert_eq!(state, Some(DomainState::Paused(PauseReason::OnDemand)));
    }
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    assert_eq!(find(hypervisor, spec.vm).await.map(|domain| domain.state), Some(DomainState::Running));
    hypervisor.reset(spec.vm, 1).await.expect("reset");
    assert_eq!(find(hypervisor, spec.vm).await.map(|domain| domain.state), Some(DomainState::Running));
    end(hypervisor, &spec).await;
}

async fn a_generation_is_recorded(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = fixture.spec(Guest::Obedient).await;
    hypervisor.start(&spec).await.expect("start");
    hypervisor.set_generation(spec.vm, 1, 7).await.expect("set the generation");
    let paused = find(hypervisor, spec.vm).await.expect("it is there");
    assert_eq!((paused.generation, paused.state), (7, DomainState::Paused(PauseReason::NotYetRun)));
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    assert_eq!(find(hypervisor, spec.vm).await.map(|domain| domain.generation), Some(7));
    end(hypervisor, &spec).await;
}

async fn a_button_shuts_an_obedient_guest_down(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    wait_for_agent(hypervisor, spec.vm).await;
    let mut events = hypervisor.events();
    hypervisor.shutdown(spec.vm, 1).await.expect("shutdown");
    wait_for_change(&mut events, spec.vm, Change::Stopped(Exit::Shutdown)).await;
    wait_for(hypervisor, spec.vm, |domain| domain.is_none()).await;
    assert_eq!(hypervisor.last_exit(spec.vm).await, Ok(Some(Exit::Shutdown)));
    // What has ended can be started again, on the same disks.
    hypervisor.start(&spec).await.expect("start again");
    assert_eq!(hypervisor.last_exit(spec.vm).await, Ok(None));
    end(hypervisor, &spec).await;
}

async fn a_stubborn_guest_is_destroyed(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Stubborn).await;
    let mut events = hypervisor.events();
    hypervisor.shutdown(spec.vm, 1).await.expect("shutdown");
    assert_eq!(find(hypervisor, spec.vm).await.map(|domain| domain.state), Some(DomainState::Running));
    hypervisor.destroy(spec.vm, 1).await.expect("destroy");
    assert_eq!(find(hypervisor, spec.vm).await, None);
    wait_for_change(&mut events, spec.vm, Change::Stopped(Exit::Destroyed)).await;
    assert_eq!(hypervisor.last_exit(spec.vm).await, Ok(Some(Exit::Destroyed)));
    hypervisor.destroy(spec.vm, 1).await.expect("destroy again");
}

async fn a_guest_may_end_by_itself(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut events = hypervisor.events();
    let spec = run(fixture, Guest::ShortLived).await;
    fixture.let_power_off(spec.vm).await;
    wait_for_change(&mut events, spec.vm, Change::Stopped(Exit::Shutdown)).await;
    assert_eq!(find(hypervisor, spec.vm).await, None);
    assert_eq!(hypervisor.last_exit(spec.vm).await, Ok(Some(Exit::Shutdown)));
}

async fn a_killed_guest_is_a_crash(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut events = hypervisor.events();
    let spec = run(fixture, Guest::Obedient).await;
    fixture.kill_qemu(spec.vm).await;
    wait_for_event(&mut events, |event| {
        let ends = [Change::Stopped(Exit::Crashed), Change::Stopped(Exit::Failed)];
        matches!(event, DomainEvent::Lifecycle { vm, change } if *vm == spec.vm && ends.contains(change))
    })
    .await;
    wait_for(hypervisor, spec.vm, |domain| domain.is_none()).await;
    assert_eq!(hypervisor.last_exit(spec.vm).await, Ok(Some(Exit::Crashed)));
    hypervisor.start(&spec).await.expect("start again");
    end(hypervisor, &spec).await;
}

async fn an_image_has_one_user(fixture: &dyn Fixture) {
    let (here, there) = (fixture.hypervisor(), fixture.other());
    let spec = fixture.spec(Guest::Obedient).await;
    let mut next = spec.clone();
    next.incarnation = 2;
    here.start(&spec).await.expect("start");
    // A guest that is paused before its first instruction holds its disks already.
    let refused = there.start(&next).await;
    assert!(matches!(refused, Err(HypervisorError::ImageLocked { .. })), "{refused:?}");
    assert_eq!(find(there, spec.vm).await, None);
    here.destroy(spec.vm, 1).await.expect("destroy");
    // Destroyed means that the process is gone, so its locks are free now and not soon.
    there.start(&next).await.expect("start on the other host");
    let refused = here.start(&spec).await;
    assert!(matches!(refused, Err(HypervisorError::ImageLocked { .. })), "{refused:?}");
    there.destroy(spec.vm, 2).await.expect("destroy");
}

async fn a_lost_disk_is_said(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = fixture.spec(Guest::Obedient).await;
    fixture.lose_disk(&spec).await;
    let error = hypervisor.start(&spec).await.expect_err("it cannot start");
    assert_eq!(error.reason(), "FileMissing", "{error:?}");
    assert!(!error.is_permanent(), "the file may come back");
    assert_eq!(find(hypervisor, spec.vm).await, None);
}

async fn a_full_pool_pauses_its_guest(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut events = hypervisor.events();
    let spec = run(fixture, Guest::OnFullPool).await;
    wait_for_event(&mut events, |event| matches!(event, DomainEvent::IoError { vm, .. } if *vm == spec.vm))
        .await;
    let stopped = DomainState::Paused(PauseReason::IoError);
    wait_for(hypervisor, spec.vm, |domain| domain.is_some_and(|domain| domain.state == stopped)).await;
    fixture.make_room().await;
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    assert_eq!(find(hypervisor, spec.vm).await.map(|domain| domain.state), Some(DomainState::Running));
    end(hypervisor, &spec).await;
}

async fn a_foreign_domain_is_only_counted(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let before = hypervisor.observe().await.expect("observe");
    let name = fixture.start_foreign().await;
    let after = hypervisor.observe().await.expect("observe");
    assert_eq!(after.foreign, before.foreign + 1);
    assert_eq!(after.ours, before.ours);
    let listed = hypervisor.stats().await.expect("stats").len();
    assert_eq!(listed, before.ours.len());
    if let Some(vm) = super::vm_of_domain_name(&name) {
        assert_eq!(hypervisor.pause(vm, 1).await, Err(HypervisorError::NotFound { vm }));
        assert_eq!(hypervisor.destroy(vm, u64::MAX).await, Ok(()));
    }
    assert!(fixture.foreign_runs(&name).await);
    fixture.stop_foreign(&name).await;
}

async fn virtual_cpus_grow_live(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    wait_for_agent(hypervisor, spec.vm).await;
    let memory_mib = spec.machine.memory_mib;
    let resize = |vcpus, memory_mib| hypervisor.resize(spec.vm, 1, vcpus, memory_mib);
    assert_eq!(resize(2, memory_mib).await, Ok(Resized::Live));
    assert_eq!(find(hypervisor, spec.vm).await.map(|domain| domain.vcpus), Some(2));
    assert_eq!(resize(2, memory_mib).await, Ok(Resized::Live));
    for (vcpus, memory_mib) in [(1, memory_mib), (2, memory_mib * 2), (2, memory_mib / 2), (200, memory_mib)]
    {
        assert_eq!(resize(vcpus, memory_mib).await, Ok(Resized::NeedsRestart));
        let now = find(hypervisor, spec.vm).await.map(|domain| (domain.vcpus, domain.memory_mib));
        assert_eq!(now, Some((2, spec.machine.memory_mib)));
    }
    end(hypervisor, &spec).await;
}

async fn a_guest_agent_answers(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let mut events = hypervisor.events();
    let spec = fixture.spec(Guest::Obedient).await;
    hypervisor.start(&spec).await.expect("start");
    assert_eq!(hypervisor.guest(spec.vm).await, Ok(None));
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    let connected = DomainEvent::AgentConnected { vm: spec.vm, connected: true };
    wait_for_event(&mut events, |event| *event == connected).await;
    wait_for_agent(hypervisor, spec.vm).await;
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        // The guest opens the port before it answers.
        if let Some(status) = hypervisor.guest(spec.vm).await.expect("guest") {
            break status;
        }
        assert!(Instant::now() < deadline, "the guest agent does not answer");
    };
    assert!(status.ready);
    hypervisor.pause(spec.vm, 1).await.expect("pause");
    assert_eq!(hypervisor.guest(spec.vm).await, Ok(None));
    end(hypervisor, &spec).await;
}

async fn a_console_has_one_holder(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    wait_for_agent(hypervisor, spec.vm).await;
    let mut first = hypervisor.console(spec.vm, false).await.expect("console");
    first.write_all(b"echo tam dao\n").await.expect("write");
    read_until(&mut first, "tam dao").await;
    let busy = hypervisor.console(spec.vm, false).await.err().map(|error| error.reason());
    assert_eq!(busy, Some("ConsoleBusy"));

    let mut second = hypervisor.console(spec.vm, true).await.expect("console by force");
    let mut rest = Vec::new();
    let ended = timeout(DEADLINE, first.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the first holder's stream ends");
    second.write_all(b"echo ba vi\n").await.expect("write");
    read_until(&mut second, "ba vi").await;

    drop(second);
    let deadline = Instant::now() + DEADLINE;
    let mut third = loop {
        match hypervisor.console(spec.vm, false).await {
            Ok(console) => break console,
            Err(error) => assert_eq!(error.reason(), "ConsoleBusy", "{error}"),
        }
        assert!(Instant::now() < deadline, "a dropped console is not let go of");
    };
    hypervisor.destroy(spec.vm, 1).await.expect("destroy");
    let ended = timeout(DEADLINE, third.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the stream ends with its guest");
}

async fn counters_are_of_our_domains(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    let stats = hypervisor.stats().await.expect("stats");
    let own = stats.iter().find(|stats| stats.vm == spec.vm).expect("its counters");
    let taps: Vec<_> = own.ports.iter().map(|port| port.tap.clone()).collect();
    assert_eq!(taps, spec.interfaces.iter().map(|port| port.tap.clone()).collect::<Vec<_>>());
    assert!(!own.disks.is_empty() && own.disks.iter().all(|disk| !disk.device.is_empty()));
    assert!(own.memory_kib > 0);
    end(hypervisor, &spec).await;
    let stats = hypervisor.stats().await.expect("stats");
    assert!(stats.iter().all(|stats| stats.vm != spec.vm));
}

async fn a_lost_connection_comes_back(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let spec = run(fixture, Guest::Obedient).await;
    let before = find(hypervisor, spec.vm).await.expect("it runs");
    let mut events = hypervisor.events();
    fixture.stop_libvirt().await;
    wait_for_event(&mut events, |event| *event == DomainEvent::ConnectionLost).await;
    let away = hypervisor.observe().await.err().map(|error| error.reason());
    assert_eq!(away, Some("HypervisorAway"));
    let away = hypervisor.destroy(spec.vm, 1).await.err().map(|error| error.reason());
    assert_eq!(away, Some("HypervisorAway"));
    fixture.start_libvirt().await;
    wait_for_event(&mut events, |event| *event == DomainEvent::ConnectionUp).await;
    wait_for(hypervisor, spec.vm, |domain| {
        domain.is_some_and(|domain| domain.state == DomainState::Running && domain.started == before.started)
    })
    .await;
    // Events come on the new connection too. A libvirtd that has just come back answers before it has found its
    // guests again, and what ends within that time may end without an event (seen once, cause inferred); a pause
    // needs the guest's monitor, so it waits until that is over.
    hypervisor.pause(spec.vm, 1).await.expect("pause");
    wait_for_change(&mut events, spec.vm, Change::Paused(PauseReason::OnDemand)).await;
    end(hypervisor, &spec).await;
    wait_for_change(&mut events, spec.vm, Change::Stopped(Exit::Destroyed)).await;
}

async fn a_guest_lies_on_its_cell(fixture: &dyn Fixture) {
    let hypervisor = fixture.hypervisor();
    let cells = hypervisor.inventory().await.expect("inventory").numa_cells;
    let cell = cells.first().expect("a host has a cell");
    assert!(!cell.cpus.is_empty());
    let mut spec = fixture.spec(Guest::Obedient).await;
    spec.machine.cells = vec![MachineCell { id: cell.id, cpus: cell.cpus.clone() }];
    hypervisor.start(&spec).await.expect("start");
    hypervisor.resume(spec.vm, 1).await.expect("resume");
    wait_for(hypervisor, spec.vm, |domain| domain.is_some_and(|domain| domain.state == DomainState::Running))
        .await;
    end(hypervisor, &spec).await;
}

async fn run(fixture: &dyn Fixture, guest: Guest) -> DomainSpec {
    let spec = fixture.spec(guest).await;
    fixture.hypervisor().start(&spec).await.expect("start");
    fixture.hypervisor().resume(spec.vm, 1).await.expect("resume");
    spec
}

async fn end(hypervisor: &dyn Hypervisor, spec: &DomainSpec) {
    hypervisor.destroy(spec.vm, spec.incarnation).await.expect("destroy");
    assert_eq!(find(hypervisor, spec.vm).await, None);
}

async fn find(hypervisor: &dyn Hypervisor, vm: Uuid) -> Option<Domain> {
    let observation = hypervisor.observe().await.expect("observe");
    observation.ours.into_iter().find(|domain| domain.vm == vm)
}

async fn wait_for_agent(hypervisor: &dyn Hypervisor, vm: Uuid) {
    wait_for(hypervisor, vm, |domain| domain.is_some_and(|domain| domain.guest_agent_connected)).await;
}

/// Looks after every event, and now and then without one.
async fn wait_for(hypervisor: &dyn Hypervisor, vm: Uuid, fulfilled: impl Fn(Option<&Domain>) -> bool) {
    let mut events = hypervisor.events();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let domain = match hypervisor.observe().await {
            Ok(observation) => observation.ours.into_iter().find(|domain| domain.vm == vm),
            Err(HypervisorError::Disconnected { .. }) => None,
            Err(error) => panic!("observe: {error}"),
        };
        if fulfilled(domain.as_ref()) {
            return;
        }
        assert!(Instant::now() < deadline, "vm {vm} stayed as {domain:?}");
        // It is a look at the state that counts, so a missed event does no harm.
        let _ = timeout(LOOK, events.recv()).await;
    }
}

async fn wait_for_change(events: &mut Receiver<DomainEvent>, vm: Uuid, change: Change) {
    wait_for_event(events, |event| *event == DomainEvent::Lifecycle { vm, change }).await;
}

async fn wait_for_event(events: &mut Receiver<DomainEvent>, mut wanted: impl FnMut(&DomainEvent) -> bool) {
    let mut seen = Vec::new();
    let found = timeout(DEADLINE, async {
        loop {
            match events.recv().await {
                Ok(event) if wanted(&event) => return true,
                Ok(event) => seen.push(event),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return false,
            }
        }
    })
    .await;
    assert_eq!(found, Ok(true), "the event did not come; there were {seen:?}");
}

async fn read_until(console: &mut super::Console, text: &str) {
    let mut seen = Vec::new();
    let mut buffer = [0u8; 1024];
    let found = timeout(DEADLINE, async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            match console.read(&mut buffer).await {
                Ok(read @ 1..) => seen.extend_from_slice(&buffer[..read]),
                _ => return false,
            }
        }
        true
    })
    .await;
    assert_eq!(found, Ok(true), "{text} did not come; there was {:?}", String::from_utf8_lossy(&seen));
}
