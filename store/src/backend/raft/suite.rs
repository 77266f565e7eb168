//! The consensus library's own acceptance suite, on our log and state machine.

use std::sync::Arc;

use openraft::testing::log::{StoreBuilder, Suite};

use super::disk::Disk;
use super::log::Log;
use super::machine::{Machine, Progress};
use super::snapshot::Snapshots;
use super::types::Types;
use crate::files::System;
use crate::hub::Hub;
use crate::mvcc::Mvcc;

struct Builder;

type StorageError = openraft::StorageError<Types>;

impl StoreBuilder<Types, Log, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, Log, Machine), StorageError> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::open(&System, &folder.path().join("log.redb")).unwrap());
        let snapshots =
            Snapshots::open(Arc::new(System), folder.path().join("snapshots"), 2, u64::MAX).unwrap();
        let machine =
            Machine::new(Hub::new(Mvcc::new()), Arc::new(snapshots), Arc::new(Progress::default()), None);
        Ok((folder, Log::load(disk).unwrap(), machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_accepts_our_storage() {
    Suite::test_all(Builder).await.unwrap();
}
