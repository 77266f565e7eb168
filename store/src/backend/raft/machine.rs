//! The state machine that the consensus library drives: the pure core, and its snapshots.
//!
//! Its invariant: what is applied is exactly the log's prefix, in order, and readers see it before
//! the proposer is answered. A snapshot begins as a clone of a few pointers and is written by a
//! blocking task, so that applying never waits for it. Deliberately absent: persistence on apply;
//! after a restart the state is the newest snapshot and the committed log after it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use futures::{Stream, StreamExt as _};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;

use super::codec;
use super::snapshot::{Image, SnapshotError, SnapshotFile, Snapshots};
use super::types::{LogId, Proposal, Reply, SnapshotMeta, StoredMembership, Types};
use crate::hub::Hub;
use crate::kv::Checkpoint;
use crate::mvcc::Mvcc;

/// How many entries lie between two digests; equal on all members, or nothing could be compared.
const CHECKPOINT_ENTRIES: u64 = 256;
/// How many digests are kept.
const CHECKPOINTS: usize = 64;
const RECENT: &str = "no code under this lock panics";

type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotFile>;

/// The state machine of one member.
pub struct Machine {
    hub: Arc<Hub>,
    snapshots: Arc<Snapshots>,
    progress: Arc<Progress>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// How far this member has applied, for readers that wait for it.
pub struct Progress {
    applied: watch::Sender<u64>,
    checkpoints: Mutex<VecDeque<Checkpoint>>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { applied: watch::Sender::new(0), checkpoints: Mutex::default() }
    }
}

impl Progress {
    /// Waits until the entry at `index` is applied here.
    pub async fn reached(&self, index: u64) {
        // An error would mean that the sender is gone, and it is ours.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= index).await;
    }

    /// Recent digests, oldest first.
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        self.checkpoints.lock().expect(RECENT).iter().copied().collect()
    }
}

impl Machine {
    /// A state machine at a snapshot, or empty.
    pub fn new(
        hub: Arc<Hub>,
        snapshots: Arc<Snapshots>,
        progress: Arc<Progress>,
        image: Option<Image>,
    ) -> Machine {
        let mut machine =
            Machine { hub, snapshots, progress, applied: None, membership: StoredMembership::default() };
        if let Some(image) = image {
            machine.restore(image);
        }
        machine
    }

    fn restore(&mut self, image: Image) {
        self.applied = image.meta.last_log_id;
        self.membership = image.meta.last_membership;
        self.hub.write(|mvcc| *mvcc = Mvcc::from(image.view));
        self.report();
    }

    fn report(&self) {
        let index = self.applied.map_or(0, |id| id.index);
        self.progress.applied.send_replace(index);
    }

    fn checkpoint(&self) {
        let Some(index) = self.applied.map(|id| id.index).filter(|index| index % CHECKPOINT_ENTRIES == 0)
        else {
            return;
        };
        let (revision, digest) = self.hub.read(|mvcc| (mvcc.revision(), mvcc.digest()));
        let mut recent = self.progress.checkpoints.lock().expect(RECENT);
        recent.push_back(Checkpoint { index, revision, digest });
        if recent.len() > CHECKPOINTS {
            recent.pop_front();
        }
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let log_id = entry.log_id();
            let reply = match entry.payload {
                EntryPayload::Blank => Reply(None),
                EntryPayload::Normal(Proposal(bytes)) => {
                    let command = codec::read_command(&bytes)?;
                    Reply(Some(self.hub.apply(command)))
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    Reply(None)
                }
            };
            self.applied = Some(log_id);
            self.checkpoint();
            self.report();
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        let image = Image { meta, view: self.hub.view() };
        Builder { image: Arc::new(image), snapshots: Arc::clone(&self.snapshots) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let snapshots = Arc::clone(&self.snapshots);
        let expected = meta.clone();
        let image = blocking(move || {
            let image = match snapshot.image {
                Some(image) => Arc::unwrap_or_clone(image),
                None => snapshots.read(&snapshot.path)?,
            };
            if image.meta != expected {
                let reason = format!("it is {}, expected {expected}", image.meta);
                return Err(SnapshotError::Corrupt { path: snapshot.path.display().to_string(), reason });
            }
            snapshots.adopt(&image.meta, &snapshot.path)?;
            Ok(image)
        });
        self.restore(image.await?);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = Arc::clone(&self.snapshots);
        let latest = blocking(move || snapshots.latest_file()).await?;
        Ok(latest.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// One snapshot in the making: the state is fixed already.
pub struct Builder {
    image: Arc<Image>,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (image, snapshots) = (Arc::clone(&self.image), Arc::clone(&self.snapshots));
        let meta = image.meta.clone();
        let snapshot = blocking(move || snapshots.write(&image)).await?;
        tracing::info!(path = %snapshot.path.display(), "snapshot written");
        Ok(Snapshot { meta, snapshot })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
    done.map_err(io::Error::other)
}
