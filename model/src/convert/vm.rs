//! VMs as requests write them. A request names volumes to make and addresses to find, which only a transaction can
//! do: so reading gives a [`VmRequest`] with every field checked and every reference resolved, and the caller
//! makes the [`Vm`] of it. Not checked here, for it needs other records: the kind of an image, whether a volume is
//! free, whether an address lies in the network, and whether the caller may pin a VM.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tamdao_proto::v1;
use tamdao_proto::v1::disk::Source as Wire;
use uuid::Uuid;

use super::{Checks, Invalid, New, metadata, syntax, volume};
use crate::lookup::Lookup;
use crate::range::Family;
use crate::sealed::{Sealed, Unsealed};
use crate::vm::{
    DirectBoot, Disk, DiskKind, Firmware, Graphics, Interface, MaintenancePolicy, OnNodeLoss, OsType, Power,
    RunPolicy, StopMode, Vm, VmSpec, VmStatus,
};
use crate::{
    AgencyId, FlavorId, ImageId, Kind, Meta, Name, NetworkId, NodeId, PlacementGroupId, PoolId, Scope,
    TimeMs, VolumeId, limits,
};

/// A checked request for a VM, with its disks and interfaces still to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRequest {
    pub name: Name,
    pub display_name: String,
    pub labels: BTreeMap<String, String>,
    /// With a flavor both sizes are 0: its record has them.
    pub flavor: Option<FlavorId>,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disks: Vec<WantedDisk>,
    pub interfaces: Vec<InterfaceRequest>,
    pub firmware: Firmware,
    pub os_type: OsType,
    pub graphics: Graphics,
    pub secure_boot: bool,
    pub tpm: bool,
    pub direct_boot: Option<DirectBoot>,
    pub ssh_keys: Vec<String>,
    /// To be sealed before it is stored.
    pub user_data: Option<Unsealed>,
    pub run: RunPolicy,
    pub delete_protection: bool,
    pub hostname: Name,
    pub pin: Option<NodeId>,
    pub node_labels: BTreeMap<String, String>,
    pub forbidden_node_labels: BTreeMap<String, String>,
    pub priority: u32,
    pub isolation_class: Option<Name>,
    pub numa_cells: u32,
    pub placement_groups: Vec<PlacementGroupId>,
    pub on_node_loss: OnNodeLoss,
    pub maintenance: MaintenancePolicy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedDisk {
    pub source: DiskRequest,
    pub kind: DiskKind,
    pub boot_order: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskRequest {
    Volume(VolumeId),
    Create {
        /// 0 means the image's size.
        size_mib: u32,
        image: Option<ImageId>,
        /// None means the default pool, see [`super::default_pool`].
        pool: Option<PoolId>,
        keep_on_delete: bool,
    },
    Iso(ImageId),
    /// An empty cdrom.
    Empty,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceRequest {
    pub network: NetworkId,
    /// At most one of each family.
    pub wanted: Vec<IpAddr>,
    /// Six bytes in hex with colons, lower case; none makes one.
    pub mac: Option<String>,
}

/// What only the transaction knows of a new VM.
#[derive(Debug, Clone)]
pub struct Made {
    pub flavor_class: Option<Name>,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
    pub user_data: Option<Sealed>,
}

impl VmRequest {
    /// The VM, once its disks and interfaces are made.
    pub fn into_vm(self, id: Uuid, agency: AgencyId, now: TimeMs, made: Made) -> Vm {
        let mut meta = Meta::new(id, self.name, now);
        meta.display_name = self.display_name;
        meta.labels = self.labels;
        let spec = VmSpec {
            flavor: self.flavor,
            flavor_class: made.flavor_class,
            vcpus: made.vcpus,
            memory_mib: made.memory_mib,
            disks: made.disks,
            interfaces: made.interfaces,
            firmware: self.firmware,
            os_type: self.os_type,
            graphics: self.graphics,
            secure_boot: self.secure_boot,
            tpm: self.tpm,
            direct_boot: self.direct_boot,
            ssh_keys: self.ssh_keys,
            user_data: made.user_data,
            run: self.run,
            delete_protection: self.delete_protection,
            hostname: self.hostname,
            pin: self.pin,
            node_labels: self.node_labels,
            forbidden_node_labels: self.forbidden_node_labels,
            priority: self.priority,
            isolation_class: self.isolation_class,
            placement_groups: self.placement_groups,
            on_node_loss: self.on_node_loss,
            numa_cells: self.numa_cells,
            maintenance: self.maintenance,
            // With `run` STOPPED it stays off all the same, and starts when that is changed.
            power: Power::On,
            stop: StopMode::default(),
            action: None,
            deleting: false,
        };
        Vm { meta, agency, spec, status: VmStatus::default() }
    }
}

/// Reads a create request's VM.
pub fn read(proto: v1::Vm, agency: AgencyId, lookup: &dyn Lookup) -> Result<VmRequest, Invalid> {
    let mut checks = Checks::new(Kind::Vm, lookup);
    // Id and time are the caller's, in `into_vm`: the metadata is read for what users write.
    let new = New { id: Uuid::nil(), scope: Scope::Agency(agency), now: TimeMs::default() };
    let meta = metadata::read(&mut checks, proto.metadata, &new);
    let spec = read_spec(&mut checks, &meta, agency, proto.spec.unwrap_or_default());
    checks.finish(spec)
}

/// Reads the spec; used for updates too, with what is shown put under the request.
pub(super) fn read_spec(
    checks: &mut Checks<'_>,
    meta: &Meta,
    agency: AgencyId,
    spec: v1::VmSpec,
) -> VmRequest {
    let flavor = read_size(checks, &spec);
    let disks = read_disks(checks, agency, spec.disks);
    let interfaces = read_interfaces(checks, agency, spec.interfaces);
    let firmware = checks.choice("spec.firmware", spec.firmware, Some(Firmware::Bios));
    let os_type = checks.choice("spec.os_type", spec.os_type, Some(OsType::Linux));
    let graphics = checks.choice("spec.graphics", spec.graphics, Some(Graphics::None));
    if spec.secure_boot && firmware != Firmware::Uefi {
        checks.wrong("spec.secure_boot", "needs firmware FIRMWARE_UEFI");
    }
    let direct_boot = spec.direct_boot.map(|boot| read_direct_boot(checks, agency, boot));
    let ssh_keys = read_ssh_keys(checks, &spec.ssh_keys);
    if !spec.user_data.is_empty() {
        checks.ok("spec.user_data", syntax::user_data(&spec.user_data));
    }
    let run = checks.choice("spec.run", spec.run, Some(RunPolicy::OnFailure));
    let hostname = match spec.hostname.as_str() {
        "" => meta.name.clone(),
        text => checks.name("spec.hostname", text),
    };
    let pin = checks.id_if_given("spec.node", Kind::Node, &[Scope::Cluster], &spec.node);
    let node_labels = checks.labels("spec.node_labels", spec.node_labels);
    let forbidden_node_labels = checks.labels("spec.forbidden_node_labels", spec.forbidden_node_labels);
    check_labels_agree(checks, &node_labels, &forbidden_node_labels);
    let priority = checks.number("spec.priority", spec.priority, limits::PRIORITY, "");
    let isolation_class = match spec.isolation_class.as_str() {
        "" => None,
        text => Some(checks.name("spec.isolation_class", text)),
    };
    let placement_groups = read_groups(checks, agency, &spec.placement_groups);
    let on_node_loss = checks.choice("spec.on_node_loss", spec.on_node_loss, Some(OnNodeLoss::Evacuate));
    let numa_cells = checks.number("spec.numa_cells", spec.numa_cells, limits::NUMA_CELLS, "");
    let maintenance = checks.choice("spec.maintenance", spec.maintenance, Some(MaintenancePolicy::Migrate));
    VmRequest {
        name: meta.name.clone(),
        display_name: meta.display_name.clone(),
        labels: meta.labels.clone(),
        flavor,
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        disks,
        interfaces,
        firmware,
        os_type,
        graphics,
        secure_boot: spec.secure_boot,
        tpm: spec.tpm,
        direct_boot,
        ssh_keys,
        user_data: (!spec.user_data.is_empty()).then_some(Unsealed(spec.user_data)),
        run,
        delete_protection: spec.delete_protection,
        hostname,
        pin,
        node_labels,
        forbidden_node_labels,
        priority,
        isolation_class,
        placement_groups,
        on_node_loss,
        numa_cells,
        maintenance,
    }
}

fn read_size(checks: &mut Checks<'_>, spec: &v1::VmSpec) -> Option<FlavorId> {
    let flavor = checks.id_if_given("spec.flavor", Kind::Flavor, &[Scope::Cluster], &spec.flavor);
    let size =
        [("spec.vcpus", spec.vcpus, limits::VCPUS), ("spec.memory_mib", spec.memory_mib, limits::MEMORY_MIB)];
    for (field, number, range) in size {
        if flavor.is_none() {
            checks.number(field, number, range, "or 0 with a flavor");
        } else if number != 0 {
            checks.wrong(field, "must be 0 with a flavor; leave one of them out");
        }
    }
    flavor
}

fn read_disks(checks: &mut Checks<'_>, agency: AgencyId, disks: Vec<v1::Disk>) -> Vec<WantedDisk> {
    if !checks.count("spec.disks", disks.len(), limits::DISKS) {
        return Vec::new();
    }
    let (mut volumes, mut orders) = (BTreeSet::new(), BTreeSet::new());
    let mut read = Vec::new();
    for (i, disk) in disks.into_iter().enumerate() {
        let at = format!("spec.disks[{i}]");
        let kind = checks.choice(&format!("{at}.kind"), disk.kind, Some(DiskKind::Disk));
        let source = read_source(checks, &at, agency, kind, disk.source);
        if let DiskRequest::Volume(volume) = source
            && volume != VolumeId(Uuid::nil())
            && !volumes.insert(volume)
        {
            checks.wrong(&format!("{at}.volume"), "is given twice; each volume can be attached once");
        }
        let order_at = format!("{at}.boot_order");
        if disk.boot_order != 0 {
            let most = u32::try_from(limits::DISKS).unwrap_or(u32::MAX);
            checks.number(&order_at, disk.boot_order, 1..=most, "or 0 for the order of the list");
            if !orders.insert(disk.boot_order) {
                let message = format!("{} is given twice; each disk needs its own place", disk.boot_order);
                checks.wrong(&order_at, message);
            }
        }
        read.push(WantedDisk { source, kind, boot_order: disk.boot_order });
    }
    read
}

fn read_source(
    checks: &mut Checks<'_>,
    at: &str,
    agency: AgencyId,
    kind: DiskKind,
    source: Option<Wire>,
) -> DiskRequest {
    let own = Scope::Agency(agency);
    let cdrom = kind == DiskKind::Cdrom;
    let kind_at = format!("{at}.kind");
    match source {
        Some(Wire::Volume(name)) => {
            if cdrom {
                checks.wrong(&kind_at, "is a cdrom, which takes an iso or nothing, not a volume");
            }
            DiskRequest::Volume(checks.id(&format!("{at}.volume"), Kind::Volume, &[own], &name))
        }
        Some(Wire::Create(template)) => {
            if cdrom {
                checks.wrong(&kind_at, "is a cdrom, which takes an iso or nothing, not a new volume");
            }
            let at = format!("{at}.create");
            let scopes = [own, Scope::Cluster];
            let image = checks.id_if_given(&format!("{at}.image"), Kind::Image, &scopes, &template.image);
            volume::check_size(
                checks,
                &format!("{at}.size_mib"),
                template.size_mib,
                !template.image.is_empty(),
            );
            let pool_at = format!("{at}.pool");
            let pool = checks.id_if_given(&pool_at, Kind::Pool, &[Scope::Cluster], &template.pool);
            if template.pool.is_empty() && super::default_pool(checks.lookup()).is_none() {
                let name = volume::DEFAULT_POOL;
                checks.wrong(
                    &pool_at,
                    format!("must be given: there is no pool named {name:?} to take instead"),
                );
            }
            let (size_mib, keep_on_delete) = (template.size_mib, template.keep_on_delete);
            DiskRequest::Create { size_mib, image, pool, keep_on_delete }
        }
        Some(Wire::Iso(name)) => {
            if !cdrom {
                checks.wrong(&kind_at, "must be DISK_KIND_CDROM for an iso");
            }
            let image = checks.id(&format!("{at}.iso"), Kind::Image, &[own, Scope::Cluster], &name);
            DiskRequest::Iso(image)
        }
        None if cdrom => DiskRequest::Empty,
        None => {
            checks.wrong(at, "must say what it is: volume, create or iso (or kind DISK_KIND_CDROM, empty)");
            DiskRequest::Empty
        }
    }
}

fn read_interfaces(
    checks: &mut Checks<'_>,
    agency: AgencyId,
    interfaces: Vec<v1::Interface>,
) -> Vec<InterfaceRequest> {
    if !checks.count("spec.interfaces", interfaces.len(), limits::INTERFACES) {
        return Vec::new();
    }
    let (mut macs, mut read) = (BTreeSet::new(), Vec::new());
    for (i, interface) in interfaces.into_iter().enumerate() {
        let at = format!("spec.interfaces[{i}]");
        let scopes = [Scope::Agency(agency), Scope::Cluster];
        let network = checks.id(&format!("{at}.network"), Kind::Network, &scopes, &interface.network);
        let wanted = read_wanted(checks, &format!("{at}.addresses"), &interface.addresses);
        let mac_at = format!("{at}.mac");
        let mac = match interface.mac.as_str() {
            "" => None,
            text => checks.ok(&mac_at, syntax::mac(text)),
        };
        if let Some(mac) = &mac
            && !macs.insert(mac.clone())
        {
            checks.wrong(&mac_at, format!("{mac} is given twice; each interface needs its own"));
        }
        read.push(InterfaceRequest { network, wanted, mac });
    }
    read
}

fn read_wanted(checks: &mut Checks<'_>, at: &str, texts: &[String]) -> Vec<IpAddr> {
    if !checks.count(at, texts.len(), 2) {
        return Vec::new();
    }
    let (mut families, mut wanted) = (BTreeSet::new(), Vec::new());
    for (i, text) in texts.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let Some(address) = checks.ok(&at, syntax::address(text)) else { continue };
        if !families.insert(Family::of(address)) {
            checks.wrong(&at, "is a second address of its family; one IPv4 and one IPv6 are allowed");
        }
        wanted.push(address);
    }
    wanted
}

fn read_direct_boot(checks: &mut Checks<'_>, agency: AgencyId, boot: v1::DirectBoot) -> DirectBoot {
    let scopes = [Scope::Agency(agency), Scope::Cluster];
    let kernel = checks.id("spec.direct_boot.kernel", Kind::Image, &scopes, &boot.kernel);
    let initrd = checks.id_if_given("spec.direct_boot.initrd", Kind::Image, &scopes, &boot.initrd);
    checks.ok("spec.direct_boot.command_line", syntax::command_line(&boot.command_line));
    DirectBoot { kernel, initrd, command_line: boot.command_line }
}

/// A label that is both required and forbidden fits no node.
fn check_labels_agree(
    checks: &mut Checks<'_>,
    required: &BTreeMap<String, String>,
    forbidden: &BTreeMap<String, String>,
) {
    for (key, value) in forbidden.iter().filter(|(key, value)| required.get(*key) == Some(*value)) {
        let at = format!("spec.forbidden_node_labels[{}]", syntax::quote(key));
        let label = syntax::quote(&format!("{key}={value}"));
        checks.wrong(&at, format!("forbids {label}, which spec.node_labels requires; no node has both"));
    }
}

fn read_groups(checks: &mut Checks<'_>, agency: AgencyId, names: &[String]) -> Vec<PlacementGroupId> {
    const FIELD: &str = "spec.placement_groups";
    if !checks.count(FIELD, names.len(), limits::PLACEMENT_GROUPS) {
        return Vec::new();
    }
    let mut groups = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let at = format!("{FIELD}[{i}]");
        let group: PlacementGroupId = checks.id(&at, Kind::PlacementGroup, &[Scope::Agency(agency)], name);
        if group != PlacementGroupId(Uuid::nil()) && groups.contains(&group) {
            checks.wrong(&at, "is given twice; a VM is a member of a group once");
        }
        groups.push(group);
    }
    groups
}

fn read_ssh_keys(checks: &mut Checks<'_>, keys: &[String]) -> Vec<String> {
    if !checks.count("spec.ssh_keys", keys.len(), limits::SSH_KEYS) {
        return Vec::new();
    }
    let key = |(i, key): (usize, &String)| checks.ok(&format!("spec.ssh_keys[{i}]"), syntax::ssh_key(key));
    keys.iter().enumerate().filter_map(key).collect()
}
