//! Deleting a VM: first the wish, then, step by step as the node confirms, the guest, the files and at last the
//! records, all in one transaction. Until then the VM keeps its name, addresses, capacity and quota.
//!
//! A node that is lost confirms nothing. Once it is proven that it does not run the guest, the deletion goes on without
//! it: what it has to destroy and the files that it has to remove stay in its assignment, for when it is back.

use tamdao_model::address::{Address, Holder};
use tamdao_model::assignment::{Hold, Intent, VmEntry};
use tamdao_model::event::Severity;
use tamdao_model::limits::ADDRESS_REST_MS;
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::{DiskSource, Vm};
use tamdao_model::volume::{Volume, VolumePhase};
use tamdao_model::{NodeId, Stored, TimeMs, VmId, VolumeId};
use tamdao_seams::{Mutant, has};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::move_start::local_volumes;
use super::{evacuate, event, fence, node_event, put_vm, quota, vm_power};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Wants a VM gone. One that was never placed goes at once.
///
/// # Errors
/// When it is protected from deletion.
pub fn want(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: &Vm,
    force: bool,
    actor: &str,
) -> Result<Vm, Refusal> {
    let mut vm = vm.clone();
    if vm.spec.delete_protection {
        let message = format!("vm {:?} is protected from deletion", vm.meta.name.as_str());
        return Err(Refusal::precondition("DeleteProtection", message)
            .hint("take the protection away first: tamdao vm update NAME --delete-protection=false"));
    }
    vm_power::check_still(&vm)?;
    if vm.spec.deleting && !force {
        return Ok(vm);
    }
    if !vm.spec.deleting {
        vm.meta.generation += 1;
        event(draft, moment, &vm, Severity::Info, "Deleting", "deletion was asked for", actor);
    }
    vm.spec.deleting = true;
    vm.spec.stop.force |= force;
    if let Some(node) = vm.status.node {
        let mut assignment = draft.view().assignment(node);
        if let Some(entry) = assignment.vms.get_mut(&vm.id())
            && entry.intent != Intent::Stop
        {
            entry.intent = Intent::Stop;
            draft.put(assignment);
        }
    }
    put_vm(draft, vm.clone());
    if has(Mutant::AddressFreedEarly) {
        free_addresses(draft, &vm);
    }
    if vm.status.node.is_none() {
        finish(draft, moment, &vm, &doomed_volumes(draft, &vm));
    }
    Ok(vm)
}

/// The node says that the guest is gone for good: now its own volumes go.
pub fn guest_gone(draft: &mut Draft, moment: &mut Moment, vm: &Vm) {
    let doomed = doomed_volumes(draft, vm);
    for volume in &doomed {
        if !volume.spec.deleting {
            let mut volume = volume.clone();
            volume.spec.deleting = true;
            volume.status.phase = VolumePhase::Deleting;
            draft.put(volume);
        }
    }
    if doomed.is_empty() {
        finish(draft, moment, vm, &doomed);
    }
}

/// The node says that a volume's file is gone: its record goes, and with the last one its VM's.
pub fn volume_gone(draft: &mut Draft, moment: &mut Moment, id: VolumeId) {
    let Some(volume) = draft.view().volumes.get(id).map(|row| row.value.clone()) else { return };
    if !volume.spec.deleting {
        return;
    }
    drop_volume(draft, &volume);
    let Some(vm) = volume.status.vm.and_then(|vm| draft.view().vms.get(vm)).map(|row| row.value.clone())
    else {
        node_event(draft, moment, &*volume, volume.status.node, Severity::Info, "Deleted", "deleted", "node");
        return;
    };
    let doomed = doomed_volumes(draft, &vm);
    if vm.spec.deleting && doomed.is_empty() {
        finish(draft, moment, &vm, &doomed);
    }
}

