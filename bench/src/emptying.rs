//! Nodes are emptied by live moves, given ones or as many as possible: how many moves and how much memory that takes
//! against the least that it can take, which is one move for each VM that stands there. Deliberately absent: rules.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::place::find;
use tamdao_scheduler::plan::consolidate::{Aim, consolidate};
use tamdao_scheduler::plan::drain::drain;
use tamdao_scheduler::plan::{Budget, Plan, Terms};
use tamdao_scheduler::{NodeShape, View, VmShape};
use uuid::Uuid;

use crate::fleet::{node_id, random};
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
    let done = if drained.stuck.is_empty() { nodes } else { &BTreeSet::new() };
    written(view, &drained.plan, done, plan)?;
    Ok(Emptying { stuck: drained.stuck.len(), ..Emptying::of(view, nodes, &drained.plan, took) })
}

/// Empties as many nodes as the planner can within the steps of an answer, writes the plan, and says which.
pub fn most(view: &View, terms: &Terms, steps: u64, plan: &mut impl Write) -> Result<(usize, Emptying)> {
    let begin = now();
    let answer = consolidate(view, &Aim::default(), terms, &mut Budget::steps(steps));
    let took = now() - begin;
    let nodes: BTreeSet<NodeId> = answer.emptied.iter().copied().collect();
    written(view, &answer.plan, &nodes, plan)?;
    Ok((nodes.len(), Emptying::of(view, &nodes, &answer.plan, took)))
}

/// How many more nodes of a fleet of equal ones could be empty, by the sums of CPU and memory.
pub fn bound(view: &View) -> usize {
    let (mut used, mut in_use) = ((0, 0), 0);
    for node in view.nodes().filter_map(|node| view.node_use(node.id)) {
        used = (used.0 + node.vcpus_used, used.1 + node.memory_used_mib);
        in_use += usize::from(node.vcpus_used + node.memory_used_mib > 0);
    }
    let least = |node: &NodeShape| {
        let by_cpu = used.0.div_ceil(u64::from(node.vcpus).max(1));
        usize::try_from(by_cpu.max(used.1.div_ceil(node.memory_mib.max(1)))).unwrap_or(usize::MAX)
    };
    view.nodes().next().map_or(0, |node| in_use.saturating_sub(least(node)))
}

fn written(view: &View, planned: &Plan, empty: &BTreeSet<NodeId>, plan: &mut impl Write) -> Result<()> {
    let mut file = PlanFile::begin(plan, view)?;
    file.rounds(1, planned)?;
    empty.iter().try_for_each(|node| file.close(*node))?;
    file.claim("moves", planned.move_count() as u64)
}

impl Emptying {
    fn of(view: &View, nodes: &BTreeSet<NodeId>, plan: &Plan, took: Duration) -> Self {
        let there = || nodes.iter().flat_map(|node| view.vms_on(*node));
        Self {
            took,
            vms: there().count(),
            memory_mib: there().map(|vm| vm.reservation.memory_mib).sum(),
            moves: plan.move_count(),
            moved_mib: plan.copied_mib(),
            rounds: plan.rounds.len(),
            stuck: 0,
        }
    }
}

/// K full nodes of 64 CPUs and 256 GiB, each cut at random into about 20 VMs, which are scattered over half as many
/// nodes more. The best possible answer has K nodes in use.
pub fn planted(k: usize) -> Result<View> {
    let mut below = random(0xcafe + k as u64);
    let mut parts: Vec<(u32, u64)> = Vec::new();
    for _ in 0..k {
        let mut pieces = vec![(64u32, 256u64)];
        // Fewer than 20 if no piece that is drawn can be cut.
        for _ in 0..100 {
            let at = below(pieces.len());
            let (vcpus, gib) = pieces[at];
            if vcpus < 2 || gib < 2 || pieces.len() >= 20 {
                continue;
            }
            let cut =
                (1 + u32::try_from(below(vcpus as usize - 1))?, 1 + below(usize::try_from(gib)? - 1) as u64);
            pieces[at] = cut;
            pieces.push((vcpus - cut.0, gib - cut.1));
        }
        parts.extend(pieces);
    }
    parts.sort_by_key(|(vcpus, gib)| Reverse(u64::from(*vcpus) * 4 + gib));
    let count = k * 3 / 2;
    let mut view = View::new();
    for n in 0..count {
        let mut node = NodeShape::bare(node_id(n), &format!("n{n}"));
        (node.vcpus, node.memory_mib) = (64, 256 * 1_024);
        view.set_node(node);
    }
    for (n, (vcpus, gib)) in parts.into_iter().enumerate() {
        let vm = VmShape::bare(VmId(Uuid::from_u128(n as u128 + 1)), "v", vcpus, gib * 1_024);
        let fits = |node: &NodeId| find(&view, &VmShape { pin: Some(*node), ..vm.clone() }).is_some();
        let at_random = (0..20).map(|_| node_id(below(count))).find(fits);
        let place = at_random.or_else(|| find(&view, &vm).map(|placement| placement.node));
        view.assign(place.context("a VM of half a fleet more has no place")?, Arc::new(vm))?;
    }
    Ok(view)
}
