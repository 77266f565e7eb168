//! The doing: each step of the agent's, taken in the same small parts as `operate` takes it, with time between them in
//! which anything may die. This is the one place where the agent's own code is written again: a part here stands for a
//! write to the ledger, a call to libvirt or to the keeper there.

mod moving;

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use tamdao_keeper::boot::BootMs;
use tamdao_keeper::protocol::{PoolId, VmId};
use tamdao_node_agent::desired::{WantedVm, WantedVolume};
use tamdao_node_agent::hypervisor::{Domain, DomainState, Exit, PauseReason};
use tamdao_node_agent::keeper::Lease;
use tamdao_node_agent::ledger::{End, Life, Outgoing, Stop, VmRecord, VolumeRecord, Word};
use tamdao_node_agent::reconcile::{Go, Step, Subject};
use tamdao_proto::agent::v1::Problem;
use tamdao_proto::v1::Platform;
use uuid::Uuid;

use crate::world::{Event, World};
use crate::{SHARED, short};

/// A step at work, with what was known when it was decided.
pub struct Doing {
    step: Step,
    part: u32,
    stamp: (u64, u64),
    wanted: Option<WantedVm>,
    volume: Option<WantedVolume>,
    leases: BTreeMap<Uuid, Lease>,
    began_ms: u64,
    /// What a sending came to, once it is known.
    sent: Option<bool>,
    /// When the files of disks that are carried are all over there.
    carried_at: u64,
}

/// libvirt's own work of sending a guest, which goes on without the agent.
pub struct Migration {
    target: usize,
    incarnation_to: u64,
    part: u32,
    aborted: bool,
}

/// How a part of a step went.
enum Part {
    /// The next one, after so many ms.
    Next(u64),
    /// The same one again.
    Wait(u64),
    Done,
    Failed(&'static str),
}

impl World {
    /// Steps that only write down.
    pub fn write_down(&mut self, at: usize, step: &Step) {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        let clock_ms = host.clock_ms(now_ms);
        let Some(agent) = host.agent.as_mut() else { return };
        match step {
            Step::RecordEnd { vm, end } => {
                let record = host.ledger.vms.entry(*vm).or_default();
                (record.life, record.end, record.stop) = (Life::Ended, Some(*end), None);
                (record.paused, record.ended_ms) = (false, clock_ms);
                agent.exits.remove(vm);
            }
            Step::Recognise { vm, paused } => {
                let (Some(domain), Some(wanted)) = (host.domains.get(vm), agent.desired.vms.get(vm)) else {
                    return;
                };
                let record = host.ledger.vms.entry(*vm).or_default();
                (record.incarnation, record.generation) = (domain.incarnation, domain.generation);
                record.life = if *paused { Life::Starting } else { Life::Running };
                record.boot_id.clone_from(&host.boot_id);
                (record.stop, record.reboot, record.untidy) = (None, false, true);
                record.action = record.action.or(wanted.action.map(|action| action.id));
                record.volumes = wanted.volumes.iter().map(|(id, _)| *id).collect();
                record.leases.clear();
            }
            Step::Tidy { vm, incarnation } => {
                let record = host.ledger.vms.entry(*vm).or_default();
                record.incarnation = record.incarnation.max(*incarnation);
                record.volumes.clear();
                (record.incoming, record.untidy) = (None, false);
            }
            Step::Keep { vm, reason } => {
                let Some(id) = agent.desired.vms.get(vm).and_then(|wanted| Some(wanted.moving.as_ref()?.id))
                else {
                    return;
                };
                let record = host.ledger.vms.entry(*vm).or_default();
                record.outgoing =
                    Some(Outgoing { id, word: Word::Kept, reason: (*reason).to_owned(), files: false });
            }
            Step::LetGo { vm } => {
                let Some(wanted) = agent.desired.vms.get(vm) else { return };
                let Some(id) = wanted.moving.as_ref().map(|moving| moving.id) else { return };
                let record = host.ledger.vms.entry(*vm).or_default();
                record.incarnation = record.incarnation.max(wanted.incarnation);
                record.outgoing =
                    Some(Outgoing { id, word: Word::Gone, reason: String::new(), files: false });
                let_go(record, clock_ms);
            }
            _ => {}
        }
    }

