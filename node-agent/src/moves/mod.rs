//! Moves between nodes: what carries a guest from one agent to the other, over mutual TLS on a port of their own
//! (docs/decisions/0101), and who may say what there.
//!
//! Invariants: the target's agent lets a connection in only for a move that its assignment names, with the incarnation,
//! and only from the node that it names; the source's word is in its ledger before it is said, and the target's agent
//! has it in its own before the guest runs. Deliberately absent: decisions (`reconcile`), and libvirt (`hypervisor`).

pub mod files;
mod link;
mod source;
mod target;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tamdao_proto::agent::v1 as messages;
use tamdao_proto::v1::MoveProgress;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use link::Bucket;
pub use target::{Arrival, Arrivals, serve};

use crate::desired::WantedMove;
use crate::hypervisor::migration::Dirtying;
use crate::pki::{Files, PkiError};

/// Where the sockets of moves are: the same on every node, because QEMU and libvirt know one name for both ends.
pub const SOCKETS: &str = "/run/tamdao/moves";

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{peer}: {message}")]
    Peer { peer: String, message: String },
    /// The other end's agent says no.
    #[error("the other node refuses: {0}")]
    Refused(String),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("tls: {0}")]
    Tls(String),
    #[error("it was recalled")]
    Recalled,
}

impl MoveError {
    /// One CamelCase word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "MoveIo",
            Self::Peer { .. } => "PeerUnreachable",
            Self::Refused(_) => "PeerRefuses",
            Self::Pki(_) | Self::Tls(_) => "MoveTls",
            Self::Recalled => "Recalled",
        }
    }
}

type Result<T> = std::result::Result<T, MoveError>;

/// What all moves of this node share.
pub struct Moves {
    files: Files,
    /// The socket of this node's libvirtd.
    libvirt: PathBuf,
    /// One for all moves out of and into this node: it is the link that is limited.
    bucket: Bucket,
    /// What the last large move out of this node sent in its best second, bytes; 0 before there was one.
    pace: AtomicU64,
    progress: watch::Sender<BTreeMap<Uuid, MoveProgress>>,
    arrivals: watch::Sender<Arrivals>,
    /// VMs whose files are being carried away, and what ends it.
    carrying: Mutex<BTreeMap<Uuid, CancellationToken>>,
    /// Volumes whose files are being received.
    taking: Mutex<BTreeSet<Uuid>>,
    /// Something has come by a connection that the loop should look at.
    pub changed: Notify,
}

impl Moves {
    /// `bandwidth` is in bytes a second; 0 does not limit.
    #[must_use]
    pub fn new(files: Files, libvirt_uri: &str, bandwidth: u64) -> Self {
        Self {
            files,
            libvirt: libvirt_socket(libvirt_uri),
            bucket: Bucket::new(bandwidth),
            pace: AtomicU64::new(0),
            progress: watch::channel(BTreeMap::new()).0,
            arrivals: watch::channel(Arrivals::new()).0,
            carrying: Mutex::default(),
            taking: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// How far the moves out of this node are, by move.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<BTreeMap<Uuid, MoveProgress>> {
        self.progress.subscribe()
    }

    /// What can be said of a guest before it is sent: what was measured of it, with what this node's link is known for.
    #[must_use]
    pub fn measured(&self, guest: Dirtying) -> messages::Measurement {
        messages::Measurement {
            memory_bytes: guest.memory_bytes,
            dirty_bytes_per_s: guest.bytes_per_s,
            limit_bytes_per_s: self.bucket.rate(),
            pace_bytes_per_s: self.pace.load(Ordering::Relaxed),
        }
    }

    /// Says which guests may come now.
    pub fn expect(&self, arrivals: Arrivals) {
        self.arrivals.send_if_modified(|old| {
            let news = *old != arrivals;
            *old = arrivals;
            news
        });
    }

    /// Whether a guest may still come by this move.
    #[must_use]
    pub fn expects(&self, vm: Uuid, id: Uuid) -> bool {
        self.arrivals.borrow().get(&vm).is_some_and(|arrival| arrival.moving.id == id)
    }

    /// Makes the directory in which QEMU will listen.
    ///
    /// # Errors
    /// It cannot be made.
    pub async fn make_room(&self, id: Uuid) -> Result<()> {
        make_directory(id).await.map(drop)
    }

    /// Removes what is left of a move's sockets.
    pub async fn clear(&self, id: Uuid) {
        if let Err(error) = tokio::fs::remove_dir_all(directory(id)).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = %error, "sockets of a move cannot be removed");
        }
    }
}

/// The directory of one move's sockets. QEMU, which is another user, must be able to make its own there; the name is
/// not to be guessed, and lies in a directory that cannot be listed.
fn directory(id: Uuid) -> PathBuf {
    Path::new(SOCKETS).join(id.to_string())
}

async fn make_directory(id: Uuid) -> Result<PathBuf> {
    let path = directory(id);
    let made = path.clone();
    let make = move || -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&made)?;
        std::fs::set_permissions(SOCKETS, std::fs::Permissions::from_mode(0o711))?;
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o777))
    };
    let done = tokio::task::spawn_blocking(make).await.map_err(std::io::Error::other).and_then(|made| made);
    done.map_err(|source| MoveError::Io { path: path.clone(), source })?;
    Ok(path)
}

/// A socket's name by what it carries.
fn socket_name(purpose: messages::Purpose) -> &'static str {
    match purpose {
        messages::Purpose::Libvirt => "libvirt",
        messages::Purpose::Memory => "memory",
        _ => "disks",
    }
}

/// The socket of the libvirtd that a URI means.
fn libvirt_socket(uri: &str) -> PathBuf {
    let named = uri.split_once("socket=").map(|(_, rest)| rest.split('&').next().unwrap_or(rest));
    if let Some(path) = named {
        return PathBuf::from(path);
    }
    let candidates =
        ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock", "/var/run/libvirt/libvirt-sock"];
    let found = candidates.iter().find(|path| Path::new(path).exists());
    PathBuf::from(found.copied().unwrap_or("/run/libvirt/libvirt-sock"))
}

fn greeting(vm: Uuid, moving: &WantedMove, purpose: messages::Purpose) -> messages::Greeting {
    messages::Greeting {
        move_id: moving.id.to_string(),
        vm_id: vm.to_string(),
        incarnation_to: moving.to,
        purpose: purpose.into(),
        ..messages::Greeting::default()
    }
}
