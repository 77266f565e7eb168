//! Many moves at once, as a planner makes them: what each of them does to the plans is gathered first and mended once.
//! The same facts one by one would mend the same plans again and again. Deliberately absent: whether the moves may
//! be made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::guarantee::Guarantee;
use super::restart_order;
use crate::cells::Cells;
use crate::shape::{GroupId, VmShape};

/// Restarts that have to be found, by the numbers of their losses.
type Open = BTreeMap<u32, BTreeMap<VmId, Arc<VmShape>>>;

impl Guarantee {
    /// Nodes take VMs no more, or again, and these VMs have gone from one node to another, on those cells of it. Who
    /// does not stand on the first is passed over.
    pub fn carry(
        &mut self,
        cordons: impl IntoIterator<Item = (NodeId, bool)>,
        moves: impl IntoIterator<Item = (VmId, NodeId, NodeId, Cells)>,
    ) {
        let mut slots: BTreeSet<u32> = BTreeSet::new();
        for (node, cordoned) in cordons {
            if let Some(mut shape) = self.view.node(node).cloned() {
                shape.cordoned = cordoned;
                self.view.set_node(shape);
                slots.extend(self.view.slot(node));
            }
        }
        let mut open = Open::new();
        let groups = self.shift_homes(moves, &mut slots, &mut open);
        slots.iter().for_each(|slot| self.refresh(*slot));
        for number in self.losses_near(&groups) {
            let stocks = self.lost(number).stocks().iter().flat_map(|stock| &stock.held.vms);
            let members = stocks.filter(|(vm, _)| !vm.groups.is_disjoint(&groups));
            let members: Vec<Arc<VmShape>> = members.map(|(vm, _)| vm.clone()).collect();
            members.into_iter().for_each(|vm| self.lift(number, vm, &mut open));
        }
        for slot in slots {
            for number in self.backing(slot).from.clone() {
                // The last first, since that is what was planned after the others.
                while !self.keeps_on(number, slot) {
                    let last = self.lost(number).held(slot).and_then(|stock| stock.held.vms.last());
                    let Some(last) = last.map(|(vm, _)| vm.clone()) else { break };
                    self.lift(number, last, &mut open);
                }
            }
        }
        for (number, vms) in open {
            let mut vms: Vec<Arc<VmShape>> = vms.into_values().collect();
            vms.sort_by_key(restart_order);
            vms.iter().for_each(|vm| self.cover(number, vm));
            if vms.iter().any(|vm| self.lost(number).left_out.contains_key(&vm.id)) {
                self.plan_anew(number);
            }
        }
        self.mend();
    }

    /// Gives each VM its new place in the picture, and says which groups have one among them. All leave before any
    /// comes, so that no node is fuller on the way than at the end.
    fn shift_homes(
        &mut self,
        moves: impl IntoIterator<Item = (VmId, NodeId, NodeId, Cells)>,
        slots: &mut BTreeSet<u32>,
        open: &mut Open,
    ) -> BTreeSet<GroupId> {
        let mut left = Vec::new();
        for (vm, from, to, cells) in moves {
            let before = self.losses_of(self.view.home_slots(vm));
            let Some(shape) = self.view.release(from, vm) else { continue };
            slots.extend([from, to].iter().filter_map(|node| self.view.slot(*node)));
            left.push((shape, before, to, cells));
        }
        let mut groups = BTreeSet::new();
        for (vm, before, to, cells) in left {
            self.view.assign_to(to, cells, vm.clone()).expect("VMs move between known nodes, and once");
            let after = self.losses_of(self.view.home_slots(vm.id));
            before.difference(&after).for_each(|number| self.forget(*number, vm.id));
            if vm.protected {
                for number in after.difference(&before) {
                    open.entry(*number).or_default().insert(vm.id, vm.clone());
                }
            }
            groups.extend(vm.groups.iter().copied());
        }
        groups
    }

    /// Takes a restart of a loss out of its plan, to be found anew.
    fn lift(&mut self, number: u32, vm: Arc<VmShape>, open: &mut Open) {
        self.forget(number, vm.id);
        open.entry(number).or_default().insert(vm.id, vm);
    }
}
