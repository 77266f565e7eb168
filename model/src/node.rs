//! Nodes: hypervisor hosts. Their liveness is the leader's memory; only transitions are recorded.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::assignment::Reservation;
use crate::bmc::{Bmc, Drilled};
use crate::condition::Conditions;
use crate::fence::{Fence, Goodbye};
use crate::limits;
use crate::pool::Pool;
use crate::record::resource;
use crate::vm::Platform;
use crate::{Meta, NodeId, PoolId, Scope, SessionId, TimeMs};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub meta: Meta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cordoned: bool,
    /// Key to its values; the node is lost when all values of one key are.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub failure_domains: BTreeMap<String, BTreeSet<String>>,
    /// Virtual CPUs promised per real one, percent; 0 means the default.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cpu_overcommit_percent: u32,
    /// Memory promised per real memory, percent; 0 means 100.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub memory_overcommit_percent: u32,
    /// Kept for the host, MiB; 0 means the default.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub reserve_memory_mib: u32,
    /// YYYY-MM-DD, or empty.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub support_ends: String,
    /// By which it is powered off when it is lost, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub bmcs: Vec<Bmc>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub phase: NodePhase,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub conditions: Conditions,
    /// libvirt's host UUID: a second node with the same is a cloned machine.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub host_uuid: Uuid,
    /// The last session that was accepted; committed before anything is sent on it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub session: Option<SessionId>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub boot_id: String,
    /// When this boot was first heard of; none when that was before this was kept.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub boot_time: Option<TimeMs>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub address: String,
    /// Where its agent listens for moves; 0 takes no part in them.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub moves_port: u16,
    /// Its agent carries the files of local disks when a VM moves while it is off, and lets no VM go without them.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub carries_files: bool,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub inventory: Inventory,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub pools: BTreeMap<PoolId, PoolSeen>,
    /// Digest of the join token and the key by which it enrolled: the same request once more uses up nothing.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub enrolled_by: String,
    /// libvirt domains that are not ours.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub foreign: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub phase_time: TimeMs,
    /// The version of its keeper, as its agent said last; empty if that found none.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub keeper: String,
    /// The session that ended with the word that nothing runs and no storage lease is held.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub goodbye: Option<Goodbye>,
    /// What is proven of it since it was lost; none while it is not.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub fence: Option<Fence>,
    /// Its drain or return; none while there is none.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub drain: Option<Drain>,
    /// What was last found out about its BMCs, in the order of the spec; none of one that was set since.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub fence_drill: Vec<Drilled>,
    /// When its agent fell silent, the last few times, oldest first.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub losses: Vec<TimeMs>,
}

/// So many losses within [`LOSSES_MS`] make a node unsteady.
pub const LOSSES: usize = 3;
/// Ten minutes, ms.
pub const LOSSES_MS: u64 = 600_000;

impl NodeStatus {
    /// Keeps that it fell silent; of more than the last [`LOSSES`] none matters.
    pub fn note_loss(&mut self, now: TimeMs) {
        self.losses.push(now);
        let more = self.losses.len().saturating_sub(LOSSES);
        self.losses.drain(..more);
    }

    /// Whether it falls silent so often that nothing new should rest on it: [`LOSSES`] times within [`LOSSES_MS`], the
    /// last of them less than `steady_ms` ago.
    pub fn is_unsteady(&self, now: TimeMs, steady_ms: u64) -> bool {
        match self.losses.as_slice() {
            [first, .., last] if self.losses.len() == LOSSES => {
                last.since(*first) <= LOSSES_MS && now.since(*last) < steady_ms
            }
            _ => false,
        }
    }
}

/// A drain, from the asking for it until the node is uncordoned or has returned. Its owner is the drainer; what is
/// moved away is marked at the VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    pub phase: DrainPhase,
    pub since: TimeMs,
    /// When it is given up; none once the node is drained, which waits for people.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub deadline: Option<TimeMs>,
    pub asked_by: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub reason: String,
    /// VMs that cannot move while they run may be shut down for it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub allow_cold: bool,
    /// VMs may move where the failover guarantee is lost by it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub unguarded: bool,
    /// VMs that are still to go, or to come back.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub left: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainPhase {
    /// VMs are being moved away.
    Draining,
    /// The agent has confirmed that nothing runs.
    Drained,
    /// What was moved away is being brought back.
    Returning,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePhase {
    #[default]
    Joining,
    Ready,
    Unreachable,
    NotReady,
    /// Lost, and evidence is sought that it runs nothing.
    Fencing,
    /// Proven to run none of the VMs that its proofs cover.
    Fenced,
    /// Heard again after it was fenced; it is told only what it must not run.
    Returning,
}

/// What a node has, as its agent found it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inventory {
    pub hostname: String,
    pub agent_version: String,
    pub libvirt_version: String,
    pub qemu_version: String,
    /// kvm, or qemu for emulation.
    pub acceleration: String,
    pub cpu_model: String,
    pub cpu_features: Vec<String>,
    pub cpus: u32,
    pub memory_mib: u64,
    pub numa_cells: Vec<NumaCell>,
    pub bridges: Vec<String>,
    pub clock_offset_ms: i64,
    pub machine_types: Vec<String>,
    pub firmware: Vec<String>,
    pub tpm: bool,
    /// CPU models that its guests can be given, as a platform has them.
    pub cpu_models: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaCell {
    pub id: u32,
    pub cpus: Vec<u32>,
    pub memory_mib: u64,
}

