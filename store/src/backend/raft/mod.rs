//! The store on Raft: the same core as in memory, replicated by `openraft` between controllers.
//!
//! Log, vote and membership are on disk and fsynced before anything is acknowledged; the state is
//! in memory, and on disk as snapshots. Every name of the consensus library stays inside this
//! directory, so that the library can be replaced here (docs/decisions/0010). Deliberately absent:
//! TLS and the server itself, which the controller owns; it mounts [`RaftStore::service`].

mod codec;
mod disk;
mod election;
mod ended;
mod log;
mod machine;
mod membership;
mod network;
mod node;
mod odd;
#[cfg(test)]
mod power_cuts;
mod remains;
mod seed;
mod service;
mod snapshot;
#[cfg(test)]
mod suite;
mod types;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use openraft::async_runtime::watch::WatchReceiver as _;
use tamdao_proto::raft::v1::raft_service_server::RaftServiceServer;
use tokio::time::Instant;
use uuid::Uuid;

pub use disk::DiskError;
pub use network::{Dial, DialError, PlainDial, tune};
pub use remains::Remains;
pub use service::Service;
pub use snapshot::SnapshotError;

use crate::files::{Files, System, make_folder};
use crate::hub::Hub;
use crate::kv::{
    Batch, Checkpoint, Entry, Key, Kv, Member, Prefix, Read, Result, Revision, Status, StoreError, Txn,
};
use crate::mvcc::{Applied, Command, Mvcc};
use disk::Disk;
use log::Log;
use machine::{Machine, Progress};
use network::{MESSAGE_LIMIT, Network, Peers};
use node::Node;
use snapshot::Snapshots;
use types::Seat;

const NODE_ID: &str = "node_id";
const CLUSTER_ID: &str = "cluster_id";
/// In the member's directory.
const LOG_FILE: &str = "log.redb";
/// How often the members' digests are compared: each member its own with all others', the leader also to tell.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// After how many vain attempts, a second or more apart, people are told that a new address is not known.
const UNHEARD: u32 = 15;
/// What helps a member whose own data cannot be believed.
const REJOIN: &str = "remove this controller from the cluster, empty its data directory and add it again; \
    a cluster that has no other one is restored from a backup";
const LOST: &str = "no leader hears of this controller's new address: a majority that has not moved, or lacks only \
    this one, must run; if several moved at once, put the old address of all but one back and move them one by one";

/// How one member is set up.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Where its data lies; made when it does not exist. One member, one directory.
    pub directory: PathBuf,
    /// The controller's name, unique in the cluster.
    pub name: String,
    /// Where other controllers dial this one; a change is announced to the leader on opening.
    pub address: String,
    /// How often the leader shows that it is there.
    pub heartbeat: Duration,
    /// The shortest silence after which a member stands for election; not less than half the longest and a heartbeat.
    pub election_min: Duration,
    /// The longest such silence.
    pub election_max: Duration,
    /// After how long a commit is `Unknown`, or `Unavailable` when it was never proposed.
    pub commit_timeout: Duration,
    /// After how long a read is `Unavailable`.
    pub read_timeout: Duration,
    /// After how long a change of the membership is `Unknown`; a new member catches up within it.
    pub join_timeout: Duration,
    /// After how many log entries a snapshot is written.
    pub snapshot_entries: u64,
    /// How many log entries are kept behind a snapshot, for members that were away for a while.
    pub keep_entries: u64,
    /// How many snapshots are kept.
    pub keep_snapshots: usize,
    /// How many bytes a second writing a snapshot may take from the disk.
    pub snapshot_rate: u64,
}

impl RaftConfig {
    /// The defaults, for a real network between a few rooms.
    pub fn new(directory: impl Into<PathBuf>, name: &str, address: &str) -> RaftConfig {
        RaftConfig {
            directory: directory.into(),
            name: name.into(),
            address: address.into(),
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_secs(1),
            election_max: Duration::from_secs(2),
            commit_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            join_timeout: Duration::from_secs(120),
            snapshot_entries: 10_000,
            keep_entries: 20_000,
            keep_snapshots: 3,
            snapshot_rate: 64 << 20,
        }
    }

    /// How long a quorum's word to its leader holds: for so long after it heard the leader, a member votes for
    /// nobody else. Decision 0060 says why it is half the longest silence.
    pub(crate) fn quorum_lease(&self) -> Duration {
        self.election_max / 2
    }
}

/// A member cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error("raft configuration: {0}")]
    Config(String),
    /// The log cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A snapshot is needed and cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The directory holds data that do not belong together.
    #[error("{directory}: {reason}")]
    Directory {
        /// The data directory.
        directory: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The consensus library refuses the data.
    #[error("the replicated log cannot be started: {0}")]
    Start(String),
}

