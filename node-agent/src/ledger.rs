//! What this node knows of itself across restarts of the agent: the highest epoch and revision that it was told,
//! and per VM and volume what has been done. It serves to recognise and to keep, never to start.
//!
//! Invariant: a change is on disk, fsynced, before anyone acts on it; memory never runs ahead of the file, but for
//! the revision heard last, which goes to disk with whatever is written next and before every step. The file is
//! rewritten aside and renamed, so a crash leaves the old or the new one, never half of one.
//! Deliberately absent: the assignment. After a boot an agent knows what it did, and not what it should do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};
use tamdao_proto::v1::Platform;
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use crate::desired::Digest;
use crate::guard::Rule;

/// The form of the file that this version writes.
const VERSION: u32 = 1;

/// How long a VM that nobody speaks of is remembered, so that an older incarnation is still refused, seconds.
pub const REMEMBER_S: u64 = 30 * 24 * 3600;

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Starting with an empty one would forget which volumes were made.
    #[error("{}: damaged: {message}; restore it, or move it away to let the node be recognised anew", path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("{}: another agent uses this directory", path.display())]
    Locked { path: PathBuf },
    #[error("{}: written by a newer agent (form {found}, this one knows {VERSION})", path.display())]
    TooNew { path: PathBuf, found: u32 },
}

/// All that the node knows.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct State {
    pub version: u32,
    /// The highest epoch whose assignment was taken; 0 for none.
    pub epoch: u64,
    /// The highest store revision heard of; 0 for none.
    pub revision: u64,
    pub cluster_id: String,
    /// The controllers as host:port, as the leader told last.
    pub controllers: Vec<String>,
    pub vms: BTreeMap<Uuid, VmRecord>,
    pub volumes: BTreeMap<Uuid, VolumeRecord>,
    /// Local pools whose directory was made once: without its marker such a pool is absent, not new.
    pub pools: BTreeSet<Uuid>,
}

impl State {
    /// Whether a leader of this epoch is listened to: none has been heard that took office later.
    #[must_use]
    pub fn takes(&self, epoch: u64) -> bool {
        epoch >= self.epoch || has(Mutant::DeposedLeader)
    }
}

/// Where a guest's life stands, as far as we acted on it.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Never started under this incarnation.
    #[default]
    New,
    /// Being started: its domain may be missing, or paused and never resumed.
    Starting,
    /// It was resumed, and has not been seen to end.
    Running,
    Ended,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    ByItself,
    OnOrder,
    Failed,
    /// libvirt took it to another node without us: only a new incarnation may run here again.
    Migrated,
}

/// A stop under way.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// When ACPI's time is up, ms of CLOCK_BOOTTIME.
    pub deadline_ms: u64,
    /// When ACPI was last asked, ms of CLOCK_BOOTTIME.
    pub asked_ms: u64,
}

/// A move out of this node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Outgoing {
    pub id: Uuid,
    pub word: Word,
    /// Why it was kept; empty otherwise.
    #[serde(default)]
    pub reason: String,
    /// It is off, and the files of its disks are carried: then only the target's answers make it gone, and how its domain
    /// ended once says nothing.
    #[serde(default)]
    pub files: bool,
}

/// What the source says of a guest that is to move. `Kept` and `Gone` are for ever.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It may be on its way: nobody knows yet.
    Sending,
    /// It has not left, or ended here, and will not be sent by this move.
    Kept,
    /// It has left, and never runs here again under its incarnation.
    Gone,
}

/// A move to this node.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Incoming {
    pub id: Uuid,
    /// The source's agent has said that the guest is gone there.
    pub go: bool,
}

