//! What is done with the plans when something is lost: each VM gets a place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};

use super::Loss;
use super::guarantee::Guarantee;
use crate::place::{Placement, Rejection, place, place_among};
use crate::shape::VmShape;
use crate::view::View;

impl Guarantee {
    /// Places for VMs that have lost theirs, each with the node that it stood on, in the order of the VMs. Where all
    /// have one with the guarantee kept, those; else each its planned restart, for these are known to fit beside one
    /// another, and who has none the best that is left: a VM that is down does not wait for the next failure.
    pub fn restart(&self, due: &[(NodeId, Arc<VmShape>)]) -> Vec<Result<Placement, Rejection>> {
        let planned = self.planned_for(due);
        let mut rest = self.clone();
        due.iter().for_each(|(from, vm)| drop(rest.release(*from, vm.id)));
        let mut keeping = rest.clone();
        let kept = due.iter().map_while(|(_, vm)| keeping.admit_beside(vm).ok());
        let kept: Vec<_> = kept.map(Ok).collect();
        if kept.len() == due.len() {
            return kept;
        }
        let mut view = rest.view;
        let mut answers: Vec<Option<Placement>> = vec![None; due.len()];
        for (answer, (_, vm)) in answers.iter_mut().zip(due) {
            let slot = planned.get(&vm.id).and_then(|node| view.slot(*node));
            *answer = slot.and_then(|slot| place_among(&view, vm, &[slot]).ok());
            if let Some(placement) = answer {
                take(&mut view, vm, placement);
            }
        }
        let each = answers.into_iter().zip(due).map(|(answer, (_, vm))| {
            if let Some(placement) = answer {
                return Ok(placement);
            }
            let placement = place(&view, vm)?;
            take(&mut view, vm, &placement);
            Ok(placement)
        });
        each.collect()
    }

    /// The nodes of the planned restarts of VMs that have lost their place: by the smallest loss that takes all of
    /// their nodes, or by that of each VM's own node.
    fn planned_for(&self, due: &[(NodeId, Arc<VmShape>)]) -> BTreeMap<VmId, NodeId> {
        let nodes: BTreeSet<NodeId> = due.iter().map(|(from, _)| *from).collect();
        let slots: Vec<u32> = nodes.iter().filter_map(|node| self.view.slot(*node)).collect();
        let takes_all = |number: &u32| slots.iter().all(|slot| self.lost(*number).nodes.contains(slot));
        let near = slots.first().map(|slot| self.backing(*slot).losses.clone()).unwrap_or_default();
        let smallest = near.into_iter().filter(takes_all).min_by_key(|number| self.lost(*number).nodes.len());
        let planned = |(from, vm): &(NodeId, Arc<VmShape>)| {
            let number = smallest.or_else(|| self.numbers.get(&Loss::Node(*from)).copied())?;
            let slot = self.lost(number).plan.get(&vm.id)?;
            Some((vm.id, self.view.row(*slot)?.shape.id))
        };
        due.iter().filter_map(planned).collect()
    }
}

/// Gives a VM the place that was found for it.
fn take(view: &mut View, vm: &Arc<VmShape>, placement: &Placement) {
    view.assign_to(placement.node, placement.cells, vm.clone())
        .expect("a place is on a known node that does not hold the VM");
}
