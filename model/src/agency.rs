//! Agencies, the tenants, and what each holds.

use serde::{Deserialize, Serialize};

use crate::record::{Stored, resource};
use crate::{AgencyId, Meta, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agency {
    pub meta: Meta,
    pub spec: AgencySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgencySpec {
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub description: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub contact: String,
}

resource!(Agency, Agency, |_| Scope::Cluster);

impl Agency {
    pub fn id(&self) -> AgencyId {
        AgencyId(self.meta.id)
    }
}

/// What one agency holds: rewritten in the transaction of the VM or volume that changes it, and so equal at every
/// revision to the sum over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub agency: AgencyId,
    pub vms: u32,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub volumes: u32,
    pub disk_mib: u64,
    pub addresses: u32,
}

impl Usage {
    pub fn none(agency: AgencyId) -> Self {
        Self { agency, vms: 0, vcpus: 0, memory_mib: 0, volumes: 0, disk_mib: 0, addresses: 0 }
    }
}

impl Stored for Usage {
    const KIND: &'static str = "usage";
    fn key(&self) -> String {
        self.agency.to_string()
    }
}
