//! What becomes of records that were brought back in time, before any node is told of them. Pure.
//!
//! Its invariant: nothing that they say of the present is believed: no session, no proof, no open move, no file that
//! was on its way. An incarnation given from here on is above all that were ever given, and a volume counts as made, so
//! that none is made over one that was. All of it is found by looking ([`stale`]), so that it may be done in parts.
//! Deliberately absent: the files (`crate::restore`, `crate::recover`).

use tamdao_model::assignment::{Assignment, Hold, Intent};
use tamdao_model::cluster::{Cluster, Controller, JoinToken};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::moves::{Cause, Move, MovePhase};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::recovery::{self, Finding, Recovery};
use tamdao_model::vm::Vm;
use tamdao_model::volume::Volume;
use tamdao_model::{ClusterId, JoinTokenId, MoveId, NodeId, TimeMs, VmId, VolumeId};
use tamdao_store::kv::Revision;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::put_vm;
use crate::refusal::Refusal;

/// How far revisions jump: no cloud makes so many commits between a backup and its loss, and 2^53, up to which every
/// JSON reader counts, leaves room for thousands of restores.
const REVISIONS: u64 = 1 << 40;
/// How far incarnations jump with each jump of the revisions: no VM changes its node so often.
const INCARNATIONS: u64 = 1 << 20;

/// The revision from which counting goes on: above all that can have been reached from this one, or from below it.
pub fn base(seen: Revision) -> Revision {
    Revision((seen.0 / REVISIONS + 1) * REVISIONS)
}

/// The least incarnation that was never given before revisions jumped to this one, as agents are told revisions.
pub fn incarnations(told: Revision) -> u64 {
    told.0 / REVISIONS * INCARNATIONS
}

/// What is new of a restored cloud.
#[derive(Debug, Clone)]
pub struct Renewed {
    pub cluster: ClusterId,
    pub cause: recovery::Cause,
    /// The digest of a new admin's token.
    pub token: Option<String>,
    /// When the backup was taken; 0 without one.
    pub backup_time: TimeMs,
    /// The newest commit of the records.
    pub revision: u64,
}

/// Makes the records those of a cloud that recovers, whose store counts from the draft's revision on.
///
/// # Errors
/// When there is no record of the cluster.
pub fn renew(draft: &mut Draft, now: TimeMs, new: &Renewed) -> Result<(), Refusal> {
    let view = draft.view().clone();
    let Some(row) = view.cluster() else {
        return Err(Refusal::internal("there is no record of the cluster"));
    };
    let mut cluster: Cluster = (*row.value).clone();
    cluster.recovery = Some(Recovery {
        since: now,
        cluster: cluster.id,
        revision: new.revision,
        backup_time: new.backup_time,
        cause: new.cause.clone(),
        unready: false,
    });
    cluster.former.push(cluster.id);
    (cluster.id, cluster.base) = (new.cluster, 0);
    cluster.admin_tokens.extend(new.token.clone());
    draft.put(cluster);
    // Their seats are gone with the group; who still runs joins anew.
    view.controllers.iter().for_each(|row| draft.remove::<Controller>(row.meta.id));
    for what in stale(&view, incarnations(view.revision)) {
        freshen(draft, now, incarnations(view.revision), &what);
    }
    Ok(())
}

/// One record that speaks of the present as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    JoinToken(JoinTokenId),
    Finding(NodeId),
    Node(NodeId),
    Move(MoveId),
    Assignment(NodeId),
    Volume(VolumeId),
    Vm(VmId),
}

