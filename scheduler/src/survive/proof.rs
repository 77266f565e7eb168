//! What must be judged of the plans before a decision is committed: the restarts that it came near to. Deliberately
//! absent: the judging, which is [`crate::check::plans`]'s.

use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::Loss;
use super::guarantee::Guarantee;
use super::reserve::{Lost, Stock};
use crate::cells::Cells;
use crate::check::Step;
use crate::shape::{GroupId, VmShape};

/// What of a loss is to be judged, by its number: a slot with all restarts on it; none where groups alone are.
type Near = (u32, Option<u32>);

impl Guarantee {
    /// Whether a VM has its restart after a loss or is known to have none; none if the loss is not guarded.
    pub fn answers_for(&self, loss: &Loss, vm: VmId) -> Option<bool> {
        let lost = self.lost(*self.numbers.get(loss)?);
        Some(lost.plan.contains_key(&vm) || lost.left_out.contains_key(&vm))
    }

    /// The restarts that may have come to be wrong since `before`, in their order and by their losses: those on nodes
    /// that one of these VMs came to or that a plan has changed on, and of members of groups that were touched with them.
    pub fn touched(&self, before: &Self, gained: &[(VmId, NodeId)]) -> Vec<(Arc<Loss>, Vec<Step>)> {
        let mut near: Vec<Near> = Vec::new();
        let mut groups: BTreeSet<GroupId> = BTreeSet::new();
        for (vm, node) in gained {
            let Some(slot) = self.view.slot(*node) else { continue };
            near.extend(self.backing(slot).from.iter().map(|number| (*number, Some(slot))));
            let vm = self.view.vms_on(*node).iter().find(|held| held.id == *vm);
            groups.extend(vm.iter().flat_map(|vm| &vm.groups));
        }
        near.extend(self.losses_near(&groups).into_iter().map(|number| (number, None)));
        for (number, lost, was) in self.changed(before) {
            near.push((number, None));
            near.extend(renewed(lost, was).map(|slot| (number, Some(slot))));
        }
        near.sort_unstable();
        near.dedup();
        near.chunk_by(|one, other| one.0 == other.0).map(|near| self.restarts_on(near, &groups)).collect()
    }

    /// The restarts of one loss on these nodes, and those of all who share a group with them or are in one of these.
    fn restarts_on(&self, near: &[Near], groups: &BTreeSet<GroupId>) -> (Arc<Loss>, Vec<Step>) {
        let number = near[0].0;
        let lost = self.lost(number);
        let stocks = || near.iter().filter_map(|(_, slot)| lost.held((*slot)?));
        let mut groups = groups.clone();
        groups.extend(stocks().flat_map(|stock| stock.held.vms.iter()).flat_map(|(vm, _)| &vm.groups));
        let mut vms: Vec<(&Arc<VmShape>, u32, Cells)> = Vec::new();
        if groups.is_empty() {
            // Only these nodes are looked at, since a rack's plan has hundreds.
            for stock in stocks() {
                vms.extend(stock.held.vms.iter().map(|(vm, cells)| (vm, stock.slot, *cells)));
            }
        } else {
            for stock in lost.stocks() {
                let all = near.binary_search(&(number, Some(stock.slot))).is_ok();
                let held = stock.held.vms.iter().filter(|(vm, _)| all || !vm.groups.is_disjoint(&groups));
                vms.extend(held.map(|(vm, cells)| (vm, stock.slot, *cells)));
            }
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

/// The slots on which a loss does not hold the very same as before, by one walk along both lists, which are in the order
/// of slots.
fn renewed<'a>(lost: &'a Lost, was: Option<&'a Lost>) -> impl Iterator<Item = u32> + 'a {
    let mut old = was.map(Lost::stocks).unwrap_or_default().iter().peekable();
    let is_new = move |stock: &&Stock| {
        while old.next_if(|old| old.slot < stock.slot).is_some() {}
        let same = |old: &&Stock| old.slot == stock.slot && Arc::ptr_eq(&old.held, &stock.held);
        !old.peek().is_some_and(same)
    };
    lost.stocks().iter().filter(is_new).map(|stock| stock.slot)
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

    /// What is new on a slot is found wherever the slot stands in both lists: with slots before it that came, went or
    /// stayed.
    #[test]
    fn what_a_loss_holds_anew_is_found() {
        let mut text = "tamdao-cluster 1".to_owned();
        for n in 1..=6 {
            text +=
                &format!("\nnode n{n} vcpus=64 memory=65536\nvm v{n} on=n1 vcpus=1 memory=1024 protected");
        }
        let cluster = Cluster::parse(&text).unwrap();
        let mut was = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
        let number = was.numbers[&Loss::Node(cluster.nodes[0].id)];
        let slots: Vec<u32> = cluster.nodes.iter().filter_map(|node| was.view.slot(node.id)).collect();
        let vms: Vec<_> = cluster.vms.iter().map(|(vm, _)| vm.clone()).collect();
        let put = |guarantee: &mut Guarantee, vm: usize, node: usize| {
            guarantee.forget(number, vms[vm].id);
            guarantee.hold(number, slots[node], Cells::NONE, vms[vm].clone());
        };
        (0..6).for_each(|vm| put(&mut was, vm, 1 + vm % 3));
        // Every restart goes to every node, which leaves lists of all lengths.
        for vm in 0..6 {
            for node in 1..6 {
                let mut is = was.clone();
                put(&mut is, vm, node);
                put(&mut is, (vm + 1) % 6, 5);
                let (lost, old) = (is.lost(number), was.lost(number));
                let is_new = |stock: &&Stock| {
                    old.held(stock.slot).is_none_or(|old| !Arc::ptr_eq(&old.held, &stock.held))
                };
                let expected: Vec<u32> =
                    lost.stocks().iter().filter(is_new).map(|stock| stock.slot).collect();
                assert!(expected.len() > 1, "{vm} to {node}");
                assert_eq!(renewed(lost, Some(old)).collect::<Vec<_>>(), expected, "{vm} to {node}");
                assert_eq!(renewed(lost, None).count(), lost.stocks().len());
            }
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
