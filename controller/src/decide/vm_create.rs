//! Making a VM: its size, volumes, addresses and usage, all in the transaction that makes its record. The node is
//! chosen later.

use std::net::IpAddr;

use ipnet::IpNet;
use tamdao_model::address::{Address, Holder};
use tamdao_model::convert::default_pool;
use tamdao_model::convert::vm::{DiskRequest, InterfaceRequest, Made, VmRequest, WantedDisk};
use tamdao_model::event::Severity;
use tamdao_model::image::{Image, ImageKind, ImagePhase};
use tamdao_model::network::{Network, Subnet};
use tamdao_model::quota::Amounts;
use tamdao_model::range::{self, Family};
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{Disk, DiskSource, Interface, Vm};
use tamdao_model::volume::{Volume, VolumePhase, VolumeSpec, VolumeStatus};
use tamdao_model::{AgencyId, ImageId, Kind, Meta, Name, NetworkId, Scope, VmId, limits};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::Code;
use uuid::Uuid;

use super::vm_power::Size;
use super::{event, quota, recovery};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Networks up to this size are filled from below, larger ones from a scattered place, so that finding a free
/// address does not walk all that are taken.
const WALKED_FROM_BELOW: u128 = 1_024;

/// Drafts a VM with all that belongs to it.
///
/// # Errors
/// What is wrong with the request, in the light of the other records.
pub fn create(
    draft: &mut Draft,
    moment: &mut Moment,
    request: VmRequest,
    agency: AgencyId,
    user_data: Option<Sealed>,
    actor: &str,
) -> Result<Vm, Refusal> {
    if draft.view().vms.id_of(Scope::Agency(agency), &request.name).is_some() {
        return Err(Refusal::exists(Kind::Vm, request.name.as_str()));
    }
    let size = Size::of(request.flavor, request.vcpus, request.memory_mib);
    let size = size.resolve(draft)?;
    check_cells(request.numa_cells, &size)?;
    check_boot_images(draft.view(), &request, agency)?;
    let id: Uuid = moment.id();
    let mut disks = Vec::with_capacity(request.disks.len());
    let mut amounts = Amounts::default();
    for (at, wanted) in request.disks.iter().enumerate() {
        let field = format!("vm.spec.disks[{at}]");
        let source =
            make_disk(draft, moment, &request.name, VmId(id), agency, at, wanted, &field, size.memory_mib)?;
        if let DiskSource::Volume { volume, created: true } = source {
            amounts =
                amounts.plus(&draft.view().volumes.get(volume).map(|row| row.amounts()).unwrap_or_default());
        }
        disks.push(Disk { source, kind: wanted.kind, boot_order: wanted.boot_order });
    }
    let mut interfaces = Vec::with_capacity(request.interfaces.len());
    for (at, wanted) in request.interfaces.iter().enumerate() {
        let field = format!("vm.spec.interfaces[{at}]");
        let interface = make_interface(draft, moment, VmId(id), agency, at, wanted, &field)?;
        interfaces.push(interface);
    }
    let Size { flavor: _, class: flavor_class, vcpus, memory_mib } = size;
    let made = Made { flavor_class, vcpus, memory_mib, disks, interfaces, user_data };
    let vm = request.into_vm(id, agency, moment.now, made);
    quota::count(draft, agency, &Amounts::default(), &amounts.plus(&vm.amounts()))?;
    event(draft, moment, &vm, Severity::Info, "Created", "created, waits for a node", actor);
    // Its phase, Pending, is that of every new status.
    draft.create(vm.clone());
    Ok(vm)
}

/// An image that this agency may use, of the right kind and ready.
fn usable_image(
    view: &View,
    id: ImageId,
    kind: ImageKind,
    agency: AgencyId,
    field: &str,
) -> Result<Image, Refusal> {
    let visible = view.images.get(id).filter(|image| image.agency.is_none_or(|owner| owner == agency));
    let image = visible.ok_or_else(|| Refusal::field(field, "names no image that this agency may use"))?;
    if image.spec.kind != kind {
        let (is, needs) = (image.spec.kind, kind);
        return Err(Refusal::field(field, format!("is an image of kind {is:?}, {needs:?} is needed")));
    }
    if image.status.phase != ImagePhase::Available {
        let name = image.meta.name.as_str();
        return Err(Refusal::precondition("ImageNotReady", format!("image {name:?} is not available yet"))
            .hint(format!("tamdao image get {name} tells how far it is")));
    }
    Ok((*image.value).clone())
}

