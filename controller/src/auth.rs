//! Who asks, and whether they may: the one place for both, in front of every face.
//!
//! Its invariant: no `x-tamdao-*` header from outside passes; behind this layer `x-tamdao-principal` is the truth,
//! and it is all that the services look at. A certificate or a token counts only while it is in the store. Deliberately
//! absent: which role may call which public method on what (`access`); here it is enough to be somebody.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tamdao_model::{ControllerId, Name, NodeId, TimeMs, TokenId};
use tamdao_store::cache::Cache;
use tamdao_store::view::View;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::access;
use crate::answer;
use crate::audit::{Slip, Subject};
use crate::clock::Clock;
use crate::decide::recovery;
use crate::methods::catalogue;
use crate::oidc::{self, Issuer, Person};
use crate::pki::{AdminToken, Holder, TokenSecret};
use crate::rate::{self, Allowances, Rates};
use crate::refusal::Refusal;
use crate::trail::Trail;

/// Carries the caller from this layer to the services, and from controller to controller.
pub const PRINCIPAL: HeaderName = HeaderName::from_static("x-tamdao-principal");
/// Says that a controller has sent a request on already.
pub const HOP: HeaderName = HeaderName::from_static("x-tamdao-hop");
/// Tells a controller that the one which it asked does not count it among the cluster's.
pub const UNKNOWN_PEER: HeaderName = HeaderName::from_static("x-tamdao-unknown-peer");
/// Says to the leader from where somebody asked another controller.
const PEER: HeaderName = HeaderName::from_static("x-tamdao-peer");
const OURS: &str = "x-tamdao-";
/// The reason for refusing a certificate whose holder is not in the store.
const UNKNOWN: &str = "UnknownHolder";
/// Begins a person in a header.
const PERSON: &str = "person";
/// Groups of one person to which roles are given; they go along in a header.
const GROUPS: usize = 64;
/// How much of a token's digest names its owner in events and logs.
const NAME_CHARS: usize = 8;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A person or program with an admin's token; the name is the begin of the token's digest.
    Admin {
        name: String,
    },
    /// Whoever came by this controller's own socket, as the kernel knows him: root, or the controller's user.
    Local {
        uid: u32,
    },
    /// A program or person with a token; the name is for people who read events.
    Token {
        id: TokenId,
        name: Name,
    },
    /// A person whom the identity provider vouches for.
    Person(Person),
    Node(NodeId),
    Controller(ControllerId),
    Anonymous,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin { name } => write!(f, "admin:{name}"),
            Self::Local { uid } => write!(f, "local:{uid}"),
            Self::Token { id, name } => write!(f, "token:{id}:{name}"),
            Self::Person(person) => write!(f, "user:{}", person.name),
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Controller(id) => write!(f, "controller:{id}"),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

impl Principal {
    /// As it goes in a header, with all that is known of it; [`FromStr`] reads it. What people read is the display.
    fn wire(&self) -> String {
        match self {
            Self::Person(person) => {
                let json = serde_json::to_vec(person).expect("texts and numbers");
                format!("{PERSON}:{}", URL_SAFE_NO_PAD.encode(json))
            }
            other => other.to_string(),
        }
    }
}

/// A text that names no principal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no principal")]
pub struct NoPrincipal(String);

impl FromStr for Principal {
    type Err = NoPrincipal;

    fn from_str(text: &str) -> Result<Self, NoPrincipal> {
        let no = || NoPrincipal(text.to_owned());
        match text.split_once(':') {
            Some(("admin", name)) if !name.is_empty() => Ok(Self::Admin { name: name.to_owned() }),
            Some(("local", uid)) => uid.parse().map(|uid| Self::Local { uid }).map_err(|_| no()),
            Some(("token", rest)) => {
                let (id, name) = rest.split_once(':').ok_or_else(no)?;
                let (id, name) = (id.parse().map_err(|_| no())?, Name::new(name).map_err(|_| no())?);
                Ok(Self::Token { id, name })
            }
            Some((PERSON, rest)) => {
                let json = URL_SAFE_NO_PAD.decode(rest).map_err(|_| no())?;
                serde_json::from_slice(&json).map(Self::Person).map_err(|_| no())
            }
            Some(("node", id)) => id.parse().map(Self::Node).map_err(|_| no()),
            Some(("controller", id)) => id.parse().map(Self::Controller).map_err(|_| no()),
            None if text == "anonymous" => Ok(Self::Anonymous),
            _ => Err(no()),
        }
    }
}

