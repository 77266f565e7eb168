//! Questions to the view. Deliberately absent: answers that take more than a look at a row or a list.

use std::sync::Arc;

use imbl::OrdSet;
use tamdao_model::{NodeId, PoolId, VmId};

use super::row::Row;
use super::{GroupRow, View};
use crate::cells::Cells;
use crate::index::{DISK, Index, MEMORY, VCPUS};
use crate::shape::{Group, GroupId, NodeShape, PoolShape, VmShape};
use crate::traits::TraitsTable;

/// What a node has promised, and what it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeUse {
    pub vcpus: u64,
    pub vcpus_used: u64,
    pub memory_mib: u64,
    pub memory_used_mib: u64,
    /// All local pools together.
    pub disk_mib: u64,
    pub disk_used_mib: u64,
}

/// What one cell of a node has promised to VMs that ask for cells, and what it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CellUse {
    pub vcpus: u64,
    pub vcpus_used: u64,
    pub memory_mib: u64,
    pub memory_used_mib: u64,
    pub huge_mib: u64,
    pub huge_used_mib: u64,
}

impl View {
    pub fn node(&self, id: NodeId) -> Option<&NodeShape> {
        Some(&*self.row(*self.slots.get(&id)?)?.shape)
    }

    /// All nodes in the order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeShape> + '_ {
        self.rows_by_id().map(|row| &*row.shape)
    }

    pub fn node_count(&self) -> usize {
        self.slots.len()
    }

    /// VMs that stand on at least one node.
    pub fn vm_count(&self) -> usize {
        self.homes.len()
    }

    /// The VMs on a node in the order of their ids.
    pub fn vms_on(&self, node: NodeId) -> &[Arc<VmShape>] {
        let row = self.slots.get(&node).and_then(|slot| self.row(*slot));
        row.map_or(&[], |row| &row.vms)
    }

    /// The nodes that a VM stands on.
    pub fn homes(&self, vm: VmId) -> impl Iterator<Item = NodeId> + '_ {
        self.home_slots(vm).iter().filter_map(|slot| Some(self.row(*slot)?.shape.id))
    }

    pub fn node_use(&self, node: NodeId) -> Option<NodeUse> {
        let entry = self.row(*self.slots.get(&node)?)?.entry;
        let used = |d: usize| entry.capacity[d].saturating_sub(entry.free[d]);
        let row = self.row(entry.slot)?;
        Some(NodeUse {
            vcpus: entry.capacity[VCPUS],
            vcpus_used: row.used[VCPUS],
            memory_mib: entry.capacity[MEMORY],
            memory_used_mib: row.used[MEMORY],
            disk_mib: entry.capacity[DISK],
            disk_used_mib: used(DISK),
        })
    }

    /// The cells of a node, in the order of its list.
    pub fn cell_use(&self, node: NodeId) -> impl Iterator<Item = CellUse> + '_ {
        let row = self.slots.get(&node).and_then(|slot| self.row(*slot));
        row.into_iter().flat_map(Row::cells).map(|(cell, [vcpus_used, memory_used_mib, huge_used_mib])| {
            CellUse {
                vcpus: u64::from(cell.vcpus),
                vcpus_used,
                memory_mib: cell.memory_mib,
                memory_used_mib,
                huge_mib: cell.huge_mib,
                huge_used_mib,
            }
        })
    }

    /// The cells that a VM holds on a node.
    pub fn cells_of(&self, node: NodeId, vm: VmId) -> Cells {
        let row = self.slots.get(&node).and_then(|slot| self.row(*slot));
        row.map_or(Cells::NONE, |row| row.cells_of(vm))
    }

    /// The cells that a VM would get on a node: none if it asks for none, or if too few have room.
    pub fn cells_for(&self, node: NodeId, vm: &VmShape) -> Cells {
        let row = self.slots.get(&node).and_then(|slot| self.row(*slot));
        row.map_or(Cells::NONE, |row| row.choose_cells(vm))
    }

    /// Whether these very cells of a node have room for a VM.
    pub(crate) fn cells_have_room(&self, node: NodeId, cells: Cells, vm: &VmShape) -> bool {
        let row = self.slots.get(&node).and_then(|slot| self.row(*slot));
        row.is_some_and(|row| row.cells_have_room(cells, vm))
    }

    /// All pools in the order of their ids.
    pub fn pools(&self) -> impl Iterator<Item = &PoolShape> + '_ {
        self.pools.values().map(|row| &*row.shape)
    }

    pub fn pool(&self, id: PoolId) -> Option<&PoolShape> {
        self.pools.get(&id).map(|row| &*row.shape)
    }

    /// All groups with rules, in the order of their ids.
    pub fn groups(&self) -> impl Iterator<Item = &Group> + '_ {
        self.groups.values().filter_map(|row| row.shape.as_deref())
    }

    pub fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)?.shape.as_deref()
    }

    /// The members of a group with the node of each place that they hold.
    pub fn members(&self, group: GroupId) -> impl Iterator<Item = (VmId, NodeId)> + '_ {
        let members = self.groups.get(&group).into_iter().flat_map(|row| row.members.iter());
        members.filter_map(|(vm, slot)| Some((*vm, self.row(*slot)?.shape.id)))
    }

    pub(crate) fn row(&self, slot: u32) -> Option<&Row> {
        self.rows.get(slot as usize)?.as_deref()
    }

    /// All rows with their slots, in the order of slots.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u32, &Row)> + '_ {
        (0..).zip(self.rows.iter()).filter_map(|(slot, row)| Some((slot, &**row.as_ref()?)))
    }

    pub(crate) fn rows_by_id(&self) -> impl Iterator<Item = &Row> + '_ {
        self.slots.values().filter_map(|slot| self.row(*slot))
    }

    pub(crate) fn slot(&self, id: NodeId) -> Option<u32> {
        self.slots.get(&id).copied()
    }

    pub(crate) fn home_slots(&self, vm: VmId) -> &[u32] {
        self.homes.get(&vm).map_or(&[], |home| &home.slots)
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn traits(&self) -> &TraitsTable {
        &self.traits
    }

    pub(crate) fn group_row(&self, id: GroupId) -> Option<&GroupRow> {
        self.groups.get(&id)
    }

    pub(crate) fn labelled(&self, key: &str, value: &str) -> Option<&OrdSet<u32>> {
        self.by_label.get(&(key.to_owned(), value.to_owned()))
    }

    /// The values of a failure-domain key, each with its nodes.
    pub(crate) fn domain_values(&self, key: &str) -> impl Iterator<Item = (&str, &OrdSet<u32>)> + '_ {
        let key = key.to_owned();
        let from = (key.clone(), String::new());
        let listed = self.by_domain.range(from..).take_while(move |((k, _), _)| *k == key);
        listed.map(|((_, value), slots)| (value.as_str(), slots))
    }

    /// Whether no node has two values of this key.
    pub(crate) fn domain_is_plain(&self, key: &str) -> bool {
        !self.several.contains_key(key)
    }

    /// The days on which nodes' support ends, earliest first.
    pub(crate) fn support_days(&self) -> impl Iterator<Item = u32> + '_ {
        self.support.keys().copied()
    }

    pub(crate) fn has_isolation(&self) -> bool {
        self.isolated > 0
    }

    /// Whether a shared pool has promised more than it may.
    pub(crate) fn is_over(&self, pool: PoolId) -> bool {
        let over = |row: &super::PoolRow| {
            let room = row.shape.shared?;
            Some(room.held_mib.saturating_add(row.used) > room.capacity_mib)
        };
        self.pools.get(&pool).and_then(over).unwrap_or(false)
    }

    /// What a shared pool has left, MiB; none for a local or unknown one.
    pub(crate) fn shared_free(&self, pool: PoolId) -> Option<u64> {
        let row = self.pools.get(&pool)?;
        let room = row.shape.shared?;
        Some(room.capacity_mib.saturating_sub(room.held_mib).saturating_sub(row.used))
    }
}
