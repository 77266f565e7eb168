//! The store on an operator's own etcd: etcd orders and keeps the commits, each controller holds a copy of them.
//!
//! Its invariant: etcd's revision is the store's revision, and every guard is judged by etcd and nowhere else. Reads and
//! watches are answered from the copy, which a question to etcd's quorum has first shown to be new enough; so they
//! are the same reads and watches as on Raft. Deliberately absent: etcd's members, which are the operator's own, and
//! its names outside this directory.

mod election;
mod feed;
mod layout;
mod link;
mod presence;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, TxnOp, TxnOpResponse};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use crate::hub::Hub;
use crate::kv::{
    Batch, Entry, Guard, Key, Kv, Member, Op, Peer, Prefix, Read, Result, Revision, Role, Status, StoreError,
    Txn,
};
use crate::mvcc::{Command, Mvcc};
use layout::Layout;
use link::{Failure, Link};

/// The largest answer that is read: a page of the largest records, as no sane cloud has them.
const MESSAGE_BYTES: usize = 1 << 30;

/// How to reach etcd, and what to do there.
#[derive(Clone)]
pub struct EtcdConfig {
    /// URLs of members; one is enough to work, all are needed to survive a member's death.
    pub endpoints: Vec<String>,
    /// What all keys begin with, such as `/tamdao`: two clouds on one etcd need two.
    pub root: String,
    /// A user of etcd and its password, where etcd wants one.
    pub user: Option<(String, String)>,
    /// For `https` endpoints.
    pub tls: Option<EtcdTls>,
    /// How long a leader that died keeps its office, whole seconds.
    pub lease: Duration,
    /// How long a call waits for etcd.
    pub patience: Duration,
    /// Whether the leader has etcd forget old history; not where the operator's etcd does so by itself.
    pub compact: bool,
}

/// Who a controller is.
#[derive(Clone, Debug)]
pub struct Me {
    /// The cloud that the root belongs to.
    pub cloud: Uuid,
    /// Whether this controller founds that cloud, and so takes a root that belongs to none.
    pub found: bool,
    /// This controller's id among the controllers, never 0.
    pub id: u64,
    /// This controller's name.
    pub name: String,
    /// Where other controllers dial this one.
    pub address: String,
}

/// Certificates and keys, PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// The CAs that may have signed etcd's certificates.
    pub ca: String,
    /// This controller's certificate and key, where etcd asks its clients for one.
    pub identity: Option<(String, String)>,
}

/// Without the password and the key.
impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let EtcdConfig { endpoints, root, .. } = self;
        f.debug_struct("EtcdConfig").field("endpoints", endpoints).field("root", root).finish_non_exhaustive()
    }
}

/// One controller's handle on the store; clones are the same handle.
#[derive(Clone)]
pub struct EtcdStore {
    node: Arc<Node>,
    tasks: Arc<Tasks>,
}

/// The feed and the presence; they end with the last handle.
struct Tasks {
    node: Arc<Node>,
    running: [tokio::task::JoinHandle<()>; 2],
}

impl Tasks {
    fn end(&self) {
        self.running.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.end();
        // Nobody renews it any more.
        self.node.presence.send_replace(None);
    }
}

/// What the handle and its tasks share.
struct Node {
    config: EtcdConfig,
    me: Me,
    layout: Layout,
    link: Link,
    /// The copy.
    hub: Arc<Hub>,
    /// The id of the etcd cluster that was first met.
    cluster: OnceLock<u64>,
    /// Commits go one after the other: those that stand on each other must arrive in order, and etcd keeps none.
    lane: tokio::sync::Mutex<()>,
    /// The lease of the presence while one is held.
    presence: watch::Sender<Option<i64>>,
    /// The controllers that have a place.
    places: Mutex<BTreeMap<u64, Seat>>,
    /// Why etcd is followed no further, once it is not.
    ended: OnceLock<String>,
}

/// Who a controller is and where: what its place says, and the leader's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seat {
    id: u64,
    name: String,
    address: String,
}

impl EtcdConfig {
    /// Whether keys can begin so.
    ///
    /// # Errors
    /// `Invalid` unless it is an absolute path without a slash at its end, of 2 to 256 bytes.
    pub fn check_root(root: &str) -> Result<()> {
        Layout::new(root).map(|_| ())
    }
}

