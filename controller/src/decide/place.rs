//! Giving a VM a node: the one place where capacity is taken. The engine proposes; here the proposal is checked
//! once more against the node as it will be, by plain sums.

use std::collections::BTreeMap;

use tamdao_model::assignment::{Assignment, Intent, Reservation, VmEntry, VolumeEntry};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::event::{Decision, Event, Severity};
use tamdao_model::limits;
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::{NodeId, PoolId, VmId};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::{happened, node_event, put_vm};
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

/// A VM's place as the engine decided it.
#[derive(Debug, Clone)]
pub struct Proposal {
    pub vm: VmId,
    pub reservation: Reservation,
    /// NUMA cells that it lies on there, by libvirt's numbers.
    pub cells: Vec<u32>,
    /// What it was decided from, for its event.
    pub decision: Option<Box<Decision>>,
}

impl From<(VmId, Reservation)> for Proposal {
    fn from((vm, reservation): (VmId, Reservation)) -> Self {
        Self { vm, reservation, cells: Vec::new(), decision: None }
    }
}

/// Gives VMs to a node and holds the room for them. The answers are in the order of the VMs; one that is overtaken
/// changes nothing. The node's record, which is large, is written once for all.
pub fn place(
    draft: &mut Draft,
    moment: &mut Moment,
    node: NodeId,
    vms: &[Proposal],
) -> Vec<Result<(), Overtaken>> {
    let Some(host) = draft.view().nodes.get(node).map(|row| row.value.clone()) else {
        return vec![Err(Overtaken::Node); vms.len()];
    };
    let mut assignment = draft.view().assignment(node);
    let answers: Vec<_> =
        vms.iter().map(|proposal| place_one(draft, moment, &host, &mut assignment, proposal)).collect();
    if answers.iter().any(Result::is_ok) {
        draft.put(assignment);
    }
    answers
}

fn place_one(
    draft: &mut Draft,
    moment: &mut Moment,
    host: &Node,
    assignment: &mut Assignment,
    proposal: &Proposal,
) -> Result<(), Overtaken> {
    let (view, node, reservation) = (draft.view(), host.id(), proposal.reservation);
    let vm = view.vms.get(proposal.vm).ok_or(Overtaken::Vm)?;
    if vm.status.node.is_some() || vm.spec.deleting {
        return Err(Overtaken::Vm);
    }
    if host.status.phase != NodePhase::Ready || host.spec.cordoned {
        return Err(Overtaken::Node);
    }
    let mut vm = (*vm.value).clone();
    if !has_room(host, assignment, reservation, &proposal.cells) {
        return Err(Overtaken::Room);
    }
    let mut volumes = Vec::new();
    let mut wanted: BTreeMap<PoolId, u64> = BTreeMap::new();
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
                let wanted = wanted.entry(pool.id()).or_insert_with(|| assignment.promised_mib(pool.id()));
                *wanted += u64::from(volume.spec.size_mib);
                if *wanted > host.pool_allocatable_mib(pool) {
                    return Err(Overtaken::Room);
                }
                volume.status.node = Some(node);
                volumes.push(volume);
            }
        }
    }
    let message = format!("placed on {}{}", host.meta.name, on_cells(&proposal.cells));
    vm.status.node = Some(node);
    vm.status.incarnation = vm.next_incarnation();
    vm.status.seen = None;
    let generation = vm.meta.generation;
    vm.status.conditions.set("Placed", ConditionStatus::True, "Placed", &message, generation, moment.now);
    let cells = proposal.cells.clone();
    let entry = VmEntry { incarnation: vm.status.incarnation, intent: Intent::Wanted, reservation, cells };
    assignment.vms.insert(vm.id(), entry);
    for volume in volumes {
        let entry = VolumeEntry::own(volume.spec.pool, volume.spec.size_mib);
        assignment.volumes.insert(volume.id(), entry);
        draft.put(volume);
    }
    let event = happened(moment, &vm, Some(node), Severity::Info, "Placed", message, "placer");
    draft.put(Event { decision: proposal.decision.clone(), ..event });
    put_vm(draft, vm);
    Ok(())
}