/// The caller of a service, as this layer found it. Without the layer in front everybody is anonymous.
pub fn principal(metadata: &MetadataMap) -> Principal {
    of_headers(metadata.as_ref())
}

/// The same, from HTTP headers.
pub fn of_headers(headers: &HeaderMap) -> Principal {
    let text = headers.get(PRINCIPAL).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(Principal::Anonymous)
}

/// Who is at the other end of a connection; put into each of its requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer {
    /// Whom the certificate names, as TLS verified it.
    pub holder: Option<Holder>,
    pub address: Option<SocketAddr>,
    pub local: Option<LocalPeer>,
}

/// The process at the other end of a unix socket, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub struct LocalPeer {
    pub uid: u32,
    pub pid: i32,
}

/// Who asks, and from where.
struct Asker {
    principal: Principal,
    peer: String,
    via: Option<ControllerId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Admin,
    Token,
    Person,
    Node,
    Controller,
    Anonymous,
}

const EVERYBODY: &[Role] =
    &[Role::Admin, Role::Token, Role::Person, Role::Node, Role::Controller, Role::Anonymous];

/// What begins so may be asked by these; the first row that fits counts, and what fits none is for admins.
const TABLE: &[(&str, &[Role])] = &[
    ("/tamdao.v1.", &[Role::Admin, Role::Token, Role::Person]),
    ("/tamdao.agent.v1.AgentService/", &[Role::Node]),
    ("/tamdao.agent.v1.EnrollService/Renew", &[Role::Node, Role::Controller]),
    ("/tamdao.agent.v1.EnrollService/", EVERYBODY),
    ("/tamdao.raft.v1.", &[Role::Controller]),
    ("/grpc.reflection.", EVERYBODY),
    ("/grpc.health.", EVERYBODY),
    ("/openapi.json", EVERYBODY),
    ("/healthz", EVERYBODY),
    ("/readyz", EVERYBODY),
    ("/images/", &[Role::Node, Role::Controller, Role::Admin]),
    ("/internal/", &[Role::Controller]),
];

/// Says whether this principal may ask this: a gRPC method's path, or the path of what is no method.
///
/// # Errors
/// `Unauthenticated` for the anonymous, `PermissionDenied` for all others.
pub fn authorize(principal: &Principal, method: &str) -> Result<(), Refusal> {
    let role = match principal {
        Principal::Admin { .. } | Principal::Local { .. } => Role::Admin,
        Principal::Token { .. } => Role::Token,
        Principal::Person(_) => Role::Person,
        Principal::Node(_) => Role::Node,
        Principal::Controller(_) => Role::Controller,
        Principal::Anonymous => Role::Anonymous,
    };
    let row = TABLE.iter().find(|(begin, _)| method.starts_with(begin));
    let allowed = row.map_or(&[Role::Admin][..], |(_, roles)| roles);
    match role {
        _ if allowed.contains(&role) => Ok(()),
        Role::Anonymous => {
            let hint = "send a token as `authorization: Bearer ...`, or a certificate of this cluster";
            Err(Refusal::new(Code::Unauthenticated, "NoCredentials", "the request carries no credentials")
                .hint(hint))
        }
        _ => {
            let message = format!("{principal} may not call {method}");
            Err(Refusal::new(Code::PermissionDenied, "NotAllowed", message).hint("use an admin's token"))
        }
    }
}

/// Nodes with a certificate of this cluster that are not in the store, heard here while the cloud recovers: they joined
/// after the backup, and run what nobody can ask them about.
#[derive(Debug, Clone, Default)]
pub struct Strangers(Arc<Mutex<BTreeSet<NodeId>>>);

impl Strangers {
    /// At most so many are remembered.
    const MOST: usize = 10_000;

