//! What a loss would do: whether all protected VMs of what is lost can be placed on what remains, at the same time
//! and by every rule. The answer is constructive: the plan that would be carried out is the proof, and where there
//! is none, the VMs that are left out with the reasons. The plan is greedy (highest priority first, then the
//! largest), so "does not survive" means that this plan fails, not that none exists. Deliberately absent: fencing
//! and the brake, which are the controller's; and moves of VMs that are not lost.

mod carry;
mod facts;
pub mod guarantee;
mod lack;
mod lost;
mod proof;
mod reserve;
mod restarts;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

pub use lack::Lack;

use crate::place::{Placement, Rejection, place_each};
use crate::shape::VmShape;
use crate::view::View;

/// What may be lost at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    Node(NodeId),
    /// One value of a failure-domain key: all nodes that have no other value of it.
    Domain {
        key: String,
        value: String,
    },
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survival {
    pub loss: Loss,
    pub lost: BTreeSet<NodeId>,
    /// Where each protected VM would be restarted, in the order of restarts.
    pub plan: Vec<Placement>,
    /// Protected VMs without a place.
    pub left_out: Vec<(VmId, Rejection)>,
    /// VMs that are lost because they are not protected.
    pub unprotected: Vec<VmId>,
}

impl Survival {
    pub fn is_guaranteed(&self) -> bool {
        self.left_out.is_empty()
    }
}

/// The answer for one loss.
pub fn survive(view: &View, loss: Loss) -> Survival {
    lose(&mut view.clone(), loss)
}

/// The same, with the view left as it would be after it: without what is lost, and with the restarts.
pub fn lose(rest: &mut View, loss: Loss) -> Survival {
    let lost = nodes_of(rest, &loss);
    let mut guests: Vec<Arc<VmShape>> =
        lost.iter().filter_map(|node| rest.remove_node(*node)).flatten().collect();
    guests.sort_by_key(|vm| vm.id);
    guests.dedup_by_key(|vm| vm.id);
    // A VM that also stands on a node that remains (the other end of a move) needs no new place.
    guests.retain(|vm| rest.homes(vm.id).next().is_none());
    let (mut protected, unprotected): (Vec<_>, Vec<_>) = guests.into_iter().partition(|vm| vm.protected);
    protected.sort_by_key(restart_order);
    let answers = place_each(rest, &protected);
    let mut survival = Survival {
        loss,
        lost,
        plan: Vec::new(),
        left_out: Vec::new(),
        unprotected: unprotected.iter().map(|vm| vm.id).collect(),
    };
    for (vm, answer) in protected.iter().zip(answers) {
        match answer {
            Ok(placement) => survival.plan.push(placement),
            Err(rejection) => survival.left_out.push((vm.id, rejection)),
        }
    }
    survival
}

/// The answer for each node, in the order of ids.
pub fn survive_each_node(view: &View) -> Vec<Survival> {
    view.nodes().map(|node| survive(view, Loss::Node(node.id))).collect()
}

/// The answer for each value of a failure-domain key, in their order.
pub fn survive_each_value(view: &View, key: &str) -> Vec<Survival> {
    let values: BTreeSet<&String> = view.nodes().filter_map(|node| node.domains.get(key)).flatten().collect();
    let loss = |value: &String| Loss::Domain { key: key.to_owned(), value: value.clone() };
    values.into_iter().map(|value| survive(view, loss(value))).collect()
}

/// Highest priority first, then the largest, then by id.
fn restart_order(vm: &Arc<VmShape>) -> (Reverse<(u32, u64, u32)>, VmId) {
    (Reverse((vm.priority, vm.reservation.memory_mib, vm.reservation.vcpus)), vm.id)
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Domain { key, value } => write!(f, "{key} {value}"),
        }
    }
}

pub(crate) fn nodes_of(view: &View, loss: &Loss) -> BTreeSet<NodeId> {
    match loss {
        Loss::Node(node) => view.node(*node).map(|node| node.id).into_iter().collect(),
        Loss::Domain { key, value } => {
            let alone = BTreeSet::from([value.clone()]);
            view.nodes().filter(|node| node.domains.get(key) == Some(&alone)).map(|node| node.id).collect()
        }
    }
}
