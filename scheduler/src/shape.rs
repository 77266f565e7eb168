//! What the engine is told of nodes, VMs, pools and groups: the facts that decide placement and nothing else.
//! Amounts are what may be promised (overcommit and reserves already applied), in whole virtual CPUs and MiB, so
//! that every sum is exact. Deliberately absent: what only the record or the agent needs, and anything derived.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use tamdao_model::assignment::Reservation;
use tamdao_model::{AgencyId, NodeId, PoolId, VmId};
use uuid::Uuid;

use crate::cells::{CellAsk, Share};

pub use tamdao_model::limits::AMOUNT_MAX;

/// A node as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeShape {
    pub id: NodeId,
    pub name: Arc<str>,
    pub labels: BTreeMap<String, String>,
    /// Failure-domain key to its values; the node is lost when all values of one key are.
    pub domains: BTreeMap<String, BTreeSet<String>>,
    pub ready: bool,
    pub cordoned: bool,
    /// Virtual CPUs that may be promised.
    pub vcpus: u32,
    /// Memory that may be promised, MiB.
    pub memory_mib: u64,
    /// Local and shared pools that the node should hold, with how they stand on it.
    pub pools: BTreeMap<PoolId, NodePool>,
    /// NUMA cells: what VMs that ask for cells may take of each.
    pub cells: Vec<Cell>,
    /// Of the platforms that the cluster's VMs have, those that it can be.
    pub platforms: BTreeSet<Arc<str>>,
    /// It emulates the guests' processors, because hardware virtualisation does not work.
    pub emulation: bool,
    pub bridges: BTreeSet<String>,
    /// Of bios, uefi, uefi-secure.
    pub firmware: BTreeSet<String>,
    pub tpm: bool,
    pub support_ends: Option<Day>,
}

/// How one pool stands on one node. Of a shared pool only `ready` counts here; its room is the pool's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodePool {
    pub ready: bool,
    /// Virtual size that may be promised here, MiB: overcommit applied, reserve taken off. 0 for a shared pool.
    pub capacity_mib: u64,
    /// Promised to the volumes that lie here by record, whatever VM they belong to, MiB.
    pub held_mib: u64,
}

/// One NUMA cell: what it may promise, or what is free in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub vcpus: u32,
    /// Without what is set aside as huge pages, MiB.
    pub memory_mib: u64,
    pub huge_mib: u64,
}

/// A date without a clock: year, month and day as one number, 20311231, which orders as the dates do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub u32);

/// A VM as the engine sees it: what it needs and where it must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmShape {
    pub id: VmId,
    pub name: Arc<str>,
    /// With QEMU's own overhead on a node with hardware virtualisation.
    pub reservation: Reservation,
    /// What a node that emulates must add, MiB.
    pub emulation_extra_mib: u64,
    /// On how many NUMA cells of its node it lies, evenly; 0 if it may lie on any. See [`crate::cells`].
    pub cells: u32,
    /// What it holds of huge pages, MiB, beside its memory; split over its cells, so only a VM that asks for some has any.
    pub huge_mib: u64,
    pub disks: Vec<DiskNeed>,
    /// Labels that the node must have.
    pub labels: BTreeMap<String, String>,
    /// Labels that the node must not have.
    pub forbidden_labels: BTreeMap<String, String>,
    /// The one node that it may run on.
    pub pin: Option<NodeId>,
    pub bridges: BTreeSet<String>,
    /// All of these, of bios, uefi, uefi-secure.
    pub firmware: BTreeSet<String>,
    pub tpm: bool,
    /// What its guest has seen since it first started; none if it never did.
    pub platform: Option<Arc<str>>,
    pub agency: Option<AgencyId>,
    /// VMs of different isolation classes never share a node; none is a class of its own, for all others.
    pub isolation: Option<Arc<str>>,
    /// A higher one is placed and restarted first.
    pub priority: u32,
    /// It is restarted elsewhere when its node is lost.
    pub protected: bool,
    pub groups: BTreeSet<GroupId>,
}

/// Room that one VM needs in one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskNeed {
    pub pool: PoolId,
    /// On the node for a local pool, in the whole cluster for a shared one, MiB.
    pub size_mib: u64,
    /// Where the file of a local pool already lies. There it needs no new room: the node's `held_mib` has it.
    pub on: Option<NodeId>,
}

