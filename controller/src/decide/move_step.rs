//! The steps of an open move: what the ends' words, time, people and fence proofs make of it. Each change of phase is
//! one decision, with the assignments of both nodes, so that whoever leads goes on from the records alone.

use tamdao_model::assignment::{Hold, Intent, VolumeEntry};
use tamdao_model::convert::agent::{MoveSeen, MoveState, VmSeen};
use tamdao_model::event::Severity;
use tamdao_model::moves::{Cause, Move, MoveEvent, MovePhase};
use tamdao_model::node::NodePhase;
use tamdao_model::{MoveId, NodeId, TimeMs, VolumeId};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::fence::shared_pools;
use super::{anew, node_event, put_vm};
use crate::admission::Moment;

/// How long sending may take, ms, and how much more for each GiB of memory and disk.
const SEND_MS: u64 = 10 * 60 * 1_000;
const SEND_GIB_MS: u64 = 5 * 60 * 1_000;

/// Takes what a node says of the move of one of its VMs. What is said of a move that is over changes nothing.
pub fn hear(draft: &mut Draft, moment: &mut Moment, node: NodeId, seen: &VmSeen) {
    let Some(said) = &seen.moving else { return };
    let Some(open) = open(draft.view(), said.id).filter(|one| one.spec.vm == seen.vm) else { return };
    let (source, target) = (open.spec.source == node, open.spec.target == node);
    match said.state {
        MoveState::Kept if source => {
            let problem = said.problem.as_ref();
            let cause = Cause {
                reason: problem.map_or_else(|| "Kept".to_owned(), |problem| problem.reason.clone()),
                message: problem
                    .map_or_else(|| "its node has kept it".to_owned(), |problem| problem.message.clone()),
                cancelled: false,
            };
            happens(draft, moment, said.id, MoveEvent::SourceKept, Some(cause));
        }
        MoveState::Gone if source => happens(draft, moment, said.id, MoveEvent::SourceGone, None),
        MoveState::Runs if target => happens(draft, moment, said.id, MoveEvent::TargetRuns, None),
        MoveState::Ready if target => tell(draft, &open, true, ""),
        MoveState::Preparing if target => prepare(draft, moment, &open, said),
        MoveState::Sending if source => {
            tell(
                draft,
                &open,
                open.status.ready,
                said.problem.as_ref().map_or("", |problem| &problem.message),
            );
        }
        // A word that is not this end's to say.
        _ => tracing::warn!(%node, vm = %seen.vm, state = ?said.state, "a node speaks of a move out of turn"),
    }
}

fn prepare(draft: &mut Draft, moment: &mut Moment, open: &Move, said: &MoveSeen) {
    let Some(problem) = &said.problem else { return tell(draft, open, false, "") };
    if problem.permanent && open.status.phase == MovePhase::Preparing {
        let cause =
            Cause { reason: problem.reason.clone(), message: problem.message.clone(), cancelled: false };
        return happens(draft, moment, open.id(), MoveEvent::GiveUp, Some(cause));
    }
    tell(draft, open, false, &problem.message);
}

/// Notes what an end said that changes no phase.
fn tell(draft: &mut Draft, open: &Move, ready: bool, message: &str) {
    let mut new = open.clone();
    new.status.ready |= ready && open.status.phase == MovePhase::Preparing;
    message.clone_into(&mut new.status.message);
    if new != *open {
        draft.put(new);
    }
}

fn open(view: &View, id: MoveId) -> Option<Move> {
    view.moves.get(id).filter(|row| row.status.phase.is_open()).map(|row| (*row.value).clone())
}

/// Lets an event happen to an open move. One that cannot be in its phase is told and changes nothing.
pub fn happens(draft: &mut Draft, moment: &mut Moment, id: MoveId, event: MoveEvent, cause: Option<Cause>) {
    let Some(mut one) = open(draft.view(), id) else { return };
    let before = one.status.phase;
    if one.status.cause.is_none() {
        one.status.cause = cause;
    }
    let cancelled = one.status.cause.as_ref().is_some_and(|cause| cause.cancelled);
    let after = match before.after(event, cancelled) {
        Ok(after) => after,
        Err(impossible) => {
            tracing::error!(vm = %one.spec.vm, error = %impossible, "a move cannot take this");
            return;
        }
    };
    one.status.kept |=
        event == MoveEvent::SourceKept || (before, after) == (MovePhase::Preparing, MovePhase::Clearing);
    one.status.phase = after;
    if after != before {
        one.status.message.clear();
        one.status.deadline = None;
        match after {
            MovePhase::Preparing => {}
            MovePhase::Sending => send(draft, moment, &mut one),
            MovePhase::Recalling => {}
            MovePhase::Clearing => clear(draft, &one),
            MovePhase::Done => commit(draft, moment, &mut one),
            MovePhase::Failed | MovePhase::Cancelled => end(draft, moment, &mut one),
        }
    }
    let (id, target) = (one.id(), one.spec.target);
    let lost = after == MovePhase::Clearing && is_proven(draft.view(), &one, target);
    draft.put(one);
    if lost {
        // Nobody is there to clear it, and the proof says that nothing is left to be cleared.
        happens(draft, moment, id, MoveEvent::TargetFenced, None);
    }
}

