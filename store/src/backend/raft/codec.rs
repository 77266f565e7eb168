//! Between the library's types and the messages of `tamdao.raft.v1`.
//!
//! Log, snapshot and wire share one encoding, protobuf, because all three outlive a release: an
//! old controller reads a new one's messages during an upgrade, and a new one an old one's disk.
//! What cannot be understood is an error here and stops the member; it is never skipped, since a
//! member that skips an entry is no longer equal to the others.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::vote::RaftLeaderId as _;
use prost::Message as _;
use tamdao_proto::raft::v1 as wire;

use super::types::{
    Ballot, LeaderId, LogEntry, LogId, Membership, Proposal, Seat, SnapshotMeta, StoredMembership,
};
use crate::kv::{Entry, Guard, Key, Op, Revision, StoreError, Txn};
use crate::mvcc::{Applied, Command};

/// What stands in a message or on disk is not what this release can read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A field that every release writes is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A kind that this release does not know; a later one wrote it.
    #[error("{0} is of a kind that this release does not know")]
    UnknownKind(&'static str),
    /// The bytes are no message.
    #[error("bytes that are no message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A key breaks the rules of keys.
    #[error(transparent)]
    Key(#[from] StoreError),
    /// A membership contradicts itself.
    #[error("membership: {0}")]
    Membership(String),
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

type Result<T> = std::result::Result<T, CodecError>;

pub fn log_id(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, node_id: id.leader_id.node_id, index: id.index }
}

pub fn read_log_id(id: wire::LogId) -> LogId {
    LogId::new(LeaderId::new(id.term, id.node_id).to_committed(), id.index)
}

pub fn ballot(vote: &Ballot) -> wire::Ballot {
    wire::Ballot { term: vote.leader_id.term, node_id: vote.leader_id.node_id, committed: vote.committed }
}

pub fn read_ballot(vote: Option<wire::Ballot>) -> Result<Ballot> {
    let vote = vote.ok_or(CodecError::Missing("ballot"))?;
    let leader_id = LeaderId::new(vote.term, vote.node_id);
    Ok(Ballot { leader_id, committed: vote.committed })
}

pub fn seat(id: u64, seat: &Seat) -> wire::Seat {
    wire::Seat { id, name: seat.name.clone(), address: seat.address.clone() }
}

pub fn membership(membership: &Membership) -> wire::Membership {
    let configs = membership.get_joint_config().iter();
    wire::Membership {
        configs: configs.map(|ids| wire::Voters { ids: ids.iter().copied().collect() }).collect(),
        seats: membership.nodes().map(|(id, node)| seat(*id, node)).collect(),
    }
}

pub fn read_membership(membership: wire::Membership) -> Result<Membership> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|voters| voters.ids.into_iter().collect()).collect();
    let seats =
        membership.seats.into_iter().map(|seat| (seat.id, Seat { name: seat.name, address: seat.address }));
    let seats: std::collections::BTreeMap<u64, Seat> = seats.collect();
    // The empty store's membership has no configuration, and the library's check refuses one.
    if configs.is_empty() && seats.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, seats).map_err(|error| CodecError::Membership(error.to_string()))
}

pub fn stored_membership(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id),
        membership: Some(membership(stored.membership())),
    }
}

pub fn read_stored_membership(stored: Option<wire::StoredMembership>) -> Result<StoredMembership> {
    let stored = stored.ok_or(CodecError::Missing("membership"))?;
    let membership = stored.membership.ok_or(CodecError::Missing("membership"))?;
    Ok(StoredMembership::new(stored.log_id.map(read_log_id), read_membership(membership)?))
}

pub fn read_meta(head: &wire::SnapshotHead) -> Result<SnapshotMeta> {
    Ok(SnapshotMeta {
        last_log_id: head.last_log_id.map(read_log_id),
        last_membership: read_stored_membership(head.membership.clone())?,
    })
}

pub fn entry(entry: &LogEntry) -> wire::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => wire::entry::Payload::Blank(wire::Nothing {}),
        EntryPayload::Normal(Proposal(bytes)) => wire::entry::Payload::Command(bytes.clone()),
        EntryPayload::Membership(change) => wire::entry::Payload::Membership(membership(change)),
    };
    wire::Entry { log_id: Some(log_id(&entry.log_id)), payload: Some(payload) }
}

pub fn read_entry(entry: wire::Entry) -> Result<LogEntry> {
    let log_id = read_log_id(entry.log_id.ok_or(CodecError::Missing("log_id"))?);
    let payload = match entry.payload.ok_or(CodecError::UnknownKind("a log entry"))? {
        wire::entry::Payload::Blank(_) => EntryPayload::Blank,
        wire::entry::Payload::Command(bytes) => EntryPayload::Normal(Proposal(bytes)),
        wire::entry::Payload::Membership(change) => EntryPayload::Membership(read_membership(change)?),
    };
    Ok(LogEntry::new(log_id, payload))
}

/// How many bytes an entry costs in a message or in memory, roughly.
pub fn entry_bytes(entry: &LogEntry) -> usize {
    const OVERHEAD: usize = 64;
    match &entry.payload {
        EntryPayload::Normal(Proposal(bytes)) => OVERHEAD + bytes.len(),
        EntryPayload::Blank => OVERHEAD,
        EntryPayload::Membership(change) => OVERHEAD * (1 + change.nodes().count()),
    }
}

