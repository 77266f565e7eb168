//! One member at work: proposing, finding the leader, and knowing how far a read must see.
//!
//! Its invariant: a command is proposed a second time only when the first attempt surely was not,
//! and what cannot be told is `Unknown`. Reads are confirmed by a round of the quorum (ReadIndex),
//! never by a lease: a lease trusts clocks across a paused virtual machine or a stopped process,
//! and a controller asks for few linearizable reads, since its cache serves the rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Instant as _, ReadPolicy};
use tamdao_proto::raft::v1 as wire;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};

use super::RaftConfig;
use super::codec;
use super::disk::Disk;
use super::machine::Progress;
use super::network::{Peers, never_sent, within};
use super::service::says_no_seat;
use super::snapshot::Snapshots;
use super::types::{Metrics, Proposal, Raft, Types, members};
use crate::files::Files;
use crate::hub::Hub;
use crate::kv::{Checkpoint, Key, Member, Peer, Read, Result, Revision, Role, Status as Health, StoreError};
use crate::mvcc::{Applied, Command, Mvcc};

/// Everything that the parts of one member share.
pub struct Node {
    pub id: u64,
    pub config: RaftConfig,
    pub files: Arc<dyn Files>,
    pub raft: Raft,
    pub hub: Arc<Hub>,
    pub progress: Arc<Progress>,
    pub snapshots: Arc<Snapshots>,
    pub peers: Arc<Peers>,
    pub disk: Arc<Disk>,
    /// Held while the membership changes, so that changes follow one another.
    pub seats: tokio::sync::Mutex<()>,
    pub stopped: AtomicBool,
    /// Whether the leader's last word to this member was that it has no seat.
    pub removed: AtomicBool,
    /// Why this member has stopped itself, if it has.
    pub odd: OnceLock<String>,
}

/// What became of one attempt to propose.
pub enum Proposed {
    /// It is committed; what it did, and its log entry.
    Applied(Applied, u64),
    /// It was not proposed at all.
    NotLeader(wire::NotLeader),
    /// It may have been proposed.
    Unknown,
}

/// Waits a little longer each time, up to a bound; the caller keeps the deadline.
pub struct Backoff(Duration);

impl Backoff {
    pub fn new() -> Backoff {
        Backoff(Duration::from_millis(5))
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_millis(200));
    }
}

impl Node {
    /// A copy of the library's metrics; its guard must never be held across an await.
    pub fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    /// Whether this member believes that it leads; what it then does may still be refused.
    pub fn leads(&self) -> bool {
        self.raft.is_leader()
    }

    /// The leader as far as this member knows.
    pub fn leader(&self) -> Option<Member> {
        let metrics = self.metrics();
        let leader = metrics.current_leader?;
        members(metrics.membership_config.membership()).into_iter().find(|member| member.id == leader)
    }

    /// The answer of a member that cannot do what only a leader can.
    pub fn not_leader(&self, reason: &str) -> wire::NotLeader {
        let leader = self.leader().filter(|leader| leader.id != self.id);
        let leader =
            leader.map(|leader| wire::Seat { id: leader.id, name: leader.name, address: leader.address });
        wire::NotLeader { leader, reason: reason.into() }
    }

    fn forwarded(&self, to: ForwardToLeader<Types>) -> wire::NotLeader {
        // Without a leader's id this is a fresh leader that is not confirmed yet, or an election.
        let seat = to.leader_id.zip(to.leader_node).filter(|(id, _)| *id != self.id);
        wire::NotLeader {
            leader: seat.map(|(id, node)| codec::seat(id, &node)),
            reason: format!("no leader is confirmed yet ({:?})", to.reason),
        }
    }

