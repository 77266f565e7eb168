//! How this member calls the others: channels, deadlines, and the library's network adapter.
//!
//! Its invariant: an answer is taken only from the member that was meant, in our own cluster; the
//! other side checks the header and we send it with every call. Every call has a deadline. TLS is
//! deliberately absent: whoever gives the [`Dial`] decides how a channel is secured.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tamdao_proto::raft::v1 as wire;
use tamdao_proto::raft::v1::raft_service_client::RaftServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use uuid::Uuid;

use super::codec;
use super::snapshot::SnapshotFile;
use super::types::{Ballot, LogEntry, Seat, Types};
use crate::kv::Member;

/// The largest message that either side takes: a transaction's limit several times over.
pub const MESSAGE_LIMIT: usize = 16 << 20;
/// More entries than this many bytes are not put into one message, beyond the first.
const APPEND_BYTES: usize = 8 << 20;
const CHUNK_BYTES: usize = 1 << 20;
const CHANNELS: &str = "no code under this lock panics";

/// Makes a channel to another controller. A lazy one is best: it connects when it is first used,
/// and again after it broke.
pub trait Dial: Send + Sync + 'static {
    /// A channel to `address`, as the membership holds it.
    ///
    /// # Errors
    /// When the address is none, or the credentials to dial it are missing.
    fn dial(&self, address: &str) -> Result<Channel, DialError>;
}

/// No channel can be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot dial {address}: {reason}")]
pub struct DialError {
    /// Where.
    pub address: String,
    /// Why.
    pub reason: String,
}

/// What every channel between controllers needs, secured or not: a bound on connecting, and
/// keep-alive so that a peer that vanished is noticed without traffic.
pub fn tune(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .keep_alive_while_idle(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
}

/// Dials without TLS: for tests, and for nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainDial;

impl Dial for PlainDial {
    fn dial(&self, address: &str) -> Result<Channel, DialError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| DialError { address: address.to_owned(), reason: error.to_string() })?;
        Ok(tune(endpoint).connect_lazy())
    }
}

/// The other members, as this one reaches them.
pub struct Peers {
    dial: Arc<dyn Dial>,
    channels: Mutex<HashMap<String, Channel>>,
    /// Where each member was last known to be, by the newest membership.
    addresses: Mutex<HashMap<u64, String>>,
    cluster: OnceLock<Uuid>,
    node_id: u64,
}

pub type Client = RaftServiceClient<Channel>;

impl Peers {
    pub fn new(dial: Arc<dyn Dial>, node_id: u64) -> Peers {
        let (channels, addresses) = (Mutex::default(), Mutex::default());
        Peers { dial, channels, addresses, cluster: OnceLock::new(), node_id }
    }

    /// The cluster that this member belongs to, once it belongs to one.
    pub fn cluster(&self) -> Option<Uuid> {
        self.cluster.get().copied()
    }

    /// Joins a cluster, once and for all; returns the one that it belongs to.
    pub fn join(&self, cluster: Uuid) -> Uuid {
        *self.cluster.get_or_init(|| cluster)
    }

    /// The header for a call to `to`; zero for whoever answers.
    pub fn header(&self, to: u64) -> Option<wire::Header> {
        let cluster = self.cluster().unwrap_or_default();
        Some(wire::Header { cluster_id: cluster.as_bytes().to_vec().into(), from: self.node_id, to })
    }

    /// Takes note of where the members are, and forgets the channels to where nobody is any more.
    pub fn note(&self, members: &[Member]) {
        let known: HashMap<u64, String> =
            members.iter().map(|member| (member.id, member.address.clone())).collect();
        let mut addresses = self.addresses.lock().expect(CHANNELS);
        if *addresses != known {
            self.channels.lock().expect(CHANNELS).retain(|address, _| known.values().any(|at| at == address));
            *addresses = known;
        }
    }

    fn address_of(&self, id: u64) -> Option<String> {
        self.addresses.lock().expect(CHANNELS).get(&id).cloned()
    }

