//! The guarantee: for every value of each guarded failure domain, all protected VMs that are lost with it have a
//! place on what remains, at the same time and by every rule. For each such loss the plan of restarts is kept; it is
//! the proof, and it is what would be carried out. Each node keeps the most that any one loss would put on it, so a
//! decision is a look at the node's own reserve and one search for each loss that contains it.
//!
//! Facts are taken in whatever they are, and what they break is told. Decisions are [`Guarantee::admit`] and
//! [`Guarantee::propose`], which refuse what would leave a VM without its place. A refusal is not a proof that no
//! plan exists, unless it says so: plans are extended greedily. Deliberately absent: moves of VMs that are not lost.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use tamdao_model::{NodeId, VmId, limits};

use super::reserve::{Backing, Lost, Room, Spot};
use super::restarts::Target;
use super::{Lack, Loss, restart_order};
use crate::cells::{Cells, each};
use crate::check::Step;
use crate::filter::Ask;
use crate::index::{MEMORY, VCPUS};
use crate::place::{Placement, Ranked, Rejection, place, rejection};
use crate::shape::{By, VmShape};
use crate::view::View;

/// VMs that one node may hold.
pub(super) const VMS_MAX: u32 = limits::VMS_PER_NODE as u32;
/// Searches for restarts in one decision; beyond it the VM is refused as not proven.
const SEARCHES: usize = 64;
/// Nodes on which a VM is tried with restarts of others planned anew, where it finds no place without.
const REPLANS: usize = 2;

/// See the module's text. A clone is a fork and costs constant time.
#[derive(Debug, Clone, Default)]
pub struct Guarantee {
    pub(super) view: View,
    pub(super) guarded: Arc<[By]>,
    pub(super) losses: Vector<Arc<Lost>>,
    pub(super) numbers: OrdMap<Loss, u32>,
    /// By slot.
    pub(super) nodes: Vector<Arc<Backing>>,
    /// By slot.
    pub(super) spots: Vector<Spot>,
}

/// Why a VM is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// By the rules alone.
    NoPlace(Rejection),
    /// It has places, the best of which is named, but the guarantee would be lost with it there.
    Unguarded { node: NodeId, broken: Box<Broken> },
}

/// A loss that could not be borne.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub loss: Loss,
    /// The loss for people: node n1, rack r1.
    pub name: String,
    /// Who would have no place.
    pub vm: VmId,
    pub lack: Lack,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the loss of {} would leave a VM without a place: {}", self.name, self.lack)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace(rejection) => rejection.fmt(f),
            Self::Unguarded { broken, .. } => broken.fmt(f),
        }
    }
}

/// A place with the restarts that keep the guarantee.
struct Kept {
    placement: Placement,
    targets: Vec<(u32, Target)>,
}

impl Guarantee {
    /// Plans every loss from scratch: of each node if [`By::Node`] is guarded, and of each value of guarded keys.
    pub fn new(view: View, guarded: &[By]) -> Self {
        let mut guarantee = Self {
            view,
            guarded: guarded.into(),
            losses: Vector::new(),
            numbers: OrdMap::new(),
            nodes: Vector::new(),
            spots: Vector::new(),
        };
        // By ids, so that the plans do not depend on how the picture came to be.
        let slots: Vec<u32> = guarantee.view.rows_by_id().map(|row| row.entry.slot).collect();
        slots.iter().for_each(|slot| guarantee.enlist(*slot));
        // Large losses first: they are the hardest to plan.
        let mut order: Vec<u32> = (0..guarantee.loss_count()).collect();
        order.sort_by_key(|number| (Reverse(guarantee.lost(*number).nodes.len()), *number));
        order.iter().for_each(|number| guarantee.plan_anew(*number));
        guarantee
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    /// Protected VMs that have no place after some loss, in the order of losses.
    pub fn broken(&self) -> impl Iterator<Item = (&Loss, VmId)> + '_ {
        let lost = self.numbers.iter().map(|(loss, number)| (loss, self.lost(*number)));
        lost.flat_map(|(loss, lost)| lost.left_out.keys().map(move |vm| (loss, *vm)))
    }