/// One member of the group and its handle on the store; clones are the same member.
#[derive(Clone)]
pub struct RaftStore {
    node: Arc<Node>,
    _tending: Arc<Tending>,
}

/// Ends the background task with the last handle.
struct Tending(tokio::task::JoinHandle<()>);

impl Drop for Tending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RaftStore {
    /// Opens a member's data directory, or makes a new one. A new member belongs to no cluster
    /// until [`Self::init`] or [`Self::join`].
    ///
    /// # Errors
    /// When another process has it open, when something on disk cannot be believed, or when the
    /// configuration contradicts itself.
    pub async fn open(config: RaftConfig, dial: Arc<dyn Dial>) -> std::result::Result<RaftStore, OpenError> {
        RaftStore::open_on(Arc::new(System), config, dial).await
    }

    /// The same on files that are not the operating system's.
    async fn open_on(
        files: Arc<dyn Files>,
        config: RaftConfig,
        dial: Arc<dyn Dial>,
    ) -> std::result::Result<RaftStore, OpenError> {
        let library = library_config(&config)?;
        let opening = config.clone();
        let read = Arc::clone(&files);
        let opened = tokio::task::spawn_blocking(move || Opened::read(read, &opening)).await;
        let opened = opened.map_err(|error| OpenError::Start(error.to_string()))??;
        let Opened { id, cluster, disk, log, snapshots, image } = opened;
        let peers = Arc::new(Peers::new(dial, id));
        if let Some(cluster) = cluster {
            peers.join(cluster);
        }
        let hub = Hub::new(Mvcc::new());
        let progress = Arc::new(Progress::default());
        let machine = Machine::new(Arc::clone(&hub), Arc::clone(&snapshots), Arc::clone(&progress), image);
        let network = Network { peers: Arc::clone(&peers), patience: config.election_min };
        let raft = types::Raft::new(id, Arc::new(library), network, log, machine).await;
        let raft = raft.map_err(|error| OpenError::Start(error.to_string()))?;
        let (stopped, removed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (seats, odd) = (tokio::sync::Mutex::new(()), OnceLock::new());
        let node = Node {
            id,
            config,
            files,
            raft,
            hub,
            progress,
            snapshots,
            peers,
            disk,
            seats,
            stopped,
            removed,
            odd,
        };
        let node = Arc::new(node);
        let tending = Tending(tokio::spawn(tend(Arc::clone(&node))));
        Ok(RaftStore { node, _tending: Arc::new(tending) })
    }

    /// This member's Raft id: made with its data directory, gone with it.
    pub fn id(&self) -> u64 {
        self.node.id
    }

    /// The cluster that this member belongs to, once it belongs to one.
    pub fn cluster_id(&self) -> Option<Uuid> {
        self.node.peers.cluster()
    }

    /// This member's seat as its configuration has it.
    pub fn seat(&self) -> Member {
        let Node { id, config, .. } = &*self.node;
        Member { id: *id, name: config.name.clone(), address: config.address.clone(), voter: false }
    }

    /// What the controller mounts on its server for the other controllers, behind mutual TLS.
    pub fn service(&self) -> RaftServiceServer<Service> {
        RaftServiceServer::new(Service { node: Arc::clone(&self.node) })
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// Founds a cluster with this member as its only one. Doing it again with the same id is no
    /// change, so that an interrupted start can be repeated.
    ///
    /// # Errors
    /// `Invalid` when the member belongs to another cluster already; `Unavailable`.
    pub async fn init(&self, cluster: Uuid) -> Result<()> {
        self.join(cluster).await?;
        let stopped = |error| StoreError::unavailable(format!("{error}"));
        if self.node.raft.is_initialized().await.map_err(stopped)? {
            return Ok(());
        }
        let seat = Seat { name: self.node.config.name.clone(), address: self.node.config.address.clone() };
        let seats = std::collections::BTreeMap::from([(self.node.id, seat)]);
        self.node.raft.initialize(seats).await.map_err(|error| StoreError::unavailable(error.to_string()))
    }

    /// Binds this member to a cluster whose leader will seat it with `add_member`.
    ///
    /// # Errors
    /// `Invalid` when the member belongs to another cluster already; `Unavailable`.
    pub async fn join(&self, cluster: Uuid) -> Result<()> {
        let node = Arc::clone(&self.node);
        if node.peers.cluster().is_none() {
            let write = move || node.disk.put_now(CLUSTER_ID, cluster.as_bytes().to_vec());
            let written = tokio::task::spawn_blocking(write).await;
            let written = written.map_err(|error| StoreError::unavailable(error.to_string()))?;
            written.map_err(|error| StoreError::unavailable(error.to_string()))?;
        }
        let ours = self.node.peers.join(cluster);
        if ours != cluster {
            return Err(StoreError::invalid(format!("this controller belongs to cluster {ours} already")));
        }
        self.node.snapshots.belong_to(cluster);
        Ok(())
    }

    /// Asks for a snapshot now, without waiting for it.
    ///
    /// # Errors
    /// `Unavailable` when the store is stopped.
    pub async fn snapshot(&self) -> Result<()> {
        self.node.raft.trigger().snapshot().await.map_err(|error| StoreError::unavailable(error.to_string()))
    }

    /// The members whose state differs from this one's where both have a digest of the same entry;
    /// always empty unless there is a bug or a disk has lied. Members that do not answer are left
    /// out. The leader does this by itself every minute and logs what it finds.
    pub async fn compare(&self) -> Vec<(Member, Checkpoint)> {
        self.node.compare().await
    }

    /// Stops this member and closes its files; the directory can be opened again afterwards.
    /// Nothing has to be saved: what was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.node.stopped.store(true, Ordering::Release);
        if let Err(error) = self.node.raft.shutdown().await {
            tracing::error!(%error, "the replicated log did not stop cleanly");
        }
        self.node.hub.close("this controller's store is stopped");
        let (sender, closed) = tokio::sync::oneshot::channel();
        self.node.disk.stop(Box::new(move |result| drop(sender.send(result))));
        // An error means that the writer is gone already, which is what we wait for.
        let _ = closed.await;
    }
}

/// What a data directory holds.
struct Opened {
    id: u64,
    cluster: Option<Uuid>,
    disk: Arc<Disk>,
    log: Log,
    snapshots: Arc<Snapshots>,
    image: Option<snapshot::Image>,
}

impl Opened {
    fn read(files: Arc<dyn Files>, config: &RaftConfig) -> std::result::Result<Opened, OpenError> {
        let directory = &config.directory;
        let wrong =
            |reason: String| OpenError::Directory { directory: directory.display().to_string(), reason };
        make_folder(&*files, directory).map_err(|error| wrong(error.to_string()))?;
        let disk = Arc::new(Disk::open(&*files, &directory.join(LOG_FILE))?);
        let read = Opened::read_with(files, config, &disk);
        if read.is_err() {
            // So that the directory is free when the error is told, and not a little later.
            disk.stop_now();
        }
        read
    }