/// A guest lies on its cells in equal parts.
fn check_cells(cells: u32, size: &Size) -> Result<(), Refusal> {
    let splits = |amount: u32| amount.is_multiple_of(cells.max(1));
    if splits(size.vcpus) && splits(size.memory_mib) {
        return Ok(());
    }
    let message =
        format!("is {cells}, and {} vCPUs and {} MiB are not split evenly", size.vcpus, size.memory_mib);
    Err(Refusal::field("vm.spec.numa_cells", message))
}

fn check_boot_images(view: &View, request: &VmRequest, agency: AgencyId) -> Result<(), Refusal> {
    let Some(boot) = &request.direct_boot else { return Ok(()) };
    usable_image(view, boot.kernel, ImageKind::Kernel, agency, "vm.spec.direct_boot.kernel")?;
    if let Some(initrd) = boot.initrd {
        usable_image(view, initrd, ImageKind::Initrd, agency, "vm.spec.direct_boot.initrd")?;
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "all of it is the context of one disk, and it is called once")]
fn make_disk(
    draft: &mut Draft,
    moment: &mut Moment,
    vm_name: &Name,
    vm: VmId,
    agency: AgencyId,
    at: usize,
    wanted: &WantedDisk,
    field: &str,
    memory_mib: u32,
) -> Result<DiskSource, Refusal> {
    match &wanted.source {
        DiskRequest::Empty => Ok(DiskSource::Empty),
        DiskRequest::Iso(image) => {
            usable_image(draft.view(), *image, ImageKind::Iso, agency, &format!("{field}.iso"))?;
            Ok(DiskSource::Iso { image: *image })
        }
        DiskRequest::Volume(id) => {
            let field = format!("{field}.volume");
            let row = draft.view().volumes.get(*id).filter(|volume| volume.agency == agency);
            let row = row.ok_or_else(|| Refusal::field(&field, "names no volume of this agency"))?;
            let name = row.meta.name.as_str();
            if row.status.vm.is_some() {
                return Err(Refusal::precondition(
                    "VolumeInUse",
                    format!("volume {name:?} is held by another VM"),
                ));
            }
            if row.spec.deleting {
                return Err(Refusal::precondition("Deleting", format!("volume {name:?} is being deleted")));
            }
            let mut volume = (*row.value).clone();
            volume.status.vm = Some(vm);
            draft.put(volume);
            Ok(DiskSource::Volume { volume: *id, created: false })
        }
        DiskRequest::Create { size_mib, image, pool, keep_on_delete } => {
            let field = format!("{field}.create");
            let mut size = *size_mib;
            if let Some(image) = image {
                let image =
                    usable_image(draft.view(), *image, ImageKind::Disk, agency, &format!("{field}.image"))?;
                size = image_size(&image, size, memory_mib, &field)?;
            }
            let pool = pool.or_else(|| default_pool(draft.view())).ok_or_else(|| {
                Refusal::field(format!("{field}.pool"), "must be given: there is no pool named default")
            })?;
            let name = volume_name(draft.view(), agency, vm_name, at);
            let volume = Volume {
                meta: Meta::new(moment.id::<Uuid>(), name, moment.now),
                agency,
                spec: VolumeSpec {
                    pool,
                    size_mib: size,
                    image: *image,
                    keep_on_delete: *keep_on_delete,
                    deleting: false,
                },
                status: VolumeStatus { phase: VolumePhase::Pending, vm: Some(vm), ..VolumeStatus::default() },
            };
            let id = volume.id();
            draft.create(volume);
            Ok(DiskSource::Volume { volume: id, created: true })
        }
    }
}

/// The size of a disk from an image: at least the image's own.
fn image_size(image: &Image, wanted_mib: u32, memory_mib: u32, field: &str) -> Result<u32, Refusal> {
    let least = image.status.virtual_size_mib;
    let name = image.meta.name.as_str();
    if memory_mib < image.spec.min_memory_mib {
        let needs = image.spec.min_memory_mib;
        return Err(Refusal::field(
            "vm.spec.memory_mib",
            format!("is {memory_mib}, image {name:?} needs {needs}"),
        ));
    }
    match wanted_mib {
        0 => Ok(least),
        wanted if wanted < least => {
            let message = format!("is {wanted}, image {name:?} needs {least} or more");
            Err(Refusal::field(format!("{field}.size_mib"), message))
        }
        wanted => Ok(wanted),
    }
}

/// A free name for a volume: the VM's, the disk's place, and a number where that is taken by an older one.
pub fn volume_name(view: &View, agency: AgencyId, vm: &Name, at: usize) -> Name {
    let fits = |suffix: &str| {
        let head: String = vm.as_str().chars().take(tamdao_model::name::NAME_MAX - suffix.len()).collect();
        Name::new(&format!("{}{suffix}", head.trim_end_matches('-')))
            .expect("a name with a short ending is a name")
    };
    let scope = Scope::Agency(agency);
    let mut names =
        std::iter::once(fits(&format!("-{at}"))).chain((2u32..).map(|n| fits(&format!("-{at}-{n}"))));
    names.find(|name| view.volumes.id_of(scope, name).is_none()).expect("numbers do not run out")
}