    /// Begins a step; it ends with this life of the agent at the latest.
    pub fn begin(&mut self, at: usize, step: Step) {
        let now_ms = self.now_ms;
        let delay = self.chance.between(1, 30);
        let host = &mut self.nodes[at];
        let began_ms = host.clock_ms(now_ms);
        let Some(agent) = host.agent.as_mut() else { return };
        let subject = step.subject();
        let (wanted, volume) = match &subject {
            Subject::Vm(vm) | Subject::Move(vm) => (agent.desired.vms.get(vm).cloned(), None),
            Subject::Volume(id) => (None, agent.desired.volumes.get(id).cloned()),
            Subject::Image(_) => (None, None),
        };
        let stamp = match (&wanted, &volume) {
            (Some(vm), _) => (vm.incarnation, vm.generation),
            (None, Some(volume)) => (u64::from(volume.size_mib), volume.intent as u64),
            (None, None) => (0, 0),
        };
        agent.busy.insert(subject, step.clone());
        agent.next_doing += 1;
        let (life, doing) = (agent.life, agent.next_doing);
        let leases = agent.keeper.leases.clone();
        let begun =
            Doing { step, part: 0, stamp, wanted, volume, leases, began_ms, sent: None, carried_at: 0 };
        agent.doings.insert(doing, begun);
        self.plan(delay, Event::Act { node: at, life, doing });
    }

    pub fn act(&mut self, at: usize, life: u64, id: u64) {
        let now_ms = self.now_ms;
        let Some(agent) = self.nodes[at].agent.as_mut().filter(|agent| agent.life == life) else { return };
        if agent.paused_until > now_ms {
            let pause = agent.paused_until - now_ms;
            return self.plan(pause, Event::Act { node: at, life, doing: id });
        }
        let Some(mut doing) = agent.doings.remove(&id) else { return };
        let part = self.take_part(at, &mut doing);
        let delay = match part {
            Part::Next(delay) => {
                doing.part += 1;
                delay
            }
            Part::Wait(delay) => delay,
            Part::Done | Part::Failed(_) => return self.over(at, &doing, part),
        };
        if let Some(agent) = self.nodes[at].agent.as_mut() {
            agent.doings.insert(id, doing);
            self.plan(delay, Event::Act { node: at, life, doing: id });
        }
    }

    fn over(&mut self, at: usize, doing: &Doing, part: Part) {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        let clock_ms = host.clock_ms(now_ms);
        let Some(agent) = host.agent.as_mut() else { return };
        let subject = doing.step.subject();
        agent.busy.remove(&subject);
        match part {
            Part::Failed(reason) => {
                let problem = Problem { reason: reason.into(), message: reason.into(), ..Problem::default() };
                agent.efforts.fail(subject, doing.step.kind(), doing.stamp, problem, clock_ms);
                let kind = doing.step.kind();
                self.tell(|| format!("n{at}: {kind} fails: {reason}"));
            }
            _ => agent.efforts.clear(&subject),
        }
        self.pass_soon(at);
    }

    fn short_delay(&mut self) -> u64 {
        if self.troubled && self.chance.one_in(25) {
            self.chance.between(500, 9_000)
        } else {
            self.chance.between(2, 60)
        }
    }

    fn take_part(&mut self, at: usize, doing: &mut Doing) -> Part {
        match doing.step.clone() {
            Step::Start { vm, again } => self.start(at, vm, again, doing),
            Step::Resume { vm, why } => self.resume(at, vm, why, doing),
            Step::Guard { vm } => match self.guard(at, vm, &BTreeMap::new()) {
                Ok(()) => Part::Done,
                Err(reason) => Part::Failed(reason),
            },
            Step::Pause { vm } => {
                let host = &mut self.nodes[at];
                host.ledger.vms.entry(vm).or_default().paused = true;
                if let Some(domain) = host.domains.get_mut(&vm).filter(|it| it.state == DomainState::Running)
                {
                    domain.state = DomainState::Paused(PauseReason::OnDemand);
                }
                Part::Done
            }
            Step::Shutdown { vm, deadline_ms, reboot } => self.shut_down(at, vm, deadline_ms, reboot, doing),
            Step::Destroy { vm, incarnation, .. } => self.destroy(at, vm, incarnation, doing),
            Step::Update { vm } => self.update(at, vm, doing),
            Step::Send { vm } => self.send(at, vm, doing),
            Step::Recall { vm } => match self.nodes[at].migrations.get_mut(&vm) {
                Some(migration) if migration.part < 2 => {
                    migration.aborted = true;
                    Part::Done
                }
                Some(_) => Part::Failed("NoMigration"),
                None => self.recall_files(at, vm),
            },
            Step::Settle { vm } => self.settle_sending(at, vm, None),
            Step::Receive { vm } => self.receive(at, vm, doing),
            Step::RecogniseVolume { volume } => self.note_volume(at, volume, doing),
            Step::MakeVolume { volume } => self.make_volume(at, volume, doing),
            Step::GrowVolume { volume, size_mib } => {
                self.nodes[at].ledger.volumes.entry(volume).or_default().size_mib = size_mib;
                Part::Done
            }
            Step::DeleteVolume { volume } => self.delete_volume(at, volume, doing),
            Step::Reboot { .. } | Step::Reset { .. } | Step::FetchImage { .. } => {
                Part::Failed("NotSimulated")
            }
            Step::RecordEnd { .. }
            | Step::Recognise { .. }
            | Step::Tidy { .. }
            | Step::Keep { .. }
            | Step::LetGo { .. } => Part::Done,
        }
    }

