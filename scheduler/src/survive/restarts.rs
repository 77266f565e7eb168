//! The plans of a guarantee: which losses there are, whom they take, and where each VM would be restarted. Plans are
//! extended and mended greedily, highest priority first. Deliberately absent: what may be decided, which is the
//! guarantee's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use tamdao_model::VmId;

use super::guarantee::{Guarantee, VMS_MAX};
use super::reserve::{Backing, Lost, Room};
use super::{Loss, restart_order};
use crate::cells::Cells;
use crate::filter::{Ask, TraitsAnswers};
use crate::shape::{By, GroupId, VmShape};
use crate::view::Row;

/// Where a VM would be restarted.
pub(super) type Target = (u32, Cells);

impl Guarantee {
    pub(super) fn loss_count(&self) -> u32 {
        u32::try_from(self.losses.len()).expect("there are fewer losses than nodes and values")
    }

    pub(super) fn lost(&self, number: u32) -> &Lost {
        &self.losses[number as usize]
    }

    pub(super) fn lost_mut(&mut self, number: u32) -> &mut Lost {
        Arc::make_mut(&mut self.losses[number as usize])
    }

    pub(super) fn backing(&self, slot: u32) -> &Backing {
        &self.nodes[slot as usize]
    }

    pub(super) fn backing_mut(&mut self, slot: u32) -> &mut Backing {
        Arc::make_mut(&mut self.nodes[slot as usize])
    }

    /// Makes a node part of its losses.
    pub(super) fn enlist(&mut self, slot: u32) {
        while self.nodes.len() <= slot as usize {
            self.nodes.push_back(Arc::default());
        }
        let Some(shape) = self.view.row(slot).map(|row| row.shape.clone()) else { return };
        for by in self.guarded.clone().iter() {
            let loss = match by {
                By::Node => Loss::Node(shape.id),
                By::Domain(key) => {
                    match shape.domains.get(key).map(|values| (values.len(), values.first())) {
                        Some((1, Some(value))) => Loss::Domain { key: key.clone(), value: value.clone() },
                        _ => continue,
                    }
                }
            };
            let number = match self.numbers.get(&loss) {
                Some(number) => *number,
                None => {
                    let number = self.loss_count();
                    self.losses.push_back(Arc::new(Lost::new(loss.clone())));
                    self.numbers.insert(loss, number);
                    number
                }
            };
            self.lost_mut(number).nodes.insert(slot);
            self.backing_mut(slot).losses.push(number);
        }
    }

    /// Takes a node out of its losses.
    pub(super) fn delist(&mut self, slot: u32) {
        for number in std::mem::take(&mut self.backing_mut(slot).losses) {
            self.lost_mut(number).nodes.remove(&slot);
        }
    }

    /// The losses in which a VM that stands on these slots is lost.
    pub(super) fn losses_of(&self, homes: &[u32]) -> BTreeSet<u32> {
        let Some((first, rest)) = homes.split_first() else { return BTreeSet::new() };
        let all = self.backing(*first).losses.iter().copied();
        all.filter(|number| rest.iter().all(|slot| self.lost(*number).nodes.contains(slot))).collect()
    }

    /// The losses that take a member of one of these groups.
    pub(super) fn losses_near(&self, groups: &BTreeSet<GroupId>) -> BTreeSet<u32> {
        let rows = groups.iter().filter_map(|id| self.view.group_row(*id));
        let slots = rows.flat_map(|row| row.members.iter().map(|(_, slot)| *slot));
        slots.flat_map(|slot| self.backing(slot).losses.iter().copied()).collect()
    }

    /// Where a place counts after a loss: the restart of a VM with several lost places counts once.
    pub(super) fn place_after(&self, lost: &Lost, vm: VmId, slot: u32) -> Option<u32> {
        if !lost.nodes.contains(&slot) {
            return Some(slot);
        }
        let is_first = self.view.home_slots(vm).first() == Some(&slot);
        lost.plan.get(&vm).copied().filter(|_| is_first)
    }

