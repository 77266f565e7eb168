//! Giving a VM a node: the one place where capacity is taken. The engine proposes; here the proposal is checked
//! once more against the node as it will be, by plain sums.

use tamdao_model::assignment::{Intent, Reservation, VmEntry, VolumeEntry};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::event::Severity;
use tamdao_model::limits;
use tamdao_model::node::NodePhase;
use tamdao_model::{NodeId, PoolId, VmId};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::{node_event, put_vm};
use crate::admission::Moment;

/// Why a proposal no longer holds. The VM stays pending and is decided anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overtaken {
    /// It is gone, being deleted or placed already.
    Vm,
    /// The node is gone, cordoned or not ready.
    Node,
    /// Something else has taken the room.
    Room,
}

/// Gives a VM to a node and holds the room for it.
pub fn place(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: VmId,
    node: NodeId,
    reservation: Reservation,
) -> Result<(), Overtaken> {
    let view = draft.view();
    let vm = view.vms.get(vm).ok_or(Overtaken::Vm)?;
    if vm.status.node.is_some() || vm.spec.deleting {
        return Err(Overtaken::Vm);
    }
    let host = view.nodes.get(node).ok_or(Overtaken::Node)?;
    if host.status.phase != NodePhase::Ready || host.spec.cordoned {
        return Err(Overtaken::Node);
    }
    let mut vm = (*vm.value).clone();
    let name = host.meta.name.clone();
    let mut assignment = view.assignment(node);
    let allocatable = host.allocatable();
    let reserved = assignment.reserved();
    if assignment.vms.len() >= limits::VMS_PER_NODE
        || reserved.vcpus + reservation.vcpus > allocatable.vcpus
        || reserved.memory_mib + reservation.memory_mib > allocatable.memory_mib
    {
        return Err(Overtaken::Room);
    }
    let mut volumes = Vec::new();
    for id in vm.volumes() {
        let mut volume = (*view.volumes.get(id).ok_or(Overtaken::Vm)?.value).clone();
        let pool = view.pools.get(volume.spec.pool).ok_or(Overtaken::Vm)?;
        if pool.spec.shared {
            continue;
        }
        match volume.status.node {
            Some(there) if there != node => return Err(Overtaken::Node),
            Some(_) => {}
            None => {
                let entry = VolumeEntry { pool: pool.id(), size_mib: volume.spec.size_mib };
                assignment.volumes.insert(id, entry);
                if assignment.promised_mib(pool.id()) > host.pool_allocatable_mib(pool) {
                    return Err(Overtaken::Room);
                }
                volume.status.node = Some(node);
                volumes.push(volume);
            }
        }
    }
    vm.status.node = Some(node);
    vm.status.incarnation += 1;
    vm.status.seen = None;
    let generation = vm.meta.generation;
    vm.status.conditions.set(
        "Placed",
        ConditionStatus::True,
        "Placed",
        &format!("placed on {name}"),
        generation,
        moment.now,
    );
    assignment
        .vms
        .insert(vm.id(), VmEntry { incarnation: vm.status.incarnation, intent: Intent::Wanted, reservation });
    draft.put(assignment);
    for volume in volumes {
        draft.put(volume);
    }
    node_event(
        draft,
        moment,
        &vm,
        Some(node),
        Severity::Info,
        "Placed",
        format!("placed on {name}"),
        "placer",
    );
    put_vm(draft, vm);
    Ok(())
}

/// Records why a VM still has no node. Says whether that is news.
pub fn explain_waiting(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: VmId,
    reason: &str,
    message: &str,
) -> bool {
    let Some(row) = draft.view().vms.get(vm) else { return false };
    if row.status.node.is_some() || row.spec.deleting {
        return false;
    }
    let mut vm = (*row.value).clone();
    let generation = vm.meta.generation;
    let news =
        vm.status.conditions.set("Placed", ConditionStatus::False, reason, message, generation, moment.now);
    if news {
        node_event(draft, moment, &vm, None, Severity::Warning, reason, message, "placer");
        put_vm(draft, vm);
    }
    news
}

/// Virtual size promised in a shared pool by all its volumes, MiB.
pub fn promised_in_shared_mib(view: &View, pool: PoolId) -> u64 {
    let volumes = view.volumes.iter().filter(|volume| volume.spec.pool == pool);
    volumes.map(|volume| u64::from(volume.spec.size_mib)).sum()
}
