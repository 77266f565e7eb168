//! Events: what happened to a resource, put into the transaction that made it happen.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::Stored;
use crate::{AgencyId, EventId, Kind, Name, NodeId, TimeMs};

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
