//! Fencing a node that is lost: what is asked about it, and the transaction in which a proof makes it Fenced.
//!
//! Invariants: a proof counts for the boot and the session that it names and for no other, so none is used twice and a
//! node that came back meanwhile is not fenced by it; fencing rewrites the node's record, whose guard keeps a hello out.
//! Deliberately absent: gathering evidence (`reconcile/fencer`), and who goes where (`evacuate`).

use std::collections::BTreeSet;

use tamdao_model::bmc::{self, Bmc, Drilled};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::event::Severity;
use tamdao_model::fence::{self, Evidence, FenceProof, NodeEvent};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::Vm;
use tamdao_model::{Kind, NodeId, PoolId, SessionId, TimeMs, VmId};
use tamdao_scheduler::from_model::{self, Stays};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::move_start::local_volumes;
use super::{brake, event, move_step, recovery};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// The type of the condition that tells how the search for evidence stands.
pub const CONDITION: &str = "Fenced";

/// The type of the condition that tells how taking its power stands.
pub const POWER: &str = "PoweredOff";

/// What is not proven yet of a lost node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// VMs that would be restarted elsewhere, or that wait for this node's word on their move.
    pub vms: Vec<VmId>,
    /// Shared pools on which the node's silence would speak of some of them.
    pub pools: BTreeSet<PoolId>,
}

/// The VMs of a node that another one gets once it is proven that they do not run there: to run them, or to go on with
/// their deletion.
pub fn taken_over(view: &View, node: NodeId) -> impl Iterator<Item = &Vm> {
    let entries = view.assignments.get(node).into_iter().flat_map(|row| row.vms.keys());
    let vms = entries.filter_map(|vm| view.vms.get(*vm)).map(|row| &*row.value);
    vms.filter(move |vm| vm.status.node == Some(node) && stays(view, vm).is_none())
}

/// VMs of other nodes that wait for this one's word: they have an open move to it, and may be on either.
fn arriving(view: &View, node: NodeId) -> impl Iterator<Item = &Vm> {
    let open = view.moves.iter().filter(move |row| row.status.phase.is_open() && row.spec.target == node);
    let vms = open.filter_map(|row| view.vms.get(row.spec.vm)).map(|row| &*row.value);
    vms.filter(move |vm| stays(view, vm).is_none())
}

/// Why a VM stays down when its node is lost; none if it is restarted elsewhere.
pub fn stays(view: &View, vm: &Vm) -> Option<Stays> {
    let volume = |id| view.volumes.get(id).map(|row| &*row.value);
    let pool = |id| view.pools.get(id).map(|row| &*row.value);
    match from_model::stays(vm, volume, pool) {
        // What binds a VM to its node does not bind its deletion; only a disk that no other node sees does.
        Some(Stays::Asked | Stays::Pinned) if vm.spec.deleting => {
            local_volumes(view, vm).first().copied().map(Stays::Local)
        }
        stays => stays,
    }
}

/// The shared pools that a VM's disks lie on.
pub fn shared_pools(view: &View, vm: &Vm) -> BTreeSet<PoolId> {
    let pools = vm.volumes().filter_map(|id| Some(view.volumes.get(id)?.spec.pool));
    pools.filter(|pool| view.pools.get(*pool).is_some_and(|pool| pool.spec.shared)).collect()
}

/// What has to be found out about a lost node.
pub fn question(view: &View, node: &Node) -> Question {
    let mut question = Question::default();
    for vm in taken_over(view, node.id()).chain(arriving(view, node.id())) {
        let pools = shared_pools(view, vm);
        if node.status.fence.as_ref().is_some_and(|fence| fence.covers(vm, &pools).is_some()) {
            continue;
        }
        if fence::is_guarded(vm) {
            question.pools.extend(pools);
        }
        question.vms.push(vm.id());
    }
    question
}

/// Begins the search for evidence that a lost node runs nothing; `session` is the one that has ended. If its agent has
/// opened another since, nothing is sought: who is heard would stay Fencing for as long as it is.
pub fn seek(draft: &mut Draft, moment: &mut Moment, id: NodeId, session: Option<SessionId>) {
    let row = draft.view().nodes.get(id).filter(|row| row.status.session == session);
    let Some(mut node) = row.map(|row| (*row.value).clone()) else { return };
    match fence::next(node.status.phase, NodeEvent::Sought) {
        Ok(phase) if phase != node.status.phase => {
            node.status.phase = phase;
            node.status.phase_time = moment.now;
            let message = "evidence is sought that it runs none of its protected VMs";
            event(draft, moment, &node, Severity::Warning, "Fencing", message, "fencer");
            draft.put(node);
        }
        Ok(_) => {}
        Err(impossible) => tracing::debug!(node = %id, error = %impossible, "node is not sought evidence of"),
    }
}