pub fn command(command: &Command) -> Bytes {
    let kind = match command {
        Command::Txn(txn) => wire::command::Kind::Txn(wire_txn(txn)),
        Command::Compact(through) => wire::command::Kind::Compact(through.0),
        Command::SetLevel(level) => wire::command::Kind::SetLevel(*level),
    };
    wire::Command { kind: Some(kind) }.encode_to_vec().into()
}

pub fn read_command(bytes: &Bytes) -> Result<Command> {
    let command = wire::Command::decode(bytes.clone())?;
    Ok(match command.kind.ok_or(CodecError::UnknownKind("a command"))? {
        wire::command::Kind::Txn(txn) => Command::Txn(read_txn(txn)?),
        wire::command::Kind::Compact(through) => Command::Compact(Revision(through)),
        wire::command::Kind::SetLevel(level) => Command::SetLevel(level),
    })
}

fn wire_txn(txn: &Txn) -> wire::Txn {
    let guards = txn.guards.iter().map(|guard| match guard {
        Guard::Absent(key) => wire::Guard { key: key.as_str().into(), mod_revision: 0, absent: true },
        Guard::Unchanged(key, revision) => {
            wire::Guard { key: key.as_str().into(), mod_revision: revision.0, absent: false }
        }
    });
    let ops = txn.ops.iter().map(|op| match op {
        Op::Put(key, value) => wire::Op { key: key.as_str().into(), value: value.clone(), delete: false },
        Op::Delete(key) => wire::Op { key: key.as_str().into(), value: Bytes::new(), delete: true },
    });
    wire::Txn { guards: guards.collect(), ops: ops.collect() }
}

fn read_txn(txn: wire::Txn) -> Result<Txn> {
    let guards = txn.guards.into_iter().map(|guard| {
        let key = Key::new(guard.key)?;
        Ok(if guard.absent {
            Guard::Absent(key)
        } else {
            Guard::Unchanged(key, Revision(guard.mod_revision))
        })
    });
    let guards = guards.collect::<Result<_>>()?;
    let ops = txn.ops.into_iter().map(|op| {
        let key = Key::new(op.key)?;
        // A copy: what was decoded is a part of the whole message that brought it, and a record that is kept for
        // years must not keep that alive.
        let value = Bytes::copy_from_slice(&op.value);
        Ok(if op.delete { Op::Delete(key) } else { Op::Put(key, value) })
    });
    Ok(Txn { guards, ops: ops.collect::<Result<_>>()? })
}

pub fn record(entry: Entry) -> wire::Record {
    wire::Record {
        key: entry.key.as_str().into(),
        value: entry.value,
        create_revision: entry.create_revision.0,
        mod_revision: entry.mod_revision.0,
    }
}

pub fn read_record(record: wire::Record) -> Result<Entry> {
    Ok(Entry {
        key: Key::new(record.key)?,
        value: Bytes::copy_from_slice(&record.value),
        create_revision: Revision(record.create_revision),
        mod_revision: Revision(record.mod_revision),
    })
}

pub fn applied(applied: Applied) -> wire::propose_response::Outcome {
    use wire::propose_response::Outcome;
    match applied {
        Applied::Committed(revision) => Outcome::Committed(revision.0),
        Applied::Conflict(key) => Outcome::Conflict(key.as_str().into()),
        Applied::Compacted(oldest) => Outcome::Compacted(oldest.0),
        Applied::Ahead(current) => Outcome::Ahead(current.0),
        Applied::Level(level) => Outcome::Level(level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn commands_survive_the_wire() {
        let txn = Txn::new()
            .absent(key("/a"))
            .unchanged(key("/b"), Revision(7))
            .unchanged(key("/zero"), Revision::ZERO)
            .put(key("/c"), "value")
            .put(key("/empty"), "")
            .delete(key("/d"));
        for original in [Command::Txn(txn), Command::Compact(Revision(9)), Command::SetLevel(3)] {
            assert_eq!(read_command(&command(&original)).unwrap(), original);
        }
    }

    /// The bytes of a command are on disk for ever; a change of these is a break of old logs.
    #[test]
    fn the_encoding_of_a_command_does_not_change() {
        let txn = Txn::new()
            .absent(key("/a"))
            .unchanged(key("/b"), Revision(300))
            .put(key("/c"), "v")
            .delete(key("/d"));
        let expected = "0a220a060a022f6118010a070a022f6210ac0212070a022f6312017612060a022f641801";
        let bytes = command(&Command::Txn(txn));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    #[test]
    fn a_command_of_a_later_release_is_an_error() {
        let unknown = Bytes::from_static(&[0x22, 0x00]);
        assert!(matches!(read_command(&unknown), Err(CodecError::UnknownKind(_))));
    }

    #[test]
    fn entries_and_memberships_survive_the_wire() {
        let seat = |name: &str| Seat { name: name.into(), address: format!("{name}:1") };
        let seats = [(1, seat("a")), (2, seat("b")), (3, seat("c"))];
        let change =
            Membership::new(vec![[1, 2].into(), [2].into()], std::collections::BTreeMap::from(seats))
                .unwrap();
        let id = LogId::new(LeaderId::new(4, 1).to_committed(), 12);
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal(Bytes::from_static(b"x"))),
            EntryPayload::Membership(change),
        ] {
            let original = LogEntry::new(id, payload);
            assert_eq!(read_entry(entry(&original)).unwrap(), original);
        }
        let empty = StoredMembership::default();
        assert_eq!(read_stored_membership(Some(stored_membership(&empty))).unwrap(), empty);
    }
}
