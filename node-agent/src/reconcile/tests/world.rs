//! A model world: every step is carried out at once on plain maps, until a decision has no steps. What it shows:
//! decisions converge, and the converged state is the wanted one.

use super::fixture::{Node, domain};
use crate::hypervisor::{DomainState, Exit, PauseReason};
use crate::keeper::Lease;
use crate::ledger::{End, Incoming, Life, Outgoing, Stop, VmRecord, VolumeRecord, Word};
use crate::reconcile::{FileFact, Go, Step};

fn outgoing(id: uuid::Uuid, word: Word) -> Outgoing {
    Outgoing { id, word, reason: String::new(), files: false }
}

/// How often each volume was made, beside the node itself.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub node: Node,
    pub makings: std::collections::BTreeMap<uuid::Uuid, u32>,
    /// Guests hear ACPI.
    pub deaf: bool,
}

impl World {
    pub fn carry_out(&mut self, step: &Step) {
        let Node { ledger, domains, desired, files, images, now_ms, boot_id, exits, keeper, .. } =
            &mut self.node;
        let now_ms = *now_ms;
        match step {
            Step::RecordEnd { vm, end } => {
                let record = ledger.vms.entry(*vm).or_default();
                *record = VmRecord {
                    life: Life::Ended,
                    end: Some(*end),
                    stop: None,
                    ended_ms: now_ms,
                    ..record.clone()
                };
                exits.remove(vm);
            }
            Step::Recognise { vm, paused } => {
                let here = &domains[vm];
                let record = ledger.vms.entry(*vm).or_default();
                let life = if *paused { Life::Starting } else { Life::Running };
                let action = record.action.or(desired.vms[vm].action.map(|action| action.id));
                *record = VmRecord {
                    incarnation: here.incarnation,
                    generation: here.generation,
                    life,
                    boot_id: boot_id.clone(),
                    stop: None,
                    action,
                    ..record.clone()
                };
            }
            Step::Tidy { vm, incarnation } => {
                let record = ledger.vms.entry(*vm).or_default();
                *record = VmRecord {
                    incarnation: record.incarnation.max(*incarnation),
                    untidy: false,
                    ..record.clone()
                };
            }
            Step::Start { vm, again } => {
                let wanted = &desired.vms[vm];
                let old = ledger.vms.get(vm).cloned().unwrap_or_default();
                let same = old.incarnation == wanted.incarnation;
                let record = VmRecord {
                    incarnation: wanted.incarnation,
                    generation: wanted.generation,
                    life: Life::Running,
                    boot_id: boot_id.clone(),
                    action: wanted.action.map(|action| action.id),
                    volumes: wanted.volumes.iter().map(|(id, _)| *id).collect(),
                    untidy: true,
                    restarts: u32::from(*again) + if same { old.restarts } else { 0 },
                    ..VmRecord::default()
                };
                assert!(!domains.contains_key(vm), "a second start of {vm}");
                ledger.vms.insert(*vm, record);
                domains.insert(*vm, domain(*vm, wanted.incarnation, wanted.generation, DomainState::Running));
            }
            Step::Resume { vm, why } => {
                let here = domains.get_mut(vm).unwrap();
                match (why, here.state) {
                    (Go::FirstTime, DomainState::Paused(PauseReason::NotYetRun))
                    | (Go::OnOrder, DomainState::Paused(PauseReason::OnDemand))
                    | (Go::Room, DomainState::Paused(PauseReason::IoError))
                    | (
                        Go::Kept,
                        DomainState::Paused(
                            PauseReason::OnDemand | PauseReason::Migration | PauseReason::Other,
                        ),
                    ) => here.state = DomainState::Running,
                    other => panic!("resumed for no good reason: {other:?}"),
                }
                let record = ledger.vms.get_mut(vm).unwrap();
                record.life = Life::Running;
                record.paused = false;
                if *why == Go::Kept {
                    record.outgoing = None;
                }
            }
            Step::Send { vm } => {
                domains.remove(vm);
                let record = ledger.vms.entry(*vm).or_default();
                let word = Word::Gone;
                record.outgoing = desired.vms[vm].moving.as_ref().map(|moving| outgoing(moving.id, word));
                (record.life, record.end) = (Life::Ended, Some(End::Migrated));
            }
            Step::Recall { .. } => {}
            Step::Settle { vm } => {
                let gone = !domains.contains_key(vm) && exits.get(vm) == Some(&Exit::Migrated);
                let record = ledger.vms.get_mut(vm).unwrap();
                let said = record.outgoing.as_mut().unwrap();
                assert_eq!(said.word, Word::Sending, "a word is for ever");
                said.word = if gone { Word::Gone } else { Word::Kept };
                if gone {
                    (record.life, record.end) = (Life::Ended, Some(End::Migrated));
                }
            }
            Step::Keep { vm, .. } => {
                let moving = desired.vms[vm].moving.as_ref().unwrap();
                ledger.vms.entry(*vm).or_default().outgoing = Some(outgoing(moving.id, Word::Kept));
            }
            Step::LetGo { vm } => {
                let moving = desired.vms[vm].moving.as_ref().unwrap();
                let record = ledger.vms.entry(*vm).or_default();
                record.outgoing = Some(outgoing(moving.id, Word::Gone));
                (record.life, record.end) = (Life::Ended, Some(End::Migrated));
            }
            Step::Receive { vm } => {
                let wanted = &desired.vms[vm];
                let record = VmRecord {
                    incarnation: wanted.incarnation,
                    generation: wanted.generation,
                    life: Life::Starting,
                    boot_id: boot_id.clone(),
                    untidy: true,
                    leases: keeper.leases.iter().map(|(pool, lease)| (*pool, lease.held_since_ms)).collect(),
                    incoming: wanted.moving.as_ref().map(|moving| Incoming { id: moving.id, go: false }),
                    ..VmRecord::default()
                };
                ledger.vms.insert(*vm, record);
            }
            Step::Guard { vm } => drop(keeper.guests.insert(*vm, domains[vm].incarnation)),
            Step::Pause { vm } => {
                ledger.vms.get_mut(vm).unwrap().paused = true;
                domains.get_mut(vm).unwrap().state = DomainState::Paused(PauseReason::OnDemand);
            }
            Step::Shutdown { vm, deadline_ms, reboot } => {
                let record = ledger.vms.entry(*vm).or_default();
                record.incarnation = domains[vm].incarnation;
                record.boot_id = boot_id.clone();
                record.life = Life::Running;
                record.stop = Some(Stop { deadline_ms: *deadline_ms, asked_ms: now_ms });
                record.reboot = *reboot;
                self.press(*vm);
            }
            Step::Destroy { vm, incarnation, .. } => {
                let record = ledger.vms.entry(*vm).or_default();
                record.stop = Some(Stop { deadline_ms: now_ms, asked_ms: now_ms });
                assert!(domains[vm].incarnation <= *incarnation);
                domains.remove(vm);
                exits.insert(*vm, Exit::Destroyed);
            }
            Step::Reboot { vm, action, deadline_ms } => {
                let record = ledger.vms.entry(*vm).or_default();
                assert_ne!(record.action, Some(*action), "an action twice");
                record.action = Some(*action);
                record.reboot = true;
                record.stop = Some(Stop { deadline_ms: *deadline_ms, asked_ms: now_ms });
                self.press(*vm);
            }
            Step::Reset { vm, action } => {
                let record = ledger.vms.entry(*vm).or_default();
                assert_ne!(record.action, Some(*action), "an action twice");
                record.action = Some(*action);
            }
            Step::Update { vm } => domains.get_mut(vm).unwrap().generation = desired.vms[vm].generation,
            Step::FetchImage { digest } => drop(images.insert(digest.clone())),
            Step::RecogniseVolume { volume } => {
                let wanted = &desired.volumes[volume];
                let record = VolumeRecord {
                    pool: wanted.pool,
                    made: true,
                    size_mib: wanted.size_mib,
                    ..Default::default()
                };
                ledger.volumes.insert(*volume, record);
            }
            Step::MakeVolume { volume } => {
                let wanted = &desired.volumes[volume];
                let record = VolumeRecord {
                    pool: wanted.pool,
                    made: true,
                    size_mib: wanted.size_mib,
                    ..Default::default()
                };
                ledger.volumes.insert(*volume, record);
                files.insert(*volume, FileFact { exists: true, used_mib: 1 });
                *self.makings.entry(*volume).or_default() += 1;
            }
            Step::GrowVolume { volume, size_mib } => {
                ledger.volumes.get_mut(volume).unwrap().size_mib = *size_mib
            }
            Step::DeleteVolume { volume } => {
                files.remove(volume);
                let record = ledger.volumes.entry(*volume).or_default();
                record.made = false;
                record.deleted = true;
            }
        }
    }

