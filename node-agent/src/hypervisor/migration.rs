//! What a migration is to a hypervisor: where the guest goes, under which incarnation, and which file there stands for
//! which here.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// All that sending a guest takes. The guest arrives paused and stays so until `resume` over there.
#[derive(Clone, Debug, PartialEq)]
pub struct Migration {
    /// The target's hypervisor, as the source's reaches it: `qemu+unix:///system?socket=PATH`.
    pub destination: String,
    /// The socket that carries the memory; of the same name on both hosts.
    pub memory_socket: PathBuf,
    /// The socket that carries the disks; of the same name on both hosts.
    pub disks_socket: PathBuf,
    /// The incarnation in the arriving domain's mark.
    pub incarnation_to: u64,
    /// Each file that the domain may name, as it is called here and on the target.
    pub files: BTreeMap<PathBuf, PathBuf>,
    /// Files, by their names here, whose own data is copied along; the others are there already.
    pub copies: Vec<PathBuf>,
    /// Whether the guest may be slowed down when it dirties memory faster than it can be copied.
    pub auto_converge: bool,
}

/// How a guest's memory is before a migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirtying {
    /// What it has in use, bytes.
    pub memory_bytes: u64,
    /// How much of it the guest changes, bytes a second.
    pub bytes_per_s: u64,
}

/// How far a migration is. What is not known yet is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MigrationProgress {
    /// Memory and disks, bytes.
    pub total_bytes: u64,
    pub processed_bytes: u64,
    pub remaining_bytes: u64,
    pub dirty_bytes_per_s: u64,
    pub bytes_per_s: u64,
    /// How long the guest is expected to stand still, ms.
    pub downtime_ms: u64,
    pub elapsed_ms: u64,
    /// Passes over the memory.
    pub iteration: u64,
}
