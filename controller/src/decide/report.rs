//! What an agent reports becomes status: the one place where observed state enters the records. A report that
//! changes nothing writes nothing; numbers that wander (disk use) are written only when they moved enough.

use std::collections::BTreeSet;

use tamdao_model::assignment::{Hold, Intent};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::convert::agent::{FileState, VmSeen, VolumeSeen};
use tamdao_model::event::Severity;
use tamdao_model::node::PoolSeen;
use tamdao_model::vm::{GuestExit, Vm, VmPhase};
use tamdao_model::volume::VolumePhase;
use tamdao_model::{NodeId, PoolId, SessionId, VmId};
use tamdao_store::typed::Draft;

use super::{evacuate, move_step, node_event, put_vm, recovery, vm_delete};
use crate::admission::Moment;

/// Entries of one report that go into one decision, so that it always fits a transaction.
pub const CHUNK: usize = 24;

/// A part of a report, as read from the wire.
#[derive(Debug, Clone, Default)]
pub struct Part {
    pub vms: Vec<VmSeen>,
    pub volumes: Vec<VolumeSeen>,
    pub pools: Vec<(PoolId, PoolSeen)>,
    pub foreign: Option<u32>,
    /// The version of the node's keeper; empty where there is none.
    pub keeper: Option<String>,
    /// The first part of a complete report: all guests that live there.
    pub whole: Option<BTreeSet<VmId>>,
}

/// Takes a part of a report. One of a session that is no longer the node's changes nothing.
pub fn take(draft: &mut Draft, moment: &mut Moment, node: NodeId, session: SessionId, part: &Part) {
    let current = draft.view().nodes.get(node).and_then(|row| row.status.session);
    if current != Some(session) {
        return;
    }
    take_node(draft, moment, node, part);
    recovery::hear(draft, node, session, part.whole.as_ref(), &part.vms);
    for seen in &part.volumes {
        take_volume(draft, moment, node, seen);
    }
    for seen in &part.vms {
        take_vm(draft, moment, node, seen);
    }
}

fn take_node(draft: &mut Draft, moment: &Moment, id: NodeId, part: &Part) {
    let Some(row) = draft.view().nodes.get(id) else { return };
    let mut node = (*row.value).clone();
    for (pool, seen) in &part.pools {
        let old = node.status.pools.get(pool);
        // One per cent of the file system is news, less is not.
        let same = old.is_some_and(|old| {
            let step = (seen.capacity_mib / 100).max(1);
            (old.ready, &old.message, old.capacity_mib, old.lease)
                == (seen.ready, &seen.message, seen.capacity_mib, seen.lease)
                && old.used_mib.abs_diff(seen.used_mib) < step
        });
        if !same {
            let lost = old.and_then(|old| old.lost_time).unwrap_or(moment.now);
            let lost_time = (!seen.ready).then_some(lost);
            node.status.pools.insert(*pool, PoolSeen { lost_time, ..seen.clone() });
        }
    }
    if let Some(foreign) = part.foreign {
        node.status.foreign = foreign;
    }
    if let Some(keeper) = &part.keeper {
        node.status.keeper.clone_from(keeper);
    }
    if node != *row.value {
        draft.put(node);
    }
}

