//! Updates of VMs. What is fixed at creation is compared with what is, as far as it can be told: a template is
//! taken as equal to the volume that was made from it, and wanted addresses to those that were given, so that the
//! manifest that made a VM can be applied again.

use pbjson_types::FieldMask;
use tamdao_proto::v1;
use tamdao_proto::v1::disk::Source;

use super::held::Held;
use super::update::{self, Update};
use super::vm::{DiskRequest, InterfaceRequest, VmRequest, WantedDisk, read_spec};
use super::{Checks, Invalid, Shown, Violation, check};
use crate::lookup::Lookup;
use crate::sealed::Unsealed;
use crate::vm::{Disk, DiskSource, Interface, Vm};
use crate::volume::Volume;
use crate::{FlavorId, Kind, Scope, VolumeId, limits};

/// A VM with the masked fields of a request, before its user data is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdatedVm {
    pub vm: Vm,
    pub user_data: UserDataChange,
    /// Templates that the request repeats for volumes that were made from them, to be compared with the volumes
    /// by [`check_template`].
    pub templates: Vec<RepeatedTemplate>,
}

impl UpdatedVm {
    /// The same, once the caller has opened the seal and found the very text that the request sets: a manifest
    /// that is applied again then changes nothing.
    pub fn keep_user_data(mut self, before: &Vm) -> Self {
        self.user_data = UserDataChange::Keep;
        self.vm.meta.generation = before.meta.generation;
        update::raise(&mut self.vm.meta, self.vm.spec != before.spec);
        self
    }
}

/// A template of the request, and the volume that was once made from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatedTemplate {
    /// The place in spec.disks.
    pub disk: usize,
    pub volume: VolumeId,
    /// 0 says nothing.
    pub size_mib: u32,
}

/// What is wrong with a repeated template: an update of the VM does not make its volumes larger.
pub fn check_template(template: &RepeatedTemplate, volume: &Volume) -> Option<Violation> {
    let (wanted, is) = (template.size_mib, volume.spec.size_mib);
    (wanted != 0 && wanted != is).then(|| {
        let field = format!("vm.spec.disks[{}].create.size_mib", template.disk);
        let (wanted, is, name) = (check::grouped(wanted), check::grouped(is), &volume.meta.name);
        let message = format!("is {wanted}, the volume {name} has {is}; update the volume to make it larger");
        Violation::new(field, message)
    })
}

/// What becomes of the user data. The generation is raised for a change already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserDataChange {
    Keep,
    Set(Unsealed),
    Clear,
}

/// What a request that gives the whole spec may leave out.
const FIXED: [&str; 13] = [
    "spec.flavor",
    "spec.vcpus",
    "spec.memory_mib",
    "spec.disks",
    "spec.interfaces",
    "spec.firmware",
    "spec.os_type",
    "spec.graphics",
    "spec.secure_boot",
    "spec.tpm",
    "spec.direct_boot",
    "spec.hostname",
    "spec.node",
];

const ANOTHER: &str = "make another VM with it";
const RESIZE: &str = "ResizeVm changes the size";

