//! Drains: nodes are emptied for maintenance, and get back what left them.
//!
//! Invariants: what a drain is stands in the node's record, and what it did to a VM in the VM's, so any leader goes on
//! with it; Draining and Returning have a deadline, after which they are given up; a node is Drained only while its agent
//! is heard and has confirmed that nothing runs, and that no disk is left of what has moved: a node that is switched off or
//! replaced then owes nothing. Deliberately absent: where VMs go, which the drainer's planner says.

use tamdao_model::assignment::{Assignment, Hold, Intent};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::event::Severity;
use tamdao_model::moves::{Cause, MoveEvent};
use tamdao_model::node::{Drain, DrainPhase, Node, NodePhase};
use tamdao_model::vm::{Drained, GuestState, MaintenancePolicy, Power, StopMode, Vm, VmPhase};
use tamdao_model::{Kind, MoveId, NodeId, TimeMs, VmId};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::move_start::{self, Wish};
use super::{event, move_step, node_event, put_vm};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Who asks for the moves of drains.
pub const DRAINER: &str = "drainer";
/// The condition of a node that says how far its drain is.
pub const CONDITION: &str = "Drained";
/// How long a return may take, ms.
const RETURN_MS: u64 = 24 * 60 * 60 * 1_000;

/// What is asked of a drain.
#[derive(Debug, Clone)]
pub struct Ask {
    pub by: String,
    pub reason: String,
    pub allow_cold: bool,
    pub unguarded: bool,
    pub time_ms: u64,
}

/// Cordons a node and has its VMs moved away. One that is drained already stays so; one that is being drained gets the
/// new terms.
///
/// # Errors
/// When the node is not known.
pub fn begin(draft: &mut Draft, moment: &mut Moment, id: NodeId, ask: &Ask) -> Result<(), Refusal> {
    let mut node = known(draft.view(), id)?;
    if node.status.drain.as_ref().is_some_and(|drain| drain.phase == DrainPhase::Drained) {
        return Ok(());
    }
    if node.status.drain.as_ref().is_some_and(|drain| drain.phase == DrainPhase::Returning) {
        give_up_moves(draft, moment, id, &ask.by);
    }
    cordon(&mut node, true);
    node.status.drain = Some(Drain {
        phase: DrainPhase::Draining,
        since: moment.now,
        deadline: Some(moment.now.plus_ms(ask.time_ms)),
        asked_by: ask.by.clone(),
        reason: ask.reason.clone(),
        allow_cold: ask.allow_cold,
        unguarded: ask.unguarded,
        left: u32::try_from(draft.view().assignment(id).vms.len()).unwrap_or(u32::MAX),
    });
    set(&mut node, "Draining", "its VMs are moved away", moment.now);
    event(draft, moment, &node, Severity::Info, "DrainBegun", "its VMs are moved away", &ask.by);
    draft.put(node);
    Ok(())
}

/// Uncordons a node and has what its drain did made good.
///
/// # Errors
/// When the node is not known.
pub fn begin_return(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    by: &str,
    unguarded: bool,
) -> Result<(), Refusal> {
    let mut node = known(draft.view(), id)?;
    give_up_moves(draft, moment, id, by);
    let reason = node.status.drain.take().map(|drain| drain.reason).unwrap_or_default();
    cordon(&mut node, false);
    let drain = Drain {
        phase: DrainPhase::Returning,
        since: moment.now,
        deadline: Some(moment.now.plus_ms(RETURN_MS)),
        asked_by: by.to_owned(),
        reason,
        allow_cold: false,
        unguarded,
        left: away(draft.view(), id),
    };
    node.status.drain = Some(drain);
    set(&mut node, "Returning", "what was moved away comes back", moment.now);
    event(draft, moment, &node, Severity::Info, "ReturnBegun", "what was moved away comes back", by);
    draft.put(node);
    Ok(())
}