/// What a lost node holds up, though it is proven that the guest does not run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldUp {
    /// A VM that is being deleted and has a disk in a local pool. What has none is deleted elsewhere (`evacuate`).
    Vm(VmId),
    /// A volume without a VM that is being deleted.
    Volume(VolumeId),
}

/// All that fenced nodes hold up.
pub fn held_up(view: &View) -> Vec<HeldUp> {
    let mut all = Vec::new();
    for node in view.nodes.iter().filter(|node| node.status.phase == NodePhase::Fenced) {
        let own = view.assignment(node.id());
        let vms = own.vms.keys().filter_map(|id| view.vms.get(*id));
        all.extend(vms.filter(|vm| is_held_up(view, node, vm)).map(|vm| HeldUp::Vm(vm.id())));
        let volumes = own.volumes.keys().filter_map(|id| view.volumes.get(*id));
        let alone = |volume: &Volume| volume.spec.deleting && volume.status.vm.is_none();
        let own = |volume: &Volume| volume.status.node == Some(node.id());
        let held = volumes.filter(|volume| alone(volume) && own(volume));
        all.extend(held.map(|volume| HeldUp::Volume(volume.id())));
    }
    all
}

fn is_held_up(view: &View, node: &Node, vm: &Vm) -> bool {
    vm.spec.deleting
        && vm.status.node == Some(node.id())
        && fence::stays(view, vm).is_some()
        && evacuate::proof(view, node, vm).is_some()
}

/// Goes on with a deletion without the lost node. What was overtaken since it was found is left as it is.
pub fn go_on(draft: &mut Draft, moment: &mut Moment, held: HeldUp) {
    let lost = match held {
        HeldUp::Vm(id) => draft.view().vms.get(id).and_then(|vm| vm.status.node),
        HeldUp::Volume(id) => draft.view().volumes.get(id).and_then(|volume| volume.status.node),
    };
    let Some(mut node) = lost.and_then(|id| draft.view().nodes.get(id)).map(|row| (*row.value).clone())
    else {
        return;
    };
    if !held_up(draft.view()).contains(&held) {
        return;
    }
    match held {
        HeldUp::Vm(id) => unbind(draft, moment, id, &node),
        HeldUp::Volume(id) => {
            let Some(volume) = draft.view().volumes.get(id).map(|row| row.value.clone()) else { return };
            leave_file(draft, &volume, node.id());
            let message = format!("deleted; its file goes when {} is back", node.meta.name);
            node_event(
                draft,
                moment,
                &*volume,
                Some(node.id()),
                Severity::Info,
                "Deleted",
                message,
                "controller",
            );
        }
    }
    // The node's record is rewritten, so that this happens only while that is Fenced.
    if let Some(fence) = &mut node.status.fence {
        fence.evacuated += 1;
        draft.put(node);
    }
}

/// Takes from a VM that is being deleted its disks on the lost node. If a shared one is left, another node goes on with it
/// from here (`evacuate`); else the VM goes.
fn unbind(draft: &mut Draft, moment: &mut Moment, id: VmId, node: &Node) {
    let Some(mut vm) = draft.view().vms.get(id).map(|row| (*row.value).clone()) else { return };
    let local = local_volumes(draft.view(), &vm);
    let doomed = doomed_volumes(draft, &vm);
    for volume in doomed.iter().filter(|volume| local.contains(&volume.id())) {
        leave_file(draft, volume, node.id());
    }
    for kept in local.iter().filter(|id| !doomed.iter().any(|volume| volume.id() == **id)) {
        release(draft, *kept, id);
    }
    let is_local = |source: &DiskSource| match source {
        DiskSource::Volume { volume, .. } => local.contains(volume),
        DiskSource::Iso { .. } | DiskSource::Empty => false,
    };
    vm.spec.disks.retain(|disk| !is_local(&disk.source));
    if vm.volumes().next().is_some() {
        return put_vm(draft, vm);
    }
    let mut left = draft.view().assignment(node.id());
    left.vms.insert(id, VmEntry::stale(vm.status.incarnation));
    draft.put(left);
    let message = format!(
        "its node {} is proven not to run it; what it left there goes when that is back",
        node.meta.name
    );
    node_event(
        draft,
        moment,
        &vm,
        Some(node.id()),
        Severity::Info,
        "DeletedWithoutNode",
        message,
        "controller",
    );
    vm.status.node = None;
    finish(draft, moment, &vm, &[]);
}

