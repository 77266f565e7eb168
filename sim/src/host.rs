//! A node as a machine: its boots and clock, the guests on it, its keeper with the product's own core, its watchdog, and
//! the storage that it shares with the others.

use std::collections::{BTreeMap, BTreeSet};

use tamdao_keeper::boot::BootMs;
use tamdao_keeper::core::{Keeper, Renewal};
use tamdao_keeper::protocol::{GuestStatus, PoolId, ProcessId, Status, VmId};
use tamdao_model::node::Inventory;
use tamdao_node_agent::desired::Desired;
use tamdao_node_agent::hypervisor::{Domain, DomainState, Exit};
use tamdao_node_agent::ledger::State;
use tamdao_proto::agent::v1 as wire;
use uuid::Uuid;

use crate::agent::Agent;
use crate::hands::Migration;
use crate::world::{Event, World, node_id};
use crate::{LEASE_MS, WATCHDOG_MS};

/// How often the keeper ticks.
const TICK_MS: u64 = 250;

/// How a node reaches the shared storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    #[default]
    Fine,
    Slow,
    /// What is sent arrives, and its answer comes very late.
    Deaf,
    /// Nothing comes back; what was sent may land when it is over.
    Hangs,
    /// Errors; what is said to have failed may have landed.
    Fails,
}

impl Access {
    /// Whether files can be worked with.
    pub fn works(self) -> bool {
        matches!(self, Self::Fine | Self::Slow)
    }

    /// Whether whoever calls it waits, for all that one can see.
    pub fn holds_up(self) -> bool {
        matches!(self, Self::Deaf | Self::Hangs)
    }
}

/// What a node has written of itself on the shared pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    pub boot_id: String,
    pub counter: u64,
    pub lease_ms: u64,
    pub watchdog_timeout_ms: Option<u64>,
    pub released: bool,
}

/// What all nodes see.
#[derive(Default)]
pub struct Storage {
    pub leases: BTreeMap<usize, LeaseRecord>,
    pub files: BTreeSet<Uuid>,
    /// Files that the storage has lost; what has them stays off, and is no breach.
    pub lost: BTreeSet<Uuid>,
}

/// A write of a lease that has come back.
pub struct Renewed {
    pub renewal: Renewal,
    pub succeeded: bool,
    /// The keeper's that sent it; a later one does not hear of it.
    pub life: u64,
}

/// What a keeper that is started again finds of a lease: how long it is, when it was last renewed, since when it is held.
type Kept = (u64, Option<BootMs>, Option<BootMs>);

/// See the module.
pub struct Host {
    pub name: String,
    pub rack: &'static str,
    pub up: bool,
    /// Never boots again.
    pub dead: bool,
    /// Counts boots; an event of an earlier one does nothing.
    pub boot: u64,
    pub boot_id: String,
    booted_at: u64,
    ppm: u64,
    pub watchdog: bool,
    fed_at: u64,
    pub domains: BTreeMap<Uuid, Domain>,
    pub last_exits: BTreeMap<Uuid, Exit>,
    pub migrations: BTreeMap<Uuid, Migration>,
    pub keeper: Keeper,
    /// Guests that the keeper has, by incarnation.
    pub guarded: BTreeMap<Uuid, u64>,
    /// Guests that have been killed and are not reaped yet: who waits for a disk dies when it wakes.
    doomed: BTreeSet<Uuid>,
    /// Guests of those whose processes libvirt has given up, so that it lists no domain; they may still write.
    pub given_up: BTreeSet<Uuid>,
    pub keeper_paused_until: u64,
    /// Its process has died, and the next one is not there yet.
    keeper_dead: bool,
    keeper_life: u64,
    /// The keeper's state file.
    kept: BTreeMap<PoolId, Kept>,
    counter: u64,
    pub access: Access,
    /// Writes that hang.
    held: Vec<(LeaseRecord, Renewed)>,
    pub agent: Option<Agent>,
    pub lives: u64,
    /// On its own disk.
    pub ledger: State,
    pub files: BTreeSet<Uuid>,
    /// The last assignment; a deliberate bug starts from it.
    pub remembered: Desired,
    /// VMs and incarnations that the leader has named in this boot.
    pub ordered: BTreeSet<(Uuid, u64)>,
    pub cpus: u32,
    pub memory_mib: u64,
}

