//! Why here, why not there, and the least that would make a VM fit. It runs the same rules and the same score as
//! the search, on every node. Deliberately absent: changes of the request itself, which only its owner can judge.

use std::fmt;
use std::sync::Arc;

use tamdao_model::{NodeId, PoolId};

use crate::cells::CELLS_MAX;
use crate::filter::Ask;
use crate::index::{DISK, MEMORY, VCPUS};
use crate::place::{Rejection, rejection};
use crate::reason::{Reason, ReasonKind};
use crate::score::Points;
use crate::shape::{By, Cell, VmShape};
use crate::view::{Row, View};

/// How many fixes an explanation offers.
const FIXES: usize = 5;

/// All that can be said about one VM and one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// One per node: where it fits first, best first; then those that lack least.
    pub verdicts: Vec<Verdict>,
    /// Counts of the first reasons. Nodes that fit are in none.
    pub histogram: Rejection,
    /// What would make it fit, least effort first; empty if it fits.
    pub fixes: Vec<Fix>,
}

/// One node's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub node: NodeId,
    pub name: Arc<str>,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Fits {
        score: i64,
        /// In the order of [`crate::score::TABLE`].
        points: Points,
    },
    /// Every rule that it does not keep, structural ones first.
    Unfit { reasons: Vec<Reason> },
}

/// Changes that together make a VM fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// The node to change, with its name; none if the change is the cluster's.
    pub node: Option<(NodeId, Arc<str>)>,
    pub changes: Vec<Change>,
}

/// One thing an operator can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Uncordon,
    AddLabel {
        key: String,
        value: String,
    },
    RemoveLabel {
        key: String,
        value: String,
    },
    SetDomain {
        key: String,
    },
    FreeVcpus {
        vcpus: u64,
    },
    FreeMemory {
        mib: u64,
    },
    FreeDisk {
        pool: PoolId,
        name: Arc<str>,
        mib: u64,
    },
    FreeSharedPool {
        pool: PoolId,
        name: Arc<str>,
        mib: u64,
    },
    /// The node holds as many VMs as one may.
    MoveVms {
        vms: u64,
    },
    /// Room in one more NUMA cell, or in more than one.
    FreeCells {
        cells: u32,
        room: Cell,
    },
    MakeReady,
    RepairPool {
        pool: PoolId,
        name: Arc<str>,
    },
    /// The VM is still known to be here; wait, or make sure that it is gone.
    ConfirmGone,
    Unpin,
    /// The VM's disk comes along, as a copy in a pool of the node, or lies in a shared pool from then on.
    BringDisk {
        pool: PoolId,
        name: Arc<str>,
    },
    AddBridge {
        bridge: String,
    },
    AddPool {
        pool: PoolId,
        name: Arc<str>,
    },
    RelaxGroup {
        group: Arc<str>,
        by: By,
    },
    MoveOtherClasses,
    InstallFirmware {
        firmware: String,
    },
    /// No change of use can help: the node is smaller than the VM.
    EnlargeNode {
        vcpus: u64,
        memory_mib: u64,
        disk_mib: u64,
    },
    /// No change of use can help: the node has too few NUMA cells of this size.
    EnlargeCells {
        cells: u32,
        room: Cell,
    },
    AddTpm,
    BecomePlatform {
        platform: Arc<str>,
    },
}

impl Explanation {
    /// Whether some node would take it.
    pub fn fits(&self) -> bool {
        matches!(self.verdicts.first(), Some(Verdict { outcome: Outcome::Fits { .. }, .. }))
    }
}

/// The rules about its node and its company that a VM does not keep where it stands: labels, pin, isolation and groups.
/// Room is not asked, for it holds its own; nor what the node has lost since, which its own health tells.
pub fn broken_where_it_is(view: &View, node: NodeId, vm: &VmShape) -> Vec<Reason> {
    let ask = Ask::new(view, vm);
    let row = view.slot(node).and_then(|slot| view.row(slot));
    let about_company = |reason: &Reason| {
        matches!(
            reason.kind(),
            ReasonKind::PinnedElsewhere
                | ReasonKind::DiskElsewhere
                | ReasonKind::LabelMissing
                | ReasonKind::LabelForbidden
                | ReasonKind::IsolationShared
                | ReasonKind::DomainUnknown
                | ReasonKind::TooCrowded
                | ReasonKind::NotTogether
        )
    };
    row.into_iter().flat_map(|row| ask.reasons(row).filter(about_company).collect::<Vec<_>>()).collect()
}