/// What was done for one VM.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct VmRecord {
    /// The highest incarnation known.
    pub incarnation: u64,
    /// The generation last acted on.
    pub generation: u64,
    pub life: Life,
    pub end: Option<End>,
    /// The boot of the last start. Times below are of this boot's clock.
    pub boot_id: String,
    pub stop: Option<Stop>,
    /// It goes down to come up again.
    pub reboot: bool,
    /// Paused by us on the user's order: we may let it go on.
    pub paused: bool,
    /// The last reboot or reset done or given up.
    pub action: Option<Uuid>,
    pub platform: Option<Platform>,
    /// Restarts by the run policy on this incarnation.
    pub restarts: u32,
    /// Those of them that followed each other closely; sets the back-off.
    pub streak: u32,
    pub started_ms: u64,
    pub ended_ms: u64,
    /// The packet filter's rules of the running guest.
    pub rules: Vec<Rule>,
    /// Images that the running guest has open: ISO, kernel, initrd.
    pub images: Vec<Digest>,
    /// Volumes that the running guest has open.
    pub volumes: Vec<Uuid>,
    /// The storage leases under which it began: each pool, and since when its holding is unbroken, ms of this boot's
    /// clock.
    pub leases: BTreeMap<Uuid, u64>,
    /// Seed, filter and variables are there and must be cleared when the VM has left.
    pub untidy: bool,
    /// The last move out of this node.
    pub outgoing: Option<Outgoing>,
    /// The move by which the guest comes here.
    pub incoming: Option<Incoming>,
    /// When this record was last written, s since 1970.
    pub touched_s: u64,
}

/// What was done for one volume.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct VolumeRecord {
    pub pool: Uuid,
    /// The file was made, or found made. From then on a missing file is an error.
    pub made: bool,
    /// The virtual size, MiB.
    pub size_mib: u32,
    /// The image in this node's cache that backs the file.
    pub image: Option<Digest>,
    /// Its file was removed on order.
    pub deleted: bool,
    /// Of which of this node's files of the volume all this speaks.
    pub copy: u64,
}

/// The file and its image in memory. Cheap to read, one writer at a time.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    state: RwLock<Arc<State>>,
    /// Held while a change is written; the change starts from the state that the last one left.
    writer: tokio::sync::Mutex<()>,
    /// The highest revision heard of.
    heard: AtomicU64,
    /// Keeps other agents out of the directory for as long as this one lives.
    _lock: File,
}

impl Ledger {
    /// Opens `<dir>/ledger.json`, or begins an empty one.
    ///
    /// # Errors
    /// The directory cannot be written, another agent holds it, or the file is damaged or of a newer form.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        let lock_path = dir.join("ledger.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| LedgerError::Io { path: lock_path.clone(), source })?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| LedgerError::Locked { path: dir.to_owned() })?;
        let path = dir.join("ledger.json");
        let state = match std::fs::read(&path) {
            Ok(bytes) => {
                let state: State = serde_json::from_slice(&bytes).map_err(|error| LedgerError::Damaged {
                    path: path.clone(),
                    message: error.to_string(),
                })?;
                if state.version > VERSION {
                    return Err(LedgerError::TooNew { path, found: state.version });
                }
                state
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(source) => return Err(LedgerError::Io { path, source }),
        };
        Ok(Self {
            path,
            heard: AtomicU64::new(state.revision),
            state: RwLock::new(Arc::new(state)),
            writer: tokio::sync::Mutex::new(()),
            _lock: lock,
        })
    }

    /// What is on disk now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Takes note of a revision that was heard of; the next write takes it along.
    pub fn hear(&self, revision: u64) {
        self.heard.fetch_max(revision, Ordering::Relaxed);
    }

