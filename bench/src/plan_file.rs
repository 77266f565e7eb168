//! The plan file of a change to a fleet: what was there, what was done, and what is claimed of it, in the lines that
//! `check-run` reads (`src/bin/check-run.rs` says them). Virtual CPUs are written in thousandths. Deliberately
//! absent: rules beyond capacity, which the scheduler's own judge looks at.

use std::collections::HashMap;
use std::io::Write;

use anyhow::{Context, Result};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::plan::Plan;
use tamdao_scheduler::{Cells, View, VmShape};

/// A plan file that is being written.
pub struct PlanFile<W> {
    out: W,
    nodes: HashMap<NodeId, usize>,
}

impl<W: Write> PlanFile<W> {
    /// Of a fleet of equal nodes, each with equal NUMA cells or none, and with what is on it.
    pub fn begin(mut out: W, view: &View) -> Result<Self> {
        let first = view.nodes().next().context("the fleet has no node")?;
        let (cpu, cells) = (u64::from(first.vcpus) * 1_000, first.cells.len());
        writeln!(out, "nodes {} {cpu} {} {cells}", view.node_count(), first.memory_mib)?;
        let nodes = view.nodes().enumerate().map(|(at, node)| (node.id, at)).collect();
        let mut file = Self { out, nodes };
        for node in view.nodes() {
            for vm in view.vms_on(node.id) {
                file.come(0, vm, (node.id, view.cells_of(node.id, vm.id)))?;
            }
        }
        Ok(file)
    }

    pub fn come(&mut self, at_s: u64, vm: &VmShape, (node, cells): (NodeId, Cells)) -> Result<()> {
        let (cpu, memory) = (u64::from(vm.reservation.vcpus) * 1_000, vm.reservation.memory_mib);
        let (node, vm) = (self.number(node)?, vm.id.0.as_u128());
        Ok(writeln!(self.out, "+ {at_s} {vm} {cpu} {memory} {node}{}", on(cells))?)
    }

    pub fn go(&mut self, at_s: u64, vm: VmId) -> Result<()> {
        Ok(writeln!(self.out, "- {at_s} {}", vm.0.as_u128())?)
    }

    /// The rounds of a plan, the first at this second; gives the second after the last.
    pub fn rounds(&mut self, mut at_s: u64, plan: &Plan) -> Result<u64> {
        for round in &plan.rounds {
            for one in &round.moves {
                let (vm, to) = (one.vm.0.as_u128(), self.number(one.to)?);
                writeln!(self.out, "> {at_s} {vm} {to}{}", on(one.cells))?;
            }
            at_s += 1;
        }
        Ok(at_s)
    }

    /// From here on the node must stay empty.
    pub fn close(&mut self, node: NodeId) -> Result<()> {
        let node = self.number(node)?;
        Ok(writeln!(self.out, "x {node}")?)
    }

    /// The node may be used again.
    pub fn open(&mut self, node: NodeId) -> Result<()> {
        let node = self.number(node)?;
        Ok(writeln!(self.out, "o {node}")?)
    }

    pub fn claim(&mut self, what: &str, value: u64) -> Result<()> {
        Ok(writeln!(self.out, "claim {what} {value}")?)
    }

    fn number(&self, node: NodeId) -> Result<usize> {
        self.nodes.get(&node).copied().context("a node is not of the fleet")
    }
}

/// The cells of a place, as a further word.
fn on(cells: Cells) -> String {
    if cells.is_empty() { String::new() } else { format!(" {cells}") }
}
