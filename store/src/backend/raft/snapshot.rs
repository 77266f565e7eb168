//! Snapshot files: what a member starts from, what a new one is sent, and what a backup is.
//!
//! A file is a mark, a head, the records in the order of their keys, and a checksum over all before
//! it. It is written aside, fsynced, renamed, and the directory fsynced, so that a name always
//! stands for a whole file. Reading checks the checksum and computes the state's digest anew from
//! the records. The last few are kept; one that is corrupt is set aside under another name and
//! reported, and never silently skipped when nothing older can replace it.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tamdao_proto::raft::v1 as wire;
use uuid::Uuid;

use super::codec::{self, CodecError};
use super::types::{LogId, SnapshotMeta};
use crate::files::{Files, Handle, How, Stream, make_folder};
use crate::kv::Revision;
use crate::mvcc::View;

const MARK: &[u8; 16] = b"tamdao snapshot1";
const SUFFIX: &str = "snapshot";
const CHECKSUM_BYTES: u64 = 32;
/// No message of a snapshot is longer: a transaction's limit with room for the rest.
const MESSAGE_LIMIT: usize = 16 << 20;
const LATEST: &str = "no code under this lock panics";

/// A snapshot file cannot be written or believed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What it says and what it holds differ.
    #[error("snapshot {path} is corrupt: {reason}")]
    Corrupt {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It was taken of another cluster.
    #[error("snapshot {path} is of cluster {found}, this controller belongs to {expected}")]
    OtherCluster {
        /// The file.
        path: String,
        /// The cluster that the file names.
        found: Uuid,
        /// Ours.
        expected: Uuid,
    },
    /// The log begins after every snapshot that can be read.
    #[error("no readable snapshot reaches log entry {purged}, where the log begins; {hint}")]
    Missing {
        /// The last entry that the log no longer has.
        purged: LogId,
        /// What to do.
        hint: &'static str,
    },
}

type Result<T> = std::result::Result<T, SnapshotError>;

/// One whole and checked state with what the consensus library wants to know of it.
#[derive(Clone, Debug)]
pub struct Image {
    pub meta: SnapshotMeta,
    pub view: View,
}

/// An open snapshot file; it stays readable when its name is removed.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    pub file: Arc<dyn Handle>,
    pub path: PathBuf,
    /// Its content where it was checked already.
    pub image: Option<Arc<Image>>,
}

/// The folder of snapshots.
pub struct Snapshots {
    files: Arc<dyn Files>,
    folder: PathBuf,
    keep: usize,
    /// Bytes a second that building one may write.
    rate: u64,
    cluster: Mutex<Option<Uuid>>,
    latest: Mutex<Option<(SnapshotMeta, PathBuf)>>,
}

impl Snapshots {
    /// Opens the folder, and removes what was not finished when the process ended.
    pub fn open(files: Arc<dyn Files>, folder: PathBuf, keep: usize, rate: u64) -> Result<Snapshots> {
        make_folder(&*files, &folder).map_err(|source| failed(&folder, source))?;
        for path in files.list(&folder).map_err(|source| failed(&folder, source))? {
            if path.extension().is_some_and(|extension| extension == "partial") {
                files.remove(&path).map_err(|source| failed(&path, source))?;
            }
        }
        let (cluster, latest) = (Mutex::new(None), Mutex::new(None));
        Ok(Snapshots { files, folder, keep: keep.max(1), rate: rate.max(1 << 20), cluster, latest })
    }

    /// Says which cluster the snapshots are of; a file of another is refused from here on.
    pub fn belong_to(&self, cluster: Uuid) {
        *self.cluster.lock().expect(LATEST) = Some(cluster);
    }