impl Vm {
    /// This VM with the masked fields of the request; a mask of none takes display_name, labels and all of the
    /// spec that can change. Keys and user data take effect at the next cold start, what decides the place at the next
    /// placement.
    pub fn updated(
        &self,
        proto: v1::Vm,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<UpdatedVm, Invalid> {
        let held = Held::new(lookup, references(self));
        let given = proto.spec.clone().unwrap_or_default();
        let update = update::begin(self, proto, mask, &FIXED, &held)?;
        let clears_user_data = update.names("spec.user_data");
        let Update { proto, mut meta, mut checks, .. } = update;
        let mut merged = proto.spec.unwrap_or_default();
        // A size given beside the flavor that it is shown for is compared here, not refused as a contradiction.
        check_size(&mut checks, self, &mut merged);
        let shown = self.show(0, &held).spec.unwrap_or_default();
        let templates = replace_templates(self, &mut merged.disks, shown.disks);
        let wanted = read_spec(&mut checks, &meta, self.agency, merged);
        check_fixed(&mut checks, self, &wanted);
        let user_data = match wanted.user_data {
            Some(text) => UserDataChange::Set(text),
            None if clears_user_data && given.user_data.is_empty() && self.spec.user_data.is_some() => {
                UserDataChange::Clear
            }
            None => UserDataChange::Keep,
        };
        let mut spec = self.spec.clone();
        spec.run = wanted.run;
        spec.delete_protection = wanted.delete_protection;
        spec.ssh_keys = wanted.ssh_keys;
        spec.node_labels = wanted.node_labels;
        spec.forbidden_node_labels = wanted.forbidden_node_labels;
        spec.priority = wanted.priority;
        spec.isolation_class = wanted.isolation_class;
        spec.placement_groups = wanted.placement_groups;
        spec.on_node_loss = wanted.on_node_loss;
        spec.maintenance = wanted.maintenance;
        update::raise(&mut meta, spec != self.spec || user_data != UserDataChange::Keep);
        let vm = Self { meta, agency: self.agency, spec, status: self.status.clone() };
        checks.finish(UpdatedVm { vm, user_data, templates })
    }
}

/// All that a VM refers to, which may have gone or been renamed.
fn references(vm: &Vm) -> Vec<(Kind, uuid::Uuid)> {
    let mut ids: Vec<_> = vm.volumes().map(|id| (Kind::Volume, id.0)).collect();
    ids.extend(vm.images().map(|id| (Kind::Image, id.0)));
    ids.extend(vm.spec.interfaces.iter().map(|i| (Kind::Network, i.network.0)));
    ids.extend(vm.spec.flavor.map(|id| (Kind::Flavor, id.0)));
    ids.extend(vm.spec.pin.map(|id| (Kind::Node, id.0)));
    ids.extend(vm.spec.placement_groups.iter().map(|id| (Kind::PlacementGroup, id.0)));
    ids
}

/// Puts the volume that was made in place of its template, whose image and pool may have gone since.
fn replace_templates(vm: &Vm, given: &mut [v1::Disk], shown: Vec<v1::Disk>) -> Vec<RepeatedTemplate> {
    let mut repeated = Vec::new();
    for (disk, ((is, given), shown)) in vm.spec.disks.iter().zip(given).zip(shown).enumerate() {
        if let DiskSource::Volume { volume, created: true } = is.source
            && let Some(Source::Create(template)) = &given.source
        {
            repeated.push(RepeatedTemplate { disk, volume, size_mib: template.size_mib });
            given.source = shown.source;
        }
    }
    repeated
}

/// The size may be given in either form, if it is what the VM has.
fn check_size(checks: &mut Checks<'_>, vm: &Vm, merged: &mut v1::VmSpec) {
    let shown_flavor = vm.spec.flavor.is_some();
    for (field, now, given) in [
        ("spec.vcpus", vm.spec.vcpus, &mut merged.vcpus),
        ("spec.memory_mib", vm.spec.memory_mib, &mut merged.memory_mib),
    ] {
        if *given != now && !(shown_flavor && *given == 0) {
            checks.wrong(field, format!("is not changed by an update; {RESIZE}"));
        }
        *given = if shown_flavor { 0 } else { now };
    }
    if !shown_flavor && !merged.flavor.is_empty() {
        checks.wrong("spec.flavor", format!("is not changed by an update; {RESIZE}"));
        merged.flavor.clear();
    } else if shown_flavor && merged.flavor.is_empty() {
        // The mask named the flavor and left it empty.
        checks.wrong("spec.flavor", format!("is not changed by an update; {RESIZE}"));
        merged.flavor = vm.spec.flavor.map(|id| id.to_string()).unwrap_or_default();
    }
}

fn check_fixed(checks: &mut Checks<'_>, vm: &Vm, wanted: &VmRequest) {
    let spec = &vm.spec;
    if spec.flavor != wanted.flavor && spec.flavor.is_some() {
        checks.wrong("spec.flavor", format!("is not changed by an update; {RESIZE}"));
    }
    let disks = spec.disks.len() == wanted.disks.len()
        && spec.disks.iter().zip(&wanted.disks).all(|(disk, wanted)| same_disk(disk, wanted));
    checks.fixed(
        "spec.disks",
        &true,
        &disks,
        "the disks of a VM are fixed at creation (a volume grows by its own update)",
    );
    let interfaces = spec.interfaces.len() == wanted.interfaces.len()
        && spec.interfaces.iter().zip(&wanted.interfaces).all(|(is, wanted)| same_interface(is, wanted));
    checks.fixed("spec.interfaces", &true, &interfaces, "the interfaces of a VM are fixed at creation");
    checks.fixed("spec.firmware", &spec.firmware, &wanted.firmware, ANOTHER);
    checks.fixed("spec.os_type", &spec.os_type, &wanted.os_type, ANOTHER);
    checks.fixed("spec.graphics", &spec.graphics, &wanted.graphics, ANOTHER);
    checks.fixed("spec.secure_boot", &spec.secure_boot, &wanted.secure_boot, ANOTHER);
    checks.fixed("spec.tpm", &spec.tpm, &wanted.tpm, ANOTHER);
    checks.fixed("spec.direct_boot", &spec.direct_boot, &wanted.direct_boot, ANOTHER);
    checks.fixed("spec.hostname", &spec.hostname, &wanted.hostname, "change it inside the guest");
    checks.fixed("spec.numa_cells", &spec.numa_cells, &wanted.numa_cells, ANOTHER);
    checks.fixed("spec.node", &spec.pin, &wanted.pin, "a pin is set at creation only");
}

fn same_disk(disk: &Disk, wanted: &WantedDisk) -> bool {
    let source = match (&disk.source, &wanted.source) {
        (DiskSource::Volume { volume, .. }, DiskRequest::Volume(wanted)) => volume == wanted,
        (DiskSource::Iso { image }, DiskRequest::Iso(wanted)) => image == wanted,
        (DiskSource::Empty, DiskRequest::Empty) => true,
        (
            DiskSource::Volume { .. } | DiskSource::Iso { .. } | DiskSource::Empty,
            DiskRequest::Volume(_) | DiskRequest::Create { .. } | DiskRequest::Iso(_) | DiskRequest::Empty,
        ) => false,
    };
    source && disk.kind == wanted.kind && disk.boot_order == wanted.boot_order
}

fn same_interface(interface: &Interface, wanted: &InterfaceRequest) -> bool {
    let has = |address: &std::net::IpAddr| {
        interface.wanted.contains(address) || interface.addresses.iter().any(|net| net.addr() == *address)
    };
    interface.network == wanted.network
        && wanted.mac.as_ref().is_none_or(|mac| *mac == interface.mac)
        && wanted.wanted.iter().all(has)
}

/// The size that a VM shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    Flavor(FlavorId),
    Size { vcpus: u32, memory_mib: u32 },
}

