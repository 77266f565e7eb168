//! Break-glass: a unix socket in the controller's data directory, for when neither a token nor the identity provider lets
//! anybody in. Who comes by it is a cloud admin, and everything that he asks is in the audit log as his.
//!
//! Its invariant: the kernel says who is at the other end, and only root and this process's own user count; no header
//! and no token changes that. Everything behind it is the same as at the port: gate, roles, forwarding. Deliberately
//! absent: a way to move it or to turn it off; whoever may open it could as well read the cluster's key beside it.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::listen::{Failure, HEADER_TIMEOUT, converse};
use crate::auth::{LocalPeer, Peer};

/// A few admins, each with a watch or two.
const CONNECTIONS: usize = 64;
/// What the file is called.
const FILE: &str = "admin.sock";
const ROOT: u32 = 0;

/// The bound socket; [`Self::run`] serves it. Its file goes with it.
pub struct Local {
    socket: UnixListener,
    path: PathBuf,
    /// Of this process.
    user: u32,
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Local {
    /// Binds it in the directory of a controller whose store is open: so no other one uses what lies there.
    ///
    /// # Errors
    /// When it cannot be bound: the directory's path may be too long for a socket.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let user = std::fs::metadata(&path)?.uid();
        Ok(Self { socket, path, user })
    }

    /// Serves until it is stopped.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                permit = room.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            let admitted = accepted.and_then(|(stream, _)| Ok((self.admit(&stream)?, stream)));
            let (peer, stream) = match admitted {
                Ok(admitted) => admitted,
                Err(error) => {
                    tracing::warn!(%error, "nobody is let in by the local socket");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            tracing::warn!(uid = peer.uid, pid = peer.pid, "a local admin comes in by the socket");
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                let peer = Peer { local: Some(peer), ..Peer::default() };
                let ended: Result<(), Failure> = converse(stream, peer, router, HEADER_TIMEOUT, &stop).await;
                if let Err(error) = ended {
                    tracing::debug!(%error, "local connection ended");
                }
                drop(permit);
            });
            while connections.try_join_next().is_some() {}
        }
        while connections.join_next().await.is_some() {}
    }

    fn admit(&self, stream: &UnixStream) -> io::Result<LocalPeer> {
        let peer = stream.peer_cred()?;
        let uid = peer.uid();
        if uid != ROOT && uid != self.user {
            let message = format!("user {uid} is neither root nor user {} of this process", self.user);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(LocalPeer { uid, pid: peer.pid().unwrap_or_default() })
    }
}
