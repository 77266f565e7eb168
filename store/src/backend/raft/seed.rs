//! A group that begins with a state: what a restore makes of a backup.
//!
//! The directory is left as that of a lone member which has written a snapshot at its first log entry and purged the log
//! up to it. So whoever joins is sent the state, and nothing else in here knows of restores. The seat's own number comes
//! last: a directory without it is refused as one whose log is gone, and never taken for an empty one.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::vote::RaftLeaderId as _;
use prost::Message as _;
use uuid::Uuid;

use super::disk::Disk;
use super::log::{COMMITTED, PURGED, VOTE};
use super::snapshot::{Image, Snapshots};
use super::types::{Ballot, LeaderId, LogId, Membership, Seat, SnapshotMeta, StoredMembership};
use super::{CLUSTER_ID, LOG_FILE, NODE_ID, OpenError, RaftConfig, RaftStore, codec};
use crate::files::{System, make_folder};
use crate::mvcc::View;

/// The term and the log entry that the state stands for.
const FIRST: u64 = 1;

impl RaftStore {
    /// Makes the data directory of a new group with this member as its only one and `state` as what it holds; to be
    /// opened and joined as usual. Blocks.
    ///
    /// # Errors
    /// `Directory` when there is a member already, or something cannot be written.
    pub fn found_from(config: &RaftConfig, cluster: Uuid, state: View) -> Result<u64, OpenError> {
        let directory = &config.directory;
        let wrong =
            |reason: String| OpenError::Directory { directory: directory.display().to_string(), reason };
        make_folder(&System, directory).map_err(|error| wrong(error.to_string()))?;
        let disk = Arc::new(Disk::open(&System, &directory.join(LOG_FILE))?);
        let written = write(config, &disk, cluster, state);
        disk.stop_now();
        written
    }
}

fn write(config: &RaftConfig, disk: &Disk, cluster: Uuid, state: View) -> Result<u64, OpenError> {
    let wrong =
        |reason: String| OpenError::Directory { directory: config.directory.display().to_string(), reason };
    let io = |error: std::io::Error| wrong(error.to_string());
    let folder = config.directory.join("snapshots");
    let snapshots = Snapshots::open(Arc::new(System), folder, config.keep_snapshots, u64::MAX >> 1)?;
    if disk.get(NODE_ID).map_err(io)?.is_some() || !snapshots.is_empty()? {
        return Err(wrong("it holds a member already".into()));
    }
    // Zero stands for nobody in a message's header.
    let id = Uuid::new_v4().as_u64_pair().0.max(1);
    let seat = Seat { name: config.name.clone(), address: config.address.clone() };
    let leader = LeaderId::new(FIRST, id);
    let log_id = LogId::new(leader.to_committed(), FIRST);
    let membership = Membership::new(vec![[id].into()], BTreeMap::from([(id, seat)]));
    let membership = membership.map_err(|error| wrong(error.to_string()))?;
    let last_membership = StoredMembership::new(Some(log_id), membership);
    let meta = SnapshotMeta { last_log_id: Some(log_id), last_membership };
    snapshots.belong_to(cluster);
    snapshots.write(&Image { meta, view: state })?;
    let ballot = Ballot { leader_id: leader, committed: true };
    disk.put_now(VOTE, codec::ballot(&ballot).encode_to_vec()).map_err(io)?;
    disk.put_now(PURGED, codec::log_id(&log_id).encode_to_vec()).map_err(io)?;
    disk.put_now(COMMITTED, codec::log_id(&log_id).encode_to_vec()).map_err(io)?;
    disk.put_now(CLUSTER_ID, cluster.as_bytes().to_vec()).map_err(io)?;
    disk.put_now(NODE_ID, id.to_be_bytes().to_vec()).map_err(io)?;
    Ok(id)
}
