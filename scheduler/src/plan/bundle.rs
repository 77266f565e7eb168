//! VMs that must be together move together: when one must leave the node or failure domain that its group is in,
//! all members are placed anew at once, with their old places still held. Deliberately absent: a group that is only
//! preferred to be together; the score sees to it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};
use uuid::Uuid;

use super::course::{Course, guest, hold};
use super::reach::{Wish, carry_all};
use super::rounds::without_together;
use super::{Budget, Why};
use crate::filter::Ask;
use crate::shape::{By, GroupId, Rule, RuleKind, VmShape};
use crate::view::View;

/// Places that are tried for the first member.
const ANCHORS: usize = 16;

/// The course with the VM and all that must be together with it moved to where all fit, if the VM is of such a
/// group and there is such a place.
pub(crate) fn move_together<'a>(
    course: &Course<'a>,
    vm: &Arc<VmShape>,
    why: Why,
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let (bys, members) = bound(&course.view, vm);
    if bys.is_empty() || members.keys().any(|member| course.way(*member).is_err()) {
        return None;
    }
    let lifted = lift(&course.view, &members)?;
    let order = in_reach(&course.view, &members);
    let places = anchors(&lifted, &bys, &order).into_iter().find_map(|anchor| {
        let mut fork = lifted.clone();
        let mut places: Vec<NodeId> = vec![anchor];
        let cells = fork.cells_for(anchor, order[0]);
        hold(&mut fork, order[0], anchor, cells);
        for member in &order[1..] {
            if !budget.step() {
                return None;
            }
            let place = crate::place::find(&fork, member)?.node;
            let cells = fork.cells_for(place, member);
            hold(&mut fork, member, place, cells);
            places.push(place);
        }
        Some(places)
    })?;
    let mut wishes = Vec::new();
    for (member, to) in order.into_iter().zip(places) {
        let (vm_of, from) = members.get(&member.id)?;
        if *from != to {
            let why = if member.id == vm.id { why } else { Why::With(vm.id) };
            wishes.push(Wish { vm: vm_of.clone(), from: *from, to, why, gain: 0 });
        }
    }
    // What keeps members apart counts their old places too, so they may have to go in an order.
    let loose = Course { view: without_together(&course.view), ..course.clone() };
    let (end, left) = carry_all(loose, wishes, budget);
    if !left.is_empty() {
        return None;
    }
    let mut view = end.view;
    course.view.groups().for_each(|group| view.set_group(group.clone()));
    Some(Course { view, ..end })
}

/// Members by id, each with its node.
type Members = BTreeMap<VmId, (Arc<VmShape>, NodeId)>;

/// By what the VM and others must be together, and all VMs that these rules tie to it, itself included.
fn bound(view: &View, vm: &Arc<VmShape>) -> (BTreeSet<By>, Members) {
    let mut bys = BTreeSet::new();
    let mut members = Members::new();
    let mut groups = BTreeSet::new();
    let mut open: Vec<Arc<VmShape>> = vec![vm.clone()];
    while let Some(member) = open.pop() {
        let Some(home) = view.homes(member.id).next() else { continue };
        if members.insert(member.id, (member.clone(), home)).is_some() {
            continue;
        }
        for group in member.groups.iter().filter_map(|id| view.group(*id)) {
            let mut ties =
                group.rules.iter().filter(|r| r.required && r.kind == RuleKind::Together).peekable();
            if ties.peek().is_none() || !groups.insert(group.id) {
                continue;
            }
            bys.extend(ties.map(|rule| rule.by.clone()));
            open.extend(view.members(group.id).filter_map(|(id, node)| guest(view, node, id)));
        }
    }
    (bys, members)
}

/// The groups of a VM whose rules ask to be together, by node alone or by anything.
fn ties<'v>(view: &'v View, vm: &'v VmShape, by_node: bool) -> impl Iterator<Item = GroupId> + 'v {
    let groups = vm.groups.iter().filter_map(|id| view.group(*id));
    let ties = groups.filter(move |group| {
        let tie = |r: &Rule| r.required && r.kind == RuleKind::Together && (!by_node || r.by == By::Node);
        group.rules.iter().any(tie)
    });
    ties.map(|group| group.id)
}

