//! The plan file of a change to a fleet: what was there, what was done, and what is claimed of it, in the lines that
//! `check-run` reads (`src/bin/check-run.rs` says them). Virtual CPUs are written in thousandths. Deliberately
//! absent: rules beyond capacity, which the scheduler's own judge looks at.

use std::collections::HashMap;
use std::io::Write;

use anyhow::{Context, Result};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::{View, VmShape};

/// A plan file that is being written.
pub struct PlanFile<W> {
    out: W,
    nodes: HashMap<NodeId, usize>,
}

impl<W: Write> PlanFile<W> {
    /// Of a fleet of equal nodes, with what is on it.
    pub fn begin(mut out: W, view: &View) -> Result<Self> {
        let first = view.nodes().next().context("the fleet has no node")?;
        writeln!(out, "nodes {} {} {}", view.node_count(), u64::from(first.vcpus) * 1_000, first.memory_mib)?;
        let nodes = view.nodes().enumerate().map(|(at, node)| (node.id, at)).collect();
        let mut file = Self { out, nodes };
        for node in view.nodes() {
            for vm in view.vms_on(node.id) {
                file.come(0, vm, node.id)?;
            }
        }
        Ok(file)
    }

    pub fn come(&mut self, at_s: u64, vm: &VmShape, node: NodeId) -> Result<()> {
        let (cpu, memory) = (u64::from(vm.reservation.vcpus) * 1_000, vm.reservation.memory_mib);
        let (node, vm) = (self.number(node)?, vm.id.0.as_u128());
        Ok(writeln!(self.out, "+ {at_s} {vm} {cpu} {memory} {node}")?)
    }

    pub fn go(&mut self, at_s: u64, vm: VmId) -> Result<()> {
        Ok(writeln!(self.out, "- {at_s} {}", vm.0.as_u128())?)
    }

    pub fn move_to(&mut self, at_s: u64, vm: VmId, node: NodeId) -> Result<()> {
        let node = self.number(node)?;
        Ok(writeln!(self.out, "> {at_s} {} {node}", vm.0.as_u128())?)
    }

    /// From here on the node must stay empty.
    pub fn close(&mut self, node: NodeId) -> Result<()> {
        let node = self.number(node)?;
        Ok(writeln!(self.out, "x {node}")?)
    }

    pub fn claim(&mut self, what: &str, value: u64) -> Result<()> {
        Ok(writeln!(self.out, "claim {what} {value}")?)
    }

    fn number(&self, node: NodeId) -> Result<usize> {
        self.nodes.get(&node).copied().context("a node is not of the fleet")
    }
}
