//! The doing of moves: sending, settling and receiving a guest, and libvirt's own part of it.

use tamdao_node_agent::hypervisor::{DomainState, Exit, PauseReason};
use tamdao_node_agent::ledger::{End, Incoming, Life, Outgoing, VmRecord, Word};
use tamdao_node_agent::reconcile::{Step, Subject};
use uuid::Uuid;

use super::{Doing, Migration, Part, held, let_go};
use crate::short;
use crate::world::{Event, World};

impl World {
    /// Whether a call from one node's agent to another's comes through now.
    pub(super) fn reaches_agent(&self, from: usize, to: usize) -> bool {
        let cut = self.cut_nodes.contains(&from) || self.cut_nodes.contains(&to);
        let target = self.nodes[to].agent.as_ref();
        !cut && self.nodes[to].up && target.is_some_and(|agent| agent.paused_until <= self.now_ms)
    }

    /// Whether a node has written down that it waits for this guest.
    pub(super) fn is_ready_for(&self, at: usize, vm: Uuid, id: Uuid, incarnation: u64) -> bool {
        let record = self.nodes[at].ledger.vms.get(&vm).filter(|record| record.incarnation == incarnation);
        let expects = self.nodes[at].agent.as_ref().and_then(|agent| agent.desired.vms.get(&vm));
        let expects = expects.and_then(|wanted| wanted.moving.as_ref()).is_some_and(|moving| moving.id == id);
        expects && record.and_then(|record| record.incoming).is_some_and(|incoming| incoming.id == id)
    }

    pub(super) fn send(&mut self, at: usize, vm: Uuid, doing: &mut Doing) -> Part {
        let delay = self.short_delay();
        let Some(moving) = doing.wanted.as_ref().and_then(|wanted| wanted.moving.clone()) else {
            return Part::Failed("Overtaken");
        };
        let target = (0..self.nodes.len()).find(|other| crate::world::node_id(*other).0 == moving.peer);
        let Some(target) = target else { return Part::Failed("NoPeer") };
        let files = doing.wanted.as_ref().is_some_and(|wanted| wanted.goes_with_files());
        match doing.part {
            0 => {
                if !self.reaches_agent(at, target) || !self.is_ready_for(target, vm, moving.id, moving.to) {
                    return Part::Failed("PeerAway");
                }
                let outgoing = Outgoing { id: moving.id, word: Word::Sending, reason: String::new(), files };
                self.nodes[at].ledger.vms.entry(vm).or_default().outgoing = Some(outgoing);
                Part::Next(delay)
            }
            1 if files => {
                self.tell(|| format!("n{at}: the disks of vm {} are carried to n{target}", short(vm)));
                if let Some(agent) = self.nodes[at].agent.as_mut() {
                    agent.recalled.remove(&vm);
                }
                let most_ms = if self.chance.one_in(3) { 12_000 } else { 3_000 };
                doing.carried_at = self.now_ms + self.chance.between(50, most_ms);
                Part::Next(100)
            }
            2 if files => self.carry_files(at, target, vm, doing),
            1 => {
                if !self.nodes[at].runs(vm) || !self.reaches_agent(at, target) {
                    doing.sent = Some(false);
                    return Part::Next(1);
                }
                self.tell(|| format!("n{at}: vm {} is being sent to n{target}", short(vm)));
                let migration = Migration { target, incarnation_to: moving.to, part: 0, aborted: false };
                let host = &mut self.nodes[at];
                host.migrations.insert(vm, migration);
                let boot = host.boot;
                // Copying may well take longer than a storage lease lasts.
                let most_ms = if self.chance.one_in(3) { 12_000 } else { 3_000 };
                let delay = self.chance.between(50, most_ms);
                self.plan(delay, Event::Migrates { node: at, boot, vm });
                Part::Next(100)
            }
            2 => {
                if self.nodes[at].migrations.contains_key(&vm) {
                    return Part::Wait(100);
                }
                // libvirt's answer may be lost on its way.
                let gone = !self.nodes[at].domains.contains_key(&vm);
                let sent = doing.sent.take();
                doing.sent = sent.or_else(|| (!self.chance.one_in(8)).then_some(gone));
                Part::Next(delay)
            }
            3 if files && doing.sent == Some(true) => {
                let record = self.nodes[at].ledger.vms.entry(vm).or_default();
                let incarnation = doing.wanted.as_ref().map_or(0, |wanted| wanted.incarnation);
                record.incarnation = record.incarnation.max(incarnation);
                match self.settle_sending(at, vm, doing.sent) {
                    Part::Done if self.word(at, vm) == Some(Word::Gone) => Part::Next(delay),
                    other => other,
                }
            }
            3 => match self.settle_sending(at, vm, doing.sent) {
                Part::Done if self.word(at, vm) == Some(Word::Gone) => Part::Next(delay),
                other => other,
            },
            _ => {
                if self.reaches_agent(at, target) && self.is_ready_for(target, vm, moving.id, moving.to) {
                    let record = self.nodes[target].ledger.vms.entry(vm).or_default();
                    record.incoming = Some(Incoming { id: moving.id, go: true });
                    self.pass_soon(target);
                }
                Part::Done
            }
        }
    }