impl Host {
    pub fn new(at: usize, rack: &'static str, ppm: u64, watchdog: bool) -> Self {
        Self {
            name: format!("n{at}"),
            rack,
            up: false,
            dead: false,
            boot: 0,
            boot_id: String::new(),
            booted_at: 0,
            ppm,
            watchdog,
            fed_at: 0,
            domains: BTreeMap::new(),
            last_exits: BTreeMap::new(),
            migrations: BTreeMap::new(),
            keeper: Keeper::new(None),
            guarded: BTreeMap::new(),
            doomed: BTreeSet::new(),
            given_up: BTreeSet::new(),
            keeper_paused_until: 0,
            keeper_dead: false,
            keeper_life: 0,
            kept: BTreeMap::new(),
            counter: 0,
            access: Access::Fine,
            held: Vec::new(),
            agent: None,
            lives: 0,
            ledger: State::default(),
            files: BTreeSet::new(),
            remembered: Desired::default(),
            ordered: BTreeSet::new(),
            cpus: 8,
            memory_mib: 8_192,
        }
    }

    /// ms of CLOCK_BOOTTIME at a true moment.
    pub fn clock_ms(&self, now_ms: u64) -> u64 {
        1_000 + (now_ms - self.booted_at) * self.ppm / 1_000_000
    }

    pub fn inventory(&self) -> Inventory {
        Inventory {
            hostname: self.name.clone(),
            acceleration: "kvm".into(),
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            bridges: vec!["br0".into()],
            firmware: vec!["bios".into()],
            ..Inventory::default()
        }
    }

    pub fn runs(&self, vm: Uuid) -> bool {
        self.up && self.domains.get(&vm).is_some_and(|domain| domain.state == DomainState::Running)
    }

    pub fn keeper_answers(&self, now_ms: u64) -> bool {
        !self.keeper_dead && self.keeper_paused_until <= now_ms
    }

    /// What the keeper would answer; none while it is stopped or dead.
    pub fn keeper_status(&self, now_ms: u64) -> Option<Status> {
        if !self.keeper_answers(now_ms) {
            return None;
        }
        let guests = self.guarded.iter().map(|(vm, incarnation)| GuestStatus {
            vm: VmId(*vm),
            incarnation: *incarnation,
            process: ProcessId { pid: 1, start_time: 1 },
            pools: [PoolId(crate::SHARED.0)].into(),
            dying: self.keeper.is_dying(VmId(*vm)),
        });
        Some(Status {
            version: "sim".into(),
            boot_id: Uuid::nil(),
            watchdog_timeout_ms: self.watchdog.then_some(WATCHDOG_MS),
            pools: self.keeper.pools(BootMs(self.clock_ms(now_ms))),
            guests: guests.collect(),
        })
    }

    /// As the keeper's daemon does: arms the watchdog, takes up its leases, then the guests that are still there.
    fn start_keeper_again(&mut self, now_ms: u64) {
        let now = BootMs(self.clock_ms(now_ms));
        self.keeper_dead = false;
        self.keeper_life += 1;
        self.keeper = Keeper::new(self.watchdog.then_some(WATCHDOG_MS));
        self.fed_at = now_ms;
        for (pool, (lease_ms, renewed_at, held_since)) in &self.kept {
            // What an earlier keeper could hold this one can.
            let _ = self.keeper.resume(*pool, *lease_ms, *renewed_at, *held_since, now);
        }
        for vm in self.guarded.keys() {
            self.keeper.readopt(VmId(*vm), [PoolId(crate::SHARED.0)].into());
        }
    }

