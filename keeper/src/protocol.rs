//! What agent and keeper say to each other, a line of JSON each way over a unix socket. The agent asks, the keeper
//! answers; nothing is told unasked, because an agent that was away has to look anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::BootMs;

/// A longer line is not from an agent.
pub const LINE_MAX: usize = 64 * 1024;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A pool's id, as its marker file says it.
    PoolId
);
id!(
    /// A VM's id.
    VmId
);
id!(
    /// A node's id.
    NodeId
);

/// A process, told apart from a later one with its number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start_time: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Hold a storage lease on this pool. Asking again is fine; the first renewal comes after the answer.
    Hold {
        pool: PoolId,
        node: NodeId,
        path: PathBuf,
        lease_ms: u64,
    },
    /// Guard this process, which is paused and has not run yet.
    Guard {
        vm: VmId,
        incarnation: u64,
        process: ProcessId,
        pools: BTreeSet<PoolId>,
        /// Since when each lease must be held without a break: what the decision to run it rests on. A pool that is
        /// not named here need only be held now, for a guest that runs already.
        #[serde(default)]
        under: BTreeMap<PoolId, BootMs>,
    },
    /// Give the lease back; refused while guests of the pool are there.
    Release {
        pool: PoolId,
    },
    Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Status(Status),
    /// Nothing was changed.
    Refused {
        message: String,
    },
}

/// What the keeper holds and guards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the keeper's software.
    pub version: String,
    pub boot_id: Uuid,
    /// How long the watchdog waits before it fires; none if there is none.
    pub watchdog_timeout_ms: Option<u64>,
    pub pools: Vec<PoolStatus>,
    pub guests: Vec<GuestStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub pool: PoolId,
    pub lease_ms: u64,
    /// Renewed within 2/3 of the lease.
    pub fresh: bool,
    /// When the last renewal that succeeded was sent.
    pub renewed_at: Option<BootMs>,
    /// When the holding began that has not been broken since; none while the lease is not fresh. As long as this is the
    /// same, nobody can have had a reason to believe that this node's guests are gone.
    pub held_since: Option<BootMs>,
    /// How often it was not renewed in time since the keeper began to hold it.
    pub lapses: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    pub vm: VmId,
    pub incarnation: u64,
    pub process: ProcessId,
    pub pools: BTreeSet<PoolId>,
    /// It is being killed and not yet gone.
    pub dying: bool,
}