/// All such records. `floor` is the least incarnation that was never given before.
pub fn stale(view: &View, floor: u64) -> Vec<Stale> {
    // One that was used up since would work again.
    let tokens = view.join_tokens.iter().map(|row| Stale::JoinToken(row.id));
    let findings = view.findings.iter().map(|row| Stale::Finding(row.node));
    let nodes = view.nodes.iter().filter(|row| !is_awaited(row)).map(|row| Stale::Node(row.id()));
    let moves = view.moves.iter().filter(|row| row.status.phase.is_open()).map(|row| Stale::Move(row.id()));
    let assignments = view.assignments.iter().filter(|row| settled(row) != *row.value);
    let assignments = assignments.map(|row| Stale::Assignment(row.node));
    let volumes = view.volumes.iter().filter(|row| !row.status.made).map(|row| Stale::Volume(row.id()));
    let vms = view.vms.iter().filter(|row| row.status.incarnation_given < floor);
    let vms = vms.map(|row| Stale::Vm(row.id()));
    tokens.chain(findings).chain(nodes).chain(moves).chain(assignments).chain(volumes).chain(vms).collect()
}

/// Has one of them speak of nothing that it cannot know.
pub fn freshen(draft: &mut Draft, now: TimeMs, floor: u64, what: &Stale) {
    let view = draft.view().clone();
    match what {
        Stale::JoinToken(id) => draft.delete::<JoinToken>(*id),
        Stale::Finding(node) => draft.delete::<Finding>(*node),
        Stale::Node(id) => view.nodes.get(*id).into_iter().for_each(|row| draft.put(awaited(row, now))),
        Stale::Move(id) => view.moves.get(*id).into_iter().for_each(|row| draft.put(broken_off(row, now))),
        Stale::Assignment(node) => draft.put(settled(&view.assignment(*node))),
        Stale::Volume(id) => {
            if let Some(row) = view.volumes.get(*id) {
                let mut volume: Volume = (*row.value).clone();
                volume.status.made = true;
                draft.put(volume);
            }
        }
        Stale::Vm(id) => view.vms.get(*id).into_iter().for_each(|row| put_vm(draft, unseen(row, floor))),
    }
}

/// A VM of which nothing is known yet.
fn unseen(vm: &Vm, floor: u64) -> Vm {
    let mut vm = vm.clone();
    vm.status.moving = None;
    vm.status.seen = None;
    // A reboot that was done would be done again on a node that has not heard of it.
    vm.spec.action = None;
    vm.status.incarnation_given = vm.status.incarnation.max(vm.status.incarnation_given).max(floor);
    vm
}

fn is_awaited(node: &Node) -> bool {
    let status = &node.status;
    (status.phase, status.session) == (NodePhase::Unreachable, None)
        && status.fence.is_none()
        && status.goodbye.is_none()
}

/// A node of which nothing is known yet.
fn awaited(node: &Node, now: TimeMs) -> Node {
    let mut node = node.clone();
    let status = &mut node.status;
    (status.phase, status.phase_time) = (NodePhase::Unreachable, now);
    (status.session, status.fence, status.goodbye) = (None, None, None);
    status.conditions.clear(super::fence::CONDITION);
    let message = "the records were brought back in time, and this node has not been heard since";
    let (unknown, generation) = (ConditionStatus::Unknown, node.meta.generation);
    status.conditions.set("Ready", unknown, "Recovering", message, generation, now);
    node
}

/// What became of it the nodes will say: the VM is wherever it runs.
fn broken_off(one: &Move, now: TimeMs) -> Move {
    let mut one = one.clone();
    let message = "the records were brought back in time to when it was open".to_owned();
    (one.status.phase, one.status.deadline, one.status.end_time) = (MovePhase::Failed, None, Some(now));
    one.status.cause.get_or_insert(Cause { reason: "Recovering".into(), message, cancelled: false });
    one
}

/// Without what was on its way. A file that was arriving, or was to be removed, may be the VM's only one by now: it is
/// left where it is.
fn settled(assignment: &Assignment) -> Assignment {
    let mut assignment = assignment.clone();
    assignment.vms.retain(|_, entry| entry.intent != Intent::Incoming);
    for entry in assignment.vms.values_mut().filter(|entry| entry.intent == Intent::Outgoing) {
        entry.intent = Intent::Wanted;
    }
    assignment.volumes.retain(|_, entry| entry.hold == Hold::Own);
    assignment
}
