//! Calls that change something run on the leader: whoever else receives one sends it on.
//!
//! Its invariant: a request is sent on at most once more (a hop header stops loops), under the principal that the
//! first controller found, and is repeated only when it cannot have been seen. Reads stay here; agents' sessions are
//! redirected, never carried. Deliberately absent: waiting longer than a change of leaders takes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method as Verb, request};
use tamdao_model::limits::BODY_BYTES;
use tamdao_store::kv::{Kv, Leadership, StoreError};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;

use crate::answer;
use crate::audit::AnsweredElsewhere;
use crate::auth::{HOP, UNKNOWN_PEER};
use crate::methods::catalogue;
use crate::peers::{PeerError, Peers};
use crate::refusal::Refusal;

/// Tells the controller that sent a request on that it was not done here.
pub(crate) const NOT_LEADER: HeaderName = HeaderName::from_static("x-tamdao-not-leader");
/// How long a caller waits for a leader: as long as an election usually takes.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often we look again meanwhile; the store tells nobody when it learns of a leader.
const LOOK: Duration = Duration::from_millis(25);
/// What a removed controller says of itself.
pub const REMOVED: &str = "this controller was removed from the group";
/// A gRPC frame's header and what a proxy may add to a body.
const FRAMING: usize = 1_024;

/// Where the leader is, as far as this controller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    Here,
    At(String),
    Nobody,
    /// The leader says that this controller has no seat any more: what it knows grows old, so it answers nothing.
    Removed,
}

impl Leader {
    /// What the store and the office say. `me` is the own address.
    pub fn known(kv: &dyn Kv, office: &watch::Receiver<Option<Leadership>>, me: &str) -> Self {
        if office.borrow().as_ref().is_some_and(|office| !office.is_lost()) {
            return Self::Here;
        }
        let status = kv.status();
        match status.leader {
            _ if status.removed => Self::Removed,
            // It leads the store, but has not taken the office yet.
            Some(leader) if leader.address == me => Self::Nobody,
            Some(leader) => Self::At(leader.address),
            None => Self::Nobody,
        }
    }
}

/// The layer; mount it behind the gate with [`axum::middleware::from_fn_with_state`] and [`carry`].
#[derive(Clone)]
pub struct Forward {
    leader: Arc<dyn Fn() -> Leader + Send + Sync>,
    peers: Peers,
    patience: Duration,
}

impl Forward {
    /// `leader` answers at once; [`Leader::known`] does.
    pub fn new(leader: impl Fn() -> Leader + Send + Sync + 'static, peers: Peers) -> Self {
        Self { leader: Arc::new(leader), peers, patience: PATIENCE }
    }

    /// Waits at most so long for a leader.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether this controller leads, now.
    pub fn leads(&self) -> bool {
        (self.leader)() == Leader::Here
    }

    /// Sends a request of this controller's own to the leader. The body must be whole.
    ///
    /// # Errors
    /// `Unavailable` without a leader, `Aborted` when the outcome is unknown.
    pub async fn ask(&self, parts: request::Parts, body: Bytes) -> Result<Response, Refusal> {
        let deadline = Instant::now() + self.patience;
        loop {
            match (self.leader)() {
                Leader::At(address) => {
                    if let Some(response) = self.try_send(&address, &parts, Body::from(body.clone())).await? {
                        return Ok(response);
                    }
                }
                Leader::Removed => return Err(removed()),
                Leader::Here | Leader::Nobody => {}
            }
            pause(deadline).await?;
        }
    }

