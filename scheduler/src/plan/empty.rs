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

const PERCENT: usize = 100;

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
    let (best, order) = directly(begin, nodes, tolerance, budget);
    finish(best, nodes, &order, (depth, tolerance), budget).ok()
}

/// The longest part of an order of nodes that can be emptied at once, as far as this search sees, and what `accept`
/// made of it: from `at_most` down by the part that the VMs without a place are of all, then by halving to within one
/// `within`th. Nodes are closed by `begin`. Room is made for no more than `tolerated` VMs.
pub(crate) fn longest<'a, T>(
    order: &[NodeId],
    at_most: usize,
    (tolerated, within): (usize, usize),
    begin: impl Fn(&BTreeSet<NodeId>) -> Course<'a>,
    mut accept: impl FnMut(BTreeSet<NodeId>, Course<'a>) -> Option<T>,
    budget: &mut Budget,
) -> Option<(usize, T)> {
    let (mut low, mut high, mut best) = (0, at_most.min(order.len()), None);
    let mut count = high;
    while high > low + low / within && !budget.is_spent() {
        let nodes: BTreeSet<NodeId> = order[..count].iter().copied().collect();
        let course = begin(&nodes);
        let vms: usize = nodes.iter().map(|node| course.view.vms_on(*node).len()).sum();
        let (course, guests) = in_one_order(&course, &nodes, budget);
        let tolerance = (vms * TOLERATED_PERCENT / 100).min(tolerated);
        match finish(course, &nodes, &guests, (1, tolerance), budget) {
            Ok(course) => match accept(nodes, course) {
                Some(found) => (low, best) = (count, Some(found)),
                None => high = count - 1,
            },
            Err(left) => {
                high = count - 1;
                if best.is_none() {
                    let fewer = (count * left / PERCENT).max(count / within);
                    count -= fewer.clamp(1, count.max(2) - 1);
                    continue;
                }
            }
        }
        count = (low + high).div_ceil(2);
    }
    best.map(|best| (low, best))
}

/// Room is made for what has no place, if that is no more than `tolerance` VMs; otherwise how large a part of all
/// that has to go it is, in percent.
fn finish<'a>(
    mut best: Course<'a>,
    nodes: &BTreeSet<NodeId>,
    order: &[(Arc<VmShape>, NodeId)],
    (depth, tolerance): (usize, usize),
    budget: &mut Budget,
) -> Result<Course<'a>, usize> {
    let left = |course: &Course| {
        order.iter().filter(|(vm, from)| guest(&course.view, *from, vm.id).is_some()).count()
    };
    let part_left = |course: &Course| {
        let share = share_of(&course.view);
        let sum = |left: bool| {
            let there =
                |(vm, from): &&(Arc<VmShape>, NodeId)| !left || guest(&course.view, *from, vm.id).is_some();
            order.iter().filter(there).map(|(vm, _)| share(vm)).sum::<u128>()
        };
        usize::try_from(sum(true) * PERCENT as u128 / sum(false).max(1)).unwrap_or(PERCENT)
    };
    if left(&best) > tolerance {
        return Err(part_left(&best));
    }
    while left(&best) > 0 {
        best = further(&best, order, depth, budget).ok_or(1usize)?;
    }
    let is_empty = |node: &NodeId| best.view.vms_on(*node).is_empty();
    if nodes.iter().all(is_empty) { Ok(best) } else { Err(1) }
}

/// The course of direct moves, hardest first, and that order.
fn in_one_order<'a>(
    begin: &Course<'a>,
    nodes: &BTreeSet<NodeId>,
    budget: &mut Budget,
) -> (Course<'a>, Vec<(Arc<VmShape>, NodeId)>) {
    let order = hardest_first(begin, nodes);
    (in_order(begin, &order, usize::MAX, budget).0, order)
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
    let share = share_of(&course.view);
    let is_bound = |vm: &VmShape| vm.pin.is_some() || !vm.labels.is_empty() || !vm.groups.is_empty();
    let mut guests: Vec<(Arc<VmShape>, NodeId)> = nodes
        .iter()
        .flat_map(|node| course.view.vms_on(*node).iter().map(|vm| (vm.clone(), *node)))
        .filter(|(vm, _)| course.way(vm.id).is_ok())
        .collect();
    guests.sort_by_key(|(vm, _)| (Reverse(is_bound(vm)), Reverse(share(vm)), vm.id));
    guests
}

/// The larger part that a VM takes of all CPUs or of all memory, in 1/10^12.
fn share_of(view: &View) -> impl Fn(&VmShape) -> u128 {
    let (vcpus, memory_mib) = view.nodes().fold((1u64, 1u64), |(vcpus, memory), node| {
        (vcpus + u64::from(node.vcpus), memory.saturating_add(node.memory_mib))
    });
    move |vm| {
        let part = |amount: u64, of: u64| u128::from(amount) * 1_000_000_000_000 / u128::from(of);
        part(u64::from(vm.reservation.vcpus), vcpus).max(part(vm.reservation.memory_mib, memory_mib))
    }
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