/// Whether a node is fenced, and what is proven of it speaks of the VM of this move.
fn is_proven(view: &View, one: &Move, node: NodeId) -> bool {
    let node = view.nodes.get(node).filter(|node| node.status.phase == NodePhase::Fenced);
    let fence = node.and_then(|node| node.status.fence.as_ref());
    let vm = view.vms.get(one.spec.vm);
    fence.zip(vm).is_some_and(|(fence, vm)| fence.covers(vm, &shared_pools(view, vm)).is_some())
}

fn send(draft: &mut Draft, moment: &mut Moment, one: &mut Move) {
    intend(draft, one, one.spec.source, Intent::Outgoing);
    let memory = draft.view().vms.get(one.spec.vm).map_or(0, |vm| u64::from(vm.spec.memory_mib));
    let limit_ms = send_limit_ms(memory + disks_mib(draft.view(), &one.spec.copies));
    one.status.deadline = Some(moment.now.plus_ms(limit_ms));
    one.status.send_time = Some(moment.now);
}

/// How long so many MiB of memory and disk may take to be sent, ms.
pub fn send_limit_ms(mib: u64) -> u64 {
    SEND_MS + SEND_GIB_MS * mib.div_ceil(1024)
}

/// What these volumes' files take, MiB.
pub fn disks_mib(view: &View, copies: &[VolumeId]) -> u64 {
    copies.iter().filter_map(|id| view.volumes.get(*id)).map(|volume| volume.status.used_mib).sum()
}

/// Sets what a node has to do with the VM.
fn intend(draft: &mut Draft, one: &Move, node: NodeId, intent: Intent) {
    let mut assignment = draft.view().assignment(node);
    if let Some(entry) = assignment.vms.get_mut(&one.spec.vm)
        && entry.intent != intent
    {
        entry.intent = intent;
        draft.put(assignment);
    }
}

/// The guest stays the source's: the target destroys what it may have, and removes the files that it has made. The
/// source's entry stays as it is until that is done: a guest that was left standing still goes on only then.
fn clear(draft: &mut Draft, one: &Move) {
    let mut there = draft.view().assignment(one.spec.target);
    if let Some(entry) = there.vms.get_mut(&one.spec.vm) {
        entry.intent = Intent::Stale;
    }
    for entry in arrivals(&mut there.volumes, one) {
        entry.hold = Hold::Leaving;
    }
    draft.put(there);
}

fn arrivals<'a>(
    volumes: &'a mut std::collections::BTreeMap<VolumeId, VolumeEntry>,
    one: &'a Move,
) -> impl Iterator<Item = &'a mut VolumeEntry> + 'a {
    let own = |(id, _): &(&VolumeId, &mut VolumeEntry)| one.spec.copies.contains(id);
    volumes.iter_mut().filter(own).map(|(_, entry)| entry)
}

/// The VM is the target's: all that speaks of its place, in one transaction.
fn commit(draft: &mut Draft, moment: &mut Moment, one: &mut Move) {
    let Some(row) = draft.view().vms.get(one.spec.vm) else { return };
    let mut vm = (*row.value).clone();
    let (mut here, mut there) =
        (draft.view().assignment(one.spec.source), draft.view().assignment(one.spec.target));
    for (assignment, intent) in [(&mut here, Intent::Stale), (&mut there, Intent::Wanted)] {
        if let Some(entry) = assignment.vms.get_mut(&vm.id()) {
            entry.intent = intent;
        }
    }
    for entry in arrivals(&mut here.volumes, one) {
        entry.hold = Hold::Leaving;
    }
    for entry in arrivals(&mut there.volumes, one) {
        entry.hold = Hold::Own;
    }
    draft.put(here);
    draft.put(there);
    for id in &one.spec.copies {
        if let Some(row) = draft.view().volumes.get(*id) {
            let mut volume = (*row.value).clone();
            volume.status.node = Some(one.spec.target);
            draft.put(volume);
        }
    }
    vm.status.node = Some(one.spec.target);
    vm.status.incarnation = one.spec.incarnation_to;
    vm.status.moving = None;
    one.status.end_time = Some(moment.now);
    one.status.cause = None;
    let message = format!("moved from {} to {}", name(draft, one.spec.source), name(draft, one.spec.target));
    let generation = vm.meta.generation;
    let placed = format!("placed on {}", name(draft, one.spec.target));
    let yes = tamdao_model::condition::ConditionStatus::True;
    vm.status.conditions.set("Placed", yes, "Moved", &placed, generation, moment.now);
    node_event(draft, moment, &vm, Some(one.spec.target), Severity::Info, "Moved", message, "mover");
    put_vm(draft, vm);
}

