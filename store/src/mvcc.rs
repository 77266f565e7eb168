//! The store's core: a pure, synchronous state machine over three commands.
//!
//! Its invariant: equal commands in equal order give equal state, byte for byte, on every member
//! and in every year. So there is no clock, no randomness, no I/O and no failure here: what a
//! command cannot do is an [`Applied`] value. The maps are persistent, so that a snapshot is a
//! clone of a pointer. History is bounded, and deliberately not part of the state: it serves to
//! resume a watch, and a member that starts from a snapshot begins with none.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use sha2::{Digest as _, Sha256};

use crate::kv::{Change, Entry, Guard, Key, Op, Prefix, Revision, Txn};

/// Most commits that are kept for watches to resume from.
pub const HISTORY_COMMITS: usize = 16_384;
/// Most bytes of keys and values that are kept for watches to resume from.
pub const HISTORY_BYTES: usize = 8 << 20;

/// All that the replicated log can ever say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A guarded transaction.
    Txn(Txn),
    /// Forget history through this revision.
    Compact(Revision),
    /// Raise the level of encodings.
    SetLevel(u32),
}

/// What a command did. A conflict is a result like any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The transaction holds under this revision; a new one only if it changed something.
    Committed(Revision),
    /// The guard on this key did not hold, nothing changed.
    Conflict(Key),
    /// History now begins after this revision.
    Compacted(Revision),
    /// `Compact` named a revision beyond this newest one, nothing changed.
    Ahead(Revision),
    /// This level holds now.
    Level(u32),
}

/// One record without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its bytes.
    pub value: Bytes,
    /// The commit that made the key.
    pub create_revision: Revision,
    /// The commit that wrote this value.
    pub mod_revision: Revision,
}

impl Record {
    fn bytes(&self, key: &Key) -> u64 {
        (key.as_str().len() + self.value.len()) as u64
    }

    fn entry(&self, key: &Key) -> Entry {
        Entry {
            key: key.clone(),
            value: self.value.clone(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
        }
    }
}

/// A sum of the hashes of all records: order does not matter, so it is kept while writing.
///
/// It finds accidents (a bug, a bad disk), not attackers; SHA-256 is there for its spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest([u64; 4]);

impl Digest {
    fn of(key: &Key, record: &Record) -> Digest {
        let mut hash = Sha256::new();
        hash.update((key.as_str().len() as u64).to_be_bytes());
        hash.update(key.as_str());
        hash.update(record.create_revision.0.to_be_bytes());
        hash.update(record.mod_revision.0.to_be_bytes());
        hash.update(&record.value);
        let hash: [u8; 32] = hash.finalize().into();
        let mut lanes = [0; 4];
        for (lane, bytes) in lanes.iter_mut().zip(hash.chunks_exact(8)) {
            *lane = u64::from_be_bytes(bytes.try_into().expect("chunks_exact gives eight bytes"));
        }
        Digest(lanes)
    }

    fn add(&mut self, other: Digest) {
        for (lane, by) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_add(by);
        }
    }

    fn subtract(&mut self, other: Digest) {
        for (lane, by) in self.0.iter_mut().zip(other.0) {
            *lane = lane.wrapping_sub(by);
        }
    }
}

/// The state at one revision, immutable; cloning and holding it costs a pointer.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The newest commit.
    pub revision: Revision,
    /// The level of encodings.
    pub level: u32,
    /// Bytes of keys and values.
    pub bytes: u64,
    records: OrdMap<Key, Record>,
    digest: Digest,
}

impl View {
    /// Builds a state from the records of a snapshot; the digest is computed anew, so that it
    /// proves the records and not what was written beside them.
    pub fn from_entries(revision: Revision, level: u32, entries: impl IntoIterator<Item = Entry>) -> View {
        let mut view = View { revision, level, ..View::default() };
        for entry in entries {
            let record = Record {
                value: entry.value,
                create_revision: entry.create_revision,
                mod_revision: entry.mod_revision,
            };
            view.digest.add(Digest::of(&entry.key, &record));
            view.bytes += record.bytes(&entry.key);
            view.records.insert(entry.key, record);
        }
        view
    }

    /// One record.
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.records.get(key).map(|record| record.entry(key))
    }

    /// The records below a prefix in the order of their keys.
    pub fn list<'a>(&'a self, prefix: &'a Prefix) -> impl Iterator<Item = Entry> + 'a {
        let range = (std::ops::Bound::Included(prefix.as_str()), std::ops::Bound::Unbounded);
        self.records
            .range::<_, str>(range)
            .take_while(|(key, _)| prefix.contains(key))
            .map(|(key, record)| record.entry(key))
    }

    /// All records in the order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.records.iter().map(|(key, record)| record.entry(key))
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The digest of the whole state: records, revision and level.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.revision.0.to_be_bytes());
        hash.update(self.level.to_be_bytes());
        hash.update((self.records.len() as u64).to_be_bytes());
        for lane in self.digest.0 {
            hash.update(lane.to_be_bytes());
        }
        hash.finalize().into()
    }
}

/// One commit of the history.
#[derive(Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub revision: Revision,
    /// All that it changed, in the order of the transaction; never empty.
    pub changes: Vec<Change>,
    bytes: usize,
}

/// The state and the recent history. See the file's head for what it promises.
#[derive(Clone, Debug, Default)]
pub struct Mvcc {
    view: View,
    /// All commits in (`oldest`, `view.revision`]. Their revisions rise; on etcd, not always by one.
    history: VecDeque<Arc<Commit>>,
    history_bytes: usize,
    oldest: Revision,
}

