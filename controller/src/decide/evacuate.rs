//! Evacuation: VMs of a fenced node get another one, under the next incarnation, each with the proof that lets it. One
//! that is being deleted gets it for the rest of its deletion.
//!
//! Invariants: a batch rewrites the lost node's record, so that it happens only while that is Fenced; the old incarnation
//! stays on the lost node's assignment as stale until its agent has confirmed that it is gone; the new node's room is
//! checked by plain sums. Deliberately absent: choosing nodes, which the engine does.

use tamdao_model::assignment::{Intent, Reservation, VmEntry};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::event::Severity;
use tamdao_model::fence::FenceProof;
use tamdao_model::limits;
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::{Evacuation, Vm};
use tamdao_model::{NodeId, VmId};
use tamdao_seams::{Mutant, has};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::place::{has_room, on_cells};
use super::{fence, node_event, put_vm};
use crate::admission::Moment;

/// VMs that one transaction moves at most.
pub const BATCH: usize = 30;

/// The proof that a VM does not run on its node, which is Fenced; none if it has to wait.
///
/// While a move of it is open a VM may be on either node, so it waits until the move is over. (The target's report, or
/// proofs of both nodes, would do too; this is the place to ask for them.)
pub fn proof<'a>(view: &View, lost: &'a Node, vm: &Vm) -> Option<&'a FenceProof> {
    let lost_again = matches!(lost.status.phase, NodePhase::Unreachable | NodePhase::Fencing);
    let fenced = lost.status.phase == NodePhase::Fenced || (lost_again && has(Mutant::ProofUsedTwice));
    let lets_go = fenced && vm.status.moving.is_none();
    let fence = lost.status.fence.as_ref().filter(|_| lets_go)?;
    fence.covers(vm, &fence::shared_pools(view, vm))
}

/// The VMs of all fenced nodes that may be restarted elsewhere now: first what is wanted to run, by priority, then the
/// largest.
pub fn due(view: &View) -> Vec<(NodeId, VmId)> {
    let mut due = Vec::new();
    let fenced = |phase| phase == NodePhase::Fenced || has(Mutant::ProofUsedTwice);
    for node in view.nodes.iter().filter(|node| fenced(node.status.phase)) {
        let vms = fence::taken_over(view, node.id()).filter(|vm| proof(view, node, vm).is_some());
        due.extend(vms.map(|vm| {
            let size = std::cmp::Reverse((vm.spec.priority, vm.spec.memory_mib, vm.spec.vcpus));
            ((!vm.wants_on(), size, vm.id()), node.id())
        }));
    }
    due.sort();
    due.into_iter().map(|((_, _, vm), node)| (node, vm)).collect()
}

/// Where a VM goes, and what it holds there.
#[derive(Debug, Clone)]
pub struct Place {
    pub vm: VmId,
    pub node: NodeId,
    pub reservation: Reservation,
    /// NUMA cells, by libvirt's numbers.
    pub cells: Vec<u32>,
}

/// Restarts VMs of one lost node elsewhere. What was overtaken since it was chosen is left as it is. Says how many went.
pub fn evacuate(draft: &mut Draft, moment: &mut Moment, lost: NodeId, places: &[Place]) -> usize {
    let Some(row) = draft.view().nodes.get(lost) else { return 0 };
    let mut node = (*row.value).clone();
    let gone: usize =
        places.iter().map(|place| usize::from(evacuate_one(draft, moment, &node, place).is_some())).sum();
    if gone > 0
        && let Some(fence) = &mut node.status.fence
    {
        fence.evacuated += gone as u64;
        draft.put(node);
    }
    gone
}

fn evacuate_one(draft: &mut Draft, moment: &mut Moment, lost: &Node, place: &Place) -> Option<()> {
    let view = draft.view();
    let (id, to, reservation) = (place.vm, place.node, place.reservation);
    let mut vm = (*view.vms.get(id)?.value).clone();
    let host = view.nodes.get(to)?.value.clone();
    if vm.status.node != Some(lost.id()) || fence::stays(view, &vm).is_some() {
        return None;
    }
    let proof = proof(view, lost, &vm)?.clone();
    let mut target = view.assignment(to);
    let free = host.status.phase == NodePhase::Ready && !host.spec.cordoned;
    if !free || !has_room(&host, &target, reservation, &place.cells) {
        return None;
    }
    let mut left = view.assignment(lost.id());
    left.vms.insert(id, VmEntry::stale(vm.status.incarnation));
    vm.status.node = Some(to);
    vm.status.incarnation = vm.next_incarnation();
    vm.status.seen = None;
    let cells = place.cells.clone();
    let (intent, what) = match vm.spec.deleting {
        true => (Intent::Stop, "its deletion goes on"),
        false => (Intent::Wanted, "restarted"),
    };
    let entry = VmEntry { incarnation: vm.status.incarnation, intent, reservation, cells };
    target.vms.insert(id, entry);
    let message = format!(
        "its node {} is lost; {what} on {}{} as incarnation {}. {}: {} (observed by {})",
        lost.meta.name,
        host.meta.name,
        on_cells(&place.cells),
        vm.status.incarnation,
        proof.evidence.word(),
        proof.evidence,
        proof.observed_by
    );
    let generation = vm.meta.generation;
    let placed = format!("placed on {} after the loss of {}", host.meta.name, lost.meta.name);
    vm.status.conditions.set("Placed", ConditionStatus::True, "Evacuated", &placed, generation, moment.now);
    vm.status.conditions.clear(CONDITION);
    let past = &mut vm.status.evacuations;
    if past.len() >= limits::EVACUATIONS_KEPT {
        past.remove(0);
    }
    past.push(Evacuation {
        time: moment.now,
        from: lost.meta.name.clone(),
        to: host.meta.name.clone(),
        incarnation: vm.status.incarnation,
        proof,
    });
    draft.put(left);
    draft.put(target);
    node_event(draft, moment, &vm, Some(to), Severity::Warning, "Evacuated", message, "evacuator");
    put_vm(draft, vm);
    Some(())
}

/// The type of the condition that says why a VM of a lost node is not restarted yet.
pub const CONDITION: &str = "Evacuated";

/// Whether this reason has not been told of the VM.
pub fn is_news(vm: &Vm, reason: &str, message: &str) -> bool {
    let told = vm.status.conditions.get(CONDITION);
    told.is_none_or(|told| told.reason != reason || told.message != message)
}

/// Records why a VM of a fenced node is not restarted elsewhere yet. Says whether that is news.
pub fn explain_waiting(
    draft: &mut Draft,
    moment: &mut Moment,
    id: VmId,
    reason: &str,
    message: &str,
) -> bool {
    let Some(row) = draft.view().vms.get(id) else { return false };
    let mut vm = (*row.value).clone();
    let (no, generation) = (ConditionStatus::False, vm.meta.generation);
    let news = vm.status.conditions.set(CONDITION, no, reason, message, generation, moment.now);
    if news {
        let node = vm.status.node;
        node_event(draft, moment, &vm, node, Severity::Warning, reason, message, "evacuator");
        put_vm(draft, vm);
    }
    news
}
