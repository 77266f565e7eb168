//! Joining free room that is too small to be of use. Free virtual CPUs that no further VM of a given size can take
//! are stranded: they are alone in a cell, or without memory. Their part of all free CPUs is the fragment rate; with
//! a size of 16 CPUs and no memory it is FR16 of VMR2L (Ding et al., EuroSys 2025).
//!
//! One more VM fits on a node when enough of its own VMs leave. The fewest that do are found by a knapsack over the
//! node or cell, and each must go where it takes only what is stranded. So every set of moves gains a whole place,
//! and those that gain it with the fewest moves go first. Deliberately absent: moves that only pay off with others
//! on other nodes, and exchanges of VMs.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};

use super::course::{Course, why_not};
use super::rounds::rounds;
use super::{Budget, Plan, Terms, Why};
use crate::cells::Cells;
use crate::shape::VmShape;
use crate::survive::guarantee::Guarantee;
use crate::view::View;

/// Targets on which the rules are asked for one VM.
const TARGETS: usize = 8;

/// What joining comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defragmentation {
    pub plan: Plan,
    pub before: Fragments,
    pub after: Fragments,
}

/// The free room of all nodes that take VMs, by what one size can use of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fragments {
    pub free_vcpus: u64,
    /// Free virtual CPUs that no VM of the size can take.
    pub stranded_vcpus: u64,
    /// VMs of the size that fit, by room alone.
    pub places: u64,
}

impl Fragments {
    /// Of a cluster as it is. On a node with NUMA cells a VM of the size takes one cell.
    pub fn of(view: &View, size: Reservation) -> Self {
        rooms(view).iter().fold(Self::default(), |sum, room| {
            let places = room.places(size);
            Self {
                free_vcpus: sum.free_vcpus + room.free[0],
                stranded_vcpus: sum.stranded_vcpus + room.stranded(size),
                places: sum.places + places,
            }
        })
    }

    /// The stranded part of all free virtual CPUs, in 1/10,000.
    pub fn rate(&self) -> u64 {
        self.stranded_vcpus * 10_000 / self.free_vcpus.max(1)
    }
}

/// Plans at most `at_most` moves after which more VMs of this size fit. A size of 0 CPUs has no plan. The `gain` of
/// the last move of a set is the CPUs that are no longer stranded, those before it gain nothing alone.
pub fn defragment(
    view: &View,
    size: Reservation,
    at_most: usize,
    terms: &Terms,
    budget: &mut Budget,
) -> Defragmentation {
    let course = Course::new(view, terms);
    let kept = course.kept.as_deref().cloned();
    let mut search = Search { course, kept, rooms: rooms(view), size, at_most };
    while size.vcpus > 0 && search.pass(budget) {}
    // A VM that moved twice did so for cells, which a straight move would choose anew.
    let end = search.course;
    let after = Fragments::of(&end.view, size);
    Defragmentation { plan: rounds(view, end.moves, &terms.limits), before: Fragments::of(view, size), after }
}

/// What a node has free: virtual CPUs and MiB of memory.
#[derive(Clone)]
struct Room {
    node: NodeId,
    emulation: bool,
    free: [u64; 2],
    cells: Vec<[u64; 2]>,
}

fn rooms(view: &View) -> Vec<Room> {
    let open = view.nodes().filter(|node| node.ready && !node.cordoned);
    open.filter_map(|node| Room::of(view, node.id)).collect()
}

impl Room {
    fn of(view: &View, node: NodeId) -> Option<Self> {
        let emulation = view.node(node)?.emulation;
        let of = view.node_use(node)?;
        let free = [of.vcpus.saturating_sub(of.vcpus_used), of.memory_mib.saturating_sub(of.memory_used_mib)];
        let cells = view.cell_use(node).map(|of| {
            [of.vcpus.saturating_sub(of.vcpus_used), of.memory_mib.saturating_sub(of.memory_used_mib)]
        });
        Some(Self { node, emulation, free, cells: cells.collect() })
    }

    /// How many VMs of the size fit, each in one cell where there are cells.
    fn places(&self, size: Reservation) -> u64 {
        let in_one = |free: &[u64; 2]| {
            let by_memory = free[1].checked_div(size.memory_mib).unwrap_or(u64::MAX);
            free[0].checked_div(u64::from(size.vcpus)).unwrap_or(0).min(by_memory)
        };
        let whole = in_one(&self.free);
        if self.cells.is_empty() { whole } else { whole.min(self.cells.iter().map(in_one).sum()) }
    }

