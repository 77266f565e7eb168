//! The past, as far as the cache keeps it: the records that the engine looks at as they were after each commit.
//!
//! Its invariant: undoing commits from the newest view, the newest first, gives the views that they were folded into.
//! Deliberately absent: records that decide no place, such as events; of those a view of the past has the newest.

use tamdao_model::assignment::Assignment;
use tamdao_model::network::Network;
use tamdao_model::node::Node;
use tamdao_model::placement_group::PlacementGroup;
use tamdao_model::pool::Pool;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::vm::Vm;
use tamdao_model::volume::Volume;
use tamdao_store::cache::{Cache, Commit};
use tamdao_store::kv::Revision;
use tamdao_store::typed::Draft;
use tamdao_store::view::{Held, Record, View};
use uuid::Uuid;

/// All commits after one revision through another; none if some are no longer kept.
pub fn commits(cache: &Cache, after: Revision, through: Revision) -> Option<Vec<Commit>> {
    let (mut all, mut at) = (Vec::new(), after);
    loop {
        let next = cache.after(at).ok()?;
        let within = next.partition_point(|commit| commit.revision <= through);
        let Some(last) = next[..within].last() else { return Some(all) };
        at = last.revision;
        all.extend_from_slice(&next[..within]);
    }
}

/// The view after each of the commits, of which the last ends at `end`.
pub fn views(end: &View, commits: &[Commit]) -> Vec<View> {
    let mut view = end.clone();
    let mut views = Vec::with_capacity(commits.len());
    for (at, commit) in commits.iter().enumerate().rev() {
        let next = if at == 0 { view.clone() } else { before(&view, commit) };
        views.push(std::mem::replace(&mut view, next));
    }
    views.reverse();
    views
}

/// The view without its newest commit.
pub fn before(view: &View, commit: &Commit) -> View {
    let mut draft = Draft::new(view.clone(), Uuid::nil());
    for delta in commit.deltas.iter().rev() {
        let Some(record) = delta.after.as_ref().or(delta.before.as_ref()) else { continue };
        let before = delta.before.as_ref();
        put_back::<Node>(&mut draft, record, before);
        put_back::<Assignment>(&mut draft, record, before);
        put_back::<Pool>(&mut draft, record, before);
        put_back::<Volume>(&mut draft, record, before);
        put_back::<Vm>(&mut draft, record, before);
        put_back::<Network>(&mut draft, record, before);
        put_back::<PlacementGroup>(&mut draft, record, before);
        put_back::<SchedulingPolicy>(&mut draft, record, before);
    }
    View { revision: Revision(commit.revision.0.saturating_sub(1)), ..draft.view().clone() }
}

/// Puts back what a record was, if it is of this kind.
fn put_back<T: Held>(draft: &mut Draft, record: &Record, before: Option<&Record>) {
    let Some(value) = T::from_record(record) else { return };
    match before.and_then(T::from_record) {
        Some(before) => draft.put((**before).clone()),
        None => draft.delete::<T>(value.key()),
    }
}
