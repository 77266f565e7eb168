//! One node with what is on it. Used stays true even where a node holds more than it may.

use std::collections::BTreeMap;
use std::sync::Arc;

use tamdao_model::{PoolId, VmId};

use crate::cells::{CELLS_MAX, CellAsk, Cells, Largest, Share, each, largest};
use crate::index::{Amounts, Entry, MEMORY, VCPUS};
use crate::shape::{Cell, NodeShape, VmShape};

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
    /// The cells of those VMs that hold some.
    held_cells: BTreeMap<VmId, Cells>,
    /// Held in each cell.
    cells_used: Vec<Share>,
}

impl Row {
    /// A row for a node, with what the row before it had on it.
    pub(super) fn new(shape: Arc<NodeShape>, slot: u32, traits: u32, before: Option<&Row>) -> Self {
        let (capacity, free) = (Amounts::default(), Amounts::default());
        let support = shape.support_ends.map_or(u32::MAX, |day| day.0);
        let cells = Largest::default();
        let entry = Entry { order: 0, id: shape.id, slot, traits, vms: 0, support, capacity, free, cells };
        let mut row = Self {
            cells_used: vec![Share::default(); shape.cells.len().min(CELLS_MAX)],
            shape,
            vms: before.map(|row| row.vms.clone()).unwrap_or_default(),
            entry,
            used: Amounts::default(),
            disk_used: BTreeMap::new(),
            held_cells: before.map(|row| row.held_cells.clone()).unwrap_or_default(),
        };
        // What a VM holds may depend on the node, so it is counted anew.
        for vm in row.vms.clone() {
            row.count(&vm, u64::saturating_add);
        }
        row.refresh();
        row
    }

    /// The row as it would be with these VMs on it too.
    pub(crate) fn with(&self, more: &[(Arc<VmShape>, Cells)]) -> Self {
        let mut row = self.clone();
        for (vm, cells) in more {
            if let Err(at) = row.find(vm.id) {
                row.put(at, vm.clone(), *cells);
            }
        }
        row.refresh();
        row
    }

    pub(super) fn put(&mut self, at: usize, vm: Arc<VmShape>, cells: Cells) {
        if !cells.is_empty() {
            self.held_cells.insert(vm.id, cells);
        }
        self.count(&vm, u64::saturating_add);
        self.vms.insert(at, vm);
    }

    pub(super) fn take(&mut self, at: usize) {
        let vm = self.vms.remove(at);
        self.count(&vm, u64::saturating_sub);
        self.held_cells.remove(&vm.id);
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

    pub(crate) fn cells_of(&self, vm: VmId) -> Cells {
        self.held_cells.get(&vm).copied().unwrap_or_default()
    }

    /// Each cell's capacity and what is held there.
    pub(super) fn cells(&self) -> impl Iterator<Item = (Cell, Share)> + '_ {
        self.shape.cells.iter().copied().zip(self.cells_used.iter().copied())
    }

    /// What each cell has left.
    pub(crate) fn cells_free(&self) -> impl Iterator<Item = Share> + '_ {
        self.cells().map(|(cell, used)| each(&cell.share(), &used, u64::saturating_sub))
    }

    /// The cells that a VM would get here: none if it asks for none, or if too few have room.
    pub(crate) fn choose_cells(&self, vm: &VmShape) -> Cells {
        let whole = [self.entry.capacity[VCPUS], self.entry.capacity[MEMORY]];
        let ask = vm.cell_ask(self.shape.emulation);
        ask.and_then(|ask| ask.choose(self.cells_free(), &whole)).unwrap_or_default()
    }

    /// Whether these very cells have room for a VM.
    pub(crate) fn cells_have_room(&self, cells: Cells, vm: &VmShape) -> bool {
        let free: Vec<Share> = self.cells_free().collect();
        let fits = |ask: CellAsk| cells.iter().all(|at| free.get(at).is_some_and(|free| ask.fits(free)));
        cells.len() == vm.cells && vm.cell_ask(self.shape.emulation).is_none_or(fits)
    }

    /// Adds a VM to what is used, or takes it away.
    fn count(&mut self, vm: &VmShape, apply: fn(u64, u64) -> u64) {
        let reservation = vm.reservation_on(self.shape.emulation);
        let (vcpus, memory) = (u64::from(reservation.vcpus), reservation.memory_mib);
        self.used[VCPUS] = apply(self.used[VCPUS], vcpus);
        self.used[MEMORY] = apply(self.used[MEMORY], memory);
        let cells = self.cells_of(vm.id);
        // What it holds is a fact, whatever it asks for.
        if let Some(ask) = CellAsk::new(cells.len(), vm.in_cells(self.shape.emulation)) {
            for (_, used) in self.cells_used.iter_mut().enumerate().filter(|(at, _)| cells.contains(*at)) {
                *used = each(used, &ask.share, apply);
            }
        }
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
        let cells = largest(self.cells_free());
        self.entry = Entry { vms, capacity, free, cells, ..self.entry }.ordered();
    }
}