    fn read_with(
        files: Arc<dyn Files>,
        config: &RaftConfig,
        disk: &Arc<Disk>,
    ) -> std::result::Result<Opened, OpenError> {
        let directory = &config.directory;
        let wrong =
            |reason: String| OpenError::Directory { directory: directory.display().to_string(), reason };
        let io = |error: std::io::Error| wrong(error.to_string());
        let folder = directory.join("snapshots");
        let snapshots = Snapshots::open(files, folder, config.keep_snapshots, config.snapshot_rate)?;
        if let Some(reason) = disk.get(odd::ODD).map_err(io)? {
            return Err(wrong(String::from_utf8_lossy(&reason).into_owned()));
        }
        let id = match disk.get(NODE_ID).map_err(io)? {
            Some(bytes) => {
                let bytes: [u8; 8] = bytes.try_into().map_err(|_| wrong("its node id is no id".into()))?;
                u64::from_be_bytes(bytes)
            }
            // Snapshots without the log that they belong to: a new id must not inherit a state.
            None if !snapshots.is_empty()? => {
                return Err(wrong("it has snapshots but its log is gone".into()));
            }
            None => {
                // Zero stands for nobody in a message's header.
                let id = Uuid::new_v4().as_u64_pair().0.max(1);
                disk.put_now(NODE_ID, id.to_be_bytes().to_vec()).map_err(io)?;
                id
            }
        };
        let cluster = match disk.get(CLUSTER_ID).map_err(io)? {
            Some(bytes) => {
                Some(Uuid::from_slice(&bytes).map_err(|_| wrong("its cluster id is no id".into()))?)
            }
            None => None,
        };
        if let Some(cluster) = cluster {
            snapshots.belong_to(cluster);
        }
        let log = Log::load(Arc::clone(disk)).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => DiskError::corrupt(&directory.join(LOG_FILE), &error),
            _ => DiskError::Io(error),
        })?;
        let image = snapshots.load(log.purged())?;
        Ok(Opened { id, cluster, disk: Arc::clone(disk), log, snapshots: Arc::new(snapshots), image })
    }
}