    /// Proposes here and waits until it is applied here.
    pub async fn propose_here(&self, command: Bytes) -> Proposed {
        if self.stopped.load(Ordering::Acquire) {
            return Proposed::NotLeader(self.not_leader("this controller's store is stopped"));
        }
        match timeout(self.config.commit_timeout, self.raft.client_write(Proposal(command))).await {
            Ok(Ok(written)) => match written.data.0 {
                Some(applied) => Proposed::Applied(applied, written.log_id.index),
                None => Proposed::Unknown,
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Proposed::NotLeader(self.forwarded(to))
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the outcome of a proposal is unknown");
                Proposed::Unknown
            }
            Err(_) => {
                tracing::warn!("a proposal was not confirmed in time");
                Proposed::Unknown
            }
        }
    }

    /// Has the leader, wherever it is, commit a command; returns what it did and its log entry.
    pub async fn propose(&self, command: &Command) -> Result<(Applied, u64)> {
        self.must_be_even()?;
        let bytes = codec::command(command);
        let deadline = Instant::now() + self.config.commit_timeout;
        let mut backoff = Backoff::new();
        let mut hint = None;
        loop {
            let leader = hint.take().or_else(|| self.leader().map(|member| (member.id, member.address)));
            let asked = leader.as_ref().map(|(id, _)| *id);
            let proposed = match leader {
                Some((id, address)) if id != self.id => self.propose_to(id, &address, bytes.clone()).await,
                _ => self.propose_here(bytes.clone()).await,
            };
            let refusal = match proposed {
                Proposed::Applied(applied, index) => return Ok((applied, index)),
                Proposed::Unknown => return Err(StoreError::Unknown),
                Proposed::NotLeader(refusal) => refusal,
            };
            hint = self.again(deadline, &mut backoff, asked, refusal).await?;
        }
    }

    /// Waits before another attempt, and returns whom to ask then where that is known.
    async fn again(
        &self,
        deadline: Instant,
        backoff: &mut Backoff,
        asked: Option<u64>,
        refusal: wire::NotLeader,
    ) -> Result<Option<(u64, String)>> {
        let hopeless = self.stopped.load(Ordering::Acquire) || self.removed.load(Ordering::Acquire);
        if hopeless || Instant::now() >= deadline {
            let leader = refusal.leader.map(|seat| seat.address);
            return Err(StoreError::Unavailable { reason: refusal.reason, leader });
        }
        let hint = refusal.leader.map(|seat| (seat.id, seat.address));
        // A hint elsewhere is followed at once; all else means that an election is under way.
        if hint.as_ref().is_none_or(|(id, _)| Some(*id) == asked) {
            backoff.wait().await;
            return Ok(None);
        }
        Ok(hint)
    }