/// Removes the record of a volume whose file a lost node has: the order to remove the file stays with the node.
fn leave_file(draft: &mut Draft, volume: &Volume, node: NodeId) {
    let mut left = draft.view().assignment(node);
    if let Some(entry) = left.volumes.get_mut(&volume.id()) {
        entry.hold = Hold::Leaving;
        draft.put(left);
    }
    quota::release(draft, volume.agency, &volume.amounts());
    draft.remove::<Volume>(volume.meta.id);
}

/// Volumes that were made for the VM and go with it, as far as they are still there.
fn doomed_volumes(draft: &Draft, vm: &Vm) -> Vec<Volume> {
    let created = vm.spec.disks.iter().filter_map(|disk| match disk.source {
        DiskSource::Volume { volume, created: true } => draft.view().volumes.get(volume),
        _ => None,
    });
    created.filter(|volume| !volume.spec.keep_on_delete).map(|volume| (*volume.value).clone()).collect()
}

/// Removes all that is left: volumes whose files never were, addresses, the place, the usage and the VM.
fn finish(draft: &mut Draft, moment: &mut Moment, vm: &Vm, never_made: &[Volume]) {
    for volume in never_made {
        drop_volume(draft, volume);
    }
    for id in vm.volumes() {
        release(draft, id, vm.id());
    }
    let rest = Holder::Resting { until: moment.now.plus_ms(ADDRESS_REST_MS) };
    for interface in &vm.spec.interfaces {
        for address in &interface.addresses {
            draft.put(Address { network: interface.network, address: address.addr(), holder: rest.clone() });
        }
    }
    if let Some(node) = vm.status.node {
        release_place(draft, node, vm.id());
    }
    if !has(Mutant::UsageForgotten) {
        quota::release(draft, vm.agency, &vm.amounts());
    }
    node_event(draft, moment, vm, vm.status.node, Severity::Info, "Deleted", "deleted", "controller");
    draft.remove::<Vm>(vm.meta.id);
}

/// What the deliberate bug does: no address rests.
fn free_addresses(draft: &mut Draft, vm: &Vm) {
    for interface in &vm.spec.interfaces {
        for address in &interface.addresses {
            let holder = Holder::Resting { until: TimeMs(0) };
            let freed = Address { network: interface.network, address: address.addr(), holder };
            draft.delete::<Address>(freed.key());
        }
    }
}

/// Takes a VM's entry out of a node's assignment.
pub fn release_place(draft: &mut Draft, node: NodeId, vm: VmId) {
    let mut assignment = draft.view().assignment(node);
    if assignment.vms.remove(&vm).is_some() {
        draft.put(assignment);
    }
}

/// Removes a volume's record with all that it holds.
pub fn drop_volume(draft: &mut Draft, volume: &Volume) {
    if let Some(node) = volume.status.node {
        let mut assignment = draft.view().assignment(node);
        if assignment.volumes.remove(&volume.id()).is_some() {
            draft.put(assignment);
        }
    }
    quota::release(draft, volume.agency, &volume.amounts());
    draft.remove::<Volume>(volume.meta.id);
}

/// Frees a volume that outlives its VM.
fn release(draft: &mut Draft, id: VolumeId, vm: VmId) {
    let Some(row) = draft.view().volumes.get(id) else { return };
    if row.status.vm == Some(vm) {
        let mut volume = (*row.value).clone();
        volume.status.vm = None;
        draft.put(volume);
    }
}
