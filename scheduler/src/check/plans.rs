//! The judge of kept plans: what decisions have touched of the plans for guarded losses is judged before the decisions
//! are committed, by the sums of [`check`](super::check). Deliberately absent: plans that no decision came near to,
//! and who has no restart; the guarantee tells of those itself.

use std::collections::BTreeSet;

use tamdao_model::{NodeId, VmId};

use super::standing::Ground;
use super::{Breach, Step, check_on};
use crate::shape::NodeShape;
use crate::survive::Loss;
use crate::survive::guarantee::Guarantee;

/// What is wrong with a kept plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("after the loss of {loss}, {breach}")]
    Breach { loss: Loss, breach: Breach },
    #[error("vm {vm} is neither planned for nor left out after the loss of {loss}")]
    Forgotten { loss: Loss, vm: VmId },
}

/// Judges the plans after these steps, as far as they may have come to be wrong since `before`.
///
/// # Errors
/// Everything that is wrong.
pub fn check_plans(before: &Guarantee, after: &Guarantee, steps: &[Step]) -> Result<(), Vec<Fault>> {
    let view = after.view();
    let mut faults = Vec::new();
    for (vm, node) in steps.iter().filter_map(gained) {
        let is_alone = view.homes(vm).all(|home| home == node);
        let protected = view.vms_on(node).iter().any(|held| held.id == vm && held.protected);
        for loss in view.node(node).filter(|_| is_alone && protected).into_iter().flat_map(losses) {
            if after.answers_for(&loss, vm) == Some(false) {
                faults.push(Fault::Forgotten { loss, vm });
            }
        }
    }
    let gained: Vec<(VmId, NodeId)> = steps.iter().filter_map(gained).collect();
    let mut ground = Ground::new(view);
    for (loss, restarts) in after.touched(before, &gained) {
        let breaches = check_on(&mut ground, &|node| takes(&loss, node), &restarts).err().unwrap_or_default();
        let fault = |breach| Fault::Breach { loss: (*loss).clone(), breach };
        faults.extend(breaches.into_iter().map(fault));
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// Who comes to which node.
fn gained(step: &Step) -> Option<(VmId, NodeId)> {
    match step {
        Step::Assign { vm, node, .. } => Some((vm.id, *node)),
        Step::Move { vm, to, .. } => Some((*vm, *to)),
        Step::Release { .. } => None,
    }
}

/// Whether a loss takes a node: the node itself, or the only value that it has of the key.
fn takes(loss: &Loss, node: &NodeShape) -> bool {
    match loss {
        Loss::Node(id) => node.id == *id,
        Loss::Domain { key, value } => {
            let values = node.domains.get(key);
            values.is_some_and(|values| values.len() == 1 && values.contains(value))
        }
    }
}

/// All losses that take the node, guarded or not.
fn losses(node: &NodeShape) -> impl Iterator<Item = Loss> {
    let single = node.domains.iter().filter(|(_, values)| values.len() == 1);
    let of = |(key, values): (&String, &BTreeSet<String>)| {
        let value = values.first()?.clone();
        Some(Loss::Domain { key: key.clone(), value })
    };
    [Loss::Node(node.id)].into_iter().chain(single.filter_map(of))
}