/// A pool of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolShape {
    pub id: PoolId,
    pub name: Arc<str>,
    /// None for a local pool, whose room is each node's own.
    pub shared: Option<SharedRoom>,
}

/// The room of a shared pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRoom {
    /// Virtual size that may be promised, MiB.
    pub capacity_mib: u64,
    /// Promised to volumes that are not counted with a VM of the view, MiB.
    pub held_mib: u64,
}

/// Names a group within the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub Uuid);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// VMs that are placed with regard to one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: GroupId,
    pub name: Arc<str>,
    pub rules: Vec<Rule>,
}

/// One rule of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub kind: RuleKind,
    pub by: By,
    /// Otherwise it only adds to the score.
    pub required: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// At most this many members in one node or domain; 1 is anti-affinity, more is a spread.
    Apart { at_most: u32 },
    /// All members in one node or domain.
    Together,
}

/// What a rule keeps members apart or together by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    Node,
    /// A failure-domain key. A node with several values of it survives the loss of any one, so its VMs are in no
    /// single domain: they never crowd one, and they are together with the VMs of each of its values.
    Domain(String),
}

impl Cell {
    pub(crate) fn of([vcpus, memory_mib, huge_mib]: Share) -> Self {
        Self { vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX), memory_mib, huge_mib }
    }

    pub(crate) fn share(&self) -> Share {
        [u64::from(self.vcpus), self.memory_mib, self.huge_mib]
    }

    /// For people; huge pages only where they matter.
    pub(crate) fn words(&self, huge: bool) -> String {
        let Self { vcpus, memory_mib, huge_mib } = self;
        match huge {
            false => format!("{vcpus} vCPUs and {memory_mib} MiB"),
            true => format!("{vcpus} vCPUs, {memory_mib} MiB and {huge_mib} MiB of huge pages"),
        }
    }

    /// How much of a need is missing here, in 1/10,000 of it: of whichever lacks most.
    pub(crate) fn lacks(&self, need: &Self) -> u64 {
        let part = |need: u64, free: u64| need.saturating_sub(free).saturating_mul(10_000) / need.max(1);
        let parts = need.share().into_iter().zip(self.share()).map(|(need, free)| part(need, free));
        parts.max().unwrap_or(0)
    }
}

impl NodeShape {
    /// A ready node with nothing in it, to build others from.
    pub fn bare(id: NodeId, name: &str) -> Self {
        Self {
            id,
            name: name.into(),
            labels: BTreeMap::new(),
            domains: BTreeMap::new(),
            ready: true,
            cordoned: false,
            vcpus: 0,
            memory_mib: 0,
            pools: BTreeMap::new(),
            cells: Vec::new(),
            platforms: BTreeSet::new(),
            emulation: false,
            bridges: BTreeSet::new(),
            firmware: BTreeSet::new(),
            tpm: false,
            support_ends: None,
        }
    }
}

impl VmShape {
    /// A VM that needs only processors and memory (overhead counted), to build others from.
    pub fn bare(id: VmId, name: &str, vcpus: u32, memory_mib: u64) -> Self {
        Self {
            id,
            name: name.into(),
            reservation: Reservation { vcpus, memory_mib },
            emulation_extra_mib: 0,
            cells: 0,
            huge_mib: 0,
            disks: Vec::new(),
            labels: BTreeMap::new(),
            forbidden_labels: BTreeMap::new(),
            pin: None,
            bridges: BTreeSet::new(),
            firmware: BTreeSet::new(),
            tpm: false,
            platform: None,
            agency: None,
            isolation: None,
            priority: 0,
            protected: false,
            groups: BTreeSet::new(),
        }
    }

    /// What it holds on a node of this acceleration.
    pub fn reservation_on(&self, emulation: bool) -> Reservation {
        let extra = if emulation { self.emulation_extra_mib } else { 0 };
        Reservation { memory_mib: self.reservation.memory_mib + extra, ..self.reservation }
    }

    /// What it asks of cells on a node of this acceleration.
    pub(crate) fn cell_ask(&self, emulation: bool) -> Option<CellAsk> {
        CellAsk::new(self.cells, self.in_cells(emulation))
    }

    /// What it holds in its cells together.
    pub(crate) fn in_cells(&self, emulation: bool) -> Share {
        let held = self.reservation_on(emulation);
        [u64::from(held.vcpus), held.memory_mib, self.huge_mib]
    }
}
