//! What a guarantee keeps: for each loss the plan of restarts, and on each node the room that the plans hold. As one
//! value is lost at a time, a node holds the most of its losses, not their sum. Deliberately absent: how a plan is
//! found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::VmId;

use super::Loss;
use crate::cells::{CellAsk, Cells, Share};
use crate::index::{Amounts, DIMENSIONS, Entry, MEMORY, VCPUS};
use crate::shape::VmShape;

/// Room of one node: the amounts, and a count of VMs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) amounts: Amounts,
    pub(super) vms: u32,
}

impl Room {
    /// Of one VM that needs this.
    pub(super) fn of(amounts: Amounts) -> Self {
        Self { amounts, vms: 1 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.amounts = std::array::from_fn(|d| self.amounts[d].saturating_add(other.amounts[d]));
        self.vms += other.vms;
    }

    fn take(&mut self, other: &Self) {
        self.amounts = std::array::from_fn(|d| self.amounts[d].saturating_sub(other.amounts[d]));
        self.vms -= other.vms;
    }

    fn raise(&mut self, other: &Self) {
        self.amounts = std::array::from_fn(|d| self.amounts[d].max(other.amounts[d]));
        self.vms = self.vms.max(other.vms);
    }

    fn touches(&self, other: &Self) -> bool {
        self.vms == other.vms || (0..DIMENSIONS).any(|d| self.amounts[d] == other.amounts[d])
    }

    /// Whether a node has this much free.
    pub(super) fn has_room_on(&self, entry: &Entry, at_most: u32) -> bool {
        (0..DIMENSIONS).all(|d| entry.free[d] >= self.amounts[d])
            && entry.vms.saturating_add(self.vms) <= at_most
    }

    /// Whether a VM that needs `need` has room beside this on a node. What it does not need it cannot lack.
    pub(super) fn leaves(&self, need: &Amounts, entry: &Entry, at_most: u32) -> bool {
        let fits = |d: usize| need[d] == 0 || entry.free[d] >= self.amounts[d].saturating_add(need[d]);
        (0..DIMENSIONS).all(fits) && entry.vms.saturating_add(self.vms) < at_most
    }
}

/// What the plan of one loss holds on one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub(super) room: Room,
    pub(super) vms: Vec<(Arc<VmShape>, Cells)>,
    rooms: Vec<Room>,
    cells: Vec<Share>,
}

impl Held {
    fn count_cells(&mut self, emulation: bool) {
        self.cells.clear();
        for (vm, cells) in &self.vms {
            let held = vm.reservation_on(emulation);
            let ask = CellAsk::new(cells.len(), u64::from(held.vcpus), held.memory_mib);
            for (at, ask) in cells.iter().zip(ask.into_iter().cycle()) {
                if self.cells.len() <= at {
                    self.cells.resize(at + 1, Share::default());
                }
                self.cells[at] = [self.cells[at][0] + ask.share[0], self.cells[at][1] + ask.share[1]];
            }
        }
    }
}

/// One loss: what would be lost, and where it would be restarted.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) loss: Loss,
    /// Slots.
    pub(super) nodes: BTreeSet<u32>,
    /// The slot of each VM's restart.
    pub(super) plan: BTreeMap<VmId, u32>,
    /// By slot.
    pub(super) held: BTreeMap<u32, Held>,
    /// Protected VMs that would be lost and have no place.
    pub(super) left_out: BTreeMap<VmId, Arc<VmShape>>,
}

impl Lost {
    pub(super) fn new(loss: Loss) -> Self {
        let (plan, held, left_out) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { loss, nodes: BTreeSet::new(), plan, held, left_out }
    }

    pub(super) fn hold(
        &mut self,
        slot: u32,
        vm: Arc<VmShape>,
        cells: Cells,
        amounts: Amounts,
        emulation: bool,
    ) {
        self.plan.insert(vm.id, slot);
        let held = self.held.entry(slot).or_default();
        held.room.add(&Room::of(amounts));
        held.rooms.push(Room::of(amounts));
        held.vms.push((vm, cells));
        if !cells.is_empty() {
            held.count_cells(emulation);
        }
    }

    /// The slot that no longer holds the VM.
    pub(super) fn drop_plan(&mut self, vm: VmId, emulation: impl Fn(u32) -> bool) -> Option<(u32, Room)> {
        let slot = self.plan.remove(&vm)?;
        let held = self.held.get_mut(&slot)?;
        let at = held.vms.iter().position(|(held, _)| held.id == vm)?;
        let before = held.room;
        held.room.take(&held.rooms.remove(at));
        let (_, cells) = held.vms.remove(at);
        if !cells.is_empty() {
            held.count_cells(emulation(slot));
        }
        if held.vms.is_empty() {
            self.held.remove(&slot);
        }
        Some((slot, before))
    }
}

/// One node: the losses that it is part of, and those that hold room on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Backing {
    pub(super) losses: Vec<u32>,
    pub(super) from: BTreeSet<u32>,
    /// The most of each amount that any loss holds.
    pub(super) most: Room,
    /// The same in each cell.
    pub(super) cells: Vec<Share>,
}

impl Backing {
    pub(super) fn raise(&mut self, held: &Held) {
        self.most.raise(&held.room);
        for (at, share) in held.cells.iter().enumerate() {
            if self.cells.len() <= at {
                self.cells.resize(at + 1, Share::default());
            }
            self.cells[at] = [self.cells[at][0].max(share[0]), self.cells[at][1].max(share[1])];
        }
    }

    /// Whether the most may be less now that a loss that held `before` holds less.
    pub(super) fn may_sink(&self, before: &Room) -> bool {
        !self.cells.is_empty() || self.most.touches(before)
    }

    /// By how much the room kept here would grow, and how much kept room would stay unused, if a loss held this:
    /// both as parts of the node's capacity, in 1/8192, over all amounts.
    pub(super) fn growth(&self, held: &Room, entry: &Entry) -> (u64, u64) {
        let part = |d: usize, amount: u64| amount.saturating_mul(1 << 13) / entry.capacity[d].max(1);
        let (mut growth, mut spare) = (0u64, 0u64);
        for d in [VCPUS, MEMORY, crate::index::DISK] {
            let (most, would) = (self.most.amounts[d], held.amounts[d]);
            growth = growth.saturating_add(part(d, would.saturating_sub(most)));
            spare = spare.saturating_add(part(d, most.saturating_sub(would)));
        }
        (growth, spare)
    }
}
