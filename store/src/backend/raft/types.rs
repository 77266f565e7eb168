//! The types that the consensus library is instantiated with.
//!
//! A proposal is an already encoded command: it is encoded once by whoever proposes it, and log,
//! wire and disk pass the same bytes on. Terms are not exclusive here (the library may elect
//! several leaders in one), which is why nothing outside this directory may fence by term.

use std::fmt;

use bytes::Bytes;

use crate::kv::Member;
use crate::mvcc::Applied;

openraft::declare_raft_types!(
    /// The one group of controllers.
    pub Types:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = Seat,
);

pub type LogId = openraft::alias::LogIdOf<Types>;
pub type Ballot = openraft::alias::VoteOf<Types>;
pub type LeaderId = openraft::alias::LeaderIdOf<Types>;
pub type LogEntry = openraft::alias::EntryOf<Types>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub type Membership = openraft::Membership<u64, Seat>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<Types>;
pub type Metrics = openraft::RaftMetrics<Types>;
pub type Raft = openraft::Raft<Types, super::machine::Machine>;

/// An encoded command.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its bytes may hold sealed fields; a log line gets the size only.
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry gave; `None` for entries that are not commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(pub Option<Applied>);

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Who sits where, as the membership records it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    pub name: String,
    pub address: String,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// The seats of a membership, in the order of their ids.
pub fn members(membership: &Membership) -> Vec<Member> {
    let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
    let seats = membership.nodes().map(|(id, seat)| Member {
        id: *id,
        name: seat.name.clone(),
        address: seat.address.clone(),
        voter: voters.contains(id),
    });
    seats.collect()
}
