//! The file under the log: redb with one writer thread that makes many writes durable at once.
//!
//! Its invariant: writes reach the disk in the order in which they were sent, and a callback is
//! called only after the fsync that covers its write, in that order too. The thread takes all that
//! waits, writes it in one transaction and syncs once, so that a burst of commits costs one fsync.
//! After the first failed write nothing is written any more: a disk that has lied once is not asked
//! again. Deliberately absent: what the bytes mean.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::files::Files;

const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
/// redb's default is a gibibyte; the log's hot end is in our own memory already.
const CACHE_BYTES: usize = 8 << 20;
/// How much is written by one transaction at most, so that the first callback need not wait long.
const BATCH_BYTES: usize = 8 << 20;
/// How many purged entries one transaction removes, so that a purge does not stall appends.
const PURGE_STEP: u64 = 512;
const DISK: &str = "a panic under this lock is in redb, and nothing on this disk is safe then";

/// The file cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Another process, or another store of this process, has it open.
    #[error("{path} is in use by another controller")]
    InUse {
        /// The file.
        path: String,
    },
    /// redb refuses or the operating system does.
    #[error("{path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        source: redb::DatabaseError,
    },
    /// It is not what was written.
    #[error("the log {path} is corrupt: {reason}; {hint}")]
    Corrupt {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A read or a write failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The writer thread cannot be started.
    #[error("the log's writer thread cannot be started: {0}")]
    Thread(io::Error),
}

impl DiskError {
    pub(super) fn corrupt(path: &Path, reason: &dyn std::fmt::Display) -> DiskError {
        DiskError::Corrupt {
            path: path.display().to_string(),
            reason: reason.to_string(),
            hint: super::REJOIN,
        }
    }
}

/// What is called once a write is durable, or has failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

enum Write {
    Append { entries: Vec<(u64, Vec<u8>)>, done: Done },
    Truncate { from: u64, done: Done },
    Purge { through: u64 },
    Put { name: &'static str, value: Vec<u8>, durable: bool, done: Done },
    Stop { done: Done },
}

/// The file and its writer; dropping it ends the thread after what was sent before.
pub struct Disk {
    database: Arc<RwLock<Option<Database>>>,
    writes: Sender<Write>,
}

impl Disk {
    /// Opens or makes the file, and starts its writer.
    pub fn open(files: &dyn Files, path: &Path) -> Result<Disk, DiskError> {
        let (disk, writer) = Disk::prepare(files, path)?;
        let thread = std::thread::Builder::new().name("raft-log".into());
        thread.spawn(move || writer.run()).map_err(DiskError::Thread)?;
        Ok(disk)
    }

    /// Opens or makes the file, and leaves the running of its writer to the caller.
    pub fn prepare(files: &dyn Files, path: &Path) -> Result<(Disk, Writer), DiskError> {
        if !files.exists(path) {
            make(files, path)?;
        }
        let database = open_file(files, path)?;
        // A synced file whose name is lost is a lost file.
        files.sync_folder(path.parent().unwrap_or(Path::new("/")))?;
        let database = Arc::new(RwLock::new(Some(database)));
        let (writes, received) = channel();
        let (held, purge, failed) = (BTreeMap::new(), None, None);
        let writer = Writer { database: Arc::clone(&database), received, purge, held, failed };
        Ok((Disk { database, writes }, writer))
    }

    /// Appends entries; returns at once.
    pub fn append(&self, entries: Vec<(u64, Vec<u8>)>, done: Done) {
        self.send(Write::Append { entries, done });
    }

    /// Removes the entries from `from` on.
    pub fn truncate(&self, from: u64, done: Done) {
        self.send(Write::Truncate { from, done });
    }

    /// Removes the entries through `through`, little by little and without being waited for.
    pub fn purge(&self, through: u64) {
        self.send(Write::Purge { through });
    }

    /// Writes a named value; without `durable` it is on disk with the next write that is.
    pub fn put(&self, name: &'static str, value: Vec<u8>, durable: bool, done: Done) {
        self.send(Write::Put { name, value, durable, done });
    }

    /// Closes the file after all that was sent before; the file can be opened again after `done`.
    pub fn stop(&self, done: Done) {
        self.send(Write::Stop { done });
    }

    /// Closes the file and waits; only for opening, never in an async task that others share.
    pub fn stop_now(&self) {
        let (sender, receiver) = channel();
        self.stop(Box::new(move |result| drop(sender.send(result))));
        // An error means that the writer is gone already, which is what we wait for.
        let _ = receiver.recv();
    }

    fn send(&self, write: Write) {
        if let Err(unsent) = self.writes.send(write) {
            unsent.0.finish(Err(stopped()));
        }
    }

