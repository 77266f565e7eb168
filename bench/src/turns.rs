//! Maintenance of a whole fleet: every rack emptied for itself, and all nodes in turns. Deliberately absent: the
//! maintenance.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use tamdao_model::NodeId;
use tamdao_scheduler::View;
use tamdao_scheduler::plan::maintain::maintain;
use tamdao_scheduler::plan::rolling::rolling;
use tamdao_scheduler::plan::{Budget, Guard, Terms};

use crate::plan_file::PlanFile;
use crate::speed::now;

/// What the turns of all nodes came to.
#[derive(Debug, Clone)]
pub struct Turns {
    pub took: Duration,
    pub groups: Vec<usize>,
    pub left: usize,
    pub moves: usize,
    /// No turns can be fewer: each needs as much room elsewhere as its VMs take.
    pub least: usize,
    pub steps: u64,
}

/// Plans turns for all nodes and writes them one after the other.
pub fn measure(view: &View, budget: &mut Budget, plan: &mut impl Write) -> Result<Turns> {
    let nodes: BTreeSet<NodeId> = view.nodes().map(|node| node.id).collect();
    let begin = now();
    let answer = rolling(view, &nodes, &Terms::default(), budget);
    let took = now() - begin;
    let mut file = PlanFile::begin(plan, view)?;
    let mut at_s = 1;
    for turn in &answer.groups {
        at_s = file.rounds(at_s, &turn.plan)?;
        turn.nodes.iter().try_for_each(|node| file.close(*node))?;
        turn.nodes.iter().try_for_each(|node| file.open(*node))?;
    }
    let moves = answer.groups.iter().map(|turn| turn.plan.move_count()).sum();
    file.claim("moves", moves as u64)?;
    Ok(Turns {
        took,
        groups: answer.groups.iter().map(|turn| turn.nodes.len()).collect(),
        left: answer.left.len(),
        moves,
        least: least(view),
        steps: budget.spent(),
    })
}

/// Nodes that are down together leave the others at least as much as all VMs hold.
fn least(view: &View) -> usize {
    let (mut capacity, mut used) = ([0u64; 2], [0u64; 2]);
    for of in view.nodes().filter_map(|node| view.node_use(node.id)) {
        capacity = [capacity[0] + of.vcpus, capacity[1] + of.memory_mib];
        used = [used[0] + of.vcpus_used, used[1] + of.memory_used_mib];
    }
    // Of equal nodes, so many can be down at once.
    let count = view.node_count() as u64;
    let at_once = |d: usize| (capacity[d] - used[d]) * count / capacity[d].max(1);
    usize::try_from(count.div_ceil(at_once(0).min(at_once(1)).max(1))).unwrap_or(usize::MAX)
}

/// What emptying each rack for itself came to.
#[derive(Debug, Clone, Copy)]
pub struct Racks {
    pub took: Duration,
    pub racks: usize,
    pub possible: usize,
    pub moves: usize,
}

/// Plans each rack's outage; with `guarded` any node may still be lost at the end. The plan that is written is the
/// first's.
pub fn racks(view: &View, guarded: bool, plan: &mut impl Write) -> Result<Racks> {
    let outages = Guard { nodes: false, keys: BTreeSet::from(["rack".to_owned()]) };
    let terms = Terms { guard: guarded.then(Guard::by_node), ..Terms::default() };
    let begin = now();
    let answers = maintain(view, &outages, &terms, &mut Budget::default());
    let took = now() - begin;
    let mut file = PlanFile::begin(plan, view)?;
    if let Some(first) = answers.first() {
        file.rounds(1, &first.drain.plan)?;
        if first.drain.stuck.is_empty() {
            first.nodes.iter().try_for_each(|node| file.close(*node))?;
        }
        file.claim("moves", first.drain.plan.move_count() as u64)?;
    }
    Ok(Racks {
        took,
        racks: answers.len(),
        possible: answers.iter().filter(|answer| answer.is_possible()).count(),
        moves: answers.iter().map(|answer| answer.drain.plan.move_count()).sum(),
    })
}
