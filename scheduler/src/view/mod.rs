//! The cluster as the engine sees it. Raw facts stand beside what is derived from them, and every change keeps the
//! derived part equal to what building anew would give. A VM may stand on several nodes at once (both ends of a
//! move, a guest not yet confirmed gone); it holds its room on each.
//!
//! A clone is a fork and costs constant time: all parts are persistent trees or shared until written. The first
//! change in a fork copies the index's list of blocks (6 bytes per node), each change the path to the node's row
//! and that row. Deliberately absent: whether something fits. The view holds what is, even when that is too much.

mod read;
mod row;

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use tamdao_model::{NodeId, PoolId, VmId};

use crate::cells::Cells;
use crate::index::Index;
use crate::score::Weights;
use crate::shape::{Group, GroupId, NodeShape, PoolShape, VmShape};
use crate::traits::{Traits, TraitsTable};
pub use read::{CellUse, NodeUse};
pub(crate) use row::Row;

/// What the view cannot take in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    #[error("node {0} is not in the cluster")]
    NodeUnknown(NodeId),
    #[error("vm {vm} is already on node {node}")]
    AlreadyThere { vm: VmId, node: NodeId },
}

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct View {
    rows: Vector<Option<Arc<Row>>>,
    /// Slots of removed nodes, used again.
    vacant: Vector<u32>,
    slots: OrdMap<NodeId, u32>,
    index: Index,
    traits: TraitsTable,
    homes: OrdMap<VmId, Home>,
    pools: OrdMap<PoolId, PoolRow>,
    groups: OrdMap<GroupId, GroupRow>,
    by_label: OrdMap<(String, String), OrdSet<u32>>,
    by_domain: OrdMap<(String, String), OrdSet<u32>>,
    /// How many nodes have several values of each failure-domain key; only keys with some.
    several: OrdMap<String, u32>,
    /// How many nodes' support ends on each day.
    support: OrdMap<u32, u32>,
    /// VMs (once per node) that have an isolation class.
    isolated: usize,
    weights: Weights,
}

#[derive(Debug, Clone)]
struct Home {
    slots: Vec<u32>,
    /// The shape whose shared disks were counted.
    counted: Arc<VmShape>,
}

#[derive(Debug, Clone)]
struct PoolRow {
    shape: Arc<PoolShape>,
    /// Held by placed VMs, once each, MiB; of a shared pool.
    used: u64,
}

/// A group, known or only named by a VM, with where its members are.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupRow {
    pub(crate) shape: Option<Arc<Group>>,
    pub(crate) members: OrdSet<(VmId, u32)>,
}

impl View {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    pub fn set_weights(&mut self, weights: Weights) {
        self.weights = weights;
    }

    /// Adds a node or replaces what is known of it; its VMs stay.
    pub fn set_node(&mut self, shape: NodeShape) {
        let id = shape.id;
        let old = self.slots.get(&id).copied();
        if old.and_then(|slot| self.row(slot)).is_some_and(|row| *row.shape == shape) {
            return;
        }
        let shape = Arc::new(shape);
        let slot = match old {
            Some(slot) => slot,
            None => match self.vacant.pop_back() {
                Some(slot) => slot,
                None => {
                    self.rows.push_back(None);
                    u32::try_from(self.rows.len() - 1).expect("a cluster has fewer than four billion nodes")
                }
            },
        };
        let before = self.take_row(slot);
        self.slots.insert(id, slot);
        for (key, value) in &shape.labels {
            self.by_label.entry((key.clone(), value.clone())).or_default().insert(slot);
        }
        for (key, value) in domains(&shape) {
            self.by_domain.entry((key.clone(), value.clone())).or_default().insert(slot);
        }
        for key in keys_with_several(&shape) {
            *self.several.entry(key.clone()).or_default() += 1;
        }
        let traits = self.traits.hold(Traits::of(&shape));
        let row = Row::new(shape, slot, traits, before.as_deref());
        *self.support.entry(row.entry.support).or_default() += 1;
        self.index.insert(row.entry);
        self.rows.set(slot as usize, Some(Arc::new(row)));
    }

    /// Takes a node out, with the places of the VMs on it; gives back those VMs.
    pub fn remove_node(&mut self, id: NodeId) -> Option<Vec<Arc<VmShape>>> {
        let slot = *self.slots.get(&id)?;
        let vms = self.rows[slot as usize].as_ref()?.vms.clone();
        for vm in &vms {
            self.release(id, vm.id);
        }
        self.take_row(slot);
        self.slots.remove(&id);
        self.vacant.push_back(slot);
        Some(vms)
    }

    /// Takes a row out of the table and of every index over nodes, but not out of those over VMs.
    fn take_row(&mut self, slot: u32) -> Option<Arc<Row>> {
        let row = self.rows.set(slot as usize, None)?;
        self.index.remove(row.entry.order, row.entry.id);
        self.traits.release(row.entry.traits);
        for (key, value) in &row.shape.labels {
            unlist(&mut self.by_label, (key.clone(), value.clone()), slot);
        }
        for (key, value) in domains(&row.shape) {
            unlist(&mut self.by_domain, (key.clone(), value.clone()), slot);
        }
        for key in keys_with_several(&row.shape) {
            count_down(&mut self.several, key);
        }
        count_down(&mut self.support, &row.entry.support);
        Some(row)
    }

