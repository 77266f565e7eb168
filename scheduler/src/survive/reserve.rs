//! What a guarantee keeps: for each loss the plan of restarts, and on each node the room that the plans hold. As one
//! value is lost at a time, a node keeps the most of its losses, not their sum. All parts are shared until written, so
//! that a fork copies little. Deliberately absent: how a plan is found.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use tamdao_model::{NodeId, VmId};

use super::Loss;
use crate::cells::{CellAsk, Cells, Share, each};
use crate::index::{Amounts, DIMENSIONS, Entry};
use crate::shape::VmShape;

/// Amounts of a room: those of a node, and a count of VMs.
pub(super) const PARTS: usize = DIMENSIONS + 1;

/// Room of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room(pub(super) [u64; PARTS]);

impl Room {
    pub(super) const NONE: Self = Self([0; PARTS]);

    /// Of one VM that needs this.
    pub(super) fn of(need: Amounts) -> Self {
        Self(std::array::from_fn(|d| need.get(d).copied().unwrap_or(1)))
    }

    /// What a node has free, if it may hold so many VMs.
    pub(super) fn free(entry: &Entry, vms_at_most: u32) -> Self {
        let vms = u64::from(vms_at_most.saturating_sub(entry.vms));
        Self(std::array::from_fn(|d| entry.free.get(d).copied().unwrap_or(vms)))
    }

    #[inline]
    #[must_use]
    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        for d in 0..PARTS {
            sum.0[d] = sum.0[d].saturating_add(other.0[d]);
        }
        sum
    }

    fn less(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|d| self.0[d].saturating_sub(other.0[d])))
    }

    /// Whether what is needed has room beside this. What is not needed cannot be lacking.
    #[inline]
    pub(super) fn leaves(&self, need: &Self, free: &Self) -> bool {
        let mut leaves = true;
        for d in 0..PARTS {
            leaves &= need.0[d] == 0 || free.0[d] >= self.0[d].saturating_add(need.0[d]);
        }
        leaves
    }
}

/// What the plan of one loss holds on one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    pub(super) vms: Vec<(Arc<VmShape>, Cells)>,
    rooms: Vec<Room>,
    pub(super) cells: Vec<Share>,
}

impl Held {
    fn count_cells(&mut self, emulation: bool) {
        self.cells.clear();
        for (vm, cells) in &self.vms {
            let ask = CellAsk::new(cells.len(), vm.in_cells(emulation));
            for (at, ask) in cells.iter().zip(ask.into_iter().cycle()) {
                if self.cells.len() <= at {
                    self.cells.resize(at + 1, Share::default());
                }
                self.cells[at] = each(&self.cells[at], &ask.share, u64::saturating_add);
            }
        }
    }
}

/// What a loss holds on a slot; the room stands beside the rest, because searches look at nothing else.
#[derive(Debug, Clone)]
pub(super) struct Stock {
    pub(super) slot: u32,
    pub(super) room: Room,
    pub(super) held: Arc<Held>,
}

/// How the room that a loss holds on a slot has changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shift {
    pub(super) slot: u32,
    pub(super) before: Room,
    pub(super) after: Room,
    /// Room in cells has changed too.
    pub(super) in_cells: bool,
}

/// One loss: what would be lost, and where it would be restarted.
#[derive(Debug, Clone)]
pub(super) struct Lost {
    pub(super) loss: Arc<Loss>,
    /// Slots.
    pub(super) nodes: Arc<BTreeSet<u32>>,
    /// The slot of each VM's restart.
    pub(super) plan: OrdMap<VmId, u32>,
    /// In the order of slots.
    held: Arc<Vec<Stock>>,
    /// Protected VMs that would be lost and have no place.
    pub(super) left_out: OrdMap<VmId, Arc<VmShape>>,
}

impl Lost {
    pub(super) fn new(loss: Loss) -> Self {
        let (plan, held, left_out) = (OrdMap::new(), Arc::default(), OrdMap::new());
        Self { loss: Arc::new(loss), nodes: Arc::default(), plan, held, left_out }
    }

    /// All that it holds, in the order of slots.
    pub(super) fn stocks(&self) -> &[Stock] {
        &self.held
    }

    fn find(&self, slot: u32) -> Result<usize, usize> {
        self.held.binary_search_by_key(&slot, |stock| stock.slot)
    }

    pub(super) fn held(&self, slot: u32) -> Option<&Stock> {
        self.find(slot).ok().map(|at| &self.held[at])
    }

    pub(super) fn room(&self, slot: u32) -> Room {
        self.held(slot).map(|stock| stock.room).unwrap_or_default()
    }

    pub(super) fn hold(
        &mut self,
        slot: u32,
        vm: Arc<VmShape>,
        cells: Cells,
        need: Room,
        emulation: bool,
    ) -> Shift {
        self.plan.insert(vm.id, slot);
        let at = self.find(slot);
        let all = Arc::make_mut(&mut self.held);
        let at = at.unwrap_or_else(|at| {
            all.insert(at, Stock { slot, room: Room::default(), held: Arc::default() });
            at
        });
        let (stock, in_cells) = (&mut all[at], !cells.is_empty());
        let before = stock.room;
        stock.room = before.plus(&need);
        let held = Arc::make_mut(&mut stock.held);
        held.rooms.push(need);
        held.vms.push((vm, cells));
        if in_cells {
            held.count_cells(emulation);
        }
        Shift { slot, before, after: stock.room, in_cells }
    }