    /// Notes a good renewal for the next keeper.
    fn note_renewal(&mut self, renewal: &Renewal, now: BootMs) {
        let held = self.keeper.pools(now);
        let Some(status) = held.iter().find(|held| held.pool == renewal.pool) else { return };
        let renewed_at = (!renewal.released).then_some(renewal.sent_at);
        self.kept.insert(renewal.pool, (renewal.lease_ms, renewed_at, status.held_since));
    }

    /// A domain is gone from this host.
    pub fn end(&mut self, vm: Uuid, exit: Exit) {
        if self.domains.remove(&vm).is_some() {
            self.last_exits.insert(vm, exit);
            if !self.given_up.contains(&vm) {
                self.reap(vm);
            }
        }
    }

    /// The process of a guest is gone.
    fn reap(&mut self, vm: Uuid) {
        self.guarded.remove(&vm);
        self.doomed.remove(&vm);
        self.given_up.remove(&vm);
        self.keeper.reaped(VmId(vm));
    }
}

impl World {
    pub fn boot(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let starts_in = self.chance.between(200, 3_000);
        let host = &mut self.nodes[at];
        if host.up || host.dead {
            return;
        }
        host.up = true;
        host.boot += 1;
        host.boot_id = Uuid::from_u128((at as u128) << 32 | u128::from(host.boot)).to_string();
        host.booted_at = now_ms;
        host.keeper = Keeper::new(host.watchdog.then_some(WATCHDOG_MS));
        host.fed_at = now_ms;
        (host.keeper_paused_until, host.keeper_dead) = (0, false);
        host.keeper_life += 1;
        host.kept.clear();
        // Counters of two boots are not compared; a record goes on from what it finds.
        host.counter = self.storage.leases.get(&at).map_or(0, |record| record.counter);
        let boot = host.boot;
        self.tell(|| format!("n{at} boots, for the {boot}. time"));
        self.plan(1, Event::Keeper { node: at, boot });
        self.plan(WATCHDOG_MS, Event::Watchdog { node: at, boot });
        self.plan(starts_in, Event::StartAgent { node: at, boot });
    }

    /// The power is cut: all that runs there is gone, what was written stays.
    pub fn power_cut(&mut self, at: usize, why: &str) {
        let host = &mut self.nodes[at];
        if !host.up {
            return;
        }
        host.up = false;
        host.boot += 1;
        host.agent = None;
        host.domains.clear();
        host.last_exits.clear();
        host.migrations.clear();
        host.guarded.clear();
        host.doomed.clear();
        host.given_up.clear();
        host.ordered.clear();
        self.tell(|| format!("n{at} loses its power: {why}"));
        self.land_held(at);
        let lines: Vec<u64> =
            self.connections.iter().filter(|(_, line)| line.node == at).map(|(id, _)| *id).collect();
        // Nobody says goodbye: the other end has to notice.
        drop(lines);
    }

    /// A host that is down comes up again after so long.
    pub fn reboot_in(&mut self, at: usize, in_ms: u64) {
        self.plan(in_ms, Event::Boot { node: at });
    }

    /// The keeper's process dies. The service manager starts another, which goes on from what is written.
    pub fn crash_keeper(&mut self, at: usize) {
        let soon = !self.chance.one_in(3);
        let away = if soon { self.chance.between(20, 700) } else { self.chance.between(700, 8_000) };
        let until = self.now_ms + away;
        let host = &mut self.nodes[at];
        if host.up && !host.keeper_dead {
            host.keeper_dead = true;
            host.keeper_paused_until = until.max(host.keeper_paused_until);
            self.tell(|| format!("n{at}: the keeper dies, for {away} ms"));
        }
    }

