//! Why a VM does not fit: typed, with the figures, so that programs can count, compare and suggest. Words for
//! people come from `Display`, which never names another VM or another agency. Deliberately absent: strings as
//! reasons.

use std::fmt;
use std::sync::Arc;

use tamdao_model::PoolId;

use crate::shape::{By, Cell};

/// One rule that one node (or, for a shared pool, the cluster) does not keep for one VM. In the order in which a
/// node's first reason is chosen: what is structural comes before what passes, room comes last, so that nodes
/// counted as without room are otherwise right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The VM is pinned to another node.
    PinnedElsewhere,
    /// A disk of the VM lies in this local pool of the one node that it may therefore run on.
    DiskElsewhere {
        pool: PoolId,
        name: Arc<str>,
    },
    /// The pinned node is not in the cluster.
    PinUnknown,
    LabelMissing {
        key: String,
        value: String,
    },
    LabelForbidden {
        key: String,
        value: String,
    },
    FirmwareMissing {
        firmware: String,
    },
    TpmMissing,
    PlatformMissing {
        platform: Arc<str>,
    },
    BridgeMissing {
        bridge: String,
    },
    PoolAbsent {
        pool: PoolId,
        name: Arc<str>,
    },
    NotReady,
    Cordoned,
    PoolNotReady {
        pool: PoolId,
        name: Arc<str>,
    },
    /// The VM already holds a place here, as a running guest, a move's other end or one not yet confirmed gone.
    AlreadyHere,
    /// The node holds as many VMs as one may, whatever their size.
    TooManyVms {
        vms: u32,
        at_most: u32,
    },
    /// A VM of another isolation class is here.
    IsolationShared,
    /// A required rule asks for a failure domain that the node does not have.
    DomainUnknown {
        group: Arc<str>,
        key: String,
    },
    TooCrowded {
        group: Arc<str>,
        by: By,
        members: u32,
        at_most: u32,
    },
    NotTogether {
        group: Arc<str>,
        by: By,
    },
    NotEnoughDisk {
        pool: PoolId,
        name: Arc<str>,
        need_mib: u64,
        free_mib: u64,
    },
    /// The shared pool has no room, whatever the node.
    SharedPoolFull {
        pool: PoolId,
        name: Arc<str>,
        need_mib: u64,
        free_mib: u64,
    },
    NotEnoughVcpus {
        need: u64,
        free: u64,
    },
    NotEnoughMemory {
        need_mib: u64,
        free_mib: u64,
    },
    /// Fewer NUMA cells have room than the VM asks for.
    NotEnoughCells {
        cells: u32,
        /// On each of them.
        need: Cell,
        /// Cells that have room.
        fitting: u32,
        /// What is free in the one that lacks least, if there is a further one.
        nearest: Option<Cell>,
    },
}

/// A reason without its figures, for counting. Ordered as [`Reason`]'s variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReasonKind {
    PinnedElsewhere,
    DiskElsewhere,
    PinUnknown,
    LabelMissing,
    LabelForbidden,
    FirmwareMissing,
    TpmMissing,
    PlatformMissing,
    BridgeMissing,
    PoolAbsent,
    NotReady,
    Cordoned,
    PoolNotReady,
    AlreadyHere,
    TooManyVms,
    IsolationShared,
    DomainUnknown,
    TooCrowded,
    NotTogether,
    NotEnoughDisk,
    SharedPoolFull,
    NotEnoughVcpus,
    NotEnoughMemory,
    NotEnoughCells,
}