    /// The entries from `from` to before `to` that are on disk, in order.
    pub fn read(&self, from: u64, to: u64) -> io::Result<Vec<Vec<u8>>> {
        self.with(|database| {
            let table = database.begin_read().map_err(other)?.open_table(LOG).map_err(other)?;
            let range = table.range(from..to).map_err(other)?;
            range.map(|item| item.map(|(_, value)| value.value().to_vec()).map_err(other)).collect()
        })
    }

    /// The newest entries after `after`, newest first, until `enough` says so.
    pub fn read_back(
        &self,
        after: u64,
        mut enough: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Vec<(u64, Vec<u8>)>> {
        self.with(|database| {
            let table = database.begin_read().map_err(other)?.open_table(LOG).map_err(other)?;
            let mut entries = Vec::new();
            for item in table.range(after..).map_err(other)?.rev() {
                let (index, value) = item.map_err(other)?;
                let full = enough(value.value());
                entries.push((index.value(), value.value().to_vec()));
                if full {
                    break;
                }
            }
            Ok(entries)
        })
    }

    /// A named value.
    pub fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.with(|database| {
            let table = database.begin_read().map_err(other)?.open_table(META).map_err(other)?;
            let value = table.get(name).map_err(other)?;
            Ok(value.map(|value| value.value().to_vec()))
        })
    }

    /// Writes a named value and waits; only for opening, never in an async task that others share.
    pub fn put_now(&self, name: &'static str, value: Vec<u8>) -> io::Result<()> {
        let (sender, receiver) = channel();
        self.put(name, value, true, Box::new(move |result| drop(sender.send(result))));
        receiver.recv().unwrap_or_else(|_| Err(stopped()))
    }

