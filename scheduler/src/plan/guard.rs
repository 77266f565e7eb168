//! The seam to the failover guarantee: which guarded losses a cluster cannot bear. Planners ask only here.

use std::collections::BTreeSet;

use crate::survive::{Survival, survive_each_node, survive_each_value};
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

    /// The losses that cannot be borne, in order.
    pub fn unborne(&self, view: &View) -> Vec<Survival> {
        let mut all = if self.nodes { survive_each_node(view) } else { Vec::new() };
        all.extend(self.keys.iter().flat_map(|key| survive_each_value(view, key)));
        all.retain(|survival| !survival.is_guaranteed());
        all
    }
}