impl Reason {
    pub fn kind(&self) -> ReasonKind {
        match self {
            Self::PinnedElsewhere => ReasonKind::PinnedElsewhere,
            Self::DiskElsewhere { .. } => ReasonKind::DiskElsewhere,
            Self::PinUnknown => ReasonKind::PinUnknown,
            Self::LabelMissing { .. } => ReasonKind::LabelMissing,
            Self::LabelForbidden { .. } => ReasonKind::LabelForbidden,
            Self::FirmwareMissing { .. } => ReasonKind::FirmwareMissing,
            Self::TpmMissing => ReasonKind::TpmMissing,
            Self::PlatformMissing { .. } => ReasonKind::PlatformMissing,
            Self::BridgeMissing { .. } => ReasonKind::BridgeMissing,
            Self::PoolAbsent { .. } => ReasonKind::PoolAbsent,
            Self::NotReady => ReasonKind::NotReady,
            Self::Cordoned => ReasonKind::Cordoned,
            Self::PoolNotReady { .. } => ReasonKind::PoolNotReady,
            Self::AlreadyHere => ReasonKind::AlreadyHere,
            Self::TooManyVms { .. } => ReasonKind::TooManyVms,
            Self::IsolationShared => ReasonKind::IsolationShared,
            Self::DomainUnknown { .. } => ReasonKind::DomainUnknown,
            Self::TooCrowded { .. } => ReasonKind::TooCrowded,
            Self::NotTogether { .. } => ReasonKind::NotTogether,
            Self::NotEnoughDisk { .. } => ReasonKind::NotEnoughDisk,
            Self::SharedPoolFull { .. } => ReasonKind::SharedPoolFull,
            Self::NotEnoughVcpus { .. } => ReasonKind::NotEnoughVcpus,
            Self::NotEnoughMemory { .. } => ReasonKind::NotEnoughMemory,
            Self::NotEnoughCells { .. } => ReasonKind::NotEnoughCells,
        }
    }

    /// How much is lacking, in the reason's own unit; 1 where a rule has no amount. The near-miss of a reason is
    /// the node that lacks least.
    pub fn lack(&self) -> u64 {
        match self {
            Self::NotEnoughDisk { need_mib, free_mib, .. }
            | Self::SharedPoolFull { need_mib, free_mib, .. }
            | Self::NotEnoughMemory { need_mib, free_mib } => need_mib.saturating_sub(*free_mib),
            Self::NotEnoughVcpus { need, free } => need.saturating_sub(*free),
            Self::NotEnoughCells { cells, need, fitting, nearest } => {
                let short = nearest.map_or(10_000, |free| free.lacks(need));
                u64::from(cells.saturating_sub(fitting + 1)) * 10_000 + short
            }
            Self::TooCrowded { members, at_most, .. } => u64::from((members + 1).saturating_sub(*at_most)),
            _ => 1,
        }
    }
}

