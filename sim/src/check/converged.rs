//! After the faults all comes to what is wanted: nodes are ready, moves and deletions are over, each VM runs once, where
//! its record says, and nothing else runs.

use tamdao_model::assignment::Intent;
use tamdao_model::node::NodePhase;
use tamdao_model::volume::VolumePhase;

use super::Breach;
use crate::short;
use crate::world::{World, node_id};

pub fn check(world: &World) -> Option<Breach> {
    let what = open(world)?;
    Some(Breach { rule: "converged", what })
}

fn open(world: &World) -> Option<String> {
    let view = world.truth.view();
    for node in view.nodes.iter() {
        if node.status.phase != NodePhase::Ready {
            return Some(format!("{} is {:?}", node.meta.name, node.status.phase));
        }
        let left = view.assignment(node.id());
        if let Some((vm, entry)) = left.vms.iter().find(|(_, entry)| entry.intent != Intent::Wanted) {
            return Some(format!("{} still has vm {} as {:?}", node.meta.name, short(vm.0), entry.intent));
        }
    }
    if let Some(open) = view.moves.iter().find(|one| one.status.phase.is_open()) {
        let (vm, phase) = (short(open.spec.vm.0), open.status.phase);
        return Some(format!("the move of vm {vm} is still {phase:?}: {}", open.status.message));
    }
    for vm in view.vms.iter() {
        let name = short(vm.id().0);
        if vm.spec.deleting {
            return Some(format!("vm {name} is still there"));
        }
        // A disk that storage has lost is not made again, so its VM stays off.
        let lost = |id| view.volumes.get(id).is_some_and(|volume| volume.status.phase == VolumePhase::Failed);
        if !vm.wants_on() || vm.volumes().any(lost) {
            continue;
        }
        let Some(node) = vm.status.node else { return Some(format!("vm {name} has no node")) };
        let host = world.nodes.iter().enumerate().find(|(at, _)| node_id(*at) == node)?.1;
        let runs = host.runs(vm.id().0)
            && host.domains.get(&vm.id().0).is_some_and(|it| it.incarnation == vm.status.incarnation);
        if !runs {
            let problem = vm.status.seen.as_ref().and_then(|seen| seen.problem.clone());
            return Some(format!("vm {name} does not run on {}: {problem:?}", host.name));
        }
    }
    for (at, host) in world.nodes.iter().enumerate() {
        for vm in host.domains.keys() {
            let record = view.vms.get(tamdao_model::VmId(*vm));
            if record.is_none_or(|record| record.status.node != Some(node_id(at))) {
                return Some(format!("{} still has a domain of vm {}", host.name, short(*vm)));
            }
        }
    }
    None
}
