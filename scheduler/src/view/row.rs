//! One node with what is on it. Used stays true even where a node holds more than it may.

use std::collections::BTreeMap;
use std::sync::Arc;

use tamdao_model::{PoolId, VmId};

use crate::index::{Amounts, Entry, MEMORY, VCPUS};
use crate::shape::{NodeShape, VmShape};

/// One node with what is on it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) shape: Arc<NodeShape>,
    /// In the order of ids.
    pub(crate) vms: Vec<Arc<VmShape>>,
    pub(crate) entry: Entry,
    pub(super) used: Amounts,
    /// Held by the VMs in each local pool, MiB.
    disk_used: BTreeMap<PoolId, u64>,
}

impl Row {
    pub(super) fn new(shape: Arc<NodeShape>, slot: u32, traits: u32, vms: Vec<Arc<VmShape>>) -> Self {
        let (capacity, free) = (Amounts::default(), Amounts::default());
        let support = shape.support_ends.map_or(u32::MAX, |day| day.0);
        let entry = Entry { order: 0, id: shape.id, slot, traits, vms: 0, support, capacity, free };
        let mut row =
            Self { shape, vms: Vec::new(), entry, used: Amounts::default(), disk_used: BTreeMap::new() };
        // What a VM holds may depend on the node, so it is counted anew.
        vms.iter().for_each(|vm| row.count(vm, u64::saturating_add));
        row.vms = vms;
        row.refresh();
        row
    }

    pub(super) fn find(&self, vm: VmId) -> Result<usize, usize> {
        self.vms.binary_search_by_key(&vm, |vm| vm.id)
    }

    /// What one local pool has left here, MiB.
    pub(crate) fn pool_free(&self, pool: PoolId) -> u64 {
        let here = self.shape.pools.get(&pool).copied().unwrap_or_default();
        let used = self.disk_used.get(&pool).copied().unwrap_or(0);
        here.capacity_mib.saturating_sub(here.held_mib).saturating_sub(used)
    }

    /// Adds a VM to what is used, or takes it away.
    pub(super) fn count(&mut self, vm: &VmShape, apply: fn(u64, u64) -> u64) {
        let reservation = vm.reservation_on(self.shape.emulation);
        self.used[VCPUS] = apply(self.used[VCPUS], u64::from(reservation.vcpus));
        self.used[MEMORY] = apply(self.used[MEMORY], reservation.memory_mib);
        for disk in vm.disks.iter().filter(|disk| disk.on != Some(self.shape.id)) {
            let used = self.disk_used.entry(disk.pool).or_default();
            *used = apply(*used, disk.size_mib);
        }
        self.disk_used.retain(|_, used| *used > 0);
    }

    /// Derives the index entry from the rest. Used stays true even where a node holds more than it may.
    pub(super) fn refresh(&mut self) {
        let pools = &self.shape.pools;
        let disk = pools.values().map(|pool| pool.capacity_mib).sum();
        let disk_free = pools.keys().map(|id| self.pool_free(*id)).sum();
        let capacity = [u64::from(self.shape.vcpus), self.shape.memory_mib, disk];
        let left = |d: usize| capacity[d].saturating_sub(self.used[d]);
        let free = [left(VCPUS), left(MEMORY), disk_free];
        let vms = u32::try_from(self.vms.len()).unwrap_or(u32::MAX);
        self.entry = Entry { vms, capacity, free, ..self.entry }.ordered();
    }
}