impl ReasonKind {
    /// One CamelCase word for programs: a condition's reason, an error's detail.
    pub const fn code(self) -> &'static str {
        match self {
            Self::PinnedElsewhere => "PinnedElsewhere",
            Self::DiskElsewhere => "DiskElsewhere",
            Self::PinUnknown => "PinUnknown",
            Self::LabelMissing => "LabelMissing",
            Self::LabelForbidden => "LabelForbidden",
            Self::FirmwareMissing => "FirmwareMissing",
            Self::TpmMissing => "TpmMissing",
            Self::PlatformMissing => "PlatformMissing",
            Self::BridgeMissing => "BridgeMissing",
            Self::PoolAbsent => "PoolAbsent",
            Self::NotReady => "NotReady",
            Self::Cordoned => "Cordoned",
            Self::PoolNotReady => "PoolNotReady",
            Self::AlreadyHere => "AlreadyHere",
            Self::TooManyVms => "TooManyVms",
            Self::IsolationShared => "IsolationShared",
            Self::DomainUnknown => "DomainUnknown",
            Self::TooCrowded => "TooCrowded",
            Self::NotTogether => "NotTogether",
            Self::NotEnoughDisk => "NotEnoughDisk",
            Self::SharedPoolFull => "SharedPoolFull",
            Self::NotEnoughVcpus => "NotEnoughVcpus",
            Self::NotEnoughMemory => "NotEnoughMemory",
            Self::NotEnoughCells => "NotEnoughCells",
        }
    }

    /// The same in a few words, for "3 nodes: …".
    pub const fn words(self) -> &'static str {
        match self {
            Self::PinnedElsewhere => "pinned to another node",
            Self::DiskElsewhere => "its disk is on another node",
            Self::PinUnknown => "pinned to a node that does not exist",
            Self::LabelMissing => "required label missing",
            Self::LabelForbidden => "forbidden label present",
            Self::FirmwareMissing => "firmware missing",
            Self::TpmMissing => "no TPM",
            Self::PlatformMissing => "platform missing",
            Self::BridgeMissing => "network's bridge missing",
            Self::PoolAbsent => "pool not present",
            Self::NotReady => "not ready",
            Self::Cordoned => "cordoned",
            Self::PoolNotReady => "pool not ready",
            Self::AlreadyHere => "already holds this VM",
            Self::TooManyVms => "too many VMs",
            Self::IsolationShared => "holds VMs of another isolation class",
            Self::DomainUnknown => "failure domain not set",
            Self::TooCrowded => "too many members of its group",
            Self::NotTogether => "not where its group is",
            Self::NotEnoughDisk => "not enough disk",
            Self::SharedPoolFull => "shared pool full",
            Self::NotEnoughVcpus => "not enough vCPUs",
            Self::NotEnoughMemory => "not enough memory",
            Self::NotEnoughCells => "no NUMA cell has room",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DiskElsewhere { name, .. } => write!(f, "its disk is in pool {name} of another node"),
            Self::LabelMissing { key, value } => write!(f, "label {key}={value} missing"),
            Self::LabelForbidden { key, value } => write!(f, "has the forbidden label {key}={value}"),
            Self::FirmwareMissing { firmware } => write!(f, "firmware {firmware} missing"),
            Self::PlatformMissing { platform } => write!(f, "cannot be a {platform}"),
            Self::BridgeMissing { bridge } => write!(f, "bridge {bridge} missing"),
            Self::PoolAbsent { name, .. } => write!(f, "pool {name} not present"),
            Self::PoolNotReady { name, .. } => write!(f, "pool {name} not ready"),
            Self::TooManyVms { vms, at_most } => write!(f, "holds {vms} VMs, {at_most} are allowed"),
            Self::DomainUnknown { group, key } => {
                write!(f, "has no failure domain {key}, which group {group} asks for")
            }
            Self::TooCrowded { group, by: By::Node, members, at_most } => {
                write!(f, "already {members} of group {group} on it, {at_most} allowed")
            }
            Self::TooCrowded { group, by, members, at_most } => {
                write!(f, "already {members} of group {group} in its {by}, {at_most} allowed")
            }
            Self::NotTogether { group, by } => write!(f, "group {group} is in another {by}"),
            Self::NotEnoughDisk { name, need_mib, free_mib, .. } => {
                write!(f, "pool {name} needs {need_mib} MiB, has {free_mib} MiB free")
            }
            Self::SharedPoolFull { name, need_mib, free_mib, .. } => {
                write!(f, "shared pool {name} needs {need_mib} MiB, has {free_mib} MiB free")
            }
            Self::NotEnoughVcpus { need, free } => write!(f, "needs {need} vCPUs, has {free} free"),
            Self::NotEnoughMemory { need_mib, free_mib } => {
                write!(f, "needs {need_mib} MiB of memory, has {free_mib} MiB free")
            }
            Self::NotEnoughCells { cells, need, fitting, nearest } => {
                let room = |cell: &Cell| cell.words(need.huge_mib > 0);
                let cells =
                    if *cells == 1 { "a NUMA cell".into() } else { format!("{cells} NUMA cells each") };
                write!(f, "needs {cells} with {}, ", room(need))?;
                match (fitting, nearest) {
                    (0, None) => f.write_str("has none"),
                    (fitting, None) => write!(f, "has only {fitting}"),
                    (0, Some(free)) => write!(f, "the nearest has {} free", room(free)),
                    (fitting, Some(free)) => {
                        write!(f, "there is room in {fitting}, the next has {} free", room(free))
                    }
                }
            }
            Self::PinnedElsewhere
            | Self::PinUnknown
            | Self::TpmMissing
            | Self::NotReady
            | Self::Cordoned
            | Self::AlreadyHere
            | Self::IsolationShared => f.write_str(self.kind().words()),
        }
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Domain(key) => f.write_str(key),
        }
    }
}
