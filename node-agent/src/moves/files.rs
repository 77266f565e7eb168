//! Files of the disks of a guest that is off: from the source's agent to the target's, a connection each, holes left out.
//!
//! Invariants: a file is answered for only when all of it is on the target's disk, in its place; two connections never
//! bring the same file at a time; what has been received in part is never taken for the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tamdao_proto::agent::v1::{Greeting, GreetingAnswer, Purpose};
use tamdao_proto::v1::MoveProgress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::source::PROGRESS;
use super::{MoveError, Moves, Result, greeting, link, wire};
use crate::checkpoint::checkpoint;
use crate::desired::WantedMove;

/// The most data of one piece, bytes.
const PIECE: usize = 256 * 1024;
/// How long a piece may be on its way: disks that are this slow have failed.
const STALL: Duration = Duration::from_secs(120);
/// How long the target may take to have a whole file on its disk.
const SETTLING: Duration = Duration::from_secs(15 * 60);

/// The files of one VM on their way, from before the first until this is dropped.
pub struct Carriage {
    vm: Uuid,
    id: Uuid,
    moves: Arc<Moves>,
    recalled: CancellationToken,
    sent: Arc<AtomicU64>,
    _telling: AbortOnDropHandle<()>,
}

impl Drop for Carriage {
    fn drop(&mut self) {
        self.moves.carrying.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.vm);
        self.moves.progress.send_modify(|all| {
            all.remove(&self.id);
        });
    }
}

impl Moves {
    /// Makes ready to carry so many bytes of a VM's files; from here on they can be recalled.
    pub fn load(self: &Arc<Self>, vm: Uuid, id: Uuid, total: u64) -> Carriage {
        let (recalled, sent) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        self.carrying.lock().unwrap_or_else(PoisonError::into_inner).insert(vm, recalled.clone());
        let telling = AbortOnDropHandle::new(tokio::spawn(tell(self.clone(), id, total, sent.clone())));
        Carriage { vm, id, moves: self.clone(), recalled, sent, _telling: telling }
    }

    /// Has the carrying of a VM's files end where it is; false if there is none.
    pub fn recall(&self, vm: Uuid) -> bool {
        let carrying = self.carrying.lock().unwrap_or_else(PoisonError::into_inner);
        carrying.get(&vm).map(CancellationToken::cancel).is_some()
    }

    /// Lets one connection bring the file of a volume.
    ///
    /// # Errors
    /// Another one is at it.
    pub fn take(self: &Arc<Self>, volume: Uuid) -> std::result::Result<Taking, &'static str> {
        match self.taking.lock().unwrap_or_else(PoisonError::into_inner).insert(volume) {
            true => Ok(Taking { volume, moves: self.clone() }),
            false => Err("this disk is being received already"),
        }
    }

    /// Whether the file of a volume is being received.
    #[must_use]
    pub fn is_taking(&self, volume: Uuid) -> bool {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner).contains(&volume)
    }
}

/// The right to write one volume's file.
pub struct Taking {
    volume: Uuid,
    moves: Arc<Moves>,
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.moves.taking.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
    }
}

impl Carriage {
    /// Bytes sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Carries the files one after the other. When this returns well the target has all of them on its disk.
    ///
    /// # Errors
    /// One of them could not be carried, or all were recalled.
    pub async fn carry(&self, moving: &WantedMove, files: &[(Uuid, PathBuf)]) -> Result<()> {
        let all = async {
            for (volume, path) in files {
                self.carry_one(moving, *volume, path).await?;
            }
            Ok::<_, MoveError>(())
        };
        tokio::select! {
            biased;
            () = self.recalled.cancelled() => Err(MoveError::Recalled),
            carried = all => carried,
        }
    }

    async fn carry_one(&self, moving: &WantedMove, volume: Uuid, path: &Path) -> Result<()> {
        let here = |source| MoveError::Io { path: path.to_owned(), source };
        let peer =
            |error: io::Error| MoveError::Peer { peer: moving.address.clone(), message: error.to_string() };
        let file = Arc::new(File::open(path).map_err(here)?);
        let size_bytes = file.metadata().map_err(here)?.len();
        let hello = greeting(self.vm, moving, Purpose::DiskFile);
        let hello = Greeting { volume_id: volume.to_string(), size_bytes, ..hello };
        let (mut stream, _) = self.moves.open(moving, &hello).await?;
        let mut at = 0;
        loop {
            let file = file.clone();
            let read = tokio::task::spawn_blocking(move || next(&file, at, size_bytes)).await;
            let Some((offset, data)) = read.map_err(io::Error::other).and_then(|read| read).map_err(here)?
            else {
                break;
            };
            self.moves.bucket.take(data.len()).await;
            within(STALL, say_piece(&mut stream, offset, &data)).await.map_err(peer)?;
            at = offset + data.len() as u64;
            self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
            checkpoint("move-piece").await;
        }
        within(STALL, say_piece(&mut stream, size_bytes, &[])).await.map_err(peer)?;
        let answer: GreetingAnswer = within(SETTLING, wire::hear(&mut stream)).await.map_err(peer)?;
        if answer.error.is_empty() { Ok(()) } else { Err(MoveError::Refused(answer.error)) }
    }
}

