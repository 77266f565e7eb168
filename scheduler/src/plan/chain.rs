//! Room made by moving others: a VM that fits nowhere gets a node from which a few smaller ones are moved away
//! first, each to a free place or, to a limited depth, to one that is made for it in the same way. Ejection chains
//! after Glover ("Ejection chains, reference structures and alternating path methods", 1996), cut to the nodes that
//! lack least. Deliberately absent: cycles; what must trade places goes by way of a third node.

use std::sync::Arc;

use tamdao_model::NodeId;

use super::course::{Course, why_not};
use super::{Budget, Why};
use crate::filter::Ask;
use crate::reason::{Reason, ReasonKind};
use crate::shape::VmShape;

/// Nodes that are tried for one VM, by the depth that is left.
const WIDTH: [usize; 4] = [4, 8, 12, 16];
/// How many VMs leave one node for one other VM at most.
const EJECTED: usize = 6;
/// VMs of a node for which room is made in turn.
const DEEP: usize = 4;

/// The course with the VM moved from `from` to a node where it did not fit, and with the moves that make room for
/// it; the one that copies least among those tried. `from` and what must stay empty should be closed.
pub(crate) fn make_room<'a>(
    course: &Course<'a>,
    vm: &Arc<VmShape>,
    from: NodeId,
    why: Why,
    depth: usize,
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let mut best: Option<(u64, Course<'a>)> = None;
    for node in candidates(course, vm, WIDTH[depth.min(WIDTH.len() - 1)]) {
        let Some(mut cleared) = clear(course, vm, node, depth, budget) else { continue };
        cleared.carry(vm, from, node, why, 0);
        let copied = cleared.copied_mib();
        if best.as_ref().is_none_or(|(least, _)| copied < *least) {
            best = Some((copied, cleared));
        }
    }
    best.map(|(_, course)| course)
}

/// Nodes on which only other VMs keep the VM out, those that lack least first.
fn candidates(course: &Course, vm: &VmShape, at_most: usize) -> Vec<NodeId> {
    let ask = Ask::new(&course.view, vm);
    if ask.cluster_reason().is_some() {
        return Vec::new();
    }
    let mut found: Vec<(u64, NodeId)> = Vec::new();
    for row in course.view.rows_by_id() {
        let is_large_enough = u64::from(row.shape.vcpus) >= u64::from(vm.reservation.vcpus)
            && row.shape.memory_mib >= vm.reservation_on(row.shape.emulation).memory_mib;
        if !is_large_enough || !course.view.traits().get(row.entry.traits).is_some_and(|t| ask.traits_fit(t))
        {
            continue;
        }
        let mut lack = 0;
        let lifts = ask.reasons(row).all(|reason| {
            lack += relative_lack(&reason, row.shape.memory_mib, u64::from(row.shape.vcpus));
            is_of_others(reason.kind())
        });
        if lifts {
            found.push((lack, row.shape.id));
        }
    }
    found.sort_unstable();
    found.truncate(at_most);
    found.into_iter().map(|(_, node)| node).collect()
}

/// Whether moving other VMs away can lift it.
fn is_of_others(kind: ReasonKind) -> bool {
    use ReasonKind::*;
    matches!(
        kind,
        TooManyVms
            | IsolationShared
            | TooCrowded
            | NotEnoughDisk
            | NotEnoughVcpus
            | NotEnoughMemory
            | NotEnoughCells
    )
}

/// In 1/10,000 of the node; what has no amount counts as a tenth.
fn relative_lack(reason: &Reason, memory_mib: u64, vcpus: u64) -> u64 {
    match reason {
        Reason::NotEnoughMemory { .. } => reason.lack().saturating_mul(10_000) / memory_mib.max(1),
        Reason::NotEnoughVcpus { .. } => reason.lack().saturating_mul(10_000) / vcpus.max(1),
        _ => 1_000,
    }
}

/// The course with room for the VM on the node.
fn clear<'a>(
    course: &Course<'a>,
    vm: &Arc<VmShape>,
    node: NodeId,
    depth: usize,
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let mut guests: Vec<(u64, Arc<VmShape>)> = Vec::new();
    for guest in course.view.vms_on(node).iter().filter(|guest| course.way(guest.id).is_ok()) {
        guests.push((course.copied_by(guest, node), guest.clone()));
    }
    guests.sort_by_key(|(copied, guest)| (*copied, guest.id));
    let alone: Vec<Arc<VmShape>> = guests
        .iter()
        .filter(|(_, guest)| fits_without(course, vm, node, guest))
        .map(|(_, guest)| guest.clone())
        .collect();
    let mut shut = course.clone();
    shut.close(node);
    let by_one = |guest, depth, budget: &mut Budget| {
        eject(&shut, guest, node, vm, depth, budget).and_then(|next| opened(next, vm, node))
    };
    alone
        .iter()
        .find_map(|guest| by_one(guest, 0, budget))
        .or_else(|| clear_by_several(&shut, vm, node, &guests, budget))
        .or_else(|| {
            alone.iter().take(DEEP).filter(|_| depth > 0).find_map(|guest| by_one(guest, depth, budget))
        })
}

/// The course with the node open, if the VM fits there now. What left it may still be too near.
fn opened<'a>(mut course: Course<'a>, vm: &VmShape, node: NodeId) -> Option<Course<'a>> {
    course.open(node);
    why_not(&course.view, vm, node).is_none().then_some(course)
}

fn fits_without(course: &Course, vm: &VmShape, node: NodeId, guest: &VmShape) -> bool {
    let mut fork = course.view.clone();
    fork.release(node, guest.id);
    why_not(&fork, vm, node).is_none()
}

/// Largest first, those that find a free place, until the VM fits; then those that were not needed stay.
fn clear_by_several<'a>(
    shut: &Course<'a>,
    vm: &Arc<VmShape>,
    node: NodeId,
    guests: &[(u64, Arc<VmShape>)],
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let eject_all = |chosen: &mut dyn Iterator<Item = &Arc<VmShape>>, budget: &mut Budget| {
        let (mut course, mut gone) = (shut.clone(), Vec::new());
        for guest in chosen {
            if gone.len() >= EJECTED || budget.is_spent() {
                break;
            }
            let Some(next) = eject(&course, guest, node, vm, 0, budget) else { continue };
            course = next;
            gone.push(guest.clone());
            if let Some(open) = opened(course.clone(), vm, node) {
                return Some((open, gone));
            }
        }
        None
    };
    let (mut course, mut gone) = eject_all(&mut guests.iter().rev().map(|(_, guest)| guest), budget)?;
    // The last one was needed; of those before it some may not be.
    for at in (0..gone.len().saturating_sub(1)).rev() {
        let fewer: Vec<_> =
            gone.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, g)| g.clone()).collect();
        if let Some((next, left)) = eject_all(&mut fewer.iter(), budget) {
            (course, gone) = (next, left);
        }
    }
    Some(course)
}

/// The course with one VM moved off a node for another's sake.
fn eject<'a>(
    course: &Course<'a>,
    guest: &Arc<VmShape>,
    node: NodeId,
    vm: &VmShape,
    depth: usize,
    budget: &mut Budget,
) -> Option<Course<'a>> {
    if !budget.step() {
        return None;
    }
    let why = Why::RoomFor(vm.id);
    if depth > 0 {
        return make_room(course, guest, node, why, depth - 1, budget);
    }
    let to = course.find(guest)?;
    let mut next = course.clone();
    next.carry(guest, node, to, why, 0);
    Some(next)
}
