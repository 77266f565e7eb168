//! What other controllers may ask of this one over `tamdao.raft.v1`.
//!
//! Its invariant: nothing is done for a member of another cluster, nor in place of another member;
//! the header of every request is checked first. A file that is received is checked whole before
//! the consensus library hears of it, since the library stops a member whose snapshot fails.

use std::io::Write as _;
use std::sync::Arc;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use tamdao_proto::raft::v1 as wire;
use tamdao_proto::raft::v1::raft_service_server::RaftService;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::codec::{self, CodecError};
use super::node::{Node, Proposed};
use super::snapshot::{Image, SnapshotFile};
use super::types::{LogEntry, Types};
use crate::kv::Member;

/// Marks the refusal of one that has no seat.
const NO_SEAT: &str = "x-tamdao-no-seat";

type Answer<T> = Result<Response<T>, Status>;

/// The service of one member; clones are the same member.
#[derive(Clone)]
pub struct Service {
    pub(super) node: Arc<Node>,
}

impl Service {
    fn check(&self, header: Option<wire::Header>) -> Result<wire::Header, Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("header is missing"))?;
        let Some(ours) = self.node.peers.cluster() else {
            return Err(Status::failed_precondition("this controller has not joined a cluster yet"));
        };
        let theirs = Uuid::from_slice(&header.cluster_id)
            .map_err(|_| Status::invalid_argument("header.cluster_id is no id"))?;
        if theirs != ours {
            let reason = format!("this controller belongs to cluster {ours}, not to {theirs}");
            return Err(Status::failed_precondition(reason));
        }
        if header.to != 0 && header.to != self.node.id {
            let reason =
                format!("this address is served by controller {}, not by {}", self.node.id, header.to);
            return Err(Status::failed_precondition(reason));
        }
        Ok(header)
    }

    /// As [`Self::check`], for what only a seated member may ask of its leader. Votes and entries are not asked so:
    /// a group that changes its members must take both from one that it does not know yet.
    fn check_seat(&self, header: Option<wire::Header>) -> Result<(), Status> {
        let header = self.check(header)?;
        // Whoever does not lead may not have heard of a new member yet; it answers where the leader is.
        if self.node.leads() && !self.node.seated().iter().any(|member| member.id == header.from) {
            let mut status =
                Status::permission_denied(format!("controller {} has no seat in this group", header.from));
            status.metadata_mut().insert(NO_SEAT, MetadataValue::from_static("1"));
            return Err(status);
        }
        Ok(())
    }
}

/// Whether a leader refused a call because the caller has no seat.
pub fn says_no_seat(status: &Status) -> bool {
    status.metadata().contains_key(NO_SEAT)
}

fn invalid(error: CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this controller's store is stopped: {error}"))
}

fn read_vote(vote: &wire::VoteRequest) -> Result<VoteRequest<Types>, Status> {
    let ballot = codec::read_ballot(vote.ballot).map_err(invalid)?;
    let mut request = VoteRequest::new(ballot, vote.last.map(codec::read_log_id));
    request.leadership_transfer = vote.transfer;
    Ok(request)
}

fn vote_response(vote: &VoteResponse<Types>) -> wire::VoteResponse {
    wire::VoteResponse {
        ballot: Some(codec::ballot(&vote.vote)),
        granted: vote.vote_granted,
        last: vote.last_log_id.as_ref().map(codec::log_id),
    }
}