/// Reads a request for another size.
pub fn read_resize(request: &v1::ResizeVmRequest, lookup: &dyn Lookup) -> Result<Resize, Invalid> {
    let size = Resize::Size { vcpus: request.vcpus, memory_mib: request.memory_mib };
    let mut violations = Vec::new();
    let flavor = match request.flavor.as_str() {
        "" => None,
        name => {
            let found = lookup.id(Kind::Flavor, Scope::Cluster, name);
            if found.is_none() {
                let name = super::syntax::quote(name);
                violations.push(Violation::new("flavor", format!("no flavor named {name}")));
            }
            found
        }
    };
    let numbers =
        [("vcpus", request.vcpus, limits::VCPUS), ("memory_mib", request.memory_mib, limits::MEMORY_MIB)];
    for (field, number, range) in numbers {
        let (from, to) = (range.start(), range.end());
        if request.flavor.is_empty() && !range.contains(&number) {
            let message = format!("is {number}; {from} to {to} are allowed, or 0 with a flavor");
            violations.push(Violation::new(field, message));
        } else if !request.flavor.is_empty() && number != 0 {
            violations.push(Violation::new(field, "must be 0 with a flavor; leave one of them out"));
        }
    }
    if violations.is_empty() {
        Ok(flavor.map_or(size, |id| Resize::Flavor(FlavorId(id))))
    } else {
        Err(Invalid { violations })
    }
}

/// How long ACPI may take, seconds: the default for 0.
pub fn read_deadline(deadline_s: u32) -> Result<u32, Invalid> {
    match deadline_s {
        0 => Ok(limits::STOP_DEADLINE_DEFAULT_S),
        1..=limits::STOP_DEADLINE_S => Ok(deadline_s),
        _ => {
            let message = format!("is {deadline_s}; {} at most, or 0 for 120", limits::STOP_DEADLINE_S);
            Err(Violation::new("deadline_s", message).into())
        }
    }
}
