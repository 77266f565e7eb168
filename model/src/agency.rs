//! Agencies, the tenants, in a tree; and what each holds.

use serde::{Deserialize, Serialize};

use crate::quota::{Amounts, Quota};
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
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub parent: Option<AgencyId>,
    /// For the agency and all below it. What its children are given is cut out of it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub quota: Quota,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub state: AgencyState,
}

/// What an agency may do. Each includes the ones before; an agency is at least what those above it are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgencyState {
    #[default]
    Active,
    /// Nothing new, and nothing larger.
    Frozen,
    /// And nothing runs.
    Archived,
}

resource!(Agency, Agency, |_| Scope::Cluster);

impl Agency {
    pub fn id(&self) -> AgencyId {
        AgencyId(self.meta.id)
    }
}

/// What one agency holds itself, without its children: rewritten in the transaction of the VM or volume that changes
/// it, and so equal at every revision to the sum over them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub agency: AgencyId,
    #[serde(flatten)]
    pub amounts: Amounts,
}

impl Usage {
    pub fn none(agency: AgencyId) -> Self {
        Self { agency, amounts: Amounts::default() }
    }
}

impl Stored for Usage {
    const KIND: &'static str = "usage";
    fn key(&self) -> String {
        self.agency.to_string()
    }
}