    async fn propose_to(&self, id: u64, address: &str, command: Bytes) -> Proposed {
        use wire::propose_response::Outcome;
        let mut client = match self.peers.client(address) {
            Ok(client) => client,
            Err(error) => return Proposed::NotLeader(self.refused(&error.to_string())),
        };
        let request = wire::ProposeRequest { header: self.peers.header(id), command };
        let patience = self.config.commit_timeout + Duration::from_millis(500);
        let answer = match timeout(patience, client.propose(within(request, patience))).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) if surely_refused(&status) => {
                self.note_seat(&status);
                return Proposed::NotLeader(self.refused(status.message()));
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the leader's answer to a proposal is lost");
                return Proposed::Unknown;
            }
            Err(_) => return Proposed::Unknown,
        };
        let applied = match answer.outcome {
            Some(Outcome::Committed(revision)) => Applied::Committed(Revision(revision)),
            Some(Outcome::Conflict(key)) => match Key::new(key) {
                Ok(key) => Applied::Conflict(key),
                Err(_) => return Proposed::Unknown,
            },
            Some(Outcome::Compacted(oldest)) => Applied::Compacted(Revision(oldest)),
            Some(Outcome::Ahead(current)) => Applied::Ahead(Revision(current)),
            Some(Outcome::Level(level)) => Applied::Level(level),
            Some(Outcome::NotLeader(refusal)) => return Proposed::NotLeader(refusal),
            Some(Outcome::Unknown(_)) | None => return Proposed::Unknown,
        };
        Proposed::Applied(applied, answer.index)
    }

    fn refused(&self, reason: &str) -> wire::NotLeader {
        wire::NotLeader { leader: None, reason: reason.into() }
    }

    /// Asks a quorum whether this member still leads; returns the entry that a reader must see.
    pub async fn read_index_here(&self) -> std::result::Result<u64, wire::NotLeader> {
        let asked = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match timeout(self.config.read_timeout, asked).await {
            Ok(Ok(read)) => Ok(read.read_log_id().index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                Err(self.forwarded(to))
            }
            Ok(Err(error)) => Err(self.refused(&error.to_string())),
            Err(_) => Err(self.refused("no quorum answered in time")),
        }
    }

    async fn read_index_at(&self, id: u64, address: &str) -> std::result::Result<u64, wire::NotLeader> {
        use wire::read_index_response::Outcome;
        let mut client = self.peers.client(address).map_err(|error| self.refused(&error.to_string()))?;
        let request = wire::ReadIndexRequest { header: self.peers.header(id) };
        let patience = self.config.read_timeout;
        let answer = timeout(patience, client.read_index(within(request, patience))).await;
        let answer = answer.map_err(|_| self.refused("the leader did not answer in time"))?;
        let answer = answer.map_err(|status| {
            self.note_seat(&status);
            self.refused(status.message())
        });
        match answer?.into_inner().outcome {
            Some(Outcome::Index(index)) => {
                self.removed.store(false, Ordering::Release);
                Ok(index)
            }
            Some(Outcome::NotLeader(refusal)) => Err(refusal),
            None => Err(self.refused("the leader's answer is of a later release")),
        }
    }

    /// Takes note of a leader that says that this member has no seat. One that waits for its first is told the
    /// same, and knows no members yet.
    fn note_seat(&self, refusal: &Status) {
        let removed = says_no_seat(refusal) && !self.seated().is_empty();
        if removed && !self.removed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "this controller was removed from the group and serves nobody: stop it; to use the host again, \
                 join it anew with an empty data directory"
            );
        }
    }

    /// Waits until all that was acknowledged before the call is applied here.
    pub async fn barrier(&self) -> Result<()> {
        let deadline = Instant::now() + self.config.read_timeout;
        let mut backoff = Backoff::new();
        let mut hint = None;
        let index = loop {
            let leader = hint.take().or_else(|| self.leader().map(|member| (member.id, member.address)));
            let asked = leader.as_ref().map(|(id, _)| *id);
            let answer = match leader {
                Some((id, address)) if id != self.id => self.read_index_at(id, &address).await,
                _ => self.read_index_here().await,
            };
            match answer {
                Ok(index) => break index,
                Err(refusal) => hint = self.again(deadline, &mut backoff, asked, refusal).await?,
            }
        };
        self.caught_up(index, deadline).await
    }

    /// Waits until the log entry is applied here.
    pub async fn caught_up(&self, index: u64, deadline: Instant) -> Result<()> {
        let late = |_| StoreError::unavailable("this controller is behind and did not catch up in time");
        timeout_at(deadline, self.progress.reached(index)).await.map_err(late)
    }

    /// Waits until the local state is as fresh as `read` asks for.
    pub async fn ready(&self, read: Read) -> Result<()> {
        self.must_be_even()?;
        match read {
            Read::Linearizable => self.barrier().await,
            Read::AtLeast(revision) if self.hub.revision() >= revision => Ok(()),
            // Whichever is first: the revision arrives, or the leader tells how far the store is.
            Read::AtLeast(revision) => tokio::select! {
                reached = self.hub.reached(revision) => reached,
                passed = self.barrier() => {
                    passed?;
                    let current = self.hub.revision();
                    if current >= revision { Ok(()) } else { Err(StoreError::Ahead { current }) }
                }
            },
        }
    }

    pub fn health(&self) -> Health {
        let metrics = self.metrics();
        let (revision, oldest, level, bytes) =
            self.hub.read(|mvcc: &Mvcc| (mvcc.revision(), mvcc.oldest(), mvcc.level(), mvcc.view().bytes));
        let members = members(metrics.membership_config.membership());
        let stopped = self.stopped.load(Ordering::Acquire);
        let ended = || metrics.running_state.as_ref().err().map(ToString::to_string);
        let error = self.odd.get().cloned().or_else(ended);
        let role = match metrics.state {
            _ if stopped || error.is_some() => Role::Stopped,
            openraft::ServerState::Leader => Role::Leader,
            openraft::ServerState::Follower => Role::Follower,
            openraft::ServerState::Candidate => Role::Candidate,
            openraft::ServerState::Learner => Role::Learner,
            openraft::ServerState::Shutdown => Role::Stopped,
        };
        let age = metrics.last_quorum_acked.map(|acked| acked.elapsed().as_millis());
        Health {
            backend: "raft",
            role,
            leader: metrics
                .current_leader
                .and_then(|id| members.iter().find(|member| member.id == id).cloned()),
            term: metrics.current_term,
            revision,
            oldest,
            level,
            bytes,
            first_log: metrics.purged.map_or(0, |id| id.index + 1),
            last_log: metrics.last_log_index.unwrap_or_default(),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            quorum_age_ms: age.map(|age| u64::try_from(age).unwrap_or(u64::MAX)),
            members,
            peers: peers(&metrics),
            checkpoints: self.progress.checkpoints(),
            removed: self.removed.load(Ordering::Acquire),
            error,
        }
    }

    /// The members whose state differs from this one's after the same entry.
    pub async fn compare(&self) -> Vec<(Member, Checkpoint)> {
        let mut different = Vec::new();
        for member in self.seated().into_iter().filter(|member| member.id != self.id) {
            let Ok(theirs) = self.checkpoints_of(&member).await else { continue };
            let ours = self.progress.checkpoints();
            let differs =
                |their: &Checkpoint| ours.iter().any(|our| our.index == their.index && our != their);
            if let Some(checkpoint) = theirs.into_iter().find(differs) {
                tracing::error!(
                    member = member.id,
                    index = checkpoint.index,
                    "a member's state differs from ours"
                );
                different.push((member, checkpoint));
            }
        }
        different
    }

    /// The recent digests of another member.
    pub async fn checkpoints_of(&self, member: &Member) -> Result<Vec<Checkpoint>> {
        let mut client =
            self.peers.client(&member.address).map_err(|error| StoreError::unavailable(error.to_string()))?;
        let request = wire::ListCheckpointsRequest { header: self.peers.header(member.id) };
        let patience = self.config.read_timeout;
        let answer = timeout(patience, client.list_checkpoints(within(request, patience))).await;
        let answer = answer.map_err(|_| StoreError::unavailable("no answer in time"))?;
        let answer = answer.map_err(|status| StoreError::unavailable(status.message()))?.into_inner();
        let checkpoints = answer.checkpoints.into_iter().filter_map(|checkpoint| {
            let digest = checkpoint.digest.as_ref().try_into().ok()?;
            Some(Checkpoint { index: checkpoint.index, revision: Revision(checkpoint.revision), digest })
        });
        Ok(checkpoints.collect())
    }
}

/// Whether the other side certainly did not propose: these come from its checks before it would.
fn surely_refused(status: &Status) -> bool {
    let refusal =
        [Code::FailedPrecondition, Code::InvalidArgument, Code::Unimplemented, Code::PermissionDenied];
    never_sent(status) || refusal.contains(&status.code())
}

/// How the others follow, as far as this member leads.
fn peers(metrics: &Metrics) -> Vec<Peer> {
    let heard = metrics.heartbeat.iter().flatten();
    let heard: std::collections::BTreeMap<u64, u64> = heard
        .filter_map(|(id, at)| {
            let ms = at.as_ref()?.elapsed().as_millis();
            Some((*id, u64::try_from(ms).unwrap_or(u64::MAX)))
        })
        .collect();
    let matched = metrics.replication.iter().flatten().filter(|(id, _)| **id != metrics.id);
    matched
        .map(|(id, matched)| Peer {
            id: *id,
            matched: matched.as_ref().map_or(0, |log| log.index),
            heard_ms: heard.get(id).copied(),
        })
        .collect()
}