fn take_vm(draft: &mut Draft, moment: &mut Moment, node: NodeId, seen: &VmSeen) {
    // First, because by its word the VM may become another node's.
    move_step::hear(draft, moment, node, seen);
    // Of one that is deleted by now, an earlier node may still have had something to clear.
    let Some(row) = draft.view().vms.get(seen.vm) else { return confirm_stale(draft, moment, node, seen) };
    let vm = row.value.clone();
    if vm.status.node != Some(node) || seen.incarnation != vm.status.incarnation {
        return confirm_stale(draft, moment, node, seen);
    }
    let mut new = (*vm).clone();
    let status = &mut new.status;
    let restarted = seen.restarts > status.restarts;
    status.seen = Some(seen.seen.clone());
    status.guest = seen.guest.clone();
    status.started_time = seen.started_time.or(status.started_time);
    status.observed_generation = status.observed_generation.max(seen.generation);
    status.action_done = seen.action_done.or(status.action_done);
    status.restarts = status.restarts.max(seen.restarts);
    if status.platform.is_none() {
        status.platform.clone_from(&seen.platform);
    }
    // Its node is heard, so nobody waits for another one.
    status.conditions.clear(evacuate::CONDITION);
    let generation = seen.generation;
    match &seen.seen.problem {
        Some(problem) => {
            let message = if problem.permanent {
                problem.message.clone()
            } else {
                format!("{} (tried {} times, will be tried again)", problem.message, problem.attempts.max(1))
            };
            let old = status.conditions.get("Healthy").map(|c| (c.reason.clone(), c.status));
            let now = Some((problem.reason.clone(), ConditionStatus::False));
            status.conditions.set(
                "Healthy",
                ConditionStatus::False,
                &problem.reason,
                &message,
                generation,
                moment.now,
            );
            if old != now {
                node_event(
                    draft,
                    moment,
                    &*vm,
                    Some(node),
                    Severity::Warning,
                    &problem.reason,
                    problem.message.clone(),
                    "node",
                );
            }
        }
        None => {
            status.conditions.set("Healthy", ConditionStatus::True, "AsAsked", "", generation, moment.now);
        }
    }
    if restarted {
        let message = match seen.seen.exit {
            Some(GuestExit::ByItself) => "it had shut itself down and was started again by its run policy",
            _ => "it had failed and was started again by its run policy",
        };
        node_event(draft, moment, &*vm, Some(node), Severity::Warning, "Restarted", message, "node");
    }
    if new != *vm {
        put_vm(draft, new.clone());
        tell_phase(draft, moment, node, &vm, &new);
    }
    // While the cloud recovers nothing is deleted; the next session says it again.
    if vm.spec.deleting && seen.gone && !recovery::is_on(draft.view()) {
        vm_delete::guest_gone(draft, moment, &new);
    }
}

/// The reason for which QEMU pauses a guest whose disk failed, or whose pool is full, in agents' words.
const IO_ERROR: &str = "io-error";

/// Tells the story of a VM by its phases.
fn tell_phase(draft: &mut Draft, moment: &mut Moment, node: NodeId, old: &Vm, new: &Vm) {
    let Some(phase) = draft.view().vms.get(new.id()).map(|row| row.status.phase) else { return };
    if phase == old.status.phase {
        return;
    }
    let seen = new.status.seen.as_ref();
    let starved = seen.is_some_and(|seen| seen.pause_reason == IO_ERROR);
    // The ends of a move stop and hold the guest in its course, which the move itself tells.
    if new.status.moving.is_some() && matches!(phase, VmPhase::Paused | VmPhase::Stopping) && !starved {
        return;
    }
    let (severity, reason, message) = match phase {
        VmPhase::Starting => (Severity::Info, "Starting", "the node is starting it"),
        VmPhase::Running if old.status.phase == VmPhase::Paused => {
            (Severity::Info, "Resumed", "it runs again")
        }
        VmPhase::Running => (Severity::Info, "Running", "QEMU runs it"),
        VmPhase::Paused if starved => {
            (Severity::Warning, "PausedByStorage", "QEMU has paused it because its storage failed")
        }
        VmPhase::Paused if seen.is_none_or(|seen| seen.pause_reason.is_empty()) => {
            (Severity::Info, "Paused", "frozen on demand")
        }
        VmPhase::Paused => (Severity::Warning, "Paused", "it stands still, and nobody has asked for it"),
        VmPhase::Stopping => (Severity::Info, "Stopping", "it has been asked to shut down"),
        VmPhase::Stopped => match seen.and_then(|seen| seen.exit) {
            Some(GuestExit::ByItself) => {
                (Severity::Info, "ShutDownByItself", "it shut itself down and stays off")
            }
            Some(GuestExit::Failed) => (Severity::Warning, "Died", "QEMU died"),
            Some(GuestExit::OnOrder) | None => (Severity::Info, "Stopped", "it is off"),
        },
        VmPhase::Failed => (Severity::Warning, "Failed", "it cannot run until its spec or the cause changes"),
        VmPhase::Pending | VmPhase::Scheduled | VmPhase::Deleting | VmPhase::Unknown => return,
    };
    node_event(draft, moment, new, Some(node), severity, reason, message, "node");
}

