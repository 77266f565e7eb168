//! Emptying as many nodes as possible, or as many as asked for, with few MiB copied. Nodes are taken in an order;
//! the longest part of it that can be emptied at once is looked for from above, so that no VM moves twice, and then
//! further nodes are tried one by one with room made for their VMs. Empty nodes stay empty.
//!
//! This is a heuristic: a longer part may exist where it did not look. Deliberately absent: turning nodes
//! off, and the guarantee as a rule of the search; it is asked of the end, and nodes are given back until it holds.

use std::collections::BTreeSet;

use tamdao_model::NodeId;

use super::course::Course;
use super::empty::{empty_whole, longest, most};
use super::reach::straightened;
use super::rounds::rounds;
use super::squeeze::squeeze;
use super::{Budget, Plan, Terms};
use crate::survive::Survival;
use crate::view::View;

/// How near to the longest part the search goes, as a part of it.
const WITHIN: usize = 50;
/// Nodes that are tried one by one after the last that could be emptied.
const MISSES: usize = 24;

/// What is to be emptied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aim {
    /// Only these nodes; none means any.
    pub among: Option<BTreeSet<NodeId>>,
    /// So many nodes are enough; none means as many as possible.
    pub count: Option<usize>,
    pub first: First,
}

/// Which nodes go first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum First {
    /// Those with the least to copy.
    #[default]
    FewestBytes,
    /// Those whose hardware support ends first; of these those with the least to copy.
    SupportEnds,
}

/// What a consolidation comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consolidation {
    pub plan: Plan,
    /// Nodes that are empty after the plan and were not before, in the order of ids.
    pub emptied: Vec<NodeId>,
    /// Guarded losses that could be borne before and not after; only if even the empty plan has some.
    pub unborne: Vec<Survival>,
}

/// Plans to empty nodes.
pub fn consolidate(view: &View, aim: &Aim, terms: &Terms, budget: &mut Budget) -> Consolidation {
    let begin = Course::new(view, terms);
    let order = candidates(&begin, aim);
    let wanted = aim.count.unwrap_or(usize::MAX).min(order.len());
    let mut search = Search { view, empty: empty_nodes(view), begin, order, budget };
    let mut at_most = wanted;
    loop {
        let (end, chosen) = search.best(at_most);
        let end = straightened(end, search.closed(&chosen), search.budget);
        let unborne = end.newly_unborne();
        if unborne.is_empty() || chosen.is_empty() {
            let plan = rounds(view, end.moves, &terms.limits);
            return Consolidation { plan, emptied: chosen.into_iter().collect(), unborne };
        }
        at_most = chosen.len() * 3 / 4;
    }
}

/// Nodes whose VMs may all move, in the order in which they are to be emptied.
fn candidates(course: &Course, aim: &Aim) -> Vec<NodeId> {
    let mut order: Vec<_> = course
        .view
        .nodes()
        .filter(|node| aim.among.as_ref().is_none_or(|among| among.contains(&node.id)))
        .filter(|node| {
            let vms = course.view.vms_on(node.id);
            !vms.is_empty() && vms.iter().all(|vm| vm.pin != Some(node.id) && course.way(vm.id).is_ok())
        })
        .map(|node| {
            let support = match aim.first {
                First::FewestBytes => None,
                First::SupportEnds => Some(node.support_ends.map_or(u32::MAX, |day| day.0)),
            };
            (support, course.copied_from(node.id), node.id)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, node)| node).collect()
}

fn empty_nodes(view: &View) -> BTreeSet<NodeId> {
    view.nodes().map(|node| node.id).filter(|node| view.vms_on(*node).is_empty()).collect()
}

struct Search<'a, 'b, 'c> {
    view: &'a View,
    begin: Course<'a>,
    order: Vec<NodeId>,
    empty: BTreeSet<NodeId>,
    budget: &'b mut Budget<'c>,
}

impl<'a> Search<'a, '_, '_> {
    /// The course that empties most nodes, up to `at_most`, and those nodes.
    fn best(&mut self, at_most: usize) -> (Course<'a>, BTreeSet<NodeId>) {
        let at_once = at_most.min(most(self.view, &self.order, &self.empty));
        let closed = |nodes: &BTreeSet<NodeId>| self.begin.shut(&nodes.union(&self.empty).copied().collect());
        let accept = |nodes, course| Some((course, nodes));
        let found = longest(&self.order, at_once, (usize::MAX, WITHIN), closed, accept, self.budget);
        let nothing = || (0, (self.closed(&BTreeSet::new()), BTreeSet::new()));
        let (low, mut best) = found.unwrap_or_else(nothing);
        // Shallow chains first, for all; what exchanges and deep chains cost is spent on what is left.
        let chains = |depth| {
            move |course: Course<'a>, node: NodeId, budget: &mut Budget| {
                let tolerance = course.view.vms_on(node).len();
                empty_whole(&course, &BTreeSet::from([node]), (depth, tolerance), budget)
            }
        };
        best = self.one_by_one(best, low, at_most, chains(1));
        best = self.one_by_one(best, low, at_most, squeeze);
        self.one_by_one(best, low, at_most, chains(2))
    }

    fn closed(&self, nodes: &BTreeSet<NodeId>) -> Course<'a> {
        self.begin.shut(&nodes.union(&self.empty).copied().collect())
    }

    /// Adds further nodes of the order, from `begin` on, each closed and then emptied by `emptied`.
    fn one_by_one(
        &mut self,
        (mut course, mut nodes): (Course<'a>, BTreeSet<NodeId>),
        begin: usize,
        at_most: usize,
        emptied: impl Fn(Course<'a>, NodeId, &mut Budget) -> Option<Course<'a>>,
    ) -> (Course<'a>, BTreeSet<NodeId>) {
        let mut misses = 0;
        for node in self.order.iter().skip(begin) {
            if nodes.contains(node) {
                continue;
            }
            if nodes.len() >= at_most || misses >= MISSES || self.budget.is_spent() {
                break;
            }
            let mut next = course.clone();
            next.close(*node);
            match emptied(next, *node, self.budget) {
                Some(found) => {
                    (course, misses) = (found, 0);
                    nodes.insert(*node);
                }
                None => misses += 1,
            }
        }
        (course, nodes)
    }
}