/// What a file takes on its disk, bytes: about what will be sent of it.
#[must_use]
pub fn data_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| (metadata.blocks() * 512).min(metadata.len()))
}

/// Tells once a second how far the carrying is.
async fn tell(moves: Arc<Moves>, id: Uuid, total_bytes: u64, sent: Arc<AtomicU64>) {
    let (begun, mut pace, mut before) = (Instant::now(), link::Pace::new(Instant::now()), 0);
    loop {
        tokio::time::sleep(PROGRESS).await;
        let sent_bytes = sent.load(Ordering::Relaxed);
        if let Some(best) = pace.look(Instant::now(), sent_bytes) {
            moves.pace.store(best, Ordering::Relaxed);
        }
        let total_bytes = total_bytes.max(sent_bytes);
        let progress = MoveProgress {
            total_bytes,
            processed_bytes: sent_bytes,
            remaining_bytes: total_bytes - sent_bytes,
            bytes_per_s: sent_bytes - before,
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            iteration: 1,
            sent_bytes,
            ..MoveProgress::default()
        };
        before = sent_bytes;
        moves.progress.send_modify(|all| {
            all.insert(id, progress);
        });
    }
}

async fn within<T>(limit: Duration, act: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, act).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The next data of a file from `at` on; none where only holes are left.
fn next(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let from = match seek(file, SeekFrom::Data(at)) {
        Ok(from) => from,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows of no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
        Err(error) => return Err(error.into()),
    };
    if from >= size {
        return Ok(None);
    }
    let to = seek(file, SeekFrom::Hole(from)).map_or(size, |to| to.clamp(from + 1, size));
    let mut data = vec![0; usize::try_from(to - from).unwrap_or(PIECE).min(PIECE)];
    file.read_exact_at(&mut data, from)?;
    Ok(Some((from, data)))
}

async fn say_piece(stream: &mut (impl AsyncWrite + Unpin), offset: u64, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut head = [0; 12];
    head[..8].copy_from_slice(&offset.to_be_bytes());
    head[8..].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&head).await?;
    stream.write_all(data).await?;
    stream.flush().await
}

/// Writes what comes to a new file of this size; what no piece covers is a hole. It is not synced.
///
/// # Errors
/// The pieces are not a file of this size, they stop coming, or it cannot be written.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin), path: &Path, size: u64) -> io::Result<()> {
    // Whatever is there is of an earlier try.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = Arc::new(File::create_new(path)?);
    file.set_len(size)?;
    let mut end = 0;
    loop {
        let (offset, data) = within(STALL, hear_piece(stream)).await?;
        if data.is_empty() {
            return Ok(());
        }
        let after = offset.checked_add(data.len() as u64).filter(|after| *after <= size && offset >= end);
        end = after.ok_or_else(|| io::Error::other("a piece lies outside of its file"))?;
        let file = file.clone();
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&data, offset)).await;
        written.map_err(io::Error::other)??;
        checkpoint("disk-piece").await;
    }
}

async fn hear_piece(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u64, Vec<u8>)> {
    let (offset, length) = (stream.read_u64().await?, stream.read_u32().await?);
    let length = usize::try_from(length).map_err(io::Error::other)?;
    if length > PIECE {
        return Err(io::Error::other(format!("a piece of {length} bytes")));
    }
    let mut data = vec![0; length];
    stream.read_exact(&mut data).await?;
    Ok((offset, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of a file by way of the wire.
    async fn carried(from: &Path, to: &Path) -> io::Result<()> {
        let file = File::open(from)?;
        let size = file.metadata()?.len();
        let (mut near, mut far) = tokio::io::duplex(4096);
        let sending = async {
            let mut at = 0;
            while let Some((offset, data)) = next(&file, at, size)? {
                say_piece(&mut near, offset, &data).await?;
                at = offset + data.len() as u64;
            }
            say_piece(&mut near, size, &[]).await
        };
        tokio::try_join!(sending, receive(&mut far, to, size)).map(drop)
    }

    #[tokio::test]
    async fn a_file_arrives_as_it_was_and_its_holes_are_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        let data: Vec<u8> = (0..700_000_u32).map(|at| (at % 251) as u8 + 1).collect();
        file.write_all_at(&data, 3 << 20).unwrap();
        file.write_all_at(b"the end", (64 << 20) + 5).unwrap();
        file.set_len(100 << 20).unwrap();
        std::fs::write(&to, "of an earlier try").unwrap();
        carried(&from, &to).await.unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(data_bytes(&to) < 2 << 20, "it takes {} bytes", data_bytes(&to));
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        carried(&empty, &to).await.unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn what_is_no_file_of_that_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let pieces: [&[(u64, &[u8])]; 4] = [
            &[(9, b"xx"), (10, b"")],
            &[(4, b"xx"), (0, b"y"), (10, b"")],
            &[(u64::MAX, b"x")],
            &[(0, b"x")],
        ];
        for pieces in pieces {
            let (mut near, mut far) = tokio::io::duplex(4096);
            for (offset, data) in pieces {
                say_piece(&mut near, *offset, data).await.unwrap();
            }
            drop(near);
            receive(&mut far, &to, 10).await.unwrap_err();
        }
    }
}