/// Ends a drain or return where it is: its open moves are given up. The node stays as cordoned as it is.
///
/// # Errors
/// When there is nothing to end.
pub fn cancel(draft: &mut Draft, moment: &mut Moment, id: NodeId, by: &str) -> Result<(), Refusal> {
    let node = known(draft.view(), id)?;
    let name = node.meta.name.as_str();
    match node.status.drain.as_ref().map(|drain| drain.phase) {
        None => {
            let message = format!("node {name:?} is neither being drained nor returning");
            return Err(Refusal::precondition("NoDrain", message));
        }
        Some(DrainPhase::Drained) => {
            return Err(Refusal::precondition("Drained", format!("node {name:?} is drained already"))
                .hint(format!("`tamdao node return {name}` brings its VMs back, `uncordon` leaves them")));
        }
        Some(DrainPhase::Draining | DrainPhase::Returning) => {}
    }
    end(draft, moment, id, Severity::Info, "DrainCancelled", "given up where it was", by);
    Ok(())
}

/// Ends the drain of a node, whatever it is.
pub fn end(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    severity: Severity,
    reason: &str,
    message: &str,
    by: &str,
) {
    let Ok(mut node) = known(draft.view(), id) else { return };
    if node.status.drain.take().is_none() {
        return;
    }
    give_up_moves(draft, moment, id, by);
    node.status.conditions.clear(CONDITION);
    event(draft, moment, &node, severity, reason, message, by);
    draft.put(node);
}

/// Gives up the moves that were opened for the drain or the return of a node; a guest that has left is let go.
fn give_up_moves(draft: &mut Draft, moment: &mut Moment, id: NodeId, by: &str) {
    let view = draft.view();
    let Some(drain) = view.nodes.get(id).and_then(|row| row.status.drain.as_ref()) else { return };
    let returns = drain.phase == DrainPhase::Returning;
    let open = view.moves.iter().filter(|row| row.status.phase.is_open() && row.spec.asked_by == DRAINER);
    let of = open.filter(|row| if returns { row.spec.target == id } else { row.spec.source == id });
    let moves: Vec<MoveId> = of.map(|row| row.id()).collect();
    for one in moves {
        let message = format!("{by} gave up what it was for");
        let cause = Cause { reason: "Cancelled".into(), message, cancelled: true };
        move_step::happens(draft, moment, one, MoveEvent::GiveUp, Some(cause));
    }
}

/// Opens a move for a drain or return, and marks the VM if it leaves a node that is drained.
///
/// # Errors
/// When it is overtaken by now; the next look sees why.
pub fn open(draft: &mut Draft, moment: &mut Moment, wish: &Wish, from: NodeId) -> Result<(), Refusal> {
    move_start::start(draft, moment, wish, DRAINER)?;
    if phase(draft.view(), from) == Some(DrainPhase::Draining)
        && let Some(row) = draft.view().vms.get(wish.vm)
        && row.status.drained.is_none()
    {
        let mut vm = (*row.value).clone();
        vm.status.drained = Some(Drained { from, shut_down: false });
        put_vm(draft, vm);
    }
    Ok(())
}

/// Shuts a VM down where it is, because its policy says so.
pub fn shut_down(draft: &mut Draft, moment: &mut Moment, id: VmId) {
    let Some(row) = draft.view().vms.get(id) else { return };
    let mut vm = (*row.value).clone();
    let Some(from) = vm.status.node.filter(|node| phase(draft.view(), *node) == Some(DrainPhase::Draining))
    else {
        return;
    };
    if !vm.wants_on() || vm.status.moving.is_some() || vm.spec.maintenance != MaintenancePolicy::ShutDown {
        return;
    }
    (vm.spec.power, vm.spec.stop) = (Power::Off, StopMode::default());
    vm.meta.generation += 1;
    vm.status.drained = Some(Drained { from, shut_down: true });
    let message = "shut down by its maintenance policy: its node is drained";
    node_event(draft, moment, &vm, Some(from), Severity::Info, "StopAsked", message, DRAINER);
    put_vm(draft, vm);
}

/// What is to be done about drains now, without any plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Its time is up.
    GiveUp(NodeId),
    /// Somebody has uncordoned a node that is drained, or cordoned one that returns.
    Overruled(NodeId),
    /// Nothing runs there, and nothing is left of what did.
    Drained(NodeId),
    /// Something runs there again.
    Anew(NodeId),
    /// Its node is in use again: the VM starts, if a drain has shut it down and nobody has started it since.
    Start(VmId),
    /// It is home, or will not be brought back.
    Forget(VmId),
}