/// Whether a node whose last session was `session` may be powered off: it is lost, and it does not look as if that were
/// the network's fault, or the cloud's own.
pub fn may_power_off(view: &View, id: NodeId, session: Option<SessionId>, now: TimeMs) -> bool {
    let lost = view.nodes.get(id).is_some_and(|node| {
        let phase =
            matches!(node.status.phase, NodePhase::Unreachable | NodePhase::Fencing | NodePhase::Fenced);
        phase && node.status.session == session
    });
    let disarmed = view.cluster().is_some_and(|cluster| cluster.is_disarmed(now));
    lost && !disarmed && !recovery::is_on(view) && brake::applied(view).is_none()
}

/// Records that a lost node is powered off by the BMC of this url, before it is. Says whether it may be.
pub fn power_off(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    session: Option<SessionId>,
    url: &str,
) -> bool {
    let leave = may_power_off(draft.view(), id, session, moment.now);
    if leave {
        let message = format!("it is powered off by its BMC {url}, to be sure that it runs nothing");
        tell(draft, moment, id, POWER, "PoweringOff", &message);
    }
    leave
}

/// Records how the search stands, for people. Says it in an event when it is another reason than before.
pub fn tell(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    condition: &str,
    reason: &str,
    message: &str,
) {
    let Some(row) = draft.view().nodes.get(id) else { return };
    if !matches!(row.status.phase, NodePhase::Unreachable | NodePhase::Fencing | NodePhase::Fenced) {
        return;
    }
    let mut node = (*row.value).clone();
    let old = node.status.conditions.get(condition).map(|condition| condition.reason.clone());
    let generation = node.meta.generation;
    let unknown = ConditionStatus::Unknown;
    if !node.status.conditions.set(condition, unknown, reason, message, generation, moment.now) {
        return;
    }
    if old.as_deref() != Some(reason) {
        event(draft, moment, &node, Severity::Warning, reason, message, "fencer");
    }
    draft.put(node);
}

/// Records what a drill has found out about some of a node's BMCs, each as it was when it was asked.
pub fn drilled(
    draft: &mut Draft,
    moment: &mut Moment,
    id: NodeId,
    found: &[(Bmc, Drilled)],
) -> Result<Node, Refusal> {
    let row = draft.view().nodes.get(id).ok_or_else(|| Refusal::not_found(Kind::Node, &id.to_string()))?;
    let mut node = (*row.value).clone();
    let old = std::mem::take(&mut node.status.fence_drill);
    let mut news = Vec::new();
    for bmc in &node.spec.bmcs {
        let before = old.iter().find(|drilled| drilled.url == bmc.url);
        let now = found.iter().find(|(asked, _)| asked == bmc).map(|(_, drilled)| drilled);
        if let Some(now) = now.filter(|now| before.is_none_or(|before| before.reason != now.reason)) {
            news.push(now.clone());
        }
        node.status.fence_drill.extend(now.or(before).cloned());
    }
    let told = node.status.fence_drill.iter().map(|one| format!("BMC {} {}", one.url, one.message));
    let told = told.collect::<Vec<_>>().join("; ");
    let bad = node.status.fence_drill.iter().find(|one| !one.is_good());
    let (holds, reason) = match (node.is_fenceable(), bad) {
        (true, _) => (ConditionStatus::True, bmc::GOOD),
        (false, bad) => (ConditionStatus::False, bad.map_or("NotDrilled", |bad| bad.reason.as_str())),
    };
    let reason = reason.to_owned();
    let generation = node.meta.generation;
    node.status.conditions.set(bmc::CONDITION, holds, &reason, &told, generation, moment.now);
    for now in news {
        let (severity, what) = match now.is_good() {
            true => (Severity::Info, "FenceDrillPassed"),
            false => (Severity::Warning, "FenceDrillFailed"),
        };
        event(draft, moment, &node, severity, what, format!("BMC {} {}", now.url, now.message), "driller");
    }
    draft.put(node.clone());
    Ok(node)
}