impl From<View> for Mvcc {
    fn from(view: View) -> Self {
        Mvcc { oldest: view.revision, view, history: VecDeque::new(), history_bytes: 0 }
    }
}

impl Mvcc {
    /// An empty store.
    pub fn new() -> Mvcc {
        Mvcc::default()
    }

    /// Applies one command. Limits are not checked here: what is in the log has to be applied, by
    /// this version and by every later one.
    pub fn apply(&mut self, command: Command) -> Applied {
        match command {
            Command::Txn(txn) => self.apply_txn(txn),
            Command::Compact(through) if through > self.view.revision => Applied::Ahead(self.view.revision),
            Command::Compact(through) => {
                self.forget_through(through);
                Applied::Compacted(self.oldest)
            }
            Command::SetLevel(level) => {
                self.view.level = self.view.level.max(level);
                Applied::Level(self.view.level)
            }
        }
    }

    /// The state now, as an O(1) clone.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// The newest commit.
    pub fn revision(&self) -> Revision {
        self.view.revision
    }

    /// The oldest revision after which a watch can begin.
    pub fn oldest(&self) -> Revision {
        self.oldest
    }

    /// The level of encodings.
    pub fn level(&self) -> u32 {
        self.view.level
    }

    /// One record.
    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.view.get(key)
    }

    /// The digest of the whole state.
    pub fn digest(&self) -> [u8; 32] {
        self.view.digest()
    }

    /// The commit that follows `cursor`; `None` when there is none yet or it is forgotten.
    pub fn commit_after(&self, cursor: Revision) -> Option<&Arc<Commit>> {
        if cursor < self.oldest {
            return None;
        }
        self.history.get(self.history.partition_point(|commit| commit.revision <= cursor))
    }

    /// Takes over a commit of a store that numbers its commits itself, such as etcd: its revision must be higher than
    /// this one's, and may be all that it changes.
    pub(crate) fn follow(&mut self, revision: Revision, ops: Vec<Op>) {
        debug_assert!(revision > self.view.revision, "commits are followed in order");
        self.write(ops, revision);
        self.view.revision = revision;
    }

    /// Repeats a commit that another copy of this state has applied; it must be the next one.
    pub(crate) fn replay(&mut self, commit: &Commit) {
        let ops = commit.changes.iter().map(|change| match change {
            Change::Put(entry) => Op::Put(entry.key.clone(), entry.value.clone()),
            Change::Delete(key) => Op::Delete(key.clone()),
        });
        let txn = Txn { guards: Vec::new(), ops: ops.collect() };
        let applied = self.apply_txn(txn);
        debug_assert_eq!(applied, Applied::Committed(commit.revision), "commits are repeated in order");
    }

    fn apply_txn(&mut self, txn: Txn) -> Applied {
        if let Some(guard) = txn.guards.iter().find(|guard| !self.holds(guard)) {
            return Applied::Conflict(guard.key().clone());
        }
        let revision = self.view.revision.next();
        // As on etcd: what changes nothing is no commit, so that history has no empty revisions
        // and an empty batch can only be a bookmark.
        if self.write(txn.ops, revision) {
            self.view.revision = revision;
        }
        Applied::Committed(self.view.revision)
    }

    /// Carries out the writes of one commit and remembers it; false if they change nothing.
    fn write(&mut self, ops: Vec<Op>, revision: Revision) -> bool {
        let mut changes = Vec::with_capacity(ops.len());
        let mut bytes = 0;
        for op in ops {
            match op {
                Op::Put(key, value) => {
                    bytes += key.as_str().len() + value.len();
                    changes.push(Change::Put(self.put(key, value, revision)));
                }
                Op::Delete(key) => {
                    if let Some(old) = self.view.records.remove(&key) {
                        bytes += key.as_str().len();
                        self.view.digest.subtract(Digest::of(&key, &old));
                        self.view.bytes -= old.bytes(&key);
                        changes.push(Change::Delete(key));
                    }
                }
            }
        }
        let changed = !changes.is_empty();
        if changed {
            self.remember(Commit { revision, changes, bytes });
        }
        changed
    }

    pub(crate) fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => !self.view.records.contains_key(key),
            Guard::Unchanged(key, revision) => {
                self.view.records.get(key).is_some_and(|record| record.mod_revision == *revision)
            }
        }
    }

    fn put(&mut self, key: Key, value: Bytes, revision: Revision) -> Entry {
        let old = self.view.records.get(&key);
        if let Some(old) = old {
            self.view.digest.subtract(Digest::of(&key, old));
            self.view.bytes -= old.bytes(&key);
        }
        let create_revision = old.map_or(revision, |old| old.create_revision);
        let record = Record { value, create_revision, mod_revision: revision };
        self.view.digest.add(Digest::of(&key, &record));
        self.view.bytes += record.bytes(&key);
        let entry = record.entry(&key);
        self.view.records.insert(key, record);
        entry
    }

    fn remember(&mut self, commit: Commit) {
        self.history_bytes += commit.bytes;
        self.history.push_back(Arc::new(commit));
        while self.history.len() > HISTORY_COMMITS || self.history_bytes > HISTORY_BYTES {
            self.forget_oldest();
        }
    }

    fn forget_through(&mut self, through: Revision) {
        while self.history.front().is_some_and(|first| first.revision <= through) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(commit) = self.history.pop_front() {
            self.history_bytes -= commit.bytes;
            self.oldest = commit.revision;
        }
    }
}

#[cfg(test)]
#[path = "mvcc_tests.rs"]
mod tests;