    /// Drops a VM's restart, if it has one.
    pub(super) fn drop_plan(&mut self, vm: VmId, emulation: impl Fn(u32) -> bool) -> Option<Shift> {
        let slot = self.plan.remove(&vm)?;
        let place = self.find(slot).ok()?;
        let all = Arc::make_mut(&mut self.held);
        let stock = &mut all[place];
        let held = Arc::make_mut(&mut stock.held);
        let at = held.vms.iter().position(|(held, _)| held.id == vm)?;
        let before = stock.room;
        stock.room = before.less(&held.rooms.remove(at));
        let (_, cells) = held.vms.remove(at);
        let in_cells = !cells.is_empty();
        if in_cells {
            held.count_cells(emulation(slot));
        }
        let after = stock.room;
        if held.vms.is_empty() {
            all.remove(place);
        }
        Some(Shift { slot, before, after, in_cells })
    }
}

/// One node: the losses that it is part of, and those that hold room on it.
#[derive(Debug, Clone, Default)]
pub(super) struct Backing {
    pub(super) losses: Vec<u32>,
    /// In order.
    pub(super) from: Vec<u32>,
    /// The most in each cell that any loss holds.
    pub(super) cells: Vec<Share>,
    /// How many losses hold the most of each amount, so that it is known when the most sinks.
    tops: [u32; PARTS],
}

impl Backing {
    pub(super) fn list(&mut self, number: u32) {
        if let Err(at) = self.from.binary_search(&number) {
            self.from.insert(at, number);
        }
    }

    pub(super) fn unlist(&mut self, number: u32) {
        if let Ok(at) = self.from.binary_search(&number) {
            self.from.remove(at);
        }
    }

    /// Keeps the most true after a loss holds another room here; `rooms` are those of all losses, as they are now.
    pub(super) fn shift(&mut self, most: &mut Room, shift: &Shift, rooms: impl Iterator<Item = Room>) {
        let mut sunk = [false; PARTS];
        for (d, sunk) in sunk.iter_mut().enumerate() {
            let (before, after) = (shift.before.0[d], shift.after.0[d]);
            if after > most.0[d] {
                (most.0[d], self.tops[d]) = (after, 1);
            } else if after == most.0[d] && before != after {
                self.tops[d] += 1;
            } else if before == most.0[d] && before != after {
                self.tops[d] -= 1;
                *sunk = self.tops[d] == 0;
            }
        }
        if !sunk.contains(&true) {
            return;
        }
        let sunk = || (0..PARTS).filter(|d| sunk[*d]);
        sunk().for_each(|d| most.0[d] = 0);
        for room in rooms {
            for d in sunk() {
                if room.0[d] > most.0[d] {
                    (most.0[d], self.tops[d]) = (room.0[d], 1);
                } else if room.0[d] == most.0[d] {
                    self.tops[d] += 1;
                }
            }
        }
    }

    pub(super) fn raise_cells(&mut self, held: &Held) {
        for (at, share) in held.cells.iter().enumerate() {
            if self.cells.len() <= at {
                self.cells.resize(at + 1, Share::default());
            }
            self.cells[at] = each(&self.cells[at], share, u64::max);
        }
    }
}

/// What a search for a restart looks at of each node: side by side, because it looks at all of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    /// The set of traits of the node; the largest number where there is none.
    pub(super) traits: u32,
    pub(super) id: NodeId,
    pub(super) free: Room,
    /// The most that any loss holds.
    pub(super) most: Room,
    /// One unit of each amount as a part of the node's capacity, in 1/2^40.
    part: Amounts,
}

impl Spot {
    pub(super) fn vacant() -> Self {
        let (free, most) = (Room::default(), Room::default());
        Self { traits: u32::MAX, id: NodeId(uuid::Uuid::nil()), free, most, part: Amounts::default() }
    }

    pub(super) fn of(entry: &Entry, vms_at_most: u32, most: Room) -> Self {
        let part = std::array::from_fn(|d| (1 << 40) / entry.capacity[d].max(1));
        Self { traits: entry.traits, id: entry.id, free: Room::free(entry, vms_at_most), most, part }
    }

    /// By how much the room kept here would grow if a loss held this: in parts of the node's capacity, over all amounts.
    #[inline]
    pub(super) fn growth(&self, held: &Room) -> u64 {
        self.parts(|d| held.0[d].saturating_sub(self.most.0[d]))
    }

    /// How much kept room would stay unused then.
    #[inline]
    pub(super) fn spare(&self, held: &Room) -> u64 {
        self.parts(|d| self.most.0[d].saturating_sub(held.0[d]))
    }

    /// What is kept never exceeds the capacity for longer than a fact takes, so no part is larger than one.
    #[inline]
    fn parts(&self, amount: impl Fn(usize) -> u64) -> u64 {
        let mut sum: u64 = 0;
        for d in 0..DIMENSIONS {
            sum = sum.wrapping_add(amount(d).wrapping_mul(self.part[d]));
        }
        sum
    }
}