/// Takes a proof: from here on the VMs that it covers may be restarted elsewhere.
///
/// # Errors
/// When the node is not lost, or is no longer the one that was observed.
pub fn prove(draft: &mut Draft, moment: &mut Moment, proof: FenceProof) -> Result<Node, Refusal> {
    let id = proof.node;
    let row = draft.view().nodes.get(id).ok_or_else(|| Refusal::not_found(Kind::Node, &id.to_string()))?;
    let mut node = (*row.value).clone();
    let name = node.meta.name.clone();
    let phase = fence::next(node.status.phase, NodeEvent::Proven).map_err(|_| {
        let message =
            format!("node {:?} is heard, so that it runs nothing is not for others to say", name.as_str());
        Refusal::precondition("NotLost", message)
    })?;
    if proof.boot_id != node.status.boot_id || proof.session != node.status.session {
        let message =
            format!("node {:?} has been heard since: the proof speaks of an earlier session", name.as_str());
        return Err(Refusal::precondition("StaleProof", message));
    }
    let message = format!("{} (observed by {})", proof.evidence, proof.observed_by);
    let (yes, generation) = (ConditionStatus::True, node.meta.generation);
    node.status.conditions.set(CONDITION, yes, proof.evidence.word(), &message, generation, moment.now);
    if matches!(proof.evidence, Evidence::PowerOff { .. }) {
        node.status.conditions.set(POWER, yes, "Off", &message, generation, moment.now);
    }
    if node.status.phase != phase {
        node.status.phase = phase;
        node.status.phase_time = moment.now;
    }
    let actor = match &proof.evidence {
        Evidence::Attestation { .. } => proof.observed_by.clone(),
        Evidence::PowerOff { .. } | Evidence::StorageSilence { .. } | Evidence::Goodbye => {
            "fencer".to_owned()
        }
    };
    node.status.fence.get_or_insert_default().proofs.push(proof);
    event(draft, moment, &node, Severity::Warning, "Fenced", message, actor);
    draft.put(node.clone());
    move_step::fenced(draft, moment, id);
    Ok(node)
}

/// A proof about a lost node as its record says now.
pub fn proof_of(node: &Node, evidence: Evidence, observed_by: String, time: TimeMs) -> FenceProof {
    FenceProof {
        node: node.id(),
        boot_id: node.status.boot_id.clone(),
        session: node.status.session,
        evidence,
        observed_by,
        time,
    }
}

/// Why a VM would not be restarted elsewhere if its node were lost now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unprotected {
    pub reason: &'static str,
    pub message: String,
}

/// Whether a VM is restarted elsewhere when its node is lost, without a person's help.
///
/// # Errors
/// Why not, for people.
pub fn protection(view: &View, vm: &Vm) -> Result<(), Unprotected> {
    let no = |reason, message: &str| Err(Unprotected { reason, message: message.to_owned() });
    match stays(view, vm) {
        None => {}
        Some(Stays::Asked) => return no("Asked", "its on_node_loss asks that it stays"),
        Some(Stays::Pinned) => return no("Pinned", "it is pinned to its node"),
        Some(Stays::Local(_)) => return no("LocalDisks", "it has disks in pools that no other node sees"),
    }
    let Some(node) = vm.status.node.and_then(|id| view.nodes.get(id)) else {
        return no("NotPlaced", "it has no node yet");
    };
    if node.is_fenceable() {
        return Ok(());
    }
    let pools = shared_pools(view, vm);
    if pools.is_empty() {
        return no("NoSharedDisk", "no disk of it lies in a shared pool, so no storage lease speaks of it");
    }
    let leases = pools.iter().filter_map(|pool| node.status.pools.get(pool)?.lease);
    match leases.map(|lease| lease.watchdog_timeout_ms.is_some()).max() {
        None if node.status.keeper.is_empty() => no("NoKeeper", "its node has no keeper"),
        None => no("NoStorageLease", "its node holds no storage lease on its pools"),
        Some(false) => no("NoWatchdog", "its node has no watchdog, so that its silence would prove nothing"),
        Some(true) if vm.status.seen.as_ref().is_some_and(|seen| seen.guarded) => Ok(()),
        Some(true) => no("NotGuarded", "its node's keeper does not have it, as when it does not run"),
    }
}
