//! What a keeper that is started again must know to go on: written to /run, which a boot empties, before each answer.
//! A state of another boot is not looked at. Deliberately absent: a disk that could hang.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::BootMs;
use crate::protocol::{NodeId, PoolId, ProcessId, VmId};

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) boot_id: Uuid,
    pub(crate) pools: BTreeMap<PoolId, HeldPool>,
    pub(crate) guests: BTreeMap<VmId, GuardedGuest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldPool {
    pub(crate) node: NodeId,
    pub(crate) path: PathBuf,
    pub(crate) lease_ms: u64,
    pub(crate) renewed_at: Option<BootMs>,
    #[serde(default)]
    pub(crate) held_since: Option<BootMs>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuardedGuest {
    pub(crate) incarnation: u64,
    pub(crate) process: ProcessId,
    pub(crate) pools: BTreeSet<PoolId>,
}

impl State {
    pub(crate) fn new(boot_id: Uuid) -> Self {
        Self { boot_id, pools: BTreeMap::new(), guests: BTreeMap::new() }
    }

    /// The state of this boot; an empty one if there is none.
    pub(crate) fn load(file: &Path, boot_id: Uuid) -> io::Result<Self> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(boot_id)),
            Err(error) => return Err(error),
        };
        let state: Self = serde_json::from_str(&text)?;
        Ok(if state.boot_id == boot_id { state } else { Self::new(boot_id) })
    }

    /// Replaces the file as a whole.
    pub(crate) fn save(&self, file: &Path) -> io::Result<()> {
        let aside = file.with_extension("new");
        fs::write(&aside, serde_json::to_vec(self)?)?;
        fs::rename(aside, file)
    }
}
