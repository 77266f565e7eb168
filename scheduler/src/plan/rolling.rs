//! Rolling maintenance: as few groups of nodes as possible that can be down together, one group after the other,
//! until every node had its turn. Each group comes with the plan that empties it, made for the cluster that the
//! groups before it leave; emptied nodes take VMs again when their group is done. Greedy: each group is the longest
//! part of the order that is found. Where it costs no group twice as large, VMs go only to nodes that had their turn, so that
//! they move once. Deliberately absent: bringing VMs back to where they were.

use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::NodeId;

use super::course::Course;
use super::drain::{Blocker, drain};
use super::empty::{DEPTH, empty_whole, longest, most};
use super::rounds::rounds;
use super::{Budget, Plan, Terms};
use crate::view::View;

/// VMs of a group for which room is made; there are many groups, and chains cost more than a smaller group.
const TOLERATED: usize = 8;

/// A group is searched for to within this part of it.
const WITHIN: usize = 16;

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
    let mut begin = Course::new(view, terms);
    let mut rolling = Rolling { groups: Vec::new(), left: Vec::new() };
    while !rest.is_empty() {
        let Some((chosen, end)) = turn(&begin, &rest, budget) else { break };
        let mut kept = end.kept_after();
        let plan = rounds(&begin.view, end.moves, &terms.limits);
        rolling.groups.push(Turn { plan, nodes: chosen.clone() });
        let mut now = end.view;
        // The cordons are those of the beginning again.
        view.nodes().for_each(|node| now.set_node(node.clone()));
        kept.iter_mut().for_each(|kept| kept.carry(view.nodes().map(|node| (node.id, node.cordoned)), []));
        begin = Course { terms, view: now, moves: Vec::new(), kept: kept.map(Arc::new) };
        rest.retain(|node| !chosen.contains(node));
    }
    // Whether the guarantee would be kept is no matter of what is stuck.
    let terms = Terms { guard: None, kept: None, ..terms.clone() };
    for node in rest {
        let stuck = drain(&begin.view, &BTreeSet::from([node]), &terms, budget).stuck;
        rolling.left.push((node, stuck));
    }
    rolling
}

/// The largest group that was found, with the course that empties it.
fn turn<'a>(
    begin: &Course<'a>,
    rest: &BTreeSet<NodeId>,
    budget: &mut Budget,
) -> Option<(BTreeSet<NodeId>, Course<'a>)> {
    let mut order: Vec<NodeId> = rest.iter().copied().collect();
    order.sort_by_key(|node| (begin.copied_from(*node), *node));
    // VMs that go only to nodes that had their turn move once; the other way is tried where it could free twice as many.
    let mut best = longest_beside(begin, &order, rest, 0, budget);
    let size = best.as_ref().map_or(0, |(nodes, _)| nodes.len());
    best = longest_beside(begin, &order, &BTreeSet::new(), 2 * size, budget).or(best);
    // No part of the order can go; perhaps one alone that comes later in it can.
    let alone = |node: &NodeId| {
        let nodes = BTreeSet::from([*node]);
        let course = begin.shut(&nodes);
        empty_whole(&course, &nodes, (DEPTH, usize::MAX), budget)
            .and_then(|end| bearable(begin, nodes, &[], end))
    };
    best.or_else(|| order.iter().find_map(alone))
}

/// The longest part of the order that is found while the `beside` nodes take nothing, if it is longer than this.
fn longest_beside<'a>(
    begin: &Course<'a>,
    order: &[NodeId],
    beside: &BTreeSet<NodeId>,
    than: usize,
    budget: &mut Budget,
) -> Option<(BTreeSet<NodeId>, Course<'a>)> {
    let at_most = most(&begin.view, order, beside);
    if at_most <= than {
        return None;
    }
    let closed = |nodes: &BTreeSet<NodeId>| begin.shut(&nodes.union(beside).copied().collect());
    let accept = |nodes: BTreeSet<NodeId>, end| {
        let others: Vec<NodeId> = beside.difference(&nodes).copied().collect();
        bearable(begin, nodes, &others, end)
    };
    let (count, found) = longest(order, at_most, (TOLERATED, WITHIN), closed, accept, budget)?;
    (count > than).then_some(found)
}

/// The nodes with the course that empties them, if the guarantee allows it. For that question only the nodes that
/// are down take nothing; the others are opened.
fn bearable<'a>(
    begin: &Course<'a>,
    nodes: BTreeSet<NodeId>,
    others: &[NodeId],
    mut end: Course<'a>,
) -> Option<(BTreeSet<NodeId>, Course<'a>)> {
    for node in others {
        if begin.view.node(*node).is_some_and(|node| !node.cordoned) {
            end.open(*node);
        }
    }
    end.newly_unborne().is_empty().then_some((nodes, end))
}