    fn start(&mut self, at: usize, vm: Uuid, again: bool, doing: &Doing) -> Part {
        let delay = self.short_delay();
        let Some(wanted) = &doing.wanted else { return Part::Failed("Overtaken") };
        let host = &mut self.nodes[at];
        match doing.part {
            0 => {
                let old = host.ledger.vms.get(&vm).cloned().unwrap_or_default();
                let old = if old.incarnation == wanted.incarnation { old } else { VmRecord::default() };
                let record = VmRecord {
                    incarnation: wanted.incarnation,
                    generation: wanted.generation,
                    life: Life::Starting,
                    boot_id: host.boot_id.clone(),
                    stop: None,
                    reboot: false,
                    paused: false,
                    restarts: old.restarts + u32::from(again),
                    streak: if again { old.streak + 1 } else { 0 },
                    started_ms: doing.began_ms,
                    volumes: wanted.volumes.iter().map(|(id, _)| *id).collect(),
                    leases: BTreeMap::new(),
                    untidy: true,
                    ..old
                };
                host.ledger.vms.insert(vm, record);
                Part::Next(delay)
            }
            1 => {
                if host.domains.contains_key(&vm) {
                    return Part::Failed("DomainExists");
                }
                if !shared_pools(wanted).is_empty() && !host.access.works() {
                    // QEMU opens its disks first.
                    let waits = host.access.holds_up();
                    return if waits { Part::Wait(250) } else { Part::Failed("DiskNotOpened") };
                }
                let breach = self.checks.starts.begins(at, vm, wanted.incarnation, &host.ordered);
                let domain = domain(vm, wanted, wanted.incarnation);
                host.domains.insert(vm, domain);
                let incarnation = wanted.incarnation;
                self.tell(|| format!("n{at}: vm {} is created, incarnation {incarnation}", short(vm)));
                self.blame(breach);
                Part::Next(delay)
            }
            _ => self.run_first(at, vm, doing, doing.part - 2),
        }
    }

    /// Registered with the keeper, then run, then written down.
    fn run_first(&mut self, at: usize, vm: Uuid, doing: &Doing, part: u32) -> Part {
        let delay = self.short_delay();
        let Some(wanted) = &doing.wanted else { return Part::Failed("Overtaken") };
        let (pools, under) = (shared_pools(wanted), held(wanted, doing));
        let begun = matches!(doing.step, Step::Start { .. });
        match part {
            0 => {
                let guarded = match (&under, pools.is_empty()) {
                    (_, true) => Ok(()),
                    (Some(under), _) => self.guard(at, vm, under),
                    (None, _) => Err("NoStorageLease"),
                };
                match guarded {
                    Ok(()) => Part::Next(delay),
                    Err(reason) => {
                        if begun {
                            self.nodes[at].end(vm, Exit::Destroyed);
                        }
                        Part::Failed(reason)
                    }
                }
            }
            1 => {
                let host = &mut self.nodes[at];
                let Some(domain) = host.domains.get_mut(&vm) else { return Part::Failed("DomainNotFound") };
                domain.state = DomainState::Running;
                let incarnation = domain.incarnation;
                let breach = self.checks.volumes.used(at, &local_volumes(wanted));
                self.blame(breach);
                self.tell(|| format!("n{at}: vm {} runs, incarnation {incarnation}", short(vm)));
                Part::Next(delay)
            }
            _ => {
                let record = self.nodes[at].ledger.vms.entry(vm).or_default();
                record.life = Life::Running;
                record.leases = under.unwrap_or_default();
                Part::Done
            }
        }
    }