/// A node that holds an older incarnation has confirmed that it is gone.
fn confirm_stale(draft: &mut Draft, moment: &mut Moment, node: NodeId, seen: &VmSeen) {
    if !seen.gone {
        return;
    }
    let mut assignment = draft.view().assignment(node);
    if assignment.vms.get(&seen.vm).is_some_and(|entry| entry.intent == Intent::Stale) {
        assignment.vms.remove(&seen.vm);
        draft.put(assignment);
        move_step::cleared(draft, moment, node, seen);
    }
}

/// Takes what is said of a file that is not the volume itself; says whether it is none.
fn take_copy(draft: &mut Draft, node: NodeId, seen: &VolumeSeen) -> bool {
    let hold = draft
        .view()
        .assignments
        .get(node)
        .and_then(|row| row.volumes.get(&seen.volume))
        .map(|entry| entry.hold);
    match hold {
        None | Some(Hold::Own) => false,
        Some(Hold::Leaving) if seen.state == FileState::Deleted => {
            let mut assignment = draft.view().assignment(node);
            assignment.volumes.remove(&seen.volume);
            draft.put(assignment);
            true
        }
        Some(Hold::Arriving | Hold::Leaving) => true,
    }
}

fn take_volume(draft: &mut Draft, moment: &mut Moment, node: NodeId, seen: &VolumeSeen) {
    if take_copy(draft, node, seen) {
        return;
    }
    let Some(row) = draft.view().volumes.get(seen.volume) else { return };
    let volume = row.value.clone();
    // A file of a local pool on another node is not this volume's.
    if volume.status.node.is_some_and(|there| there != node) {
        return;
    }
    let mut new = (*volume).clone();
    let status = &mut new.status;
    let (kind, generation) = ("File", volume.meta.generation);
    let problem = seen.problem.as_ref();
    let text = |default: &str| problem.map_or_else(|| default.to_owned(), |p| p.message.clone());
    match seen.state {
        FileState::Deleted if recovery::is_on(draft.view()) => return,
        FileState::Deleted => return vm_delete::volume_gone(draft, moment, seen.volume),
        FileState::Making => {
            if !status.made {
                status.phase = VolumePhase::Creating;
            }
            if let Some(problem) = problem {
                let (no, reason) = (ConditionStatus::False, problem.reason.as_str());
                status.conditions.set(kind, no, reason, &problem.message, generation, moment.now);
            }
        }
        FileState::Made => {
            status.made = true;
            status.size_mib = seen.size_mib;
            if status.used_mib.abs_diff(seen.used_mib) >= 64 {
                status.used_mib = seen.used_mib;
            }
            let grown = seen.size_mib >= volume.spec.size_mib;
            status.phase = if grown { VolumePhase::Available } else { VolumePhase::Growing };
            if grown {
                status.observed_generation = generation;
            }
            match problem {
                None => {
                    status.conditions.set(kind, ConditionStatus::True, "Made", "", generation, moment.now)
                }
                Some(problem) => {
                    let (no, reason) = (ConditionStatus::False, problem.reason.as_str());
                    status.conditions.set(kind, no, reason, &problem.message, generation, moment.now)
                }
            };
        }
        FileState::Missing => {
            // Whoever says so knows that it was made, which may be the first that is heard of it.
            status.made = true;
            status.phase = VolumePhase::Failed;
            let message = text("its file has vanished; it is not made again, because its data would be lost");
            status.conditions.set(kind, ConditionStatus::False, "Missing", &message, generation, moment.now);
        }
        FileState::Failed => {
            status.phase = VolumePhase::Failed;
            let reason = problem.map_or("Failed", |p| p.reason.as_str());
            let message = text("its file could not be made");
            status.conditions.set(kind, ConditionStatus::False, reason, &message, generation, moment.now);
        }
    }
    if volume.spec.deleting {
        new.status.phase = VolumePhase::Deleting;
    }
    if new == *volume {
        return;
    }
    let failed = new.status.phase == VolumePhase::Failed && volume.status.phase != VolumePhase::Failed;
    if failed && let Some(condition) = new.status.conditions.get(kind).cloned() {
        let (reason, message) = (condition.reason.as_str(), condition.message.clone());
        node_event(draft, moment, &new, Some(node), Severity::Warning, reason, message, "node");
    }
    draft.put(new);
}
