//! Rolling maintenance: as few groups of nodes as possible that can be down together, one group after the other,
//! until every node had its turn. Each group comes with the plan that empties it, made for the cluster that the
//! groups before it leave; emptied nodes take VMs again when their group is done. Greedy: each group is the longest
//! part of the order that halving finds. Where it costs no larger group, VMs go only to nodes that had their turn,
//! so that they move once. Deliberately absent: bringing VMs back to where they were.

use std::collections::BTreeSet;

use tamdao_model::NodeId;

use super::course::{Course, closed};
use super::drain::{Blocker, drain, newly_unborne};
use super::empty::{DEPTH, TOLERATED_PERCENT, empty_whole, most};
use super::rounds::rounds;
use super::{Budget, Plan, Terms};
use crate::view::View;

/// The groups in their order, and what cannot be emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolling {
    pub groups: Vec<Turn>,
    /// Nodes without a turn, each with what stays on it; none stays if it is the guarantee that forbids.
    pub left: Vec<(NodeId, Vec<Blocker>)>,
}

/// Nodes that are down together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub nodes: BTreeSet<NodeId>,
    /// Made for the cluster after the turns before, with all nodes as cordoned as they are now.
    pub plan: Plan,
}

/// Plans turns for these nodes; unknown ones are passed over.
pub fn rolling(view: &View, nodes: &BTreeSet<NodeId>, terms: &Terms, budget: &mut Budget) -> Rolling {
    let mut rest: BTreeSet<NodeId> =
        nodes.iter().copied().filter(|node| view.node(*node).is_some()).collect();
    let mut now = view.clone();
    let mut rolling = Rolling { groups: Vec::new(), left: Vec::new() };
    while !rest.is_empty() {
        let Some((chosen, end)) = turn(&now, &rest, terms, budget) else { break };
        rolling.groups.push(Turn { plan: rounds(&now, end.moves, &terms.limits), nodes: chosen.clone() });
        now = end.view;
        // The view's cordons are those of the beginning again.
        view.nodes().for_each(|node| now.set_node(node.clone()));
        rest.retain(|node| !chosen.contains(node));
    }
    for node in rest {
        let stuck = drain(&now, &BTreeSet::from([node]), terms, budget).stuck;
        rolling.left.push((node, stuck));
    }
    rolling
}

/// The largest group that was found, with the course that empties it.
fn turn<'a>(
    now: &View,
    rest: &BTreeSet<NodeId>,
    terms: &'a Terms,
    budget: &mut Budget,
) -> Option<(BTreeSet<NodeId>, Course<'a>)> {
    let begin = Course::new(now, terms);
    let mut order: Vec<NodeId> = rest.iter().copied().collect();
    order.sort_by_key(|node| (begin.copied_from(*node), *node));
    let once = longest(&begin, &order, rest, budget);
    let any = longest(&begin, &order, &BTreeSet::new(), budget);
    let size =
        |found: &Option<(BTreeSet<NodeId>, Course)>| found.as_ref().map_or(0, |(nodes, _)| nodes.len());
    let best = if size(&once) >= size(&any) { once } else { any };
    // No part of the order can go; perhaps one alone that comes later in it can.
    let alone = |node: &NodeId| attempt(&begin, &[*node], &BTreeSet::new(), (DEPTH, usize::MAX), budget);
    best.or_else(|| order.iter().find_map(alone))
}

/// The longest part of the order that halving finds, with VMs going to none of the `shut` nodes.
fn longest<'a>(
    begin: &Course<'a>,
    order: &[NodeId],
    shut: &BTreeSet<NodeId>,
    budget: &mut Budget,
) -> Option<(BTreeSet<NodeId>, Course<'a>)> {
    let mut best = None;
    let (mut low, mut high) = (0, most(&begin.view, order, shut));
    while low < high && !budget.is_spent() {
        let middle = (low + high).div_ceil(2);
        let vms: usize = order[..middle].iter().map(|node| begin.view.vms_on(*node).len()).sum();
        match attempt(begin, &order[..middle], shut, (1, vms * TOLERATED_PERCENT / 100), budget) {
            Some(found) => (low, best) = (middle, Some(found)),
            None => high = middle - 1,
        }
    }
    best
}

/// The course that empties these nodes, by depth of chains and tolerance, if the guarantee allows it.
fn attempt<'a>(
    begin: &Course<'a>,
    nodes: &[NodeId],
    shut: &BTreeSet<NodeId>,
    (depth, tolerance): (usize, usize),
    budget: &mut Budget,
) -> Option<(BTreeSet<NodeId>, Course<'a>)> {
    let nodes: BTreeSet<NodeId> = nodes.iter().copied().collect();
    let all: BTreeSet<NodeId> = nodes.union(shut).copied().collect();
    let course = Course { view: closed(&begin.view, &all), ..begin.clone() };
    let mut end = empty_whole(&course, &nodes, (depth, tolerance), budget)?;
    // For the question of the guarantee only the nodes that are down take nothing.
    for node in shut.difference(&nodes) {
        if begin.view.node(*node).is_some_and(|node| !node.cordoned) {
            end.open(*node);
        }
    }
    newly_unborne(&begin.view, &end).is_empty().then_some((nodes, end))
}
