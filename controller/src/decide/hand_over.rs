//! A VM goes to another agency, with its volumes and addresses, and keeps running.
//!
//! Its invariants: record, volumes, names and both agencies' usages change in one transaction, so that a VM is counted
//! once at every revision; and afterwards it uses nothing that its new agency may not use. Deliberately absent: taking
//! along what others of the old agency may use too, such as its networks, images and groups.

use tamdao_model::convert::metadata::STACK;
use tamdao_model::event::Severity;
use tamdao_model::quota::Amounts;
use tamdao_model::vm::{DiskSource, Vm};
use tamdao_model::volume::Volume;
use tamdao_model::{AgencyId, ImageId, Kind, Meta, Name, Scope};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::vm_create::volume_name;
use super::{event, put_renamed_vm, quota};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Gives a VM to another agency, where it is called `name`.
///
/// # Errors
/// What stands in the way, and the limit of the new agency that leaves too little.
pub fn hand_over(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: &Vm,
    to: AgencyId,
    name: Name,
    actor: &str,
) -> Result<Vm, Refusal> {
    if vm.agency == to {
        return Err(Refusal::field("to_agency", "has the VM already"));
    }
    let volumes = volumes(draft.view(), vm);
    check_idle(vm, &volumes)?;
    check_unbound(draft.view(), vm, &volumes, to)?;
    if draft.view().vms.id_of(Scope::Agency(to), &name).is_some() {
        return Err(Refusal::exists(Kind::Vm, name.as_str())
            .hint("give it another name there: tamdao vm hand-over … --name NAME"));
    }
    let amounts = volumes.iter().fold(vm.amounts(), |sum, volume| sum.plus(&volume.amounts()));
    quota::count(draft, to, &Amounts::default(), &amounts)?;
    quota::release(draft, vm.agency, &amounts);
    let agency = |id: AgencyId| {
        draft.view().agencies.get(id).map(|row| row.meta.name.to_string()).unwrap_or_else(|| id.to_string())
    };
    let (old, new) = (agency(vm.agency), agency(to));
    let gone = format!("handed over to agency {new:?}, where it is {:?}", name.as_str());
    event(draft, moment, vm, Severity::Info, "HandedOver", gone, actor);
    for (at, volume) in volumes.into_iter().enumerate() {
        let mut volume = Volume { agency: to, ..volume };
        if draft.view().volumes.id_of(Scope::Agency(to), &volume.meta.name).is_some() {
            volume.meta.name = volume_name(draft.view(), to, &name, at);
        }
        draft.rename(volume);
    }
    let mut vm = Vm { agency: to, ..vm.clone() };
    vm.meta.name = name;
    let came = format!("handed over by agency {old:?}");
    event(draft, moment, &vm, Severity::Info, "TakenOver", came, actor);
    put_renamed_vm(draft, vm.clone());
    Ok(vm)
}

/// Those that are its disks.
fn volumes(view: &View, vm: &Vm) -> Vec<Volume> {
    let held = vm.spec.disks.iter().filter_map(|disk| match disk.source {
        DiskSource::Volume { volume, .. } => view.volumes.get(volume),
        DiskSource::Iso { .. } | DiskSource::Empty => None,
    });
    held.map(|row| (*row.value).clone()).collect()
}

/// Nothing is under way that was begun for the old agency.
fn check_idle(vm: &Vm, volumes: &[Volume]) -> Result<(), Refusal> {
    if vm.spec.deleting || volumes.iter().any(|volume| volume.spec.deleting) {
        return Err(Refusal::precondition("Deleting", "the VM, or a volume of it, is being deleted"));
    }
    if vm.status.moving.is_some() {
        return Err(Refusal::precondition("Moving", "the VM moves to another node")
            .hint("wait until the move has ended: tamdao move list"));
    }
    Ok(())
}

/// It needs nothing of the old agency's.
fn check_unbound(view: &View, vm: &Vm, volumes: &[Volume], to: AgencyId) -> Result<(), Refusal> {
    let stack = |meta: &Meta| meta.labels.get(STACK).cloned();
    if let Some(stack) = stack(&vm.meta).or_else(|| volumes.iter().find_map(|volume| stack(&volume.meta))) {
        let message = format!("the VM, or a volume of it, belongs to stack {stack:?}");
        return Err(Refusal::precondition("OwnedByStack", message).hint(format!(
            "its next apply would make it anew: take it out of the manifests and release it with the label {STACK}="
        )));
    }
    if !vm.spec.placement_groups.is_empty() {
        let message = "the VM is in placement groups, which are its agency's own";
        return Err(Refusal::precondition("InPlacementGroup", message)
            .hint("take it out first: tamdao vm update NAME --group GROUP-"));
    }
    let foreign = |owner: Option<AgencyId>| owner.is_some_and(|owner| owner != to);
    for interface in &vm.spec.interfaces {
        if let Some(network) = view.networks.get(interface.network).filter(|network| foreign(network.agency))
        {
            let message = format!("network {:?} is another agency's own", network.meta.name.as_str());
            return Err(Refusal::precondition("NetworkOfAgency", message)
                .hint("only VMs on networks of the cloud can be handed over"));
        }
    }
    let boot = vm.spec.direct_boot.iter().flat_map(|boot| std::iter::once(boot.kernel).chain(boot.initrd));
    let isos = vm.spec.disks.iter().filter_map(|disk| match disk.source {
        DiskSource::Iso { image } => Some(image),
        DiskSource::Volume { .. } | DiskSource::Empty => None,
    });
    let templates = volumes.iter().filter_map(|volume| volume.spec.image);
    let mut images = boot.chain(isos).chain(templates);
    let private = |id: ImageId| view.images.get(id).filter(|image| foreign(image.agency));
    match images.find_map(private) {
        None => Ok(()),
        Some(image) => {
            let message = format!("image {:?} is another agency's own", image.meta.name.as_str());
            Err(Refusal::precondition("ImageOfAgency", message)
                .hint("only VMs with images of the cloud can be handed over"))
        }
    }
}