/// What is due, by time and by what the nodes say.
pub fn due(view: &View, now: TimeMs) -> Vec<Due> {
    let mut due = Vec::new();
    for row in view.nodes.iter() {
        let Some(drain) = &row.status.drain else { continue };
        let id = row.id();
        match drain.phase {
            phase if row.spec.cordoned == (phase == DrainPhase::Returning) => due.push(Due::Overruled(id)),
            _ if drain.deadline.is_some_and(|deadline| deadline < now) => due.push(Due::GiveUp(id)),
            DrainPhase::Draining if is_empty(view, row) => due.push(Due::Drained(id)),
            DrainPhase::Drained if runs(view, row) => due.push(Due::Anew(id)),
            DrainPhase::Draining | DrainPhase::Drained | DrainPhase::Returning => {}
        }
    }
    for vm in view.vms.iter() {
        let Some(drained) = vm.status.drained else { continue };
        let from = view.nodes.get(drained.from);
        let phase = from.and_then(|node| node.status.drain.as_ref()).map(|drain| drain.phase);
        let emptied = matches!(phase, Some(DrainPhase::Draining | DrainPhase::Drained));
        let left_alone = from.is_none_or(|node| phase.is_none() && !node.spec.cordoned);
        let home = vm.status.node == Some(drained.from) && vm.status.moving.is_none();
        if drained.shut_down && !emptied {
            due.push(Due::Start(vm.id()));
        } else if !drained.shut_down && (left_alone || (home && phase != Some(DrainPhase::Draining))) {
            due.push(Due::Forget(vm.id()));
        }
    }
    due
}

/// Does what is due, if it still is.
pub fn settle(draft: &mut Draft, moment: &mut Moment, what: &Due) {
    match *what {
        Due::GiveUp(id) => {
            let away = away(draft.view(), id);
            let message = format!("its time was up; {away} VMs are on other nodes");
            end(draft, moment, id, Severity::Warning, "DrainGivenUp", &message, DRAINER);
        }
        Due::Overruled(id) => {
            let overruled = draft.view().nodes.get(id).is_some_and(|node| {
                let returns = phase(draft.view(), id) == Some(DrainPhase::Returning);
                node.spec.cordoned == returns
            });
            if overruled {
                let message = "its node was cordoned or uncordoned meanwhile";
                end(draft, moment, id, Severity::Info, "DrainCancelled", message, DRAINER);
            }
        }
        Due::Drained(id) => advance(draft, moment, id, DrainPhase::Drained),
        Due::Anew(id) => advance(draft, moment, id, DrainPhase::Draining),
        Due::Start(id) => start_again(draft, moment, id),
        Due::Forget(id) => {
            if let Some(row) = draft.view().vms.get(id) {
                let mut vm = (*row.value).clone();
                vm.status.drained = None;
                put_vm(draft, vm);
            }
        }
    }
}

fn advance(draft: &mut Draft, moment: &mut Moment, id: NodeId, to: DrainPhase) {
    let Ok(mut node) = known(draft.view(), id) else { return };
    let empty = is_empty(draft.view(), &node);
    let Some(drain) = node.status.drain.as_mut().filter(|drain| drain.phase != to) else { return };
    if (to == DrainPhase::Drained) != empty || drain.phase == DrainPhase::Returning {
        return;
    }
    drain.phase = to;
    match to {
        DrainPhase::Drained => {
            (drain.deadline, drain.left) = (None, 0);
            let message = "its agent has confirmed that nothing runs";
            let generation = node.meta.generation;
            let yes = ConditionStatus::True;
            node.status.conditions.set(CONDITION, yes, "Drained", message, generation, moment.now);
            event(draft, moment, &node, Severity::Info, "Drained", message, DRAINER);
        }
        DrainPhase::Draining | DrainPhase::Returning => {
            drain.deadline = Some(moment.now.plus_ms(RETURN_MS));
            let message = "something runs there again, and is moved away";
            set(&mut node, "Draining", message, moment.now);
            event(draft, moment, &node, Severity::Warning, "DrainBegun", message, DRAINER);
        }
    }
    draft.put(node);
}