impl Me {
    fn seat(&self) -> Seat {
        Seat { id: self.id, name: self.name.clone(), address: self.address.clone() }
    }
}

impl From<Seat> for Member {
    fn from(Seat { id, name, address }: Seat) -> Self {
        Member { id, name, address, voter: true }
    }
}

impl EtcdStore {
    /// Begins to follow etcd. That it cannot be reached yet is no error: calls are `Unavailable` until it can.
    ///
    /// # Errors
    /// `Invalid` when the configuration contradicts itself.
    pub fn open(config: EtcdConfig, me: Me) -> Result<EtcdStore> {
        let scheme = if config.tls.is_some() { "https://" } else { "http://" };
        if config.endpoints.is_empty() {
            return Err(StoreError::invalid("etcd has no endpoints"));
        }
        if let Some(wrong) = config.endpoints.iter().find(|endpoint| !endpoint.starts_with(scheme)) {
            return Err(StoreError::invalid(format!("the endpoint {wrong:?} does not begin with {scheme}")));
        }
        let node = Arc::new(Node {
            layout: Layout::new(&config.root)?,
            link: Link::new(&config),
            hub: Hub::new(Mvcc::new()),
            cluster: OnceLock::new(),
            lane: tokio::sync::Mutex::default(),
            presence: watch::Sender::new(None),
            places: Mutex::default(),
            ended: OnceLock::new(),
            config,
            me,
        });
        let feed = tokio::spawn(feed::run(Arc::clone(&node)));
        let presence = tokio::spawn(presence::run(Arc::clone(&node)));
        let tasks = Tasks { node: Arc::clone(&node), running: [feed, presence] };
        Ok(EtcdStore { node, tasks: Arc::new(tasks) })
    }

    /// Leaves office and stops; calls on any clone fail from now on.
    pub async fn shutdown(&self) {
        // First the tasks, or the presence would be begun again.
        self.tasks.end();
        presence::end(&self.node).await;
        self.node.end("this controller's store is stopped");
    }
}

impl Node {
    fn end(&self, reason: &str) {
        // The first reason is the one that counts.
        let _ = self.ended.set(reason.to_owned());
        self.hub.close(reason);
    }

    fn running(&self) -> Result<()> {
        self.ended.get().map_or(Ok(()), |reason| Err(StoreError::unavailable(reason.clone())))
    }

    fn members(&self) -> Vec<Member> {
        self.places(|places| places.values().cloned().map(Member::from).collect())
    }

