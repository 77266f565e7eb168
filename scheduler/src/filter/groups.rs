//! Affinity, anti-affinity and spread, by node or by failure domain. Members that a rule counts are all places held
//! by other VMs of the group; where the VM itself stands never speaks against it.

use std::collections::BTreeMap;

use tamdao_model::VmId;

use super::Ask;
use crate::reason::Reason;
use crate::score::POINTS;
use crate::shape::{By, Group, Rule, RuleKind, VmShape};
use crate::view::{Row, View};

/// One rule of one of the VM's groups, with where the other members are.
pub(crate) struct GroupAsk<'a> {
    group: &'a Group,
    pub(crate) rule: &'a Rule,
    members: u32,
    /// Members by slot, for a rule by node.
    on: BTreeMap<u32, u32>,
    /// Members by value of the key, for a rule by domain: those that would be lost with that value alone.
    only_in: BTreeMap<&'a str, u32>,
    /// Members by value, whatever other values their nodes have.
    also_in: BTreeMap<&'a str, u32>,
}

/// `place_of` says where a member's place on a slot counts: there, or after a loss elsewhere or nowhere.
pub(super) fn asks<'a>(
    view: &'a View,
    vm: &VmShape,
    place_of: &dyn Fn(VmId, u32) -> Option<u32>,
) -> Vec<GroupAsk<'a>> {
    let mut asks = Vec::new();
    for id in &vm.groups {
        let Some(row) = view.group_row(*id) else { continue };
        let Some(group) = row.shape.as_deref() else { continue };
        for rule in &group.rules {
            let (on, only_in, also_in) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            let mut ask = GroupAsk { group, rule, members: 0, on, only_in, also_in };
            let others = row.members.iter().filter(|(member, _)| *member != vm.id);
            for slot in others.filter_map(|(member, slot)| place_of(*member, *slot)) {
                ask.members += 1;
                match &rule.by {
                    By::Node => *ask.on.entry(slot).or_default() += 1,
                    By::Domain(key) => {
                        let Some(values) = view.row(slot).and_then(|row| row.shape.domains.get(key)) else {
                            continue;
                        };
                        for value in values {
                            *ask.also_in.entry(value).or_default() += 1;
                            if values.len() == 1 {
                                *ask.only_in.entry(value).or_default() += 1;
                            }
                        }
                    }
                }
            }
            asks.push(ask);
        }
    }
    asks
}

impl GroupAsk<'_> {
    /// Members that would be lost together with a VM on this node, if the node is in one domain.
    fn crowd(&self, row: &Row) -> Option<u32> {
        match &self.rule.by {
            By::Node => Some(self.on.get(&row.entry.slot).copied().unwrap_or(0)),
            By::Domain(key) => {
                let values = row.shape.domains.get(key).filter(|values| !values.is_empty())?;
                if values.len() > 1 {
                    return Some(0);
                }
                values.first().map(|value| self.only_in.get(value.as_str()).copied().unwrap_or(0))
            }
        }
    }

    /// Why the rule is not kept with the VM on this node.
    fn broken_on(&self, row: &Row) -> Option<Reason> {
        // Names are cloned only where there is something to say: the search asks this of many nodes.
        let names = || (self.group.name.clone(), self.rule.by.clone());
        let unknown = || match &self.rule.by {
            By::Node => None,
            By::Domain(key) => {
                Some(Reason::DomainUnknown { group: self.group.name.clone(), key: key.clone() })
            }
        };
        match self.rule.kind {
            RuleKind::Apart { at_most } => match self.crowd(row) {
                None => unknown(),
                Some(members) if members >= at_most => {
                    let (group, by) = names();
                    Some(Reason::TooCrowded { group, by, members, at_most })
                }
                Some(_) => None,
            },
            RuleKind::Together => match self.together(row) {
                None => unknown(),
                Some(false) => {
                    let (group, by) = names();
                    Some(Reason::NotTogether { group, by })
                }
                Some(true) => None,
            },
        }
    }

    /// Whether every other member is in this node's domain.
    fn together(&self, row: &Row) -> Option<bool> {
        let near = match &self.rule.by {
            By::Node => self.on.get(&row.entry.slot).copied().unwrap_or(0),
            By::Domain(key) => {
                let values = row.shape.domains.get(key).filter(|values| !values.is_empty())?;
                let near = values.iter().map(|value| self.also_in.get(value.as_str()).copied().unwrap_or(0));
                near.max().unwrap_or(0)
            }
        };
        Some(near == self.members)
    }
}

pub(super) fn required(ask: &Ask, row: &Row) -> Option<Reason> {
    ask.groups.iter().filter(|g| g.rule.required).find_map(|g| g.broken_on(row))
}

/// Points for being apart and for being together: the least over the rules, so that one bad rule shows.
pub(super) fn points(ask: &Ask, row: &Row) -> (i64, i64) {
    let (mut apart, mut near) = (POINTS, POINTS);
    for g in &ask.groups {
        match g.rule.kind {
            RuleKind::Apart { .. } => apart = apart.min(apart_points(g.crowd(row))),
            RuleKind::Together if g.together(row) != Some(true) => near = 0,
            RuleKind::Together => {}
        }
    }
    (apart, near)
}

/// A node whose domain is not known counts as the worst.
fn apart_points(crowd: Option<u32>) -> i64 {
    crowd.map_or(0, |crowd| POINTS / (1 + i64::from(crowd)))
}

/// The best points that any node can have, so that a search knows when to stop.
pub(super) fn best(view: &View, groups: &[GroupAsk]) -> (i64, i64) {
    let mut best = POINTS;
    for g in groups.iter().filter(|g| matches!(g.rule.kind, RuleKind::Apart { .. })) {
        let least = match &g.rule.by {
            By::Node if g.on.len() < view.node_count() => Some(0),
            By::Node => g.on.values().copied().min(),
            // Only if every value has its crowd can all nodes be crowded; a node with two values never is.
            By::Domain(key) => {
                let mut values = view.domain_values(key);
                if values.any(|(value, _)| !g.only_in.contains_key(value)) {
                    Some(0)
                } else if view.domain_is_plain(key) {
                    g.only_in.values().copied().min()
                } else {
                    Some(0)
                }
            }
        };
        best = best.min(apart_points(least));
    }
    (best, POINTS)
}

/// Nodes that share a domain with some member, where a required rule asks to be together.
pub(super) fn candidates(ask: &Ask) -> Option<Vec<u32>> {
    let asks =
        ask.groups.iter().filter(|g| g.rule.required && g.rule.kind == RuleKind::Together && g.members > 0);
    let lists = asks.map(|g| match &g.rule.by {
        By::Node => g.on.keys().copied().collect::<Vec<_>>(),
        By::Domain(key) => {
            let near = ask.view.domain_values(key).filter(|(value, _)| g.also_in.contains_key(value));
            let mut slots: Vec<u32> = near.flat_map(|(_, slots)| slots.iter().copied()).collect();
            slots.sort_unstable();
            slots.dedup();
            slots
        }
    });
    lists.min_by_key(Vec::len)
}
