//! Cuts a course into rounds. A move joins the earliest round in which its place is free with all ends of the round
//! held, within the limits. It may overtake an earlier move of the course only where it takes nothing from it: the
//! place of the one overtaken is held too, or, where that is not free yet, nothing enters its node or its groups.
//! So the first move left always fits into a fresh round, and every course becomes a plan of the same moves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::course::{guest, hold, shift, why_not};
use super::{Limits, Move, Plan, Round};
use crate::shape::{Group, GroupId, RuleKind, VmShape};
use crate::view::View;

/// The plan of a course that begins at `before`.
pub(crate) fn rounds(before: &View, moves: Vec<Move>, limits: &Limits) -> Plan {
    let mut now = without_together(before);
    let mut plan = Plan::default();
    let shapes = shapes(before, &moves);
    let mut left = moves;
    while !left.is_empty() {
        let count = left.len();
        let mut open = Open::new(&now, limits);
        left.retain(|a_move| match shapes.get(&a_move.vm) {
            Some(vm) => !open.take(a_move, vm),
            None => false,
        });
        for a_move in &open.round.moves {
            if let Some(vm) = shapes.get(&a_move.vm) {
                shift(&mut now, vm, a_move.from, (a_move.to, a_move.cells));
            }
        }
        let round = open.round;
        debug_assert!(!round.moves.is_empty(), "the first move left fits into a fresh round");
        if round.moves.is_empty() || left.len() == count {
            break;
        }
        plan.rounds.push(round);
    }
    plan
}

/// The cluster without rules that keep members together: such a group may be apart while its members move, and what
/// the course leads to has them together again.
pub(crate) fn without_together(view: &View) -> View {
    let mut fork = view.clone();
    let is_together = |group: &&Group| group.rules.iter().any(|rule| rule.kind == RuleKind::Together);
    for group in view.groups().filter(is_together) {
        let mut group = group.clone();
        group.rules.retain(|rule| rule.kind != RuleKind::Together);
        fork.set_group(group);
    }
    fork
}

fn shapes(view: &View, moves: &[Move]) -> BTreeMap<VmId, Arc<VmShape>> {
    let mut shapes = BTreeMap::new();
    for a_move in moves {
        if let Some(vm) = guest(view, a_move.from, a_move.vm) {
            shapes.entry(a_move.vm).or_insert(vm);
        }
    }
    shapes
}

/// A round that is being filled.
struct Open<'a> {
    limits: &'a Limits,
    round: Round,
    /// The cluster with all ends of the round held, and the places of moves that were overtaken.
    peak: View,
    /// Who goes where in this round, of those that are in groups.
    grouped: Vec<(Arc<VmShape>, NodeId)>,
    moves_of: BTreeMap<NodeId, u32>,
    moves_over: BTreeMap<(String, String), u32>,
    /// VMs with a move that is in this round or was passed over.
    busy: BTreeSet<VmId>,
    /// What nothing may enter, because a move that was passed over will.
    shut_nodes: BTreeSet<NodeId>,
    shut_groups: BTreeSet<GroupId>,
    full: bool,
}

impl<'a> Open<'a> {
    fn new(now: &View, limits: &'a Limits) -> Self {
        Self {
            limits,
            round: Round::default(),
            peak: now.clone(),
            grouped: Vec::new(),
            moves_of: BTreeMap::new(),
            moves_over: BTreeMap::new(),
            busy: BTreeSet::new(),
            shut_nodes: BTreeSet::new(),
            shut_groups: BTreeSet::new(),
            full: false,
        }
    }

    /// Whether the move is now in the round.
    fn take(&mut self, a_move: &Move, vm: &Arc<VmShape>) -> bool {
        if self.full {
            return false;
        }
        let is_free = !self.busy.contains(&vm.id)
            && !self.shut_nodes.contains(&a_move.to)
            && vm.groups.is_disjoint(&self.shut_groups)
            && why_not(&self.peak, vm, a_move.to).is_none()
            && self.peak.cells_have_room(a_move.to, a_move.cells, vm)
            && !self.disturbs(a_move, vm);
        self.busy.insert(vm.id);
        if !is_free {
            self.shut_nodes.insert(a_move.to);
            self.shut_groups.extend(&vm.groups);
            return false;
        }
        let links = crossed(&self.peak, a_move, self.limits);
        hold(&mut self.peak, vm, a_move.to, a_move.cells);
        let node_is_free =
            |node| self.moves_of.get(&node).copied().unwrap_or(0) < self.limits.per_node.max(1);
        let link_is_free = |link: &(String, String)| {
            let at_most = self.limits.per_link.get(&link.0).copied().unwrap_or(u32::MAX);
            self.moves_over.get(link).copied().unwrap_or(0) < at_most.max(1)
        };
        if !node_is_free(a_move.from) || !node_is_free(a_move.to) || !links.iter().all(link_is_free) {
            return false;
        }
        for node in [a_move.from, a_move.to] {
            *self.moves_of.entry(node).or_default() += 1;
        }
        for link in links {
            *self.moves_over.entry(link).or_default() += 1;
        }
        if !vm.groups.is_empty() {
            self.grouped.push((vm.clone(), a_move.to));
        }
        self.round.moves.push(a_move.clone());
        self.full = self.round.moves.len() >= self.limits.at_once.max(1) as usize;
        true
    }