/// Records that a decided place was not taken: those decided after it in the same pass stood on it.
pub fn tell_overtaken(draft: &mut Draft, moment: &mut Moment, node: NodeId, proposal: &Proposal) {
    let Some(vm) = draft.view().vms.get(proposal.vm).map(|row| row.value.clone()) else { return };
    let message = "something else has taken the place that was chosen; it is decided anew";
    let event = happened(moment, &*vm, Some(node), Severity::Info, "PlaceOvertaken", message, "placer");
    draft.put(Event { decision: proposal.decision.clone(), ..event });
}

/// For people: , NUMA cells 0+1
pub(super) fn on_cells(cells: &[u32]) -> String {
    let cells: Vec<String> = cells.iter().map(ToString::to_string).collect();
    if cells.is_empty() { String::new() } else { format!(", NUMA cells {}", cells.join("+")) }
}

/// Whether a node with this assignment bears so much more, split over these of its NUMA cells, by plain sums.
pub(super) fn has_room(host: &Node, assignment: &Assignment, more: Reservation, cells: &[u32]) -> bool {
    let (allocatable, reserved) = (host.allocatable(), assignment.reserved());
    let part = more.part(cells.len());
    let known = &host.status.inventory.numa_cells;
    let rooms = host.cells_allocatable();
    let cell_has_room = |cell: &u32| {
        let Some(at) = known.iter().position(|known| known.id == *cell) else { return false };
        let held = assignment.reserved_on(*cell);
        held.vcpus + part.vcpus <= rooms[at].vcpus
            && held.memory_mib + part.memory_mib <= rooms[at].memory_mib
    };
    assignment.vms.len() < limits::VMS_PER_NODE
        && reserved.vcpus + more.vcpus <= allocatable.vcpus
        && reserved.memory_mib + more.memory_mib <= allocatable.memory_mib
        && cells.iter().all(cell_has_room)
}

/// Records why a VM still has no node. Says whether that is news.
pub fn explain_waiting(
    draft: &mut Draft,
    moment: &mut Moment,
    vm: VmId,
    reason: &str,
    message: &str,
    decision: Option<&Decision>,
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
        let event = happened(moment, &vm, None, Severity::Warning, reason, message, "placer");
        draft.put(Event { decision: decision.cloned().map(Box::new), ..event });
        put_vm(draft, vm);
    }
    news
}

/// Whether a place keeps what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// There is nothing to keep.
    AsksNothing,
    Keeps,
    Breaks {
        reason: &'static str,
        message: String,
    },
}

impl Fit {
    /// The type of the condition that tells it.
    pub const CONDITION: &str = "PlaceFits";
}

/// Records whether a VM's place keeps what was asked of it; for a VM that is elsewhere by now nothing.
pub fn tell_fit(draft: &mut Draft, moment: &mut Moment, vm: VmId, node: NodeId, fit: &Fit) {
    let Some(row) = draft.view().vms.get(vm).filter(|row| row.status.node == Some(node)) else { return };
    let mut vm = (*row.value).clone();
    let generation = vm.meta.generation;
    let conditions = &mut vm.status.conditions;
    let broke = conditions.get(Fit::CONDITION).is_some_and(|told| told.status == ConditionStatus::False);
    let mut tell = |status, reason: &str, message: &str| {
        conditions.set(Fit::CONDITION, status, reason, message, generation, moment.now)
    };
    let news = match fit {
        Fit::AsksNothing => conditions.clear(Fit::CONDITION),
        Fit::Keeps => {
            tell(ConditionStatus::True, "RulesKept", "its node keeps the rules that it is placed by")
        }
        Fit::Breaks { reason, message } => tell(ConditionStatus::False, reason, message),
    };
    match fit {
        Fit::Breaks { message, .. } if news => {
            node_event(draft, moment, &vm, Some(node), Severity::Warning, "PlaceBroken", message, "surveyor");
        }
        Fit::Keeps | Fit::AsksNothing if broke => {
            let message = "its node keeps the rules again";
            node_event(draft, moment, &vm, Some(node), Severity::Info, "PlaceFits", message, "surveyor");
        }
        Fit::Breaks { .. } | Fit::Keeps | Fit::AsksNothing => {}
    }
    put_vm(draft, vm);
}

/// Virtual size promised in a shared pool by all its volumes, MiB.
pub fn promised_in_shared_mib(view: &View, pool: PoolId) -> u64 {
    let volumes = view.volumes.iter().filter(|volume| volume.spec.pool == pool);
    volumes.map(|volume| u64::from(volume.spec.size_mib)).sum()
}
