//! VMs as they are shown. Disks are shown as the volumes that they are, also those that the VM's creation made:
//! whether they go with the VM is the volume's own field. User data is a secret and is not shown at all.

use tamdao_proto::v1;
use tamdao_proto::v1::disk::Source;

use super::held::show as show_id;
use super::{Shown, Twin, agent, metadata};
use crate::Kind;
use crate::lookup::Lookup;
use crate::vm::{Disk, DiskSource, Evacuation, Interface, Vm};

impl Shown for Vm {
    type Proto = v1::Vm;
    const MESSAGE: &'static str = "tamdao.v1.Vm";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Vm {
        v1::Vm {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(show_spec(self, lookup)),
            status: Some(show_status(self, lookup)),
        }
    }

    fn phase_number(&self) -> i32 {
        self.status.phase.number()
    }
}

fn show_spec(vm: &Vm, lookup: &dyn Lookup) -> v1::VmSpec {
    let spec = &vm.spec;
    let of_flavor = spec.flavor.is_some();
    let image = |id| show_id(lookup, Kind::Image, id);
    let direct_boot = spec.direct_boot.as_ref().map(|boot| v1::DirectBoot {
        kernel: image(boot.kernel),
        initrd: boot.initrd.map(image).unwrap_or_default(),
        command_line: boot.command_line.clone(),
    });
    v1::VmSpec {
        flavor: spec.flavor.map(|id| show_id(lookup, Kind::Flavor, id)).unwrap_or_default(),
        vcpus: if of_flavor { 0 } else { spec.vcpus },
        memory_mib: if of_flavor { 0 } else { spec.memory_mib },
        disks: spec.disks.iter().map(|disk| show_disk(disk, lookup)).collect(),
        interfaces: spec.interfaces.iter().map(|interface| show_interface(interface, lookup)).collect(),
        firmware: spec.firmware.number(),
        os_type: spec.os_type.number(),
        graphics: spec.graphics.number(),
        secure_boot: spec.secure_boot,
        tpm: spec.tpm,
        direct_boot,
        ssh_keys: spec.ssh_keys.clone(),
        user_data: String::new(),
        run: spec.run.number(),
        delete_protection: spec.delete_protection,
        hostname: spec.hostname.to_string(),
        node: spec.pin.map(|id| show_id(lookup, Kind::Node, id)).unwrap_or_default(),
        node_labels: spec.node_labels.clone(),
        forbidden_node_labels: spec.forbidden_node_labels.clone(),
        priority: spec.priority,
        isolation_class: spec.isolation_class.as_ref().map(ToString::to_string).unwrap_or_default(),
        placement_groups: spec
            .placement_groups
            .iter()
            .map(|id| show_id(lookup, Kind::PlacementGroup, *id))
            .collect(),
        on_node_loss: spec.on_node_loss.number(),
        numa_cells: spec.numa_cells,
        maintenance: spec.maintenance.number(),
    }
}

fn show_disk(disk: &Disk, lookup: &dyn Lookup) -> v1::Disk {
    let source = match disk.source {
        DiskSource::Volume { volume, .. } => Some(Source::Volume(show_id(lookup, Kind::Volume, volume))),
        DiskSource::Iso { image } => Some(Source::Iso(show_id(lookup, Kind::Image, image))),
        DiskSource::Empty => None,
    };
    v1::Disk { source, kind: disk.kind.number(), boot_order: disk.boot_order }
}

fn show_interface(interface: &Interface, lookup: &dyn Lookup) -> v1::Interface {
    v1::Interface {
        network: show_id(lookup, Kind::Network, interface.network),
        addresses: interface.wanted.iter().map(ToString::to_string).collect(),
        mac: interface.mac.clone(),
    }
}

fn show_status(vm: &Vm, lookup: &dyn Lookup) -> v1::VmStatus {
    let (spec, status) = (&vm.spec, &vm.status);
    // What the running domain has; before it runs, what it will have.
    let seen = status.seen.as_ref().filter(|seen| seen.vcpus > 0);
    let volumes = spec.disks.iter().map(|disk| match disk.source {
        DiskSource::Volume { volume, .. } => show_id(lookup, Kind::Volume, volume),
        DiskSource::Iso { .. } | DiskSource::Empty => String::new(),
    });
    let interfaces = spec.interfaces.iter().map(|interface| v1::InterfaceStatus {
        network: show_id(lookup, Kind::Network, interface.network),
        mac: interface.mac.clone(),
        addresses: interface.addresses.iter().map(ToString::to_string).collect(),
    });
    v1::VmStatus {
        phase: vm.phase_number(),
        conditions: metadata::conditions(&status.conditions),
        observed_generation: status.observed_generation,
        power: spec.power.number(),
        node: status.node.map(|id| show_id(lookup, Kind::Node, id)).unwrap_or_default(),
        incarnation: status.incarnation,
        platform: status.platform.as_ref().map(agent::show_platform),
        vcpus: seen.map_or(spec.vcpus, |seen| seen.vcpus),
        memory_mib: seen.map_or(spec.memory_mib, |seen| seen.memory_mib),
        interfaces: interfaces.collect(),
        volumes: volumes.collect(),
        guest: Some(agent::show_guest(&status.guest)),
        started_time: status.started_time.and_then(metadata::timestamp),
        restarts: status.restarts,
        // It depends on the VM's node and pools, which the caller looks at.
        protected: false,
        evacuations: status.evacuations.iter().map(show_evacuation).collect(),
    }
}

fn show_evacuation(evacuation: &Evacuation) -> v1::Evacuation {
    v1::Evacuation {
        time: metadata::timestamp(evacuation.time),
        from: evacuation.from.to_string(),
        to: evacuation.to.to_string(),
        incarnation: evacuation.incarnation,
        proof: Some(agent::show_proof(&evacuation.proof)),
    }
}
