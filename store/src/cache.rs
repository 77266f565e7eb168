//! The cache: the store's whole state in memory at one revision, and its recent changes for public watches.
//!
//! Its invariant: the published view is a state that the store had, and views only go forward. A watcher is a
//! cursor over the kept changes, with no queue of its own. When the store's history is gone the cache lists again;
//! watchers from before that are told so. Deliberately absent: writes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

use crate::kv::{Batch, Change, Kv, Prefix, Read, Revision, StoreError};
use crate::view::{Delta, Unreadable, View};

/// Changes kept for watchers, bytes of the records as they were written. What is kept are records in memory, which
/// take about as much again; those that are still the newest would be held anyway.
const KEPT_BYTES: usize = 6 << 20;
/// Commits that are told at once.
pub const COMMITS: usize = 1_000;

/// All that one commit changed.
#[derive(Debug, Clone)]
pub struct Commit {
    pub revision: Revision,
    pub deltas: Arc<[Delta]>,
}

/// Why the cache cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record of a later version, or a damaged one: serving around it would hide it.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The reader's side of the cache; a clone is another handle.
#[derive(Clone)]
pub struct Cache {
    view: watch::Receiver<Arc<View>>,
    history: Arc<Mutex<History>>,
}

/// Recent commits. Everything after `oldest` is there.
struct History {
    oldest: Revision,
    /// Each with its bytes.
    commits: VecDeque<(Commit, usize)>,
    bytes: usize,
}

/// Keeps a cache up to date; [`Feed::run`] it as a task.
pub struct Feed {
    kv: Arc<dyn Kv>,
    view: watch::Sender<Arc<View>>,
    history: Arc<Mutex<History>>,
}

impl Cache {
    /// An empty cache and the task that fills it.
    pub fn new(kv: Arc<dyn Kv>) -> (Self, Feed) {
        let (sender, view) = watch::channel(Arc::new(View::default()));
        let history = History { oldest: Revision::ZERO, commits: VecDeque::new(), bytes: 0 };
        let history = Arc::new(Mutex::new(history));
        (Self { view, history: history.clone() }, Feed { kv, view: sender, history })
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The newest view, once it holds `revision`.
    ///
    /// # Errors
    /// `Unavailable` when the cache is stopped.
    pub async fn at_least(&self, revision: Revision) -> Result<Arc<View>, StoreError> {
        let mut view = self.view.clone();
        let seen = view.wait_for(|view| view.revision >= revision).await;
        seen.map(|view| view.clone()).map_err(|_| StoreError::unavailable("the cache has stopped"))
    }

    /// A receiver that wakes with every new view.
    pub fn changes(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// The commits after a revision, as far as they are here, [`COMMITS`] at once; empty means that there are none yet.
    /// Those that changed nothing of a known kind are left out.
    ///
    /// # Errors
    /// `Compacted` when some of them are no longer kept.
    pub fn after(&self, revision: Revision) -> Result<Vec<Commit>, StoreError> {
        let history = self.history.lock().expect("no holder of the lock panics");
        if revision < history.oldest {
            return Err(StoreError::Compacted { oldest: history.oldest });
        }
        let from = history.commits.partition_point(|(commit, _)| commit.revision <= revision);
        Ok(history.commits.range(from..).take(COMMITS).map(|(commit, _)| commit.clone()).collect())
    }
}

impl Feed {
    /// Runs until an error that a retry does not cure.
    pub async fn run(self) -> CacheError {
        let mut pause = Duration::from_millis(20);
        loop {
            match self.follow().await {
                Ok(()) | Err(CacheError::Store(StoreError::Compacted { .. })) => {
                    pause = Duration::from_millis(20)
                }
                Err(CacheError::Store(StoreError::Unavailable { .. })) => {}
                Err(error) => return error,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Lists everything and follows what comes after, until the stream ends.
    async fn follow(&self) -> Result<(), CacheError> {
        let mut view = self.view.borrow().as_ref().clone();
        // Going on from where we are spares the list, unless nothing is here or history is gone.
        if view.revision == Revision::ZERO || self.kv.status().oldest > view.revision {
            view = self.list().await?;
        }
        let mut stream = self.kv.watch(&Prefix::all(), view.revision).await?;
        while let Some(batch) = stream.next().await {
            self.fold(&mut view, batch?)?;
        }
        Ok(())
    }

    async fn list(&self) -> Result<View, CacheError> {
        let (entries, revision) = self.kv.list(&Prefix::all(), Read::AtLeast(Revision::ZERO)).await?;
        let mut view = View { revision, ..View::default() };
        for entry in entries {
            view.fold(&Change::Put(entry))?;
        }
        let mut history = self.history.lock().expect("no holder of the lock panics");
        *history = History { oldest: revision, commits: VecDeque::new(), bytes: 0 };
        self.view.send_replace(Arc::new(view.clone()));
        Ok(view)
    }

    fn fold(&self, view: &mut View, batch: Batch) -> Result<(), CacheError> {
        let mut deltas = Vec::with_capacity(batch.changes.len());
        let bytes = batch.changes.iter().map(Change::bytes).sum();
        for change in &batch.changes {
            if let Some(mut delta) = view.fold(change)? {
                delta.revision = batch.revision;
                deltas.push(delta);
            }
        }
        view.revision = batch.revision;
        // Both under the lock: who finds a commit finds a view that holds it, and the other way round.
        let mut history = self.history.lock().expect("no holder of the lock panics");
        history.push(batch.revision, deltas, bytes);
        self.view.send_replace(Arc::new(view.clone()));
        Ok(())
    }
}

impl History {
    fn push(&mut self, revision: Revision, deltas: Vec<Delta>, bytes: usize) {
        if deltas.is_empty() {
            return;
        }
        self.bytes += bytes;
        self.commits.push_back((Commit { revision, deltas: deltas.into() }, bytes));
        while self.bytes > KEPT_BYTES {
            let Some((first, bytes)) = self.commits.pop_front() else { break };
            self.bytes -= bytes;
            self.oldest = first.revision;
        }
    }
}
