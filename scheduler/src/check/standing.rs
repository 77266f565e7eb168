//! What stands on nodes while steps are judged, with the judge's own sums. What the view says of a node is summed up once,
//! however many plans of the same view come near to it; each plan then adds and takes away what its steps do.
//! Deliberately absent: rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use crate::cells::Cells;
use crate::shape::{NodeShape, VmShape};
use crate::view::View;

/// The nodes of one view, as they stand before any step.
pub(super) struct Ground<'a> {
    pub(super) view: &'a View,
    known: BTreeMap<NodeId, Standing<'a>>,
}

impl<'a> Ground<'a> {
    pub(super) fn new(view: &'a View) -> Self {
        Self { view, known: BTreeMap::new() }
    }

    pub(super) fn of(&mut self, node: NodeId) -> Standing<'a> {
        self.known.entry(node).or_insert_with(|| Standing::new(self.view, node)).clone()
    }
}

/// One node after some steps.
#[derive(Clone)]
pub(super) struct Standing<'a> {
    /// None of a node that the view does not have.
    pub(super) shape: Option<&'a NodeShape>,
    before: &'a [Arc<VmShape>],
    /// Of those before, who has left.
    left: Vec<VmId>,
    came: Vec<(Arc<VmShape>, Cells)>,
    pub(super) count: usize,
    /// What all hold together.
    pub(super) vcpus: u64,
    pub(super) memory_mib: u64,
}

impl<'a> Standing<'a> {
    fn new(view: &'a View, node: NodeId) -> Self {
        let (shape, before) = (view.node(node), view.vms_on(node));
        let vcpus = before.iter().map(|vm| u64::from(vm.reservation.vcpus)).sum();
        let memory_mib = before.iter().map(|vm| memory_of(vm, shape)).sum();
        let (left, came) = (Vec::new(), Vec::new());
        Self { shape, before, left, came, count: before.len(), vcpus, memory_mib }
    }

    pub(super) fn vms(&self) -> impl Iterator<Item = &Arc<VmShape>> {
        let stayed = self.before.iter().filter(|vm| !self.left.contains(&vm.id));
        stayed.chain(self.came.iter().map(|(vm, _)| vm))
    }

    pub(super) fn find(&self, vm: VmId) -> Option<&Arc<VmShape>> {
        self.vms().find(|held| held.id == vm)
    }

    /// Each VM with the cells that it holds.
    pub(super) fn held(&self, view: &View) -> impl Iterator<Item = (&Arc<VmShape>, Cells)> {
        let cells = |vm: &VmShape| self.shape.map_or(Cells::NONE, |node| view.cells_of(node.id, vm.id));
        let stayed = self.before.iter().filter(|vm| !self.left.contains(&vm.id));
        let came = self.came.iter().map(|(vm, cells)| (vm, *cells));
        stayed.map(move |vm| (vm, cells(vm))).chain(came)
    }

    /// Someone comes who is not there.
    pub(super) fn put(&mut self, vm: Arc<VmShape>, cells: Cells) {
        self.count += 1;
        self.vcpus += u64::from(vm.reservation.vcpus);
        self.memory_mib += memory_of(&vm, self.shape);
        self.came.push((vm, cells));
    }

    /// Someone leaves; false if it was not there.
    pub(super) fn take(&mut self, vm: VmId) -> bool {
        let Some(held) = self.find(vm).cloned() else { return false };
        self.count -= 1;
        self.vcpus -= u64::from(held.reservation.vcpus);
        self.memory_mib -= memory_of(&held, self.shape);
        match self.came.iter().position(|(came, _)| came.id == vm) {
            Some(at) => drop(self.came.remove(at)),
            None => self.left.push(vm),
        }
        true
    }
}

/// What a VM holds of a node's memory, MiB.
pub(super) fn memory_of(vm: &VmShape, node: Option<&NodeShape>) -> u64 {
    let emulates = node.is_some_and(|node| node.emulation);
    vm.reservation.memory_mib + if emulates { vm.emulation_extra_mib } else { 0 }
}
