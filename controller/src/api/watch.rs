//! Watches: the present state, then every change, from any point of the kept history. A watcher is a cursor over
//! the cache's commits and never holds anybody up; one that is too slow is told to list again.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tamdao_model::Scope;
use tamdao_model::selector::Selector;
use tamdao_proto::v1::WatchEvent;
use tamdao_store::cache::Commit;
use tamdao_store::kv::Revision;
use tamdao_store::view::{Delta, Row, View};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use super::page::{cursor, read_cursor};
use super::standard::Standard;
use super::{Api, scope_of};
use crate::access::{Asking, Caller};
use crate::forward::{self, Leader};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// A stream of a watch.
pub type Events<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// Messages that wait for a slow reader before the cursor waits with them.
pub(super) const AHEAD: usize = 64;
/// An idle watch gets a bookmark this often, so that its cursor stays within the kept history.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);
/// An idle watch looks this often whether quiet still means that nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A watch ends after so long without a leader: longer than any election, and another controller may know one.
const LEADERLESS: Duration = Duration::from_secs(10);

/// Which resources a watch is for.
struct Filter {
    scope: Option<Scope>,
    /// A name or an id; empty means all.
    name: String,
    labels: Selector,
}

impl Filter {
    fn takes<T: Standard>(&self, resource: &T, caller: &Caller, view: &View) -> bool {
        let meta = resource.meta();
        self.scope.is_none_or(|scope| scope == resource.scope())
            && (self.name.is_empty()
                || meta.name.as_str() == self.name
                || Uuid::parse_str(&self.name).is_ok_and(|id| id == meta.id))
            && self.labels.matches(&meta.labels)
            && caller.sees(&resource.owners(view))
    }
}

