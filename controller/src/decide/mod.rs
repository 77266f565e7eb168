//! Decisions: pure functions of one draft of the future, each small enough to be one part of one transaction.
//!
//! Their invariant: given the same draft, moment and arguments they draft the same. What the API and the loops
//! want to change they change here, so that what belongs together (a VM, its usage, its addresses, its place)
//! changes together. Deliberately absent: I/O, clocks and waiting.

pub mod brake;
pub mod drain;
pub mod evacuate;
pub mod fence;
pub mod hand_over;
pub mod move_forecast;
pub mod move_start;
pub mod move_step;
pub mod node;
pub mod place;
pub mod quota;
pub mod recovery;
pub mod report;
pub mod rescue;
pub mod restore;
pub mod vm_create;
pub mod vm_delete;
pub mod vm_power;
pub mod waiting;
pub mod went_back;

#[cfg(test)]
mod move_tests;
#[cfg(test)]
mod quota_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt::Display;

use tamdao_model::event::{Event, Severity};
use tamdao_model::node::NodePhase;
use tamdao_model::vm::{self, Vm};
use tamdao_model::{NodeId, Resource};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use crate::admission::Moment;

/// Drafts an event about a resource.
pub fn event(
    draft: &mut Draft,
    moment: &mut Moment,
    subject: &impl Resource,
    severity: Severity,
    reason: &str,
    message: impl Into<String>,
    actor: impl Display,
) {
    node_event(draft, moment, subject, None, severity, reason, message, actor);
}

/// Drafts an event about a resource that concerns a node.
#[expect(
    clippy::too_many_arguments,
    reason = "an event has that many parts, and each is named where it is called"
)]
pub fn node_event(
    draft: &mut Draft,
    moment: &mut Moment,
    subject: &impl Resource,
    node: Option<NodeId>,
    severity: Severity,
    reason: &str,
    message: impl Into<String>,
    actor: impl Display,
) {
    draft.put(happened(moment, subject, node, severity, reason, message, actor));
}

/// An event that is not drafted yet.
pub fn happened(
    moment: &mut Moment,
    subject: &impl Resource,
    node: Option<NodeId>,
    severity: Severity,
    reason: &str,
    message: impl Into<String>,
    actor: impl Display,
) -> Event {
    Event {
        id: moment.id(),
        time: moment.now,
        severity,
        reason: reason.into(),
        message: message.into(),
        kind: subject.resource_kind(),
        agency: subject.scope().agency(),
        subject: subject.meta().id,
        name: subject.meta().name.clone(),
        node,
        actor: actor.to_string(),
        decision: None,
    }
}

/// Whether a node's agent is heard, as recorded.
pub fn is_reachable(view: &View, node: Option<NodeId>) -> bool {
    let phase = node.and_then(|node| view.nodes.get(node)).map(|node| node.status.phase);
    matches!(phase, Some(NodePhase::Ready | NodePhase::NotReady))
}

/// Gives a VM that runs nowhere an incarnation above all that any node may know, where it is. The VM itself is the
/// caller's to write.
fn anew(draft: &mut Draft, vm: &mut Vm) {
    let Some(node) = vm.status.node else { return };
    vm.status.incarnation = vm.next_incarnation();
    vm.status.incarnation_given = vm.status.incarnation_given.max(vm.status.incarnation);
    vm.status.seen = None;
    let mut assignment = draft.view().assignment(node);
    if let Some(entry) = assignment.vms.get_mut(&vm.id()) {
        entry.incarnation = vm.status.incarnation;
        draft.put(assignment);
    }
}

/// Writes a VM with its phase derived anew.
pub fn put_vm(draft: &mut Draft, mut vm: Vm) {
    vm.status.phase = vm::phase(&vm, is_reachable(draft.view(), vm.status.node));
    draft.put(vm);
}

/// The same for one that has another name or owner than before.
fn put_renamed_vm(draft: &mut Draft, mut vm: Vm) {
    vm.status.phase = vm::phase(&vm, is_reachable(draft.view(), vm.status.node));
    draft.rename(vm);
}
