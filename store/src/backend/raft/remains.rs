//! What a member's directory holds while no process runs it: all that is left of a group that lost its majority.
//!
//! Its invariant: the state is the newest snapshot and every entry of the log after it, also those of which the member
//! did not know whether they were committed, since one that was acknowledged may be among them; and a directory of which
//! any part is missing or altered is refused (decision 0213). The directory stays this process's until the value is
//! dropped. Deliberately absent: what is made of the state (`found_from` makes a group of one).

use std::sync::Arc;

use openraft::EntryPayload;
use prost::Message as _;
use tamdao_proto::raft::v1 as wire;
use uuid::Uuid;

use super::disk::Disk;
use super::log::{COMMITTED, VOTE, decode};
use super::types::{LogId, Proposal, StoredMembership, members};
use super::{CLUSTER_ID, LOG_FILE, NODE_ID, OpenError, Opened, RaftConfig, RaftStore, codec};
use crate::files::System;
use crate::kv::Member;
use crate::mvcc::{Mvcc, View};

/// How many entries are read at once.
const STEP: u64 = 1_024;

/// A stopped member's part in its group.
pub struct Remains {
    /// The member's Raft id.
    pub member: u64,
    /// The cluster that it belongs to.
    pub cluster: Uuid,
    /// The group as this member knew it last.
    pub members: Vec<Member>,
    /// The term and the number of its last log entry. Of two survivors the one with the higher pair lacks nothing that
    /// the other has.
    pub last: (u64, u64),
    /// The highest term that it has heard of. Above the last entry's, others had a leader of which it has nothing.
    pub term: u64,
    /// How many entries at the end of its log it did not know to be committed.
    pub open: u64,
    /// All of it, those entries too.
    pub state: View,
    disk: Arc<Disk>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        self.disk.stop_now();
    }
}

impl RaftStore {
    /// Reads what a stopped member has. Blocks; of the configuration only the directory counts.
    ///
    /// # Errors
    /// When a process has it open, when it holds no member of a group, or when anything in it is missing or altered.
    pub fn remains(config: &RaftConfig) -> Result<Remains, OpenError> {
        let path = config.directory.join(LOG_FILE);
        if !path.is_file() {
            return Err(wrong(config, "it holds no member of a group".into()));
        }
        let disk = Arc::new(Disk::open(&System, &path)?);
        let read = read(config, &disk);
        if read.is_err() {
            disk.stop_now();
        }
        read
    }
}

fn wrong(config: &RaftConfig, reason: String) -> OpenError {
    OpenError::Directory { directory: config.directory.display().to_string(), reason }
}

fn read(config: &RaftConfig, disk: &Arc<Disk>) -> Result<Remains, OpenError> {
    let io = |error: std::io::Error| wrong(config, error.to_string());
    if disk.get(NODE_ID).map_err(io)?.is_none() || disk.get(CLUSTER_ID).map_err(io)?.is_none() {
        return Err(wrong(config, "it holds no member of a group".into()));
    }
    let Opened { id: member, cluster, image, .. } = Opened::read_with(Arc::new(System), config, disk)?;
    let cluster = cluster.ok_or_else(|| wrong(config, "it holds no member of a group".into()))?;
    let (mut last, mut membership, mut state) = match image {
        Some(image) => (image.meta.last_log_id, image.meta.last_membership, Mvcc::from(image.view)),
        None => (None, StoredMembership::default(), Mvcc::new()),
    };
    let committed = match disk.get(COMMITTED).map_err(io)? {
        Some(bytes) => {
            let id =
                wire::LogId::decode(bytes.as_slice()).map_err(|error| wrong(config, error.to_string()))?;
            Some(codec::read_log_id(id)).max(last)
        }
        None => last,
    };
    loop {
        let from = last.map_or(0, |id| id.index + 1);
        let entries = disk.read(from, from + STEP).map_err(io)?;
        if entries.is_empty() {
            break;
        }
        for bytes in entries {
            let entry = decode(bytes).map_err(io)?;
            follows(entry.log_id, last).map_err(|reason| wrong(config, reason))?;
            last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(Proposal(bytes)) => {
                    let command = codec::read_command(&bytes);
                    state.apply(command.map_err(|error| wrong(config, error.to_string()))?);
                }
                EntryPayload::Membership(change) => membership = StoredMembership::new(last, change),
            }
        }
    }
    // A log that ends before what was acknowledged has lost its end; nothing else would show it.
    let Some(end) = last.filter(|last| Some(*last) >= committed) else {
        return Err(wrong(config, "its log ends before what it knew to be committed".into()));
    };
    let vote = match disk.get(VOTE).map_err(io)? {
        Some(bytes) => {
            let ballot =
                wire::Ballot::decode(bytes.as_slice()).map_err(|error| wrong(config, error.to_string()))?;
            Some(codec::read_ballot(Some(ballot)).map_err(|error| wrong(config, error.to_string()))?)
        }
        None => None,
    };
    let term = end.leader_id.term;
    Ok(Remains {
        member,
        cluster,
        members: members(membership.membership()),
        last: (term, end.index),
        term: vote.map_or(term, |vote| vote.leader_id.term.max(term)),
        open: end.index - committed.map_or(0, |id| id.index),
        state: state.view(),
        disk: Arc::clone(disk),
    })
}

/// A log has no gap, and its terms never fall.
fn follows(entry: LogId, last: Option<LogId>) -> Result<(), String> {
    let expected = last.map_or(0, |last| last.index + 1);
    if entry.index != expected || last.is_some_and(|last| last.leader_id.term > entry.leader_id.term) {
        return Err(format!("log entry {entry} does not follow, expected entry {expected}"));
    }
    Ok(())
}