    fn guard(&mut self, at: usize, vm: Uuid, under: &BTreeMap<Uuid, u64>) -> Result<(), &'static str> {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        if !host.keeper_answers(now_ms) {
            return Err("KeeperAway");
        }
        let Some(domain) = host.domains.get(&vm) else { return Err("DomainNotFound") };
        let under = under.iter().map(|(pool, since)| (PoolId(*pool), BootMs(*since))).collect();
        let now = BootMs(host.clock_ms(now_ms));
        let guarded = host.keeper.guard(VmId(vm), [PoolId(SHARED.0)].into(), &under, now);
        match guarded {
            Ok(()) => {
                host.guarded.insert(vm, domain.incarnation);
                Ok(())
            }
            // The daemon answers well for the same process.
            Err(tamdao_keeper::core::Refusal::AlreadyGuarded(_)) => Ok(()),
            Err(_) => Err("KeeperRefuses"),
        }
    }

    fn resume(&mut self, at: usize, vm: Uuid, why: Go, doing: &Doing) -> Part {
        if why == Go::FirstTime {
            return self.run_first(at, vm, doing, doing.part);
        }
        if why == Go::Kept {
            let elsewhere = self.nodes.iter().position(|other| {
                other.name != self.nodes[at].name && other.up && other.domains.contains_key(&vm)
            });
            let breach = self.checks.resumed.goes_on(at, vm, elsewhere);
            self.blame(breach);
        }
        let host = &mut self.nodes[at];
        let Some(domain) = host.domains.get_mut(&vm) else { return Part::Failed("DomainNotFound") };
        domain.state = DomainState::Running;
        let record = host.ledger.vms.entry(vm).or_default();
        match why {
            Go::OnOrder => record.paused = false,
            Go::Kept => record.outgoing = None,
            Go::FirstTime | Go::Room => {}
        }
        Part::Done
    }

    fn going_down(&mut self, at: usize, vm: Uuid, stop: Stop) {
        let host = &mut self.nodes[at];
        let incarnation = host.domains.get(&vm).map_or(0, |domain| domain.incarnation);
        let record = host.ledger.vms.entry(vm).or_default();
        record.incarnation = record.incarnation.max(incarnation);
        record.boot_id.clone_from(&host.boot_id);
        (record.life, record.stop, record.untidy) = (Life::Running, Some(stop), true);
    }

    fn shut_down(&mut self, at: usize, vm: Uuid, deadline_ms: u64, reboot: bool, doing: &Doing) -> Part {
        let stop = Stop { deadline_ms, asked_ms: doing.began_ms };
        self.going_down(at, vm, stop);
        let host = &mut self.nodes[at];
        host.ledger.vms.entry(vm).or_default().reboot = reboot;
        let Some(incarnation) = host.domains.get(&vm).map(|domain| domain.incarnation) else {
            return Part::Failed("DomainNotFound");
        };
        let boot = host.boot;
        let breach = self.checks.orders.stops(at, vm, doing.wanted.as_ref());
        self.blame(breach);
        // Some guests do not hear ACPI.
        if !self.chance.one_in(5) {
            let delay = self.chance.between(100, 2_500);
            self.plan(delay, Event::Off { node: at, boot, vm, incarnation });
        }
        Part::Done
    }

    pub fn goes_off(&mut self, at: usize, boot: u64, vm: Uuid, incarnation: u64) {
        let host = &mut self.nodes[at];
        let here = host
            .domains
            .get(&vm)
            .is_some_and(|domain| domain.incarnation == incarnation && domain.state == DomainState::Running);
        if host.up && host.boot == boot && here {
            host.end(vm, Exit::Shutdown);
            self.tell(|| format!("n{at}: vm {} shuts down", short(vm)));
            self.pass_soon(at);
        }
    }

    fn destroy(&mut self, at: usize, vm: Uuid, incarnation: u64, doing: &Doing) -> Part {
        if doing.part == 0 {
            let stop = Stop { deadline_ms: doing.began_ms, asked_ms: doing.began_ms };
            self.going_down(at, vm, stop);
            return Part::Next(self.short_delay());
        }
        let here = self.nodes[at].domains.get(&vm).map(|domain| domain.incarnation);
        match here {
            Some(here) if here > incarnation => Part::Failed("StaleIncarnation"),
            Some(_) => {
                let breach = self.checks.orders.stops(at, vm, doing.wanted.as_ref());
                self.blame(breach);
                self.nodes[at].end(vm, Exit::Destroyed);
                self.nodes[at].migrations.remove(&vm);
                self.tell(|| format!("n{at}: vm {} is destroyed, incarnation {incarnation}", short(vm)));
                Part::Done
            }
            None => Part::Done,
        }
    }

    fn update(&mut self, at: usize, vm: Uuid, doing: &Doing) -> Part {
        let Some(wanted) = &doing.wanted else { return Part::Failed("Overtaken") };
        let host = &mut self.nodes[at];
        let Some(domain) = host.domains.get_mut(&vm) else { return Part::Failed("DomainNotFound") };
        (domain.vcpus, domain.memory_mib) = (wanted.machine.vcpus, wanted.machine.memory_mib);
        domain.generation = wanted.generation;
        host.ledger.vms.entry(vm).or_default().generation = wanted.generation;
        Part::Done
    }

    // Moves.

    fn note_volume(&mut self, at: usize, id: Uuid, doing: &Doing) -> Part {
        let Some(wanted) = &doing.volume else { return Part::Failed("Overtaken") };
        let record = VolumeRecord {
            pool: wanted.pool,
            made: true,
            size_mib: wanted.size_mib,
            image: None,
            deleted: false,
            copy: wanted.copy,
        };
        self.nodes[at].ledger.volumes.insert(id, record);
        Part::Done
    }

    fn make_volume(&mut self, at: usize, id: Uuid, doing: &Doing) -> Part {
        let Some(wanted) = &doing.volume else { return Part::Failed("Overtaken") };
        if wanted.pool == SHARED.0 && !self.nodes[at].access.works() {
            return Part::Failed("PoolAbsent");
        }
        if doing.part == 0 {
            return Part::Next(self.short_delay());
        }
        if doing.part == 1 {
            let shared = wanted.pool == SHARED.0;
            let files = if shared { &mut self.storage.files } else { &mut self.nodes[at].files };
            // The file is linked into its place only if nothing is there.
            if !files.insert(id) {
                return Part::Failed("VolumeInTheWay");
            }
            let breach = self.checks.volumes.made(at, id, wanted.copy);
            self.blame(breach);
            return Part::Next(self.short_delay());
        }
        self.note_volume(at, id, doing)
    }

    fn delete_volume(&mut self, at: usize, id: Uuid, doing: &Doing) -> Part {
        let Some(wanted) = &doing.volume else { return Part::Failed("Overtaken") };
        let shared = wanted.pool == SHARED.0;
        if shared && !self.nodes[at].access.works() {
            return Part::Failed("PoolAbsent");
        }
        if doing.part == 0 {
            return Part::Next(self.short_delay());
        }
        let user = self
            .nodes
            .iter()
            .position(|host| host.up && host.domains.values().any(|domain| self.truth.uses(domain.vm, id)));
        let breach = self.checks.volumes.deleted(at, id, user.filter(|user| shared || *user == at));
        self.blame(breach);
        let files = if shared { &mut self.storage.files } else { &mut self.nodes[at].files };
        files.remove(&id);
        let record = self.nodes[at].ledger.volumes.entry(id).or_default();
        (record.made, record.deleted, record.copy) = (false, true, record.copy.max(wanted.copy));
        Part::Done
    }
}