    pub fn client(&self, address: &str) -> Result<Client, DialError> {
        let mut channels = self.channels.lock().expect(CHANNELS);
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.dial.dial(address)?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(RaftServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT))
    }
}

/// Whether a failed call can have reached the other side. Only a failed connect surely has not.
pub fn never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A request with its deadline, which the other side sees too.
pub fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

#[derive(Clone)]
pub struct Network {
    pub peers: Arc<Peers>,
    /// At least this long for a call that waits for the other side's disk.
    pub patience: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Seat) -> Peer {
        Peer { network: self.clone(), target, address: node.address.clone() }
    }
}

/// One other member.
pub struct Peer {
    network: Network,
    target: u64,
    address: String,
}

impl Peer {
    /// The library makes its clients once and keeps them when a member moves, so the address is
    /// looked up for every call.
    fn client(&self) -> Result<Client, RPCError<Types>> {
        let address = self.network.peers.address_of(self.target).unwrap_or_else(|| self.address.clone());
        self.network.peers.client(&address).map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }

    fn header(&self) -> Option<wire::Header> {
        self.network.peers.header(self.target)
    }

    async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<Types>> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(&status)),
            Err(_) => Err(RPCError::Network(NetworkError::from_string("no answer in time"))),
        }
    }
}

/// What was refused or could not connect is asked again slowly, all else at once.
fn failure(status: &Status) -> RPCError<Types> {
    let refused = matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::Unimplemented);
    if refused || never_sent(status) {
        RPCError::Unreachable(Unreachable::new(status))
    } else {
        RPCError::Network(NetworkError::new(status))
    }
}

fn unreadable(error: impl ToString) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(error))
}