    pub fn keeper_ticks(&mut self, at: usize, boot: u64) {
        let now_ms = self.now_ms;
        let Some(host) = self.nodes.get_mut(at).filter(|host| host.up && host.boot == boot) else { return };
        let pause = host.keeper_paused_until.saturating_sub(now_ms);
        if pause > 0 {
            return self.plan(pause, Event::Keeper { node: at, boot });
        }
        if host.keeper_dead {
            host.start_keeper_again(now_ms);
        }
        let step = host.keeper.tick(BootMs(host.clock_ms(now_ms)));
        if step.feed {
            host.fed_at = now_ms;
        }
        let waits = host.access.holds_up();
        let kill: Vec<_> = step.kill.into_iter().filter(|VmId(vm)| host.doomed.insert(*vm)).collect();
        self.plan(TICK_MS, Event::Keeper { node: at, boot });
        for VmId(vm) in kill {
            // A process that waits for its disk dies when it wakes.
            let late = self.chance.one_in(4) != waits;
            let delay = if late { self.chance.between(500, 8_000) } else { self.chance.between(1, 50) };
            self.tell(|| format!("n{at}: the keeper kills vm {}", crate::short(vm)));
            // Not drawn, so that all other histories stay as they are.
            if waits && (vm.as_u128() as u64 ^ self.now_ms).is_multiple_of(2) {
                self.give_up(at, vm);
            }
            self.plan(delay, Event::Killed { node: at, boot, vm });
        }
        for renewal in step.renew {
            self.write_lease(at, boot, renewal);
        }
    }

    /// libvirt lists a guest no more whose process waits for its disk and does not die.
    fn give_up(&mut self, at: usize, vm: Uuid) {
        let host = &mut self.nodes[at];
        if host.domains.remove(&vm).is_some() {
            host.last_exits.insert(vm, Exit::Crashed);
            host.given_up.insert(vm);
            self.tell(|| format!("n{at}: libvirt gives vm {} up", crate::short(vm)));
            self.pass_soon(at);
        }
    }

    pub fn killed(&mut self, at: usize, boot: u64, vm: Uuid) {
        let host = &mut self.nodes[at];
        if host.up && host.boot == boot && host.doomed.contains(&vm) {
            if host.given_up.contains(&vm) {
                host.reap(vm);
            } else {
                host.end(vm, Exit::Crashed);
            }
            self.pass_soon(at);
        }
    }

    pub fn watchdog_looks(&mut self, at: usize, boot: u64) {
        let Some(host) = self.nodes.get(at).filter(|host| host.up && host.boot == boot && host.watchdog)
        else {
            return;
        };
        let due = host.fed_at + WATCHDOG_MS;
        if due > self.now_ms {
            return self.plan(due - self.now_ms, Event::Watchdog { node: at, boot });
        }
        self.power_cut(at, "its watchdog fires");
        let back = self.chance.between(3_000, 15_000);
        self.reboot_in(at, back);
    }

    fn write_lease(&mut self, at: usize, boot: u64, renewal: Renewal) {
        let host = &mut self.nodes[at];
        let life = host.keeper_life;
        host.counter += 1;
        let record = LeaseRecord {
            boot_id: host.boot_id.clone(),
            counter: host.counter,
            lease_ms: renewal.lease_ms,
            watchdog_timeout_ms: renewal.watchdog_timeout_ms,
            released: renewal.released,
        };
        let (lands, back) = match host.access {
            Access::Hangs => {
                let renewed = Renewed { renewal, succeeded: true, life };
                return host.held.push((record, renewed));
            }
            Access::Fails => {
                if self.chance.one_in(4) {
                    let delay = self.chance.between(1, 3_000);
                    self.plan(delay, Event::LeaseLands { node: at, record });
                }
                let renewed = Renewed { renewal, succeeded: false, life };
                return self.plan(20, Event::LeaseWritten { node: at, boot, renewed });
            }
            Access::Slow => (self.chance.between(50, 3_000), self.chance.between(50, 3_500)),
            Access::Deaf => (self.chance.between(1, 20), self.chance.between(500, 4_500)),
            Access::Fine => (self.chance.between(1, 20), self.chance.between(1, 20)),
        };
        self.plan(lands, Event::LeaseLands { node: at, record });
        let renewed = Renewed { renewal, succeeded: true, life };
        self.plan(lands + back, Event::LeaseWritten { node: at, boot, renewed });
    }

    pub fn lease_lands(&mut self, at: usize, record: LeaseRecord) {
        self.storage.leases.insert(at, record);
    }

