//! Placement groups: VMs of one agency that are placed with regard to one another. A VM is a member by its own spec;
//! where members are is theirs too, so a group is its rules and nothing else.

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::{AgencyId, Meta, PlacementGroupId, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroup {
    pub meta: Meta,
    pub agency: AgencyId,
    pub spec: PlacementGroupSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementGroupSpec {
    #[serde(default)]
    pub rules: Vec<PlacementRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRule {
    pub kind: PlacementRuleKind,
    pub by: PlacedBy,
    /// Members in one node or failure domain; 0 for a rule that keeps them together.
    #[serde(default)]
    pub at_most: u32,
    /// A wish: no member waits for it.
    #[serde(default)]
    pub preferred: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementRuleKind {
    Apart,
    Together,
}

/// What members are kept apart or together by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacedBy {
    Node,
    /// A failure-domain key.
    Domain(String),
}

/// How the contract calls [`PlacedBy::Node`]; no node may have it as a failure-domain key.
pub const NODE: &str = "node";

resource!(PlacementGroup, PlacementGroup, |group| Scope::Agency(group.agency));

impl PlacementGroup {
    pub fn id(&self) -> PlacementGroupId {
        PlacementGroupId(self.meta.id)
    }
}