fn name(draft: &Draft, node: NodeId) -> String {
    draft.view().nodes.get(node).map_or_else(|| node.to_string(), |row| row.meta.name.to_string())
}

/// It was given up, and the target has cleared.
fn end(draft: &mut Draft, moment: &mut Moment, one: &mut Move) {
    one.status.end_time = Some(moment.now);
    intend(draft, one, one.spec.source, Intent::Wanted);
    let Some(row) = draft.view().vms.get(one.spec.vm) else { return };
    let mut vm = (*row.value).clone();
    vm.status.moving = None;
    if !one.status.kept {
        // It may have sent all before it was proven gone: its ledger then knows that incarnation as let go.
        anew(draft, &mut vm);
    }
    let (severity, reason) = match one.status.phase {
        MovePhase::Cancelled => (Severity::Info, "MoveCancelled"),
        _ => (Severity::Warning, "MoveFailed"),
    };
    let why = one.status.cause.as_ref().map_or("", |cause| &cause.message);
    let message = format!("stays on {}: {why}", name(draft, one.spec.source));
    node_event(draft, moment, &vm, Some(one.spec.source), severity, reason, message, "mover");
    put_vm(draft, vm);
}

/// A node has confirmed that nothing is left of an incarnation that it was to destroy.
pub fn cleared(draft: &mut Draft, moment: &mut Moment, node: NodeId, seen: &VmSeen) {
    let Some(id) = draft.view().vms.get(seen.vm).and_then(|vm| vm.status.moving) else { return };
    let target = open(draft.view(), id).is_some_and(|one| {
        one.spec.target == node
            && one.status.phase == MovePhase::Clearing
            && seen.incarnation >= one.spec.incarnation_to
    });
    if target {
        happens(draft, moment, id, MoveEvent::TargetCleared, None);
    }
}

/// Tells the open moves of a node of a fence proof for it, in the fence's own transaction. A proof that does not speak
/// of a VM, as a silent storage lease does not of one with other disks, ends no move of it.
pub fn fenced(draft: &mut Draft, moment: &mut Moment, node: NodeId) {
    let view = draft.view();
    let ends = |one: &Move| one.status.phase.is_open() && [one.spec.source, one.spec.target].contains(&node);
    let moves: Vec<(MoveId, bool)> = view
        .moves
        .iter()
        .filter(|row| ends(row) && is_proven(view, row, node))
        .map(|row| (row.id(), row.spec.source == node))
        .collect();
    let message = format!("{} was fenced", name(draft, node));
    for (id, source) in moves {
        let event = if source { MoveEvent::SourceFenced } else { MoveEvent::TargetFenced };
        let cause = Cause { reason: "NodeFenced".into(), message: message.clone(), cancelled: false };
        happens(draft, moment, id, event, Some(cause));
    }
}

/// What is to be done about moves now, by time and by turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Its target is ready and its turn has come.
    Send(MoveId),
    /// Its time is up.
    GiveUp(MoveId),
    /// It has been over for long enough.
    Forget(MoveId),
}

/// How many moves may send at once: on one node, as either end, and in the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    pub per_node: usize,
    pub in_all: usize,
}

/// What is due now. Moves take their turn in the order in which they were asked for.
pub fn due(view: &View, now: TimeMs, turns: Turns) -> Vec<Due> {
    let mut due = Vec::new();
    let sends = |one: &Move| matches!(one.status.phase, MovePhase::Sending | MovePhase::Recalling);
    let mut sending: Vec<(NodeId, NodeId)> =
        view.moves.iter().filter(|row| sends(row)).map(|row| (row.spec.source, row.spec.target)).collect();
    let mut rows: Vec<_> = view.moves.iter().collect();
    rows.sort_by_key(|row| (row.meta.create_time, row.id()));
    for row in rows {
        let (status, spec) = (&row.status, &row.spec);
        if status.end_time.is_some_and(|end| now.since(end) > tamdao_model::limits::MOVE_KEEP_MS) {
            due.push(Due::Forget(row.id()));
        }
        if !status.phase.is_open() {
            continue;
        }
        if status.deadline.is_some_and(|deadline| deadline < now) {
            due.push(Due::GiveUp(row.id()));
            continue;
        }
        let of = |node: NodeId| sending.iter().filter(|(a, b)| [*a, *b].contains(&node)).count();
        let free = sending.len() < turns.in_all
            && of(spec.source) < turns.per_node
            && of(spec.target) < turns.per_node;
        if status.phase == MovePhase::Preparing && status.ready && free {
            sending.push((spec.source, spec.target));
            due.push(Due::Send(row.id()));
        }
    }
    due
}
