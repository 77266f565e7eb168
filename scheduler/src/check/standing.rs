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
    /// In the order of their ids.
    before: &'a [Arc<VmShape>],
    /// Of those before, who has left.
    left: Vec<VmId>,
    came: Vec<(Arc<VmShape>, Cells)>,
    pub(super) count: usize,
    /// How many are in an isolation class.
    isolated: usize,
    /// What all hold together.
    pub(super) vcpus: u64,
    pub(super) memory_mib: u64,
}

impl<'a> Standing<'a> {
    fn new(view: &'a View, node: NodeId) -> Self {
        let (shape, before) = (view.node(node), view.vms_on(node));
        let vcpus = before.iter().map(|vm| u64::from(vm.reservation.vcpus)).sum();
        let memory_mib = before.iter().map(|vm| memory_of(vm, shape)).sum();
        let isolated = before.iter().filter(|vm| vm.isolation.is_some()).count();
        let (left, came) = (Vec::new(), Vec::new());
        Self { shape, before, left, came, count: before.len(), isolated, vcpus, memory_mib }
    }

    pub(super) fn vms(&self) -> impl Iterator<Item = &Arc<VmShape>> {
        let stayed = self.before.iter().filter(|vm| !self.left.contains(&vm.id));
        stayed.chain(self.came.iter().map(|(vm, _)| vm))
    }

    pub(super) fn find(&self, vm: VmId) -> Option<&Arc<VmShape>> {
        let stayed = self.before.binary_search_by_key(&vm, |held| held.id).ok().map(|at| &self.before[at]);
        let stayed = stayed.filter(|_| !self.left.contains(&vm));
        stayed.or_else(|| self.came.iter().map(|(came, _)| came).find(|came| came.id == vm))
    }

    /// Whether someone is there of another isolation class, or of one at all where the VM is of none.
    pub(super) fn isolates(&self, vm: &VmShape) -> bool {
        match vm.isolation {
            None => self.isolated > 0,
            Some(_) => self.vms().any(|held| held.isolation != vm.isolation),
        }
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
        self.isolated += usize::from(vm.isolation.is_some());
        self.vcpus += u64::from(vm.reservation.vcpus);
        self.memory_mib += memory_of(&vm, self.shape);
        self.came.push((vm, cells));
    }

    /// Someone leaves; false if it was not there.
    pub(super) fn take(&mut self, vm: VmId) -> bool {
        let Some(held) = self.find(vm).cloned() else { return false };
        self.count -= 1;
        self.isolated -= usize::from(held.isolation.is_some());
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

#[cfg(test)]
mod tests {
    use super::super::{Broken, Step, check};
    use super::*;
    use crate::text::Cluster;

    /// The judge's count of isolation classes follows those who come and go.
    #[test]
    fn who_is_isolated_is_known_after_every_step() {
        let text = "tamdao-cluster 1
            node n1 vcpus=16 memory=8192
            vm a on=n1 vcpus=1 memory=1024 isolation=health
            want b vcpus=1 memory=1024
            want c vcpus=1 memory=1024 isolation=health
            want d vcpus=1 memory=1024 isolation=police";
        let cluster = Cluster::parse(text).unwrap();
        let view = cluster.view().unwrap();
        let node = cluster.nodes[0].id;
        let (a, wants) = (&cluster.vms[0].0, &cluster.wants);
        let come = |want: usize| Step::Assign { vm: wants[want].clone(), node, cells: Cells::NONE };
        let go = |vm: &VmShape| Step::Release { vm: vm.id, node };
        let isolated = |steps: &[Step]| {
            let breaches = check(&view, steps).err().unwrap_or_default();
            assert!(breaches.iter().all(|breach| breach.broken == Broken::Isolation), "{breaches:?}");
            breaches.iter().map(|breach| breach.step).collect::<Vec<_>>()
        };
        assert_eq!(isolated(&[come(0)]), [0]);
        assert_eq!(isolated(&[come(1), come(2)]), [1]);
        assert_eq!(isolated(&[go(a), come(0), come(1)]), [2]);
        assert_eq!(isolated(&[go(a), come(1), go(&wants[1]), come(0)]), [0; 0]);
        assert_eq!(isolated(&[come(1), go(a), come(0), go(&wants[0]), come(2)]), [2, 4]);
        // Who has left and comes back is there again.
        let back = Step::Assign { vm: a.clone(), node, cells: Cells::NONE };
        assert_eq!(isolated(&[go(a), back.clone(), come(1)]), [0; 0]);
        let twice = check(&view, &[go(a), back.clone(), back]).unwrap_err();
        assert!(matches!(&twice[..], [breach] if breach.broken == Broken::AlreadyThere), "{twice:?}");
    }
}
