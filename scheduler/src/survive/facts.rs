//! What happens to the cluster, taken into a guarantee: facts hold whatever they break. Only plans that a fact really
//! breaks are planned anew, so what changes nothing for the plans costs a look at them. Deliberately absent: whether
//! a change may be made, which is asked of the guarantee before.

use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::{NodeId, PoolId, VmId};

use super::guarantee::Guarantee;
use crate::cells::Cells;
use crate::filter::Ask;
use crate::score::Weights;
use crate::shape::{Group, GroupId, NodeShape, PoolShape, VmShape};
use crate::view::ViewError;

impl Guarantee {
    /// As [`View::assign_to`](crate::View::assign_to); restarts that it stands in the way of are planned anew.
    pub fn assign_to(&mut self, node: NodeId, cells: Cells, vm: Arc<VmShape>) -> Result<(), ViewError> {
        let slot = self.view.slot(node).ok_or(ViewError::NodeUnknown(node))?;
        if self.guarded.is_empty() {
            return self.view.assign_to(node, cells, vm);
        }
        let before = self.losses_of(self.view.home_slots(vm.id));
        let fits = self.withstands(&Ask::new(&self.view, &vm), slot) == Some(cells);
        let near = if fits { BTreeSet::new() } else { self.losses_near(&vm.groups) };
        self.view.assign_to(node, cells, vm.clone())?;
        self.refresh(slot);
        let after = self.losses_of(self.view.home_slots(vm.id));
        before.difference(&after).for_each(|number| self.forget(*number, vm.id));
        if !fits {
            let crowded = self.broken_on(slot);
            crowded.union(&near).for_each(|number| self.refit(*number, Some(slot), &vm.groups));
        }
        if vm.protected {
            after.iter().for_each(|number| self.cover_or_plan_anew(*number, &vm));
        }
        Ok(())
    }

    /// As [`View::release`](crate::View::release).
    pub fn release(&mut self, node: NodeId, vm: VmId) -> Option<Arc<VmShape>> {
        let before = self.losses_of(self.view.home_slots(vm));
        let shape = self.view.release(node, vm)?;
        self.view.slot(node).into_iter().for_each(|slot| self.refresh(slot));
        let after = self.losses_of(self.view.home_slots(vm));
        before.difference(&after).for_each(|number| self.forget(*number, vm));
        if shape.protected {
            after.difference(&before).for_each(|number| self.cover_or_plan_anew(*number, &shape));
        }
        Some(shape)
    }

    /// As [`View::set_node`](crate::View::set_node). Restarts that the node no longer takes are planned anew, and those
    /// of losses that it joins or leaves.
    pub fn set_node(&mut self, shape: NodeShape) {
        let id = shape.id;
        let Some((slot, old)) = self.view.slot(id).zip(self.view.node(id).cloned()) else {
            self.view.set_node(shape);
            self.view.slot(id).into_iter().for_each(|slot| self.enlist(slot));
            return;
        };
        if old == shape {
            return;
        }
        let moved = old.domains != shape.domains;
        // What a restart holds depends on it.
        let recount = old.emulation != shape.emulation;
        let mut groups: BTreeSet<GroupId> = BTreeSet::new();
        let mut touched: BTreeSet<u32> = BTreeSet::new();
        if moved {
            // With its failure domains the node's VMs may come into the way of other members of their groups.
            groups.extend(self.view.vms_on(id).iter().flat_map(|vm| vm.groups.iter()));
            touched.extend(&self.backing(slot).losses);
            touched.extend(self.losses_near(&groups));
            self.delist(slot);
        }
        self.view.set_node(shape);
        self.refresh(slot);
        if moved {
            self.enlist(slot);
            touched.extend(&self.backing(slot).losses);
        }
        if recount {
            touched.extend(&self.backing(slot).from);
        } else {
            touched.extend(self.broken_on(slot));
        }
        touched.iter().for_each(|number| self.refit(*number, Some(slot), &groups));
    }

    /// As [`View::remove_node`](crate::View::remove_node).
    pub fn remove_node(&mut self, id: NodeId) -> Option<Vec<Arc<VmShape>>> {
        let slot = self.view.slot(id)?;
        let vms = self.view.vms_on(id).to_vec();
        vms.iter().for_each(|vm| drop(self.release(id, vm.id)));
        let touched = self.backing(slot).from.clone();
        self.delist(slot);
        // What was planned to restart here is dropped while the slot is still the node's.
        for number in &touched {
            let here: Vec<VmId> =
                self.lost(*number).plan.iter().filter(|(_, at)| **at == slot).map(|(vm, _)| *vm).collect();
            here.iter().for_each(|vm| self.forget(*number, *vm));
        }
        self.view.remove_node(id);
        self.refresh(slot);
        touched.iter().for_each(|number| self.refit(*number, None, &BTreeSet::new()));
        Some(vms)
    }

    /// As [`View::set_pool`](crate::View::set_pool). The room of a shared pool changes no plan unless it begins or
    /// ceases to be enough.
    pub fn set_pool(&mut self, shape: PoolShape) {
        let id = shape.id;
        let kind = |view: &crate::View| (view.pool(id).map(|pool| pool.shared.is_some()), view.is_over(id));
        let before = kind(&self.view);
        self.view.set_pool(shape);
        if kind(&self.view) != before {
            self.plan_all_anew();
        }
    }

    /// As [`View::remove_pool`](crate::View::remove_pool).
    pub fn remove_pool(&mut self, id: PoolId) {
        if self.view.pool(id).is_some() {
            self.view.remove_pool(id);
            self.plan_all_anew();
        }
    }

    /// As [`View::set_group`](crate::View::set_group). Only its members have to keep its rules.
    pub fn set_group(&mut self, group: Group) {
        let id = group.id;
        self.view.set_group(group);
        self.refit_members(id);
    }

    /// As [`View::remove_group`](crate::View::remove_group).
    pub fn remove_group(&mut self, id: GroupId) {
        self.view.remove_group(id);
        self.refit_members(id);
    }

    /// Plans do not go by the score.
    pub fn set_weights(&mut self, weights: Weights) {
        self.view.set_weights(weights);
    }

    /// Tries once more to find a place for who has none, since room may have come.
    pub fn mend(&mut self) {
        for number in 0..self.loss_count() {
            let mut left: Vec<Arc<VmShape>> = self.lost(number).left_out.values().cloned().collect();
            left.sort_by_key(super::restart_order);
            left.iter().for_each(|vm| self.cover(number, vm));
        }
    }

    /// The losses whose restarts on this node would break a rule.
    fn broken_on(&self, slot: u32) -> BTreeSet<u32> {
        let from = self.backing(slot).from.iter().copied();
        from.filter(|number| !self.keeps_on(*number, slot)).collect()
    }

    fn refit_members(&mut self, id: GroupId) {
        let groups = BTreeSet::from([id]);
        let near = self.losses_near(&groups);
        near.iter().for_each(|number| self.refit(*number, None, &groups));
    }

    fn cover_or_plan_anew(&mut self, number: u32, vm: &Arc<VmShape>) {
        self.cover(number, vm);
        if self.lost(number).left_out.contains_key(&vm.id) {
            self.plan_anew(number);
        }
    }
}
