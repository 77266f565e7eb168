//! Evening out load. The load of a node is the part of its vCPUs and of its memory that is held; unevenness is the
//! sum over nodes and both dimensions of the squared distance from the cluster's own load, in 1/10,000. A move is
//! taken only if it lessens the sum by more than what it costs, so no series of plans can come back to where it was,
//! and a second plan after a whole one finds nothing to do.
//!
//! Deliberately absent: loads that were measured, and how long the load has been uneven; the caller counts that.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::NodeId;

use super::course::{Course, why_not};
use super::reach::straightened;
use super::rounds::rounds;
use super::{Budget, Plan, Terms, Why};
use crate::shape::{AMOUNT_MAX, VmShape};
use crate::survive::guarantee::Guarantee;
use crate::view::View;

/// All of a node, in the unit of loads.
const WHOLE: i64 = 10_000;

/// An absurd load counts as this one: a hundred thousand times the node.
const FARTHEST: i64 = 1_000_000_000;
/// Amounts beyond this (2^64 bytes) count as it.
const AMOUNT_MOST: u64 = 1 << 44;
/// Least loaded nodes that are looked at first, by each measure.
const NEAR: usize = 24;
/// Moves that the guarantee refuses before the search ends: each may have cost a plan of many restarts.
const REFUSALS: usize = 64;

/// When to even out load, and what it may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Nothing is done while no node's load is further than this from the cluster's, in 1/10,000.
    pub threshold: u32,
    /// How many times in a row the caller must have found the load uneven, this time included, before something is
    /// done.
    pub hold: u32,
    /// What copying 1 GiB must gain at least, in squares of 1/10,000: 10,000 evens one node's load by 1 %.
    pub cost_per_gib: u64,
    /// What any move must gain beside that.
    pub margin: u64,
    /// The plan ends after so many moves.
    pub at_most: usize,
}

impl Default for Policy {
    /// A tenth of a node's load, found three times, at 1 % of evenness per GiB and 2 % per move.
    fn default() -> Self {
        Self { threshold: 1_000, hold: 3, cost_per_gib: 10_000, margin: 40_000, at_most: usize::MAX }
    }
}

/// What balancing comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance {
    pub plan: Plan,
    pub before: Unevenness,
    pub after: Unevenness,
    pub outcome: Outcome,
}

/// How uneven load is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unevenness {
    /// The sum of squares; never larger after a plan than before.
    pub squares: u64,
    /// The largest distance of one node in one dimension, in 1/10,000.
    pub worst: u32,
}

/// Why there are no more moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// No node is beyond the threshold.
    Even,
    /// It is uneven, but not for long enough: this is the `lasted`th of `hold` times.
    Waiting {
        lasted: u32,
        hold: u32,
    },
    /// No further move is worth its cost.
    Best,
    /// As many moves as were allowed.
    Limited,
    /// Further moves would have lost the guarantee, as far as the search went.
    Guarded,
    BudgetSpent,
}

/// Plans to even out load. `lasted` is how many times in a row the load was found uneven, this time included; the
/// caller counts it up when the outcome is not [`Outcome::Even`], and otherwise begins anew. A move's `gain` is what
/// it takes off the sum of squares.
pub fn balance(view: &View, policy: &Policy, lasted: u32, terms: &Terms, budget: &mut Budget) -> Balance {
    let loads = Loads::of(view);
    let before = loads.unevenness();
    let nothing = |outcome| Balance { plan: Plan::default(), before, after: before, outcome };
    if before.worst <= policy.threshold {
        return nothing(Outcome::Even);
    }
    if lasted < policy.hold {
        return nothing(Outcome::Waiting { lasted, hold: policy.hold });
    }
    let begin = Course::new(view, terms);
    let kept = begin.kept.as_deref().cloned();
    let mut search = Search { course: begin.clone(), loads, policy, kept, refused: 0 };
    let outcome = match search.run(budget) {
        Outcome::Best if search.refused > 0 => Outcome::Guarded,
        outcome => outcome,
    };
    let after = search.loads.unevenness();
    let end = straightened(search.course, begin, budget);
    Balance { plan: rounds(view, end.moves, &terms.limits), before, after, outcome }
}