#[tonic::async_trait]
impl RaftService for Service {
    async fn append(&self, request: Request<wire::AppendRequest>) -> Answer<wire::AppendResponse> {
        use wire::append_response::Outcome;
        let request = request.into_inner();
        self.check(request.header)?;
        let entries = request.entries.into_iter().map(codec::read_entry);
        let rpc = AppendEntriesRequest::<Types> {
            vote: codec::read_ballot(request.ballot).map_err(invalid)?,
            prev_log_id: request.previous.map(codec::read_log_id),
            entries: entries.collect::<Result<Vec<LogEntry>, _>>().map_err(invalid)?,
            leader_commit: request.commit.map(codec::read_log_id),
        };
        let last = rpc.entries.last().map(|entry| entry.log_id);
        let outcome = match self.node.raft.append_entries(rpc).await.map_err(stopped)? {
            AppendEntriesResponse::Success => Outcome::Accepted(wire::Nothing {}),
            AppendEntriesResponse::PartialSuccess(through) if through == last => {
                Outcome::Accepted(wire::Nothing {})
            }
            AppendEntriesResponse::PartialSuccess(Some(through)) => {
                Outcome::AcceptedThrough(codec::log_id(&through))
            }
            AppendEntriesResponse::PartialSuccess(None) => {
                return Err(Status::internal("nothing was accepted"));
            }
            AppendEntriesResponse::Conflict => Outcome::Conflict(wire::Nothing {}),
            AppendEntriesResponse::HigherVote(ballot) => Outcome::HigherBallot(codec::ballot(&ballot)),
        };
        Ok(Response::new(wire::AppendResponse { outcome: Some(outcome) }))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Answer<wire::VoteResponse> {
        let mut request = request.into_inner();
        self.check(request.header.take())?;
        let answer = self.node.raft.vote(read_vote(&request)?).await.map_err(stopped)?;
        Ok(Response::new(vote_response(&answer)))
    }

    async fn pre_vote(&self, request: Request<wire::PreVoteRequest>) -> Answer<wire::PreVoteResponse> {
        let request = request.into_inner().vote.ok_or_else(|| Status::invalid_argument("vote is missing"))?;
        self.check(request.header.clone())?;
        let answer = self.node.raft.pre_vote(read_vote(&request)?).await.map_err(stopped)?;
        Ok(Response::new(wire::PreVoteResponse { vote: Some(vote_response(&answer)) }))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::InstallSnapshotRequest>>,
    ) -> Answer<wire::InstallSnapshotResponse> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.ok_or_else(|| Status::invalid_argument("nothing was sent"))?;
        self.check(first.header)?;
        let ballot = codec::read_ballot(first.ballot).map_err(invalid)?;
        let snapshots = Arc::clone(&self.node.snapshots);
        let mut partial = Some(snapshots.partial().map_err(|error| Status::internal(error.to_string()))?);
        while let Some(message) = messages.message().await? {
            let mut file = partial.take().ok_or_else(|| Status::internal("the file is gone"))?;
            let write =
                tokio::task::spawn_blocking(move || file.stream.write_all(&message.data).map(|()| file));
            let file = write.await.map_err(|error| Status::internal(error.to_string()))?;
            partial = Some(file.map_err(|error| Status::internal(error.to_string()))?);
        }
        let file = partial.ok_or_else(|| Status::internal("the file is gone"))?;
        let read = tokio::task::spawn_blocking(move || {
            file.stream.handle.sync().map_err(|error| Status::internal(error.to_string()))?;
            let image: Image =
                snapshots.read(&file.path).map_err(|error| Status::data_loss(error.to_string()))?;
            Ok::<_, Status>((file, image))
        });
        let (file, image) = read.await.map_err(|error| Status::internal(error.to_string()))??;
        let handle = Arc::clone(&file.stream.handle);
        let meta = image.meta.clone();
        let snapshot = SnapshotFile { file: handle, path: file.path.clone(), image: Some(Arc::new(image)) };
        let snapshot = openraft::alias::SnapshotOf::<Types, SnapshotFile> { meta, snapshot };
        let answer = self.node.raft.install_full_snapshot(ballot, snapshot).await.map_err(stopped)?;
        tracing::info!(path = %file.path.display(), "snapshot received");
        Ok(Response::new(wire::InstallSnapshotResponse { ballot: Some(codec::ballot(&answer.vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Answer<wire::TransferLeaderResponse> {
        use wire::transfer_leader_response::Outcome;
        let request = request.into_inner();
        self.check(request.header)?;
        let ballot = codec::read_ballot(request.ballot).map_err(invalid)?;
        let rpc = TransferLeaderRequest::new(ballot, request.to, request.last.map(codec::read_log_id));
        let outcome = match self.node.raft.handle_transfer_leader(rpc).await.map_err(stopped)? {
            Ok(()) => Outcome::Accepted(wire::Nothing {}),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Outcome::OtherBallot(codec::ballot(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Outcome::NotFlushed(wire::NotFlushed {
                    expected: expected.as_ref().map(codec::log_id),
                    actual: actual.as_ref().map(codec::log_id),
                })
            }
        };
        Ok(Response::new(wire::TransferLeaderResponse { outcome: Some(outcome) }))
    }

    async fn propose(&self, request: Request<wire::ProposeRequest>) -> Answer<wire::ProposeResponse> {
        use wire::propose_response::Outcome;
        let request = request.into_inner();
        self.check_seat(request.header)?;
        // It is checked here too: what is in the log must be within the limits of every release.
        let command = codec::read_command(&request.command).map_err(invalid)?;
        if let crate::mvcc::Command::Txn(txn) = &command {
            txn.validate().map_err(|error| Status::invalid_argument(error.to_string()))?;
        }
        let (outcome, index) = match self.node.propose_here(request.command).await {
            Proposed::Applied(applied, index) => (codec::applied(applied), index),
            Proposed::NotLeader(not_leader) => (Outcome::NotLeader(not_leader), 0),
            Proposed::Unknown => (Outcome::Unknown(wire::Nothing {}), 0),
        };
        Ok(Response::new(wire::ProposeResponse { outcome: Some(outcome), index }))
    }

    async fn read_index(&self, request: Request<wire::ReadIndexRequest>) -> Answer<wire::ReadIndexResponse> {
        use wire::read_index_response::Outcome;
        self.check_seat(request.into_inner().header)?;
        let outcome = match self.node.read_index_here().await {
            Ok(index) => Outcome::Index(index),
            Err(not_leader) => Outcome::NotLeader(not_leader),
        };
        Ok(Response::new(wire::ReadIndexResponse { outcome: Some(outcome) }))
    }

    async fn announce(&self, request: Request<wire::AnnounceRequest>) -> Answer<wire::AnnounceResponse> {
        use wire::announce_response::Outcome;
        let request = request.into_inner();
        let header = self.check(request.header)?;
        let seat = request.seat.ok_or_else(|| Status::invalid_argument("seat is missing"))?;
        if seat.id != header.from {
            return Err(Status::permission_denied("a controller announces only itself"));
        }
        if !self.node.leads() {
            let not_leader = self.node.not_leader("this controller does not lead");
            return Ok(Response::new(wire::AnnounceResponse {
                outcome: Some(Outcome::NotLeader(not_leader)),
            }));
        }
        let member = Member { id: seat.id, name: seat.name, address: seat.address, voter: false };
        self.node.reseat(member).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(wire::AnnounceResponse { outcome: Some(Outcome::Done(wire::Nothing {})) }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<wire::ListCheckpointsRequest>,
    ) -> Answer<wire::ListCheckpointsResponse> {
        self.check(request.into_inner().header)?;
        let checkpoints = self.node.progress.checkpoints().into_iter().map(|checkpoint| wire::Checkpoint {
            index: checkpoint.index,
            revision: checkpoint.revision.0,
            digest: checkpoint.digest.to_vec().into(),
        });
        Ok(Response::new(wire::ListCheckpointsResponse { checkpoints: checkpoints.collect() }))
    }
}
