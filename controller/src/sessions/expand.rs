//! What one agent is told: the records about its node, put together so that it needs to ask for nothing. Pure.

use std::collections::BTreeSet;

use tamdao_model::assignment::{Assignment, Hold, Intent, VmEntry};
use tamdao_model::convert::Twin;
use tamdao_model::convert::agent::{show_action, show_platform};
use tamdao_model::convert::moves::show_way;
use tamdao_model::moves::MovePhase;
use tamdao_model::network::Provider;
use tamdao_model::node::NodePhase;
use tamdao_model::range::{self, Family};
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{DiskSource, Interface, Vm, VmPhase};
use tamdao_model::volume::Volume;
use tamdao_model::{ImageId, NodeId, VmId, VolumeId};
use tamdao_proto::agent::v1 as agent;
use tamdao_store::view::View;

use crate::decide::{recovery, went_back};
use crate::engine;

/// Opens a sealed secret; none if it is not of this cluster's key.
pub type Open<'a> = &'a dyn Fn(&Sealed) -> Option<String>;

/// The entries that the node needs for these VMs, with their volumes, and for these volumes; `None` means all.
pub fn assignment(
    view: &View,
    node: NodeId,
    only: Option<(&BTreeSet<VmId>, &BTreeSet<VolumeId>)>,
    open: Open<'_>,
) -> agent::Assignment {
    let none = Assignment::empty(node);
    let own = view.assignments.get(node).map_or(&none, |row| &*row.value);
    // A cloud that recovers has nothing done: what its nodes run they keep, and say.
    let recovers = recovery::is_on(view);
    let held_back = recovers || view.nodes.get(node).is_some_and(|node| is_held_back(node.status.phase));
    let speaks_of = |id: &VmId| match own.vms.get(id).map(|entry| entry.intent) {
        None | Some(Intent::Left) => false,
        Some(Intent::Stale) => !recovers,
        Some(Intent::Wanted | Intent::Stop | Intent::Incoming | Intent::Outgoing) => !held_back,
    };
    let (told, mut volumes): (Vec<VmId>, BTreeSet<VolumeId>) = match only {
        // What is told is looked for, and not all that the node has: a node is told something many times a second.
        Some((vms, volumes)) => {
            let volumes = volumes.iter().filter(|id| is_for(view, own, **id));
            (vms.iter().filter(|id| speaks_of(id)).copied().collect(), volumes.copied().collect())
        }
        None => (
            own.vms.keys().filter(|id| speaks_of(id)).copied().collect(),
            own.volumes.keys().copied().collect(),
        ),
    };
    if held_back {
        volumes.clear();
    }
    let mut vms = Vec::with_capacity(told.len());
    for id in told {
        let vm = view.vms.get(id);
        // A stale guest is destroyed; its disks are another node's by now.
        if own.vms[&id].intent != Intent::Stale {
            volumes.extend(vm.into_iter().flat_map(|vm| vm.volumes()));
        }
        vms.push(vm_entry(view, node, id, &own.vms[&id], vm.map(|row| &*row.value), open));
    }
    let told = |id: &VolumeId| match view.volumes.get(*id) {
        Some(volume) => volume_entry(view, own, volume),
        None => leftover(own, *id),
    };
    let volumes = volumes.iter().filter_map(told).collect();
    let mut pools = Vec::new();
    let mut wanted_images = Vec::new();
    if only.is_none() {
        pools = view.pools.iter().filter(|pool| pool.is_on(node)).map(pool_entry).collect();
        wanted_images = images(view, own);
    }
    agent::Assignment {
        epoch: 0,
        revision: went_back::told(view).0,
        complete: only.is_none(),
        vms,
        volumes,
        pools,
        wanted_images,
    }
}

