//! A course: moves in an order in which each is feasible after those before it, with the fork that they lead to.
//! Planners build courses, compare them and drop them; a clone costs as little as a fork of the view. A node may be
//! closed for the time of planning, which is a cordon in the fork alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::{Move, Terms, Way, Why};
use crate::cells::Cells;
use crate::filter::Ask;
use crate::place::find;
use crate::reason::Reason;
use crate::shape::VmShape;
use crate::survive::guarantee::Guarantee;
use crate::survive::{Loss, Survival, survive};
use crate::view::View;

/// See the module's text.
#[derive(Clone)]
pub(crate) struct Course<'a> {
    pub(crate) terms: &'a Terms,
    /// The cluster after all moves.
    pub(crate) view: View,
    pub(crate) moves: Vec<Move>,
    /// The guarantee before all moves, if the terms ask for one.
    pub(crate) kept: Option<Arc<Guarantee>>,
}

/// Why a VM may not be moved at all, whatever room there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// It holds places on these nodes: a move is under way, or a guest is not yet confirmed gone.
    OpenMove { nodes: Vec<NodeId> },
    /// The caller's terms keep it where it is.
    Still,
    /// It could only move while stopped, and the terms do not allow that.
    OnlyStopped,
}

impl<'a> Course<'a> {
    pub(crate) fn new(view: &View, terms: &'a Terms) -> Self {
        let kept = terms.kept_for(view).kept.map(Arc::new);
        Self { terms, view: view.clone(), moves: Vec::new(), kept }
    }

    /// The guarantee after all moves, with those nodes closed that the course has closed.
    pub(crate) fn kept_after(&self) -> Option<Guarantee> {
        let mut kept = Guarantee::clone(self.kept.as_ref()?);
        let was = |node: NodeId| kept.view().node(node).is_some_and(|node| node.cordoned);
        let cordons: Vec<(NodeId, bool)> = self
            .view
            .nodes()
            .filter(|node| node.cordoned != was(node.id))
            .map(|node| (node.id, node.cordoned))
            .collect();
        let mut ends: BTreeMap<VmId, (NodeId, &Move)> = BTreeMap::new();
        for a_move in &self.moves {
            ends.entry(a_move.vm).or_insert((a_move.from, a_move)).1 = a_move;
        }
        kept.carry(cordons, ends.into_iter().map(|(vm, (from, last))| (vm, from, last.to, last.cells)));
        Some(kept)
    }

    /// Guarded losses that could be borne before the course and cannot after it.
    pub(crate) fn newly_unborne(&self) -> Vec<Survival> {
        let (Some(before), Some(after)) = (&self.kept, self.kept_after()) else { return Vec::new() };
        let known: BTreeSet<&Loss> = before.broken().map(|(loss, _)| loss).collect();
        let new: BTreeSet<&Loss> =
            after.broken().map(|(loss, _)| loss).filter(|loss| !known.contains(loss)).collect();
        // Where the kept plans could not be carried on, another plan may still do.
        let again = new.into_iter().map(|loss| survive(after.view(), loss.clone()));
        again.filter(|survival| !survival.is_guaranteed()).collect()
    }

    /// The course with these nodes closed.
    pub(crate) fn shut(&self, nodes: &BTreeSet<NodeId>) -> Self {
        Self { view: closed(&self.view, nodes), ..self.clone() }
    }

    /// How the VM may move.
    pub(crate) fn way(&self, vm: VmId) -> Result<Way, Held> {
        let nodes: Vec<NodeId> = self.view.homes(vm).collect();
        if nodes.len() > 1 {
            return Err(Held::OpenMove { nodes });
        }
        let cold = self.terms.cold.contains(&vm);
        if self.terms.still.contains(&vm) {
            Err(Held::Still)
        } else if cold && !self.terms.may_stop {
            Err(Held::OnlyStopped)
        } else {
            Ok(if cold { Way::Cold } else { Way::Live })
        }
    }

    /// Takes a move into the course. The place must have been found in this course's view.
    pub(crate) fn carry(&mut self, vm: &Arc<VmShape>, from: NodeId, to: NodeId, why: Why, gain: u64) {
        let way = if self.terms.cold.contains(&vm.id) { Way::Cold } else { Way::Live };
        let cells = self.view.cells_for(to, vm);
        self.moves.push(Move { cells, ..the_move(&self.view, vm, (from, to), way, (why, gain)) });
        shift(&mut self.view, vm, from, (to, cells));
    }

