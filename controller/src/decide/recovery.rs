//! Recovery: what a cloud whose records were brought back in time may do before it knows what runs, what it finds out,
//! and when that is enough.
//!
//! Invariants: while it is on, a node is told nothing, the loops that act rest, and of all changes only those of
//! [`ADMITTED`] are decided; what runs wins over the records; what runs and is in no record is never stopped, and keeps
//! its room and its addresses. Deliberately absent: what a restore writes (`restore`), a store that went back
//! (`went_back`), and adopting what no record knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tamdao_model::assignment::{Hold, Intent, Reservation, VmEntry, VolumeEntry};
use tamdao_model::convert::agent::VmSeen;
use tamdao_model::event::Severity;
use tamdao_model::fence::Evidence;
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::recovery::{Finding, Found, Recovery};
use tamdao_model::vm::{GuestState, Power, RunPolicy, Seen, Vm};
use tamdao_model::{NodeId, SessionId, VmId, VolumeId};
use tamdao_scheduler::overhead::overhead_mib;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::{anew, node_event, put_vm, went_back};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Changes that are decided all the same: none of them has a guest started or stopped, or gives out a place, a name's
/// last use or an address.
pub const ADMITTED: &[&str] = &[
    "ClusterService/ArmHa",
    "ClusterService/CreateJoinToken",
    "ClusterService/DisarmHa",
    "ClusterService/RevokeJoinToken",
    "ControllerService/RemoveController",
    "ControllerService/TransferLeadership",
    "NodeService/AttestNodeGone",
    "NodeService/CordonNode",
    "RecoveryService/EndRecovery",
    "RoleBindingService/CreateRoleBinding",
    "RoleBindingService/DeleteRoleBinding",
    "RoleBindingService/UpdateRoleBinding",
    "TokenService/CreateToken",
    "TokenService/DeleteToken",
    "TransferService/UploadImage",
];
/// What begins so only reads.
const READS: &[&str] = &["Get", "List", "Watch", "Explain", "Dump", "Replay", "Read", "Take", "Verify"];
/// Devices that a guest is taken to have of which only its size is known.
const DEVICES: u32 = 4;
/// Names in one sentence.
const NAMED: usize = 5;

/// Whether the cloud recovers.
pub fn is_on(view: &View) -> bool {
    of(view).is_some()
}

/// The recovery that is on.
pub fn of(view: &View) -> Option<&Recovery> {
    view.cluster()?.value.recovery.as_ref()
}

/// Refuses what must not be decided while the cloud recovers; a method is given as "VmService/CreateVm".
///
/// # Errors
/// `FailedPrecondition` with the reason Recovering.
pub fn admit(view: &View, method: &str) -> Result<(), Refusal> {
    if !is_on(view) || is_admitted(method, went_back::is_unready(view)) {
        return Ok(());
    }
    let message = "the cloud recovers: its records are older than what runs, and until that is accounted for nothing \
                   is started, moved, deleted or made";
    Err(recovering(message))
}

/// Records that are being readied are changed by nobody else.
fn is_admitted(method: &str, unready: bool) -> bool {
    let verb = method.rsplit('/').next().unwrap_or_default();
    READS.iter().any(|read| verb.starts_with(read)) || (!unready && ADMITTED.contains(&method))
}

fn recovering(message: impl Into<String>) -> Refusal {
    Refusal::precondition("Recovering", message).hint("tamdao recovery status shows what is awaited")
}

/// Refuses a node that would join: what it runs could not be told from what known nodes run.
///
/// # Errors
/// As [`admit`].
pub fn admit_node(view: &View) -> Result<(), Refusal> {
    match is_on(view) {
        true => Err(recovering(
            "the cloud recovers: its records are older than what runs; nodes join it after the recovery has ended",
        )),
        false => Ok(()),
    }
}

fn lives(state: GuestState) -> bool {
    !matches!(state, GuestState::Absent | GuestState::Stopped)
}

/// Those of a report that live.
pub fn living(vms: &[VmSeen]) -> BTreeSet<VmId> {
    vms.iter().filter(|seen| lives(seen.seen.state)).map(|seen| seen.vm).collect()
}

