//! After the end: a member whose log could not be written has stopped for good, and a new start is worth it when the
//! disk takes writes again.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;

use super::RaftStore;
use crate::files::{Files, How};

/// A log that was full needs some room to be opened and written to.
const ROOM: usize = 16 << 20;
const STEP: usize = 1 << 20;
const EVERY: Duration = Duration::from_secs(5);

impl RaftStore {
    /// Waits until this member has stopped by itself, and then until its disk takes writes; returns why it stopped. A
    /// process that then starts anew may go on.
    pub async fn ended(&self) -> String {
        let mut metrics = self.node.raft.metrics();
        let reason = loop {
            let ended = metrics.borrow_watched().running_state.clone().err();
            if let Some(error) = ended {
                break error.to_string();
            }
            if metrics.changed().await.is_err() {
                break "its tasks are gone".into();
            }
        };
        loop {
            // First, so that what is not a matter of room is not tried without a pause.
            tokio::time::sleep(EVERY).await;
            let node = Arc::clone(&self.node);
            let probe = move || has_room(&*node.files, &node.config.directory);
            match tokio::task::spawn_blocking(probe).await {
                Ok(Ok(())) => return reason,
                Ok(Err(error)) => tracing::warn!(%error, "the store's disk takes no writes"),
                Err(error) => tracing::warn!(%error, "the store's disk was not tried"),
            }
        }
    }
}

/// Writes a file as large as what a start needs, and takes it away again.
fn has_room(files: &dyn Files, directory: &Path) -> io::Result<()> {
    let path = directory.join("room.partial");
    if files.exists(&path) {
        files.remove(&path)?;
    }
    let file = files.open(&path, How::New)?;
    // Not zeros, which some file systems do not store.
    let data = vec![0xA5; STEP];
    let written = (0..ROOM).step_by(STEP).try_for_each(|at| file.write_at(&data, at as u64));
    let synced = written.and_then(|()| file.sync());
    files.remove(&path).and(synced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::simulated::Simulated;

    #[test]
    fn a_disk_is_tried_with_what_a_start_needs_and_left_as_it_was() {
        let disk = Simulated::new();
        let folder = Path::new("/data");
        disk.create_folders(folder).unwrap();
        for (room, enough) in [(0, false), (ROOM as u64 - 1, false), (ROOM as u64, true)] {
            disk.limit(Some(room));
            assert_eq!(has_room(&disk, folder).is_ok(), enough, "{room} bytes");
            assert!(disk.list(folder).unwrap().is_empty());
        }
    }
}
