//! Records of the cluster itself: its identity, its controllers, who leads, who may join, and which requests were
//! already answered.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::{Stored, resource};
use crate::recovery::Recovery;
use crate::sealed::Sealed;
use crate::{ClusterId, ControllerId, JoinTokenId, Kind, Meta, Name, Scope, TimeMs};

/// What this cluster is. There is one such record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub name: String,
    /// The data format in use; new encodings are written only at their level.
    pub level: u32,
    /// The CA's certificate, PEM.
    pub ca_certificate: String,
    /// The CA's private key, sealed.
    pub ca_key: Sealed,
    /// Digests of the tokens that are cloud admins, hex.
    pub admin_tokens: Vec<String>,
    /// While it lasts no node is fenced and no VM is restarted elsewhere by itself.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub disarmed: Option<Disarmed>,
    /// The records were brought back in time, and what runs has not been accounted for yet.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub recovery: Option<Recovery>,
    /// What is added to every revision and epoch that agents are told, so that none comes again after the store itself
    /// went back in time.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub base: u64,
    /// The ids that this cloud had before it was restored or recovered, oldest first.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub former: Vec<ClusterId>,
}

/// Automatic restarts elsewhere are off, for work on network or storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disarmed {
    pub until: TimeMs,
    pub by: String,
}

impl Cluster {
    /// Whether automatic restarts elsewhere are off now.
    pub fn is_disarmed(&self, now: TimeMs) -> bool {
        self.disarmed.as_ref().is_some_and(|disarmed| now < disarmed.until)
    }
}

impl Stored for Cluster {
    const KIND: &'static str = "cluster";
    fn key(&self) -> String {
        "self".into()
    }
}

/// A process of the control plane. Its part in the Raft group is the group's own record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    pub meta: Meta,
    /// host:port for clients, agents and other controllers.
    pub address: String,
    /// Its seat in the Raft group; made with the data directory.
    pub member: u64,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub version: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub level: u32,
}

resource!(Controller, Controller, |_| Scope::Cluster);

impl Controller {
    pub fn id(&self) -> ControllerId {
        ControllerId(self.meta.id)
    }
}

/// A permission to join. The secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub id: JoinTokenId,
    pub kind: JoinKind,
    /// SHA-256 of the secret, hex.
    pub digest: String,
    pub expire_time: TimeMs,
    pub uses_left: u32,
    /// The only name that may join by it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub name: Option<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinKind {
    Node,
    Controller,
}

impl Stored for JoinToken {
    const KIND: &'static str = "join_token";
    fn key(&self) -> String {
        self.id.to_string()
    }
}

/// A request that was answered, so that its repetition gets the same answer. Kept for an hour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asked, and the client's id for it.
    pub caller: String,
    pub request_id: Uuid,
    pub time: TimeMs,
    pub kind: Kind,
    /// The resource that it made or changed.
    pub subject: Uuid,
    /// SHA-256 of the request, hex: the same id with another content is refused.
    pub digest: String,
}

impl Stored for Request {
    const KIND: &'static str = "request";
    fn key(&self) -> String {
        format!("{}/{}", self.caller, self.request_id)
    }
}