    fn press(&mut self, vm: uuid::Uuid) {
        if !self.deaf && self.node.domains.get(&vm).is_some_and(|here| here.state == DomainState::Running) {
            self.node.domains.remove(&vm);
            self.node.exits.insert(vm, Exit::Shutdown);
        }
    }

    /// Decides and carries out, letting time pass where there is nothing to do but wait. Says whether it came to
    /// rest.
    pub fn settle(&mut self) -> bool {
        for _ in 0..200 {
            let decision = self.node.decide();
            for subject in &decision.well {
                self.node.efforts.clear(subject);
            }
            if decision.steps.is_empty() {
                match decision.wake_ms {
                    None => return true,
                    Some(at_ms) => {
                        self.node.now_ms = at_ms.max(self.node.now_ms + 1);
                        self.node.answered_ms = Some(self.node.now_ms);
                        // By then the keeper has every lease that was asked for.
                        let held = Lease { lease_ms: 60_000, held_since_ms: 0 };
                        self.node.keeper.leases.entry(super::fixture::id(1)).or_insert(held);
                    }
                }
            }
            for step in &decision.steps {
                self.carry_out(step);
            }
        }
        false
    }
}

#[test]
fn a_vm_is_made_once_and_runs() {
    let mut world = World {
        node: Node::parse("pool 1\nvolume 1 make image=a\nvm 1 volumes=1 iso=c"),
        ..World::default()
    };
    assert!(world.settle());
    assert_eq!(world.node.domains.len(), 1);
    assert_eq!(world.makings.values().copied().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_deaf_guest_is_destroyed_in_the_end() {
    let node = Node::parse("vm 1 stop\nledger 1 running untidy\ndomain 1");
    let mut world = World { node, deaf: true, ..World::default() };
    let began_ms = world.node.now_ms;
    assert!(world.settle());
    assert!(world.node.domains.is_empty());
    assert!(world.node.now_ms >= began_ms + 120_000, "not before ACPI's time is up");
    assert!(world.node.decide().report.vms[0].gone);
}

#[test]
fn a_reboot_ends_with_a_running_guest_and_happens_once() {
    for deaf in [false, true] {
        let node = Node::parse("vm 1 reboot=7\nledger 1 running action=6\ndomain 1");
        let mut world = World { node, deaf, ..World::default() };
        assert!(world.settle());
        assert_eq!(world.node.domains.len(), 1);
        assert_eq!(world.node.ledger.vms[&super::fixture::id(1)].restarts, 0, "a reboot is no restart");
    }
}