    /// Where the VM can be restarted after a loss, beside all that is planned for it. Room that other losses keep
    /// already is used first, the tightest; then the node where the kept room grows least.
    pub(super) fn target(&self, number: u32, vm: &VmShape) -> Option<Target> {
        let lost = self.lost(number);
        let ask = Ask::after_loss(&self.view, vm, &|vm, slot| self.place_after(lost, vm, slot));
        if ask.vm.disks.iter().any(|disk| disk.size_mib > 0 && self.view.is_over(disk.pool)) {
            return None;
        }
        let mut traits = TraitsAnswers::new(&ask);
        let mut gone = lost.nodes.iter().copied().peekable();
        let mut kept = lost.held.iter().peekable();
        let mut open = Vec::new();
        for ((slot, row), backing) in self.view.rows().zip(self.backings()) {
            while gone.next_if(|at| *at < slot).is_some() {}
            while kept.next_if(|(at, _)| **at < slot).is_some() {}
            if gone.peek() == Some(&slot) {
                continue;
            }
            let mut room =
                kept.peek().filter(|(at, _)| **at == slot).map_or_else(Room::default, |(_, held)| held.room);
            let (fits, emulation) = traits.of(row.entry.traits);
            let need = ask.need(&row.entry, emulation);
            if !fits || !room.leaves(&need, &row.entry, VMS_MAX) {
                continue;
            }
            room.add(&Room::of(need));
            let (growth, spare) = backing.growth(&room, &row.entry);
            open.push(Reverse((growth, spare, row.entry.id, slot)));
        }
        let mut open = BinaryHeap::from(open);
        while let Some(Reverse((.., slot))) = open.pop() {
            let row = self.view.row(slot)?;
            if !ask.needs_row {
                return Some((slot, Cells::NONE));
            }
            let with = lost.held.get(&slot).map(|held| row.with(&held.vms));
            let row: &Row = with.as_ref().unwrap_or(row);
            if ask.row_fits(row) {
                return Some((slot, row.choose_cells(vm)));
            }
        }
        None
    }