/// The members, the largest first and then always the largest of those that are tied to one before, so that each is
/// placed where its companions are and not they where it happens to be.
fn in_reach<'m>(view: &View, members: &'m Members) -> Vec<&'m Arc<VmShape>> {
    let mut left: Vec<&Arc<VmShape>> = members.values().map(|(member, _)| member).collect();
    left.sort_by_key(|member| {
        (Reverse((member.reservation.memory_mib, member.reservation.vcpus)), member.id)
    });
    let (mut order, mut reached) = (Vec::new(), BTreeSet::new());
    while !left.is_empty() {
        let is_tied =
            |member: &&Arc<VmShape>| ties(view, member, false).any(|group| reached.contains(&group));
        let next = left.remove(left.iter().position(is_tied).unwrap_or(0));
        reached.extend(ties(view, next, false));
        order.push(next);
    }
    order
}

/// The members that must be on one node with the first, itself included.
fn on_one_node<'m>(view: &View, order: &[&'m Arc<VmShape>]) -> Vec<&'m Arc<VmShape>> {
    let (mut bound, mut reached): (Vec<&Arc<VmShape>>, BTreeSet<GroupId>) = (Vec::new(), BTreeSet::new());
    // In the order each is tied to one before, but perhaps by something else than the node, so more passes may add.
    loop {
        let is_new = |member: &&&Arc<VmShape>| {
            let is_tied = bound.is_empty() || ties(view, member, true).any(|group| reached.contains(&group));
            is_tied && bound.iter().all(|known| known.id != member.id)
        };
        let Some(next) = order.iter().find(is_new).copied() else { return bound };
        reached.extend(ties(view, next, true));
        bound.push(next);
    }
}

/// A fork in which the members have no place, but something of their size holds each place that they had.
fn lift(view: &View, members: &Members) -> Option<View> {
    let mut fork = view.clone();
    for (member, home) in members.values() {
        fork.release(*home, member.id);
    }
    for (member, home) in members.values() {
        let mut shade = VmShape { groups: BTreeSet::new(), ..(**member).clone() };
        shade.id = VmId(Uuid::from_u128(!member.id.0.as_u128()));
        fork.assign(*home, Arc::new(shade)).ok()?;
    }
    Some(fork)
}

/// Nodes for the first member, best first: with room for all that must be on one node with it, or, where it may be on
/// a node alone, one for each failure domain that the members may be together in.
fn anchors(view: &View, bys: &BTreeSet<By>, order: &[&Arc<VmShape>]) -> Vec<NodeId> {
    let Some(first) = order.first() else { return Vec::new() };
    let ask = Ask::new(view, first);
    if ask.cluster_reason().is_some() {
        return Vec::new();
    }
    let bound = on_one_node(view, order);
    let several = bound.len() > 1;
    let (vcpus, memory_mib) = bound.iter().fold((0u64, 0u64), |(vcpus, memory_mib), member| {
        let size = member.reservation;
        (vcpus + u64::from(size.vcpus), memory_mib.saturating_add(size.memory_mib))
    });
    let has_room = |node: NodeId| {
        view.node_use(node).is_some_and(|used| {
            used.vcpus.saturating_sub(used.vcpus_used) >= vcpus
                && used.memory_mib.saturating_sub(used.memory_used_mib) >= memory_mib
        })
    };
    let mut fitting: Vec<(i64, NodeId)> = Vec::new();
    for row in view.rows_by_id() {
        if ask.reasons(row).next().is_none() && (!several || has_room(row.shape.id)) {
            let need = ask.need(&row.entry, row.shape.emulation);
            fitting.push((-view.weights().total(&ask.points(&row.entry, &need)), row.shape.id));
        }
    }
    fitting.sort_unstable();
    let mut seen = BTreeSet::new();
    fitting.retain(|(_, node)| {
        let node = view.node(*node);
        let domain = |by: &By| match by {
            By::Domain(key) => node.and_then(|node| node.domains.get(key)),
            By::Node => None,
        };
        several || seen.insert(bys.iter().map(domain).collect::<Vec<_>>())
    });
    fitting.truncate(ANCHORS);
    fitting.into_iter().map(|(_, node)| node).collect()
}