/// Takes what a node says of its guests. `whole` comes with the first part of a complete report: all that lives there.
/// Once the cloud does not recover any more, only what no record knows is followed, until it is gone.
pub fn hear(
    draft: &mut Draft,
    node: NodeId,
    session: SessionId,
    whole: Option<&BTreeSet<VmId>>,
    vms: &[VmSeen],
) {
    let view = draft.view();
    let (on, old) = (is_on(view), view.findings.get(node).map(|row| (*row.value).clone()));
    let Some(mut finding) = old.clone().or_else(|| on.then(|| silent(node, session))) else { return };
    if finding.session != session || whole.is_some() {
        (finding.session, finding.complete) = (session, false);
    }
    if let Some(whole) = whole {
        finding.guests.retain(|vm, _| whole.contains(vm));
    }
    for seen in vms {
        let known = finding.guests.contains_key(&seen.vm);
        if !lives(seen.seen.state) {
            finding.guests.remove(&seen.vm);
        } else if on || known {
            let found = found(seen, finding.guests.get(&seen.vm));
            finding.guests.insert(seen.vm, found);
        }
    }
    if !on {
        finding.guests.retain(|vm, _| view.vms.get(*vm).is_none());
        let_go(draft, &finding);
    }
    if finding.guests.is_empty() && !on {
        draft.delete::<Finding>(node);
    } else if Some(&finding) != old.as_ref() {
        draft.put(finding);
    }
}

fn silent(node: NodeId, session: SessionId) -> Finding {
    Finding { node, session, complete: false, guests: BTreeMap::new() }
}

fn found(seen: &VmSeen, before: Option<&Found>) -> Found {
    // Said of what is unknown only, and a report from before the node knew that it is says nothing.
    let addresses = match before {
        Some(before) if seen.addresses.is_empty() => before.addresses.clone(),
        _ => seen.addresses.clone(),
    };
    let Seen { state, vcpus, memory_mib, .. } = seen.seen;
    Found { incarnation: seen.incarnation, state, vcpus, memory_mib, addresses }
}

/// Gives back the room of what was left on a node and is gone from it.
fn let_go(draft: &mut Draft, finding: &Finding) {
    let mut assignment = draft.view().assignment(finding.node);
    let before = assignment.vms.len();
    assignment.vms.retain(|vm, entry| entry.intent != Intent::Left || finding.guests.contains_key(vm));
    if assignment.vms.len() != before {
        draft.put(assignment);
    }
}

/// All of a complete report has been taken.
pub fn heard_all(draft: &mut Draft, node: NodeId, session: SessionId) {
    let row = draft.view().findings.get(node).filter(|row| row.session == session && !row.complete);
    if let Some(mut finding) = row.map(|row| (*row.value).clone()) {
        finding.complete = true;
        draft.put(finding);
    }
}

/// Whether a guest that no record knows uses this address.
pub fn is_used(view: &View, address: IpAddr) -> bool {
    // Nearly always there is none.
    view.findings.iter().any(|finding| {
        let mut unknown = finding.guests.iter().filter(|(vm, _)| view.vms.get(**vm).is_none());
        unknown.any(|(_, found)| found.addresses.contains(&address))
    })
}

/// How far the cloud has found out what runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Nodes that have neither said what they run nor are proven gone.
    pub awaited: Vec<NodeId>,
    pub reported: Vec<NodeId>,
    pub gone: Vec<NodeId>,
    /// What runs and is in no record.
    pub unknown: Vec<(NodeId, VmId, Found)>,
    /// What runs elsewhere than its record says, under another incarnation, or though it should be off.
    pub moved: Vec<(NodeId, VmId, Found)>,
    /// What runs on more than one node.
    pub twice: Vec<(NodeId, VmId, Found)>,
    /// What is wanted to run and runs nowhere.
    pub down: Vec<VmId>,
}

/// Whether a node is proven to run nothing at all. Silence on a pool speaks only of what is guarded there, so it is not
/// enough: what the records put on another node may run on this one.
fn is_gone(node: &Node) -> bool {
    let whole = |evidence: &Evidence| match evidence {
        Evidence::PowerOff { .. } | Evidence::Goodbye | Evidence::Attestation { .. } => true,
        Evidence::StorageSilence { .. } => false,
    };
    let mut proofs = node.status.fence.iter().flat_map(|fence| &fence.proofs);
    node.status.phase == NodePhase::Fenced && proofs.any(|proof| whole(&proof.evidence))
}

/// What runs, by VM: on which nodes, of those that are not proven gone.
fn running(view: &View) -> BTreeMap<VmId, Vec<(NodeId, Found)>> {
    let mut running: BTreeMap<VmId, Vec<(NodeId, Found)>> = BTreeMap::new();
    for finding in view.findings.iter() {
        if view.nodes.get(finding.node).is_none_or(|node| is_gone(node)) {
            continue;
        }
        for (vm, found) in &finding.guests {
            running.entry(*vm).or_default().push((finding.node, found.clone()));
        }
    }
    running
}