/// The nodes that are told of a VM: its own, and both ends of its move.
pub fn told_of(view: &View, vm: &Vm) -> impl Iterator<Item = NodeId> + use<> {
    let open = vm.status.moving.and_then(|id| view.moves.get(id));
    let ends = open.into_iter().flat_map(|one| [one.spec.source, one.spec.target]);
    ends.chain(vm.status.node).collect::<BTreeSet<NodeId>>().into_iter()
}

/// Whether a node is told only what it must not run: it was fenced, and has not confirmed yet that nothing is left on it
/// which runs elsewhere by now.
pub fn is_held_back(phase: NodePhase) -> bool {
    match phase {
        NodePhase::Fenced | NodePhase::Returning => true,
        NodePhase::Joining
        | NodePhase::Ready
        | NodePhase::Unreachable
        | NodePhase::NotReady
        | NodePhase::Fencing => false,
    }
}

/// Whether a node with this assignment has to do with a volume: its file is there, or a VM there has it.
fn is_for(view: &View, own: &Assignment, volume: VolumeId) -> bool {
    let holder = || view.volumes.get(volume).and_then(|row| row.status.vm);
    own.volumes.contains_key(&volume) || holder().is_some_and(|vm| own.vms.contains_key(&vm))
}

fn pool_entry(pool: &tamdao_store::view::Row<tamdao_model::pool::Pool>) -> agent::AssignedPool {
    agent::AssignedPool {
        pool_id: pool.id().to_string(),
        name: pool.meta.name.to_string(),
        path: pool.spec.path.clone(),
        shared: pool.spec.shared,
    }
}

/// Digests of the images that the node's VMs and volumes rest on.
fn images(view: &View, own: &Assignment) -> Vec<String> {
    let mut digests = BTreeSet::new();
    for vm in own.vms.keys().filter_map(|id| view.vms.get(*id)) {
        let of_volumes = vm.volumes().filter_map(|id| view.volumes.get(id)?.spec.image);
        digests.extend(vm.images().chain(of_volumes).map(|id| digest(view, id)));
    }
    for volume in own.volumes.keys().filter_map(|id| view.volumes.get(*id)) {
        digests.extend(volume.spec.image.map(|id| digest(view, id)));
    }
    digests.remove("");
    digests.into_iter().collect()
}

fn digest(view: &View, image: ImageId) -> String {
    view.images.get(image).map(|image| image.status.sha256.clone()).unwrap_or_default()
}

fn vm_entry(
    view: &View,
    node: NodeId,
    id: VmId,
    entry: &VmEntry,
    vm: Option<&Vm>,
    open: Open<'_>,
) -> agent::AssignedVm {
    let intent = match entry.intent {
        // What is left is not spoken of; were it, its node would have nothing to do.
        Intent::Left => agent::Intent::Unspecified,
        Intent::Wanted => agent::Intent::Wanted,
        Intent::Stop => agent::Intent::Stop,
        Intent::Stale => agent::Intent::Stale,
        Intent::Incoming => agent::Intent::Incoming,
        Intent::Outgoing => agent::Intent::Outgoing,
    };
    let mut told = agent::AssignedVm {
        vm_id: id.to_string(),
        incarnation: entry.incarnation,
        intent: intent as i32,
        ..agent::AssignedVm::default()
    };
    let Some(vm) = vm else { return told };
    told.generation = vm.meta.generation;
    told.stop_force = vm.spec.stop.force;
    told.stop_deadline_s = vm.spec.stop.deadline_s;
    if matches!(entry.intent, Intent::Incoming | Intent::Outgoing) {
        told.r#move = assigned_move(view, vm, entry.intent);
    }
    if matches!(entry.intent, Intent::Wanted | Intent::Incoming | Intent::Outgoing) {
        told.power = vm.spec.power.number();
        told.run = vm.spec.run.number();
        told.machine = Some(agent::Machine { cells: cells(view, node, entry), ..machine(view, vm, open) });
        told.action = vm.spec.action.as_ref().map(show_action);
        told.first_start = vm.status.platform.is_none();
        told.priority = vm.spec.priority;
    }
    told
}

