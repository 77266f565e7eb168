//! Flavors: named sizes of VMs.

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::{FlavorId, Meta, Name, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flavor {
    pub meta: Meta,
    pub spec: FlavorSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlavorSpec {
    pub vcpus: u32,
    pub memory_mib: u32,
    /// Quotas count VMs by it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub class: Option<Name>,
}

resource!(Flavor, Flavor, |_| Scope::Cluster);

impl Flavor {
    pub fn id(&self) -> FlavorId {
        FlavorId(self.meta.id)
    }
}