    /// Whether there is any snapshot.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.names()?.is_empty())
    }

    /// Reads the newest snapshot that is whole and reaches `purged`, setting corrupt ones aside.
    ///
    /// # Errors
    /// `Missing` when the log needs one and none is left.
    pub fn load(&self, purged: Option<LogId>) -> Result<Option<Image>> {
        for path in self.names()?.into_iter().rev() {
            match self.read(&path) {
                Ok(image) if image.meta.last_log_id >= purged => {
                    *self.latest() = Some((image.meta.clone(), path));
                    return Ok(Some(image));
                }
                Ok(_) => break,
                Err(error @ SnapshotError::Corrupt { .. }) => {
                    tracing::error!(%error, "a snapshot is corrupt and is set aside");
                    let aside = path.with_extension("corrupt");
                    self.files.rename(&path, &aside).map_err(|source| failed(&path, source))?;
                }
                Err(error) => return Err(error),
            }
        }
        let hint = super::REJOIN;
        purged.map_or(Ok(None), |purged| Err(SnapshotError::Missing { purged, hint }))
    }

    /// The newest snapshot, opened.
    pub fn latest_file(&self) -> Result<Option<(SnapshotMeta, SnapshotFile)>> {
        let Some((meta, path)) = self.latest().clone() else { return Ok(None) };
        let file = self.handle(&path)?;
        Ok(Some((meta, SnapshotFile { file, path, image: None })))
    }

    /// Writes a snapshot; blocks, and takes its time so that the log keeps the disk.
    pub fn write(&self, image: &Image) -> Result<SnapshotFile> {
        let partial = self.partial()?;
        let cluster = *self.cluster.lock().expect(LATEST);
        let written = write_image(&partial.stream.handle, image, cluster, self.rate);
        written.map_err(|source| failed(&partial.path, source))?;
        self.adopt(&image.meta, &partial.path)
    }

    /// Makes a whole file, from wherever it came, the newest snapshot of this folder.
    pub fn adopt(&self, meta: &SnapshotMeta, from: &Path) -> Result<SnapshotFile> {
        let path = self.folder.join(name(meta));
        if from != path {
            self.files.rename(from, &path).map_err(|source| failed(&path, source))?;
        }
        self.files.sync_folder(&self.folder).map_err(|source| failed(&self.folder, source))?;
        {
            let mut latest = self.latest();
            if latest.as_ref().is_none_or(|(newest, _)| newest.last_log_id <= meta.last_log_id) {
                *latest = Some((meta.clone(), path.clone()));
            }
        }
        self.prune()?;
        let file = self.handle(&path)?;
        Ok(SnapshotFile { file, path, image: None })
    }

    fn handle(&self, path: &Path) -> Result<Arc<dyn Handle>> {
        self.files.open(path, How::Read).map_err(|source| failed(path, source))
    }

    /// Reads and checks a whole file.
    pub fn read(&self, path: &Path) -> Result<Image> {
        let file = self.handle(path)?;
        let corrupt = |reason: String| SnapshotError::Corrupt { path: path.display().to_string(), reason };
        let (head, view) = read_image(file).map_err(|error| match error {
            ReadError::Io(source) if source.kind() != io::ErrorKind::UnexpectedEof => failed(path, source),
            ReadError::Io(_) => corrupt("it ends too early".into()),
            ReadError::Content(reason) => corrupt(reason),
        })?;
        let found =
            Uuid::from_slice(&head.cluster_id).map_err(|_| corrupt("its cluster id is no id".into()))?;
        match *self.cluster.lock().expect(LATEST) {
            Some(expected) if expected != found => {
                Err(SnapshotError::OtherCluster { path: path.display().to_string(), found, expected })
            }
            _ => {
                let meta = codec::read_meta(&head).map_err(|error| corrupt(error.to_string()))?;
                Ok(Image { meta, view })
            }
        }
    }

    /// A new file that is removed again unless it is adopted.
    pub fn partial(&self) -> Result<Partial> {
        let path = self.folder.join(format!("{}.partial", Uuid::new_v4()));
        let handle = self.files.open(&path, How::New).map_err(|source| failed(&path, source))?;
        Ok(Partial { files: Arc::clone(&self.files), path, stream: Stream::new(handle) })
    }

    fn latest(&self) -> MutexGuard<'_, Option<(SnapshotMeta, PathBuf)>> {
        self.latest.lock().expect(LATEST)
    }

    /// The files, oldest first.
    fn names(&self) -> Result<Vec<PathBuf>> {
        let mut found = self.files.list(&self.folder).map_err(|source| failed(&self.folder, source))?;
        found.retain(|path| path.extension().is_some_and(|extension| extension == SUFFIX));
        found.sort();
        Ok(found)
    }

    fn prune(&self) -> Result<()> {
        let latest = self.latest().as_ref().map(|(_, path)| path.clone());
        let names = self.names()?;
        let old = names.len().saturating_sub(self.keep);
        for path in names.into_iter().take(old).filter(|path| Some(path) != latest.as_ref()) {
            self.files.remove(&path).map_err(|source| failed(&path, source))?;
        }
        Ok(())
    }
}

