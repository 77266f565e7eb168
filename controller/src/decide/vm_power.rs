//! What users ask of an existing VM: power, reboot, size. Each is a change of the spec that the node then follows.

use tamdao_model::assignment::Reservation;
use tamdao_model::event::Severity;
use tamdao_model::flavor::Flavor;
use tamdao_model::limits;
use tamdao_model::vm::{Action, ActionKind, Power, RunPolicy, StopMode, Vm};
use tamdao_model::{FlavorId, Kind, Name};
use tamdao_seams::{Mutant, has};
use tamdao_store::typed::Draft;
use tonic::Code;

use super::{event, put_vm, quota};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// A verb of the public contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop(StopMode),
    Reboot { deadline_s: u32 },
    Reset,
    Pause,
    Resume,
}

/// Applies a verb. A verb whose effect is there already changes nothing.
///
/// # Errors
/// When the VM is in no state for it.
pub fn act(draft: &mut Draft, moment: &mut Moment, vm: &Vm, verb: &Verb, actor: &str) -> Result<Vm, Refusal> {
    let mut new = vm.clone();
    let name = vm.meta.name.as_str();
    if vm.spec.deleting {
        return Err(Refusal::precondition("Deleting", format!("vm {name:?} is being deleted")));
    }
    check_still(vm)?;
    let needs_on = |what: &str| match vm.wants_on() {
        true => Ok(()),
        false => Err(Refusal::precondition("NotOn", format!("vm {name:?} is off and cannot be {what}"))
            .hint(format!("start it first: tamdao vm start {name}"))),
    };
    let (reason, message) = match verb {
        Verb::Start => {
            quota::check_may_run(draft.view(), vm.agency)?;
            // Starting a VM that was made not to run says that it shall run from now on.
            if new.spec.run == RunPolicy::Stopped {
                new.spec.run = RunPolicy::OnFailure;
            }
            let stays_off = vm.status.phase == tamdao_model::vm::VmPhase::Stopped;
            new.spec.power = Power::On;
            if stays_off && new.spec == vm.spec {
                // It shut itself down: a new generation tells the node to begin anew.
                new.meta.generation += 1;
            }
            ("StartAsked", "start was asked for")
        }
        Verb::Stop(mode) => {
            new.spec.power = Power::Off;
            new.spec.stop = *mode;
            ("StopAsked", if mode.force { "stop by force was asked for" } else { "stop was asked for" })
        }
        Verb::Reboot { deadline_s } => {
            needs_on("rebooted")?;
            new.spec.action =
                Some(Action { id: moment.id(), kind: ActionKind::Reboot, deadline_s: *deadline_s });
            ("RebootAsked", "reboot was asked for")
        }
        Verb::Reset => {
            needs_on("reset")?;
            new.spec.action = Some(Action { id: moment.id(), kind: ActionKind::Reset, deadline_s: 0 });
            ("ResetAsked", "reset was asked for")
        }
        Verb::Pause => {
            needs_on("paused")?;
            new.spec.power = Power::Paused;
            ("PauseAsked", "pause was asked for")
        }
        Verb::Resume => {
            if new.spec.power == Power::Off {
                needs_on("resumed")?;
            }
            new.spec.power = Power::On;
            ("ResumeAsked", "resume was asked for")
        }
    };
    if new == *vm {
        return Ok(new);
    }
    if new.meta.generation == vm.meta.generation {
        new.meta.generation += 1;
    }
    event(draft, moment, &new, Severity::Info, reason, message, actor);
    put_vm(draft, new.clone());
    Ok(new)
}

/// Refuses what would change a VM under its open move.
///
/// # Errors
/// When it has one.
pub fn check_still(vm: &Vm) -> Result<(), Refusal> {
    match vm.status.moving {
        None => Ok(()),
        Some(_) => {
            let message = format!("vm {:?} is moving to another node", vm.meta.name.as_str());
            Err(Refusal::precondition("MoveOpen", message)
                .hint("wait until it is there, or give it up: tamdao move list, tamdao move cancel NAME"))
        }
    }
}

/// The wanted size: a flavor, or numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    pub flavor: Option<FlavorId>,
    /// That of the flavor, once the size is resolved.
    pub class: Option<Name>,
    pub vcpus: u32,
    pub memory_mib: u32,
}

