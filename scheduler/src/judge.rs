//! The judge of plans, beside [`check`], the judge of steps: replays a plan round by round and says what is wrong
//! with it. In each round all targets are held before any source is given up, which is the most that any order of
//! its moves can hold at once; then each VM of a group is judged once more as the last to come. Rules only get harder to
//! keep with more places of others held, so a round that passes here passes in every order. It shares no code with the planners: rules are judged by [`check`], the rest by its own
//! sums over the view that it is given.
//!
//! Rules that keep a group together cannot hold while the group moves; they are judged once its last move is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use crate::check::{Breach, Broken, Step, check};
use crate::plan::{Limits, Move, Plan, Way};
use crate::shape::{By, GroupId, RuleKind, VmShape};
use crate::view::View;

/// One thing that is wrong with a plan. Rounds are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("round {round} is empty")]
    Empty { round: usize },
    #[error("round {round}: vm {vm} is not on node {from}")]
    NotThere { round: usize, vm: VmId, from: NodeId },
    #[error("round {round}: vm {vm} holds several places, its move must end first")]
    OpenMove { round: usize, vm: VmId },
    #[error("round {round}: vm {vm} moves twice")]
    Twice { round: usize, vm: VmId },
    #[error(
        "round {round}: the move of vm {vm} copies {memory_mib} MiB of memory and {disk_mib} MiB of disk"
    )]
    Amount { round: usize, vm: VmId, memory_mib: u64, disk_mib: u64 },
    #[error("round {round}: vm {} on node {}: {}", .breach.vm, .breach.node, .breach.broken)]
    Rule { round: usize, breach: Breach },
    #[error("round {round}: {moves} moves at once, {at_most} are allowed")]
    AtOnce { round: usize, moves: usize, at_most: u32 },
    #[error("round {round}: {moves} moves on node {node}, {at_most} are allowed")]
    Node { round: usize, node: NodeId, moves: u32, at_most: u32 },
    #[error("round {round}: {moves} moves over the edge of {key} {value}, {at_most} are allowed")]
    Link { round: usize, key: String, value: String, moves: u32, at_most: u32 },
    #[error("group {group} is not together after round {round} by its rule {rule}")]
    Apart { round: usize, group: GroupId, rule: usize },
}

/// All that is wrong with the plan; nothing, if it may be carried out on the cluster as it is.
pub fn judge(before: &View, plan: &Plan, limits: &Limits) -> Result<(), Vec<Fault>> {
    let mut judge =
        Judge { before, places: BTreeMap::new(), faults: Vec::new(), last_moved: BTreeMap::new() };
    let mut steps = Vec::new();
    let mut round_of = Vec::new();
    for (round, moves) in plan.rounds.iter().map(|round| &round.moves).enumerate() {
        if moves.is_empty() {
            judge.faults.push(Fault::Empty { round });
        }
        judge.at_once(round, moves, limits);
        let known = judge.known(round, moves);
        let all = known.iter().map(|(vm, a_move)| {
            let (vm, node, cells) = (vm.clone(), a_move.to, a_move.cells);
            Step::Assign { vm, node, cells }
        });
        steps.extend(all);
        let grouped = known.iter().filter(|(vm, _)| known.len() > 1 && !vm.groups.is_empty());
        steps.extend(grouped.flat_map(|(vm, a_move)| {
            let (vm, node, cells) = (vm.clone(), a_move.to, a_move.cells);
            [Step::Release { vm: vm.id, node }, Step::Assign { vm, node, cells }]
        }));
        steps.extend(known.iter().map(|(vm, a_move)| Step::Release { vm: vm.id, node: a_move.from }));
        round_of.resize(steps.len(), round);
    }
    for breach in check(before, &steps).err().unwrap_or_default() {
        let round = round_of.get(breach.step).copied().unwrap_or(0);
        // Who is judged twice says it once.
        let said = |fault: &Fault| {
            matches!(fault, Fault::Rule { round: of, breach: one }
            if (*of, one.vm, one.node, &one.broken) == (round, breach.vm, breach.node, &breach.broken))
        };
        if !judge.is_together_rule(&breach.broken) && !judge.faults.iter().any(said) {
            judge.faults.push(Fault::Rule { round, breach });
        }
    }
    judge.together();
    if judge.faults.is_empty() { Ok(()) } else { Err(judge.faults) }
}

struct Judge<'a> {
    before: &'a View,
    /// The one place of each VM that has moved.
    places: BTreeMap<VmId, NodeId>,
    faults: Vec<Fault>,
    /// The last round that moved a member of each group.
    last_moved: BTreeMap<GroupId, usize>,
}