fn library_config(config: &RaftConfig) -> std::result::Result<openraft::Config, OpenError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // The library lets its lease run out before it counts its election timeout, whose longest is the lease too. So
    // a member's silence is the sum of both.
    let lease = config.quorum_lease();
    let shortest = config.election_min.saturating_sub(lease).max(config.heartbeat + Duration::from_millis(1));
    let library = openraft::Config {
        cluster_name: "tamdao".into(),
        heartbeat_interval: millis(config.heartbeat),
        election_timeout_min: millis(shortest),
        election_timeout_max: millis(lease),
        // A whole snapshot has to arrive and be installed within it; a dead peer is noticed sooner
        // by keep-alive.
        install_snapshot_timeout: 600_000,
        max_payload_entries: 1024,
        replication_lag_threshold: config.snapshot_entries.saturating_mul(2),
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: config.keep_entries,
        purge_batch_size: config.keep_entries.clamp(1, 256),
        // Pre-vote keeps a member that comes back from deposing a healthy leader.
        enable_pre_vote: Some(true),
        backoff: "50ms 100ms 200ms ...1s".into(),
        ..openraft::Config::default()
    };
    library.validate().map_err(|error| OpenError::Config(error.to_string()))
}

/// Follows the library: ends the watches when it stops for good, announces a new address, and
/// compares the members' states.
async fn tend(node: Arc<Node>) {
    let mut metrics = node.raft.metrics();
    let mut compared = Instant::now();
    let mut unheard = 0;
    loop {
        let failed = metrics.borrow_watched().running_state.clone().err();
        if let Some(error) = failed {
            if !node.stopped.swap(true, Ordering::AcqRel) {
                tracing::error!(%error, "the replicated log has stopped, this controller must be restarted");
            }
            node.hub.close("this controller's store is stopped");
            return;
        }
        node.peers.note(&node.seated());
        let retry = if node.is_misplaced() {
            match node.announce().await {
                Ok(()) => unheard = 0,
                Err(error) => {
                    unheard += 1;
                    // An election is over by then; what is left is a group that cannot find its members.
                    if unheard == UNHEARD {
                        tracing::warn!(%error, "{LOST}");
                    }
                }
            }
            Duration::from_secs(1)
        } else {
            COMPARE_EVERY
        };
        if compared.elapsed() >= COMPARE_EVERY {
            compared = Instant::now();
            // Beside this task: a member that does not answer must not hold up the rest.
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                if node.leads() {
                    node.compare().await;
                }
                node.judge().await;
            });
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(retry) => {}
        }
    }
}

#[async_trait]
impl Kv for RaftStore {
    async fn get(&self, key: &Key, read: Read) -> Result<Option<Entry>> {
        self.node.ready(read).await?;
        Ok(self.node.hub.read(|mvcc| mvcc.get(key)))
    }

    async fn list(&self, prefix: &Prefix, read: Read) -> Result<(Vec<Entry>, Revision)> {
        self.node.ready(read).await?;
        let view = self.node.hub.view();
        Ok((view.list(prefix).collect(), view.revision))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision> {
        txn.validate()?;
        match self.node.propose(&Command::Txn(txn)).await? {
            (Applied::Committed(revision), _) => Ok(revision),
            (Applied::Conflict(key), _) => Err(StoreError::Conflict { key }),
            (other, _) => unexpected(&other),
        }
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<BoxStream<'static, Result<Batch>>> {
        self.node.ready(Read::AtLeast(after)).await?;
        self.node.hub.watch(prefix, after)
    }

    async fn compact(&self, through: Revision) -> Result<()> {
        let (applied, index) = self.node.propose(&Command::Compact(through)).await?;
        // Also here, so that this handle's next watch sees it.
        self.node.caught_up(index, Instant::now() + self.node.config.read_timeout).await?;
        match applied {
            Applied::Compacted(_) => Ok(()),
            Applied::Ahead(current) => Err(StoreError::Ahead { current }),
            other => unexpected(&other),
        }
    }

    async fn barrier(&self) -> Result<Revision> {
        self.node.barrier().await?;
        Ok(self.node.hub.revision())
    }

    async fn set_level(&self, level: u32) -> Result<u32> {
        match self.node.propose(&Command::SetLevel(level)).await? {
            (Applied::Level(level), _) => Ok(level),
            (other, _) => unexpected(&other),
        }
    }

    fn status(&self) -> Status {
        self.node.health()
    }
}

/// The leader answered a command with another command's outcome: nobody can say what was done.
fn unexpected<T>(applied: &Applied) -> Result<T> {
    tracing::error!(?applied, "a command was answered with another one's outcome");
    Err(StoreError::Unknown)
}
