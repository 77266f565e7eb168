//! What becomes of a node's record: a session that opens, an inventory, silence, and the phases of its VMs.

use tamdao_model::assignment::Intent;
use tamdao_model::condition::ConditionStatus;
use tamdao_model::event::Severity;
use tamdao_model::fence::{self, Goodbye, NodeEvent};
use tamdao_model::node::{Inventory, LOSSES, LOSSES_MS, Node, NodePhase};
use tamdao_model::vm;
use tamdao_model::{Kind, NodeId, SessionId, TimeMs, VmId};
use tamdao_seams::{Mutant, has};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use uuid::Uuid;

use super::{brake, event, is_reachable, move_step, put_vm, went_back};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Why a session is refused: the machine is another than the node's.
pub const CLONED: &str = "ClonedNode";
/// Why a session is refused: the node is heard at this moment, on another boot.
pub const SECOND: &str = "SecondSession";
/// Why a node that is heard and healthy takes nothing new: its link flaps.
const UNSTEADY: &str = "Unsteady";

/// What an agent says when it opens a session.
#[derive(Debug, Clone)]
pub struct Opening {
    pub session: SessionId,
    pub boot_id: String,
    pub address: String,
    pub host_uuid: Uuid,
    /// Where its agent listens for moves; 0 takes no part in them.
    pub moves_port: u16,
    /// Whether it carries the files of local disks.
    pub carries_files: bool,
}

/// Records a session before anything is sent on it: what is sent later rests on a state read after this.
///
/// # Errors
/// When the node is not known or another machine uses its identity; `Unavailable` while records that went back in time are
/// being readied.
pub fn open_session(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    opening: &Opening,
) -> Result<Node, Refusal> {
    if went_back::is_unready(draft.view()) {
        return Err(Refusal::unavailable("the records went back in time and are being readied"));
    }
    let row = draft.view().nodes.get(id).ok_or_else(|| Refusal::not_found(Kind::Node, &id.to_string()))?;
    let mut node = (*row.value).clone();
    if !node.status.host_uuid.is_nil() && node.status.host_uuid != opening.host_uuid {
        let message = format!(
            "node {} is known with host UUID {}, and {} speaks in its name",
            node.meta.name, node.status.host_uuid, opening.host_uuid
        );
        return Err(Refusal::precondition(CLONED, message)
            .hint("a machine was cloned with its certificate: remove the agent's data directory there and join it anew"));
    }
    if node.status.boot_id != opening.boot_id {
        if !node.status.boot_id.is_empty() {
            event(draft, moment, &node, Severity::Warning, "Rebooted", "the host has booted anew", "node");
        }
        node.status.boot_time = Some(moment.now);
    }
    let heard = fence::next(node.status.phase, NodeEvent::Heard);
    let phase = heard.map_err(|impossible| Refusal::internal(impossible.to_string()))?;
    if phase != node.status.phase {
        node.status.phase = phase;
        node.status.phase_time = moment.now;
        if phase == NodePhase::Returning {
            let message = "it is heard again and has first to give up what runs elsewhere by now";
            event(draft, moment, &node, Severity::Info, "Returning", message, "node");
        }
    }
    node.status.goodbye = None;
    node.status.session = Some(opening.session);
    node.status.boot_id.clone_from(&opening.boot_id);
    node.status.address.clone_from(&opening.address);
    node.status.host_uuid = opening.host_uuid;
    node.status.moves_port = opening.moves_port;
    node.status.carries_files = opening.carries_files;
    draft.put(node.clone());
    Ok(node)
}

/// Records what the node has.
pub fn take_inventory(draft: &mut Draft, id: NodeId, inventory: &Inventory) {
    let Some(row) = draft.view().nodes.get(id) else { return };
    // The clock's offset wanders; on its own it is not worth a commit.
    let mut same = row.status.inventory.clone();
    same.clock_offset_ms = inventory.clock_offset_ms;
    let drifted = row.status.inventory.clock_offset_ms.abs_diff(inventory.clock_offset_ms) > 500;
    if same != *inventory || drifted {
        let mut node = (*row.value).clone();
        node.status.inventory = inventory.clone();
        draft.put(node);
    }
}

/// The complete report of a node's last session has been taken: it is heard, and healthy or not. One that comes back from
/// being fenced is neither before it has confirmed that nothing which runs elsewhere by now is left on it.
///
/// One that fell silent again and again is healthy only `steady_ms` after the last time; 0 believes it at once.
pub fn set_health(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    session: SessionId,
    health: &str,
    steady_ms: u64,
) {
    let Some(row) = draft.view().nodes.get(id).filter(|row| row.status.session == Some(session)) else {
        return;
    };
    if row.status.phase == NodePhase::Returning {
        let assignment = draft.view().assignment(id);
        if assignment.vms.values().any(|entry| entry.intent == Intent::Stale) {
            return;
        }
        let message = "it has confirmed that nothing is left on it which runs elsewhere by now";
        advance(draft, moment, id, NodeEvent::Cleared, ConditionStatus::False, "Returned", message);
    }
    match health {
        "" if is_held(draft.view(), id, moment.now, steady_ms) => {
            let message = format!(
                "it fell silent {LOSSES} times within {} min; it takes VMs again when it has been heard for {} s without \
                 a break",
                LOSSES_MS / 60_000,
                steady_ms / 1_000
            );
            advance(draft, moment, id, NodeEvent::Unhealthy, ConditionStatus::False, UNSTEADY, &message);
        }
        "" => {
            let message = "the agent is heard and libvirt works";
            advance(draft, moment, id, NodeEvent::Healthy, ConditionStatus::True, "Healthy", message);
        }
        problem => {
            advance(draft, moment, id, NodeEvent::Unhealthy, ConditionStatus::False, "Unhealthy", problem);
        }
    }
}

