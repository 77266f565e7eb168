//! Which losses are guarded. Planners ask the kept guarantee; [`Guard::unborne`] plans each loss from scratch by another
//! way, for tests and for who has nothing kept.

use std::collections::BTreeSet;

use crate::shape::By;
use crate::survive::{Loss, Survival, survive};
use crate::view::View;

/// The losses against which protected VMs are guaranteed a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// The loss of any one node.
    pub nodes: bool,
    /// The loss of any one value of these failure-domain keys.
    pub keys: BTreeSet<String>,
}

impl Guard {
    /// N+1 by node.
    pub fn by_node() -> Self {
        Self { nodes: true, keys: BTreeSet::new() }
    }

    /// What is guarded, nodes first, each in the order of ids or values.
    pub fn losses(&self, view: &View) -> Vec<Loss> {
        let nodes = view.nodes().filter(|_| self.nodes).map(|node| Loss::Node(node.id));
        let values = |key: &String| {
            let values: BTreeSet<&String> =
                view.nodes().filter_map(|node| node.domains.get(key)).flatten().collect();
            values.into_iter().cloned().collect::<Vec<_>>()
        };
        let domains = self
            .keys
            .iter()
            .flat_map(|key| values(key).into_iter().map(|value| Loss::Domain { key: key.clone(), value }));
        nodes.chain(domains).collect()
    }

    /// The same as keys of failure domains.
    pub fn guarded(&self) -> Vec<By> {
        let nodes = self.nodes.then_some(By::Node);
        nodes.into_iter().chain(self.keys.iter().cloned().map(By::Domain)).collect()
    }

    /// Whether nothing is guarded.
    pub fn is_empty(&self) -> bool {
        !self.nodes && self.keys.is_empty()
    }

    /// The losses that cannot be borne, in order.
    pub fn unborne(&self, view: &View) -> Vec<Survival> {
        let all = self.losses(view).into_iter().map(|loss| survive(view, loss));
        all.filter(|survival| !survival.is_guaranteed()).collect()
    }
}
