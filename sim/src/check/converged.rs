//! After the faults all comes to what is wanted: nodes are ready, moves and deletions are over, each VM runs once, where
//! its record says, and nothing else runs; what has no node has no place. A node that is dead for ever holds up only what
//! nothing can be proven of.

use std::sync::Arc;

use tamdao_controller::decide::{evacuate, fence as decided};
use tamdao_controller::engine::{self, Engine};
use tamdao_model::assignment::Intent;
use tamdao_model::fence;
use tamdao_model::moves::Move;
use tamdao_model::node::NodePhase;
use tamdao_model::vm::Vm;
use tamdao_model::{NodeId, VmId, VolumeId};
use tamdao_store::view::View;

use super::Breach;
use crate::short;
use crate::world::{World, node_id};

pub fn check(world: &World) -> Option<Breach> {
    let what = open(world)?;
    Some(Breach { rule: "converged", what })
}

fn open(world: &World) -> Option<String> {
    let view = world.truth.view();
    // A disk that storage has lost is not made again, so its VM stays off.
    let broken = |vm: VmId| {
        let lost = |id: VolumeId| world.storage.lost.contains(&id.0);
        view.vms.get(vm).is_some_and(|vm| vm.volumes().any(lost))
    };
    let dead = world.nodes.iter().position(|host| host.dead);
    let is_dead = |node: NodeId| dead.is_some_and(|at| node_id(at) == node);
    // Silence of a host without a watchdog proves nothing, nor does it of a boot that never held the lease, nor of guests
    // that have nothing on the shared pool.
    let provable = |vm: VmId| {
        let held = |at: usize| {
            let boot = view.nodes.get(node_id(at)).map(|node| node.status.boot_id.as_str());
            world.storage.leases.get(&at).is_some_and(|lease| Some(lease.boot_id.as_str()) == boot)
        };
        let watched = dead.is_some_and(|at| world.nodes[at].watchdog && held(at));
        let vm = view.vms.get(vm).filter(|_| watched);
        vm.is_some_and(|vm| fence::is_guarded(vm) && restarted_elsewhere(&view, vm))
    };
    let stuck = |vm: VmId| {
        let mut open = view.moves.iter().filter(|one| one.status.phase.is_open() && one.spec.vm == vm);
        open.any(|one| is_dead(one.spec.source) || is_dead(one.spec.target)) && !provable(vm)
    };
    let crippled = |vm: VmId| broken(vm) || stuck(vm);
    let waits = |one: &Move| one.status.phase.is_open() && !crippled(one.spec.vm);
    if view.moves.iter().any(|one| waits(one)) {
        let told = |one: &Move| {
            let status = &one.status;
            let ready = if status.ready { ", ready" } else { "" };
            format!("vm {} {:?}{ready} {}", short(one.spec.vm.0), status.phase, status.message)
        };
        let all: Vec<String> =
            view.moves.iter().filter(|one| one.status.phase.is_open()).map(|one| told(one)).collect();
        return Some(format!("open moves: {}", all.join("; ")));
    }
    for node in view.nodes.iter().filter(|node| !is_dead(node.id())) {
        if node.status.phase != NodePhase::Ready {
            return Some(format!("{} is {:?}", node.meta.name, node.status.phase));
        }
        let left = view.assignment(node.id());
        if let Some((vm, entry)) =
            left.vms.iter().find(|(vm, entry)| entry.intent != Intent::Wanted && !crippled(**vm))
        {
            return Some(format!("{} still has vm {} as {:?}", node.meta.name, short(vm.0), entry.intent));
        }
    }
    for vm in view.vms.iter() {
        let name = short(vm.id().0);
        let lost = vm.status.node.filter(|node| is_dead(*node));
        // Its disk is out of reach with the node, and its deletion need not wait for that.
        let host = lost.and_then(|node| view.nodes.get(node)).filter(|_| vm.spec.deleting);
        if host.is_some_and(|host| evacuate::proof(&view, host, vm).is_some()) {
            return Some(format!(
                "vm {name} is still there, and it is proven that its dead node does not run it"
            ));
        }
        if lost.is_some() && (crippled(vm.id()) || !provable(vm.id())) {
            continue;
        }
        if lost.is_some() && vm.status.conditions.get("Evacuated").is_none() {
            return Some(format!("vm {name} is left on a dead node, and nobody is told why"));
        }
        if vm.spec.deleting && !crippled(vm.id()) {
            return Some(format!("vm {name} is still there"));
        }
        if !vm.wants_on() || crippled(vm.id()) || lost.is_some() {
            continue;
        }
        let Some(node) = vm.status.node else {
            if fits_nowhere(&view, vm) {
                continue;
            }
            return Some(format!("vm {name} has no node"));
        };
        let host = world.nodes.iter().enumerate().find(|(at, _)| node_id(*at) == node)?.1;
        let runs = host.runs(vm.id().0)
            && host.domains.get(&vm.id().0).is_some_and(|it| it.incarnation == vm.status.incarnation);
        if !runs {
            let problem = vm.status.seen.as_ref().and_then(|seen| seen.problem.clone());
            return Some(format!("vm {name} does not run on {}: {problem:?}", host.name));
        }
    }
    // What arrives from a dead node may be all there is of the guest: it waits with its move.
    let arrives = |vm: VmId, at: usize| {
        let mut open = view.moves.iter().filter(|one| one.status.phase.is_open() && one.spec.vm == vm);
        stuck(vm) && open.any(|one| one.spec.target == node_id(at))
    };
    for (at, host) in world.nodes.iter().enumerate() {
        for vm in host.domains.keys() {
            let record = view.vms.get(tamdao_model::VmId(*vm));
            if record
                .is_none_or(|record| record.status.node != Some(node_id(at)) && !arrives(record.id(), at))
            {
                return Some(format!("{} still has a domain of vm {}", host.name, short(*vm)));
            }
        }
    }
    None
}

/// Whether it is not bound to its node.
fn restarted_elsewhere(view: &View, vm: &Vm) -> bool {
    decided::stays(view, vm).is_none() && !decided::shared_pools(view, vm).is_empty()
}

/// Whether an engine that is drawn anew has no place for it either, by the rules and with room kept for failures.
fn fits_nowhere(view: &View, vm: &Vm) -> bool {
    let mut engine = Engine::draw(view);
    engine.plan();
    let shape = engine::shape(view, vm).map(Arc::new);
    shape.is_ok_and(|shape| engine.guarantee.admit_each(&[shape]).iter().all(Result::is_err))
}