/// A pool as one node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSeen {
    pub ready: bool,
    pub capacity_mib: u64,
    pub used_mib: u64,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub message: String,
    /// The node's storage lease; none if it holds none.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub lease: Option<LeaseSeen>,
    /// Since when it is not ready; none while it is.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub lost_time: Option<TimeMs>,
}

/// A storage lease that is held and was renewed in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSeen {
    pub lease_ms: u64,
    /// Of an armed watchdog; none if nothing would stop the host.
    pub watchdog_timeout_ms: Option<u64>,
}

resource!(Node, Node, |_| Scope::Cluster);

impl Node {
    pub fn id(&self) -> NodeId {
        NodeId(self.meta.id)
    }

    /// What VMs may take: physical less reserve, times the overcommit ratio.
    pub fn allocatable(&self) -> Reservation {
        let or = |set: u32, default: u32| u64::from(if set == 0 { default } else { set });
        let cpu = or(self.spec.cpu_overcommit_percent, limits::CPU_OVERCOMMIT_DEFAULT_PERCENT);
        let memory = or(self.spec.memory_overcommit_percent, 100);
        let reserve = match self.spec.reserve_memory_mib {
            0 => (self.status.inventory.memory_mib / 50).max(limits::RESERVE_MEMORY_DEFAULT_MIB),
            set => u64::from(set),
        };
        let memory_mib = self.status.inventory.memory_mib.saturating_sub(reserve);
        Reservation {
            vcpus: u32::try_from(share(u64::from(self.status.inventory.cpus), cpu)).unwrap_or(u32::MAX),
            memory_mib: share(memory_mib, memory),
        }
    }

    /// What each NUMA cell of the inventory may promise, in its order: its part of the node's, so that reserve and
    /// overcommit count there too.
    pub fn cells_allocatable(&self) -> Vec<Reservation> {
        let cells = &self.status.inventory.numa_cells;
        let part = |whole: u64, of: u64, all: u64| {
            let part = u128::from(whole) * u128::from(of.min(all)) / u128::from(all.max(1));
            u64::try_from(part).unwrap_or(limits::AMOUNT_MAX).min(limits::AMOUNT_MAX)
        };
        let cpus = cells.iter().map(|cell| cell.cpus.len() as u64).sum();
        let memory = cells.iter().map(|cell| cell.memory_mib).fold(0, u64::saturating_add);
        let whole = self.allocatable();
        let cell = |cell: &NumaCell| Reservation {
            vcpus: u32::try_from(part(u64::from(whole.vcpus), cell.cpus.len() as u64, cpus))
                .unwrap_or(u32::MAX),
            memory_mib: part(whole.memory_mib, cell.memory_mib, memory),
        };
        cells.iter().map(cell).collect()
    }

    /// Why a guest with this platform cannot run here; none if it can, or if the agent has not told what it has, so that
    /// libvirt finds out.
    pub fn cannot_be(&self, platform: &Platform) -> Option<String> {
        let has = &self.status.inventory;
        let (name, machine) = (&self.meta.name, &platform.machine_type);
        if !has.machine_types.is_empty() && !machine.is_empty() && !has.machine_types.contains(machine) {
            return Some(format!("{name} has no machine type {machine}"));
        }
        // "Skylake-Client,-hle" is wherever Skylake-Client lacks nothing else.
        fn parts(model: &str) -> (&str, BTreeSet<&str>) {
            let (model, lacking) = model.split_once(',').unwrap_or((model, ""));
            (model, lacking.split(',').filter(|word| !word.is_empty()).collect())
        }
        let (model, lacking) = parts(&platform.cpu_model);
        let gives = |one: &String| parts(one).0 == model && parts(one).1.is_subset(&lacking);
        let given = model.is_empty() || has.cpu_models.is_empty() || has.cpu_models.iter().any(gives);
        (!given).then(|| format!("the CPU of {name} ({}) cannot be a {}", has.cpu_model, platform.cpu_model))
    }

    /// Virtual disk size that may be promised in one pool here, MiB; 0 where it cannot be used.
    pub fn pool_allocatable_mib(&self, pool: &Pool) -> u64 {
        let seen = self.status.pools.get(&pool.id()).filter(|seen| seen.ready);
        seen.map_or(0, |seen| pool.allocatable_mib(seen.capacity_mib, seen.used_mib))
    }
}

impl Pool {
    /// Virtual disk size that may be promised where the pool has this real capacity, of which so much is used, MiB:
    /// capacity less reserve, times the overcommit ratio. Where it is really as full as its reserve allows, nothing
    /// more may be promised, however little has been.
    pub fn allocatable_mib(&self, capacity_mib: u64, used_mib: u64) -> u64 {
        let reserve = u64::from(self.spec.reserve_mib);
        match used_mib.saturating_add(reserve) >= capacity_mib {
            true => 0,
            false => share(capacity_mib - reserve, u64::from(self.spec.overcommit_percent.max(100))),
        }
    }
}

/// A node's own word about itself is not trusted to be possible: no amount overflows, or sums up to an overflow.
fn share(amount: u64, percent: u64) -> u64 {
    let exact = u128::from(amount) * u128::from(percent) / 100;
    u64::try_from(exact).unwrap_or(limits::AMOUNT_MAX).min(limits::AMOUNT_MAX)
}