    /// One look at files on their way, each over a connection of its own, until all are there and answered for.
    fn carry_files(&mut self, at: usize, target: usize, vm: Uuid, doing: &mut Doing) -> Part {
        let Some(wanted) = &doing.wanted else { return Part::Failed("Overtaken") };
        let moving = wanted.moving.as_ref();
        let (id, to) = moving.map_or((Uuid::nil(), 0), |moving| (moving.id, moving.to));
        let volumes = super::local_volumes(wanted);
        let recalled = self.nodes[at].agent.as_mut().is_some_and(|agent| agent.recalled.remove(&vm));
        let reaches = self.reaches_agent(at, target) && self.is_ready_for(target, vm, id, to);
        let there = volumes.iter().all(|volume| self.nodes[target].files.contains(volume));
        if recalled || !reaches || !there {
            doing.sent = Some(false);
            return Part::Next(1);
        }
        let whole = doing.carried_at <= self.now_ms;
        for volume in volumes {
            // Of several the first may be there already.
            if whole || self.chance.one_in(10) {
                self.checks.volumes.carried(at, target, volume);
            }
        }
        if !whole {
            return Part::Wait(100);
        }
        // The last answer may be lost on its way.
        doing.sent = Some(!self.chance.one_in(8));
        Part::Next(self.short_delay())
    }

    /// Has the carrying of files end, if this agent is at it.
    pub(super) fn recall_files(&mut self, at: usize, vm: Uuid) -> Part {
        let Some(agent) = self.nodes[at].agent.as_mut() else { return Part::Failed("NoMigration") };
        let carries = agent.desired.vms.get(&vm).is_some_and(|wanted| wanted.goes_with_files());
        if carries && matches!(agent.busy.get(&Subject::Vm(vm)), Some(Step::Send { .. })) {
            agent.recalled.insert(vm);
            return Part::Done;
        }
        Part::Failed("NoMigration")
    }

    pub(super) fn word(&self, at: usize, vm: Uuid) -> Option<Word> {
        Some(self.nodes[at].ledger.vms.get(&vm)?.outgoing.as_ref()?.word)
    }

    /// Finds out what came of a sending, and writes it down for ever.
    pub(super) fn settle_sending(&mut self, at: usize, vm: Uuid, sent: Option<bool>) -> Part {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        if let Some(migration) = host.migrations.get_mut(&vm) {
            migration.aborted |= migration.part < 2;
            return Part::Wait(100);
        }
        let clock_ms = host.clock_ms(now_ms);
        let here = host.domains.contains_key(&vm);
        let outgoing = host.ledger.vms.get(&vm).and_then(|record| record.outgoing.as_ref());
        let files = outgoing.is_some_and(|outgoing| outgoing.files);
        let gone = match (here, sent) {
            // How a domain of it ended once says nothing of files.
            (false, sent) if files => sent == Some(true),
            (true, _) => false,
            (false, Some(true)) => true,
            (false, _) => host.last_exits.get(&vm) == Some(&Exit::Migrated),
        };
        let record = host.ledger.vms.entry(vm).or_default();
        if let Some(outgoing) = record.outgoing.as_mut().filter(|outgoing| outgoing.word == Word::Sending) {
            outgoing.word = if gone { Word::Gone } else { Word::Kept };
            if !gone {
                "the sending was cut off".clone_into(&mut outgoing.reason);
            }
        }
        if gone {
            let_go(record, clock_ms);
        }
        self.tell(|| format!("n{at}: vm {} is {}", short(vm), if gone { "gone" } else { "kept" }));
        Part::Done
    }

