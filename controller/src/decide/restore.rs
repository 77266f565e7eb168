//! What a restore makes of the records of a backup, before anybody sees them. Pure.
//!
//! Its invariant: nothing that the backup says of the present is believed: no session, no proof, no open move, no file
//! that was on its way. An incarnation given from here on is above all that were ever given, and a volume counts as
//! made, so that none is made over one that was. Deliberately absent: the files (`crate::restore`).

use tamdao_model::assignment::{Assignment, Hold, Intent};
use tamdao_model::cluster::{Cluster, Controller, JoinToken};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::moves::{Cause, Move, MovePhase};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::recovery::{Finding, Recovery};
use tamdao_model::volume::Volume;
use tamdao_model::{ClusterId, TimeMs};
use tamdao_store::kv::Revision;
use tamdao_store::typed::Draft;

use super::put_vm;
use crate::refusal::Refusal;

/// How far revisions jump: no cloud makes so many commits between a backup and its loss, and 2^53, up to which every
/// JSON reader counts, leaves room for thousands of restores.
const REVISIONS: u64 = 1 << 40;
/// How far incarnations jump: no VM changes its node so often.
const INCARNATIONS: u64 = 1 << 20;

/// The revision from which a restored store counts: above all that the lost one can have reached.
pub fn base(backup: Revision) -> Revision {
    Revision((backup.0 / REVISIONS + 1) * REVISIONS)
}

/// What is new of a restored cloud.
#[derive(Debug, Clone)]
pub struct Renewed {
    pub cluster: ClusterId,
    /// Of an admin's token.
    pub token: String,
    pub backup_time: TimeMs,
    pub backup_revision: u64,
}

/// Makes the records those of a cloud that recovers.
///
/// # Errors
/// When there is no record of the cluster.
pub fn renew(draft: &mut Draft, now: TimeMs, new: &Renewed) -> Result<(), Refusal> {
    let view = draft.view().clone();
    let Some(row) = view.cluster() else {
        return Err(Refusal::internal("the backup has no record of the cluster"));
    };
    let mut cluster: Cluster = (*row.value).clone();
    cluster.recovery = Some(Recovery {
        since: now,
        cluster: cluster.id,
        revision: new.backup_revision,
        backup_time: new.backup_time,
    });
    cluster.id = new.cluster;
    cluster.admin_tokens.push(new.token.clone());
    draft.put(cluster);
    // Their seats are gone with the group; who still runs joins anew.
    view.controllers.iter().for_each(|row| draft.remove::<Controller>(row.meta.id));
    // One that was used up since would work again.
    view.join_tokens.iter().for_each(|row| draft.delete::<JoinToken>(row.id));
    view.findings.iter().for_each(|row| draft.delete::<Finding>(row.node));
    view.nodes.iter().for_each(|row| draft.put(awaited(&row.value, now)));
    view.moves
        .iter()
        .filter(|row| row.status.phase.is_open())
        .for_each(|row| draft.put(broken_off(&row.value, now)));
    view.assignments.iter().for_each(|row| draft.put(settled(&row.value)));
    for row in view.volumes.iter().filter(|row| !row.status.made) {
        let mut volume: Volume = (*row.value).clone();
        volume.status.made = true;
        draft.put(volume);
    }
    for row in view.vms.iter() {
        let mut vm = (*row.value).clone();
        vm.status.moving = None;
        vm.status.seen = None;
        // A reboot that was done would be done again on a node that has not heard of it.
        vm.spec.action = None;
        vm.status.incarnation_given = vm.status.incarnation.max(vm.status.incarnation_given) + INCARNATIONS;
        put_vm(draft, vm);
    }
    Ok(())
}

/// A node of which nothing is known yet.
fn awaited(node: &Node, now: TimeMs) -> Node {
    let mut node = node.clone();
    let status = &mut node.status;
    (status.phase, status.phase_time) = (NodePhase::Unreachable, now);
    (status.session, status.fence, status.goodbye) = (None, None, None);
    status.conditions.clear(super::fence::CONDITION);
    let message = "the cloud was restored from a backup, and this node has not been heard since";
    let (unknown, generation) = (ConditionStatus::Unknown, node.meta.generation);
    status.conditions.set("Ready", unknown, "Restored", message, generation, now);
    node
}

/// What became of it the nodes will say: the VM is wherever it runs.
fn broken_off(one: &Move, now: TimeMs) -> Move {
    let mut one = one.clone();
    let message = "the cloud was restored from a backup while it was open".to_owned();
    (one.status.phase, one.status.deadline, one.status.end_time) = (MovePhase::Failed, None, Some(now));
    one.status.cause.get_or_insert(Cause { reason: "Restored".into(), message, cancelled: false });
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