    /// The backing of each node that is there, in the order of slots.
    pub(super) fn backings(&self) -> impl Iterator<Item = &Backing> + '_ {
        (0..)
            .zip(self.nodes.iter())
            .filter(|(slot, _)| self.view.row(*slot).is_some())
            .map(|(_, node)| &**node)
    }

    pub(super) fn hold(&mut self, number: u32, slot: u32, cells: Cells, vm: Arc<VmShape>) {
        let Some(row) = self.view.row(slot) else { return };
        let emulation = row.shape.emulation;
        let need = Ask::after_loss(&self.view, &vm, &|_, _| None).need(&row.entry, emulation);
        self.lost_mut(number).hold(slot, vm, cells, need, emulation);
        let backing = Arc::make_mut(&mut self.nodes[slot as usize]);
        backing.from.insert(number);
        if let Some(held) = self.losses[number as usize].held.get(&slot) {
            backing.raise(held);
        }
    }

    /// Plans a VM's restart, or leaves it out.
    pub(super) fn cover(&mut self, number: u32, vm: &Arc<VmShape>) {
        if self.lost(number).plan.contains_key(&vm.id) {
            return;
        }
        match self.target(number, vm) {
            Some((slot, cells)) => {
                if self.lost(number).left_out.contains_key(&vm.id) {
                    self.lost_mut(number).left_out.remove(&vm.id);
                }
                self.hold(number, slot, cells, vm.clone());
            }
            None => drop(self.lost_mut(number).left_out.insert(vm.id, vm.clone())),
        }
    }

    /// Drops a VM from a loss.
    pub(super) fn forget(&mut self, number: u32, vm: VmId) {
        let view = &self.view;
        let emulation = |slot| view.row(slot).is_some_and(|row| row.shape.emulation);
        let lost = Arc::make_mut(&mut self.losses[number as usize]);
        lost.left_out.remove(&vm);
        let Some((slot, before)) = lost.drop_plan(vm, emulation) else { return };
        let is_last = !lost.held.contains_key(&slot);
        let backing = Arc::make_mut(&mut self.nodes[slot as usize]);
        if is_last {
            backing.from.remove(&number);
        }
        if backing.may_sink(&before) {
            (backing.most, backing.cells) = (Room::default(), Vec::new());
            for number in backing.from.clone() {
                if let Some(held) = self.losses[number as usize].held.get(&slot) {
                    backing.raise(held);
                }
            }
        }
    }

    /// The protected VMs that a loss takes, in the order of restarts.
    pub(super) fn must(&self, number: u32) -> Vec<Arc<VmShape>> {
        let mut must: BTreeMap<VmId, &Arc<VmShape>> = BTreeMap::new();
        for row in self.lost(number).nodes.iter().filter_map(|slot| self.view.row(*slot)) {
            for vm in row.vms.iter().filter(|vm| vm.protected) {
                if self.losses_of(self.view.home_slots(vm.id)).contains(&number) {
                    must.entry(vm.id).or_insert(vm);
                }
            }
        }
        let mut must: Vec<Arc<VmShape>> = must.into_values().cloned().collect();
        must.sort_by_key(restart_order);
        must
    }

    /// Plans anew the restarts of a loss on one node, those of members of these groups, and what has none; or all,
    /// if some would be left out.
    pub(super) fn refit(&mut self, number: u32, slot: Option<u32>, groups: &BTreeSet<GroupId>) {
        let must = self.must(number);
        let wanted: BTreeSet<VmId> = must.iter().map(|vm| vm.id).collect();
        let lost = self.lost(number);
        let mut stale: Vec<VmId> = lost.left_out.keys().copied().collect();
        for (at, held) in &lost.held {
            let all = Some(*at) == slot || lost.nodes.contains(at);
            let drop = |vm: &VmShape| all || !wanted.contains(&vm.id) || !vm.groups.is_disjoint(groups);
            stale.extend(held.vms.iter().filter(|(vm, _)| drop(vm)).map(|(vm, _)| vm.id));
        }
        stale.iter().for_each(|vm| self.forget(number, *vm));
        must.iter().for_each(|vm| self.cover(number, vm));
        if !self.lost(number).left_out.is_empty() {
            self.plan_anew(number);
        }
    }

    /// Whether what a loss would restart on a node can be restarted there, all at once.
    pub(super) fn keeps_on(&self, number: u32, slot: u32) -> bool {
        let lost = self.lost(number);
        let Some(held) = lost.held.get(&slot) else { return true };
        let Some(row) = self.view.row(slot).filter(|_| !lost.nodes.contains(&slot)) else { return false };
        let Some(traits) = self.view.traits().get(row.entry.traits) else { return false };
        if !held.room.has_room_on(&row.entry, VMS_MAX) {
            return false;
        }
        held.vms.iter().all(|(vm, cells)| {
            let ask = Ask::after_loss(&self.view, vm, &|vm, slot| self.place_after(lost, vm, slot));
            if !ask.traits_fit(traits) {
                return false;
            }
            let others =
                || held.vms.iter().filter(|(other, _)| other.id != vm.id).cloned().collect::<Vec<_>>();
            !ask.needs_row || {
                let row = row.with(&others());
                ask.row_fits(&row) && row.cells_have_room(*cells, vm)
            }
        })
    }

    /// Plans every loss from scratch.
    pub(super) fn plan_all_anew(&mut self) {
        *self = Self::new(std::mem::take(&mut self.view), &self.guarded.clone());
    }

    pub(super) fn plan_anew(&mut self, number: u32) {
        let lost = self.lost(number);
        let all: Vec<VmId> = lost.plan.keys().chain(lost.left_out.keys()).copied().collect();
        all.iter().for_each(|vm| self.forget(number, *vm));
        self.must(number).iter().for_each(|vm| self.cover(number, vm));
    }
}
