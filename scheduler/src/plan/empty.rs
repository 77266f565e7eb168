//! The search behind every planner that empties nodes. VMs go where the score likes them best, the hardest first;
//! what then has no place is tried earlier (squeaky wheel, Joslin and Clements 1999), then gets room made for it by
//! moving others, then moves with its whole group.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::bundle::move_together;
use super::chain::make_room;
use super::course::{Course, guest};
use super::{Budget, Why};
use crate::shape::VmShape;
use crate::view::{NodeUse, View};

/// How often the order is changed before room is made.
const ORDERS: usize = 3;
/// How many VMs one chain moves one after the other for a VM, less one.
pub(crate) const DEPTH: usize = 3;

/// How many of a hundred VMs may lack a direct place before planners that choose nodes give a choice up.
pub(crate) const TOLERATED_PERCENT: usize = 3;

/// How many nodes of the order, from its beginning, could be emptied at most while the `shut` nodes take nothing: by
/// the sums of what all nodes that cannot take it hold and what the others have.
pub(crate) fn most(view: &View, order: &[NodeId], shut: &BTreeSet<NodeId>) -> usize {
    let uses = |node| view.node_use(node).unwrap_or_default();
    let free = |of: &NodeUse| {
        [of.vcpus.saturating_sub(of.vcpus_used), of.memory_mib.saturating_sub(of.memory_used_mib)]
    };
    let mut room = [0u64; 2];
    for node in view.nodes().filter(|node| !shut.contains(&node.id) && node.ready && !node.cordoned) {
        let free = free(&uses(node.id));
        room = [room[0].saturating_add(free[0]), room[1].saturating_add(free[1])];
    }
    let mut needed = [0u64; 2];
    let fits = |node: &&NodeId| {
        let of = uses(**node);
        if view.node(**node).is_some_and(|node| !shut.contains(&node.id) && node.ready && !node.cordoned) {
            let free = free(&of);
            room = [room[0].saturating_sub(free[0]), room[1].saturating_sub(free[1])];
        }
        needed = [needed[0].saturating_add(of.vcpus_used), needed[1].saturating_add(of.memory_used_mib)];
        needed[0] <= room[0] && needed[1] <= room[1]
    };
    order.iter().take_while(fits).count()
}

/// The course that empties nodes, closed before, as far as it can. None of its moves enters them.
pub(crate) fn empty<'a>(
    begin: &Course<'a>,
    nodes: &BTreeSet<NodeId>,
    depth: usize,
    budget: &mut Budget,
) -> Course<'a> {
    let (course, order) = directly(begin, nodes, usize::MAX, budget);
    let mut best = course;
    while let Some(next) = further(&best, &order, depth, budget) {
        best = next;
    }
    best
}

/// As [`empty`], or none as soon as more than `tolerance` VMs have no place at once, or if one remains.
pub(crate) fn empty_whole<'a>(
    begin: &Course<'a>,
    nodes: &BTreeSet<NodeId>,
    (depth, tolerance): (usize, usize),
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let (mut best, order) = directly(begin, nodes, tolerance, budget);
    let is_left =
        |course: &Course, (vm, from): &(Arc<VmShape>, NodeId)| guest(&course.view, *from, vm.id).is_some();
    if order.iter().filter(|guest| is_left(&best, guest)).count() > tolerance {
        return None;
    }
    while order.iter().any(|guest| is_left(&best, guest)) {
        best = further(&best, &order, depth, budget)?;
    }
    nodes.iter().all(|node| best.view.vms_on(*node).is_empty()).then_some(best)
}

/// The best course of direct moves among a few orders, and the last order. An order is given up when more than
/// `tolerance` VMs have no place.
fn directly<'a>(
    begin: &Course<'a>,
    nodes: &BTreeSet<NodeId>,
    tolerance: usize,
    budget: &mut Budget,
) -> (Course<'a>, Vec<(Arc<VmShape>, NodeId)>) {
    let mut order = hardest_first(begin, nodes);
    let (mut best, mut left) = in_order(begin, &order, tolerance, budget);
    for _ in 1..ORDERS {
        if left.is_empty() || budget.is_spent() {
            break;
        }
        order.sort_by_key(|(vm, _)| !left.contains(&vm.id));
        let (course, still_left) = in_order(begin, &order, tolerance, budget);
        if still_left.len() < left.len() {
            (best, left) = (course, still_left);
        } else {
            left.extend(still_left);
        }
    }
    (best, order)
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
    tolerance: usize,
    budget: &mut Budget,
) -> (Course<'a>, BTreeSet<VmId>) {
    let mut course = begin.clone();
    let mut left = BTreeSet::new();
    for (vm, from) in guests {
        if left.len() > tolerance {
            break;
        }
        match course.find(vm).filter(|_| budget.step()) {
            Some(to) => course.carry(vm, *from, to, Why::Empty, 0),
            None => drop(left.insert(vm.id)),
        }
    }
    (course, left)
}
