//! A store that went back in time: a node has seen what it has not reached, such as after an operator's own restore of
//! etcd, or when an old disk was put back.
//!
//! Its invariant: from the hello that tells of it until every record has been readied no node is told anything, and
//! none is heard; then the cloud recovers as after a restore (decision 0214). Whoever says hello does the work that is
//! still to do, so that it goes on under the next leader. Deliberately absent: what is made of the records
//! (`decide::restore`).

use futures::future::try_join_all;
use tamdao_model::NodeId;
use tamdao_proto::agent::v1 as agent;
use tamdao_store::kv::Revision;
use tamdao_store::view::View;

use super::{Session, read_id};
use crate::decide::{restore, went_back};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// Records that one decision readies; all must fit a transaction.
const BATCH: usize = 8;
/// Decisions that are handed in at once.
const TOGETHER: usize = 64;
/// No store comes so far; up to here every JSON reader counts.
const REVISIONS: u64 = 1 << 53;

/// Judges what a node has seen, before its hello is committed; `now` is a revision that a barrier gave, and `epoch` our
/// office's. Where the store is found to have gone back, or was before, its records are ready once this returns.
///
/// # Errors
/// `OtherCluster` for a node of a group that is not ours; as [`Writer::submit`](crate::admission::Writer::submit).
pub async fn judge(
    shared: &Shared,
    node: NodeId,
    hello: &agent::Hello,
    epoch: Revision,
    now: Revision,
) -> Result<(), Refusal> {
    let view = shared.cache.at_least(now).await?;
    if !hello.cluster_id.is_empty() {
        went_back::admit_cluster(&view, read_id("cluster_id", &hello.cluster_id)?)?;
    }
    let base = went_back::base(&view);
    let pairs = [(hello.highest_revision, now), (hello.highest_epoch, epoch)];
    let ahead = pairs.into_iter().find(|(theirs, ours)| *theirs > base + ours.0);
    if let Some((seen, ours)) = ahead {
        if seen >= REVISIONS {
            return Err(Refusal::field("highest_revision", format!("{seen} is no revision")));
        }
        let at = base + ours.0;
        tracing::error!(%node, revision = at, theirs = seen, "the store went back in time, the cloud recovers");
        let decided = shared.writer.submit(move |draft, moment| {
            went_back::go_back(draft, moment, node, seen, at);
            Ok(())
        });
        let (_, revision) = decided.await?;
        shared.cache.at_least(revision).await?;
    }
    make_ready(shared).await
}

/// Has no record speak of the present as it was, and lets nodes be heard again.
async fn make_ready(shared: &Shared) -> Result<(), Refusal> {
    if !went_back::is_unready(&shared.cache.view()) {
        return Ok(());
    }
    // All nodes say hello at once; one of them does the work.
    let _alone = shared.sessions.readying.lock().await;
    loop {
        let view = shared.cache.view();
        if !went_back::is_unready(&view) {
            return Ok(());
        }
        let stale = went_back::stale(&view);
        let parts = stale.chunks(BATCH).take(TOGETHER).map(|part| {
            let part = part.to_vec();
            shared.writer.submit(move |draft, moment| {
                let floor = restore::incarnations(went_back::told(draft.view()));
                part.iter().for_each(|what| restore::freshen(draft, moment.now, floor, what));
                Ok(())
            })
        });
        let done = try_join_all(parts).await?;
        // The last word is decided on what is committed before it, whoever wrote that.
        let (_, revision) = shared
            .writer
            .submit(|draft, _| {
                went_back::set_ready(draft);
                Ok(())
            })
            .await?;
        let newest = done.into_iter().map(|(_, at)| at).max().unwrap_or_default();
        shared.cache.at_least(revision.max(newest)).await?;
    }
}

/// Whether a session rests on records that went back in time while it was opened.
pub fn is_void(view: &View, session: &Session) -> bool {
    let known = view.nodes.get(session.node).and_then(|node| node.status.session);
    went_back::is_unready(view) || known != Some(session.id)
}