    fn note(&self, id: NodeId) {
        let mut all = self.0.lock().expect("no holder of the lock panics");
        if all.len() < Self::MOST {
            all.insert(id);
        }
    }

    /// Those heard so far.
    pub fn all(&self) -> Vec<NodeId> {
        self.0.lock().expect("no holder of the lock panics").iter().copied().collect()
    }
}

/// The layer; mount it with [`axum::middleware::from_fn_with_state`] and [`guard`].
#[derive(Clone)]
pub struct Gate {
    cache: Cache,
    clock: Arc<dyn Clock>,
    trail: Arc<Trail>,
    strangers: Strangers,
    rates: Arc<Rates>,
    issuer: Option<Arc<Issuer>>,
}

impl Gate {
    /// What is refused goes to the trail.
    pub fn new(
        cache: Cache,
        clock: Arc<dyn Clock>,
        trail: Arc<Trail>,
        strangers: Strangers,
        allowances: Allowances,
    ) -> Self {
        Self { cache, clock, trail, strangers, rates: Arc::new(Rates::new(allowances)), issuer: None }
    }

    /// Lets in people, too, whom this identity provider vouches for.
    #[must_use]
    pub fn with_people_of(mut self, issuer: Option<Arc<Issuer>>) -> Self {
        self.issuer = issuer;
        self
    }

    /// Takes a request from the allowance of who asks here; what another controller sends on was counted there.
    fn count(&self, asker: &Asker) -> Result<(), Refusal> {
        match (asker.via, &asker.principal) {
            (None, Principal::Token { .. } | Principal::Person(_)) => {
                let held = access::held(&self.cache.view(), &asker.principal, self.clock.now());
                self.rates.take(&asker.principal.to_string(), held.and_then(|grant| grant.at))
            }
            _ => Ok(()),
        }
    }

    /// Finds out who asks and from where, and takes from the headers what nobody outside may say.
    async fn authenticate(
        &self,
        peer: Peer,
        headers: &mut HeaderMap,
        raft: bool,
    ) -> (Asker, Result<(), Refusal>) {
        let told = headers.get(PEER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let address = match (peer.address, peer.local) {
            (Some(address), _) => address.to_string(),
            (None, Some(local)) => format!("unix:{}", local.pid),
            (None, None) => String::new(),
        };
        match (self.identify(peer, headers, raft).await, peer.holder) {
            // Only what a controller sends on comes with another principal.
            (Ok(principal), Some(Holder::Controller(id))) if principal != Principal::Controller(id) => {
                let peer = told.unwrap_or(address);
                (Asker { principal, peer, via: Some(id) }, Ok(()))
            }
            (Ok(principal), _) => (Asker { principal, peer: address, via: None }, Ok(())),
            (Err(refusal), _) => {
                (Asker { principal: Principal::Anonymous, peer: address, via: None }, Err(refusal))
            }
        }
    }

    async fn identify(&self, peer: Peer, headers: &mut HeaderMap, raft: bool) -> Result<Principal, Refusal> {
        let view = self.cache.view();
        let claimed = headers.get(PRINCIPAL).cloned();
        let hop = headers.get(HOP).cloned();
        let ours: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
        if let Some(local) = peer.local {
            return Ok(Principal::Local { uid: local.uid });
        }
        match peer.holder {
            Some(Holder::Controller(id)) => {
                // A controller that joins has an empty store and must hear the leader all the same; the store's
                // own service looks who is a member.
                if !raft && view.cluster().is_some() && view.controllers.get(id).is_none() {
                    return Err(unknown("controller", &id));
                }
                if let Some(hop) = hop {
                    headers.insert(HOP, hop);
                }
                Ok(match claimed.as_ref().and_then(|value| value.to_str().ok()?.parse().ok()) {
                    Some(principal) => principal,
                    None => Principal::Controller(id),
                })
            }
            Some(Holder::Node(id)) => match view.nodes.get(id) {
                Some(_) => Ok(Principal::Node(id)),
                None => {
                    if recovery::is_on(&view) {
                        self.strangers.note(id);
                    }
                    Err(unknown("node", &id))
                }
            },
            None => match bearer(headers)? {
                None => Ok(Principal::Anonymous),
                Some(token) if oidc::is_jws(token) => self.person(&view, token).await,
                Some(token) => by_token(&view, self.clock.now(), token),
            },
        }
    }

    /// The person whom a token of the identity provider means, with those of the groups that have a role.
    async fn person(&self, view: &View, token: &str) -> Result<Principal, Refusal> {
        let Some(issuer) = &self.issuer else {
            let message = "this controller knows no identity provider";
            return Err(Refusal::new(Code::Unauthenticated, "NoIssuer", message).hint(
                "use a token of the cloud; an operator sets [oidc] in the controllers' configuration",
            ));
        };
        let mut person = issuer.verify(token, self.clock.now()).await?;
        person.groups.retain(|group| access::is_bound(view, group));
        if person.groups.len() > GROUPS {
            let message =
                format!("{} of your groups have roles here; {GROUPS} are allowed", person.groups.len());
            return Err(Refusal::new(Code::PermissionDenied, "TooManyGroups", message));
        }
        Ok(Principal::Person(person))
    }
}

/// What stands in the header behind `Bearer`.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    token.map(Some).ok_or_else(|| {
        let message = "the authorization header is not `Bearer TOKEN`";
        Refusal::new(Code::Unauthenticated, "BadCredentials", message)
    })
}

