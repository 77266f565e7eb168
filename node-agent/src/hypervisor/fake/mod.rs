//! An in-memory hypervisor with libvirt's semantics: for tests, simulation and scale.
//!
//! Invariants: it answers as the contract says; it has no thread, task or clock of its own, so that equal calls in
//! equal order give equal answers; all fakes of one [`FakeWorld`] see each other's image locks. Guests boot in no
//! time and do what their script says. Deliberately absent: anything inside a guest.

mod console;
mod migrate;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use tamdao_keeper::protocol::ProcessId;
use tamdao_proto::v1::{DiskKind, GuestStatus, Inventory, NumaCell, Platform};
use tokio::sync::broadcast;
use uuid::Uuid;

use self::console::{End, Line, hang_up};
pub use self::migrate::Break;
use super::domain_xml::vcpus_room;
use super::migration::{Dirtying, Migration, MigrationProgress};
use super::{
    Change, Console, DiskStats, Domain, DomainEvent, DomainSpec, DomainState, DomainStats, Exit, Hypervisor,
    HypervisorError, Observation, PauseReason, PortStats, Resized, Result,
};

/// Events kept for a receiver that lags.
const EVENTS: usize = 256;

type Now = dyn Fn() -> SystemTime + Send + Sync;

/// What hosts share: the locks of disk images, and the clock.
#[derive(Clone)]
pub struct FakeWorld {
    locks: Arc<Mutex<BTreeMap<LockKey, Owner>>>,
    /// By the URI at which each host is reached for migrations.
    hosts: Arc<Mutex<BTreeMap<String, Arc<Mutex<State>>>>>,
    now: Arc<Now>,
}

/// The host, for a file that only it sees; none for a shared one.
type LockKey = (Option<String>, PathBuf);
type Owner = (String, Uuid);

impl Default for FakeWorld {
    /// A world in which no time passes.
    fn default() -> Self {
        Self::new(|| SystemTime::UNIX_EPOCH)
    }
}

impl FakeWorld {
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { locks: Arc::default(), hosts: Arc::default(), now: Arc::new(now) }
    }

    /// A host; its name must be its own in this world.
    pub fn host(&self, name: &str) -> FakeHypervisor {
        let inventory = Inventory {
            hostname: name.to_owned(),
            libvirt_version: "9.0.0".to_owned(),
            qemu_version: "7.2.0".to_owned(),
            acceleration: "qemu".to_owned(),
            cpu_model: "Westmere".to_owned(),
            cpus: 64,
            memory_mib: 524_288,
            numa_cells: vec![NumaCell { id: 0, cpus: (0..64).collect(), memory_mib: 524_288 }],
            bridges: vec!["br-guests".to_owned()],
            machine_types: vec!["pc-q35-7.2".to_owned()],
            cpu_models: vec!["Westmere".to_owned(), "qemu64".to_owned()],
            firmware: vec!["bios".to_owned(), "uefi".to_owned()],
            ..Inventory::default()
        };
        self.host_with(name, inventory)
    }

    pub fn host_with(&self, name: &str, inventory: Inventory) -> FakeHypervisor {
        FakeHypervisor {
            name: name.to_owned(),
            world: self.clone(),
            inventory,
            events: broadcast::channel(EVENTS).0,
            state: Arc::default(),
        }
    }
}

/// How a guest behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// Shuts down when its power button is pressed.
    pub obeys_acpi: bool,
    /// Runs a guest agent.
    pub guest_agent: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self { obeys_acpi: true, guest_agent: true }
    }
}

/// One host.
pub struct FakeHypervisor {
    name: String,
    world: FakeWorld,
    inventory: Inventory,
    events: broadcast::Sender<DomainEvent>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    guests: BTreeMap<Uuid, Guest>,
    scripts: BTreeMap<Uuid, Script>,
    exits: BTreeMap<Uuid, Exit>,
    refusals: BTreeMap<Uuid, HypervisorError>,
    full: BTreeSet<Uuid>,
    dirty: BTreeMap<Uuid, u64>,
    broken: Option<migrate::Break>,
    foreign: BTreeSet<String>,
    away: bool,
}

struct Guest {
    domain: Domain,
    spec: DomainSpec,
    script: Script,
    /// Pressed while the guest was paused: it will find out when it runs.
    button: bool,
    console: Option<Arc<Mutex<Line>>>,
}

impl FakeHypervisor {
    /// How this VM will behave from its next start on.
    pub fn script(&self, vm: Uuid, script: Script) {
        self.lock().scripts.insert(vm, script);
    }

