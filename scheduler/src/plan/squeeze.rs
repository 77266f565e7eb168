//! A node is emptied by exchange: where one of its VMs fits nowhere, it takes the place of a smaller one, which comes
//! to the node in turn, by way of the room that is free there. Each exchange makes what stands on the node smaller, so
//! it ends; what is small enough at last finds a place by itself, or has it made by one move. These are the swaps of local search for bin packing
//! (Alvim et al. 2004), as live moves. Deliberately absent: exchanges between nodes that both stay in use.

use std::cmp::Reverse;
use std::sync::Arc;

use tamdao_model::NodeId;

use super::chain::make_room;
use super::course::{Course, why_not};
use super::{Budget, Why};
use crate::shape::VmShape;
use crate::view::View;

/// Exchanges on which the rules are asked before the node is given up.
const TRIED: usize = 16;

/// The course with the node, which is closed, empty.
pub(crate) fn squeeze<'a>(mut course: Course<'a>, node: NodeId, budget: &mut Budget) -> Option<Course<'a>> {
    let size = sizes(&course.view);
    loop {
        let mut guests = course.view.vms_on(node).to_vec();
        guests.sort_by_key(|vm| (Reverse(size(vm)), vm.id));
        for vm in &guests {
            let Some(to) = course.find(vm).filter(|_| budget.step()) else { continue };
            course.carry(vm, node, to, Why::Empty, 0);
        }
        if course.view.vms_on(node).is_empty() {
            return Some(course);
        }
        let next = exchange(&course, node, &size, budget);
        course = next.or_else(|| with_room(&course, node, budget))?;
    }
}

/// The course with one VM more gone from the node, after a move that makes room for it.
fn with_room<'a>(course: &Course<'a>, node: NodeId, budget: &mut Budget) -> Option<Course<'a>> {
    let movable = course.view.vms_on(node).iter().filter(|vm| course.way(vm.id).is_ok());
    movable.into_iter().find_map(|vm| make_room(course, vm, node, Why::Empty, 0, budget))
}

/// How much of a node's CPUs and memory a VM takes, as parts of the whole cluster's.
fn sizes(view: &View) -> impl Fn(&VmShape) -> u128 + use<> {
    let (vcpus, memory_mib) = view.nodes().fold((1u128, 1u128), |(vcpus, memory), node| {
        (vcpus + u128::from(node.vcpus), memory + u128::from(node.memory_mib))
    });
    move |vm| {
        let held = vm.reservation;
        u128::from(held.vcpus) * memory_mib + u128::from(held.memory_mib) * vcpus
    }
}

/// A VM of the node, one that gives it its place, where that is, and by how much the node's rest grows smaller.
type Exchange = (u128, Arc<VmShape>, Arc<VmShape>, NodeId);

/// The course with the exchange that leaves least on the node, among those that keep the rules.
fn exchange<'a>(
    course: &Course<'a>,
    node: NodeId,
    size: &impl Fn(&VmShape) -> u128,
    budget: &mut Budget,
) -> Option<Course<'a>> {
    let mut found: Vec<Exchange> = Vec::new();
    let view = &course.view;
    let here = free(view, node);
    for other in view.nodes().filter(|other| other.id != node && other.ready && !other.cordoned) {
        if view.vms_on(other.id).is_empty() || !budget.step() {
            continue;
        }
        let there = free(view, other.id);
        for small in view.vms_on(other.id).iter().filter(|small| need(small).fits(here)) {
            let given = need(small);
            let room = [there[0] + given.0[0], there[1] + given.0[1]];
            for large in view.vms_on(node).iter().filter(|large| need(large).fits(room)) {
                let (in_size, out_size) = (size(small), size(large));
                if in_size < out_size {
                    found.push((out_size - in_size, large.clone(), small.clone(), other.id));
                }
            }
        }
    }
    found.sort_by_key(|(gain, large, small, at)| (Reverse(*gain), large.id, small.id, *at));
    found.iter().take(TRIED).find_map(|(_, large, small, at)| {
        let may = |vm: &VmShape| course.way(vm.id).is_ok() && vm.pin.is_none();
        if !may(small) || !may(large) || !budget.step() {
            return None;
        }
        let mut next = course.clone();
        next.open(node);
        if why_not(&next.view, small, node).is_some() {
            return None;
        }
        next.carry(small, *at, node, Why::RoomFor(large.id), 0);
        next.close(node);
        if why_not(&next.view, large, *at).is_some() {
            return None;
        }
        next.carry(large, node, *at, Why::Empty, 0);
        Some(next)
    })
}

/// Virtual CPUs and MiB.
struct Need([u64; 2]);

impl Need {
    fn fits(&self, room: [u64; 2]) -> bool {
        self.0[0] <= room[0] && self.0[1] <= room[1]
    }
}

fn need(vm: &VmShape) -> Need {
    Need([u64::from(vm.reservation.vcpus), vm.reservation.memory_mib])
}

fn free(view: &View, node: NodeId) -> [u64; 2] {
    let of = view.node_use(node).unwrap_or_default();
    [of.vcpus.saturating_sub(of.vcpus_used), of.memory_mib.saturating_sub(of.memory_used_mib)]
}