    pub fn holds(&self) -> bool {
        self.broken().next().is_none()
    }

    /// All guarded losses, in order.
    pub fn losses(&self) -> impl Iterator<Item = &Loss> + '_ {
        self.numbers.keys()
    }

    /// The restarts after a loss, in their order; each is a step on the cluster without what is lost.
    pub fn plan(&self, loss: &Loss) -> Vec<Step> {
        let Some(number) = self.numbers.get(loss) else { return Vec::new() };
        let mut vms: Vec<(&Arc<VmShape>, u32, Cells)> = Vec::new();
        for stock in self.lost(*number).stocks() {
            vms.extend(stock.held.vms.iter().map(|(vm, cells)| (vm, stock.slot, *cells)));
        }
        self.steps(vms)
    }

    /// Restarts in their order.
    pub(super) fn steps(&self, mut vms: Vec<(&Arc<VmShape>, u32, Cells)>) -> Vec<Step> {
        vms.sort_by_key(|(vm, ..)| restart_order(vm));
        let step = |(vm, slot, cells): (&Arc<VmShape>, u32, Cells)| {
            Some(Step::Assign { vm: vm.clone(), node: self.view.row(slot)?.shape.id, cells })
        };
        vms.into_iter().filter_map(step).collect()
    }

    fn name(&self, loss: &Loss) -> String {
        match loss {
            Loss::Node(id) => {
                self.view.node(*id).map_or_else(|| loss.to_string(), |node| format!("node {}", node.name))
            }
            Loss::Domain { .. } => loss.to_string(),
        }
    }

    /// The nodes that a loss takes.
    pub fn nodes_of(&self, loss: &Loss) -> BTreeSet<NodeId> {
        let slots = self.numbers.get(loss).into_iter().flat_map(|number| self.lost(*number).nodes.iter());
        slots.filter_map(|slot| Some(self.view.row(*slot)?.shape.id)).collect()
    }

    /// The place that [`Guarantee::admit`] would give; the best by score of those that keep the guarantee with all
    /// planned restarts left as they are.
    pub fn place(&self, vm: &VmShape) -> Result<Placement, Refusal> {
        self.keep(vm).map(|kept| kept.placement)
    }

    /// Places a VM that holds no place yet where the guarantee is kept, and plans its restarts. Where there is no
    /// such place, some restarts of others are planned anew for one of the best nodes.
    pub fn admit(&mut self, vm: &Arc<VmShape>) -> Result<Placement, Refusal> {
        match self.admit_beside(vm) {
            Err(Refusal::Unguarded { node, broken }) => {
                self.replan(vm).ok_or(Refusal::Unguarded { node, broken })
            }
            answer => answer,
        }
    }

    /// The same with all planned restarts left as they are.
    pub(super) fn admit_beside(&mut self, vm: &Arc<VmShape>) -> Result<Placement, Refusal> {
        let kept = self.keep(vm)?;
        let Placement { node, cells, .. } = kept.placement;
        self.view.assign_to(node, cells, vm.clone()).expect("a place is on a node without the VM");
        self.view.slot(node).into_iter().for_each(|slot| self.refresh(slot));
        for (number, (slot, cells)) in kept.targets {
            self.hold(number, slot, cells, vm.clone());
        }
        Ok(kept.placement)
    }

    /// Admits each VM that has a place. Higher priority goes first, then the order of the batch; the answers are in the
    /// order of the batch.
    pub fn admit_each(&mut self, batch: &[Arc<VmShape>]) -> Vec<Result<Placement, Refusal>> {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|i| (Reverse(batch[*i].priority), *i));
        let mut answers: Vec<_> = batch.iter().map(|_| None).collect();
        for index in order {
            answers[index] = Some(self.admit(&batch[index]));
        }
        answers.into_iter().flatten().collect()
    }

    /// A placed VM is to become this shape, such as of another size, wherever it stands, on the same cells.
    pub fn propose_shape(&mut self, vm: &Arc<VmShape>) -> Result<(), Box<Broken>> {
        let homes: Vec<NodeId> = self.view.homes(vm.id).collect();
        self.propose(|fork| {
            for node in homes {
                let cells = fork.view.cells_of(node, vm.id);
                if fork.release(node, vm.id).is_some() {
                    fork.assign_to(node, cells, vm.clone()).expect("it stood there");
                }
            }
        })
    }

    /// Carries out what the closure does, unless a VM that has a place after every loss would have none after one.
    pub fn propose<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> Result<T, Box<Broken>> {
        let mut fork = self.clone();
        let answer = change(&mut fork);
        if let Some((number, vm)) = fork.newly_broken(self).next() {
            return Err(Box::new(fork.told(number, vm, fork.lack(number, None))));
        }
        *self = fork;
        Ok(answer)
    }

    /// Who has no place after a loss, by its number, and had one in the guarantee that this was forked from.
    fn newly_broken<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (u32, VmId)> + 'a {
        self.changed(before).flat_map(move |(number, lost, _)| {
            let before = before.numbers.get(&*lost.loss).map(|number| before.lost(*number));
            let new = move |vm: &&VmId| before.is_none_or(|before| !before.left_out.contains_key(*vm));
            lost.left_out.keys().filter(new).map(move |vm| (number, *vm))
        })
    }

    fn told(&self, number: u32, vm: VmId, lack: Lack) -> Broken {
        let loss = (*self.lost(number).loss).clone();
        Broken { name: self.name(&loss), loss, vm, lack }
    }

    /// A move as one proposal: a place on `to`, then none on `from`. While it runs, either end is enough.
    pub fn propose_move(
        &mut self,
        vm: VmId,
        from: NodeId,
        to: NodeId,
        cells: Cells,
    ) -> Result<(), Box<Broken>> {
        let Some(shape) = self.view.vms_on(from).iter().find(|held| held.id == vm).cloned() else {
            return Ok(());
        };
        self.propose(|fork| {
            if fork.assign_to(to, cells, shape).is_ok() {
                fork.release(from, vm);
            }
        })
    }

    /// Whether every loss that does not take this node keeps its plan with the VM on it, and on which cells.
    pub(super) fn withstands(&self, ask: &Ask, slot: u32) -> Option<Cells> {
        let row = self.view.row(slot)?;
        let backing = self.backing(slot);
        let need = Room::of(ask.need(&row.entry, row.shape.emulation));
        let spot = &self.spots[slot as usize];
        if !spot.most.leaves(&need, &spot.free) {
            return None;
        }
        let mut cells = Cells::NONE;
        if let Some(asked) = ask.vm.cell_ask(row.shape.emulation) {
            let kept = |at: usize| backing.cells.get(at).copied().unwrap_or_default();
            let free =
                row.cells_free().enumerate().map(|(at, free)| each(&free, &kept(at), u64::saturating_sub));
            cells = asked.choose(free, &[row.entry.capacity[VCPUS], row.entry.capacity[MEMORY]])?;
        }
        let (isolation, groups) = ask.is_wary();
        let local = |pool| self.view.pool(pool).is_some_and(|pool| pool.shared.is_none());
        let several_pools = row.shape.pools.keys().filter(|pool| local(**pool)).nth(1).is_some();
        let pools = several_pools && ask.vm.disks.iter().any(|disk| local(disk.pool));
        let mut ask_each = BTreeSet::new();
        if isolation || pools {
            ask_each.extend(&backing.from);
        }
        if groups {
            ask_each.extend(self.losses_near(&ask.vm.groups));
        }
        let keeps = |number: &u32| {
            let lost = self.lost(*number);
            if lost.nodes.contains(&slot) {
                return true;
            }
            let after = Ask::after_loss(&self.view, ask.vm, &|vm, slot| self.place_after(lost, vm, slot));
            match lost.held(slot) {
                Some(stock) => after.row_fits(&row.with(&stock.held.vms)),
                None => after.row_fits(row),
            }
        };
        ask_each.iter().all(keeps).then_some(cells)
    }

    fn keep(&self, vm: &VmShape) -> Result<Kept, Refusal> {
        if self.losses.is_empty() {
            let kept = |placement| Kept { placement, targets: Vec::new() };
            return place(&self.view, vm).map(kept).map_err(Refusal::NoPlace);
        }
        let ask = Ask::new(&self.view, vm);
        let mut first: Option<(NodeId, u32)> = None;
        let mut hopeless: BTreeSet<u32> = BTreeSet::new();
        let mut searches = SEARCHES;
        for (slot, score) in Ranked::new(&ask) {
            let Some(row) = self.view.row(slot) else { continue };
            let node = row.shape.id;
            let Some(cells) = self.withstands(&ask, slot) else {
                first = first.or_else(|| Some((node, self.fullest(slot)?)));
                continue;
            };
            let mut targets = Vec::new();
            let mut failed = None;
            if vm.protected {
                // The largest losses first, as they are the likeliest to fail.
                let mut losses: Vec<u32> =
                    self.losses_of(&[ask.homes, &[slot]].concat()).into_iter().collect();
                losses.sort_by_key(|number| (Reverse(self.lost(*number).nodes.len()), *number));
                for number in losses {
                    let target = if hopeless.contains(&number) { None } else { self.target(number, vm) };
                    searches = searches.saturating_sub(1);
                    let Some(target) = target else {
                        hopeless.insert(number);
                        failed = Some(number);
                        break;
                    };
                    targets.push((number, target));
                }
            }
            if let Some(number) = failed {
                first = first.or(Some((node, number)));
                if searches == 0 {
                    break;
                }
                continue;
            }
            let emulation = row.shape.emulation;
            let points = ask.points(&row.entry, &ask.need_on(node, emulation));
            let reservation = vm.reservation_on(emulation);
            let placement = Placement { vm: vm.id, node, cells, reservation, score, points };
            return Ok(Kept { placement, targets });
        }
        Err(match first {
            None => Refusal::NoPlace(rejection(&ask)),
            Some((node, number)) => {
                let broken = self.told(number, vm.id, self.lack(number, Some((node, vm))));
                Refusal::Unguarded { node, broken: Box::new(broken) }
            }
        })
    }

    /// The loss that holds most on a node.
    fn fullest(&self, slot: u32) -> Option<u32> {
        let held = |number: &u32| {
            let room = self.lost(*number).room(slot);
            (room.0[MEMORY], room.0[VCPUS])
        };
        let near = self.backing(slot).from.iter().copied();
        near.max_by_key(|number| (held(number), Reverse(*number)))
            .or_else(|| self.backing(slot).losses.first().copied())
    }

    /// Tries the best nodes with the restarts that stand in the way planned anew.
    fn replan(&mut self, vm: &Arc<VmShape>) -> Option<Placement> {
        let view = self.view.clone();
        let ask = Ask::new(&view, vm);
        let best: Vec<(u32, i64)> = Ranked::new(&ask).take(REPLANS).collect();
        for (slot, score) in best {
            let row = view.row(slot)?;
            let (node, cells, emulation) = (row.shape.id, row.choose_cells(vm), row.shape.emulation);
            let points = ask.points(&row.entry, &ask.need_on(node, emulation));
            if let Ok(Ok(())) = self.propose(|fork| fork.assign_to(node, cells, vm.clone())) {
                let reservation = vm.reservation_on(emulation);
                return Some(Placement { vm: vm.id, node, cells, reservation, score, points });
            }
        }
        None
    }
}