    /// Whether some move of the round could not begin after this one. A VM's own places do not speak against it, so the
    /// order in which two of a group begin may matter; those do not share a round.
    fn disturbs(&self, a_move: &Move, vm: &Arc<VmShape>) -> bool {
        let mut after = self.peak.clone();
        hold(&mut after, vm, a_move.to, a_move.cells);
        self.grouped.iter().filter(|(earlier, _)| !earlier.groups.is_disjoint(&vm.groups)).any(
            |(earlier, to)| {
                let mut without = after.clone();
                without.release(*to, earlier.id).is_none() || why_not(&without, earlier, *to).is_some()
            },
        )
    }
}

/// The limited values of failure domains that exactly one end of the move has.
fn crossed(view: &View, a_move: &Move, limits: &Limits) -> Vec<(String, String)> {
    let values = |node, key: &String| view.node(node).and_then(|node| node.domains.get(key));
    let mut links = Vec::new();
    for key in limits.per_link.keys() {
        let ends = [values(a_move.from, key), values(a_move.to, key)];
        let ends = ends.map(|values| values.cloned().unwrap_or_default());
        links.extend(ends[0].symmetric_difference(&ends[1]).map(|value| (key.clone(), value.clone())));
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Terms, Why, course::Course};
    use crate::text::Cluster;

    /// b comes to n2 when a has left, and goes on to n3; then c comes, which would fit before b, but not beside it.
    #[test]
    fn nothing_enters_ahead_of_a_move_that_waits() {
        let text = "tamdao-cluster 1
            node n1 vcpus=16 memory=1024
            node n2 vcpus=12 memory=1024
            node n3 vcpus=16 memory=1024
            vm a on=n2 vcpus=8 memory=1
            vm b on=n1 vcpus=10 memory=1
            vm c on=n1 vcpus=4 memory=1";
        let view = Cluster::parse(text).unwrap().view().unwrap();
        let nodes: Vec<NodeId> = view.nodes().map(|node| node.id).collect();
        let [a, b, c] = [(1, 0), (0, 0), (0, 1)].map(|(node, at)| view.vms_on(nodes[node])[at].clone());
        let terms = Terms::default();
        let mut course = Course::new(&view, &terms);
        for (vm, from, to) in [(&a, 1, 2), (&b, 0, 1), (&a, 2, 0), (&b, 1, 2), (&c, 0, 1)] {
            assert_eq!(why_not(&course.view, vm, nodes[to]), None);
            course.carry(vm, nodes[from], nodes[to], Why::Wished, 0);
        }
        let plan = rounds(&view, course.moves, &terms.limits);
        assert_eq!(plan.move_count(), 5);
        assert_eq!(crate::judge::judge(&view, &plan, &terms.limits), Ok(()));
    }

    /// Both fit into the rack of three when the one that stands there already is the last to begin, and not when it is the
    /// first: it holds two places there then.
    #[test]
    fn two_of_a_group_whose_order_matters_do_not_share_a_round() {
        let text = "tamdao-cluster 1
            group g apart=domain.rack:2
            node n1 vcpus=8 memory=1024 domain.rack=r1
            node n2 vcpus=8 memory=1024 domain.rack=r2
            node n3 vcpus=8 memory=1024 domain.rack=r1
            vm a on=n1 vcpus=1 memory=1 group=g
            vm b on=n2 vcpus=1 memory=1 group=g";
        let view = Cluster::parse(text).unwrap().view().unwrap();
        let nodes: Vec<NodeId> = view.nodes().map(|node| node.id).collect();
        let [a, b] = [0, 1].map(|node| view.vms_on(nodes[node])[0].clone());
        let terms = Terms::default();
        let mut course = Course::new(&view, &terms);
        course.carry(&b, nodes[1], nodes[2], Why::Wished, 0);
        course.carry(&a, nodes[0], nodes[2], Why::Wished, 0);
        let together = Plan { rounds: vec![Round { moves: course.moves.clone() }] };
        assert!(crate::judge::judge(&view, &together, &terms.limits).is_err());
        let plan = rounds(&view, course.moves, &terms.limits);
        assert_eq!(plan.rounds.len(), 2);
        assert_eq!(crate::judge::judge(&view, &plan, &terms.limits), Ok(()));
    }
}
