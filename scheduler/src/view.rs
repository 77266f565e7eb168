//! The cluster as the engine sees it. Raw facts stand beside what is derived from them, and every change keeps the
//! derived part equal to what building anew would give. A VM may stand on several nodes at once (both ends of a
//! move, a guest not yet confirmed gone); it holds its room on each.
//!
//! A clone is a fork and costs constant time: all parts are persistent trees or shared until written. The first
//! change in a fork copies the index's list of blocks (6 bytes per node), each change the path to the node's row
//! and that row. Deliberately absent: whether something fits. The view holds what is, even when that is too much.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use tamdao_model::{NodeId, PoolId, VmId};

use crate::index::{Amounts, DISK, Entry, Index, MEMORY, VCPUS};
use crate::score::Weights;
use crate::shape::{Group, GroupId, NodeShape, PoolShape, VmShape};
use crate::traits::{Traits, TraitsTable};

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

/// One node with what is on it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) shape: Arc<NodeShape>,
    /// In the order of ids.
    pub(crate) vms: Vec<Arc<VmShape>>,
    pub(crate) entry: Entry,
    used: Amounts,
    /// Held by the VMs in each local pool, MiB.
    disk_used: BTreeMap<PoolId, u64>,
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
        let vms = self.take_row(slot).map(|row| row.vms.clone()).unwrap_or_default();
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
        let support = shape.support_ends.map_or(u32::MAX, |day| day.0);
        *self.support.entry(support).or_default() += 1;
        let traits = self.traits.hold(Traits::of(&shape));
        let (capacity, free) = (Amounts::default(), Amounts::default());
        let entry = Entry { order: 0, id, slot, traits, vms: 0, support, capacity, free };
        let mut row =
            Row { shape, vms: Vec::new(), entry, used: Amounts::default(), disk_used: BTreeMap::new() };
        // What a VM holds may depend on the node, so it is counted anew.
        vms.iter().for_each(|vm| row.count(vm, u64::saturating_add));
        row.vms = vms;
        row.refresh();
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

    /// Puts a VM on a node, whether it fits or not.
    pub fn assign(&mut self, node: NodeId, vm: Arc<VmShape>) -> Result<(), ViewError> {
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
        self.change(slot, |row| {
            row.count(&vm, u64::saturating_add);
            row.vms.insert(at, vm);
        });
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
        self.change(slot, |row| {
            row.vms.remove(at);
            row.count(&vm, u64::saturating_sub);
        });
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

    /// What a shared pool has left, MiB; none for a local or unknown one.
    pub(crate) fn shared_free(&self, pool: PoolId) -> Option<u64> {
        let row = self.pools.get(&pool)?;
        let room = row.shape.shared?;
        Some(room.capacity_mib.saturating_sub(room.held_mib).saturating_sub(row.used))
    }
}

impl Row {
    fn find(&self, vm: VmId) -> Result<usize, usize> {
        self.vms.binary_search_by_key(&vm, |vm| vm.id)
    }

    /// What one local pool has left here, MiB.
    pub(crate) fn pool_free(&self, pool: PoolId) -> u64 {
        let here = self.shape.pools.get(&pool).copied().unwrap_or_default();
        let used = self.disk_used.get(&pool).copied().unwrap_or(0);
        here.capacity_mib.saturating_sub(here.held_mib).saturating_sub(used)
    }

    /// Adds a VM to what is used, or takes it away.
    fn count(&mut self, vm: &VmShape, apply: fn(u64, u64) -> u64) {
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
    fn refresh(&mut self) {
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