    /// The highest revision heard of, be it on disk or not.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Changes the state and returns when the change is on disk. A change that changes nothing writes nothing.
    ///
    /// # Errors
    /// The file cannot be written; then nothing has changed, and the caller must not act.
    pub async fn update<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State) -> R + Send,
    ) -> Result<R, LedgerError> {
        let _writer = self.writer.lock().await;
        let old = self.state();
        let mut new = State::clone(&old);
        let result = change(&mut new);
        new.revision = self.heard();
        if new == *old {
            return Ok(result);
        }
        new.version = VERSION;
        let path = self.path.clone();
        let new = Arc::new(new);
        let written = new.clone();
        let io = |source| LedgerError::Io { path: self.path.clone(), source };
        tokio::task::spawn_blocking(move || {
            let bytes = serde_json::to_vec_pretty(&*written).map_err(std::io::Error::other)?;
            write_file(&path, &bytes, 0o600)
        })
        .await
        .map_err(|error| io(std::io::Error::other(error)))?
        .map_err(io)?;
        *self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
        Ok(result)
    }

    /// Changes one VM's record, making it if there is none.
    ///
    /// # Errors
    /// As for [`Ledger::update`].
    pub async fn vm(&self, vm: Uuid, change: impl FnOnce(&mut VmRecord) + Send) -> Result<(), LedgerError> {
        let now_s = wall_seconds();
        self.update(move |state| {
            let record = state.vms.entry(vm).or_default();
            let before = record.clone();
            change(record);
            if *record != before {
                record.touched_s = now_s;
            }
        })
        .await
    }

    /// Changes one volume's record, making it if there is none.
    ///
    /// # Errors
    /// As for [`Ledger::update`].
    pub async fn volume(
        &self,
        volume: Uuid,
        change: impl FnOnce(&mut VolumeRecord) + Send,
    ) -> Result<(), LedgerError> {
        self.update(move |state| change(state.volumes.entry(volume).or_default())).await
    }
}

/// Seconds since 1970.
fn wall_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes a whole file so that after a crash either the old or the new one is there: aside, fsync, rename, fsync
/// of the directory.
///
/// # Errors
/// Any step fails; the old file is then untouched.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = path.parent().ok_or_else(|| std::io::Error::other("a file needs a directory"))?;
    let aside = path.with_extension("new");
    // A left-over of a crash may have another mode, which opening would keep.
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().create_new(true).write(true).mode(mode).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    sync_dir(dir)
}

/// Makes a directory's entries durable.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_on_disk_when_update_returns() {
        let dir = tempfile::tempdir().unwrap();
        let vm = Uuid::from_u128(7);
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.vm(vm, |record| record.incarnation = 3).await.unwrap();
        ledger.update(|state| state.epoch = 9).await.unwrap();
        let state = ledger.state();
        drop(ledger);
        let again = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.state(), state);
        assert_eq!(again.state().vms[&vm].incarnation, 3);
    }

    #[tokio::test]
    async fn a_revision_goes_to_disk_with_what_is_written_next() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.hear(7);
        ledger.hear(5);
        assert_eq!((ledger.heard(), ledger.state().revision), (7, 0));
        ledger.vm(Uuid::from_u128(7), |record| record.incarnation = 3).await.unwrap();
        drop(ledger);
        let again = Ledger::open(dir.path()).unwrap();
        assert_eq!((again.heard(), again.state().revision), (7, 7));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.update(|state| state.epoch = 1).await.unwrap();
        // A directory in the place of the file makes the rename fail, for root too.
        std::fs::remove_file(dir.path().join("ledger.json")).unwrap();
        std::fs::create_dir(dir.path().join("ledger.json")).unwrap();
        assert!(ledger.update(|state| state.epoch = 2).await.is_err());
        assert_eq!(ledger.state().epoch, 1);
    }

    #[test]
    fn a_damaged_file_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.json"), b"{\"epoch\": ").unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("ledger.json") && error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_newer_form_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.json"), b"{\"version\": 2}").unwrap();
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::TooNew { found: 2, .. })));
    }

    #[test]
    fn one_agent_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Ledger::open(dir.path()).unwrap();
        assert!(matches!(Ledger::open(dir.path()), Err(LedgerError::Locked { .. })));
        drop(first);
        assert!(Ledger::open(dir.path()).is_ok());
    }

    #[tokio::test]
    async fn a_left_over_of_a_crash_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.new"), b"half").unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(*ledger.state(), State::default());
        ledger.update(|state| state.epoch = 2).await.unwrap();
        drop(ledger);
        assert_eq!(Ledger::open(dir.path()).unwrap().state().epoch, 2);
    }
}