    fn with<T>(&self, read: impl FnOnce(&Database) -> io::Result<T>) -> io::Result<T> {
        let database: RwLockReadGuard<'_, Option<Database>> = self.database.read().expect(DISK);
        read(database.as_ref().ok_or_else(stopped)?)
    }
}

impl Write {
    fn finish(self, result: io::Result<()>) {
        match self {
            Write::Append { done, .. }
            | Write::Truncate { done, .. }
            | Write::Put { done, .. }
            | Write::Stop { done } => done(result),
            Write::Purge { .. } => {}
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Write::Append { entries, .. } => entries.iter().map(|(_, entry)| entry.len()).sum(),
            _ => 0,
        }
    }
}

/// Makes the file under another name first: one that the power left half made would be taken for a corrupt one.
fn make(files: &dyn Files, path: &Path) -> Result<(), DiskError> {
    let aside = path.with_extension("partial");
    if files.exists(&aside) {
        files.remove(&aside)?;
    }
    let database = open_file(files, &aside)?;
    let transaction = database.begin_write().map_err(other)?;
    transaction.open_table(LOG).map_err(other)?;
    transaction.open_table(META).map_err(other)?;
    transaction.commit().map_err(other)?;
    drop(database);
    Ok(files.rename(&aside, path)?)
}

/// Opens a database and checks all that is in it.
fn open_file(files: &dyn Files, path: &Path) -> Result<Database, DiskError> {
    use redb::{DatabaseError, StorageError};
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    files.database(&builder, path).map_err(|source| match source {
        DatabaseError::DatabaseAlreadyOpen => DiskError::InUse { path: path.display().to_string() },
        DatabaseError::Storage(StorageError::Corrupted(reason)) => DiskError::corrupt(path, &reason),
        DatabaseError::Storage(StorageError::Io(error)) if says_corrupt(&error) => {
            DiskError::corrupt(path, &error)
        }
        source => DiskError::Open { path: path.display().to_string(), source },
    })
}

/// What is no database, or ends too early.
fn says_corrupt(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// What writes, one transaction after another.
pub struct Writer {
    database: Arc<RwLock<Option<Database>>>,
    received: Receiver<Write>,
    /// Entries through this one are still to be removed.
    purge: Option<u64>,
    /// Values that need not be durable: they go with the next write that must be, instead of in a transaction of
    /// their own after each commit.
    held: BTreeMap<&'static str, Vec<u8>>,
    /// Why nothing is written any more.
    failed: Option<(io::ErrorKind, String)>,
}

impl Writer {
    fn run(mut self) {
        while let Some(batch) = self.next_batch() {
            if !self.carry_out(batch) {
                return;
            }
        }
        self.database.write().expect(DISK).take();
    }

    /// Carries out all that waits, on the caller's thread, so that a test knows what is written together.
    #[cfg(test)]
    pub fn work(&mut self) {
        loop {
            let mut batch = Vec::new();
            self.gather(&mut batch);
            let idle = batch.is_empty() && (self.purge.is_none() || self.failed.is_some());
            if idle || !self.carry_out(batch) {
                return;
            }
        }
    }

    /// Writes a batch and tells its callbacks; false after a stop.
    fn carry_out(&mut self, mut batch: Vec<Write>) -> bool {
        // What comes after a stop is never written: `send` refuses it once we are gone.
        let stop = batch.iter().position(|write| matches!(write, Write::Stop { .. }));
        let unwritten = stop.map(|at| batch.split_off(at)).unwrap_or_default();
        let result = match stop.is_none() && self.may_wait(&batch) {
            true => {
                self.hold(&batch);
                Ok(())
            }
            false => self.write(&batch),
        };
        for write in batch {
            write.finish(result.as_ref().map(|_| ()).map_err(again));
        }
        if stop.is_none() {
            return true;
        }
        self.database.write().expect(DISK).take();
        for (at, write) in unwritten.into_iter().enumerate() {
            write.finish(if at == 0 { Ok(()) } else { Err(stopped()) });
        }
        false
    }

    /// All that waits, at least one write unless a purge is under way; `None` when all are gone.
    fn next_batch(&self) -> Option<Vec<Write>> {
        let mut batch = Vec::new();
        if self.purge.is_none() || self.failed.is_some() {
            batch.push(self.received.recv().ok()?);
        }
        (self.gather(&mut batch) || !batch.is_empty()).then_some(batch)
    }

    /// Adds what waits, up to a transaction's size; false when nobody is left to send more.
    fn gather(&self, batch: &mut Vec<Write>) -> bool {
        let mut bytes: usize = batch.iter().map(Write::bytes).sum();
        while bytes < BATCH_BYTES {
            match self.received.try_recv() {
                Ok(write) => {
                    bytes += write.bytes();
                    batch.push(write);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn may_wait(&self, batch: &[Write]) -> bool {
        let may = |write: &Write| matches!(write, Write::Put { durable: false, .. });
        self.purge.is_none() && self.failed.is_none() && batch.iter().all(may)
    }

    fn hold(&mut self, batch: &[Write]) {
        for write in batch {
            if let Write::Put { name, value, .. } = write {
                self.held.insert(name, value.clone());
            }
        }
    }

    fn write(&mut self, batch: &[Write]) -> io::Result<()> {
        if let Some((kind, reason)) = &self.failed {
            return Err(io::Error::new(*kind, reason.clone()));
        }
        let result = self.commit(batch);
        if let Err(error) = &result {
            tracing::error!(%error, "the log cannot be written, this controller stops");
            self.failed = Some((error.kind(), error.to_string()));
        }
        result
    }

    fn commit(&mut self, batch: &[Write]) -> io::Result<()> {
        let database = self.database.read().expect(DISK);
        let database = database.as_ref().ok_or_else(stopped)?;
        let mut transaction = database.begin_write().map_err(other)?;
        let durable = batch.iter().any(|write| match write {
            Write::Put { durable, .. } => *durable,
            Write::Append { .. } | Write::Truncate { .. } => true,
            Write::Purge { .. } | Write::Stop { .. } => false,
        });
        let durability = if durable { Durability::Immediate } else { Durability::None };
        transaction.set_durability(durability).map_err(other)?;
        let mut purge = self.purge;
        {
            let mut log = transaction.open_table(LOG).map_err(other)?;
            let mut meta = transaction.open_table(META).map_err(other)?;
            for (name, value) in &self.held {
                meta.insert(name, value.as_slice()).map_err(other)?;
            }
            for write in batch {
                match write {
                    Write::Append { entries, .. } => {
                        for (index, entry) in entries {
                            log.insert(index, entry.as_slice()).map_err(other)?;
                        }
                    }
                    Write::Truncate { from, .. } => log.retain_in(*from.., |_, _| false).map_err(other)?,
                    Write::Purge { through } => purge = purge.max(Some(*through)),
                    Write::Put { name, value, .. } => {
                        meta.insert(name, value.as_slice()).map_err(other)?;
                    }
                    Write::Stop { .. } => {}
                }
            }
            if let Some(through) = purge {
                let first = log.first().map_err(other)?.map(|(index, _)| index.value());
                let last = first.map(|first| through.min(first.saturating_add(PURGE_STEP)));
                if let Some((first, last)) = first.zip(last).filter(|(first, last)| first <= last) {
                    log.retain_in(first..=last, |_, _| false).map_err(other)?;
                }
                purge = Some(through).filter(|_| last.is_some_and(|last| last < through));
            }
        }
        transaction.commit().map_err(other)?;
        self.purge = purge;
        self.held.clear();
        Ok(())
    }
}

fn other(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn stopped() -> io::Error {
    io::Error::other("the log is closed")
}
