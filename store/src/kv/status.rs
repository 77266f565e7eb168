//! What a backend says of itself, for metrics and for people.
//!
//! Its invariant: asking costs nothing and needs nobody, so that it also answers when the quorum is
//! gone. Deliberately absent: judgement; whether a number is bad is for the alert rules to say.

use super::Revision;

/// The part that a controller plays in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It orders the commits.
    Leader,
    /// It votes and follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It follows without a vote.
    Learner,
    /// It is stopped, or has met an error that it must not work past.
    Stopped,
}

/// One seat of the group of controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Made with the data directory, and gone with it; never chosen by people.
    pub id: u64,
    /// The controller's name.
    pub name: String,
    /// Where the other controllers dial it.
    pub address: String,
    /// False while it is still a learner.
    pub voter: bool,
}

/// How another member follows, as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its seat.
    pub id: u64,
    /// Index of the last entry that it is known to hold.
    pub matched: u64,
    /// Milliseconds since it last answered; `None` if it never has.
    pub heard_ms: Option<u64>,
}

/// The digest of the whole state after one log entry, for comparing members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log entry after which it was taken.
    pub index: u64,
    /// The revision after that entry.
    pub revision: Revision,
    /// Equal on two members exactly when their state is.
    pub digest: [u8; 32],
}

/// A backend's health at one moment, for metrics and for people; no quorum is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `memory`, `raft` or `etcd`.
    pub backend: &'static str,
    /// The part that this controller plays.
    pub role: Role,
    /// The leader that this controller follows, itself included.
    pub leader: Option<Member>,
    /// Raft's term; zero where there is none. Never a fencing token: that is the epoch.
    pub term: u64,
    /// The newest revision applied here.
    pub revision: Revision,
    /// The oldest revision after which a watch can begin here.
    pub oldest: Revision,
    /// The level of encodings that every controller can read.
    pub level: u32,
    /// Bytes of keys and values of the state here.
    pub bytes: u64,
    /// Index of the first entry that is still in this controller's log.
    pub first_log: u64,
    /// Index of the last entry in this controller's log.
    pub last_log: u64,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Index of the last entry that this controller's newest snapshot holds.
    pub snapshot: u64,
    /// Milliseconds since a quorum last answered the leader; `None` on any other.
    pub quorum_age_ms: Option<u64>,
    /// The seats, in the order of their ids.
    pub members: Vec<Member>,
    /// How the others follow; empty on any but the leader.
    pub peers: Vec<Peer>,
    /// Recent digests, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// True once the leader has said that this controller has no seat any more. It learns nothing new then, so
    /// nothing that it still knows may be told as the truth.
    pub removed: bool,
    /// What stopped the backend, if something did.
    pub error: Option<String>,
}
