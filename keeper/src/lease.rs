//! The record of a node on a shared pool: whoever reads it twice, long enough apart, knows whether the node still
//! renews it. It is text in the first sector of its own file, so that a write is whole or not there, and padded to a
//! block, so that it goes past every cache (O_DIRECT) on disks with sectors of 512 or 4096 bytes.
//!
//! Deliberately absent: what follows from two readings. A reader must know of its own access to the storage, too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use uuid::Uuid;

use crate::protocol::{NodeId, PoolId};

/// What is read and written at once, bytes.
pub const BLOCK: usize = 4096;
/// A write of so much is atomic on every disk, bytes.
const SECTOR: usize = 512;
const HEADER: &str = "tamdao-lease 1";
/// Beside the volumes of a pool.
const DIRECTORY: &str = "leases";
/// Says which pool is mounted here.
const MARKER: &str = ".tamdao-pool";

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: pool {found:?} is mounted here, not {pool}", path.display())]
    OtherPool { path: PathBuf, pool: PoolId, found: String },
    #[error("{}: not a lease record: {message}", path.display())]
    Unreadable { path: PathBuf, message: &'static str },
}

/// What a node says of itself on a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    pub node: NodeId,
    /// Counters of two boots are not compared.
    pub boot_id: Uuid,
    /// Grows with each renewal.
    pub counter: u64,
    pub lease_ms: u64,
    /// Of an armed watchdog; none if nothing would stop this host.
    pub watchdog_timeout_ms: Option<u64>,
    /// The node said itself that nothing of it runs on this pool.
    pub released: bool,
}

/// Where a node's record on a pool is.
pub fn path(pool: &Path, node: NodeId) -> PathBuf {
    pool.join(DIRECTORY).join(node.to_string())
}

/// Reads a record past all caches; none if the node never wrote one.
pub fn read(pool: &Path, node: NodeId) -> Result<Option<LeaseRecord>, LeaseError> {
    let path = path(pool, node);
    let at = |source| LeaseError::Io { path: path.clone(), source };
    let file = match open(&path, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let mut block = Block::default();
    let length = file.read_at(block.bytes(), 0).map_err(at)?;
    if length == 0 {
        return Ok(None);
    }
    let text = &block.bytes()[..length.min(SECTOR)];
    LeaseRecord::parse(text).map(Some).map_err(|message| LeaseError::Unreadable { path, message })
}

/// Writes a record and returns when it is on the storage. The pool's marker is looked at first: a directory on which
/// nothing is mounted must not be taken for the pool.
pub fn write(pool: &Path, id: PoolId, record: &LeaseRecord) -> Result<(), LeaseError> {
    let marker = pool.join(MARKER);
    let found =
        std::fs::read_to_string(&marker).map_err(|source| LeaseError::Io { path: marker.clone(), source })?;
    if found.trim() != id.to_string() {
        return Err(LeaseError::OtherPool { path: marker, pool: id, found: found.trim().to_owned() });
    }
    let path = path(pool, record.node);
    let at = |source| LeaseError::Io { path: path.clone(), source };
    if let Some(directory) = path.parent()
        && !directory.exists()
    {
        std::fs::create_dir_all(directory).map_err(at)?;
    }
    let file = open(&path, OpenOptions::new().write(true).create(true).mode(0o600)).map_err(at)?;
    let mut block = Block::default();
    let text = record.text();
    block.bytes()[..text.len()].copy_from_slice(text.as_bytes());
    file.write_all_at(block.bytes(), 0).map_err(at)
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::DIRECT | OFlags::DSYNC | OFlags::CLOEXEC;
    options.custom_flags(i32::try_from(flags.bits()).unwrap_or_default()).open(path)
}

impl LeaseRecord {
    fn text(&self) -> String {
        let mut text = format!(
            "{HEADER}\nnode {}\nboot {}\ncounter {}\nlease_ms {}\nwatchdog_timeout_ms {}\nreleased {}\n",
            self.node,
            self.boot_id,
            self.counter,
            self.lease_ms,
            self.watchdog_timeout_ms.unwrap_or(0),
            self.released,
        );
        let sum = crc32fast::hash(text.as_bytes());
        text.push_str(&format!("crc32 {sum:08x}\n"));
        debug_assert!(text.len() <= SECTOR);
        text
    }

    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "not text")?;
        let (said, sum) = text.split_once("crc32 ").ok_or("no checksum")?;
        let sum = sum.get(..8).and_then(|sum| u32::from_str_radix(sum, 16).ok()).ok_or("no checksum")?;
        if sum != crc32fast::hash(said.as_bytes()) {
            return Err("the checksum does not fit");
        }
        let mut lines = said.lines();
        if lines.next() != Some(HEADER) {
            return Err("another format");
        }
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        let id = |text: Option<&str>| text.and_then(|text| Uuid::parse_str(text).ok()).ok_or("a bad id");
        let number =
            |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).ok_or("a bad number");
        Ok(Self {
            node: NodeId(id(value("node"))?),
            boot_id: id(value("boot"))?,
            counter: number(value("counter"))?,
            lease_ms: number(value("lease_ms"))?,
            watchdog_timeout_ms: Some(number(value("watchdog_timeout_ms"))?).filter(|ms| *ms > 0),
            released: value("released")
                .and_then(|text| text.parse().ok())
                .ok_or("neither released nor held")?,
        })
    }
}

/// A block at an address that O_DIRECT takes.
struct Block {
    space: Vec<u8>,
    from: usize,
}

impl Default for Block {
    fn default() -> Self {
        let space = vec![0; 2 * BLOCK];
        let from = space.as_ptr().align_offset(BLOCK);
        Self { space, from }
    }
}

impl Block {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.space[self.from..self.from + BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_record() -> LeaseRecord {
        LeaseRecord {
            node: NodeId(Uuid::from_u128(1)),
            boot_id: Uuid::from_u128(2),
            counter: u64::MAX,
            lease_ms: u64::MAX,
            watchdog_timeout_ms: Some(u64::MAX),
            released: false,
        }
    }

    fn a_pool() -> (tempfile::TempDir, PoolId) {
        let id = PoolId(Uuid::from_u128(9));
        let pool = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(pool.path().join(MARKER), format!("{id}\n")).unwrap();
        (pool, id)
    }

    #[test]
    fn the_longest_record_fits_into_a_sector() {
        assert!(a_record().text().len() <= SECTOR, "{}", a_record().text().len());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (pool, id) = a_pool();
        let mut record = a_record();
        assert_eq!(read(pool.path(), record.node).unwrap(), None);
        for (watchdog_timeout_ms, released) in [(None, true), (Some(5), false)] {
            record = LeaseRecord { watchdog_timeout_ms, released, ..record };
            write(pool.path(), id, &record).unwrap();
            assert_eq!(read(pool.path(), record.node).unwrap(), Some(record));
        }
    }

    #[test]
    fn nothing_is_written_where_the_pool_is_not() {
        let (pool, id) = a_pool();
        let record = a_record();
        let other = PoolId(Uuid::from_u128(10));
        assert!(matches!(write(pool.path(), other, &record), Err(LeaseError::OtherPool { .. })));
        std::fs::remove_file(pool.path().join(MARKER)).unwrap();
        assert!(matches!(write(pool.path(), id, &record), Err(LeaseError::Io { .. })));
        assert!(!pool.path().join(DIRECTORY).exists());
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let text = a_record().text().into_bytes();
        for at in 0..text.len() - 1 {
            let mut bad = text.clone();
            bad[at] ^= 1;
            assert!(LeaseRecord::parse(&bad).is_err(), "byte {at}");
        }
    }
}