/// The loads of all nodes that take VMs.
struct Loads {
    nodes: Vec<Load>,
    /// The cluster's own, which no move changes.
    mean: [i64; 2],
}

#[derive(Clone, Copy)]
struct Load {
    node: NodeId,
    capacity: [i64; 2],
    used: [i64; 2],
    emulation: bool,
}

impl Load {
    /// The larger distance from the mean.
    fn worst(&self, mean: &[i64; 2]) -> u32 {
        let distance = |d: usize| (self.used[d] * WHOLE / self.capacity[d] - mean[d]).unsigned_abs();
        u32::try_from(distance(0).max(distance(1))).unwrap_or(u32::MAX)
    }

    /// The sum of squared distances from the mean, with this much more used.
    fn squares(&self, mean: &[i64; 2], more: [i64; 2]) -> i64 {
        let distance = |d: usize| (self.used[d] + more[d]) * WHOLE / self.capacity[d] - mean[d];
        let square = |d: usize| distance(d).clamp(-FARTHEST, FARTHEST).pow(2);
        square(0) + square(1)
    }
}

impl Loads {
    fn of(view: &View) -> Self {
        let mut nodes = Vec::new();
        for node in view.nodes().filter(|node| node.ready && !node.cordoned) {
            let Some(of) = view.node_use(node.id).filter(|of| of.vcpus > 0 && of.memory_mib > 0) else {
                continue;
            };
            let amounts = |vcpus, memory| [signed(vcpus), signed(memory)];
            let (capacity, used) =
                (amounts(of.vcpus, of.memory_mib), amounts(of.vcpus_used, of.memory_used_mib));
            nodes.push(Load { node: node.id, capacity, used, emulation: node.emulation });
        }
        // By what a VM holds without emulation, so that no move changes it.
        let mut used = [0i128; 2];
        for vm in nodes.iter().flat_map(|load| view.vms_on(load.node)) {
            let size = size(vm)(false);
            used = [used[0] + i128::from(size[0]), used[1] + i128::from(size[1])];
        }
        let mean = [0, 1].map(|d| {
            let capacity: i128 = nodes.iter().map(|load| i128::from(load.capacity[d])).sum();
            i64::try_from(used[d] * i128::from(WHOLE) / capacity.max(1)).unwrap_or(WHOLE)
        });
        Self { nodes, mean }
    }

    fn unevenness(&self) -> Unevenness {
        let squares =
            self.nodes.iter().map(|load| load.squares(&self.mean, [0, 0])).fold(0, i64::saturating_add);
        let worst = self.nodes.iter().map(|load| load.worst(&self.mean)).max().unwrap_or(0);
        Unevenness { squares: u64::try_from(squares).unwrap_or(0), worst }
    }
}

struct Search<'a, 'p> {
    course: Course<'a>,
    loads: Loads,
    policy: &'p Policy,
    /// In step with the course; each move is proposed to it.
    kept: Option<Guarantee>,
    refused: usize,
}

/// A move that is worth more than it costs.
struct Offer {
    worth: i64,
    gain: i64,
    vm: Arc<VmShape>,
    target: usize,
}

impl Search<'_, '_> {
    fn run(&mut self, budget: &mut Budget) -> Outcome {
        loop {
            // The most uneven nodes give first; a node that has nothing to give is passed over.
            let order = self.sorted_by(|load, mean| -load.squares(mean, [0, 0]));
            let near = self.least_loaded();
            let mut moved = false;
            for source in order {
                if self.course.moves.len() >= self.policy.at_most {
                    return Outcome::Limited;
                }
                if self.refused >= REFUSALS {
                    return Outcome::Guarded;
                }
                if !budget.step() {
                    return Outcome::BudgetSpent;
                }
                let is_far = self.loads.nodes[source].worst(&self.loads.mean) > self.policy.threshold;
                moved |= self.give(source, &near, budget)
                    || is_far && self.give(source, &(0..self.loads.nodes.len()).collect(), budget);
            }
            if !moved {
                return if budget.is_spent() { Outcome::BudgetSpent } else { Outcome::Best };
            }
        }
    }