    fn places<T>(&self, with: impl FnOnce(&mut BTreeMap<u64, Seat>) -> T) -> T {
        with(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest commit's revision, and etcd's own, both by its quorum.
    async fn newest(&self) -> Result<(Revision, Revision)> {
        self.running()?;
        let head = self.layout.head();
        let asked = self.link.ask(|client| {
            let head = head.clone();
            async move { client.kv_client().get(head, Some(GetOptions::new().with_keys_only())).await }
        });
        let answer = asked.await.map_err(Failure::unanswered)?;
        let head = answer.kvs().first().map_or(Revision::ZERO, |kv| number(kv.mod_revision()));
        Ok((head, answer.header().map_or(head, |header| number(header.revision()))))
    }

    /// Waits until the copy holds `revision`.
    async fn reach(&self, revision: Revision) -> Result<()> {
        let at = self.link.current();
        // Revision 1 is an etcd without any commit, zero a copy that was never made.
        match timeout(self.config.patience, self.hub.reached(revision.max(Revision(1)))).await {
            Ok(reached) => reached,
            Err(_) => {
                // Its member answers questions and tells no news.
                self.link.leave(at);
                Err(StoreError::unavailable("the copy of etcd's records is behind and does not catch up"))
            }
        }
    }

    async fn barrier(&self) -> Result<Revision> {
        let (head, _) = self.newest().await?;
        self.reach(head).await?;
        Ok(self.hub.revision())
    }

    /// Waits until the copy is as new as `read` asks for.
    async fn ready(&self, read: Read) -> Result<()> {
        self.running()?;
        match read {
            Read::Linearizable => self.barrier().await.map(|_| ()),
            Read::AtLeast(revision) if self.hub.revision() >= revision.max(Revision(1)) => Ok(()),
            Read::AtLeast(revision) => {
                let (_, current) = self.newest().await?;
                if revision > current {
                    return Err(StoreError::Ahead { current });
                }
                self.reach(revision).await
            }
        }
    }

    /// Commits a transaction that changes something.
    async fn write(&self, txn: &Txn, lease: Option<i64>) -> Result<Revision> {
        let written = self.write_where(txn, None, lease).await?;
        // Nothing but the guards can have failed.
        written.ok_or(StoreError::Unknown)
    }

    /// Commits a transaction; none if its guards hold, but `exists` does not exist.
    async fn write_where(
        &self,
        txn: &Txn,
        exists: Option<&Key>,
        lease: Option<i64>,
    ) -> Result<Option<Revision>> {
        let at = |key: &Key| self.layout.record(key);
        let compares: Vec<Compare> = txn
            .guards
            .iter()
            .map(|guard| match guard {
                Guard::Absent(key) => Compare::create_revision(at(key), CompareOp::Equal, 0),
                // To etcd an absent key has the revision 0, so a guard on that one must not be asked of it.
                Guard::Unchanged(key, Revision::ZERO) => Compare::mod_revision(at(key), CompareOp::Equal, -1),
                Guard::Unchanged(key, revision) => {
                    let revision = i64::try_from(revision.0).unwrap_or(-1);
                    Compare::mod_revision(at(key), CompareOp::Equal, revision)
                }
            })
            .chain(exists.map(|key| Compare::create_revision(at(key), CompareOp::Greater, 0)))
            .collect();
        let options = lease.map(|lease| PutOptions::new().with_lease(lease));
        let ops = txn.ops.iter().map(|op| match op {
            Op::Put(key, value) => TxnOp::put(at(key), value.to_vec(), options.clone()),
            Op::Delete(key) => TxnOp::delete(at(key), None),
        });
        let ops: Vec<TxnOp> = ops.chain([TxnOp::put(self.layout.head(), "", None)]).collect();
        let look = Some(GetOptions::new().with_keys_only());
        let looks: Vec<TxnOp> =
            txn.guards.iter().map(|guard| TxnOp::get(at(guard.key()), look.clone())).collect();
        let request = etcd_client::Txn::new().when(compares).and_then(ops).or_else(looks);
        let told = self.link.tell(|client| {
            let request = request.clone();
            async move { client.kv_client().max_decoding_message_size(MESSAGE_BYTES).txn(request).await }
        });
        let answer = told.await.map_err(Failure::undone)?;
        if answer.succeeded() {
            return match answer.header() {
                Some(header) => Ok(Some(number(header.revision()))),
                None => Err(StoreError::Unknown),
            };
        }
        let found = answer.op_responses();
        let failed = txn.guards.iter().zip(&found).find(|(guard, found)| !holds(guard, found));
        failed.map_or(Ok(None), |(guard, _)| Err(StoreError::Conflict { key: guard.key().clone() }))
    }

    /// Commits a transaction without puts. One that finds nothing to remove must take no revision, which etcd cannot
    /// tell in advance; so it is judged here, on the copy, and has etcd check that there is something.
    async fn erase(&self, txn: &Txn) -> Result<Revision> {
        loop {
            self.barrier().await?;
            let (failed, victim, revision) = self.hub.read(|mvcc| {
                let failed =
                    txn.guards.iter().find(|guard| !mvcc.holds(guard)).map(|guard| guard.key().clone());
                let victim = txn.ops.iter().map(Op::key).find(|key| mvcc.get(key).is_some());
                (failed, victim, mvcc.revision())
            });
            if let Some(key) = failed {
                return Err(StoreError::Conflict { key });
            }
            let Some(victim) = victim else { return Ok(revision) };
            // None: somebody else has removed it meanwhile, so look again.
            if let Some(revision) = self.write_where(txn, Some(victim), None).await? {
                return Ok(revision);
            }
        }
    }

    /// Has etcd forget the history through `through`, unless the operator's etcd does so by itself.
    async fn forget(&self, through: Revision) -> Result<()> {
        let Ok(revision @ 1..) = i64::try_from(through.0) else { return Ok(()) };
        if !self.config.compact {
            return Ok(());
        }
        let asked = self.link.ask(|client| async move { client.kv_client().compact(revision, None).await });
        match asked.await {
            Ok(_) | Err(Failure::Compacted) => Ok(()),
            Err(failure) => Err(failure.unanswered()),
        }
    }

    async fn raise_level(&self, wanted: u32) -> Result<u32> {
        self.running()?;
        let (key, head) = (self.layout.level(), self.layout.head());
        loop {
            let asked = self.link.ask(|client| {
                let key = key.clone();
                async move { client.kv_client().get(key, None).await }
            });
            let answer = asked.await.map_err(Failure::unanswered)?;
            let (level, revision) =
                answer.kvs().first().map_or((0, 0), |kv| (feed::read_level(kv.value()), kv.mod_revision()));
            if level >= wanted {
                return Ok(level);
            }
            let request = etcd_client::Txn::new()
                .when([Compare::mod_revision(key.clone(), CompareOp::Equal, revision)])
                .and_then([
                    TxnOp::put(key.clone(), wanted.to_string(), None),
                    TxnOp::put(head.clone(), "", None),
                ]);
            let told = self.link.tell(|client| {
                let request = request.clone();
                async move { client.kv_client().txn(request).await }
            });
            if told.await.map_err(Failure::undone)?.succeeded() {
                return Ok(wanted);
            }
        }
    }
}

/// Whether a guard holds on what was found at its key, when some guard of its transaction did not.
fn holds(guard: &Guard, found: &TxnOpResponse) -> bool {
    let TxnOpResponse::Get(found) = found else { return true };
    let found = found.kvs().first().map(|kv| number(kv.mod_revision()));
    match guard {
        Guard::Absent(_) => found.is_none(),
        Guard::Unchanged(_, revision) => found == Some(*revision),
    }
}

/// etcd's revision as ours; etcd's are signed and never negative.
fn number(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

#[async_trait]
impl Kv for EtcdStore {
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
        self.node.running()?;
        let _lane = self.node.lane.lock().await;
        match txn.ops.iter().any(|op| matches!(op, Op::Put(..))) {
            true => self.node.write(&txn, None).await,
            false => self.node.erase(&txn).await,
        }
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<BoxStream<'static, Result<Batch>>> {
        self.node.ready(Read::AtLeast(after)).await?;
        self.node.hub.watch(prefix, after)
    }

    async fn compact(&self, through: Revision) -> Result<()> {
        self.node.ready(Read::AtLeast(through)).await?;
        self.node.forget(through).await?;
        self.node.hub.apply(Command::Compact(through));
        Ok(())
    }

    async fn barrier(&self) -> Result<Revision> {
        self.node.barrier().await
    }

    async fn set_level(&self, level: u32) -> Result<u32> {
        self.node.raise_level(level).await
    }

    fn status(&self) -> Status {
        let node = &*self.node;
        let (revision, oldest, level, bytes, leader) = node.hub.read(|mvcc| {
            let bytes = mvcc.view().bytes;
            (
                mvcc.revision(),
                mvcc.oldest(),
                mvcc.level(),
                bytes,
                mvcc.get(&Key::leader()).map(|entry| entry.value),
            )
        });
        let error = node.ended.get().cloned();
        let leader = leader.and_then(|value| Seat::decode(&value)).map(Member::from);
        let (leads, members) = (node.leads(), node.members());
        // Who has a place was heard by etcd within its lease. Nobody has a log that could lag.
        let peer = |member: &Member| Peer { id: member.id, matched: revision.0, heard_ms: Some(0) };
        let peers = if leads { members.iter().map(peer).collect() } else { Vec::new() };
        Status {
            backend: "etcd",
            role: match (&error, leads) {
                (Some(_), _) => Role::Stopped,
                (None, true) => Role::Leader,
                (None, false) => Role::Follower,
            },
            leader,
            term: 0,
            revision,
            oldest,
            level,
            bytes,
            first_log: oldest.0,
            last_log: revision.0,
            applied: revision.0,
            snapshot: 0,
            quorum_age_ms: None,
            members,
            peers,
            checkpoints: Vec::new(),
            removed: false,
            error,
        }
    }
}
