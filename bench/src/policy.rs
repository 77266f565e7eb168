//! Who decides where a VM goes: the scheduler, or one of the simple rules that it is measured against. All stand
//! behind one seam and see the same requests. Deliberately absent: anything a rule could know of the future.

use std::sync::Arc;

use anyhow::{Context, Result};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::place::find;
use tamdao_scheduler::{NodeShape, View, VmShape};
use uuid::Uuid;

use crate::stream::{NODE, Size};

/// A fleet of equal nodes, numbered from 0, and a rule that fills it.
pub trait Packer {
    /// The node that this VM now holds; none if it does not fit.
    fn come(&mut self, vm: usize, size: Size) -> Result<Option<usize>>;
    /// The VM leaves the node that it holds.
    fn go(&mut self, vm: usize, node: usize, size: Size) -> Result<()>;
}

/// The rules, ours first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Ours,
    BestFit,
    FirstFit,
    DotProduct,
    WorstFit,
}

impl Policy {
    pub const ALL: [Self; 5] = [Self::Ours, Self::BestFit, Self::FirstFit, Self::DotProduct, Self::WorstFit];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::BestFit => "best fit",
            Self::FirstFit => "first fit",
            Self::DotProduct => "dot product",
            Self::WorstFit => "worst fit",
        }
    }

    /// An empty fleet under this rule.
    pub fn fleet(self, nodes: usize) -> Box<dyn Packer> {
        match self {
            Self::Ours => Box::new(Scheduler::new(nodes)),
            rule => Box::new(Simple { rule, free: vec![NODE; nodes], vms: vec![0; nodes], touched: 0 }),
        }
    }
}

/// A rule that looks at every node in use, and opens the first empty one only if none has room.
struct Simple {
    rule: Policy,
    free: Vec<Size>,
    vms: Vec<u32>,
    /// Nodes from here on were never used.
    touched: usize,
}

impl Simple {
    /// Higher is better; equal scores go to the lowest number.
    fn score(&self, node: usize, size: Size) -> f64 {
        let free = parts(self.free[node]);
        let need = parts(size);
        match self.rule {
            // What would stay free, summed over CPU and memory.
            Policy::BestFit => need.0 + need.1 - free.0 - free.1,
            Policy::WorstFit => free.0 + free.1 - need.0 - need.1,
            // Panigrahy et al. 2011: what is needed times what is free.
            Policy::DotProduct => need.0 * free.0 + need.1 * free.1,
            Policy::FirstFit | Policy::Ours => 0.0,
        }
    }
}

impl Packer for Simple {
    fn come(&mut self, _: usize, size: Size) -> Result<Option<usize>> {
        let has_room = |node: usize| {
            let free = self.free[node];
            free.milli_cpus >= size.milli_cpus && free.memory_mib >= size.memory_mib
        };
        let mut best: Option<(f64, usize)> = None;
        for node in (0..self.touched).filter(|node| self.vms[*node] > 0 && has_room(*node)) {
            let score = self.score(node, size);
            if best.is_none_or(|(best, _)| score > best) {
                best = Some((score, node));
            }
        }
        let empty = || (0..self.free.len()).find(|node| self.vms[*node] == 0 && has_room(*node));
        let Some(node) = best.map(|(_, node)| node).or_else(empty) else { return Ok(None) };
        self.touched = self.touched.max(node + 1);
        self.vms[node] += 1;
        self.free[node].milli_cpus -= size.milli_cpus;
        self.free[node].memory_mib -= size.memory_mib;
        Ok(Some(node))
    }

    fn go(&mut self, _: usize, node: usize, size: Size) -> Result<()> {
        self.vms[node] -= 1;
        self.free[node].milli_cpus += size.milli_cpus;
        self.free[node].memory_mib += size.memory_mib;
        Ok(())
    }
}

/// As parts of a node.
fn parts(size: Size) -> (f64, f64) {
    let part = |of: f64, whole: f64| of / whole;
    (
        part(size.milli_cpus.into(), NODE.milli_cpus.into()),
        part(size.memory_mib as f64, NODE.memory_mib as f64),
    )
}

/// The scheduler. One of its virtual CPUs stands for a thousandth here, and nothing is added for overhead.
struct Scheduler {
    view: View,
}

impl Scheduler {
    fn new(nodes: usize) -> Self {
        let mut view = View::new();
        for node in 0..nodes {
            let mut shape = NodeShape::bare(node_id(node), &format!("n{node}"));
            (shape.vcpus, shape.memory_mib) = (NODE.milli_cpus, NODE.memory_mib);
            view.set_node(shape);
        }
        Self { view }
    }
}

impl Packer for Scheduler {
    fn come(&mut self, vm: usize, size: Size) -> Result<Option<usize>> {
        let shape = VmShape::bare(VmId(Uuid::from_u128(vm as u128)), "v", size.milli_cpus, size.memory_mib);
        let Some(placement) = find(&self.view, &shape) else { return Ok(None) };
        self.view.assign(placement.node, Arc::new(shape))?;
        Ok(Some(usize::try_from(placement.node.0.as_u128())?))
    }

    fn go(&mut self, vm: usize, node: usize, _: Size) -> Result<()> {
        let released = self.view.release(node_id(node), VmId(Uuid::from_u128(vm as u128)));
        released.map(|_| ()).context("a VM that leaves is not where it was placed")
    }
}

fn node_id(node: usize) -> NodeId {
    NodeId(Uuid::from_u128(node as u128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(cpus: u32, gib: u64) -> Size {
        Size { milli_cpus: cpus * 1_000, memory_mib: gib * 1_024 }
    }

    /// Node 0 has 24 CPUs and 36 GiB left, node 1 has 4 and 252, node 2 has 34 and 156.
    fn filled(policy: Policy) -> Box<dyn Packer> {
        let mut fleet = policy.fleet(4);
        for (vm, of) in [size(40, 220), size(60, 4), size(30, 100)].into_iter().enumerate() {
            assert_eq!(fleet.come(vm, of).unwrap(), Some(vm), "{policy:?}");
        }
        fleet
    }

    #[test]
    fn each_rule_has_its_own_choice() {
        let choice = |policy, of| filled(policy).come(9, of).unwrap();
        // Free parts: (0.375, 0.14), (0.0625, 0.98), (0.53, 0.61).
        assert_eq!(choice(Policy::FirstFit, size(1, 1)), Some(0));
        assert_eq!(choice(Policy::BestFit, size(1, 1)), Some(0));
        assert_eq!(choice(Policy::BestFit, size(1, 40)), Some(1));
        assert_eq!(choice(Policy::WorstFit, size(1, 1)), Some(2));
        assert_eq!(choice(Policy::DotProduct, size(4, 1)), Some(2));
        assert_eq!(choice(Policy::DotProduct, size(1, 60)), Some(1));
        assert_eq!(choice(Policy::FirstFit, size(64, 1)), Some(3));
        assert_eq!(choice(Policy::FirstFit, size(65, 1)), None);
    }

    #[test]
    fn the_scheduler_stands_behind_the_same_seam() {
        let mut fleet = Policy::Ours.fleet(1);
        assert_eq!(fleet.come(0, size(64, 1)).unwrap(), Some(0));
        assert_eq!(fleet.come(1, size(1, 1)).unwrap(), None);
        fleet.go(0, 0, size(64, 1)).unwrap();
        assert_eq!(fleet.come(2, size(1, 1)).unwrap(), Some(0));
    }
}