/// What one end is told of the VM's open move; without it the agent acts on nothing.
fn assigned_move(view: &View, vm: &Vm, intent: Intent) -> Option<agent::AssignedMove> {
    let open = view.moves.get(vm.status.moving?)?;
    let spec = &open.spec;
    let peer = if intent == Intent::Incoming { spec.source } else { spec.target };
    let address = view.nodes.get(peer).map(|node| {
        let (host, port) = (&node.status.address, node.status.moves_port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    });
    Some(agent::AssignedMove {
        move_id: open.id().to_string(),
        peer_node: peer.to_string(),
        peer_address: address.unwrap_or_default(),
        incarnation_from: spec.incarnation_from,
        incarnation_to: spec.incarnation_to,
        way: show_way(spec),
        recall: open.status.phase == MovePhase::Recalling,
        auto_converge: spec.auto_converge,
        // It is off, and nobody but the guest itself wanted it so.
        stays_off: vm.status.phase == VmPhase::Stopped && vm.wants_on(),
    })
}

fn machine(view: &View, vm: &Vm, open: Open<'_>) -> agent::Machine {
    let spec = &vm.spec;
    let agency = view.agencies.get(vm.agency).map(|agency| agency.meta.name.to_string());
    let boot = spec.direct_boot.as_ref().map(|boot| agent::MachineDirectBoot {
        kernel: digest(view, boot.kernel),
        initrd: boot.initrd.map(|initrd| digest(view, initrd)).unwrap_or_default(),
        command_line: boot.command_line.clone(),
    });
    agent::Machine {
        name: vm.meta.name.to_string(),
        agency: agency.unwrap_or_default(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        disks: disks(view, vm),
        interfaces: interfaces(view, vm),
        firmware: spec.firmware.number(),
        os_type: spec.os_type.number(),
        graphics: spec.graphics.number(),
        secure_boot: spec.secure_boot,
        tpm: spec.tpm,
        direct_boot: boot,
        platform: engine::platform(view, vm).as_ref().map(show_platform),
        cloud_init: Some(agent::CloudInit {
            instance_id: vm.id().to_string(),
            hostname: spec.hostname.to_string(),
            ssh_keys: spec.ssh_keys.clone(),
            user_data: spec.user_data.as_ref().and_then(open).unwrap_or_default(),
        }),
        cells: Vec::new(),
    }
}

/// The cells that a VM lies on, as its node said that they are.
fn cells(view: &View, node: NodeId, entry: &VmEntry) -> Vec<agent::MachineCell> {
    let Some(node) = view.nodes.get(node).filter(|_| !entry.cells.is_empty()) else { return Vec::new() };
    let held = node.status.inventory.numa_cells.iter().filter(|cell| entry.cells.contains(&cell.id));
    held.map(|cell| agent::MachineCell { id: cell.id, cpus: cell.cpus.clone() }).collect()
}

fn disks(view: &View, vm: &Vm) -> Vec<agent::MachineDisk> {
    let ordered = vm.spec.disks.iter().any(|disk| disk.boot_order != 0);
    let mut disks = Vec::with_capacity(vm.spec.disks.len());
    for (at, disk) in vm.spec.disks.iter().enumerate() {
        let mut told = agent::MachineDisk { kind: disk.kind.number(), ..agent::MachineDisk::default() };
        // Without an order the list is the order; a kernel that is loaded directly boots before all disks.
        told.boot_order = match (ordered, vm.spec.direct_boot.is_some()) {
            (_, true) => 0,
            (true, false) => disk.boot_order,
            (false, false) => u32::try_from(at + 1).unwrap_or(u32::MAX),
        };
        match disk.source {
            DiskSource::Volume { volume: id, .. } => {
                told.volume_id = id.to_string();
                if let Some(volume) = view.volumes.get(id) {
                    told.pool_id = volume.spec.pool.to_string();
                    told.shared = view.pools.get(volume.spec.pool).is_some_and(|pool| pool.spec.shared);
                }
            }
            DiskSource::Iso { image } => told.iso = digest(view, image),
            DiskSource::Empty => {}
        }
        disks.push(told);
    }
    disks
}

fn interfaces(view: &View, vm: &Vm) -> Vec<agent::MachineInterface> {
    let mut families = BTreeSet::new();
    vm.spec.interfaces.iter().map(|interface| told_interface(view, interface, &mut families)).collect()
}

/// `routed` are the families that have a default route already: the first interface of each gives it.
fn told_interface(
    view: &View,
    interface: &Interface,
    routed: &mut BTreeSet<Family>,
) -> agent::MachineInterface {
    let mut told = agent::MachineInterface {
        mac: interface.mac.clone(),
        addresses: interface.addresses.iter().map(ToString::to_string).collect(),
        ..agent::MachineInterface::default()
    };
    let Some(network) = view.networks.get(interface.network) else { return told };
    told.bridge = network.spec.provider.bridge().to_owned();
    told.vlan = match network.spec.provider {
        Provider::Vlan { tag, .. } => u32::from(tag),
        Provider::Bridge { .. } => 0,
    };
    told.mtu = network.spec.mtu;
    told.dns_servers = network.spec.dns_servers.iter().map(ToString::to_string).collect();
    for address in &interface.addresses {
        let gateway = range::subnet_of(&network.spec, address.addr()).and_then(|subnet| subnet.gateway);
        if let Some(gateway) = gateway
            && routed.insert(Family::of(gateway))
        {
            told.gateways.push(gateway.to_string());
        }
    }
    told
}

fn volume_entry(view: &View, own: &Assignment, volume: &Volume) -> Option<agent::AssignedVolume> {
    let held = own.volumes.get(&volume.id());
    let elsewhere = volume.status.node.is_some_and(|there| there != own.node);
    let wanted = |vm: VmId| {
        own.vms.get(&vm).is_some_and(|entry| matches!(entry.intent, Intent::Wanted | Intent::Outgoing))
    };
    let mut size_mib = volume.spec.size_mib;
    let intent = if held.is_some_and(|entry| entry.hold == Hold::Leaving) {
        agent::VolumeIntent::Delete
    } else if held.is_some_and(|entry| entry.hold == Hold::Arriving) {
        // As large as it is on the source, whatever it is to grow to.
        size_mib = if volume.status.size_mib == 0 { size_mib } else { volume.status.size_mib };
        agent::VolumeIntent::Receive
    } else if elsewhere && held.is_none() {
        // It was here, and is another node's now.
        return None;
    } else if volume.spec.deleting {
        agent::VolumeIntent::Delete
    } else if volume.status.made {
        agent::VolumeIntent::Keep
    } else if volume.status.vm.is_none_or(wanted) {
        agent::VolumeIntent::Make
    } else {
        // Its VM is on its way out: nothing is made for it any more.
        return None;
    };
    Some(agent::AssignedVolume {
        volume_id: volume.id().to_string(),
        pool_id: volume.spec.pool.to_string(),
        intent: intent as i32,
        size_mib,
        image: volume.spec.image.map(|image| digest(view, image)).unwrap_or_default(),
        copy: held.map_or(0, |entry| entry.copy),
    })
}

/// A file that is to be removed, of a volume that is gone since.
fn leftover(own: &Assignment, id: VolumeId) -> Option<agent::AssignedVolume> {
    let entry = own.volumes.get(&id).filter(|entry| entry.hold == Hold::Leaving)?;
    Some(agent::AssignedVolume {
        volume_id: id.to_string(),
        pool_id: entry.pool.to_string(),
        intent: agent::VolumeIntent::Delete as i32,
        size_mib: entry.size_mib,
        image: String::new(),
        copy: entry.copy,
    })
}

#[cfg(test)]
#[path = "expand_tests.rs"]
mod tests;
