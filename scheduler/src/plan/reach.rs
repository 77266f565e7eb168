//! From homes to wished homes: the moves in an order in which each is feasible. Where VMs wait for one another's
//! places in a circle, one of them is parked on a third node until its own place is free. Deliberately absent:
//! whether the wish is a good one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::course::{Course, guest, why_not};
use super::drain::{Blocker, Cause};
use super::rounds::{rounds, without_together};
use super::{Budget, Plan, Terms, Why};
use crate::place::{Rejection, Tally};
use crate::reason::ReasonKind;
use crate::shape::{GroupId, VmShape};
use crate::survive::Survival;
use crate::view::View;

/// What a wish comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    pub plan: Plan,
    /// VMs that do not reach their node, each with the first reason of that node alone.
    pub stuck: Vec<Blocker>,
    /// Guarded losses that could be borne before and cannot at the end, with what would be left out.
    pub unborne: Vec<Survival>,
}

/// A VM on its way.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) vm: Arc<VmShape>,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) why: Why,
    pub(crate) gain: u64,
}

/// Plans to bring each VM to its node. VMs and nodes that are not in the cluster are passed over.
pub fn reach(view: &View, wished: &BTreeMap<VmId, NodeId>, terms: &Terms, budget: &mut Budget) -> Reach {
    let mut wishes = Vec::new();
    for (vm, to) in wished {
        let Some(from) = view.homes(*vm).next().filter(|from| from != to) else { continue };
        let Some(vm) = guest(view, from, *vm).filter(|_| view.node(*to).is_some()) else { continue };
        wishes.push(Wish { vm, from, to: *to, why: Why::Wished, gain: 0 });
    }
    let begin = Course { view: without_together(view), ..Course::new(view, terms) };
    let mut given_up = Vec::new();
    loop {
        let (end, left) = carry_all(begin.clone(), wishes.clone(), budget);
        let apart = left_apart(view, &end);
        let (out, rest): (Vec<Wish>, _) = wishes.into_iter().partition(|w| !apart.is_disjoint(&w.vm.groups));
        if out.is_empty() {
            let stuck = left.iter().chain(&given_up).map(|wish| blocker(view, &end, wish)).collect();
            let unborne = end.newly_unborne();
            return Reach { plan: rounds(view, end.moves, &terms.limits), stuck, unborne };
        }
        // A group that would not be together again stays where it is.
        given_up.extend(out);
        wishes = rest;
    }
}

/// Groups with a moved member whose rules to be together, which the course did not have, are broken at its end.
fn left_apart(view: &View, end: &Course) -> BTreeSet<GroupId> {
    let mut ruled = end.view.clone();
    view.groups().for_each(|group| ruled.set_group(group.clone()));
    let mut apart = BTreeSet::new();
    for a_move in &end.moves {
        let Some(vm) = guest(&ruled, a_move.to, a_move.vm).filter(|vm| !vm.groups.is_empty()) else {
            continue;
        };
        let mut without = ruled.clone();
        without.release(a_move.to, vm.id);
        for group in &vm.groups {
            let alone = VmShape { groups: BTreeSet::from([*group]), ..VmShape::bare(vm.id, &vm.name, 0, 0) };
            let reason = why_not(&without, &alone, a_move.to).map(|reason| reason.kind());
            if matches!(reason, Some(ReasonKind::NotTogether | ReasonKind::DomainUnknown)) {
                apart.insert(*group);
            }
        }
    }
    apart
}

fn blocker(view: &View, end: &Course, wish: &Wish) -> Blocker {
    let cause = match end.way(wish.vm.id) {
        Err(held) => Cause::Held(held),
        Ok(_) => {
            let mut rejection = Rejection { nodes: 1, ..Rejection::default() };
            let reason = why_not(&end.view, &wish.vm, wish.to);
            if let Some(reason) = reason.or_else(|| why_not(view, &wish.vm, wish.to)) {
                let name = end.view.node(wish.to).map_or_else(|| "".into(), |node| node.name.clone());
                let tally = Tally { nodes: 1, nearest: wish.to, nearest_name: name, reason };
                rejection.by_reason.insert(tally.reason.kind(), tally);
            }
            Cause::NoPlace { rejection, fixes: Vec::new() }
        }
    };
    Blocker { vm: wish.vm.id, name: wish.vm.name.clone(), node: wish.from, cause }
}

/// Carries the wishes in any order that works, and gives back those that do not.
pub(crate) fn carry_all<'a>(
    mut course: Course<'a>,
    wishes: Vec<Wish>,
    budget: &mut Budget,
) -> (Course<'a>, Vec<Wish>) {
    let (mut left, held): (Vec<Wish>, Vec<Wish>) =
        wishes.into_iter().partition(|wish| course.way(wish.vm.id).is_ok());
    let mut parks = left.len();
    loop {
        let count = left.len();
        left.retain(|wish| {
            let fits = budget.step() && why_not(&course.view, &wish.vm, wish.to).is_none();
            if fits {
                course.carry(&wish.vm, wish.from, wish.to, wish.why, wish.gain);
            }
            !fits
        });
        if left.is_empty() || budget.is_spent() {
            break;
        }
        if left.len() == count && (parks == 0 || !park(&mut course, &mut left, budget)) {
            break;
        }
        parks = parks.saturating_sub(usize::from(left.len() == count));
    }
    left.extend(held);
    (course, left)
}

/// A course from `begin` to the same end with each VM moved straight to its last node, if there is one that copies
/// less.
pub(crate) fn straightened<'a>(end: Course<'a>, begin: Course<'a>, budget: &mut Budget) -> Course<'a> {
    let mut wishes: BTreeMap<VmId, Wish> = BTreeMap::new();
    for a_move in &end.moves {
        if let Some(wish) = wishes.get_mut(&a_move.vm) {
            wish.gain = wish.gain.saturating_add(a_move.gain);
            continue;
        }
        let to = end.view.homes(a_move.vm).next();
        let (Some(vm), Some(to)) = (guest(&begin.view, a_move.from, a_move.vm), to) else { return end };
        wishes.insert(vm.id, Wish { vm, from: a_move.from, to, why: a_move.why, gain: a_move.gain });
    }
    if wishes.len() == end.moves.len() {
        return end;
    }
    let mut wishes: Vec<Wish> = wishes.into_values().collect();
    wishes.retain(|wish| wish.from != wish.to);
    let (straight, left) = carry_all(begin, wishes, budget);
    if left.is_empty() && straight.copied_mib() < end.copied_mib() { straight } else { end }
}

/// Puts the smallest VM that stands in another's way on a third node for a while.
fn park(course: &mut Course, left: &mut [Wish], budget: &mut Budget) -> bool {
    let mut order: Vec<usize> = (0..left.len()).collect();
    order.sort_by_key(|at| (left[*at].vm.reservation.memory_mib, left[*at].vm.id));
    for at in order {
        let wish = &left[at];
        let Some(waiting) = left.iter().find(|other| other.to == wish.from) else { continue };
        let why = Why::RoomFor(waiting.vm.id);
        // Where another waits to go is no place to park, unless there is no other.
        let mut open = course.clone();
        for other in left.iter() {
            open.close(other.to);
        }
        let spare = open.find(&wish.vm).or_else(|| course.find(&wish.vm));
        let Some(to) = spare.filter(|_| budget.step()) else { continue };
        course.carry(&wish.vm, wish.from, to, why, 0);
        left[at].from = to;
        return true;
    }
    false
}
