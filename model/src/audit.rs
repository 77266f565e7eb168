//! The audit log's records: who asked for what, from where, on what, and what became of it.
//!
//! Their invariant: no value of a request is in one but the names of what it concerns, so no secret can be; of records
//! there are digests only. What was carried out is written in the transaction that did it (`store`), what was refused is
//! in the journal alone.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::Stored;
use crate::role::Role;
use crate::{AgencyId, AuditId, ControllerId, TimeMs};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    pub id: AuditId,
    pub time: TimeMs,
    /// As `auth` writes it.
    pub principal: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub role: Option<Role>,
    /// Where the role is held; none at the cloud.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub role_agency: Option<AgencyId>,
    /// Address and port.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub peer: String,
    /// Who sent it on, and vouches for principal and peer.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub via: Option<ControllerId>,
    pub controller: ControllerId,
    /// "VmService/CreateVm"; verb and sort of path of what is no method.
    pub method: String,
    /// As the request names it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: String,
    /// As the request names it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub name: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub request_id: Option<Uuid>,
    /// gRPC's code by name.
    pub code: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub changes: Vec<Change>,
    /// How many alike it stands for.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u32,
}

/// The code of what was carried out.
pub const OK: &str = "Ok";

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The first segment of its key.
    pub kind: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: Option<AgencyId>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub name: String,
    /// The rest of its key.
    pub id: String,
    /// SHA-256 of the record's JSON, hexadecimal; empty where there was none.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub before: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub after: String,
}

impl Audit {
    pub fn is_refused(&self) -> bool {
        self.code != OK
    }
}

fn one() -> u32 {
    1
}

fn is_one(count: &u32) -> bool {
    *count == 1
}

impl Stored for Audit {
    const KIND: &'static str = "audit";
    /// Keys sort by time, as those of events.
    fn key(&self) -> String {
        format!("{:013}-{}", self.time.0, self.id)
    }
}
