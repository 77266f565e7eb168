//! The beginning of a move: whether a VM can move, in which way, and to this node; then record, places and files on
//! both ends in one transaction. Capacity is held on both from here until the move is over.

use std::collections::BTreeMap;

use tamdao_model::assignment::{Hold, Intent, Reservation, VmEntry, VolumeEntry};
use tamdao_model::event::Severity;
use tamdao_model::moves::{Move, MovePhase, MoveSpec, MoveStatus, Way};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::{Platform, Vm, VmPhase};
use tamdao_model::{Kind, Meta, MoveId, Name, NodeId, PoolId, VmId, VolumeId};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::Code;

use super::{node_event, place, put_vm};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// How long a target may take to make ready, ms: an image may have to come first.
const PREPARE_MS: u64 = 30 * 60 * 1_000;

/// What is asked for, with the target chosen.
#[derive(Debug, Clone)]
pub struct Wish {
    pub vm: VmId,
    pub target: NodeId,
    /// What it takes on the target.
    pub reservation: Reservation,
    /// NUMA cells that it lies on there, by libvirt's numbers.
    pub cells: Vec<u32>,
    pub allow_cold: bool,
    pub auto_converge: bool,
    pub reason: String,
}

/// How a VM would move now, wherever to.
///
/// # Errors
/// When it cannot move, with what would help.
pub fn way(view: &View, vm: &Vm, allow_cold: bool) -> Result<Way, Refusal> {
    let name = vm.meta.name.as_str();
    let no = |reason, message: String| Err(Refusal::precondition(reason, message));
    if vm.spec.deleting {
        return no("Deleting", format!("vm {name:?} is being deleted"));
    }
    if let Some(open) = vm.status.moving.and_then(|id| view.moves.get(id)) {
        return no("MoveOpen", format!("vm {name:?} is moving already")).map_err(|refusal: Refusal| {
            refusal.hint(format!("tamdao move cancel {} gives that up", open.meta.name))
        });
    }
    if vm.status.node.is_none() {
        return no("NotPlaced", format!("vm {name:?} has no node yet"));
    }
    if vm.spec.pin.is_some() {
        return no("Pinned", format!("vm {name:?} is pinned to its node"));
    }
    let local = local_volumes(view, vm);
    if vm.status.phase == VmPhase::Running && vm.spec.numa_cells > 0 && !allow_cold {
        // Its document names the cells of this node, and a running guest takes it along.
        return no(
            "LiveImpossible",
            format!("vm {name:?} lies on NUMA cells, and moves only while it is off"),
        );
    }
    match (vm.status.phase, vm.spec.tpm || vm.spec.numa_cells > 0) {
        (VmPhase::Running, false) if !local.is_empty() => Ok(Way::LiveWithDisks),
        (VmPhase::Running, false) => Ok(Way::Live),
        (VmPhase::Running, true) if !allow_cold => {
            no("LiveImpossible", format!("vm {name:?} has a TPM, whose state is not copied while it runs"))
        }
        (VmPhase::Running | VmPhase::Stopped, _) => match cannot_carry(view, vm, &local) {
            Some(why) => no("ColdImpossible", format!("vm {name:?} has volumes in local pools, and {why}")),
            None => Ok(Way::Cold),
        },
        (phase, _) => {
            no("NotRunning", format!("vm {name:?} is {phase:?}; it moves while it runs, or while it is off"))
        }
    }
}

/// Why the files of these volumes of its cannot leave its node while it is off; none if they can, or if there are none.
fn cannot_carry(view: &View, vm: &Vm, local: &[VolumeId]) -> Option<&'static str> {
    let source = vm.status.node.and_then(|id| view.nodes.get(id));
    let made = |id: &VolumeId| view.volumes.get(*id).is_some_and(|volume| volume.status.made);
    match local {
        [] => None,
        _ if !source.is_some_and(|node| node.status.carries_files) => {
            Some("the agent of its node is of a version that does not carry them while it is off")
        }
        _ if !local.iter().all(made) => Some("not all of them have been made yet"),
        _ => None,
    }
}