/// Explains one VM against one view.
pub fn explain(view: &View, vm: &VmShape) -> Explanation {
    let ask = Ask::new(view, vm);
    let histogram = rejection(&ask);
    let mut verdicts: Vec<(Rank, Verdict, Vec<Change>)> = Vec::with_capacity(view.node_count());
    for row in view.rows_by_id() {
        let (node, name) = (row.shape.id, row.shape.name.clone());
        let mut reasons: Vec<Reason> = ask.reasons(row).collect();
        // A full shared pool speaks against every node; an unknown pin has each node say so itself.
        reasons
            .extend(histogram.cluster.clone().filter(|reason| reason.kind() == ReasonKind::SharedPoolFull));
        if reasons.is_empty() {
            let need = ask.need(&row.entry, row.shape.emulation);
            let points = ask.points(&row.entry, &need);
            let score = view.weights().total(&points);
            let verdict = Verdict { node, name, outcome: Outcome::Fits { score, points } };
            verdicts.push(((0, 0, -score, node), verdict, Vec::new()));
        } else {
            let changes = changes(&ask, row, &reasons);
            let effort = changes.iter().map(Change::effort).sum();
            let lack = reasons.iter().map(Reason::lack).fold(0, u64::saturating_add);
            let lack = i64::try_from(lack).unwrap_or(i64::MAX);
            let verdict = Verdict { node, name, outcome: Outcome::Unfit { reasons } };
            verdicts.push(((1, effort, lack, node), verdict, changes));
        }
    }
    verdicts.sort_by_key(|(rank, ..)| *rank);
    let fixes = fixes(&histogram, &verdicts);
    Explanation { verdicts: verdicts.into_iter().map(|(_, verdict, _)| verdict).collect(), histogram, fixes }
}

/// Fitting ones first and by score, others by effort and lack; then by id.
type Rank = (u8, u64, i64, NodeId);

fn fixes(histogram: &Rejection, verdicts: &[(Rank, Verdict, Vec<Change>)]) -> Vec<Fix> {
    let of_cluster = histogram.cluster.as_ref().map(|reason| match reason {
        Reason::SharedPoolFull { pool, name, .. } => {
            Change::FreeSharedPool { pool: *pool, name: name.clone(), mib: reason.lack() }
        }
        // The only other one is a pin to a node that is not there.
        _ => Change::Unpin,
    });
    if let Some(change) = of_cluster {
        return vec![Fix { node: None, changes: vec![change] }];
    }
    if verdicts.first().is_some_and(|(rank, ..)| rank.0 == 0) {
        return Vec::new();
    }
    let fix = |(_, verdict, changes): &(Rank, Verdict, Vec<Change>)| Fix {
        node: Some((verdict.node, verdict.name.clone())),
        changes: changes.clone(),
    };
    verdicts.iter().take(FIXES).map(fix).collect()
}

/// What would take each reason away.
fn changes(ask: &Ask, row: &Row, reasons: &[Reason]) -> Vec<Change> {
    let need = ask.need(&row.entry, row.shape.emulation);
    let short = |d: usize| need[d].saturating_sub(row.entry.capacity[d]);
    let (vcpus, memory_mib, disk_mib) = (short(VCPUS), short(MEMORY), short(DISK));
    let mut changes: Vec<Change> = Vec::new();
    if vcpus + memory_mib + disk_mib > 0 {
        changes.push(Change::EnlargeNode { vcpus, memory_mib, disk_mib });
    }
    for reason in reasons {
        let change = match reason.clone() {
            Reason::PinnedElsewhere | Reason::PinUnknown => Change::Unpin,
            Reason::DiskElsewhere { pool, name } => Change::BringDisk { pool, name },
            Reason::LabelMissing { key, value } => Change::AddLabel { key, value },
            Reason::LabelForbidden { key, value } => Change::RemoveLabel { key, value },
            Reason::FirmwareMissing { firmware } => Change::InstallFirmware { firmware },
            Reason::TpmMissing => Change::AddTpm,
            Reason::PlatformMissing { platform } => Change::BecomePlatform { platform },
            Reason::BridgeMissing { bridge } => Change::AddBridge { bridge },
            Reason::PoolAbsent { pool, name } => Change::AddPool { pool, name },
            Reason::NotReady => Change::MakeReady,
            Reason::Cordoned => Change::Uncordon,
            Reason::PoolNotReady { pool, name } => Change::RepairPool { pool, name },
            Reason::AlreadyHere => Change::ConfirmGone,
            Reason::TooManyVms { .. } => Change::MoveVms { vms: 1 },
            Reason::IsolationShared => Change::MoveOtherClasses,
            Reason::DomainUnknown { key, .. } => Change::SetDomain { key },
            Reason::TooCrowded { group, by, .. } | Reason::NotTogether { group, by } => {
                Change::RelaxGroup { group, by }
            }
            Reason::NotEnoughDisk { pool, name, .. } => Change::FreeDisk { pool, name, mib: reason.lack() },
            Reason::SharedPoolFull { pool, name, .. } => {
                Change::FreeSharedPool { pool, name, mib: reason.lack() }
            }
            Reason::NotEnoughCells { cells, need, fitting, .. } => {
                let large =
                    row.shape.cells.iter().take(CELLS_MAX).filter(|cell| cell.lacks(&need) == 0).count();
                if large < cells as usize {
                    Change::EnlargeCells { cells, room: need }
                } else {
                    Change::FreeCells { cells: cells - fitting, room: need }
                }
            }
            Reason::NotEnoughVcpus { .. } if vcpus > 0 => continue,
            Reason::NotEnoughMemory { .. } if memory_mib > 0 => continue,
            Reason::NotEnoughVcpus { .. } => Change::FreeVcpus { vcpus: reason.lack() },
            Reason::NotEnoughMemory { .. } => Change::FreeMemory { mib: reason.lack() },
        };
        changes.push(change);
    }
    changes
}

