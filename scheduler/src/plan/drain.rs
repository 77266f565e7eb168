//! Emptying nodes, or saying for each VM that remains why, and what would lift it. Deliberately absent: the cordon
//! itself, which the caller sets before it carries the plan out, and what happens to the nodes when they are empty.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::course::{Course, Held, closed};
use super::empty::{DEPTH, empty};
use super::rounds::rounds;
use super::{Budget, Plan, Terms};
use crate::explain::{Fix, explain};
use crate::place::{Rejection, place};
use crate::shape::VmShape;
use crate::survive::Survival;
use crate::view::View;

/// What a drain comes to. The nodes are empty at the end of the plan if `stuck` is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    pub plan: Plan,
    /// VMs that remain, in the order of nodes and ids.
    pub stuck: Vec<Blocker>,
    /// Guarded losses that could be borne before and cannot at the end, with what would be left out.
    pub unborne: Vec<Survival>,
}

impl Drain {
    /// Whether all is as it was asked for.
    pub fn is_done(&self) -> bool {
        self.stuck.is_empty() && self.unborne.is_empty()
    }
}

/// Why one VM remains where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    pub vm: VmId,
    pub name: Arc<str>,
    pub node: NodeId,
    pub cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It may not be moved.
    Held(Held),
    /// No node takes it, by the cluster at the end of the plan; with what would help, least effort first. Empty
    /// counts mean that it has a place alone, but not before the others have moved.
    NoPlace { rejection: Rejection, fixes: Vec<Fix> },
    /// The budget ended before a place was found.
    BudgetSpent,
}

/// Plans to empty the nodes. They take nothing meanwhile, cordoned or not; unknown ones are passed over.
pub fn drain(view: &View, nodes: &BTreeSet<NodeId>, terms: &Terms, budget: &mut Budget) -> Drain {
    let begin = Course { view: closed(view, nodes), ..Course::new(view, terms) };
    let end = empty(&begin, nodes, DEPTH, budget);
    let stuck = stuck(&end, nodes, budget);
    let unborne = end.newly_unborne();
    Drain { plan: rounds(view, end.moves, &terms.limits), stuck, unborne }
}

/// What remains on the nodes, and why.
fn stuck(end: &Course, nodes: &BTreeSet<NodeId>, budget: &Budget) -> Vec<Blocker> {
    let mut stuck = Vec::new();
    for node in nodes {
        for vm in end.view.vms_on(*node) {
            let cause = match end.way(vm.id) {
                Err(held) => Cause::Held(held),
                Ok(_) if budget.is_spent() => Cause::BudgetSpent,
                Ok(_) => no_place(&end.view, vm, nodes),
            };
            stuck.push(Blocker { vm: vm.id, name: vm.name.clone(), node: *node, cause });
        }
    }
    stuck
}

fn no_place(view: &View, vm: &VmShape, nodes: &BTreeSet<NodeId>) -> Cause {
    // To open the nodes again is no help, so they are not asked; what stands on them counts no more.
    let mut rest = view.clone();
    for node in nodes.iter().filter(|node| vm.pin != Some(**node)) {
        rest.remove_node(*node);
    }
    let mut explanation = explain(&rest, vm);
    explanation.fixes.retain(|fix| fix.node.as_ref().is_none_or(|(node, _)| !nodes.contains(node)));
    let rejection = match place(view, vm) {
        Ok(_) => Rejection::default(),
        // With the closed nodes' own reason left out, if what remains says enough.
        Err(_) if !explanation.fixes.is_empty() || rest.node_count() == 0 => explanation.histogram,
        Err(rejection) => rejection,
    };
    Cause::NoPlace { rejection, fixes: explanation.fixes }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(Held::OpenMove { nodes }) => {
                write!(f, "it holds places on {} nodes; its move must end first", nodes.len())
            }
            Self::Held(Held::Still) => f.write_str("it must stay where it is"),
            Self::Held(Held::OnlyStopped) => f.write_str("it can only move while it is stopped"),
            Self::BudgetSpent => f.write_str("no place was found within the budget"),
            Self::NoPlace { rejection, fixes } => {
                write!(f, "{}", rejection.summary(true))?;
                fixes.first().map_or(Ok(()), |fix| write!(f, "; would help: {fix}"))
            }
        }
    }
}
