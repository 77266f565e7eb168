//! The source's side: asks the target where its files are, carries what libvirt and QEMU write into their sockets, and
//! says that the guest is gone.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tamdao_proto::agent::v1::{Greeting, GreetingAnswer, MachinePaths, Purpose};
use tamdao_proto::v1::MoveProgress;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{MoveError, Moves, Result, directory, greeting, link, make_directory, socket_name, wire};
use crate::desired::WantedMove;
use crate::hypervisor::Hypervisor;

/// How often progress is asked for and told.
pub(super) const PROGRESS: Duration = Duration::from_secs(1);

/// The sockets of one move on its source, which are carried as long as this is held.
pub struct Carrier {
    id: Uuid,
    moves: Arc<Moves>,
    pub sent: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.moves.progress.send_modify(|all| {
            all.remove(&self.id);
        });
        // Nobody needs the sockets any more; a later move has a directory of its own.
        if let Err(error) = std::fs::remove_dir_all(directory(self.id))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = %error, "sockets of a move cannot be removed");
        }
    }
}

impl Moves {
    pub(super) async fn open(
        &self,
        moving: &WantedMove,
        hello: &Greeting,
    ) -> Result<(TlsStream<wire::Line>, GreetingAnswer)> {
        let mut stream = wire::connect(&self.files.load()?, &moving.address, moving.peer).await?;
        let peer = |error: std::io::Error| MoveError::Peer {
            peer: moving.address.clone(),
            message: error.to_string(),
        };
        let talk = async {
            wire::say(&mut stream, hello).await?;
            wire::hear::<GreetingAnswer>(&mut stream).await
        };
        let silence = || peer(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let answer =
            tokio::time::timeout(wire::PATIENCE, talk).await.map_err(|_| silence())?.map_err(peer)?;
        if answer.error.is_empty() { Ok((stream, answer)) } else { Err(MoveError::Refused(answer.error)) }
    }

    /// Where the target keeps its files.
    ///
    /// # Errors
    /// It cannot be reached, or does not expect this guest.
    pub async fn ask_paths(&self, vm: Uuid, moving: &WantedMove) -> Result<MachinePaths> {
        let (_, answer) = self.open(moving, &greeting(vm, moving, Purpose::Paths)).await?;
        Ok(answer.paths.unwrap_or_default())
    }

    /// Says that the guest is gone from here, and returns when the target has it on disk.
    ///
    /// # Errors
    /// The target cannot be reached or refuses; the leader tells it then.
    pub async fn say_gone(&self, vm: Uuid, moving: &WantedMove) -> Result<()> {
        self.open(moving, &greeting(vm, moving, Purpose::Gone)).await.map(drop)
    }

    /// Opens the sockets of a move on its source and carries what comes.
    ///
    /// # Errors
    /// They cannot be made.
    pub async fn carry(self: &Arc<Self>, vm: Uuid, moving: &WantedMove) -> Result<Carrier> {
        let dir = make_directory(moving.id).await?;
        let sent = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for purpose in [Purpose::Libvirt, Purpose::Memory, Purpose::Disks] {
            let path = dir.join(socket_name(purpose));
            let listener =
                listen(&path).await.map_err(|source| MoveError::Io { path: path.clone(), source })?;
            tasks.spawn(accept(self.clone(), vm, moving.clone(), purpose, listener, sent.clone()));
        }
        Ok(Carrier { id: moving.id, moves: self.clone(), sent, _tasks: tasks })
    }

    /// Tells how far the migration is until the handle is dropped.
    pub fn watch(
        self: &Arc<Self>,
        vm: Uuid,
        id: Uuid,
        hypervisor: Arc<dyn Hypervisor>,
        sent: Arc<AtomicU64>,
    ) -> AbortOnDropHandle<()> {
        let moves = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut pace = link::Pace::new(tokio::time::Instant::now());
            loop {
                tokio::time::sleep(PROGRESS).await;
                if let Some(best) = pace.look(tokio::time::Instant::now(), sent.load(Ordering::Relaxed)) {
                    moves.pace.store(best, Ordering::Relaxed);
                }
                let Ok(Some(now)) = hypervisor.migration(vm).await else { continue };
                let progress = MoveProgress {
                    total_bytes: now.total_bytes,
                    processed_bytes: now.processed_bytes,
                    remaining_bytes: now.remaining_bytes,
                    dirty_bytes_per_s: now.dirty_bytes_per_s,
                    bytes_per_s: now.bytes_per_s,
                    downtime_ms: now.downtime_ms,
                    elapsed_ms: now.elapsed_ms,
                    iteration: now.iteration,
                    sent_bytes: sent.load(Ordering::Relaxed),
                };
                moves.progress.send_modify(|all| {
                    all.insert(id, progress);
                });
            }
        }))
    }
}

async fn listen(path: &PathBuf) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // QEMU connects as its own user.
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).await?;
    Ok(listener)
}

async fn accept(
    moves: Arc<Moves>,
    vm: Uuid,
    moving: WantedMove,
    purpose: Purpose,
    listener: UnixListener,
    sent: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let (moves, moving, sent) = (moves.clone(), moving.clone(), sent.clone());
        connections.spawn(async move {
            let joined = match moves.open(&moving, &greeting(vm, &moving, purpose)).await {
                Ok((far, _)) => {
                    link::join(near, far, &moves.bucket, &sent).await.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = joined {
                tracing::debug!(%vm, ?purpose, error, "connection of a move has broken");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