    fn sorted_by(&self, key: impl Fn(&Load, &[i64; 2]) -> i64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.loads.nodes.len()).collect();
        order.sort_by_key(|at| {
            let load = &self.loads.nodes[*at];
            (key(load, &self.loads.mean), load.node)
        });
        order
    }

    /// The nodes with least load by each dimension and by both, in which the best target nearly always is.
    fn least_loaded(&self) -> BTreeSet<usize> {
        let part = |load: &Load, d: usize| load.used[d] * WHOLE / load.capacity[d];
        let orders = [
            self.sorted_by(|load, _| part(load, 0)),
            self.sorted_by(|load, _| part(load, 1)),
            self.sorted_by(|load, _| part(load, 0) + part(load, 1)),
        ];
        orders.into_iter().flat_map(|order| order.into_iter().take(NEAR)).collect()
    }

    /// Carries the best move away from one node to one of the targets, if one is worth it.
    fn give(&mut self, source: usize, targets: &BTreeSet<usize>, budget: &mut Budget) -> bool {
        let mut offers = self.offers(source, targets);
        offers.sort_by_key(|offer| (Reverse(offer.worth), self.loads.nodes[offer.target].node, offer.vm.id));
        let from = self.loads.nodes[source].node;
        for offer in offers {
            if !budget.step() {
                return false;
            }
            let to = self.loads.nodes[offer.target].node;
            if why_not(&self.course.view, &offer.vm, to).is_some() {
                continue;
            }
            if let Some(kept) = &mut self.kept {
                let cells = self.course.view.cells_for(to, &offer.vm);
                if kept.propose_move(offer.vm.id, from, to, cells).is_err() {
                    self.refused += 1;
                    if self.refused >= REFUSALS {
                        return false;
                    }
                    continue;
                }
            }
            self.course.carry(&offer.vm, from, to, Why::Even, offer.gain.unsigned_abs().min(AMOUNT_MAX));
            for (at, sign) in [(source, -1), (offer.target, 1)] {
                let load = &mut self.loads.nodes[at];
                let held = size(&offer.vm)(load.emulation);
                load.used = [load.used[0] + sign * held[0], load.used[1] + sign * held[1]];
            }
            return true;
        }
        false
    }

    fn offers(&self, source: usize, targets: &BTreeSet<usize>) -> Vec<Offer> {
        let (mean, from) = (&self.loads.mean, &self.loads.nodes[source]);
        let mut offers = Vec::new();
        for vm in self.course.view.vms_on(from.node) {
            let size = size(vm);
            let held = size(from.emulation);
            let relief = from.squares(mean, [0, 0]) - from.squares(mean, [-held[0], -held[1]]);
            if relief <= 0 || self.course.way(vm.id).is_err() {
                continue;
            }
            let copied = self.course.copied_by(vm, from.node) >> 10;
            let cost = self.policy.margin.saturating_add(self.policy.cost_per_gib.saturating_mul(copied));
            let cost = i64::try_from(cost).unwrap_or(i64::MAX);
            for target in targets.iter().copied().filter(|target| *target != source) {
                let to = &self.loads.nodes[target];
                let gain = relief + to.squares(mean, [0, 0]) - to.squares(mean, size(to.emulation));
                let worth = gain.saturating_sub(cost);
                if worth > 0 {
                    offers.push(Offer { worth, gain, vm: vm.clone(), target });
                }
            }
        }
        offers
    }
}

/// What a VM adds to a node's use, by whether the node emulates.
fn size(vm: &VmShape) -> impl Fn(bool) -> [i64; 2] + use<'_> {
    |emulation| {
        let size = vm.reservation_on(emulation);
        [i64::from(size.vcpus), signed(size.memory_mib)]
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount.min(AMOUNT_MOST)).unwrap_or(i64::MAX)
}