    /// One attempt; None says that it was not done and may be tried again.
    async fn try_send(
        &self,
        address: &str,
        parts: &request::Parts,
        body: Body,
    ) -> Result<Option<Response>, Refusal> {
        let mut request = http::Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = onward(&parts.headers);
        match self.peers.send(address, request).await {
            Ok(response) if response.headers().contains_key(NOT_LEADER) => Ok(None),
            Ok(response) if response.headers().contains_key(UNKNOWN_PEER) => Err(removed()),
            Ok(response) => {
                let mut response = response.map(Body::new);
                drop_hop_by_hop(response.headers_mut());
                response.extensions_mut().insert(AnsweredElsewhere);
                Ok(Some(response))
            }
            Err(error @ PeerError::NotSent { .. }) => {
                tracing::debug!(%error, "leader not reached");
                Ok(None)
            }
            Err(error @ PeerError::Broken { .. }) => {
                tracing::warn!(%error, "leader lost during a call");
                Err(Refusal::from(StoreError::Unknown))
            }
        }
    }

    async fn run(&self, request: Request, streams: bool, next: Next) -> Result<Response, Refusal> {
        let deadline = Instant::now() + self.patience;
        let hopped = request.headers().contains_key(HOP);
        let (parts, body) = request.into_parts();
        // What is small and whole can be sent again when it was surely not seen; a stream cannot.
        let mut body = match streams || (self.leader)() == Leader::Here {
            true => Kept::Once(body),
            false => {
                Kept::Whole(axum::body::to_bytes(body, BODY_BYTES + FRAMING).await.map_err(|_| too_large())?)
            }
        };
        loop {
            match (self.leader)() {
                Leader::Here => return Ok(next.run(Request::from_parts(parts, body.take()?)).await),
                Leader::At(address) if !hopped => {
                    if let Some(response) = self.try_send(&address, &parts, body.take()?).await? {
                        return Ok(response);
                    }
                }
                // It came from a controller that took us for the leader: that one looks again.
                Leader::At(_) => return Err(no_leader()),
                Leader::Nobody => {}
                Leader::Removed => return Err(removed()),
            }
            pause(deadline).await?;
        }
    }
}

enum Kept {
    Whole(Bytes),
    Once(Body),
    Gone,
}

impl Kept {
    fn take(&mut self) -> Result<Body, Refusal> {
        match std::mem::replace(self, Self::Gone) {
            Self::Whole(bytes) => {
                *self = Self::Whole(bytes.clone());
                Ok(Body::from(bytes))
            }
            Self::Once(body) => Ok(body),
            // A stream that was begun towards a controller that could not take it.
            Self::Gone => Err(Refusal::unavailable("the leader changed while the stream was sent")),
        }
    }
}

/// Answers here, or has the leader answer.
pub async fn carry(State(forward): State<Forward>, request: Request, next: Next) -> Response {
    let Some(streams) = for_leader(request.method(), request.uri().path()) else {
        let removed_here = is_public(&request) && (forward.leader)() == Leader::Removed;
        return if removed_here {
            answer::refuse(request.headers(), removed())
        } else {
            next.run(request).await
        };
    };
    let mut asked = HeaderMap::new();
    for name in [http::header::CONTENT_TYPE, HOP] {
        if let Some(value) = request.headers().get(&name) {
            asked.insert(name, value.clone());
        }
    }
    match forward.run(request, streams, next).await {
        Ok(response) => response,
        Err(refusal) => {
            let not_done = refusal.code == Code::Unavailable && asked.contains_key(HOP);
            let mut response = answer::refuse(&asked, refusal);
            if not_done {
                response.headers_mut().insert(NOT_LEADER, HeaderValue::from_static("1"));
            }
            response
        }
    }
}

/// Whether a user asks about the cloud.
fn is_public(request: &Request) -> bool {
    let method = catalogue().resolve(request.method(), request.uri().path());
    method.is_some_and(|method| method.service.starts_with("tamdao.v1."))
}

/// Whether the leader has to do this, and then whether its request is a stream.
fn for_leader(verb: &Verb, path: &str) -> Option<bool> {
    match catalogue().resolve(verb, path) {
        Some(method) if method.service.starts_with("tamdao.v1.") => {
            (!method.reads).then_some(method.request_streams)
        }
        // Every controller can sign, and needs no leader for it.
        Some(method) if method.service == "tamdao.agent.v1.EnrollService" => {
            (!method.path.ends_with("/Renew")).then_some(false)
        }
        Some(_) => None,
        None if path.starts_with("/internal/") => Some(false),
        None if *verb == Verb::PUT && path.starts_with("/v1/") && path.ends_with("/content") => Some(true),
        None => None,
    }
}