/// How many entries fit into one message; always one, for an entry is far below the limit.
fn fitting(entries: &[LogEntry]) -> usize {
    let mut bytes = 0;
    let fit = entries.iter().take_while(|entry| {
        let room = bytes < APPEND_BYTES;
        bytes += codec::entry_bytes(entry);
        room
    });
    fit.count()
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        use wire::append_response::Outcome;
        let sent = &rpc.entries[..fitting(&rpc.entries)];
        let request = wire::AppendRequest {
            header: self.header(),
            ballot: Some(codec::ballot(&rpc.vote)),
            previous: rpc.prev_log_id.as_ref().map(codec::log_id),
            entries: sent.iter().map(codec::entry).collect(),
            commit: rpc.leader_commit.as_ref().map(codec::log_id),
        };
        let partial = (sent.len() < rpc.entries.len()).then(|| sent.last().map(|entry| entry.log_id));
        // A heartbeat that is late is worth nothing; entries wait for the other side's disk.
        let limit =
            if sent.is_empty() { option.hard_ttl() } else { self.network.patience.max(option.hard_ttl()) };
        let mut client = self.client()?;
        let answer = self.call(limit, client.append(request)).await?;
        Ok(match answer.outcome.ok_or_else(|| unreadable("an answer without an outcome"))? {
            Outcome::Accepted(_) => {
                partial.map_or(AppendEntriesResponse::Success, AppendEntriesResponse::PartialSuccess)
            }
            Outcome::AcceptedThrough(id) => {
                AppendEntriesResponse::PartialSuccess(Some(codec::read_log_id(id)))
            }
            Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
            Outcome::HigherBallot(ballot) => {
                AppendEntriesResponse::HigherVote(codec::read_ballot(Some(ballot)).map_err(unreadable)?)
            }
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = vote_request(self.header(), &rpc);
        let mut client = self.client()?;
        read_vote_response(Some(self.call(option.hard_ttl(), client.vote(request)).await?))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = wire::PreVoteRequest { vote: Some(vote_request(self.header(), &rpc)) };
        let mut client = self.client()?;
        read_vote_response(self.call(option.hard_ttl(), client.pre_vote(request)).await?.vote)
    }

    async fn full_snapshot(
        &mut self,
        vote: Ballot,
        snapshot: openraft::alias::SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let first = wire::InstallSnapshotRequest {
            header: self.header(),
            ballot: Some(codec::ballot(&vote)),
            data: Default::default(),
        };
        let messages = futures::stream::once(async { first }).chain(chunks(snapshot.snapshot));
        let mut client = self.client()?;
        let sent = self.call(option.hard_ttl(), client.install_snapshot(messages));
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = sent => {
                let ballot = codec::read_ballot(answer?.ballot).map_err(unreadable)?;
                Ok(SnapshotResponse::new(ballot))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        use wire::transfer_leader_response::Outcome;
        let request = wire::TransferLeaderRequest {
            header: self.header(),
            ballot: Some(codec::ballot(rpc.from_leader())),
            to: *rpc.to_node_id(),
            last: rpc.last_log_id().map(codec::log_id),
        };
        let mut client = self.client()?;
        let answer = self.call(option.hard_ttl(), client.transfer_leader(request)).await?;
        Ok(match answer.outcome.ok_or_else(|| unreadable("an answer without an outcome"))? {
            Outcome::Accepted(_) => Ok(()),
            Outcome::OtherBallot(ballot) => Err(TransferLeaderError::VoteChanged {
                expected: *rpc.from_leader(),
                actual: codec::read_ballot(Some(ballot)).map_err(unreadable)?,
            }),
            Outcome::NotFlushed(log) => Err(TransferLeaderError::LogNotFlushed {
                expected: log.expected.map(codec::read_log_id),
                actual: log.actual.map(codec::read_log_id),
            }),
        })
    }
}

fn vote_request(header: Option<wire::Header>, rpc: &VoteRequest<Types>) -> wire::VoteRequest {
    wire::VoteRequest {
        header,
        ballot: Some(codec::ballot(&rpc.vote)),
        last: rpc.last_log_id.as_ref().map(codec::log_id),
        transfer: rpc.leadership_transfer,
    }
}

fn read_vote_response(vote: Option<wire::VoteResponse>) -> Result<VoteResponse<Types>, RPCError<Types>> {
    let vote = vote.ok_or_else(|| unreadable("an answer without a vote"))?;
    let ballot = codec::read_ballot(vote.ballot).map_err(unreadable)?;
    Ok(VoteResponse::new(ballot, vote.last.map(codec::read_log_id), vote.granted))
}

/// The pieces of a file. One that cannot be read ends the stream early, and the other side, which
/// checks the whole, refuses what it got.
fn chunks(snapshot: SnapshotFile) -> impl Stream<Item = wire::InstallSnapshotRequest> + Send + 'static {
    futures::stream::unfold((snapshot, 0_u64), |(snapshot, offset)| async move {
        let file = Arc::clone(&snapshot.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut data = vec![0; CHUNK_BYTES];
            let length = file.read_at(&mut data, offset)?;
            data.truncate(length);
            std::io::Result::Ok(data)
        });
        let data = match read.await {
            Ok(Ok(data)) => data,
            Ok(Err(error)) => {
                tracing::error!(%error, path = %snapshot.path.display(), "snapshot cannot be read");
                return None;
            }
            Err(_) => return None,
        };
        let next = offset + data.len() as u64;
        let chunk = wire::InstallSnapshotRequest { header: None, ballot: None, data: data.into() };
        (!chunk.data.is_empty()).then_some((chunk, (snapshot, next)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is tried again rests on this: a refused connection is told from a lost answer.
    #[tokio::test]
    async fn a_refused_connection_has_surely_sent_nothing() {
        let nobody = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let peers = Peers::new(Arc::new(PlainDial), 1);
        let mut client = peers.client(&nobody).unwrap();
        let request = wire::ReadIndexRequest { header: peers.header(2) };
        let status = client.read_index(within(request, Duration::from_secs(30))).await.unwrap_err();
        assert!(never_sent(&status), "{status:?}");
        assert!(!never_sent(&Status::unavailable("the answer was lost")));
    }
}
