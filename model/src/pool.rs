//! Pools: places for disks on nodes. How a pool stands on each node is the nodes' status, not the pool's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::{Meta, NodeId, PoolId, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub meta: Meta,
    pub spec: PoolSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    pub kind: PoolKind,
    pub shared: bool,
    /// Absolute directory, the same on every node.
    pub path: String,
    /// Empty means every node.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub nodes: BTreeSet<NodeId>,
    /// Virtual size promised per real size, percent, at least 100.
    pub overcommit_percent: u32,
    /// Kept free on each node, MiB.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub reserve_mib: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    Dir,
}

resource!(Pool, Pool, |_| Scope::Cluster);

impl Pool {
    pub fn id(&self) -> PoolId {
        PoolId(self.meta.id)
    }

    /// Whether this node should hold the pool.
    pub fn is_on(&self, node: NodeId) -> bool {
        self.spec.nodes.is_empty() || self.spec.nodes.contains(&node)
    }
}