/// The headers that go on: not the token, which the leader need not see, and nothing of this connection.
fn onward(headers: &HeaderMap) -> HeaderMap {
    let mut onward = headers.clone();
    drop_hop_by_hop(&mut onward);
    onward.remove(AUTHORIZATION);
    onward.remove(HOST);
    onward.insert(HOP, HeaderValue::from_static("1"));
    onward
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    // HTTP/2 allows this one value, and gRPC wants it.
    if headers.get(TE).is_some_and(|value| value != "trailers") {
        headers.remove(TE);
    }
}

/// Waits a little, but not beyond the deadline.
async fn pause(deadline: Instant) -> Result<(), Refusal> {
    if Instant::now() + LOOK > deadline {
        return Err(no_leader());
    }
    tokio::time::sleep(LOOK).await;
    Ok(())
}

pub(crate) fn no_leader() -> Refusal {
    let message = "no leader is known to this controller, so nothing can be changed now";
    Refusal::new(Code::Unavailable, "NoLeader", message).hint(
        "try again; a majority of the controllers must run and reach each other: look at /readyz of each",
    )
}

/// The answer of a controller that was removed and runs on: another one of the client's list is the right one to ask.
pub(crate) fn removed() -> Refusal {
    Refusal::new(Code::Unavailable, "ControllerRemoved", REMOVED)
        .hint("ask another controller, and take this one out of the list of endpoints")
}

/// A body beyond the limit, on any face.
pub(crate) fn too_large() -> Refusal {
    let message = format!("the body has more than {BODY_BYTES} bytes, or broke off");
    Refusal::new(Code::InvalidArgument, answer::TOO_LARGE, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::PRINCIPAL;

    #[test]
    fn changes_go_to_the_leader_and_reads_stay() {
        let post = |path| for_leader(&Verb::POST, path);
        assert_eq!(post("/tamdao.v1.VmService/CreateVm"), Some(false));
        assert_eq!(post("/v1/agencies/a/vms"), Some(false));
        assert_eq!(post("/tamdao.v1.TransferService/UploadImage"), Some(true));
        assert_eq!(post("/tamdao.v1.TransferService/ReadSerialLog"), Some(false));
        assert_eq!(post("/tamdao.agent.v1.EnrollService/EnrollNode"), Some(false));
        assert_eq!(post("/internal/images/x/held"), Some(false));
        assert_eq!(for_leader(&Verb::PUT, "/v1/images/i/content"), Some(true));
        for path in [
            "/tamdao.v1.VmService/GetVm",
            "/tamdao.v1.VmService/WatchVms",
            "/tamdao.agent.v1.EnrollService/Renew",
            "/tamdao.agent.v1.AgentService/Session",
            "/tamdao.raft.v1.RaftService/Append",
            "/grpc.health.v1.Health/Check",
            "/openapi.json",
        ] {
            assert_eq!(post(path), None, "{path}");
        }
        assert_eq!(for_leader(&Verb::GET, "/v1/agencies/a/vms/web"), None);
        assert_eq!(for_leader(&Verb::GET, "/images/abc"), None);
    }

    #[test]
    fn a_token_goes_no_further_than_the_first_controller() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        headers.insert(PRINCIPAL, HeaderValue::from_static("admin:1"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        let onward = onward(&headers);
        assert!(!onward.contains_key(AUTHORIZATION) && !onward.contains_key(CONNECTION));
        assert_eq!(
            (&onward[PRINCIPAL], &onward[TE]),
            (&"admin:1".parse().unwrap(), &"trailers".parse().unwrap())
        );
        assert!(onward.contains_key(HOP));
    }
}
