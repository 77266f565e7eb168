//! The question of concurrent maintainability (Uptime Institute's Tier III), answered by construction: for each
//! node and each value of a failure-domain key, a plan of live moves that empties what it would take down with no VM
//! stopped, and with the guarantee kept at the end if the terms have one; or what stays, why, and how much room
//! would be enough. Deliberately absent: outages of several things at once, and loss without warning (survive).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, PoolId};
use uuid::Uuid;

use super::course::{closed, hold, why_not};
use super::drain::{Cause, Drain, drain};
use super::guard::Guard;
use super::{Budget, Terms};
use crate::shape::{AMOUNT_MAX, Cell, NodeShape, VmShape};
use crate::survive::{Loss, nodes_of};
use crate::view::View;

/// What one outage comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    pub outage: Loss,
    /// The nodes that it takes down: one, or all that have no other value of the key.
    pub nodes: BTreeSet<NodeId>,
    pub drain: Drain,
    /// What would be enough for the VMs that are stuck; any one of these. Empty if none is, or if more room of the
    /// kind that the cluster has is no help.
    pub enough: Vec<Enough>,
}

impl Maintenance {
    pub fn is_possible(&self) -> bool {
        self.drain.is_done()
    }
}

/// Room that is not there, as nodes that differ from one that is there only in size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enough {
    /// The value of the outage's own key in which it would help; none for the outage of a node.
    pub value: Option<String>,
    pub like: NodeId,
    /// On how many nodes at least, because groups keep VMs apart.
    pub nodes: usize,
    pub vcpus: u64,
    pub memory_mib: u64,
    /// In local pools.
    pub disk_mib: u64,
}

/// The answer for each outage that `outages` names, nodes first. The budget is for all of them together. VMs that
/// only move while stopped are not moved.
pub fn maintain(view: &View, outages: &Guard, terms: &Terms, budget: &mut Budget) -> Vec<Maintenance> {
    let terms = terms.kept_for(view);
    outages.losses(view).into_iter().map(|outage| maintain_one(view, outage, &terms, budget)).collect()
}

/// The answer for one outage.
pub fn maintain_one(view: &View, outage: Loss, terms: &Terms, budget: &mut Budget) -> Maintenance {
    let terms = Terms { may_stop: false, ..terms.clone() };
    let nodes = nodes_of(view, &outage);
    let drain = drain(view, &nodes, &terms, budget);
    let enough = enough(view, &outage, &nodes, &drain);
    Maintenance { outage, nodes, drain, enough }
}

fn enough(view: &View, outage: &Loss, nodes: &BTreeSet<NodeId>, drain: &Drain) -> Vec<Enough> {
    let lacks_place = |cause: &Cause| matches!(cause, Cause::NoPlace { .. });
    if drain.stuck.is_empty() || !drain.stuck.iter().all(|blocker| lacks_place(&blocker.cause)) {
        return Vec::new();
    }
    let mut end = closed(view, nodes);
    for a_move in drain.plan.moves() {
        if let Some(vm) = end.release(a_move.from, a_move.vm) {
            hold(&mut end, &vm, a_move.to, a_move.cells);
        }
    }
    let stuck: Vec<Arc<VmShape>> = drain
        .stuck
        .iter()
        .filter_map(|blocker| end.vms_on(blocker.node).iter().find(|vm| vm.id == blocker.vm).cloned())
        .collect();
    let candidates = end.nodes().filter(|node| node.ready && !node.cordoned);
    let mut largest: BTreeMap<Option<String>, &NodeShape> = BTreeMap::new();
    for node in candidates {
        let values: Vec<Option<String>> = match outage {
            Loss::Node(_) => vec![None],
            Loss::Domain { key, value } => {
                let others = node.domains.get(key).into_iter().flatten().filter(|other| *other != value);
                others.map(|other| Some(other.clone())).collect()
            }
        };
        for value in values {
            let known = largest.entry(value).or_insert(node);
            if (node.memory_mib, node.vcpus) > (known.memory_mib, known.vcpus) {
                *known = node;
            }
        }
    }
    largest.into_iter().filter_map(|(value, like)| enough_like(&end, &stuck, value, like)).collect()
}

/// How much room all of these VMs need on empty nodes like this one.
fn enough_like(
    end: &View,
    stuck: &[Arc<VmShape>],
    value: Option<String>,
    like: &NodeShape,
) -> Option<Enough> {
    let mut fork = end.clone();
    let mut spares: Vec<NodeId> = Vec::new();
    let mut enough = Enough { value, like: like.id, nodes: 0, vcpus: 0, memory_mib: 0, disk_mib: 0 };
    for vm in stuck {
        let takes = |fork: &View, node: &NodeId| why_not(fork, vm, *node).is_none();
        if !spares.iter().any(|node| takes(&fork, node)) {
            let spare = spare(like, spares.len());
            spares.push(spare.id);
            fork.set_node(spare);
        }
        let node = *spares.iter().find(|node| takes(&fork, node))?;
        let cells = fork.cells_for(node, vm);
        // Its old place is given up, as it would be.
        fork.homes(vm.id).collect::<Vec<_>>().into_iter().for_each(|home| drop(fork.release(home, vm.id)));
        hold(&mut fork, vm, node, cells);
        let held = vm.reservation_on(like.emulation);
        let is_local = |pool: PoolId| end.pool(pool).is_some_and(|pool| pool.shared.is_none());
        enough.vcpus += u64::from(held.vcpus);
        enough.memory_mib += held.memory_mib;
        enough.disk_mib +=
            vm.disks.iter().filter(|disk| is_local(disk.pool)).map(|d| d.size_mib).sum::<u64>();
    }
    enough.nodes = spares.len();
    Some(enough)
}

/// An empty node like another, with room for anything.
fn spare(like: &NodeShape, n: usize) -> NodeShape {
    let mut spare = like.clone();
    spare.id = NodeId(Uuid::from_u128(!(like.id.0.as_u128().wrapping_add(n as u128))));
    (spare.vcpus, spare.memory_mib) = (u32::MAX, AMOUNT_MAX);
    for cell in &mut spare.cells {
        *cell = Cell { vcpus: u32::MAX, memory_mib: AMOUNT_MAX, huge_mib: AMOUNT_MAX };
    }
    for pool in spare.pools.values_mut() {
        (pool.capacity_mib, pool.held_mib) = (AMOUNT_MAX, 0);
    }
    spare
}