impl Judge<'_> {
    /// The moves of VMs that are where the plan says, which is then changed.
    fn known<'m>(&mut self, round: usize, moves: &'m [Move]) -> Vec<(Arc<VmShape>, &'m Move)> {
        let mut known = Vec::new();
        let mut seen = BTreeSet::new();
        for a_move in moves {
            let (vm, from) = (a_move.vm, a_move.from);
            let homes: Vec<NodeId> = self.before.homes(vm).collect();
            let at = self.places.get(&vm).or(homes.first());
            let shape = homes.first().and_then(|home| self.before.vms_on(*home).iter().find(|v| v.id == vm));
            let (Some(shape), true) = (shape, at == Some(&from)) else {
                self.faults.push(Fault::NotThere { round, vm, from });
                continue;
            };
            if homes.len() > 1 {
                self.faults.push(Fault::OpenMove { round, vm });
            }
            if !seen.insert(vm) {
                self.faults.push(Fault::Twice { round, vm });
            }
            let (memory_mib, disk_mib) = self.amount(shape, a_move);
            if (memory_mib, disk_mib) != (a_move.memory_mib, a_move.disk_mib) {
                let (memory_mib, disk_mib) = (a_move.memory_mib, a_move.disk_mib);
                self.faults.push(Fault::Amount { round, vm, memory_mib, disk_mib });
            }
            self.places.insert(vm, a_move.to);
            self.last_moved.extend(shape.groups.iter().map(|group| (*group, round)));
            known.push((shape.clone(), a_move));
        }
        known
    }

    /// What the move really copies.
    fn amount(&self, vm: &VmShape, a_move: &Move) -> (u64, u64) {
        let emulates = self.before.node(a_move.from).is_some_and(|node| node.emulation);
        let extra = if emulates { vm.emulation_extra_mib } else { 0 };
        let memory_mib = vm.reservation.memory_mib + extra + vm.huge_mib;
        let memory_mib = if a_move.way == Way::Live { memory_mib } else { 0 };
        let mut disk_mib = 0;
        for disk in &vm.disks {
            if self.before.pool(disk.pool).is_some_and(|pool| pool.shared.is_none()) {
                disk_mib += disk.size_mib;
            }
        }
        (memory_mib, disk_mib)
    }

    fn at_once(&mut self, round: usize, moves: &[Move], limits: &Limits) {
        if moves.len() > limits.at_once as usize {
            self.faults.push(Fault::AtOnce { round, moves: moves.len(), at_most: limits.at_once });
        }
        let mut of_node: BTreeMap<NodeId, u32> = BTreeMap::new();
        let mut of_link: BTreeMap<(&String, &String), u32> = BTreeMap::new();
        for a_move in moves {
            *of_node.entry(a_move.from).or_insert(0) += 1;
            *of_node.entry(a_move.to).or_insert(0) += 1;
            for key in limits.per_link.keys() {
                let at = |node| self.before.node(node).and_then(|node| node.domains.get(key));
                let (from, to) = (at(a_move.from), at(a_move.to));
                let left = from.into_iter().flatten().filter(|v| !to.is_some_and(|to| to.contains(*v)));
                let entered =
                    to.into_iter().flatten().filter(|v| !from.is_some_and(|from| from.contains(*v)));
                for value in left.chain(entered) {
                    *of_link.entry((key, value)).or_insert(0) += 1;
                }
            }
        }
        for (node, moves) in of_node.into_iter().filter(|(_, moves)| *moves > limits.per_node) {
            self.faults.push(Fault::Node { round, node, moves, at_most: limits.per_node });
        }
        for ((key, value), moves) in of_link {
            let at_most = limits.per_link[key];
            if moves > at_most {
                let (key, value) = (key.clone(), value.clone());
                self.faults.push(Fault::Link { round, key, value, moves, at_most });
            }
        }
    }

    fn is_together_rule(&self, broken: &Broken) -> bool {
        let Broken::Group { group, rule } = broken else { return false };
        let rule = self.before.group(*group).and_then(|group| group.rules.get(*rule));
        rule.is_some_and(|rule| rule.kind == RuleKind::Together)
    }

    /// Whether each group that must be together, and of which a member moved, is together at its end.
    fn together(&mut self) {
        for (id, round) in std::mem::take(&mut self.last_moved) {
            let Some(group) = self.before.group(id) else { continue };
            let mut at: BTreeSet<NodeId> = BTreeSet::new();
            for (vm, node) in self.before.members(id) {
                at.insert(self.places.get(&vm).copied().unwrap_or(node));
            }
            let nodes: Vec<_> = at.iter().filter_map(|node| self.before.node(*node)).collect();
            for (rule, what) in group.rules.iter().enumerate() {
                if !what.required || what.kind != RuleKind::Together {
                    continue;
                }
                let is_together = match &what.by {
                    By::Node => nodes.len() <= 1,
                    By::Domain(key) => {
                        nodes.first().and_then(|first| first.domains.get(key)).is_some_and(|values| {
                            let all_have = |value: &String| {
                                nodes
                                    .iter()
                                    .all(|node| node.domains.get(key).is_some_and(|v| v.contains(value)))
                            };
                            values.iter().any(all_have)
                        })
                    }
                };
                if !is_together {
                    self.faults.push(Fault::Apart { round, group: id, rule });
                }
            }
        }
    }
}
