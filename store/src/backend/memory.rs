//! The store in the memory of one process: the core behind a lock.
//!
//! It is for tests, for simulation and for trying the product on one machine, and it shows what
//! the contract means where nothing can fail. Handles share one history; each may stand for one
//! controller, lag behind as a follower does, and have Raft's faults injected, so that a seeded
//! simulation sees the semantics of a real cluster. Deliberately absent: persistence.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::{Notify, watch};

use crate::hub::Hub;
use crate::kv::{
    Batch, Election, Entry, Key, Kv, Leadership, Prefix, Read, Result, Revision, Role, Status, StoreError,
    Txn,
};
use crate::mvcc::{Applied, Command, Mvcc};

/// What becomes of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out and answered.
    #[default]
    Served,
    /// It is refused with `Unavailable`.
    Refused,
    /// It is not carried out, and the caller cannot know: `Unknown`.
    RequestLost,
    /// It is carried out, and the caller cannot know: `Unknown`.
    ReplyLost,
}

/// Decides the fate of the calls on one handle.
pub trait Faults: Send + Sync {
    /// Called before each commit.
    fn commit(&self, _txn: &Txn) -> Fate {
        Fate::Served
    }

    /// Called before each read, list, barrier and start of a watch; only `Refused` has an effect.
    fn read(&self) -> Fate {
        Fate::Served
    }
}

struct NoFaults;

impl Faults for NoFaults {}

/// One controller's handle on a store in memory; clones are the same handle.
#[derive(Clone)]
pub struct MemoryStore {
    name: Arc<str>,
    truth: Arc<Hub>,
    /// What this handle has applied; the truth itself unless it is a follower.
    local: Arc<Hub>,
    office: Arc<Office>,
    faults: Arc<Mutex<Arc<dyn Faults>>>,
}

#[derive(Default)]
struct Office {
    holder: Mutex<Option<Arc<watch::Sender<bool>>>>,
    vacated: Notify,
}

impl MemoryStore {
    /// A new and empty store with the handle of the controller `name`.
    pub fn new(name: &str) -> MemoryStore {
        let truth = Hub::new(Mvcc::new());
        MemoryStore {
            name: name.into(),
            local: Arc::clone(&truth),
            truth,
            office: Arc::default(),
            faults: no_faults(),
        }
    }

    /// The handle of another controller on the same store, never behind.
    pub fn peer(&self, name: &str) -> MemoryStore {
        MemoryStore {
            name: name.into(),
            local: Arc::clone(&self.truth),
            truth: Arc::clone(&self.truth),
            office: Arc::clone(&self.office),
            faults: no_faults(),
        }
    }

    /// The handle of a controller that applies commits only when told to by [`Self::advance`].
    pub fn follower(&self, name: &str) -> MemoryStore {
        let local = Hub::new(self.truth.read(Clone::clone));
        MemoryStore { local, ..self.peer(name) }
    }

    /// Lets a follower apply the commits through `revision`, as far as they exist.
    pub fn advance(&self, revision: Revision) {
        if Arc::ptr_eq(&self.local, &self.truth) {
            return;
        }
        let (fresh, through) = self.truth.read(|truth| (truth.clone(), revision.min(truth.revision())));
        self.local.write(|local| {
            local.apply(Command::SetLevel(fresh.level()));
            while local.revision() < through {
                match fresh.commit_after(local.revision()) {
                    Some(commit) => local.replay(commit),
                    // The history between is forgotten, as when a leader sends its snapshot.
                    None => *local = Mvcc::from(fresh.view()),
                }
            }
        });
    }

    /// Injects faults into the calls on this handle.
    pub fn inject(&self, faults: Arc<dyn Faults>) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Takes the office away from whoever holds it, as a lost quorum does.
    pub fn depose(&self) {
        let holder = self.office.holder.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(holder) = holder {
            holder.send_replace(true);
            self.office.vacated.notify_waiters();
        }
    }

    fn fate(&self, fate: impl FnOnce(&dyn Faults) -> Fate) -> Fate {
        let faults = Arc::clone(&self.faults.lock().unwrap_or_else(PoisonError::into_inner));
        fate(&*faults)
    }

