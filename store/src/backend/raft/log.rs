//! The log store that the consensus library writes to: entries in memory in front of the disk.
//!
//! Its invariant: an entry can be read from the moment `append` returns, and leaves memory only
//! after it is on disk. The newest entries stay in memory within a bound, so that replication and
//! applying seldom read the disk. Purged entries are gone at once for a reader and from the disk
//! little by little; what an earlier process did not get to remove is ignored on opening.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use prost::Message as _;
use tamdao_proto::raft::v1 as wire;

use super::codec;
use super::disk::{Disk, Done};
use super::types::{Ballot, LogEntry, LogId, Types};

/// How many bytes of entries stay in memory.
const CACHE_BYTES: usize = 4 << 20;
/// How many bytes of entries one replication message carries, beyond its first entry.
const MESSAGE_BYTES: usize = 2 << 20;
pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";
const CACHE: &str = "no code under this lock panics";

/// The log of one member; clones are the same log.
#[derive(Clone)]
pub struct Log {
    disk: Arc<Disk>,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    /// The newest entries, without a gap; empty only when the log is.
    entries: VecDeque<LogEntry>,
    bytes: usize,
    /// The last entry of the log, in memory or purged.
    last: Option<LogId>,
    purged: Option<LogId>,
    vote: Option<Ballot>,
    committed: Option<LogId>,
    /// The last entry that is on disk, in this generation of the log.
    flushed: Option<u64>,
    /// Counts truncations, so that a flush of entries that were cut off is not taken for newer ones.
    generation: u64,
}

impl Log {
    /// Reads what the disk holds.
    ///
    /// # Errors
    /// `InvalidData` when it holds what this release cannot read, or a gap.
    pub fn load(disk: Arc<Disk>) -> io::Result<Log> {
        let id = |name| -> io::Result<Option<LogId>> {
            let Some(bytes) = disk.get(name)? else { return Ok(None) };
            Ok(wire::LogId::decode(bytes.as_slice()).map(codec::read_log_id).map(Some)?)
        };
        let (purged, committed) = (id(PURGED)?, id(COMMITTED)?);
        let vote = match disk.get(VOTE)? {
            Some(bytes) => Some(codec::read_ballot(Some(wire::Ballot::decode(bytes.as_slice())?))?),
            None => None,
        };
        let mut cache = Cache { purged, committed, vote, last: purged, ..Cache::default() };
        let first = purged.map_or(0, |id| id.index + 1);
        let mut bytes = 0;
        let mut newest = disk.read_back(first, |entry| {
            bytes += entry.len();
            bytes >= CACHE_BYTES
        })?;
        newest.reverse();
        for (index, bytes) in newest {
            let entry = decode(bytes)?;
            let expected = cache.entries.back().map_or(index, |last| last.log_id.index + 1);
            if entry.log_id.index != index || index != expected {
                let reason =
                    format!("log entry {index} says that it is {}, expected {expected}", entry.log_id);
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            cache.push(entry);
        }
        cache.flushed = cache.last.map(|id| id.index);
        if let Some(purged) = purged {
            disk.purge(purged.index);
        }
        Ok(Log { disk, cache: Arc::new(Mutex::new(cache)) })
    }

    /// The last entry that was purged; a state machine must stand at it or after it.
    pub fn purged(&self) -> Option<LogId> {
        self.cache().purged
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect(CACHE)
    }

    /// The entries of a range, stopping after the one that exceeds `limit` bytes.
    async fn entries(&self, range: impl RangeBounds<u64>, limit: usize) -> io::Result<Vec<LogEntry>> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let (mut found, cached_from) = {
            let cache = self.cache();
            let from = from.max(cache.purged.map_or(0, |id| id.index + 1));
            let first = cache.entries.front().map_or(u64::MAX, |entry| entry.log_id.index);
            if from >= first || from >= to {
                return Ok(cache.slice(from, to, limit));
            }
            let last = cache.last.map_or(0, |id| id.index + 1);
            if from >= last {
                return Ok(Vec::new());
            }
            (cache.slice(first, to, limit), first.min(last))
        };
        let disk = Arc::clone(&self.disk);
        let end = to.min(cached_from);
        // The disk is read away from the async threads: a member that is far behind reads a lot.
        let read = tokio::task::spawn_blocking(move || disk.read(from, end)).await;
        let older = read.map_err(io::Error::other)??;
        let mut entries = older.into_iter().map(decode).collect::<io::Result<Vec<LogEntry>>>()?;
        entries.append(&mut found);
        truncate_to_bytes(&mut entries, limit);
        Ok(entries)
    }
}