fn by_token(view: &View, now: TimeMs, token: &str) -> Result<Principal, Refusal> {
    let Some(cluster) = view.cluster() else {
        return Err(Refusal::unavailable("this controller has not caught up with the cluster yet"));
    };
    if let Some(secret) = TokenSecret::presented(token) {
        let known = view.tokens.get(secret.id).filter(|row| secret.matches(&row.digest) && row.is_valid(now));
        return known.map_or_else(
            || Err(unknown_token()),
            |row| Ok(Principal::Token { id: row.id(), name: row.meta.name.clone() }),
        );
    }
    match AdminToken::presented(token).among(&cluster.admin_tokens) {
        Some(digest) => Ok(Principal::Admin { name: digest.chars().take(NAME_CHARS).collect() }),
        None => Err(unknown_token()),
    }
}

/// A token that is not known, or no longer.
pub(crate) fn unknown_token() -> Refusal {
    let message = "the token is not known, was revoked or has expired";
    Refusal::new(Code::Unauthenticated, "UnknownToken", message).hint("look which context the client uses")
}

/// What the identity provider said of somebody counts no longer.
pub(crate) fn expired() -> Refusal {
    let message = "the token of the identity provider has expired";
    Refusal::new(Code::Unauthenticated, "TokenExpired", message).hint("come in again: tamdao login")
}

fn unknown(what: &str, id: &dyn fmt::Display) -> Refusal {
    let message = format!("{what} {id} is not, or no longer, part of this cluster");
    Refusal::new(Code::Unauthenticated, UNKNOWN, message).hint("join it again with a new token")
}

/// Lets a request pass with its principal, or refuses it; either way the audit log is told.
pub async fn guard(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied().unwrap_or_default();
    let path = request.uri().path();
    let known = catalogue().resolve(request.method(), path);
    let subject = Subject::of(known, request.method(), path);
    let method = known.map_or(path, |method| method.path.as_str()).to_owned();
    let raft = method.starts_with("/tamdao.raft.v1.");
    let (asker, found) = gate.authenticate(peer, request.headers_mut(), raft).await;
    let passed = match found {
        Ok(()) => authorize(&asker.principal, &method).and_then(|()| gate.count(&asker)),
        // Bad credentials do not shut what is open to those who have none.
        Err(refusal) => authorize(&Principal::Anonymous, &method).map_err(|_| refusal),
    };
    let Asker { principal, peer: address, via } = asker;
    let slip = Arc::new(Slip::new(principal, address, via, gate.trail.me, subject));
    let headers = asked_as(request.headers());
    let response = match passed {
        Ok(()) => {
            let value =
                |text: &str| HeaderValue::from_str(text).expect("principals and addresses are plain text");
            request.headers_mut().insert(PRINCIPAL, value(&slip.principal.wire()));
            request.headers_mut().insert(PEER, value(&slip.peer));
            slip.clone().carry(next.run(request)).await
        }
        Err(refusal) => {
            // Who asks too often must not fill the log; a metric and the audit log count it.
            match refusal.reason {
                rate::TOO_OFTEN => tracing::debug!(method, error = %refusal, "request refused"),
                reason => tracing::warn!(method, reason, error = %refusal, "request refused"),
            }
            let unknown = refusal.reason == UNKNOWN && matches!(peer.holder, Some(Holder::Controller(_)));
            let mut response = answer::refuse(request.headers(), refusal);
            if unknown {
                response.headers_mut().insert(UNKNOWN_PEER, HeaderValue::from_static("1"));
            }
            response
        }
    };
    let record = slip.answered(&gate.cache.view(), gate.clock.now(), &headers, &response);
    record.into_iter().for_each(|record| gate.trail.note(record));
    response
}