impl Size {
    pub fn of(flavor: Option<FlavorId>, vcpus: u32, memory_mib: u32) -> Self {
        Self { flavor, class: None, vcpus, memory_mib }
    }

    /// The numbers behind a flavor, or those given.
    ///
    /// # Errors
    /// When the flavor is gone or the numbers are out of range.
    pub fn resolve(mut self, draft: &Draft) -> Result<Self, Refusal> {
        if let Some(id) = self.flavor {
            let flavor = draft
                .view()
                .get::<Flavor>(id)
                .ok_or_else(|| Refusal::not_found(Kind::Flavor, &id.to_string()))?;
            (self.vcpus, self.memory_mib) = (flavor.spec.vcpus, flavor.spec.memory_mib);
            self.class.clone_from(&flavor.spec.class);
        }
        if !limits::VCPUS.contains(&self.vcpus) {
            let (low, high) = (limits::VCPUS.start(), limits::VCPUS.end());
            return Err(Refusal::field("vcpus", format!("is {}, {low} to {high} are allowed", self.vcpus)));
        }
        if !limits::MEMORY_MIB.contains(&self.memory_mib) {
            let (low, high) = (limits::MEMORY_MIB.start(), limits::MEMORY_MIB.end());
            return Err(Refusal::field(
                "memory_mib",
                format!("is {}, {low} to {high} are allowed", self.memory_mib),
            ));
        }
        Ok(self)
    }
}

/// Gives a VM another size, with the room for it on its node. `reservation` is what the new size takes there.
///
/// # Errors
/// When its node has no room for the larger size.
pub fn resize(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: &Vm,
    size: &Size,
    reservation: Reservation,
    actor: &str,
) -> Result<Vm, Refusal> {
    let name = vm.meta.name.as_str();
    if vm.spec.deleting {
        return Err(Refusal::precondition("Deleting", format!("vm {name:?} is being deleted")));
    }
    check_still(vm)?;
    let mut new = vm.clone();
    (new.spec.flavor, new.spec.vcpus, new.spec.memory_mib) = (size.flavor, size.vcpus, size.memory_mib);
    new.spec.flavor_class.clone_from(&size.class);
    if new.spec == vm.spec {
        return Ok(new);
    }
    if vm.spec.numa_cells > 0 {
        let message = format!("vm {name:?} lies on NUMA cells and keeps its size");
        return Err(Refusal::precondition("OnCells", message));
    }
    new.meta.generation += 1;
    if let Some(node) = vm.status.node {
        let mut assignment = draft.view().assignment(node);
        let Some(host) = draft.view().nodes.get(node) else {
            return Err(Refusal::internal(format!("vm {name:?} is on a node without a record")));
        };
        let (allocatable, reserved) = (host.allocatable(), assignment.reserved());
        let Some(entry) = assignment.vms.get_mut(&vm.id()) else {
            return Err(Refusal::internal(format!("vm {name:?} has no entry on its node")));
        };
        let old = std::mem::replace(&mut entry.reservation, reservation);
        let vcpus = reserved.vcpus - old.vcpus + reservation.vcpus;
        let memory_mib = reserved.memory_mib - old.memory_mib + reservation.memory_mib;
        // Shrinking is always allowed: it cannot worsen an excess that came from outside.
        let too_much = (reservation.vcpus > old.vcpus && vcpus > allocatable.vcpus)
            || (reservation.memory_mib > old.memory_mib && memory_mib > allocatable.memory_mib);
        if too_much && !has(Mutant::NoRoomTaken) {
            let message = format!(
                "its node has {} vCPUs and {} MiB free, {} and {} more are needed",
                allocatable.vcpus.saturating_sub(reserved.vcpus),
                allocatable.memory_mib.saturating_sub(reserved.memory_mib),
                reservation.vcpus.saturating_sub(old.vcpus),
                reservation.memory_mib.saturating_sub(old.memory_mib),
            );
            return Err(Refusal::new(Code::ResourceExhausted, "NoRoom", message));
        }
        draft.put(assignment);
    }
    quota::count(draft, vm.agency, &vm.amounts(), &new.amounts())?;
    let message = format!("resized to {} vCPUs and {} MiB", size.vcpus, size.memory_mib);
    event(draft, moment, &new, Severity::Info, "Resized", message, actor);
    put_vm(draft, new.clone());
    Ok(new)
}