    /// Refuses the next starts of this VM, until told otherwise by `None`.
    pub fn refuse_start(&self, vm: Uuid, error: Option<HypervisorError>) {
        match error {
            Some(error) => self.lock().refusals.insert(vm, error),
            None => self.lock().refusals.remove(&vm),
        };
    }

    /// QEMU dies.
    pub fn crash(&self, vm: Uuid) {
        self.end(&mut self.lock(), vm, Exit::Crashed);
    }

    /// The guest powers itself off.
    pub fn power_off(&self, vm: Uuid) {
        self.end(&mut self.lock(), vm, Exit::Shutdown);
    }

    /// A write fails: the guest is paused by QEMU.
    pub fn io_error(&self, vm: Uuid) {
        self.stop_on_error(&mut self.lock(), vm);
    }

    fn stop_on_error(&self, state: &mut State, vm: Uuid) {
        let Some(guest) = state.guests.get_mut(&vm) else { return };
        guest.domain.state = DomainState::Paused(PauseReason::IoError);
        let path = guest.spec.disks.first().and_then(|disk| disk.path.clone()).unwrap_or_default();
        let path = path.to_string_lossy().into_owned();
        self.tell(state, DomainEvent::IoError { vm, path, reason: "enospc".to_owned() });
        self.change(state, vm, Change::Paused(PauseReason::IoError));
    }

    /// The first write after the next start of this VM fails.
    pub fn fail_first_write(&self, vm: Uuid) {
        self.lock().full.insert(vm);
    }

    /// How much memory this VM's guest changes while it runs, bytes a second.
    pub fn dirties(&self, vm: Uuid, bytes_per_s: u64) {
        self.lock().dirty.insert(vm, bytes_per_s);
    }

    pub fn add_foreign(&self, name: &str) {
        self.lock().foreign.insert(name.to_owned());
    }

    pub fn remove_foreign(&self, name: &str) {
        self.lock().foreign.remove(name);
    }

    pub fn has_foreign(&self, name: &str) -> bool {
        self.lock().foreign.contains(name)
    }

    /// libvirtd goes away; guests run on.
    pub fn disconnect(&self) {
        let mut state = self.lock();
        if !state.away {
            self.tell(&state, DomainEvent::ConnectionLost);
            state.away = true;
        }
    }

    pub fn reconnect(&self) {
        let mut state = self.lock();
        if state.away {
            state.away = false;
            self.tell(&state, DomainEvent::ConnectionUp);
        }
    }

    /// The power goes: every guest is gone at once, and nobody hears of it. The host comes back empty.
    pub fn cut_power(&self) {
        let mut state = self.lock();
        let vms: Vec<Uuid> = state.guests.keys().copied().collect();
        for vm in vms {
            state.guests.remove(&vm);
            self.unlock(vm);
        }
        state.foreign.clear();
        state.exits.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, as far as a caller may ask for it.
    fn reach(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match state.away {
            false => Ok(state),
            true => Err(HypervisorError::Disconnected { message: "the fake is disconnected".to_owned() }),
        }
    }

    /// Nobody may be listening, and while the connection is lost nobody hears.
    fn tell(&self, state: &State, event: DomainEvent) {
        if !state.away {
            let _ = self.events.send(event);
        }
    }

    fn change(&self, state: &State, vm: Uuid, change: Change) {
        self.tell(state, DomainEvent::Lifecycle { vm, change });
    }

    fn end(&self, state: &mut State, vm: Uuid, exit: Exit) {
        let Some(guest) = state.guests.remove(&vm) else { return };
        if let Some(line) = guest.console {
            hang_up(&line);
        }
        self.unlock(vm);
        state.exits.insert(vm, exit);
        self.change(state, vm, Change::Stopped(exit));
    }

    fn unlock(&self, vm: Uuid) {
        let mut locks = self.world.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, (host, owner)| (host.as_str(), *owner) != (self.name.as_str(), vm));
    }

    fn take_locks(&self, spec: &DomainSpec) -> Result<()> {
        let writable = |disk: &&super::DiskFile| !disk.readonly && disk.kind != DiskKind::Cdrom;
        let keys: Vec<LockKey> = spec
            .disks
            .iter()
            .filter(writable)
            .filter_map(|disk| Some(((!disk.shared).then(|| self.name.clone()), disk.path.clone()?)))
            .collect();
        let mut locks = self.world.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, path)) = keys.iter().find(|key| locks.contains_key(*key)) {
            let message = format!("Failed to get \"write\" lock: {}", path.display());
            return Err(HypervisorError::ImageLocked { message });
        }
        locks.extend(keys.into_iter().map(|key| (key, (self.name.clone(), spec.vm))));
        Ok(())
    }

    /// Presses the button of a running guest.
    fn press(&self, state: &mut State, vm: Uuid) {
        if state.guests.get(&vm).is_some_and(|guest| guest.script.obeys_acpi) {
            self.change(state, vm, Change::ShuttingDown);
            self.end(state, vm, Exit::Shutdown);
        }
    }
}

