//! Flavors: named sizes of VMs.

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::{FlavorId, Meta, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flavor {
    pub meta: Meta,
    pub spec: FlavorSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlavorSpec {
    pub vcpus: u32,
    pub memory_mib: u32,
}

resource!(Flavor, Flavor, |_| Scope::Cluster);

impl Flavor {
    pub fn id(&self) -> FlavorId {
        FlavorId(self.meta.id)
    }
}