/// Its volumes that lie in local pools.
pub fn local_volumes(view: &View, vm: &Vm) -> Vec<VolumeId> {
    let local = |id: &VolumeId| {
        let pool = view.volumes.get(*id).and_then(|volume| view.pools.get(volume.spec.pool));
        pool.is_some_and(|pool| !pool.spec.shared)
    };
    vm.volumes().filter(local).collect()
}

/// Why a guest that runs with this platform on one node cannot go on running on another; none if it can.
pub fn incompatible(platform: Option<&Platform>, source: &Node, target: &Node) -> Option<String> {
    let (from, to) = (&source.status.inventory, &target.status.inventory);
    if from.acceleration != to.acceleration {
        return Some(format!(
            "it runs by {}, and {} has {}",
            from.acceleration, target.meta.name, to.acceleration
        ));
    }
    target.cannot_be(platform?)
}

/// Why a VM cannot go to a node in this way whatever room there is: one CamelCase word and a clause; none if it can.
pub fn unfit(view: &View, vm: &Vm, way: Way, source: &Node, target: &Node) -> Option<(&'static str, String)> {
    let apart = target.status.moves_port == 0 || target.status.address.is_empty();
    let carries = way != Way::Cold || !local_volumes(view, vm).is_empty();
    if carries && apart {
        return Some(("NoMoves", "its agent takes no part in moves".to_owned()));
    }
    match way {
        Way::Cold if carries && !target.status.carries_files => {
            let why = "its agent is of a version that takes no disks of a VM that is off";
            Some(("NoMoves", why.to_owned()))
        }
        Way::Cold => None,
        Way::Live | Way::LiveWithDisks => incompatible(vm.status.platform.as_ref(), source, target)
            .map(|why| ("CpuIncompatible", format!("it cannot run on there: {why}"))),
    }
}

/// Begins a move.
///
/// # Errors
/// When the VM cannot move, or not to this node.
pub fn start(draft: &mut Draft, moment: &mut Moment, wish: &Wish, actor: &str) -> Result<Move, Refusal> {
    let view = draft.view();
    let row = view.vms.get(wish.vm).ok_or_else(|| Refusal::not_found(Kind::Vm, &wish.vm.to_string()))?;
    let way = way(view, &row.value, wish.allow_cold)?;
    begin(draft, moment, wish, way, actor)
}