    /// Adds a pool or replaces what is known of it.
    pub fn set_pool(&mut self, shape: PoolShape) {
        let used = self.pools.get(&shape.id).map(|row| row.used);
        // A pool named by VMs before it was known has been used already.
        let used = used.unwrap_or_else(|| {
            let placed = self.homes.values().flat_map(|home| home.counted.disks.iter());
            placed.filter(|disk| disk.pool == shape.id).map(|disk| disk.size_mib).sum()
        });
        self.pools.insert(shape.id, PoolRow { shape: Arc::new(shape), used });
    }

    pub fn remove_pool(&mut self, id: PoolId) {
        self.pools.remove(&id);
    }

    /// Adds a group or replaces its rules.
    pub fn set_group(&mut self, group: Group) {
        let row = self.groups.entry(group.id).or_default();
        row.shape = Some(Arc::new(group));
    }

    /// Forgets a group's rules; its members stay members.
    pub fn remove_group(&mut self, id: GroupId) {
        if let Some(row) = self.groups.get_mut(&id) {
            row.shape = None;
            if row.members.is_empty() {
                self.groups.remove(&id);
            }
        }
    }

    /// Puts a VM on a node, whether it fits or not, on the cells that it would be placed on; gives back those. A VM
    /// that asks for cells where too few have room holds none.
    pub fn assign(&mut self, node: NodeId, vm: Arc<VmShape>) -> Result<Cells, ViewError> {
        let row = self.slot(node).and_then(|slot| self.row(slot)).ok_or(ViewError::NodeUnknown(node))?;
        let cells = row.choose_cells(&vm);
        self.assign_to(node, cells, vm)?;
        Ok(cells)
    }

    /// Puts a VM on these cells of a node, whether it fits or not; what it holds is split evenly over them.
    pub fn assign_to(&mut self, node: NodeId, cells: Cells, vm: Arc<VmShape>) -> Result<(), ViewError> {
        let slot = *self.slots.get(&node).ok_or(ViewError::NodeUnknown(node))?;
        let row = self.rows[slot as usize].as_ref().ok_or(ViewError::NodeUnknown(node))?;
        let Err(at) = row.find(vm.id) else { return Err(ViewError::AlreadyThere { vm: vm.id, node }) };
        for group in &vm.groups {
            self.groups.entry(*group).or_default().members.insert((vm.id, slot));
        }
        match self.homes.get_mut(&vm.id) {
            Some(home) => home.slots.push(slot),
            None => {
                for disk in &vm.disks {
                    if let Some(pool) = self.pools.get_mut(&disk.pool) {
                        pool.used = pool.used.saturating_add(disk.size_mib);
                    }
                }
                self.homes.insert(vm.id, Home { slots: vec![slot], counted: vm.clone() });
            }
        }
        self.isolated += usize::from(vm.isolation.is_some());
        self.change(slot, |row| row.put(at, vm, cells));
        Ok(())
    }

    /// Takes a VM off a node; gives it back if it was there.
    pub fn release(&mut self, node: NodeId, vm: VmId) -> Option<Arc<VmShape>> {
        let slot = *self.slots.get(&node)?;
        let row = self.rows[slot as usize].as_ref()?;
        let at = row.find(vm).ok()?;
        let vm = row.vms[at].clone();
        for group in &vm.groups {
            if let Some(row) = self.groups.get_mut(group) {
                row.members.remove(&(vm.id, slot));
                if row.members.is_empty() && row.shape.is_none() {
                    self.groups.remove(group);
                }
            }
        }
        if let Some(home) = self.homes.get_mut(&vm.id) {
            home.slots.retain(|s| *s != slot);
            if home.slots.is_empty() {
                let counted = home.counted.clone();
                self.homes.remove(&vm.id);
                for disk in &counted.disks {
                    if let Some(pool) = self.pools.get_mut(&disk.pool) {
                        pool.used = pool.used.saturating_sub(disk.size_mib);
                    }
                }
            }
        }
        self.isolated -= usize::from(vm.isolation.is_some());
        self.change(slot, |row| row.take(at));
        Some(vm)
    }

    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Row)) {
        let Some(Some(row)) = self.rows.get_mut(slot as usize) else { return };
        let row = Arc::make_mut(row);
        self.index.remove(row.entry.order, row.entry.id);
        change(row);
        row.refresh();
        self.index.insert(row.entry);
    }
}

fn domains(shape: &NodeShape) -> impl Iterator<Item = (&String, &String)> + '_ {
    shape.domains.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)))
}

fn keys_with_several(shape: &NodeShape) -> impl Iterator<Item = &String> + '_ {
    shape.domains.iter().filter(|(_, values)| values.len() > 1).map(|(key, _)| key)
}

fn count_down<K: Ord + Clone>(counts: &mut OrdMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn unlist(lists: &mut OrdMap<(String, String), OrdSet<u32>>, key: (String, String), slot: u32) {
    if let Some(list) = lists.get_mut(&key) {
        list.remove(&slot);
        if list.is_empty() {
            lists.remove(&key);
        }
    }
}