/// What is accounted for, as the records are.
pub fn accounts(view: &View) -> Accounts {
    let mut accounts = Accounts::default();
    for node in view.nodes.iter() {
        let complete = |finding: &Finding| finding.complete && Some(finding.session) == node.status.session;
        if is_gone(node) {
            accounts.gone.push(node.id());
        } else if view.findings.get(node.id()).is_some_and(|finding| complete(finding)) {
            accounts.reported.push(node.id());
        } else {
            accounts.awaited.push(node.id());
        }
    }
    let running = running(view);
    for (vm, places) in &running {
        let all = places.iter().map(|(node, found)| (*node, *vm, found.clone()));
        match (view.vms.get(*vm), places.as_slice()) {
            (_, [_, _, ..]) => accounts.twice.extend(all),
            (None, _) => accounts.unknown.extend(all),
            (Some(row), [(node, found)]) if agrees(row, *node, found) => {}
            (Some(_), _) => accounts.moved.extend(all),
        }
    }
    let down = view.vms.iter().filter(|vm| vm.wants_on() && !running.contains_key(&vm.id()));
    accounts.down = down.map(|vm| vm.id()).collect();
    accounts
}

/// Whether the record says what was found. A deletion that was asked for before the backup goes on.
fn agrees(vm: &Vm, node: NodeId, found: &Found) -> bool {
    let runs_unwanted = found.state == GuestState::Running
        && !vm.spec.deleting
        && (!vm.wants_on() || vm.spec.power != Power::On);
    (vm.status.node, vm.status.incarnation) == (Some(node), found.incarnation) && !runs_unwanted
}

/// One thing in which the records have to follow what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// The VM runs there.
    Follow(NodeId, VmId, Found),
    /// It runs there, and no record knows it.
    Hold(NodeId, VmId, Found),
    /// It runs nowhere: its node may know a later incarnation than its record, so that it needs one above all.
    Anew(VmId),
    /// What a node ran is of no interest any more.
    Forget(NodeId),
}

/// What the records have still to follow; while a node is awaited nothing.
pub fn due(view: &View) -> Vec<Due> {
    if !is_on(view) {
        let known = |finding: &Finding| finding.guests.keys().all(|vm| view.vms.get(*vm).is_some());
        return view
            .findings
            .iter()
            .filter(|finding| known(finding))
            .map(|row| Due::Forget(row.node))
            .collect();
    }
    let accounts = accounts(view);
    if !accounts.awaited.is_empty() {
        return Vec::new();
    }
    let held =
        |node: NodeId, vm: VmId| view.assignments.get(node).is_some_and(|row| row.vms.contains_key(&vm));
    let follow = accounts.moved.into_iter().map(|(node, vm, found)| Due::Follow(node, vm, found));
    let unheld = accounts.unknown.into_iter().filter(|(node, vm, _)| !held(*node, *vm));
    let hold = unheld.map(|(node, vm, found)| Due::Hold(node, vm, found));
    let running = running(view);
    let idle = view.vms.iter().filter(|vm| !running.contains_key(&vm.id()) && vm.status.node.is_some());
    let anew =
        idle.filter(|vm| vm.status.incarnation < vm.status.incarnation_given).map(|vm| Due::Anew(vm.id()));
    follow.chain(hold).chain(anew).collect()
}

/// Has the records follow, where it is still due.
pub fn settle(draft: &mut Draft, moment: &mut Moment, what: &Due) {
    match what {
        Due::Follow(node, vm, found) => follow(draft, moment, *node, *vm, found),
        Due::Hold(node, vm, found) => {
            let mut assignment = draft.view().assignment(*node);
            let reservation = room_of(draft.view(), *node, found);
            let entry = VmEntry {
                incarnation: found.incarnation,
                intent: Intent::Left,
                reservation,
                cells: Vec::new(),
            };
            assignment.vms.entry(*vm).or_insert(entry);
            draft.put(assignment);
        }
        Due::Anew(id) => {
            let row = draft.view().vms.get(*id).map(|row| (*row.value).clone());
            if let Some(mut vm) = row {
                anew(draft, &mut vm);
                put_vm(draft, vm);
            }
        }
        Due::Forget(node) => draft.delete::<Finding>(*node),
    }
}

/// What a guest holds of which only its size is known.
fn room_of(view: &View, node: NodeId, found: &Found) -> Reservation {
    let emulation = view.nodes.get(node).is_some_and(|node| node.status.inventory.acceleration == "qemu");
    let memory = u64::from(found.memory_mib);
    let over = overhead_mib(found.vcpus, memory, emulation, DEVICES);
    Reservation { vcpus: found.vcpus, memory_mib: memory + over }
}