fn shared_pools(wanted: &WantedVm) -> BTreeSet<Uuid> {
    wanted.volumes.iter().map(|(_, pool)| *pool).filter(|pool| *pool == SHARED.0).collect()
}

fn local_volumes(wanted: &WantedVm) -> Vec<Uuid> {
    let own = wanted.volumes.iter().filter(|(_, pool)| *pool != SHARED.0);
    own.map(|(volume, _)| *volume).collect()
}

/// The leases that the decision saw: since when each is held without a break.
fn held(wanted: &WantedVm, doing: &Doing) -> Option<BTreeMap<Uuid, u64>> {
    let pools = shared_pools(wanted).into_iter();
    pools.map(|pool| Some((pool, doing.leases.get(&pool)?.held_since_ms))).collect()
}

fn let_go(record: &mut VmRecord, now_ms: u64) {
    (record.life, record.end, record.stop) = (Life::Ended, Some(End::Migrated), None);
    (record.paused, record.ended_ms) = (false, now_ms);
}

fn domain(vm: Uuid, wanted: &WantedVm, incarnation: u64) -> Domain {
    Domain {
        vm,
        incarnation,
        generation: wanted.generation,
        state: DomainState::Paused(PauseReason::NotYetRun),
        platform: Platform { machine_type: "q35".into(), cpu_model: "host".into() },
        vcpus: wanted.machine.vcpus,
        memory_mib: wanted.machine.memory_mib,
        started: SystemTime::UNIX_EPOCH,
        guest_agent_connected: false,
    }
}
