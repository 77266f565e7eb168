//! Images: files that machines start from, kept by the controllers under their digest.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::condition::Conditions;
use crate::record::resource;
use crate::{AgencyId, ControllerId, ImageId, Meta, Scope};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub meta: Meta,
    /// None for an image of the cluster.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: Option<AgencyId>,
    pub spec: ImageSpec,
    pub status: ImageStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    pub kind: ImageKind,
    /// Where to fetch it from; empty when it is uploaded.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub url: String,
    /// Expected digest of the file as sent, hex; empty accepts any.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub sha256: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub min_memory_mib: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageKind {
    Disk,
    Kernel,
    Initrd,
    Iso,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    pub phase: ImagePhase,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub conditions: Conditions,
    /// qcow2 or raw; empty for kernels and ram disks.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub format: String,
    /// Digest of the stored file, hex: the address under which it is kept.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub sha256: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub size_bytes: u64,
    /// Size of a disk made from it, MiB, rounded up.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub virtual_size_mib: u32,
    /// The controllers that hold the file.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub controllers: BTreeSet<ControllerId>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePhase {
    #[default]
    Pending,
    Importing,
    Available,
    Failed,
}

resource!(Image, Image, |i| Scope::from(i.agency));

impl Image {
    pub fn id(&self) -> ImageId {
        ImageId(self.meta.id)
    }
}
