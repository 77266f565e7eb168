//! What must be judged of the plans before a decision is committed: the restarts that it came near to. Deliberately
//! absent: the judging, which is [`crate::check::plans`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::Loss;
use super::guarantee::Guarantee;
use super::reserve::{Lost, Stock};
use crate::cells::Cells;
use crate::check::Step;
use crate::shape::{GroupId, VmShape};

impl Guarantee {
    /// Whether a VM has its restart after a loss or is known to have none; none if the loss is not guarded.
    pub fn answers_for(&self, loss: &Loss, vm: VmId) -> Option<bool> {
        let lost = self.lost(*self.numbers.get(loss)?);
        Some(lost.plan.contains_key(&vm) || lost.left_out.contains_key(&vm))
    }

    /// The restarts that may have come to be wrong since `before`, in their order and by their losses: those on nodes
    /// that one of these VMs came to or that a plan has changed on, and of members of groups that were touched with them.
    pub fn touched(&self, before: &Self, gained: &[(VmId, NodeId)]) -> Vec<(Arc<Loss>, Vec<Step>)> {
        let mut slots: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        let mut groups: BTreeSet<GroupId> = BTreeSet::new();
        for (vm, node) in gained {
            let Some(slot) = self.view.slot(*node) else { continue };
            for number in &self.backing(slot).from {
                slots.entry(*number).or_default().insert(slot);
            }
            let vm = self.view.vms_on(*node).iter().find(|held| held.id == *vm);
            groups.extend(vm.iter().flat_map(|vm| &vm.groups));
        }
        for number in self.losses_near(&groups) {
            slots.entry(number).or_default();
        }
        for (number, lost, was) in self.changed(before) {
            let is_new = |stock: &&Stock| {
                let was = was.and_then(|was| was.held(stock.slot));
                was.is_none_or(|was| !Arc::ptr_eq(&was.held, &stock.held))
            };
            let new = lost.stocks().iter().filter(is_new).map(|stock| stock.slot);
            slots.entry(number).or_default().extend(new);
        }
        slots.into_iter().map(|(number, slots)| self.restarts_on(number, &slots, &groups)).collect()
    }

    /// The restarts of a loss on these nodes, and those of all who share a group with them or are in one of these.
    fn restarts_on(
        &self,
        number: u32,
        slots: &BTreeSet<u32>,
        groups: &BTreeSet<GroupId>,
    ) -> (Arc<Loss>, Vec<Step>) {
        let lost = self.lost(number);
        let stocks = || slots.iter().filter_map(|slot| lost.held(*slot));
        let mut groups = groups.clone();
        groups.extend(stocks().flat_map(|stock| stock.held.vms.iter()).flat_map(|(vm, _)| &vm.groups));
        // Without groups only these nodes are looked at, since a rack's plan has hundreds.
        let near: Vec<&Stock> = match groups.is_empty() {
            true => stocks().collect(),
            false => lost.stocks().iter().collect(),
        };
        let is_near = |slot: u32, vm: &VmShape| slots.contains(&slot) || !vm.groups.is_disjoint(&groups);
        let mut vms: Vec<(&Arc<VmShape>, u32, Cells)> = Vec::new();
        for stock in near {
            let held = stock.held.vms.iter().filter(|(vm, _)| is_near(stock.slot, vm));
            vms.extend(held.map(|(vm, cells)| (vm, stock.slot, *cells)));
        }
        (lost.loss.clone(), self.steps(vms))
    }

    /// The losses that are not the very same as in the guarantee that this was forked from, with what they were there.
    pub(super) fn changed<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (u32, &'a Lost, Option<&'a Lost>)> + 'a {
        let was = before.losses.leaves().flatten().map(Some).chain(std::iter::repeat(None));
        let both = (0..).zip(self.losses.leaves().flatten()).zip(was);
        both.filter(|((_, lost), was)| was.is_none_or(|was| !Arc::ptr_eq(was, lost)))
            .map(|((number, lost), was)| (number, &**lost, was.map(|was| &**was)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::plans::{Fault, check_plans};
    use crate::check::{Breach, Broken};
    use crate::shape::By;
    use crate::text::Cluster;

    /// The judge sees a restart on what is lost.
    #[test]
    fn a_restart_on_a_lost_node_is_seen() {
        let text = "tamdao-cluster 1
            node n1 vcpus=16 memory=8192 domain.rack=r1
            node n2 vcpus=16 memory=8192 domain.rack=r2
            vm x on=n1 vcpus=1 memory=6144 protected";
        let cluster = Cluster::parse(text).unwrap();
        let rack = By::Domain("rack".into());
        let before = Guarantee::new(cluster.view().unwrap(), &[By::Node, rack]);
        let (n1, (x, _)) = (cluster.nodes[0].id, &cluster.vms[0]);
        for loss in [Loss::Node(n1), Loss::Domain { key: "rack".into(), value: "r1".into() }] {
            let mut after = before.clone();
            let number = after.numbers[&loss];
            after.forget(number, x.id);
            after.hold(number, after.view.slot(n1).unwrap(), Cells::NONE, x.clone());
            let faults = check_plans(&before, &after, &[]).unwrap_err();
            let breach = Breach { step: 0, vm: x.id, node: n1, broken: Broken::NodeUnknown };
            assert_eq!(faults, [Fault::Breach { loss, breach }]);
        }
    }

    /// The judge sees a VM that takes the room of another's restart, and one that no plan knows of.
    #[test]
    fn a_plan_that_a_decision_broke_is_seen() {
        let text = "tamdao-cluster 1
            node n1 vcpus=16 memory=8192
            node n2 vcpus=16 memory=8192
            node n3 vcpus=16 memory=4096
            vm x on=n1 vcpus=1 memory=6144 protected
            want a vcpus=1 memory=3072
            want b vcpus=1 memory=1024 protected";
        let cluster = Cluster::parse(text).unwrap();
        let before = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
        let [n1, n2] = [cluster.nodes[0].id, cluster.nodes[1].id];
        let [a, b] = [&cluster.wants[0], &cluster.wants[1]];
        let behind_its_back = |vm: &Arc<VmShape>, node| {
            let mut after = before.clone();
            after.view.assign_to(node, Cells::NONE, vm.clone()).unwrap();
            let step = Step::Assign { vm: vm.clone(), node, cells: Cells::NONE };
            check_plans(&before, &after, &[step]).unwrap_err()
        };
        let crowded = behind_its_back(a, n2);
        assert!(matches!(&crowded[..], [Fault::Breach { loss: Loss::Node(lost), .. }] if *lost == n1));
        assert_eq!(behind_its_back(b, n1), [Fault::Forgotten { loss: Loss::Node(n1), vm: b.id }]);

        let mut after = before.clone();
        let node = after.admit(a).unwrap().node;
        assert_eq!(
            check_plans(&before, &after, &[Step::Assign { vm: a.clone(), node, cells: Cells::NONE }]),
            Ok(())
        );
    }
}