    fn stranded(&self, size: Reservation) -> u64 {
        self.free[0] - self.places(size) * u64::from(size.vcpus)
    }

    /// The room with a VM more on these cells, or one less.
    fn with(&self, vm: &VmShape, cells: Cells, apply: fn(u64, u64) -> u64) -> Self {
        let held = vm.reservation_on(self.emulation);
        let amounts = [u64::from(held.vcpus), held.memory_mib];
        let mut room = self.clone();
        room.free = [apply(room.free[0], amounts[0]), apply(room.free[1], amounts[1])];
        let parts = u64::from(cells.len().max(1));
        for at in cells.iter() {
            if let Some(cell) = room.cells.get_mut(at) {
                *cell =
                    [apply(cell[0], amounts[0].div_ceil(parts)), apply(cell[1], amounts[1].div_ceil(parts))];
            }
        }
        room
    }
}

struct Search<'a> {
    course: Course<'a>,
    /// In step with the course; each move is proposed to it.
    kept: Option<Guarantee>,
    rooms: Vec<Room>,
    size: Reservation,
    at_most: usize,
}

/// VMs that leave one node so that one more VM of the size fits there.
struct Set {
    source: usize,
    vms: Vec<Arc<VmShape>>,
    copied: u64,
}

impl Search<'_> {
    /// Goes once through all sets that gain a place; true if one did.
    fn pass(&mut self, budget: &mut Budget) -> bool {
        let mut sets: Vec<Set> = Vec::new();
        for source in 0..self.rooms.len() {
            if budget.step() {
                sets.extend(self.set(source, &BTreeSet::new()));
            }
        }
        let rank = |set: &Set, rooms: &[Room]| {
            (Reverse(set.vms.len()), Reverse(set.copied), Reverse(rooms[set.source].node))
        };
        sets.sort_by_key(|set| rank(set, &self.rooms));
        let mut gained = false;
        let mut refused: Vec<BTreeSet<VmId>> = self.rooms.iter().map(|_| BTreeSet::new()).collect();
        // Nodes to which VMs have come since their set was made, which may gain nothing by it any more.
        let mut came: BTreeSet<usize> = BTreeSet::new();
        while let Some(set) = sets.pop() {
            if self.course.moves.len() + set.vms.len() > self.at_most || !budget.step() {
                continue;
            }
            if !came.remove(&set.source) {
                match self.carry(&set, budget) {
                    Ok(targets) => {
                        gained = true;
                        came.extend(targets);
                    }
                    Err(vm) => drop(refused[set.source].insert(vm)),
                }
            }
            // The node is asked again: for its next place, for a set without the VM that has nowhere to go, or for
            // one with those that came.
            if let Some(next) = self.set(set.source, &refused[set.source]) {
                let at = sets.partition_point(|other| rank(other, &self.rooms) <= rank(&next, &self.rooms));
                sets.insert(at, next);
            }
        }
        gained
    }

    /// The fewest VMs, and of these the least to copy, whose leaving gains a place on the node.
    fn set(&self, source: usize, refused: &BTreeSet<VmId>) -> Option<Set> {
        let room = &self.rooms[source];
        let cells: Vec<Option<usize>> =
            if room.cells.is_empty() { vec![None] } else { (0..room.cells.len()).map(Some).collect() };
        let sets = cells.into_iter().filter_map(|cell| self.set_of_cell(source, cell, refused));
        sets.min_by_key(|set| (set.vms.len(), set.copied))
    }

    fn set_of_cell(&self, source: usize, cell: Option<usize>, refused: &BTreeSet<VmId>) -> Option<Set> {
        let room = &self.rooms[source];
        let free = cell.and_then(|at| room.cells.get(at)).unwrap_or(&room.free)[0];
        let size = u64::from(self.size.vcpus);
        let lacking = usize::try_from(size - free % size).ok()?;
        let mut guests: Vec<(Arc<VmShape>, Cells)> = Vec::new();
        for vm in self.course.view.vms_on(room.node) {
            let cells = self.course.view.cells_of(room.node, vm.id);
            let is_here = cell.is_none_or(|at| cells.is_empty() || cells.len() == 1 && cells.contains(at));
            let may = vm.reservation.vcpus > 0 && vm.pin.is_none() && !refused.contains(&vm.id);
            if is_here && may && self.course.way(vm.id).is_ok() {
                guests.push((vm.clone(), cells));
            }
        }
        let chosen = knapsack(
            lacking,
            guests
                .iter()
                .map(|(vm, _)| (vm.reservation.vcpus as usize, self.course.copied_by(vm, room.node))),
        )?;
        let leave = |room: Room, at: &usize| room.with(&guests[*at].0, guests[*at].1, u64::saturating_add);
        let without = chosen.iter().fold(room.clone(), leave);
        let vms: Vec<_> = chosen.iter().map(|at| guests[*at].0.clone()).collect();
        let copied = vms.iter().map(|vm| self.course.copied_by(vm, room.node)).sum();
        (without.places(self.size) > room.places(self.size)).then_some(Set { source, vms, copied })
    }

    /// Carries all VMs of a set to where they take only what is stranded and says where, or which of them has no
    /// such target.
    fn carry(&mut self, set: &Set, budget: &mut Budget) -> Result<BTreeSet<usize>, VmId> {
        let from = self.rooms[set.source].node;
        let mut course = self.course.clone();
        let mut kept = self.kept.clone();
        let mut changed = vec![set.source];
        for (at, vm) in set.vms.iter().enumerate() {
            let gain = if at + 1 == set.vms.len() { u64::from(self.size.vcpus) } else { 0 };
            let target = self.target(&course, vm, set.source, &changed, budget).ok_or(vm.id)?;
            let to = self.rooms[target].node;
            if let Some(kept) = &mut kept {
                let cells = course.view.cells_for(to, vm);
                kept.propose_move(vm.id, from, to, cells).map_err(|_| vm.id)?;
            }
            course.carry(vm, from, to, Why::Join, gain);
            changed.push(target);
        }
        (self.course, self.kept) = (course, kept);
        for at in &changed {
            if let Some(room) = Room::of(&self.course.view, self.rooms[*at].node) {
                self.rooms[*at] = room;
            }
        }
        Ok(changed.split_off(1).into_iter().collect())
    }

    /// The node on which the VM leaves least stranded, among those that lose no place by it.
    fn target(
        &self,
        course: &Course,
        vm: &VmShape,
        source: usize,
        changed: &[usize],
        budget: &mut Budget,
    ) -> Option<usize> {
        let mut found: Vec<(u64, NodeId, usize)> = Vec::new();
        for (at, known) in self.rooms.iter().enumerate().filter(|(at, _)| *at != source) {
            let now = changed.contains(&at).then(|| Room::of(&course.view, known.node)).flatten();
            let room = now.as_ref().unwrap_or(known);
            if room.free[0] < u64::from(vm.reservation.vcpus) || room.free[1] < vm.reservation.memory_mib {
                continue;
            }
            let cells = course.view.cells_for(room.node, vm);
            if cells.len() < vm.cells {
                continue;
            }
            let with = room.with(vm, cells, u64::saturating_sub);
            if with.places(self.size) >= room.places(self.size) {
                found.push((with.stranded(self.size), room.node, at));
            }
        }
        found.sort_unstable();
        let mut found = found.into_iter().take(TARGETS);
        found
            .find(|(_, node, _)| budget.step() && why_not(&course.view, vm, *node).is_none())
            .map(|(.., at)| at)
    }
}

/// The positions of the fewest items, and of these the cheapest, whose sizes add up to at least `lacking`.
fn knapsack(lacking: usize, items: impl Iterator<Item = (usize, u64)>) -> Option<Vec<usize>> {
    // By the sum so far, which counts no further than `lacking`: how many items, their price, and which.
    let mut best: Vec<Option<(usize, u64, Vec<usize>)>> = vec![None; lacking + 1];
    best[0] = Some((0, 0, Vec::new()));
    for (at, (size, price)) in items.enumerate() {
        for sum in (0..lacking).rev() {
            let Some((count, cost, chosen)) = best[sum].clone() else { continue };
            let next = &mut best[(sum + size).min(lacking)];
            let is_better =
                next.as_ref().is_none_or(|(n, p, _)| (count + 1, cost.saturating_add(price)) < (*n, *p));
            if is_better {
                let chosen = chosen.into_iter().chain([at]).collect();
                *next = Some((count + 1, cost.saturating_add(price), chosen));
            }
        }
    }
    best.pop().flatten().map(|(.., chosen)| chosen).filter(|chosen| !chosen.is_empty())
}