/// Whether a node that is heard takes nothing new because its link flaps. Where many do it is the network, and holding
/// them all would only leave VMs without a place.
fn is_held(view: &View, id: NodeId, now: TimeMs, steady_ms: u64) -> bool {
    let unsteady = |node: &Node| node.status.is_unsteady(now, steady_ms);
    view.nodes.get(id).is_some_and(|row| unsteady(row))
        && brake::are_few(view.nodes.iter().filter(|row| unsteady(row)).count(), view.nodes.len())
}

/// Nodes that were held for their flapping links and have been heard for long enough since.
pub fn steady_again(view: &View, now: TimeMs, steady_ms: u64) -> Vec<NodeId> {
    let held = |node: &Node| {
        node.status.phase == NodePhase::NotReady
            && node.status.conditions.get("Ready").is_some_and(|ready| ready.reason == UNSTEADY)
    };
    let rows = view.nodes.iter().filter(|row| held(row) && !is_held(view, row.id(), now, steady_ms));
    rows.map(|row| row.id()).collect()
}

/// A node that was held for its flapping link takes VMs again.
pub fn release(draft: &mut Draft, moment: &mut Moment, id: NodeId, steady_ms: u64) {
    if steady_again(draft.view(), moment.now, steady_ms).contains(&id) {
        let message = "it has been heard for long enough without a break";
        advance(draft, moment, id, NodeEvent::Healthy, ConditionStatus::True, "Steady", message);
    }
}

/// Another machine spoke in this node's name and was refused.
pub fn tell_of_clone(draft: &mut Draft, moment: &mut Moment, id: NodeId, reason: &str, message: &str) {
    let Some(node) = draft.view().nodes.get(id).map(|row| row.value.clone()) else { return };
    event(draft, moment, &*node, Severity::Warning, reason, message, "controller");
}

/// The node's agent has been silent for too long. Its VMs are left alone until something is proven.
pub fn lose(draft: &mut Draft, moment: &mut Moment, id: NodeId, message: &str) {
    advance(draft, moment, id, NodeEvent::Lost, ConditionStatus::Unknown, "AgentSilent", message);
    if let Some(mut node) = draft.view().nodes.get(id).map(|row| (*row.value).clone()) {
        node.status.note_loss(moment.now);
        draft.put(node);
    }
    // One that was on its way back is Fenced again, by the proofs that it had.
    move_step::fenced(draft, moment, id);
}

/// The agent has said that it ends, that nothing runs and that no storage lease is held: the node is as good as off, and
/// nobody has to wait until its silence is long enough. Another session may have begun since; then it says nothing.
pub fn take_goodbye(draft: &mut Draft, moment: &mut Moment, id: NodeId, session: SessionId) {
    let row = draft.view().nodes.get(id).filter(|row| row.status.session == Some(session));
    let Some(mut node) = row.map(|row| (*row.value).clone()) else { return };
    node.status.goodbye = Some(Goodbye { session, time: moment.now });
    draft.put(node);
    let message = "its agent ended as planned, and nothing ran";
    advance(draft, moment, id, NodeEvent::Lost, ConditionStatus::False, "Goodbye", message);
}

fn advance(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    what: NodeEvent,
    status: ConditionStatus,
    reason: &str,
    message: &str,
) {
    let Some(row) = draft.view().nodes.get(id) else { return };
    let mut node = (*row.value).clone();
    let phase = match fence::next(node.status.phase, what) {
        Ok(phase) => phase,
        // A report that was on its way when the node was given up.
        Err(impossible) => return tracing::debug!(node = %id, error = %impossible, "too late"),
    };
    let news = node.status.conditions.set("Ready", status, reason, message, node.meta.generation, moment.now);
    if what == NodeEvent::Cleared && !has(Mutant::ProofUsedTwice) {
        node.status.fence = None;
    }
    let back = matches!(phase, NodePhase::Ready | NodePhase::NotReady);
    let told = back
        && [super::fence::CONDITION, super::fence::POWER]
            .map(|condition| node.status.conditions.clear(condition))
            .contains(&true);
    if node.status.phase != phase {
        node.status.phase = phase;
        node.status.phase_time = moment.now;
        let planned = phase == NodePhase::Ready || matches!(reason, "Goodbye" | "Returned");
        let severity = if planned { Severity::Info } else { Severity::Warning };
        event(draft, moment, &node, severity, reason, message, "controller");
        draft.put(node);
    } else if news || told {
        draft.put(node);
    }
}

/// VMs of a node whose recorded phase no longer follows from what is known, such as after the node fell silent.
pub fn stale_phases(view: &View, id: NodeId) -> Vec<VmId> {
    let reachable = is_reachable(view, Some(id));
    let on_node = view.assignments.get(id).into_iter().flat_map(|row| row.vms.keys());
    let rows = on_node.filter_map(|vm| view.vms.get(*vm)).filter(|row| row.status.node == Some(id));
    rows.filter(|row| vm::phase(row, reachable) != row.status.phase).map(|row| row.id()).collect()
}

/// Derives the phases of these VMs anew.
pub fn refresh_phases(draft: &mut Draft, vms: &[VmId]) {
    for id in vms {
        if let Some(row) = draft.view().vms.get(*id) {
            let vm = (*row.value).clone();
            put_vm(draft, vm);
        }
    }
}