/// Writes a VM to where it runs, with its files.
fn follow(draft: &mut Draft, moment: &mut Moment, node: NodeId, id: VmId, found: &Found) {
    let Some(row) = draft.view().vms.get(id) else { return };
    let mut vm = (*row.value).clone();
    let old = vm.status.node;
    let mut here = draft.view().assignment(node);
    let mut entry = here.vms.get(&id).cloned();
    if let Some(old) = old.filter(|old| *old != node) {
        let mut there = draft.view().assignment(old);
        entry = entry.or(there.vms.remove(&id)).map(|entry| VmEntry { cells: Vec::new(), ..entry });
        if draft.view().nodes.get(old).is_some_and(|lost| lost.status.phase == NodePhase::Fenced) {
            // Should it ever come back, what it has of the VM is older than what runs.
            there.vms.insert(id, VmEntry::stale(found.incarnation.saturating_sub(1)));
        }
        draft.put(there);
    }
    let mut entry = entry.unwrap_or_else(|| VmEntry {
        incarnation: found.incarnation,
        intent: Intent::Wanted,
        reservation: room_of(draft.view(), node, found),
        cells: Vec::new(),
    });
    entry.incarnation = found.incarnation;
    if matches!(entry.intent, Intent::Stale | Intent::Left) {
        entry.intent = Intent::Wanted;
    }
    here.vms.insert(id, entry);
    for volume in vm.volumes() {
        bring_along(draft, node, volume, &mut here.volumes);
    }
    draft.put(here);
    (vm.status.node, vm.status.incarnation) = (Some(node), found.incarnation);
    if found.state == GuestState::Running && !agrees(&vm, node, found) {
        // It was started since the backup, and would be shut down by it.
        vm.spec.power = Power::On;
        if vm.spec.run == RunPolicy::Stopped {
            vm.spec.run = RunPolicy::OnFailure;
        }
        vm.meta.generation += 1;
    }
    vm.status.seen = Some(Seen {
        state: found.state,
        exit: None,
        problem: None,
        pause_reason: String::new(),
        vcpus: found.vcpus,
        memory_mib: found.memory_mib,
        guarded: false,
    });
    let message = format!(
        "it was found running there as incarnation {}; the records said otherwise",
        found.incarnation
    );
    node_event(draft, moment, &vm, Some(node), Severity::Warning, "FoundElsewhere", message, "recovery");
    put_vm(draft, vm);
}

/// Writes a local volume to the node on which its VM runs.
fn bring_along(draft: &mut Draft, node: NodeId, id: VolumeId, here: &mut BTreeMap<VolumeId, VolumeEntry>) {
    let view = draft.view();
    let Some(mut volume) = view.volumes.get(id).map(|row| (*row.value).clone()) else { return };
    if view.pools.get(volume.spec.pool).is_none_or(|pool| pool.spec.shared) {
        return;
    }
    let mut held = VolumeEntry::own(volume.spec.pool, volume.spec.size_mib);
    if let Some(old) = volume.status.node.filter(|old| *old != node) {
        let mut there = view.assignment(old);
        if let Some(entry) = there.volumes.remove(&id) {
            held = VolumeEntry { hold: Hold::Own, ..entry };
            draft.put(there);
        }
    }
    here.entry(id).or_insert(held);
    if volume.status.node != Some(node) {
        volume.status.node = Some(node);
        draft.put(volume);
    }
}

/// Lets the cloud act again, when all is accounted for.
///
/// # Errors
/// When it does not recover, a node is awaited, a VM runs twice, or the records have not followed yet.
pub fn end(draft: &mut Draft) -> Result<(), Refusal> {
    let view = draft.view();
    let Some(mut cluster) =
        view.cluster().map(|row| (*row.value).clone()).filter(|one| one.recovery.is_some())
    else {
        return Err(Refusal::precondition("NotRecovering", "the cloud does not recover from anything"));
    };
    let accounts = accounts(view);
    if !accounts.awaited.is_empty() {
        let name =
            |id: &NodeId| view.nodes.get(*id).map(|node| node.meta.name.to_string()).unwrap_or_default();
        let names: Vec<String> = accounts.awaited.iter().take(NAMED).map(name).collect();
        let (count, names) = (accounts.awaited.len(), names.join(", "));
        let message = format!("{count} nodes have not said what they run and are not proven gone: {names}");
        return Err(Refusal::precondition("NodesAwaited", message).hint(
            "start their agents, or, for those that are really gone, cut their power and run `tamdao node attest-gone`",
        ));
    }
    if let Some((_, vm, _)) = accounts.twice.first() {
        let message = format!("VM {vm} runs on more than one node");
        return Err(Refusal::precondition("RunsTwice", message)
            .hint("look which one is right, and destroy the other on its host with virsh"));
    }
    if !due(view).is_empty() {
        return Err(Refusal::unavailable("the records have not followed yet what was found; ask again"));
    }
    cluster.recovery = None;
    draft.put(cluster);
    Ok(())
}
