//! Events: what happened to a resource, put into the transaction that made it happen.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::Stored;
use crate::{AgencyId, EventId, Kind, Name, NodeId, TimeMs, VmId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub time: TimeMs,
    pub severity: Severity,
    /// One CamelCase word for programs.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: Option<AgencyId>,
    pub subject: Uuid,
    /// The subject's name at that time; the subject may be gone when the event is read.
    pub name: Name,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub node: Option<NodeId>,
    /// Who caused it: a user, a node or a loop.
    pub actor: String,
    /// From what a placement was decided; only what the placer decided has it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub decision: Option<Box<Decision>>,
}

/// From what a placement, or that there is none, was decided: enough to compute it again (docs/decisions/0132). All
/// decisions of one pass have the first two numbers in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The records of this revision were looked at.
    pub revision: u64,
    /// Since this revision the plans of the failover guarantee were carried on; 0 where nothing was guarded.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub planned: u64,
    /// How many VMs had been placed before in the same pass.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub turn: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub score: i64,
    /// The nodes that were kept for a VM that had waited long.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub kept: Option<(VmId, Vec<NodeId>)>,
    /// Of what the VM asked for and of the engine's version, hexadecimal.
    pub digest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
}

impl Stored for Event {
    const KIND: &'static str = "event";
    /// Keys sort by time, so that the oldest are found without reading all.
    fn key(&self) -> String {
        format!("{:013}-{}", self.time.0, self.id)
    }
}
