//! Nodes are emptied by live moves: how many moves and how much memory that takes against the least that it can
//! take, which is one move for each VM that stands there. Deliberately absent: choosing the nodes.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use tamdao_model::NodeId;
use tamdao_scheduler::View;
use tamdao_scheduler::plan::drain::drain;
use tamdao_scheduler::plan::{Budget, Terms};

use crate::plan_file::PlanFile;
use crate::speed::now;

/// Steps of the search; far more than these plans need.
const BUDGET: u64 = 10_000_000;

/// What emptying some nodes came to.
#[derive(Debug, Clone, Copy)]
pub struct Emptying {
    pub took: Duration,
    pub vms: usize,
    pub memory_mib: u64,
    pub moves: usize,
    pub moved_mib: u64,
    pub rounds: usize,
    pub stuck: usize,
}

/// Empties these nodes and writes the plan.
pub fn measure(
    view: &View,
    nodes: &BTreeSet<NodeId>,
    terms: &Terms,
    plan: &mut impl Write,
) -> Result<Emptying> {
    let begin = now();
    let drained = drain(view, nodes, terms, &mut Budget::steps(BUDGET));
    let took = now() - begin;
    let mut file = PlanFile::begin(plan, view)?;
    for (round, moves) in drained.plan.rounds.iter().enumerate() {
        for one in &moves.moves {
            file.move_to(round as u64 + 1, one.vm, one.to)?;
        }
    }
    if drained.stuck.is_empty() {
        for node in nodes {
            file.close(*node)?;
        }
    }
    file.claim("moves", drained.plan.move_count() as u64)?;
    let there = || nodes.iter().flat_map(|node| view.vms_on(*node));
    Ok(Emptying {
        took,
        vms: there().count(),
        memory_mib: there().map(|vm| vm.reservation.memory_mib).sum(),
        moves: drained.plan.move_count(),
        moved_mib: drained.plan.copied_mib(),
        rounds: drained.plan.rounds.len(),
        stuck: drained.stuck.len(),
    })
}
