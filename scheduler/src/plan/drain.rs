//! Emptying nodes. VMs go where the score likes them best, the hardest first; what then has no place is tried
//! earlier, then gets room made for it by moving others, then moves with its whole group. What still remains is
//! said with what would lift it. Deliberately absent: the cordon itself, which the caller sets before it carries
//! the plan out, and what happens to the nodes when they are empty.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::bundle::move_together;
use super::chain::make_room;
use super::course::{Course, Held, closed, guest};
use super::rounds::rounds;
use super::{Budget, Plan, Terms, Why};
use crate::explain::{Fix, explain};
use crate::place::{Rejection, place};
use crate::shape::VmShape;
use crate::survive::{Loss, Survival};
use crate::view::View;

/// How often the order is changed before room is made.
const ORDERS: usize = 3;
/// How many VMs one chain moves one after the other for a VM, less one.
const DEPTH: usize = 3;

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
    let unborne = newly_unborne(view, &end);
    Drain { plan: rounds(view, end.moves, &terms.limits), stuck, unborne }
}

/// The course that empties nodes, closed before, as far as it can. None of its moves enters them.
pub(crate) fn empty<'a>(
    begin: &Course<'a>,
    nodes: &BTreeSet<NodeId>,
    depth: usize,
    budget: &mut Budget,
) -> Course<'a> {
    let guests = hardest_first(begin, nodes);
    let (mut best, mut left) = in_order(begin, &guests, budget);
    let mut order = guests;
    for _ in 1..ORDERS {
        if left.is_empty() || budget.is_spent() {
            break;
        }
        order.sort_by_key(|(vm, _)| !left.contains(&vm.id));
        let (course, still_left) = in_order(begin, &order, budget);
        if still_left.len() < left.len() {
            (best, left) = (course, still_left);
        } else {
            left.extend(still_left);
        }
    }
    while let Some(next) = further(&best, &order, depth, budget) {
        best = next;
    }
    best
}

/// The course with more of the VMs moved, if one more can be.
fn further<'a>(
    course: &Course<'a>,
    guests: &[(Arc<VmShape>, NodeId)],
    depth: usize,
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let mut best = course.clone();
    for (vm, from) in guests {
        // It may have left already, by itself or with its group.
        if guest(&best.view, *from, vm.id).is_none() || !budget.step() {
            continue;
        }
        if let Some(to) = best.find(vm) {
            best.carry(vm, *from, to, Why::Empty, 0);
            continue;
        }
        let next = (0..depth)
            .find_map(|depth| make_room(&best, vm, *from, Why::Empty, depth, budget))
            .or_else(|| move_together(&best, vm, Why::Empty, budget));
        best = next.unwrap_or(best);
    }
    (best.moves.len() > course.moves.len()).then_some(best)
}

/// The VMs of the nodes that may move, those with the fewest ways to go first.
fn hardest_first(course: &Course, nodes: &BTreeSet<NodeId>) -> Vec<(Arc<VmShape>, NodeId)> {
    let (vcpus, memory_mib) = course.view.nodes().fold((1u64, 1u64), |(vcpus, memory), node| {
        (vcpus + u64::from(node.vcpus), memory.saturating_add(node.memory_mib))
    });
    let share = |vm: &VmShape| {
        let part = |amount: u64, of: u64| u128::from(amount) * 1_000_000_000_000 / u128::from(of);
        part(u64::from(vm.reservation.vcpus), vcpus).max(part(vm.reservation.memory_mib, memory_mib))
    };
    let is_bound = |vm: &VmShape| vm.pin.is_some() || !vm.labels.is_empty() || !vm.groups.is_empty();
    let mut guests: Vec<(Arc<VmShape>, NodeId)> = nodes
        .iter()
        .flat_map(|node| course.view.vms_on(*node).iter().map(|vm| (vm.clone(), *node)))
        .filter(|(vm, _)| course.way(vm.id).is_ok())
        .collect();
    guests.sort_by_key(|(vm, _)| (Reverse(is_bound(vm)), Reverse(share(vm)), vm.id));
    guests
}

/// Each VM to its best place, one after the other, and those that had none.
fn in_order<'a>(
    begin: &Course<'a>,
    guests: &[(Arc<VmShape>, NodeId)],
    budget: &mut Budget,
) -> (Course<'a>, BTreeSet<VmId>) {
    let mut course = begin.clone();
    let mut left = BTreeSet::new();
    for (vm, from) in guests {
        match course.find(vm).filter(|_| budget.step()) {
            Some(to) => course.carry(vm, *from, to, Why::Empty, 0),
            None => drop(left.insert(vm.id)),
        }
    }
    (course, left)
}

/// What remains on the nodes, and why.
pub(crate) fn stuck(end: &Course, nodes: &BTreeSet<NodeId>, budget: &Budget) -> Vec<Blocker> {
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

/// Guarded losses that `before` bears and the course's end does not.
pub(crate) fn newly_unborne(before: &View, end: &Course) -> Vec<Survival> {
    let Some(guard) = &end.terms.guard else { return Vec::new() };
    let mut unborne = guard.unborne(&end.view);
    if !unborne.is_empty() {
        let known: BTreeSet<Loss> = guard.unborne(before).into_iter().map(|survival| survival.loss).collect();
        unborne.retain(|survival| !known.contains(&survival.loss));
    }
    unborne
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
