//! Fleets of our own making: equal nodes in racks, filled at random to a given part. A fixed seed makes every run
//! the same. Deliberately absent: packing; a fleet that grew at random is what a scheduler meets.

use std::sync::Arc;

use anyhow::{Context, Result};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::place::find;
use tamdao_scheduler::{By, Cell, Group, GroupId, NodeShape, Rule, RuleKind, View, VmShape};
use uuid::Uuid;

/// (vCPUs, GiB), alike likely: 6.1 vCPUs and 20.2 GiB on average.
pub const FLAVORS: [(u32, u64); 9] =
    [(1, 2), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 32), (16, 64)];
pub const VMS_PER_NODE: usize = 20;
const RACK: usize = 40;
const GROUP: usize = 10;
/// VMs without a place until a fleet counts as full.
const MISSES: usize = 20;

/// What the VMs ask for beyond CPU and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// Every VM is in a group of 10 with anti-affinity by node and a preferred spread by rack.
    Spread,
    /// Nodes have two NUMA cells; VMs of up to 8 vCPUs lie in one, larger ones in both.
    Cells,
}

/// Xorshift (Marsaglia 2003).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap_or(0) % end.max(1)
    }

    /// One of so many, far fewer than 2^32: without a division, which is felt where little else is done.
    pub(crate) fn of(&mut self, end: usize) -> usize {
        (((self.next() >> 32) * end as u64) >> 32) as usize
    }

    /// From 0 to below 1.
    pub(crate) fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A view with what is on it.
pub struct Fleet {
    pub view: View,
    pub placed: Vec<(NodeId, VmId)>,
    random: Random,
    kind: Kind,
    next: u128,
}

impl Fleet {
    /// With 20 VMs for each node, whose sizes are such that these fill `percent` of the whole.
    pub fn new(kind: Kind, nodes: usize, percent: u64) -> Result<Self> {
        let mut view = View::new();
        let of = |amounts: &dyn Fn(&(u32, u64)) -> u64| FLAVORS.iter().map(amounts).sum::<u64>();
        let whole = |sum: u64| sum * VMS_PER_NODE as u64 * 100 / FLAVORS.len() as u64 / percent;
        for n in 0..nodes {
            let mut node = NodeShape::bare(node_id(n), &format!("n{n}"));
            node.vcpus = u32::try_from(whole(of(&|flavor| flavor.0.into())))?;
            node.memory_mib = whole(of(&|flavor| flavor.1 * 1_024));
            node.domains.insert("rack".into(), [format!("r{}", n / RACK)].into());
            if kind == Kind::Cells {
                node.cells =
                    vec![Cell { vcpus: node.vcpus / 2, memory_mib: node.memory_mib / 2, huge_mib: 0 }; 2];
            }
            view.set_node(node);
        }
        for g in 0..nodes * VMS_PER_NODE / GROUP + 1 {
            let apart = |by, required| Rule { kind: RuleKind::Apart { at_most: 1 }, by, required };
            let rules = vec![apart(By::Node, true), apart(By::Domain("rack".into()), false)];
            view.set_group(Group { id: group_id(g), name: format!("g{g}").into(), rules });
        }
        let mut misses = 0;
        let mut fleet = Self { view, placed: Vec::new(), random: Random(0x7a6d_dab0), kind, next: 0 };
        while fleet.placed.len() < nodes * VMS_PER_NODE {
            let vm = fleet.vm();
            let fits = |n: &usize| {
                let pinned = VmShape { pin: Some(node_id(*n)), ..(*vm).clone() };
                find(&fleet.view, &pinned).is_some()
            };
            let at_random = (0..200).map(|_| fleet.random.below(nodes)).find(fits).map(node_id);
            // Where chance finds none, the scheduler does; a VM that has no place is not there.
            let place = at_random.or_else(|| find(&fleet.view, &vm).map(|placement| placement.node));
            let Some(node) = place else {
                misses += 1;
                if misses > MISSES {
                    break;
                }
                continue;
            };
            fleet.view.assign(node, vm.clone())?;
            fleet.placed.push((node, vm.id));
        }
        Ok(fleet)
    }

    /// The next request.
    pub fn vm(&mut self) -> Arc<VmShape> {
        self.next += 1;
        let (vcpus, gib) = FLAVORS[self.random.below(FLAVORS.len())];
        let mut vm = VmShape::bare(VmId(Uuid::from_u128(self.next)), "v", vcpus, gib * 1_024);
        if self.kind == Kind::Spread {
            let groups = self.view.node_count() * VMS_PER_NODE / GROUP;
            vm.groups.insert(group_id(self.random.below(groups)));
        }
        if self.kind == Kind::Cells {
            vm.cells = if vcpus > 8 { 2 } else { 1 };
        }
        (vm.protected, vm.priority) = (true, (self.next % 3) as u32);
        Arc::new(vm)
    }

    /// A random VM leaves.
    pub fn leave(&mut self) -> Result<()> {
        let (node, vm) = self.leaves();
        self.view.release(node, vm).map(|_| ()).context("a VM that leaves is not where it was placed")
    }

    /// The random VM that is to leave.
    pub(crate) fn leaves(&mut self) -> (NodeId, VmId) {
        let at = self.random.below(self.placed.len());
        self.placed.swap_remove(at)
    }
}

/// Of a node by its number. Spread over the whole space, as ids are that were drawn at random.
pub fn node_id(n: usize) -> NodeId {
    NodeId(Uuid::from_u128((n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

/// Numbers for what is drawn elsewhere.
pub(crate) fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut random = Random(seed);
    move |end| random.below(end)
}

fn group_id(g: usize) -> GroupId {
    GroupId(Uuid::from_u128(g as u128))
}
