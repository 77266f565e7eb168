//! The state that readers and watchers of one process share, and the watch itself.
//!
//! Its invariant: a watcher is a cursor over the one ordered history and has no queue of its own,
//! so a writer never waits for it and memory does not grow with the number or the slowness of
//! watchers. Waking is by a level (the newest revision), so no wake-up can be lost. Deliberately
//! absent: who may read, and whether what is read is fresh enough; a backend decides that first.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::kv::{Batch, Change, Prefix, Result, Revision, StoreError};
use crate::mvcc::{Applied, Command, Mvcc, View};

/// How long a cursor may lag behind others' commits before a bookmark tells its owner of them.
const BOOKMARK_DELAY: Duration = Duration::from_millis(200);
/// How many of others' commits call for a bookmark at once.
const BOOKMARK_COMMITS: u64 = 512;
/// How many commits a watcher looks through while it holds the read lock.
const SCAN_COMMITS: usize = 256;

/// The state with its level-triggered bell.
pub(crate) struct Hub {
    mvcc: RwLock<Mvcc>,
    bell: watch::Sender<Bell>,
}

#[derive(Clone, Debug, Default)]
struct Bell {
    revision: Revision,
    /// Why the backend stopped, once it has.
    closed: Option<String>,
}

impl Hub {
    pub(crate) fn new(mvcc: Mvcc) -> Arc<Hub> {
        let bell = Bell { revision: mvcc.revision(), closed: None };
        Arc::new(Hub { mvcc: RwLock::new(mvcc), bell: watch::Sender::new(bell) })
    }

    /// Lets `write` change the state, then wakes whoever waits for a newer one.
    pub(crate) fn write<T>(&self, write: impl FnOnce(&mut Mvcc) -> T) -> T {
        let (result, revision) = {
            let mut mvcc = self.mvcc.write().expect("a panic while applying leaves no state to serve");
            let result = write(&mut mvcc);
            (result, mvcc.revision())
        };
        self.bell.send_if_modified(|bell| {
            let moved = bell.revision != revision;
            bell.revision = revision;
            moved
        });
        result
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Mvcc) -> T) -> T {
        read(&self.mvcc.read().expect("a panic while applying leaves no state to serve"))
    }

    pub(crate) fn apply(&self, command: Command) -> Applied {
        self.write(|mvcc| mvcc.apply(command))
    }

    /// The state now; the lock is held for the clone of a few pointers only.
    pub(crate) fn view(&self) -> View {
        self.read(Mvcc::view)
    }

    pub(crate) fn revision(&self) -> Revision {
        self.bell.borrow().revision
    }

    /// Waits until `revision` is applied here.
    pub(crate) async fn reached(&self, revision: Revision) -> Result<()> {
        let mut bell = self.bell.subscribe();
        let now = bell
            .wait_for(|bell| bell.revision >= revision || bell.closed.is_some())
            .await
            .expect("the hub owns the sender and outlives this borrow");
        match &now.closed {
            Some(reason) if now.revision < revision => Err(StoreError::unavailable(reason.clone())),
            _ => Ok(()),
        }
    }

    /// Ends all watches and waits, for a backend that stops.
    pub(crate) fn close(&self, reason: &str) {
        self.bell.send_if_modified(|bell| {
            let first = bell.closed.is_none();
            if first {
                bell.closed = Some(reason.to_owned());
            }
            first
        });
    }

    /// A cursor over the history; `after` has been reached already.
    pub(crate) fn watch(
        self: &Arc<Self>,
        prefix: &Prefix,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Batch>>> {
        let oldest = self.read(Mvcc::oldest);
        if after < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let cursor = Cursor {
            bell: self.bell.subscribe(),
            hub: Arc::clone(self),
            prefix: prefix.clone(),
            seen: after,
            told: after,
            passed_at: None,
            ended: false,
        };
        Ok(futures::stream::unfold(cursor, |mut cursor| async move {
            let item = cursor.next().await?;
            cursor.ended = item.is_err();
            Some((item, cursor))
        })
        .boxed())
    }

    /// Looks through history after `cursor`, a bounded piece at a time.
    fn scan(&self, prefix: &Prefix, cursor: Revision) -> Scan {
        self.read(|mvcc| {
            if cursor < mvcc.oldest() {
                return Scan::Compacted(mvcc.oldest());
            }
            let mut passed = cursor;
            for _ in 0..SCAN_COMMITS {
                // Not `passed`: the newest revision may have changed nothing.
                let Some(commit) = mvcc.commit_after(passed) else { return Scan::End(mvcc.revision()) };
                passed = commit.revision;
                let changes: Vec<Change> =
                    commit.changes.iter().filter(|change| prefix.contains(change.key())).cloned().collect();
                if !changes.is_empty() {
                    return Scan::Found(Batch { revision: passed, changes });
                }
            }
            Scan::More(passed)
        })
    }
}

enum Scan {
    Found(Batch),
    /// Nothing through this revision, and there is more to look through.
    More(Revision),
    /// Nothing through this revision, which is the newest.
    End(Revision),
    Compacted(Revision),
}

struct Cursor {
    hub: Arc<Hub>,
    bell: watch::Receiver<Bell>,
    prefix: Prefix,
    /// Looked through up to here.
    seen: Revision,
    /// What the reader has been told, by a batch or a bookmark.
    told: Revision,
    /// When `seen` first went ahead of `told`.
    passed_at: Option<Instant>,
    ended: bool,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<Batch>> {
        if self.ended {
            return None;
        }
        loop {
            match self.hub.scan(&self.prefix, self.seen) {
                Scan::Found(batch) => return Some(Ok(self.tell(batch))),
                Scan::Compacted(oldest) => return Some(Err(StoreError::Compacted { oldest })),
                Scan::More(passed) => {
                    self.pass(passed);
                    // A long history must not keep other tasks of this thread waiting.
                    tokio::task::yield_now().await;
                    continue;
                }
                Scan::End(passed) => self.pass(passed),
            }
            if self.seen.0 - self.told.0 >= BOOKMARK_COMMITS {
                return Some(Ok(self.bookmark()));
            }
            if let Err(ended) = self.wait().await {
                return Some(ended);
            }
        }
    }

    /// Waits for a newer revision; `Err` carries the bookmark or the end that came first.
    async fn wait(&mut self) -> std::result::Result<(), Result<Batch>> {
        let seen = self.seen;
        let bell = &mut self.bell;
        let moved = async {
            let bell = bell.wait_for(|bell| bell.revision > seen || bell.closed.is_some()).await;
            bell.map(|bell| bell.clone())
        };
        let bell = match self.passed_at {
            None => Some(moved.await),
            Some(since) => tokio::time::timeout_at(since + BOOKMARK_DELAY, moved).await.ok(),
        };
        match bell {
            None => Err(Ok(self.bookmark())),
            Some(Ok(bell)) if bell.revision > seen => Ok(()),
            Some(Ok(bell)) => Err(Err(StoreError::unavailable(bell.closed.unwrap_or_default()))),
            Some(Err(_)) => Err(Err(StoreError::unavailable("the store is gone"))),
        }
    }

    fn pass(&mut self, passed: Revision) {
        self.seen = passed;
        if self.seen > self.told && self.passed_at.is_none() {
            self.passed_at = Some(Instant::now());
        }
    }

    fn bookmark(&mut self) -> Batch {
        self.tell(Batch { revision: self.seen, changes: Vec::new() })
    }

    fn tell(&mut self, batch: Batch) -> Batch {
        self.seen = batch.revision;
        self.told = batch.revision;
        self.passed_at = None;
        batch
    }
}