impl Change {
    /// How much it asks of an operator, roughly: a word, a move of VMs, a repair, a purchase.
    fn effort(&self) -> u64 {
        match self {
            Self::Uncordon => 2,
            Self::AddLabel { .. } | Self::RemoveLabel { .. } | Self::SetDomain { .. } => 3,
            Self::FreeVcpus { .. }
            | Self::FreeMemory { .. }
            | Self::MoveVms { .. }
            | Self::FreeCells { .. }
            | Self::FreeDisk { .. }
            | Self::FreeSharedPool { .. } => 4,
            Self::ConfirmGone | Self::MakeReady | Self::RepairPool { .. } => 6,
            Self::Unpin | Self::BringDisk { .. } | Self::RelaxGroup { .. } | Self::MoveOtherClasses => 8,
            Self::AddBridge { .. } | Self::AddPool { .. } | Self::InstallFirmware { .. } => 10,
            Self::EnlargeNode { .. }
            | Self::EnlargeCells { .. }
            | Self::AddTpm
            | Self::BecomePlatform { .. } => 100,
        }
    }

    /// The change as an order, with the node's name where it is about a node.
    fn order(&self, node: &str) -> String {
        match self {
            Self::Uncordon => format!("uncordon {node}"),
            Self::AddLabel { key, value } => format!("add label {key}={value} to {node}"),
            Self::RemoveLabel { key, value } => format!("remove label {key}={value} from {node}"),
            Self::SetDomain { key } => format!("set the failure domain {key} of {node}"),
            Self::FreeVcpus { vcpus } => format!("free {vcpus} vCPUs on {node}"),
            Self::FreeMemory { mib } => format!("free {mib} MiB of memory on {node}"),
            Self::FreeDisk { name, mib, .. } => format!("free {mib} MiB in pool {name} on {node}"),
            Self::FreeSharedPool { name, mib, .. } => format!("free {mib} MiB in the shared pool {name}"),
            Self::MoveVms { vms } => format!("move {vms} VMs away from {node}"),
            Self::MakeReady => format!("make {node} ready"),
            Self::RepairPool { name, .. } => format!("make pool {name} ready on {node}"),
            Self::ConfirmGone => format!("let {node} confirm that the VM is gone"),
            Self::Unpin if node.is_empty() => "change or remove the pin".into(),
            Self::Unpin => format!("change the pin to {node}"),
            Self::BringDisk { name, .. } => {
                format!("copy its disk of pool {name} to {node}, or keep it in a shared pool")
            }
            Self::AddBridge { bridge } => format!("add bridge {bridge} to {node}"),
            Self::AddPool { name, .. } => format!("add pool {name} to {node}"),
            Self::RelaxGroup { group, by } => {
                format!("relax the rule by {by} of group {group}, or move a member")
            }
            Self::MoveOtherClasses => format!("move VMs of other isolation classes away from {node}"),
            Self::InstallFirmware { firmware } => format!("install firmware {firmware} on {node}"),
            Self::EnlargeNode { vcpus, memory_mib, disk_mib } => {
                let parts = [(vcpus, "vCPUs"), (memory_mib, "MiB of memory"), (disk_mib, "MiB of disk")];
                let lack = parts.iter().filter(|(n, _)| **n > 0).map(|(n, what)| format!("{n} {what}"));
                format!("enlarge {node} by {}", lack.collect::<Vec<_>>().join(", "))
            }
            Self::FreeCells { cells, room } => {
                let room = room.words(room.huge_mib > 0);
                format!("make room for {room} in {cells} more NUMA cells of {node}")
            }
            Self::EnlargeCells { cells, room } => {
                format!("give {node} {cells} NUMA cells of {}", room.words(room.huge_mib > 0))
            }
            Self::AddTpm => format!("give {node} a TPM emulator"),
            Self::BecomePlatform { platform } => {
                format!("give {node} a QEMU and a CPU that can be a {platform}")
            }
        }
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_ref().map_or("", |(_, name)| name);
        let orders: Vec<_> = self.changes.iter().map(|change| change.order(node)).collect();
        f.write_str(&orders.join(" and "))
    }
}
