//! The key-value contract that every backend keeps: revisions, guarded transactions and watch.
//!
//! Its invariant: one store-wide history of commits, each with its own revision, and every answer
//! is explained by a prefix of that history. An external etcd already is this contract, which is
//! why the limits stay within etcd's defaults and why nothing here reads the past: a revision in a
//! read is a lower bound, never a point in time. Deliberately absent: types, leases, ranges other
//! than a prefix, and retries; the typed layer above owns all four.

mod office;
mod status;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use office::{Election, Leadership, Membership};
pub use status::{Checkpoint, Member, Peer, Role, Status};

/// Most operations, and separately most guards, in one transaction: one less than etcd's default for `--max-txn-ops`,
/// since on etcd each commit has an operation of the backend's own (docs/decisions/0201).
pub const MAX_TXN_OPS: usize = 127;
/// Most bytes of keys and values in one transaction, below etcd's 1.5 MiB request limit.
pub const MAX_TXN_BYTES: usize = 1 << 20;
/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// The record that the leader rewrites when it takes office; its revision is the epoch.
pub const LEADER_KEY: &str = "/leader";

/// The outcome of a store call.
pub type Result<T> = std::result::Result<T, StoreError>;

/// What can go wrong, told by what the caller should do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A guard did not hold, so nothing was written. Read the key again and decide anew.
    #[error("{key} is not what the transaction was based on")]
    Conflict {
        /// The first key, in the order of the guards, whose guard failed.
        key: Key,
    },
    /// The history that a watch needs is gone. List again and watch from there.
    #[error("history before revision {oldest} is gone, list again and watch after that")]
    Compacted {
        /// The oldest revision after which a watch can still begin.
        oldest: Revision,
    },
    /// The caller knows a revision that this store never reached: the store went back in time.
    #[error("the store stands at revision {current}, before one that the caller has seen")]
    Ahead {
        /// The newest revision of the store, by a linearizable read.
        current: Revision,
    },
    /// Nothing was written and nothing can be answered now. Safe to try again.
    #[error("the store cannot answer now: {reason}{}", .leader.as_ref().map(|at| format!(" (leader at {at})")).unwrap_or_default())]
    Unavailable {
        /// Why, for people.
        reason: String,
        /// The address of the leader where one is known.
        leader: Option<String>,
    },
    /// The transaction was sent and its reply was lost: it may have been, or may yet be, applied.
    #[error("the outcome of the transaction is unknown")]
    Unknown,
    /// The request is larger than the contract allows on any backend.
    #[error("{what} is {actual}, the limit is {limit}")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// The limit, in the unit of `what`.
        limit: usize,
        /// What was given, in the unit of `what`.
        actual: usize,
    },
    /// The request is malformed and can never succeed.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What is malformed.
        reason: String,
    },
}

impl StoreError {
    /// An `Unavailable` without a hint of where the leader is.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        StoreError::Unavailable { reason: reason.into(), leader: None }
    }

    /// An `Invalid` with its reason.
    pub fn invalid(reason: impl Into<String>) -> Self {
        StoreError::Invalid { reason: reason.into() }
    }
}

/// The store-wide number of a commit; zero is the empty store before any commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a store that never had a commit.
    pub const ZERO: Revision = Revision(0);

    /// The revision of the next commit.
    #[must_use]
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Revision {
    fn from(number: u64) -> Self {
        Revision(number)
    }
}