/// A file that is being written; its name goes when this is dropped.
pub struct Partial {
    files: Arc<dyn Files>,
    pub path: PathBuf,
    pub stream: Stream,
}

impl Drop for Partial {
    fn drop(&mut self) {
        // A leftover is removed when the folder is opened next.
        let _ = self.files.remove(&self.path);
    }
}

/// Sorts by what it holds: a term never falls as the index grows.
fn name(meta: &SnapshotMeta) -> String {
    match &meta.last_log_id {
        Some(id) => format!("{:020}-{}-{}.{SUFFIX}", id.index, id.leader_id.term, id.leader_id.node_id),
        None => format!("empty.{SUFFIX}"),
    }
}

fn failed(path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Io { path: path.display().to_string(), source }
}

fn write_image(file: &Arc<dyn Handle>, image: &Image, cluster: Option<Uuid>, rate: u64) -> io::Result<()> {
    let head = wire::SnapshotHead {
        cluster_id: cluster.unwrap_or_default().as_bytes().to_vec().into(),
        last_log_id: image.meta.last_log_id.as_ref().map(codec::log_id),
        membership: Some(codec::stored_membership(&image.meta.last_membership)),
        revision: image.view.revision.0,
        level: image.view.level,
        records: image.view.len() as u64,
        digest: image.view.digest().to_vec().into(),
    };
    let mut out = Hashing {
        inner: BufWriter::with_capacity(1 << 20, Stream::new(Arc::clone(file))),
        hash: Sha256::new(),
        bytes: 0,
    };
    out.write_all(MARK)?;
    out.write_all(&head.encode_length_delimited_to_vec())?;
    let began = Instant::now();
    let mut pause_at = 0;
    for entry in image.view.entries() {
        out.write_all(&codec::record(entry).encode_length_delimited_to_vec())?;
        if out.bytes >= pause_at {
            pause_at = out.bytes + (1 << 20);
            let due = Duration::from_secs_f64(out.bytes as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
    }
    let checksum: [u8; 32] = out.hash.clone().finalize().into();
    out.inner.write_all(&checksum)?;
    out.inner.flush()?;
    file.sync()
}

struct Hashing<T> {
    inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hash.update(&data[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Hashing<T> {
    fn take_exact(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.inner.read_exact(&mut data)?;
        self.hash.update(&data);
        self.bytes += length as u64;
        Ok(data)
    }

    fn take_message<M: prost::Message + Default>(&mut self) -> std::result::Result<M, ReadError> {
        let mut length: u64 = 0;
        for shift in (0..).step_by(7) {
            let byte = self.take_exact(1)?[0];
            length |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            if shift >= 28 {
                return Err(ReadError::Content("a length is no length".into()));
            }
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MESSAGE_LIMIT {
            return Err(ReadError::Content(format!("a message of {length} bytes")));
        }
        let data = Bytes::from(self.take_exact(length)?);
        M::decode(data).map_err(|error| ReadError::Content(error.to_string()))
    }
}

enum ReadError {
    Io(io::Error),
    Content(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Io(error)
    }
}

impl From<CodecError> for ReadError {
    fn from(error: CodecError) -> Self {
        ReadError::Content(error.to_string())
    }
}

fn read_image(file: Arc<dyn Handle>) -> std::result::Result<(wire::SnapshotHead, View), ReadError> {
    let size = file.size()?;
    let inner = BufReader::with_capacity(1 << 20, Stream::new(file));
    let mut input = Hashing { inner, hash: Sha256::new(), bytes: 0 };
    if input.take_exact(MARK.len())? != MARK {
        return Err(ReadError::Content("it does not begin as a snapshot does".into()));
    }
    let head: wire::SnapshotHead = input.take_message()?;
    let mut entries = Vec::new();
    for _ in 0..head.records {
        entries.push(codec::read_record(input.take_message()?)?);
    }
    let computed: [u8; 32] = input.hash.clone().finalize().into();
    let mut stored = [0; CHECKSUM_BYTES as usize];
    input.inner.read_exact(&mut stored)?;
    if computed != stored {
        return Err(ReadError::Content("its checksum is wrong".into()));
    }
    if input.bytes + CHECKSUM_BYTES != size {
        return Err(ReadError::Content("it goes on after its end".into()));
    }
    let view = View::from_entries(Revision(head.revision), head.level, entries);
    if view.digest()[..] != head.digest[..] {
        return Err(ReadError::Content("its records are not the state that it was taken of".into()));
    }
    Ok((head, view))
}