    /// libvirt's own steps: the memory is copied, the guest stands still, the target has it, the source lets go.
    pub fn migrate_on(&mut self, at: usize, boot: u64, vm: Uuid) {
        if !self.nodes[at].up || self.nodes[at].boot != boot {
            return;
        }
        let Some(migration) = self.nodes[at].migrations.get(&vm) else { return };
        let (target, incarnation, part, aborted) =
            (migration.target, migration.incarnation_to, migration.part, migration.aborted);
        let cut = self.cut_nodes.contains(&at) || self.cut_nodes.contains(&target) || !self.nodes[target].up;
        let has = self.nodes[target].domains.get(&vm).is_some_and(|there| there.incarnation == incarnation);
        let Some(mut guest) = self.nodes[at].domains.get(&vm).cloned() else {
            return self.break_migration(at, target, vm, false);
        };
        // In its last part a cut takes the answer that the target has it.
        if aborted || cut || (part > 0 && !has) {
            return self.break_migration(at, target, vm, part >= 2);
        }
        match part {
            0 => {
                guest.incarnation = incarnation;
                guest.state = DomainState::Paused(PauseReason::NotYetRun);
                if self.nodes[target].domains.contains_key(&vm) {
                    return self.break_migration(at, target, vm, false);
                }
                self.nodes[target].domains.insert(vm, guest);
            }
            1 => {
                let stands_still = DomainState::Paused(PauseReason::Migration);
                self.nodes[at].domains.entry(vm).and_modify(|domain| domain.state = stands_still);
            }
            2 => {}
            _ => {
                self.nodes[at].migrations.remove(&vm);
                let own = self.nodes[at].ledger.vms.get(&vm).map(|record| record.volumes.clone());
                for volume in own.unwrap_or_default() {
                    if self.nodes[at].files.contains(&volume) {
                        self.checks.volumes.carried(at, target, volume);
                    }
                }
                return self.nodes[at].end(vm, Exit::Migrated);
            }
        }
        if let Some(migration) = self.nodes[at].migrations.get_mut(&vm) {
            migration.part += 1;
        }
        let delay = self.chance.between(5, 1_500);
        self.plan(delay, Event::Migrates { node: at, boot, vm });
    }

    /// libvirt dies on a node and is back at once; what it was sending or receiving breaks.
    pub fn libvirt_dies(&mut self, node: usize) {
        self.tell(|| format!("n{node}: libvirt dies and is started again"));
        for at in 0..self.nodes.len() {
            let breaks = self.nodes[at].migrations.iter().filter(|(_, one)| at == node || one.target == node);
            let breaks: Vec<_> = breaks.map(|(vm, one)| (*vm, one.target, one.part)).collect();
            for (vm, target, part) in breaks {
                self.break_migration(at, target, vm, part >= 2);
            }
        }
    }

    /// A migration ends half-way: the source goes on, or stands still when libvirt could not tell.
    fn break_migration(&mut self, at: usize, target: usize, vm: Uuid, late: bool) {
        self.tell(|| format!("n{at}: the sending of vm {} breaks", short(vm)));
        let lingers = self.chance.one_in(2);
        let stays_paused = late && self.chance.one_in(2);
        let moving = self.nodes[at].migrations.remove(&vm);
        if let Some(domain) = self.nodes[at].domains.get_mut(&vm)
            && domain.state == DomainState::Paused(PauseReason::Migration)
            && !stays_paused
        {
            domain.state = DomainState::Running;
        }
        let theirs = self.nodes[target].domains.get(&vm);
        let ours = theirs.is_some_and(|there| {
            moving.is_some_and(|moving| there.incarnation == moving.incarnation_to)
                && there.state == DomainState::Paused(PauseReason::NotYetRun)
        });
        if ours && !lingers {
            self.nodes[target].end(vm, Exit::Failed);
        }
    }

    pub(super) fn receive(&mut self, at: usize, vm: Uuid, doing: &Doing) -> Part {
        let delay = self.short_delay();
        let Some(wanted) = &doing.wanted else { return Part::Failed("Overtaken") };
        let Some((id, stays_off)) = wanted.moving.as_ref().map(|moving| (moving.id, moving.stays_off)) else {
            return Part::Failed("Overtaken");
        };
        let host = &mut self.nodes[at];
        if doing.part == 0 {
            let record = VmRecord {
                incarnation: wanted.incarnation,
                generation: wanted.generation,
                life: if stays_off { Life::Ended } else { Life::Starting },
                end: stays_off.then_some(End::ByItself),
                boot_id: host.boot_id.clone(),
                started_ms: doing.began_ms,
                volumes: wanted.volumes.iter().map(|(id, _)| *id).collect(),
                leases: held(wanted, doing).unwrap_or_default(),
                untidy: true,
                ..VmRecord::default()
            };
            host.ledger.vms.insert(vm, record);
            return Part::Next(delay);
        }
        host.ledger.vms.entry(vm).or_default().incoming = Some(Incoming { id, go: false });
        Part::Done
    }
}
