//! The brake: when so many nodes fall silent at once that it must be the network that failed, nothing is evacuated.
//! Pure. Its invariant: nodes of which something is proven never count, since what is proven is no guess; and a loss that
//! the operator planned for, inside one value of a guarded failure domain, is never braked.

use std::collections::BTreeSet;

use tamdao_model::node::{Node, NodePhase};
use tamdao_seams::{Mutant, has};
use tamdao_store::view::View;

/// So many silent nodes are never too many.
const ALWAYS_FREE: usize = 2;
/// Nor is this share of all nodes, percent.
const FREE_PERCENT: usize = 25;

/// Evacuation is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Braked {
    /// Nodes that are not heard and of which nothing is proven.
    pub silent: usize,
    pub nodes: usize,
}

impl std::fmt::Display for Braked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} nodes are not heard and nothing is proven of them: it looks as if the network had failed, so no VM \
             is restarted elsewhere before there are proofs (tamdao node attest-gone, for those that are really gone)",
            self.silent, self.nodes
        )
    }
}

/// Whether evacuation has to stop, as the records are.
pub fn applied(view: &View) -> Option<Braked> {
    let policy = view.scheduling_policy();
    let guarded = policy.map(|row| row.spec.guarded_failure_domains.clone()).unwrap_or_default();
    let silent = view.nodes.iter().filter(|node| is_silent(node)).map(|node| &*node.value);
    brake(view.nodes.len(), &silent.collect::<Vec<_>>(), &guarded)
}

/// Not heard, and its storage lease may be alive for all that is known.
fn is_silent(node: &Node) -> bool {
    matches!(node.status.phase, NodePhase::Unreachable | NodePhase::Fencing)
        && (node.status.goodbye.is_none()
            || node.status.goodbye.map(|said| said.session) != node.status.session)
}

/// So few of all nodes that what they have in common may be chance: each is looked at for itself.
pub fn are_few(some: usize, nodes: usize) -> bool {
    some <= ALWAYS_FREE || some * 100 <= nodes * FREE_PERCENT
}

/// The rule itself: so many nodes in all, those that are silent, and the keys of guarded failure domains.
fn brake(nodes: usize, silent: &[&Node], guarded: &BTreeSet<String>) -> Option<Braked> {
    if are_few(silent.len(), nodes) {
        return None;
    }
    let one_value = |key: &String| {
        // A node is lost with a value if that is its only one.
        let value =
            |node: &&Node| node.spec.failure_domains.get(key).filter(|values| values.len() == 1).cloned();
        let first = silent.first().and_then(value);
        first.is_some() && silent.iter().all(|node| value(node) == first)
    };
    let planned_for = guarded.iter().any(one_value) && !has(Mutant::BrakeStopsRack);
    (!planned_for).then_some(Braked { silent: silent.len(), nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tamdao_model::node::{NodeSpec, NodeStatus};
    use tamdao_model::{Meta, Name, TimeMs};
    use uuid::Uuid;

    fn node(domains: &[(&str, &[&str])]) -> Node {
        let failure_domains: BTreeMap<_, BTreeSet<String>> = domains
            .iter()
            .map(|(key, values)| {
                ((*key).to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
            })
            .collect();
        Node {
            meta: Meta::new(Uuid::from_u128(1), Name::new("n").unwrap(), TimeMs(1)),
            spec: NodeSpec { failure_domains, ..NodeSpec::default() },
            status: NodeStatus::default(),
        }
    }

    fn keys(keys: &[&str]) -> BTreeSet<String> {
        keys.iter().map(|key| (*key).to_owned()).collect()
    }

    #[test]
    fn few_silent_nodes_are_nodes_and_many_are_the_network() {
        let plain = node(&[]);
        let silent = |count| vec![&plain; count];
        for (nodes, count, braked) in [
            (3, 2, false),
            (3, 3, true),
            (8, 2, false),
            (8, 3, true),
            (12, 3, false),
            (13, 4, true),
            (16, 4, false),
        ] {
            assert_eq!(brake(nodes, &silent(count), &keys(&[])).is_some(), braked, "{count} of {nodes}");
        }
    }

    #[test]
    fn a_guarded_rack_may_be_lost_as_a_whole_but_not_two_halves() {
        let (r1, r2, both) =
            (node(&[("rack", &["r1"])]), node(&[("rack", &["r2"])]), node(&[("rack", &["r1", "r2"])]));
        let guarded = keys(&["rack"]);
        assert_eq!(brake(8, &[&r1, &r1, &r1, &r1], &guarded), None);
        assert_eq!(brake(8, &[&r1, &r1, &r1, &r1], &keys(&["feed"])), Some(Braked { silent: 4, nodes: 8 }));
        assert!(brake(8, &[&r1, &r1, &r2], &guarded).is_some());
        // A node with two supplies is not lost with one of them.
        assert!(brake(8, &[&r1, &r1, &both], &guarded).is_some());
        assert!(brake(8, &[&node(&[]), &node(&[]), &node(&[])], &guarded).is_some(), "no value is no place");
    }
}
