//! A store that went back in time: what is decided when a node tells of it, and until its records are ready.
//!
//! Its invariants: revisions and epochs that agents are told never come again; while a record speaks of the present as it
//! was no session opens, and nothing is changed but that. Deliberately absent: the work itself (`sessions::went_back`),
//! and what is made of one record (`restore`).

use tamdao_model::event::Severity;
use tamdao_model::recovery::{Cause, Recovery};
use tamdao_model::{ClusterId, NodeId, TimeMs};
use tamdao_store::kv::Revision;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::restore::{self, Stale};
use super::{event, recovery};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Whether records that went back in time still speak of the present as it was: then no node is heard.
pub fn is_unready(view: &View) -> bool {
    recovery::of(view).is_some_and(|recovery| recovery.unready)
}

/// What is added to every revision and epoch that agents are told.
pub fn base(view: &View) -> u64 {
    view.cluster().map_or(0, |cluster| cluster.base)
}

/// The view's revision as agents are told it.
pub fn told(view: &View) -> Revision {
    Revision(base(view) + view.revision.0)
}

/// The records that speak of the present as it was.
pub fn stale(view: &View) -> Vec<Stale> {
    restore::stale(view, restore::incarnations(told(view)))
}

/// Has the cloud recover, because a node has `seen` a revision above `at`, which is as far as the store is, both as agents
/// are told them. Revisions and epochs count on from above what was seen. Nothing if that is so already.
pub fn go_back(draft: &mut Draft, moment: &mut Moment, node: NodeId, seen: u64, at: u64) {
    let Some(mut cluster) = draft.view().cluster().map(|row| (*row.value).clone()) else { return };
    if cluster.base > seen {
        return;
    }
    let revision = draft.view().revision.0;
    let before = cluster.recovery.take();
    cluster.recovery = Some(Recovery {
        since: before.as_ref().map_or(moment.now, |before| before.since),
        cluster: before.as_ref().map_or(cluster.id, |before| before.cluster),
        revision,
        backup_time: before.map_or(TimeMs(0), |before| before.backup_time),
        cause: Cause::WentBack { node, seen, at },
        unready: true,
    });
    cluster.base = restore::base(Revision(seen.max(cluster.base + revision))).0;
    draft.put(cluster);
    if let Some(witness) = draft.view().nodes.get(node).map(|row| row.value.clone()) {
        let message = format!(
            "it has seen revision {seen}, and the store stands at {at}: the store went back in time, and the cloud recovers"
        );
        event(draft, moment, &*witness, Severity::Warning, "StoreWentBack", message, "controller");
    }
}

/// Lets nodes be heard again, if no record speaks of the present as it was.
pub fn set_ready(draft: &mut Draft) {
    let view = draft.view();
    let Some(row) = view.cluster().filter(|_| is_unready(view) && stale(view).is_empty()) else { return };
    let mut cluster = (*row.value).clone();
    if let Some(recovery) = &mut cluster.recovery {
        recovery.unready = false;
    }
    draft.put(cluster);
}

/// Refuses a node that was told last that it is of a cluster which this one never was: another group speaks for the cloud
/// by now. One that recovers hears everybody, since it may be the next of several attempts.
///
/// # Errors
/// `OtherCluster`.
pub fn admit_cluster(view: &View, theirs: ClusterId) -> Result<(), Refusal> {
    let Some(cluster) = view.cluster().filter(|cluster| cluster.recovery.is_none()) else { return Ok(()) };
    if cluster.id == theirs || cluster.former.contains(&theirs) {
        return Ok(());
    }
    let message = format!(
        "this node belongs to cluster {theirs} by now, and this is {}: another group of controllers speaks for the cloud",
        cluster.id
    );
    Err(Refusal::precondition("OtherCluster", message))
}