impl Cache {
    fn push(&mut self, entry: LogEntry) {
        self.bytes += codec::entry_bytes(&entry);
        self.last = Some(entry.log_id);
        self.entries.push_back(entry);
    }

    fn slice(&self, from: u64, to: u64, limit: usize) -> Vec<LogEntry> {
        let Some(first) = self.entries.front().map(|entry| entry.log_id.index) else { return Vec::new() };
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut taken = Vec::new();
        for entry in self.entries.iter().skip(skip).take_while(|entry| entry.log_id.index < to) {
            if bytes >= limit {
                break;
            }
            bytes += codec::entry_bytes(entry);
            taken.push(entry.clone());
        }
        taken
    }

    /// Forgets the oldest entries beyond the bound, as far as they are on disk.
    fn evict(&mut self) {
        while self.bytes > CACHE_BYTES && self.entries.len() > 1 {
            let Some(first) = self.entries.front() else { return };
            if Some(first.log_id.index) > self.flushed {
                return;
            }
            self.bytes -= codec::entry_bytes(first);
            self.entries.pop_front();
        }
    }
}

fn truncate_to_bytes(entries: &mut Vec<LogEntry>, limit: usize) {
    let mut bytes = 0;
    let keep = entries.iter().take_while(|entry| {
        let room = bytes < limit;
        bytes += codec::entry_bytes(entry);
        room
    });
    let keep = keep.count();
    entries.truncate(keep);
}

pub(super) fn decode(bytes: Vec<u8>) -> io::Result<LogEntry> {
    Ok(codec::read_entry(wire::Entry::decode(bytes::Bytes::from(bytes))?)?)
}

/// A callback for the disk and the future that it wakes.
fn waited() -> (Done, impl Future<Output = io::Result<()>>) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let done: Done = Box::new(move |result| drop(sender.send(result)));
    (done, async { receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed"))) })
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        self.entries(range, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.entries(start..end, MESSAGE_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Ballot>> {
        Ok(self.cache().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let cache = self.cache();
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id: cache.last })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Ballot) -> io::Result<()> {
        let (done, written) = waited();
        self.disk.put(VOTE, codec::ballot(vote).encode_to_vec(), true, done);
        written.await?;
        self.cache().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.cache().committed = committed;
        if let Some(committed) = committed {
            // Losing it costs a restarted member a little catching up and never a commit.
            self.disk.put(COMMITTED, codec::log_id(&committed).encode_to_vec(), false, Box::new(|_| {}));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.cache().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut cache = self.cache();
        for entry in entries {
            encoded.push((entry.log_id.index, codec::entry(&entry).encode_to_vec()));
            cache.push(entry);
        }
        let (generation, last) = (cache.generation, cache.last.map(|id| id.index));
        let shared = Arc::clone(&self.cache);
        let done: Done = Box::new(move |result| {
            if result.is_ok() {
                let mut cache = shared.lock().expect(CACHE);
                if cache.generation == generation {
                    cache.flushed = cache.flushed.max(last);
                    cache.evict();
                }
            }
            callback.io_completed(result);
        });
        // Sent under the lock: two appends must reach the disk in the order of the cache.
        self.disk.append(encoded, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |id| id.index + 1);
        let (done, written) = waited();
        {
            let mut cache = self.cache();
            while cache.entries.back().is_some_and(|entry| entry.log_id.index >= from) {
                let cut = cache.entries.pop_back().map_or(0, |entry| codec::entry_bytes(&entry));
                cache.bytes -= cut;
            }
            cache.generation += 1;
            cache.last = cache.last.min(last).max(cache.purged);
            cache.flushed = cache.flushed.min(last.map(|id| id.index));
            self.disk.truncate(from, done);
        }
        written.await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut cache = self.cache();
        while cache.entries.front().is_some_and(|entry| entry.log_id.index <= log_id.index) {
            let cut = cache.entries.pop_front().map_or(0, |entry| codec::entry_bytes(&entry));
            cache.bytes -= cut;
        }
        cache.purged = cache.purged.max(Some(log_id));
        cache.last = cache.last.max(Some(log_id));
        // Not waited for: until it is on disk a restart merely finds entries that it can forget.
        // The order is what matters, the mark goes before the entries do.
        self.disk.put(PURGED, codec::log_id(&log_id).encode_to_vec(), true, Box::new(|_| {}));
        self.disk.purge(log_id.index);
        Ok(())
    }
}
