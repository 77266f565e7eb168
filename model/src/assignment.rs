//! The truth of placement: one record per node of what it must run and must not run. Whatever plan wants to put a
//! VM on a node guards this record, so two plans can never oversubscribe it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::record::Stored;
use crate::{NodeId, PoolId, VmId, VolumeId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub node: NodeId,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub vms: BTreeMap<VmId, VmEntry>,
    /// Volumes of local pools whose files lie on this node.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub volumes: BTreeMap<VolumeId, VolumeEntry>,
}

/// What the node has to do with one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEntry {
    pub incarnation: u64,
    pub intent: Intent,
    /// Held as if running, from placement until the agent has confirmed that the guest is gone.
    pub reservation: Reservation,
    /// The NUMA cells that it lies on and holds this on in equal parts, by libvirt's numbers; empty for a VM that lies
    /// anywhere.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cells: Vec<u32>,
}

impl VmEntry {
    /// The VM is another node's, or nobody's: what is here up to this incarnation shall go, and holds nothing.
    pub fn stale(incarnation: u64) -> Self {
        let reservation = Reservation::default();
        Self { incarnation, intent: Intent::Stale, reservation, cells: Vec::new() }
    }

    /// What it holds on this cell. What cannot be split evenly is held by each.
    pub fn held_on(&self, cell: u32) -> Reservation {
        match self.cells.contains(&cell) {
            true => self.reservation.part(self.cells.len()),
            false => Reservation::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// The guest shall be as its record says.
    Wanted,
    /// The guest shall be off and its domain gone.
    Stop,
    /// This and every lower incarnation shall be destroyed: the VM is another node's.
    Stale,
    /// The guest comes by the VM's open move.
    Incoming,
    /// The guest leaves by the VM's open move, which says how far.
    Outgoing,
    /// It runs there and no record knows it: the node is told nothing, and it holds what it takes.
    Left,
}

/// Capacity held by one VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub vcpus: u32,
    /// Guest memory and QEMU's own overhead, MiB.
    pub memory_mib: u64,
}

impl Reservation {
    /// One of so many equal parts, rounded up.
    pub fn part(self, of: usize) -> Self {
        let of = u32::try_from(of).unwrap_or(u32::MAX).max(1);
        Self { vcpus: self.vcpus.div_ceil(of), memory_mib: self.memory_mib.div_ceil(u64::from(of)) }
    }
}

/// Disk space held by one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    pub pool: PoolId,
    pub size_mib: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub hold: Hold,
    /// Tells the files of one volume on one node apart: the incarnation with which a move brought it, 0 before any.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub copy: u64,
}

/// What a volume's file on a node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// The volume itself.
    #[default]
    Own,
    /// Made for the open move of its VM, which fills it.
    Arriving,
    /// Of no use any more: its file is to be removed.
    Leaving,
}

impl VolumeEntry {
    /// A volume whose file lies, or will lie, on the node.
    pub fn own(pool: PoolId, size_mib: u32) -> Self {
        Self { pool, size_mib, hold: Hold::Own, copy: 0 }
    }
}

impl Assignment {
    pub fn empty(node: NodeId) -> Self {
        Self { node, vms: BTreeMap::new(), volumes: BTreeMap::new() }
    }

    /// The sum of all reservations.
    pub fn reserved(&self) -> Reservation {
        self.vms.values().fold(Reservation::default(), |sum, vm| Reservation {
            vcpus: sum.vcpus + vm.reservation.vcpus,
            memory_mib: sum.memory_mib + vm.reservation.memory_mib,
        })
    }

    /// The sum of what is held on one NUMA cell.
    pub fn reserved_on(&self, cell: u32) -> Reservation {
        self.vms.values().map(|vm| vm.held_on(cell)).fold(Reservation::default(), |sum, held| Reservation {
            vcpus: sum.vcpus + held.vcpus,
            memory_mib: sum.memory_mib + held.memory_mib,
        })
    }

    /// Virtual disk size promised in one pool on this node, MiB.
    pub fn promised_mib(&self, pool: PoolId) -> u64 {
        self.volumes.values().filter(|v| v.pool == pool).map(|v| u64::from(v.size_mib)).sum()
    }
}

impl Stored for Assignment {
    const KIND: &'static str = "assignment";
    fn key(&self) -> String {
        self.node.to_string()
    }
}