    pub fn lease_written(&mut self, at: usize, boot: u64, renewed: &Renewed) {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        if !host.up || host.boot != boot || host.keeper_dead || host.keeper_life != renewed.life {
            return;
        }
        let wait = host.keeper_paused_until.saturating_sub(now_ms);
        if wait > 0 {
            let renewed = Renewed { ..*renewed };
            return self.plan(wait, Event::LeaseWritten { node: at, boot, renewed });
        }
        let now = BootMs(host.clock_ms(now_ms));
        host.keeper.written(&renewed.renewal, renewed.succeeded, now);
        if renewed.succeeded {
            host.note_renewal(&renewed.renewal, now);
        }
    }

    /// The storage answers again: what hung lands, late, and its writer hears of it if it is still there.
    pub fn land_held(&mut self, at: usize) {
        let (boot, up) = (self.nodes[at].boot, self.nodes[at].up);
        for (record, renewed) in std::mem::take(&mut self.nodes[at].held) {
            let lands = self.chance.between(1, 400);
            if up || self.chance.one_in(2) {
                self.plan(lands, Event::LeaseLands { node: at, record });
            }
            if up {
                self.plan(lands + 10, Event::LeaseWritten { node: at, boot, renewed });
            }
        }
    }

    /// Reads another node's record for the leader, as `Keeper::read_lease` does.
    pub fn read_lease(&mut self, at: usize, asked: &wire::ReadLease) {
        let now_ms = self.now_ms;
        let host = &self.nodes[at];
        let Some(agent) = &host.agent else { return };
        let life = agent.life;
        let own = host.keeper_status(now_ms);
        let own = own.and_then(|status| status.pools.iter().find(|pool| pool.fresh)?.renewed_at);
        let began_ms = host.clock_ms(now_ms);
        let delay = match host.access {
            // It never comes back; the leader asks another one.
            Access::Hangs => return,
            Access::Slow => self.chance.between(100, 3_000),
            Access::Deaf => self.chance.between(500, 6_000),
            Access::Fine | Access::Fails => self.chance.between(1, 20),
        };
        let of = (0..self.nodes.len()).find(|other| node_id(*other).to_string() == asked.node_id);
        let seen = of.and_then(|other| self.storage.leases.get(&other).cloned());
        let host = &self.nodes[at];
        let failed = host.access == Access::Fails;
        let record = seen.filter(|_| !failed).map(|record| wire::LeaseRecord {
            boot_id: record.boot_id,
            counter: record.counter,
            lease_ms: record.lease_ms,
            watchdog_timeout_ms: record.watchdog_timeout_ms.unwrap_or(0),
            released: record.released,
        });
        let error = if record.is_none() { "it cannot be read".to_owned() } else { String::new() };
        let reading = wire::LeaseReading {
            pool_id: asked.pool_id.clone(),
            node_id: asked.node_id.clone(),
            began_ms,
            ended_ms: host.clock_ms(now_ms + delay),
            own_renewed_ms: own.map_or(0, |at| at.0),
            record,
            error,
        };
        self.plan(delay, Event::LeaseRead { node: at, life, reading: Box::new(reading) });
    }

    pub fn lease_was_read(&mut self, at: usize, life: u64, reading: wire::LeaseReading) {
        if self.nodes[at].agent.as_ref().is_some_and(|agent| agent.life == life) {
            self.say(at, wire::session_request::Message::LeaseReading(reading));
        }
    }

    /// Has the keeper hold a lease on the shared pool, if it can be reached.
    pub fn hold_lease(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        let pool = PoolId(crate::SHARED.0);
        if !host.keeper_answers(now_ms) || host.keeper.pools(BootMs(0)).iter().any(|held| held.pool == pool) {
            return;
        }
        let now = BootMs(host.clock_ms(now_ms));
        // It is refused only for a length that no setting here has.
        if host.keeper.hold(pool, LEASE_MS, now).is_ok() {
            host.kept.insert(pool, (LEASE_MS, None, None));
        }
    }
}
