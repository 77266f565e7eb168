//! Volumes: disks. A volume's file is made once; after `made` is recorded a missing file is an error and is never
//! made again.

use serde::{Deserialize, Serialize};

use crate::condition::Conditions;
use crate::record::resource;
use crate::{AgencyId, ImageId, Meta, NodeId, PoolId, Scope, VmId, VolumeId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub meta: Meta,
    pub agency: AgencyId,
    pub spec: VolumeSpec,
    pub status: VolumeStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    pub pool: PoolId,
    /// Wanted virtual size, MiB; can only grow.
    pub size_mib: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub image: Option<ImageId>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub keep_on_delete: bool,
    /// Deletion was asked for and not yet confirmed.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub deleting: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub phase: VolumePhase,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub conditions: Conditions,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub observed_generation: u64,
    /// The node that holds the file, of a local pool.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub node: Option<NodeId>,
    /// The VM that holds the volume.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub vm: Option<VmId>,
    /// The file has been made, once and for ever.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub made: bool,
    /// Virtual size of the file, MiB; 0 before it is made.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub size_mib: u32,
    /// What the file takes, MiB.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub used_mib: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumePhase {
    #[default]
    Pending,
    Creating,
    Available,
    Growing,
    Deleting,
    Failed,
}

resource!(Volume, Volume, |v| Scope::Agency(v.agency));

impl Volume {
    pub fn id(&self) -> VolumeId {
        VolumeId(self.meta.id)
    }
}