/// Of a request's headers what says by which face it came.
fn asked_as(headers: &HeaderMap) -> HeaderMap {
    headers.get(CONTENT_TYPE).map(|value| (CONTENT_TYPE, value.clone())).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn principals() -> [Principal; 7] {
        let id = Uuid::from_u128(7);
        [
            Principal::Admin { name: "a1".into() },
            Principal::Token { id: TokenId(id), name: Name::new("t").unwrap() },
            Principal::Person(Person {
                name: "lan:a/b".into(),
                groups: ["Sở Y tế".to_owned()].into(),
                until: TimeMs(7),
            }),
            Principal::Node(NodeId(id)),
            Principal::Controller(ControllerId(id)),
            Principal::Anonymous,
            Principal::Local { uid: 0 },
        ]
    }

    #[test]
    fn principals_read_back() {
        for principal in principals() {
            assert_eq!(principal.wire().parse(), Ok(principal));
        }
        for wrong in [
            "",
            "admin",
            "admin:",
            "node:x",
            "root:1",
            "token:x:a",
            "local:",
            "local:root",
            "user:lan",
            "person:lan",
            "token:00000000-0000-0000-0000-000000000007",
        ] {
            assert!(wrong.parse::<Principal>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_covers_every_method() {
        for method in catalogue().iter() {
            let allowed: Vec<bool> =
                principals().iter().map(|principal| authorize(principal, &method.path).is_ok()).collect();
            let expected = match method.service.as_str() {
                "tamdao.agent.v1.AgentService" => [false, false, false, true, false, false, false],
                "tamdao.agent.v1.EnrollService" if method.path.ends_with("/Renew") => {
                    [false, false, false, true, true, false, false]
                }
                "tamdao.agent.v1.EnrollService" => [true; 7],
                "tamdao.raft.v1.RaftService" => [false, false, false, false, true, false, false],
                _ => [true, true, true, false, false, false, true],
            };
            assert_eq!(allowed, expected, "{}", method.path);
        }
        let paths = [
            ("/images/abc", [true, false, false, true, true, false, true]),
            ("/internal/images/x/held", [false, false, false, false, true, false, false]),
            ("/healthz", [true; 7]),
            ("/v1/nothing", [true, false, false, false, false, false, true]),
            ("/", [true, false, false, false, false, false, true]),
        ];
        for (path, expected) in paths {
            assert_eq!(principals().map(|principal| authorize(&principal, path).is_ok()), expected, "{path}");
        }
    }

    #[test]
    fn the_anonymous_are_told_how_to_come_in() {
        let refusal = authorize(&Principal::Anonymous, "/tamdao.v1.VmService/CreateVm").unwrap_err();
        assert_eq!(refusal.code, Code::Unauthenticated);
        assert!(refusal.hint.contains("Bearer"));
        let node = Principal::Node(NodeId(Uuid::from_u128(1)));
        assert_eq!(
            authorize(&node, "/tamdao.v1.VmService/CreateVm").unwrap_err().code,
            Code::PermissionDenied
        );
    }
}