fn start_again(draft: &mut Draft, moment: &mut Moment, id: VmId) {
    let Some(row) = draft.view().vms.get(id) else { return };
    let mut vm = (*row.value).clone();
    if vm.status.drained.take().is_none() {
        return;
    }
    if vm.spec.power == Power::Off && !vm.spec.deleting {
        vm.spec.power = Power::On;
        vm.meta.generation += 1;
        let message = "started again: its node is no longer drained";
        let node = vm.status.node;
        node_event(draft, moment, &vm, node, Severity::Info, "StartAsked", message, DRAINER);
    }
    put_vm(draft, vm);
}

/// All that could be brought back is back; `message` names what stays elsewhere.
pub fn finish_return(draft: &mut Draft, moment: &mut Moment, id: NodeId, message: &str) {
    if phase(draft.view(), id) == Some(DrainPhase::Returning) {
        end(draft, moment, id, Severity::Info, "Returned", message, DRAINER);
    }
}

/// Says how far a drain or return is. Writes only what is news.
pub fn tell(draft: &mut Draft, moment: &mut Moment, id: NodeId, left: u32, reason: &str, message: &str) {
    let Ok(mut node) = known(draft.view(), id) else { return };
    let Some(drain) = node.status.drain.as_mut().filter(|drain| drain.phase != DrainPhase::Drained) else {
        return;
    };
    let counted = std::mem::replace(&mut drain.left, left) != left;
    if set(&mut node, reason, message, moment.now) || counted {
        draft.put(node);
    }
}

fn set(node: &mut Node, reason: &str, message: &str, now: TimeMs) -> bool {
    let generation = node.meta.generation;
    node.status.conditions.set(CONDITION, ConditionStatus::False, reason, message, generation, now)
}

/// How many VMs a drain of the node has moved to others.
pub fn away(view: &View, id: NodeId) -> u32 {
    let away =
        |vm: &Vm| vm.status.drained.is_some_and(|drained| drained.from == id && vm.status.node != Some(id));
    u32::try_from(view.vms.iter().filter(|vm| away(vm)).count()).unwrap_or(u32::MAX)
}

/// How far the drain of a node is.
pub fn phase(view: &View, id: NodeId) -> Option<DrainPhase> {
    view.nodes.get(id)?.status.drain.as_ref().map(|drain| drain.phase)
}

/// Whether the node's agent, which is heard, has confirmed that nothing of ours runs there, nothing is on its way, and no
/// disk is left of what has gone.
fn is_empty(view: &View, node: &Node) -> bool {
    let assignment = view.assignment(node.id());
    node.status.phase == NodePhase::Ready
        && copies(&assignment) == 0
        && assignment.vms.iter().all(|(id, entry)| match entry.intent {
            Intent::Wanted | Intent::Stop => view.vms.get(*id).is_some_and(|vm| is_off(vm)),
            Intent::Stale | Intent::Incoming | Intent::Outgoing | Intent::Left => false,
        })
}

/// How many files a node has of disks that are, or will be, elsewhere.
pub fn copies(assignment: &Assignment) -> usize {
    assignment.volumes.values().filter(|entry| entry.hold != Hold::Own).count()
}

/// Whether something of ours certainly runs there.
fn runs(view: &View, node: &Node) -> bool {
    let on = |vm: &Vm| vm.status.node == Some(node.id()) && !is_off(vm);
    node.status.phase == NodePhase::Ready
        && view.assignment(node.id()).vms.keys().any(|id| view.vms.get(*id).is_some_and(|vm| on(vm)))
}

/// Whether its node has said that it is off, and nobody wants it otherwise.
pub fn is_off(vm: &Vm) -> bool {
    let still = |state| matches!(state, GuestState::Absent | GuestState::Stopped);
    vm.status.seen.as_ref().is_some_and(|seen| still(seen.state))
        && matches!(vm.status.phase, VmPhase::Stopped | VmPhase::Failed)
}

fn cordon(node: &mut Node, cordoned: bool) {
    if node.spec.cordoned != cordoned {
        node.spec.cordoned = cordoned;
        node.meta.generation += 1;
    }
}

fn known(view: &View, id: NodeId) -> Result<Node, Refusal> {
    let row = view.nodes.get(id).ok_or_else(|| Refusal::not_found(Kind::Node, &id.to_string()))?;
    Ok((*row.value).clone())
}