/// The name of one record: an absolute path such as `/vm/0b9c…`, without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Checks and takes a key.
    ///
    /// # Errors
    /// `TooLarge` beyond [`MAX_KEY_BYTES`]; `Invalid` when it does not begin with `/`, ends with
    /// `/` (that is a prefix) or holds control characters.
    pub fn new(text: impl AsRef<str>) -> Result<Key> {
        let text = text.as_ref();
        check_path(text)?;
        if text.ends_with('/') {
            return Err(StoreError::invalid(format!("key {text:?} ends with a slash, as only prefixes do")));
        }
        Ok(Key(text.into()))
    }

    /// The key of the leader's record.
    pub fn leader() -> Key {
        Key(LEADER_KEY.into())
    }

    /// Where the keys that begin so begin, in their order; a key itself only by chance.
    pub(crate) fn beginning(text: &str) -> Key {
        Key(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ordered and hashed as its text, so that maps of keys can be searched by text.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What the keys of one list or watch have in common; it ends with a slash, so that `/vm/` never
/// takes in `/vmx/…` by accident.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// Checks and takes a prefix.
    ///
    /// # Errors
    /// `TooLarge` beyond [`MAX_KEY_BYTES`]; `Invalid` unless it begins and ends with `/`.
    pub fn new(text: impl AsRef<str>) -> Result<Prefix> {
        let text = text.as_ref();
        check_path(text)?;
        if !text.ends_with('/') {
            return Err(StoreError::invalid(format!("prefix {text:?} does not end with a slash")));
        }
        Ok(Prefix(text.into()))
    }

    /// The prefix of every key.
    pub fn all() -> Prefix {
        Prefix("/".into())
    }

    /// Whether `key` lies below this prefix.
    pub fn contains(&self, key: &Key) -> bool {
        key.as_str().starts_with(&*self.0)
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn check_path(text: &str) -> Result<()> {
    if text.len() > MAX_KEY_BYTES {
        return Err(StoreError::TooLarge {
            what: "a key's length in bytes",
            limit: MAX_KEY_BYTES,
            actual: text.len(),
        });
    }
    if !text.starts_with('/') {
        return Err(StoreError::invalid(format!("{text:?} does not begin with a slash")));
    }
    if text.chars().any(char::is_control) {
        return Err(StoreError::invalid(format!("{text:?} holds a control character")));
    }
    Ok(())
}

/// One record with the revisions that made and last wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub key: Key,
    /// Its bytes.
    pub value: Bytes,
    /// The commit that made the key, after its last deletion if there was one.
    pub create_revision: Revision,
    /// The commit that wrote this value.
    pub mod_revision: Revision,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Sees every commit acknowledged before the read began; needs a quorum.
    Linearizable,
    /// Sees at least this revision; answered locally once caught up.
    AtLeast(Revision),
}

/// What must hold for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(Key),
    /// The key exists and was last written by this revision.
    Unchanged(Key, Revision),
}

impl Guard {
    /// The key that is guarded.
    pub fn key(&self) -> &Key {
        match self {
            Guard::Absent(key) | Guard::Unchanged(key, _) => key,
        }
    }
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes or replaces a record.
    Put(Key, Bytes),
    /// Removes a record; removing one that is absent changes nothing.
    Delete(Key),
}

impl Op {
    /// The key that is written.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put(key, _) | Op::Delete(key) => key,
        }
    }
}

/// Guards and writes that are applied as one, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// Applied together under one revision; a key stands once.
    pub ops: Vec<Op>,
}

impl Txn {
    /// An empty transaction.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds the guard that `key` does not exist.
    #[must_use]
    pub fn absent(mut self, key: Key) -> Txn {
        self.guards.push(Guard::Absent(key));
        self
    }

    /// Adds the guard that `key` was last written by `revision`.
    #[must_use]
    pub fn unchanged(mut self, key: Key, revision: Revision) -> Txn {
        self.guards.push(Guard::Unchanged(key, revision));
        self
    }

    /// Adds a write of `value` to `key`.
    #[must_use]
    pub fn put(mut self, key: Key, value: impl Into<Bytes>) -> Txn {
        self.ops.push(Op::Put(key, value.into()));
        self
    }