fn make_interface(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: VmId,
    agency: AgencyId,
    at: usize,
    wanted: &InterfaceRequest,
    field: &str,
) -> Result<Interface, Refusal> {
    let visible =
        draft.view().networks.get(wanted.network).filter(|n| n.agency.is_none_or(|owner| owner == agency));
    let network = visible.ok_or_else(|| {
        Refusal::field(format!("{field}.network"), "names no network that this agency may use")
    })?;
    let network = network.value.clone();
    let holder = Holder::Vm { vm, interface: u32::try_from(at).unwrap_or(u32::MAX) };
    let mut addresses = Vec::new();
    for (place, address) in wanted.wanted.iter().enumerate() {
        let field = format!("{field}.addresses[{place}]");
        let subnet =
            range::subnet_of(&network.spec, *address).filter(|subnet| range::may_give(subnet, *address));
        let name = network.meta.name.as_str();
        let subnet = subnet
            .ok_or_else(|| Refusal::field(&field, format!("is not in the ranges of network {name:?}")))?;
        if is_held(draft.view(), moment, network.id(), *address) {
            return Err(Refusal::field(&field, format!("{address} is held or rests already")));
        }
        addresses.push(with_prefix(subnet, *address));
        draft.put(Address { network: network.id(), address: *address, holder: holder.clone() });
    }
    for subnet in &network.spec.subnets {
        let family = Family::of(subnet.cidr.addr());
        if wanted.wanted.iter().any(|address| Family::of(*address) == family) {
            continue;
        }
        let address = free_address(draft.view(), moment, &network, subnet)?;
        addresses.push(with_prefix(subnet, address));
        draft.put(Address { network: network.id(), address, holder: holder.clone() });
    }
    let mac = wanted.mac.clone().unwrap_or_else(|| mac_from(moment.id()));
    Ok(Interface { network: network.id(), mac, addresses, wanted: wanted.wanted.clone() })
}

fn free_address(
    view: &View,
    moment: &mut Moment,
    network: &Network,
    subnet: &Subnet,
) -> Result<IpAddr, Refusal> {
    let used = |address| is_held(view, moment, network.id(), address);
    let hint = subnet.ranges.first().and_then(|range| {
        let (first, last) = (range::number(range.first), range::number(range.last));
        let seed = u128::from(moment.now.0) ^ (view.revision.0 as u128) << 20 ^ view.addresses.len() as u128;
        // Any spread will do; this one is Fibonacci hashing.
        let spread = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835) >> 16;
        let size = last - first + 1;
        (size > WALKED_FROM_BELOW).then(|| range::address(Family::of(range.first), first + spread % size))
    });
    range::next_free(subnet, used, hint).ok_or_else(|| {
        let (name, cidr) = (network.meta.name.as_str(), subnet.cidr);
        Refusal::new(
            Code::ResourceExhausted,
            "NoAddress",
            format!("network {name:?} has no free address in {cidr}"),
        )
        .hint("give the network another range, or wait until freed addresses have rested")
    })
}

/// Whether an address is held, or rests still.
fn is_held(view: &View, moment: &Moment, network: NetworkId, address: IpAddr) -> bool {
    let row = view.addresses.get(format_args!("{network}/{address}"));
    let held = row.is_some_and(|row| match row.holder {
        Holder::Vm { .. } => true,
        Holder::Resting { until } => until > moment.now,
    });
    held || recovery::is_used(view, address)
}

fn with_prefix(subnet: &Subnet, address: IpAddr) -> IpNet {
    IpNet::new(address, subnet.cidr.prefix_len()).expect("the prefix length is the subnet's own")
}

/// A locally administered unicast MAC of 40 random bits.
fn mac_from(id: Uuid) -> String {
    let b = id.as_bytes();
    format!("02:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4])
}

/// Checks that a user's volume can be made.
///
/// # Errors
/// When its image is of no use for it.
pub fn check_volume(view: &View, volume: &Volume) -> Result<(), Refusal> {
    if let Some(image) = volume.spec.image {
        let image = usable_image(view, image, ImageKind::Disk, volume.agency, "volume.spec.image")?;
        image_size(&image, volume.spec.size_mib, limits::MEMORY_MIB.end().to_owned(), "volume.spec")?;
    }
    Ok(())
}
