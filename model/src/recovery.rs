//! Recovery: what a cloud that was brought back from the past must find out before it may act again.
//!
//! Its invariant: while the cluster's record holds a [`Recovery`], what runs wins over the records. A [`Finding`] is one
//! node's own word about what it runs; it outlives the recovery for guests that no record knows. Deliberately absent:
//! what follows from it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::record::Stored;
use crate::vm::GuestState;
use crate::{ClusterId, NodeId, SessionId, TimeMs, VmId};

/// Why nothing is started, moved, deleted, evacuated, placed or given an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    pub since: TimeMs,
    /// The cluster that the records are of.
    pub cluster: ClusterId,
    /// Their newest commit.
    pub revision: u64,
    /// When the backup was taken; 0 where there was none.
    pub backup_time: TimeMs,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cause: Cause,
    /// The records still speak of the present as it was: no node is heard before they have been readied.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub unready: bool,
}

/// What brought the records back in time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A backup was restored.
    #[default]
    Restored,
    /// A group that had lost its majority was begun anew from what one survivor had.
    Survivor,
    /// This node had seen a revision that the store has not reached, as the agents are told revisions.
    WentBack { node: NodeId, seen: u64, at: u64 },
}

/// What one node says that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub node: NodeId,
    /// In which it is said.
    pub session: SessionId,
    /// All of it has been said in that session.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub complete: bool,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub guests: BTreeMap<VmId, Found>,
}

/// One guest that has a domain on a node, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub incarnation: u64,
    pub state: GuestState,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub vcpus: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub memory_mib: u32,
    /// That its packet filter lets it use.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub addresses: Vec<IpAddr>,
}

impl Stored for Finding {
    const KIND: &'static str = "finding";
    fn key(&self) -> String {
        self.node.to_string()
    }
}