    /// Adds the deletion of `key`.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Txn {
        self.ops.push(Op::Delete(key));
        self
    }

    /// Bytes of keys and values, as counted against [`MAX_TXN_BYTES`].
    pub fn bytes(&self) -> usize {
        let guards = self.guards.iter().map(|guard| guard.key().as_str().len());
        let ops = self.ops.iter().map(|op| match op {
            Op::Put(key, value) => key.as_str().len() + value.len(),
            Op::Delete(key) => key.as_str().len(),
        });
        guards.chain(ops).sum()
    }

    /// Checks the limits; every backend calls this before it does anything else.
    ///
    /// # Errors
    /// `TooLarge` names the limit that is exceeded, `Invalid` the key that is written twice.
    pub fn validate(&self) -> Result<()> {
        let limit = |what, limit, actual| {
            if actual > limit { Err(StoreError::TooLarge { what, limit, actual }) } else { Ok(()) }
        };
        limit("the number of operations in a transaction", MAX_TXN_OPS, self.ops.len())?;
        limit("the number of guards in a transaction", MAX_TXN_OPS, self.guards.len())?;
        limit("a transaction's size in bytes", MAX_TXN_BYTES, self.bytes())?;
        let mut keys: Vec<&Key> = self.ops.iter().map(Op::key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(StoreError::invalid(format!("key {} is written twice in one transaction", pair[0])))
            }
            None => Ok(()),
        }
    }
}

/// What a commit did to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The record was made or replaced; this is its new state.
    Put(Entry),
    /// The record was removed.
    Delete(Key),
}

impl Change {
    /// Bytes of its key and value.
    pub(crate) fn bytes(&self) -> usize {
        let value = match self {
            Change::Put(entry) => entry.value.len(),
            Change::Delete(_) => 0,
        };
        self.key().as_str().len() + value
    }

    /// The key that changed.
    pub fn key(&self) -> &Key {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete(key) => key,
        }
    }
}

/// All that one commit changed below a watch's prefix, in the order of the transaction.
///
/// An empty batch is a bookmark: everything through `revision` has been delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The commit, or for a bookmark the newest commit that was passed.
    pub revision: Revision,
    /// Never part of a commit: all of its changes below the prefix, or none for a bookmark.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Whether it only moves the cursor forward.
    pub fn is_bookmark(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The store. Object-safe: business code holds an `Arc<dyn Kv>`.
#[async_trait]
pub trait Kv: Send + Sync {
    /// Reads one record.
    ///
    /// # Errors
    /// `Unavailable`; `Ahead` when `AtLeast` names a revision that the store never reached.
    async fn get(&self, key: &Key, read: Read) -> Result<Option<Entry>>;

    /// Reads all records below `prefix` in the order of their keys, all at the revision returned.
    ///
    /// # Errors
    /// As [`Kv::get`].
    async fn list(&self, prefix: &Prefix, read: Read) -> Result<(Vec<Entry>, Revision)>;

    /// Applies `txn` if all its guards hold, and returns its revision. A transaction that changes
    /// nothing takes no revision and returns that of the newest commit.
    ///
    /// # Errors
    /// `Conflict`, `TooLarge`, `Invalid` and `Unavailable` say that nothing was written; `Unknown`
    /// says that nobody knows.
    async fn commit(&self, txn: Txn) -> Result<Revision>;

    /// Follows the commits after revision `after` that touch `prefix`. Dropping the stream ends it;
    /// a reader may be as slow as it likes, until `Compacted` ends the stream.
    ///
    /// # Errors
    /// `Compacted` when history after `after` is no longer held, `Ahead`, `Unavailable`.
    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<BoxStream<'static, Result<Batch>>>;

    /// Forgets the history through this revision; records stay.
    ///
    /// # Errors
    /// `Ahead` for a revision that does not exist yet, `Unavailable`, `Unknown`.
    async fn compact(&self, through: Revision) -> Result<()>;

    /// Returns a revision that includes every commit acknowledged before the call, once this
    /// controller has applied it.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn barrier(&self) -> Result<Revision>;

    /// Raises the level of encodings to at least `level` and returns the level that holds now. The
    /// caller has made sure that every controller can read it; levels never go down.
    ///
    /// # Errors
    /// `Unavailable`, `Unknown`.
    async fn set_level(&self, level: u32) -> Result<u32>;

    /// The health of the backend as this controller sees it, without asking others.
    fn status(&self) -> Status;
}