impl Api {
    pub(super) async fn watch<T: Standard, M: Send + 'static>(
        &self,
        asking: Asking,
        agency: &str,
        name: &str,
        labels: &str,
        from: &str,
        message: fn(WatchEvent, Option<T::Proto>, String) -> M,
    ) -> Result<Events<M>, Refusal> {
        let labels = Selector::parse("labels", labels)?;
        let cluster = self.cluster_id();
        let from = read_cursor(cluster, from)?;
        let (view, caller) = self.admitted(&asking).await?;
        let scope = match agency {
            "" => None,
            agency => Some(scope_of(&view, agency)?),
        };
        if let Some(from) = from {
            // Tell at once, as an answer and not as the end of a stream, that the cursor is too old.
            self.shared.cache.after(from)?;
        }
        let filter = Filter { scope, name: name.to_owned(), labels };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let api = self.clone();
        tokio::spawn(async move {
            let ended = api.follow::<T, M>(&sender, (view, caller), from, &filter, &asking, message).await;
            if let Err(refusal) = ended {
                // The reader may be gone; then nobody wants to know.
                let _ = sender.send(Err(refusal.into())).await;
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    async fn follow<T: Standard, M>(
        &self,
        sender: &mpsc::Sender<Result<M, Status>>,
        (view, caller): (std::sync::Arc<View>, Caller),
        from: Option<Revision>,
        filter: &Filter,
        asking: &Asking,
        message: fn(WatchEvent, Option<T::Proto>, String) -> M,
    ) -> Result<(), Refusal> {
        let cluster = self.cluster_id();
        let at = from.unwrap_or(view.revision);
        if from.is_none() {
            for row in T::rows(&view).iter().filter(|row| filter.takes(&*row.value, &caller, &view)) {
                // No cursor yet: resuming amid the first list must begin it anew.
                let put = message(WatchEvent::Put, Some(self.show(row, &view)), String::new());
                if sender.send(Ok(put)).await.is_err() {
                    return Ok(());
                }
            }
            let bookmark = message(WatchEvent::Bookmark, None, cursor(cluster, at));
            if sender.send(Ok(bookmark)).await.is_err() {
                return Ok(());
            }
        }
        drop(view);
        let changes_of = |commit: &Commit, caller: &Caller, newest: &View| {
            let changes =
                commit.deltas.iter().flat_map(|delta| changes_of::<T>(delta, filter, caller, newest));
            changes.map(|(event, row)| (event, self.show(&row, newest))).collect()
        };
        self.tell(sender, asking, at, message, changes_of).await
    }

    /// Judges anew, whenever something has changed, whether the reader may still ask: a token may be revoked, and an
    /// agency stand elsewhere. Tells him what `changes_of` makes of each commit after `at`, with bookmarks between,
    /// until he goes away.
    ///
    /// # Errors
    /// When he may ask no longer, when the history no longer reaches back to where the reader is, or this controller no
    /// longer hears what is committed.
    pub(super) async fn tell<P, M>(
        &self,
        sender: &mpsc::Sender<Result<M, Status>>,
        asking: &Asking,
        mut at: Revision,
        message: fn(WatchEvent, Option<P>, String) -> M,
        changes_of: impl Fn(&Commit, &Caller, &View) -> Vec<(WatchEvent, P)>,
    ) -> Result<(), Refusal> {
        let cluster = self.cluster_id();
        let mut changes = self.shared.cache.changes();
        let mut told = at;
        let mut bookmarked = Instant::now();
        let mut quiet = Quiet::begin();
        loop {
            let newest = changes.borrow_and_update().clone();
            let caller = asking.judge(&newest, self.shared.clock.now())?;
            let commits = self.shared.cache.after(at)?;
            let caught_up = commits.is_empty();
            for commit in commits {
                let changes = changes_of(&commit, &caller, &newest);
                let last = changes.len().wrapping_sub(1);
                for (place, (event, resource)) in changes.into_iter().enumerate() {
                    // A commit is told as a whole: resuming amid it must tell all of it again.
                    told = if place == last { commit.revision } else { at };
                    let next = message(event, Some(resource), cursor(cluster, told));
                    if sender.send(Ok(next)).await.is_err() {
                        return Ok(());
                    }
                }
                at = commit.revision;
            }
            if !caught_up {
                continue;
            }
            at = at.max(newest.revision);
            drop(newest);
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(Refusal::unavailable("the controller is stopping"));
                    }
                }
                () = sender.closed() => return Ok(()),
                still = quiet.last(&self.shared) => still?,
            }
            if at > told && bookmarked.elapsed() >= BOOKMARK_EVERY {
                (told, bookmarked) = (at, Instant::now());
                if sender.send(Ok(message(WatchEvent::Bookmark, None, cursor(cluster, at)))).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Whether the quiet of an idle watch means that nothing happens.
struct Quiet {
    /// When a leader was last known.
    led: Instant,
}

impl Quiet {
    fn begin() -> Self {
        Self { led: Instant::now() }
    }

    /// Lets some time pass.
    ///
    /// # Errors
    /// When it would deceive: this controller no longer hears what is committed.
    async fn last(&mut self, shared: &Shared) -> Result<(), Refusal> {
        tokio::time::sleep(LOOK_EVERY).await;
        match shared.leader() {
            Leader::Removed => return Err(forward::removed()),
            Leader::Nobody if self.led.elapsed() >= LEADERLESS => return Err(forward::no_leader()),
            Leader::Nobody => {}
            Leader::Here | Leader::At(_) => self.led = Instant::now(),
        }
        Ok(())
    }
}

/// What a change of any record is to this watch: that of its own resources, or of others that are shown in them.
fn changes_of<T: Standard>(
    delta: &Delta,
    filter: &Filter,
    caller: &Caller,
    newest: &View,
) -> Vec<(WatchEvent, Row<T>)> {
    let shown_in =
        T::shows(delta, newest).into_iter().filter(|row| filter.takes(&*row.value, caller, newest));
    let shown_in = shown_in.map(|row| (WatchEvent::Put, row));
    change::<T>(delta, filter, caller, newest).into_iter().chain(shown_in).collect()
}

/// What a change is to this watch: a resource that no longer passes the filter is gone for it.
fn change<T: Standard>(
    delta: &Delta,
    filter: &Filter,
    caller: &Caller,
    view: &View,
) -> Option<(WatchEvent, Row<T>)> {
    let taken = |record: &Option<tamdao_store::view::Record>| {
        record
            .as_ref()
            .and_then(T::from_record)
            .filter(|value| filter.takes(&***value, caller, view))
            .cloned()
    };
    let revision = delta.revision;
    match (taken(&delta.before), taken(&delta.after)) {
        (_, Some(value)) => Some((WatchEvent::Put, Row { value, revision })),
        (Some(value), None) => Some((WatchEvent::Deleted, Row { value, revision })),
        (None, None) => None,
    }
}
