//! The plans of a guarantee: which losses there are, whom they take, and where each VM would be restarted. Plans are
//! extended and mended greedily, highest priority first. Deliberately absent: what may be decided, which is the
//! guarantee's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};
use uuid::Uuid;

use super::guarantee::{Guarantee, VMS_MAX};
use super::reserve::{Backing, Lost, Room, Shift, Spot};
use super::{Loss, restart_order};
use crate::cells::Cells;
use crate::filter::{Ask, TraitsAnswers};
use crate::index::DISK;
use crate::shape::{By, GroupId, VmShape};

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

    /// Takes what searches look at from the node's row.
    pub(super) fn refresh(&mut self, slot: u32) {
        while self.nodes.len() <= slot as usize {
            self.nodes.push_back(Arc::default());
            self.spots.push_back(Spot::vacant());
        }
        let spot = match self.view.row(slot) {
            Some(row) => Spot::of(&row.entry, VMS_MAX, self.spots[slot as usize].most),
            None => Spot::vacant(),
        };
        self.spots.set(slot as usize, spot);
    }

    /// Makes a node part of its losses.
    pub(super) fn enlist(&mut self, slot: u32) {
        self.refresh(slot);
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
            Arc::make_mut(&mut self.lost_mut(number).nodes).insert(slot);
            self.backing_mut(slot).losses.push(number);
        }
    }

    /// Takes a node out of its losses.
    pub(super) fn delist(&mut self, slot: u32) {
        for number in std::mem::take(&mut self.backing_mut(slot).losses) {
            Arc::make_mut(&mut self.lost_mut(number).nodes).remove(&slot);
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
        if !ask.needs_row {
            let mut best = (u64::MAX, u64::MAX, NodeId(Uuid::max()), u32::MAX);
            self.each_open(lost, &ask, |slot, spot, held| {
                let growth = spot.growth(held);
                if growth <= best.0 {
                    best = best.min((growth, spot.spare(held), spot.id, slot));
                }
            });
            return (best.3 != u32::MAX).then_some((best.3, Cells::NONE));
        }
        let mut open = Vec::new();
        self.each_open(lost, &ask, |slot, spot, held| {
            open.push(Reverse((spot.growth(held), spot.spare(held), spot.id, slot)));
        });
        let mut open = BinaryHeap::from(open);
        while let Some(Reverse((.., slot))) = open.pop() {
            let row = self.view.row(slot)?;
            let with = lost.held(slot).map(|stock| row.with(&stock.held.vms));
            let row = with.as_ref().unwrap_or(row);
            if ask.row_fits(row) {
                return Some((slot, row.choose_cells(vm)));
            }
        }
        None
    }

    /// Visits the nodes with room for a restart beside all others of its loss, with all that would then be held.
    #[inline]
    fn each_open(&self, lost: &Lost, ask: &Ask, mut visit: impl FnMut(u32, &Spot, &Room)) {
        let mut traits = TraitsAnswers::new(ask);
        let each_its_own = ask.most[DISK] != ask.least[DISK];
        // Many nodes in a row have the same traits, and then the same need.
        let mut last = (u32::MAX, false, Room::NONE);
        // The next slot that is lost, and the next that holds something, stand ready: this loop is most of an admission.
        let (mut gone, mut kept) = (lost.nodes.iter(), lost.stocks().iter());
        let (mut next_gone, mut next_kept) = (gone.next(), kept.next());
        for (slot, spot) in (0..).zip(self.spots.leaves().flatten()) {
            let mut held = &Room::NONE;
            if let Some(stock) = next_kept.filter(|stock| stock.slot == slot) {
                (held, next_kept) = (&stock.room, kept.next());
            }
            if next_gone == Some(&slot) {
                next_gone = gone.next();
                continue;
            }
            // A vacant slot has no set of traits, which fits nobody.
            if spot.traits != last.0 || each_its_own {
                let (fits, emulation) = traits.of(spot.traits);
                last = (spot.traits, fits, Room::of(ask.need_on(spot.id, emulation)));
            }
            let (_, fits, need) = &last;
            if *fits && held.leaves(need, &spot.free) {
                visit(slot, spot, &held.plus(need));
            }
        }
    }

    pub(super) fn hold(&mut self, number: u32, slot: u32, cells: Cells, vm: Arc<VmShape>) {
        let Some(row) = self.view.row(slot) else { return };
        let emulation = row.shape.emulation;
        let need = Ask::after_loss(&self.view, &vm, &|_, _| None).need_on(row.shape.id, emulation);
        let shift = self.lost_mut(number).hold(slot, vm, cells, Room::of(need), emulation);
        self.backing_mut(slot).list(number);
        self.shift(number, &shift);
    }

    /// Keeps a node's reserve true after one loss holds another room there.
    fn shift(&mut self, number: u32, shift: &Shift) {
        let slot = shift.slot as usize;
        let backing = Arc::make_mut(&mut self.nodes[slot]);
        if self.losses[number as usize].held(shift.slot).is_none() {
            backing.unlist(number);
        }
        let losses = &self.losses;
        let from = std::mem::take(&mut backing.from);
        let rooms = from.iter().map(|number| losses[*number as usize].room(shift.slot));
        let mut most = self.spots[slot].most;
        backing.shift(&mut most, shift, rooms);
        self.spots[slot].most = most;
        if shift.in_cells {
            backing.cells.clear();
            let stocks = from.iter().filter_map(|number| losses[*number as usize].held(shift.slot));
            stocks.for_each(|stock| backing.raise_cells(&stock.held));
        }
        backing.from = from;
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
        let lost = &self.losses[number as usize];
        if !lost.plan.contains_key(&vm) && !lost.left_out.contains_key(&vm) {
            return;
        }
        let lost = Arc::make_mut(&mut self.losses[number as usize]);
        lost.left_out.remove(&vm);
        if let Some(shift) = lost.drop_plan(vm, emulation) {
            self.shift(number, &shift);
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
        for stock in lost.stocks() {
            let all = Some(stock.slot) == slot || lost.nodes.contains(&stock.slot);
            let drop = |vm: &VmShape| all || !wanted.contains(&vm.id) || !vm.groups.is_disjoint(groups);
            stale.extend(stock.held.vms.iter().filter(|(vm, _)| drop(vm)).map(|(vm, _)| vm.id));
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
        let Some(stock) = lost.held(slot) else { return true };
        let held = &stock.held;
        let Some(row) = self.view.row(slot).filter(|_| !lost.nodes.contains(&slot)) else { return false };
        let Some(traits) = self.view.traits().get(row.entry.traits) else { return false };
        if !Room::default().leaves(&stock.room, &Room::free(&row.entry, VMS_MAX)) {
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