    /// Waits until this handle has applied what `read` asks for.
    async fn ready(&self, read: Read) -> Result<()> {
        if self.fate(|faults| faults.read()) == Fate::Refused {
            return Err(StoreError::unavailable("a fault was injected"));
        }
        let current = self.truth.revision();
        match read {
            Read::Linearizable => self.local.reached(current).await,
            Read::AtLeast(revision) if revision > current => Err(StoreError::Ahead { current }),
            Read::AtLeast(revision) => self.local.reached(revision).await,
        }
    }

    fn apply(&self, txn: Txn) -> Result<Revision> {
        match self.truth.apply(Command::Txn(txn)) {
            Applied::Committed(revision) => Ok(revision),
            Applied::Conflict(key) => Err(StoreError::Conflict { key }),
            other => unreachable!("a transaction is applied as one, not as {other:?}"),
        }
    }
}

fn no_faults() -> Arc<Mutex<Arc<dyn Faults>>> {
    Arc::new(Mutex::new(Arc::new(NoFaults)))
}

#[async_trait]
impl Kv for MemoryStore {
    async fn get(&self, key: &Key, read: Read) -> Result<Option<Entry>> {
        self.ready(read).await?;
        Ok(self.local.read(|mvcc| mvcc.get(key)))
    }

    async fn list(&self, prefix: &Prefix, read: Read) -> Result<(Vec<Entry>, Revision)> {
        self.ready(read).await?;
        let view = self.local.view();
        Ok((view.list(prefix).collect(), view.revision))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision> {
        txn.validate()?;
        match self.fate(|faults| faults.commit(&txn)) {
            Fate::Served => self.apply(txn),
            Fate::Refused => Err(StoreError::unavailable("a fault was injected")),
            Fate::RequestLost => Err(StoreError::Unknown),
            Fate::ReplyLost => {
                // The outcome is what the caller must not learn.
                let _ = self.apply(txn);
                Err(StoreError::Unknown)
            }
        }
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<BoxStream<'static, Result<Batch>>> {
        self.ready(Read::AtLeast(after)).await?;
        self.local.watch(prefix, after)
    }

    async fn compact(&self, through: Revision) -> Result<()> {
        match self.truth.apply(Command::Compact(through)) {
            Applied::Ahead(current) => Err(StoreError::Ahead { current }),
            _ => Ok(()),
        }
    }

    async fn barrier(&self) -> Result<Revision> {
        self.ready(Read::Linearizable).await?;
        Ok(self.local.revision())
    }

    async fn set_level(&self, level: u32) -> Result<u32> {
        match self.truth.apply(Command::SetLevel(level)) {
            Applied::Level(level) => Ok(level),
            other => unreachable!("a level is applied as one, not as {other:?}"),
        }
    }

    fn status(&self) -> Status {
        let (revision, oldest, level, bytes) =
            self.local.read(|mvcc| (mvcc.revision(), mvcc.oldest(), mvcc.level(), mvcc.view().bytes));
        let leads = Arc::ptr_eq(&self.local, &self.truth);
        Status {
            backend: "memory",
            role: if leads { Role::Leader } else { Role::Follower },
            leader: None,
            term: 0,
            revision,
            oldest,
            level,
            bytes,
            first_log: oldest.0,
            last_log: self.truth.revision().0,
            applied: revision.0,
            snapshot: 0,
            quorum_age_ms: leads.then_some(0),
            members: Vec::new(),
            peers: Vec::new(),
            checkpoints: Vec::new(),
            removed: false,
            error: None,
        }
    }
}

#[async_trait]
impl Election for MemoryStore {
    async fn campaign(&self) -> Result<Leadership> {
        let (lost, office) = loop {
            let vacated = self.office.vacated.notified();
            let holder = {
                let mut slot = self.office.holder.lock().unwrap_or_else(PoisonError::into_inner);
                match slot.as_ref() {
                    Some(holder) if !holder.is_closed() => Arc::clone(holder),
                    _ => {
                        let (sender, lost) = watch::channel(false);
                        let sender = Arc::new(sender);
                        *slot = Some(Arc::clone(&sender));
                        break (lost, sender);
                    }
                }
            };
            tokio::select! {
                () = vacated => {}
                // Nobody holds the office's papers any more: a process that is gone.
                () = holder.closed() => {}
            }
        };
        let txn = Txn::new().put(Key::leader(), self.name.as_bytes().to_vec());
        let epoch = self.apply(txn)?;
        // The slot keeps the sender alive; naming it here says that it must outlive the commit.
        drop(office);
        Ok(Leadership::new(epoch, lost))
    }
}