/// Begins a move in this way, which the VM can go.
///
/// # Errors
/// When it cannot move to this node.
pub fn begin(
    draft: &mut Draft,
    moment: &mut Moment,
    wish: &Wish,
    way: Way,
    actor: &str,
) -> Result<Move, Refusal> {
    let view = draft.view();
    let row = view.vms.get(wish.vm).ok_or_else(|| Refusal::not_found(Kind::Vm, &wish.vm.to_string()))?;
    let mut vm = (*row.value).clone();
    let node = |id: NodeId| {
        view.nodes
            .get(id)
            .map(|row| row.value.clone())
            .ok_or_else(|| Refusal::not_found(Kind::Node, &id.to_string()))
    };
    let source_id = vm.status.node.ok_or_else(|| Refusal::internal("a VM that can move has a node"))?;
    let (source, target) = (node(source_id)?, node(wish.target)?);
    fits(view, &vm, way, &source, &target)?;
    let mut here = view.assignment(source.id());
    let mut there = view.assignment(target.id());
    let id: MoveId = moment.id();
    let incarnation_to = vm.next_incarnation();
    let copies = match way {
        Way::LiveWithDisks | Way::Cold => local_volumes(view, &vm),
        Way::Live => Vec::new(),
    };
    let no_room = |message: String| Err(Refusal::new(Code::ResourceExhausted, "NoRoom", message));
    if there.vms.contains_key(&vm.id()) || copies.iter().any(|volume| there.volumes.contains_key(volume)) {
        let message = format!("{} is still clearing what an earlier move left of it", target.meta.name);
        return Err(Refusal::precondition("StillClearing", message).hint("try again in a moment"));
    }
    if !place::has_room(&target, &there, wish.reservation, &wish.cells) {
        return no_room(format!("{} has no room for it", target.meta.name));
    }
    let mut wanted: BTreeMap<PoolId, u64> = BTreeMap::new();
    for volume in copies.iter().filter_map(|id| view.volumes.get(*id)) {
        let Some(pool) = view.pools.get(volume.spec.pool) else { continue };
        let sum = wanted.entry(pool.id()).or_insert_with(|| there.promised_mib(pool.id()));
        *sum += u64::from(volume.spec.size_mib);
        if *sum > target.pool_allocatable_mib(pool) {
            return no_room(format!("pool {} has no room for it on {}", pool.meta.name, target.meta.name));
        }
        let entry = VolumeEntry {
            hold: Hold::Arriving,
            copy: incarnation_to,
            ..VolumeEntry::own(volume.spec.pool, volume.spec.size_mib)
        };
        there.volumes.insert(volume.id(), entry);
    }
    let entry = VmEntry {
        incarnation: incarnation_to,
        intent: Intent::Incoming,
        reservation: wish.reservation,
        cells: wish.cells.clone(),
    };
    there.vms.insert(vm.id(), entry);
    if !here.vms.contains_key(&vm.id()) {
        return Err(Refusal::internal("a placed VM has an entry on its node"));
    }
    here.vms.entry(vm.id()).and_modify(|entry| entry.intent = Intent::Wanted);
    let name = Name::new(&format!("{:.50}-{:08x}", vm.meta.name.as_str(), id.0.as_u128() >> 96))
        .map_err(|error| Refusal::internal(error.to_string()))?;
    let record = Move {
        meta: Meta::new(id, name, moment.now),
        agency: vm.agency,
        spec: MoveSpec {
            vm: vm.id(),
            source: source.id(),
            target: target.id(),
            way,
            incarnation_from: vm.status.incarnation,
            incarnation_to,
            copies,
            auto_converge: wish.auto_converge,
            asked_by: actor.to_owned(),
            reason: wish.reason.clone(),
        },
        status: MoveStatus {
            phase: MovePhase::Preparing,
            deadline: Some(moment.now.plus_ms(PREPARE_MS)),
            end_time: None,
            cause: None,
            kept: false,
            ready: false,
            message: String::new(),
            forecast: None,
            send_time: None,
        },
    };
    vm.status.moving = Some(id);
    vm.status.incarnation_given = incarnation_to;
    let message = format!("moves from {} to {}", source.meta.name, target.meta.name);
    node_event(draft, moment, &vm, Some(target.id()), Severity::Info, "MoveBegun", message, actor);
    draft.put(here);
    draft.put(there);
    draft.put(record.clone());
    put_vm(draft, vm);
    Ok(record)
}

/// What the engine does not look at: whether the two agents can speak, and the guest run on over there.
fn fits(view: &View, vm: &Vm, way: Way, source: &Node, target: &Node) -> Result<(), Refusal> {
    let no = |reason, message: String| Err(Refusal::precondition(reason, message));
    if source.id() == target.id() {
        return no("SameNode", format!("vm {:?} is on {} already", vm.meta.name.as_str(), target.meta.name));
    }
    if target.spec.cordoned {
        return no("Cordoned", format!("node {} is cordoned", target.meta.name));
    }
    for node in [source, target] {
        if node.status.phase != NodePhase::Ready {
            return no("NodeNotReady", format!("node {} is not ready", node.meta.name));
        }
    }
    match unfit(view, vm, way, source, target) {
        Some((reason, why)) => {
            let name = vm.meta.name.as_str();
            no(reason, format!("vm {name:?} cannot move to node {}: {why}", target.meta.name))
        }
        None => Ok(()),
    }
}