/// The guest of this incarnation, running or paused.
fn find(state: &mut State, vm: Uuid, incarnation: u64) -> Result<&mut Guest> {
    let guest = state.guests.get_mut(&vm).ok_or(HypervisorError::NotFound { vm })?;
    match guest.domain.incarnation {
        running if running == incarnation => Ok(guest),
        running => Err(HypervisorError::Stale { vm, asked: incarnation, running }),
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn inventory(&self) -> Result<Inventory> {
        self.reach().map(|_| self.inventory.clone())
    }

    async fn observe(&self) -> Result<Observation> {
        let state = self.reach()?;
        Ok(Observation {
            ours: state.guests.values().map(|guest| guest.domain.clone()).collect(),
            foreign: state.foreign.len() as u32,
        })
    }

    async fn start(&self, spec: &DomainSpec) -> Result<Domain> {
        let mut state = self.reach()?;
        let vm = spec.vm;
        if let Some(guest) = state.guests.get(&vm) {
            return Err(HypervisorError::Exists { vm, incarnation: guest.domain.incarnation });
        }
        if let Some(error) = state.refusals.get(&vm) {
            return Err(error.clone());
        }
        self.take_locks(spec)?;
        let mut platform = spec.machine.platform.clone().unwrap_or_default();
        let default = Platform { machine_type: "pc-q35-7.2".to_owned(), cpu_model: "Westmere".to_owned() };
        if platform.machine_type.is_empty() {
            platform.machine_type = default.machine_type;
        }
        if platform.cpu_model.is_empty() {
            platform.cpu_model = default.cpu_model;
        }
        let domain = Domain {
            vm,
            incarnation: spec.incarnation,
            generation: spec.generation,
            state: DomainState::Paused(PauseReason::NotYetRun),
            platform,
            vcpus: spec.machine.vcpus,
            memory_mib: spec.machine.memory_mib,
            started: (self.world.now)(),
            guest_agent_connected: false,
        };
        let script = state.scripts.get(&vm).copied().unwrap_or_default();
        let guest =
            Guest { domain: domain.clone(), spec: spec.clone(), script, button: false, console: None };
        state.guests.insert(vm, guest);
        self.change(&state, vm, Change::Started);
        Ok(domain)
    }

    async fn resume(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        let mut state = self.reach()?;
        let guest = find(&mut state, vm, incarnation)?;
        if guest.domain.state == DomainState::Running {
            return Ok(());
        }
        guest.domain.state = DomainState::Running;
        let answers = guest.script.guest_agent && !guest.domain.guest_agent_connected;
        guest.domain.guest_agent_connected |= answers;
        let pressed = std::mem::take(&mut guest.button);
        self.change(&state, vm, Change::Resumed);
        if answers {
            self.tell(&state, DomainEvent::AgentConnected { vm, connected: true });
        }
        if pressed {
            self.press(&mut state, vm);
        }
        if state.full.remove(&vm) {
            self.stop_on_error(&mut state, vm);
        }
        Ok(())
    }

    async fn process(&self, vm: Uuid, incarnation: u64) -> Result<ProcessId> {
        find(&mut *self.reach()?, vm, incarnation)?;
        Ok(ProcessId { pid: i32::MAX, start_time: 1 })
    }

    async fn pause(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        let mut state = self.reach()?;
        let guest = find(&mut state, vm, incarnation)?;
        if !matches!(guest.domain.state, DomainState::Paused(_)) {
            guest.domain.state = DomainState::Paused(PauseReason::OnDemand);
            self.change(&state, vm, Change::Paused(PauseReason::OnDemand));
        }
        Ok(())
    }

    async fn shutdown(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        let mut state = self.reach()?;
        let guest = find(&mut state, vm, incarnation)?;
        if guest.domain.state == DomainState::Running {
            self.press(&mut state, vm);
        } else {
            guest.button = true;
        }
        Ok(())
    }

    async fn destroy(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        let mut state = self.reach()?;
        match state.guests.get(&vm).map(|guest| guest.domain.incarnation) {
            Some(running) if running > incarnation => {
                Err(HypervisorError::Stale { vm, asked: incarnation, running })
            }
            _ => {
                self.end(&mut state, vm, Exit::Destroyed);
                Ok(())
            }
        }
    }

    async fn reset(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        find(&mut *self.reach()?, vm, incarnation)?.button = false;
        Ok(())
    }

    async fn resize(&self, vm: Uuid, incarnation: u64, vcpus: u32, memory_mib: u32) -> Result<Resized> {
        let mut state = self.reach()?;
        let guest = find(&mut state, vm, incarnation)?;
        let room = vcpus_room(guest.spec.machine.vcpus);
        if memory_mib != guest.domain.memory_mib || vcpus < guest.domain.vcpus || vcpus > room {
            return Ok(Resized::NeedsRestart);
        }
        guest.domain.vcpus = vcpus;
        Ok(Resized::Live)
    }

    async fn set_generation(&self, vm: Uuid, incarnation: u64, generation: u64) -> Result<()> {
        find(&mut *self.reach()?, vm, incarnation)?.domain.generation = generation;
        Ok(())
    }

    async fn migrate(&self, vm: Uuid, incarnation: u64, migration: &Migration) -> Result<()> {
        self.send(vm, incarnation, migration)
    }

    async fn abort_migration(&self, vm: Uuid, incarnation: u64) -> Result<()> {
        // A fake migration takes no time, so there never is one to give up.
        find(&mut *self.reach()?, vm, incarnation)?;
        Err(HypervisorError::Refused {
            reason: "LibvirtFailed",
            message: "no job is active on the domain".to_owned(),
            permanent: false,
        })
    }

    async fn migration(&self, _vm: Uuid) -> Result<Option<MigrationProgress>> {
        self.reach().map(|_| None)
    }

    async fn dirtying(&self, vm: Uuid) -> Result<Dirtying> {
        let state = self.reach()?;
        let guest = state.guests.get(&vm).ok_or(HypervisorError::NotFound { vm })?;
        let runs = guest.domain.state == DomainState::Running;
        let bytes_per_s = state.dirty.get(&vm).copied().filter(|_| runs).unwrap_or_default();
        Ok(Dirtying { memory_bytes: u64::from(guest.domain.memory_mib) << 20, bytes_per_s })
    }

    async fn guest(&self, vm: Uuid) -> Result<Option<GuestStatus>> {
        let state = self.reach()?;
        let guest = state.guests.get(&vm).ok_or(HypervisorError::NotFound { vm })?;
        if !guest.domain.guest_agent_connected || guest.domain.state != DomainState::Running {
            return Ok(None);
        }
        let told = guest.spec.machine.cloud_init.as_ref();
        Ok(Some(GuestStatus {
            ready: true,
            hostname: told.map(|told| told.hostname.clone()).unwrap_or_default(),
            addresses: guest
                .spec
                .machine
                .interfaces
                .iter()
                .flat_map(|interface| interface.addresses.iter().cloned())
                .collect(),
        }))
    }

    async fn console(&self, vm: Uuid, force: bool) -> Result<Console> {
        let mut state = self.reach()?;
        let guest = state.guests.get_mut(&vm).ok_or(HypervisorError::NotFound { vm })?;
        if let Some(line) = &guest.console {
            let busy = Arc::strong_count(line) > 1;
            if busy && !force {
                return Err(HypervisorError::Refused {
                    reason: "ConsoleBusy",
                    message: "Active console session exists for this domain".to_owned(),
                    permanent: false,
                });
            }
            hang_up(line);
        }
        let line = Arc::new(Mutex::new(Line::default()));
        guest.console = Some(Arc::clone(&line));
        Ok(Box::new(End { line }))
    }

    async fn stats(&self) -> Result<Vec<DomainStats>> {
        let state = self.reach()?;
        Ok(state
            .guests
            .values()
            .map(|guest| DomainStats {
                vm: guest.domain.vm,
                memory_kib: u64::from(guest.domain.memory_mib) * 1024,
                disks: guest
                    .spec
                    .disks
                    .iter()
                    .zip('a'..)
                    .map(|(_, letter)| DiskStats { device: format!("vd{letter}"), ..DiskStats::default() })
                    .collect(),
                ports: guest
                    .spec
                    .interfaces
                    .iter()
                    .map(|port| PortStats { tap: port.tap.clone(), ..PortStats::default() })
                    .collect(),
                ..DomainStats::default()
            })
            .collect())
    }

    async fn last_exit(&self, vm: Uuid) -> Result<Option<Exit>> {
        let state = self.lock();
        if state.guests.contains_key(&vm) {
            return Ok(None);
        }
        Ok(state.exits.get(&vm).copied())
    }

    fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.events.subscribe()
    }
}