    /// The best node for the VM beside what it holds, by the rules and the score.
    pub(crate) fn find(&self, vm: &VmShape) -> Option<NodeId> {
        find(&self.view, vm).map(|placement| placement.node)
    }

    /// Lets the node take nothing more. True if it did before.
    pub(crate) fn close(&mut self, node: NodeId) -> bool {
        self.set_cordoned(node, true)
    }

    pub(crate) fn open(&mut self, node: NodeId) {
        self.set_cordoned(node, false);
    }

    fn set_cordoned(&mut self, node: NodeId, cordoned: bool) -> bool {
        let Some(shape) = self.view.node(node).filter(|shape| shape.cordoned != cordoned) else {
            return false;
        };
        let mut shape = shape.clone();
        shape.cordoned = cordoned;
        self.view.set_node(shape);
        true
    }

    /// What moving all VMs away from a node would copy, MiB.
    pub(crate) fn copied_from(&self, node: NodeId) -> u64 {
        self.view.vms_on(node).iter().map(|vm| self.copied_by(vm, node)).fold(0, u64::saturating_add)
    }

    /// What moving a VM away from its node copies, MiB.
    pub(crate) fn copied_by(&self, vm: &VmShape, node: NodeId) -> u64 {
        the_move(&self.view, vm, (node, node), Way::Live, (Why::Empty, 0)).copied_mib()
    }

    /// All that its moves copy, MiB.
    pub(crate) fn copied_mib(&self) -> u64 {
        self.moves.iter().map(Move::copied_mib).fold(0, u64::saturating_add)
    }
}

/// A view in which these nodes take nothing new.
pub(crate) fn closed(view: &View, nodes: &BTreeSet<NodeId>) -> View {
    let mut fork = view.clone();
    for node in nodes {
        if let Some(shape) = view.node(*node).filter(|shape| !shape.cordoned) {
            let mut shape = shape.clone();
            shape.cordoned = true;
            fork.set_node(shape);
        }
    }
    fork
}

/// The move as it would be, its cells not yet chosen.
pub(crate) fn the_move(
    view: &View,
    vm: &VmShape,
    (from, to): (NodeId, NodeId),
    way: Way,
    (why, gain): (Why, u64),
) -> Move {
    let emulation = view.node(from).is_some_and(|node| node.emulation);
    let memory_mib = match way {
        Way::Live => vm.reservation_on(emulation).memory_mib + vm.huge_mib,
        Way::Cold => 0,
    };
    let is_local = |pool| view.pool(pool).is_some_and(|pool| pool.shared.is_none());
    let local = vm.disks.iter().filter(|disk| is_local(disk.pool));
    let disk_mib = local.map(|disk| disk.size_mib).fold(0, u64::saturating_add);
    Move { vm: vm.id, from, to, cells: Cells::NONE, way, memory_mib, disk_mib, why, gain }
}

/// Gives the VM its new place and takes the old one.
pub(crate) fn shift(view: &mut View, vm: &Arc<VmShape>, from: NodeId, (to, cells): (NodeId, Cells)) {
    hold(view, vm, to, cells);
    view.release(from, vm.id);
}

/// Gives the VM a place beside those that it has.
pub(crate) fn hold(view: &mut View, vm: &Arc<VmShape>, to: NodeId, cells: Cells) {
    view.assign_to(to, cells, vm.clone())
        .expect("a place is never on an unknown node or where the VM already is");
}

/// The first rule that keeps the VM off this node.
pub(crate) fn why_not(view: &View, vm: &VmShape, node: NodeId) -> Option<Reason> {
    let ask = Ask::new(view, vm);
    let row = view.slot(node).and_then(|slot| view.row(slot));
    let Some(row) = row else { return Some(Reason::PinUnknown) };
    ask.cluster_reason().or_else(|| ask.reasons(row).next())
}

/// The VM as it stands on a node.
pub(crate) fn guest(view: &View, node: NodeId, vm: VmId) -> Option<Arc<VmShape>> {
    let vms = view.vms_on(node);
    vms.binary_search_by_key(&vm, |vm| vm.id).ok().map(|at| vms[at].clone())
}
