//! A controller as agents see it: mutual TLS, session, tunnels, enrolment and images on one port, all in memory.
//! It keeps a picture by folding what it hears; tests wait for the picture to become what they expect.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
    SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tamdao_proto::agent::v1::agent_service_server::{AgentService, AgentServiceServer};
use tamdao_proto::agent::v1::enroll_service_server::{EnrollService, EnrollServiceServer};
use tamdao_proto::agent::v1::session_request::Message as Said;
use tamdao_proto::agent::v1::session_response::Message as Heard;
use tamdao_proto::agent::v1::*;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Status, Streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The cluster's CA.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Arc<Self> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Arc::new(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() })
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn token(&self) -> String {
        let digest = hex::encode(Sha256::digest(self.issuer.der()));
        format!("tdjoin1.{}.secret.{digest}", uuid::Uuid::from_u128(9))
    }

    fn sign(&self, csr: &str) -> String {
        CertificateSigningRequestParams::from_pem(csr).unwrap().signed_by(&self.issuer).unwrap().pem()
    }

    /// A node's certificate and key, PEM.
    pub fn leaf(&self, name: &str, node: uuid::Uuid) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let uri = format!("tamdao://c/node/{node}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn server(&self) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["tamdao-controller".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .unwrap();
        let chain = vec![leaf.der().clone(), self.issuer.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

/// What the controller knows of its one agent.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub sessions: u32,
    pub up: bool,
    pub hello: Hello,
    pub inventory: Option<tamdao_proto::v1::Inventory>,
    pub complete_reports: u32,
    pub reports: u32,
    pub vms: BTreeMap<String, VmReport>,
    pub volumes: BTreeMap<String, VolumeReport>,
    pub pools: BTreeMap<String, PoolReport>,
    pub cached: Vec<String>,
    pub health: String,
    pub goodbye: Option<bool>,
    pub tunnels: BTreeMap<String, TunnelPicture>,
}

#[derive(Clone, Debug, Default)]
pub struct TunnelPicture {
    pub data: Vec<u8>,
    pub error: Option<String>,
    pub ended: bool,
}

/// How images are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Giving {
    #[default]
    Whole,
    /// The connection breaks after half.
    Half,
    Wrong,
}

pub struct Inner {
    ca: Arc<Ca>,
    address: String,
    picture: watch::Sender<Picture>,
    pub epoch: Mutex<u64>,
    pub redirect: Mutex<Option<String>>,
    /// Sent right after each welcome.
    pub assignment: Mutex<Option<Assignment>>,
    line: Mutex<Option<mpsc::Sender<Result<SessionResponse, Status>>>>,
    tunnel_lines: Mutex<BTreeMap<String, mpsc::Sender<Result<TunnelResponse, Status>>>>,
    pub images: Mutex<BTreeMap<String, Vec<u8>>>,
    pub giving: Mutex<Giving>,
    /// (first byte asked for) of each request for an image.
    pub asked: Mutex<Vec<u64>>,
    pub mute: Mutex<bool>,
}

/// A controller at work; gone when dropped.
pub struct Controller {
    pub inner: Arc<Inner>,
    _serving: AbortOnDropHandle<()>,
}

impl std::ops::Deref for Controller {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Controller {
    pub async fn start(ca: &Arc<Ca>, epoch: u64) -> Self {
        Self::start_at(ca, epoch, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_at(ca: &Arc<Ca>, epoch: u64, at: SocketAddr) -> Self {
        let listener = loop {
            // The port of a controller that has just gone may be held for a moment.
            match tokio::net::TcpListener::bind(at).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let inner = Arc::new(Inner {
            ca: ca.clone(),
            address: listener.local_addr().unwrap().to_string(),
            picture: watch::channel(Picture::default()).0,
            epoch: Mutex::new(epoch),
            redirect: Mutex::default(),
            assignment: Mutex::default(),
            line: Mutex::default(),
            tunnel_lines: Mutex::default(),
            images: Mutex::default(),
            giving: Mutex::default(),
            asked: Mutex::default(),
            mute: Mutex::default(),
        });
        let services = tonic::service::Routes::new(AgentServiceServer::new(Face(inner.clone())))
            .add_service(EnrollServiceServer::new(Face(inner.clone())))
            .into_axum_router();
        let images = Router::new().route("/images/{digest}", get(image)).with_state(inner.clone());
        let routes = services.merge(images);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(ca.server()));
        let serving = tokio::spawn(async move {
            // Connections live in the set, so that they end with the controller.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper_util::service::TowerToHyperService::new(routes);
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { inner, _serving: AbortOnDropHandle::new(serving) }
    }
}

impl Inner {
    pub fn address(&self) -> String {
        self.address.clone()
    }

    pub fn now(&self) -> Picture {
        self.picture.borrow().clone()
    }

    /// Forgets what the agent has said, so that only a later session's word counts.
    pub fn forget(&self) {
        self.picture.send_modify(|picture| {
            picture.up = false;
            picture.vms.clear();
            picture.volumes.clear();
        });
    }

    /// Waits until the picture is as described.
    pub async fn wait(&self, what: &str, test: impl FnMut(&Picture) -> bool) -> Picture {
        let mut seen = self.picture.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), seen.wait_for(test)).await;
        match waited {
            Ok(Ok(picture)) => picture.clone(),
            _ => panic!("never came: {what}; last seen: {:#?}", self.now()),
        }
    }

    pub async fn wait_vm(&self, vm: uuid::Uuid, state: GuestState) -> VmReport {
        let id = vm.to_string();
        let what = format!("vm {vm} {state:?}");
        let picture = self.wait(&what, |p| p.vms.get(&id).is_some_and(|vm| vm.state() == state)).await;
        picture.vms[&id].clone()
    }

    /// Sets what every session begins with, and tells the present one.
    pub async fn assign(&self, assignment: Assignment) {
        *self.assignment.lock().unwrap() = Some(assignment.clone());
        self.tell(assignment).await;
    }

    /// Tells the present session alone.
    pub async fn tell(&self, mut assignment: Assignment) {
        if assignment.epoch == 0 {
            assignment.epoch = *self.epoch.lock().unwrap();
        }
        self.send(Heard::Assignment(assignment)).await;
    }

    pub async fn send(&self, message: Heard) {
        let line = self.line.lock().unwrap().clone();
        if let Some(line) = line {
            let _ = line.send(Ok(SessionResponse { message: Some(message) })).await;
        }
    }

    /// Ends the present session from this side.
    pub fn hang_up(&self) {
        self.line.lock().unwrap().take();
    }

    pub fn add_image(&self, bytes: Vec<u8>) -> String {
        let digest = hex::encode(Sha256::digest(&bytes));
        self.images.lock().unwrap().insert(digest.clone(), bytes);
        digest
    }

    pub async fn type_into(&self, tunnel: &str, bytes: &[u8]) {
        let line = self.tunnel_lines.lock().unwrap().get(tunnel).cloned().unwrap();
        let part = Some(tunnel_response::Part::Data(bytes.to_vec().into()));
        line.send(Ok(TunnelResponse { part })).await.unwrap();
    }

    fn fold(&self, report: Report) {
        self.picture.send_modify(|picture| {
            picture.reports += 1;
            if report.complete {
                picture.complete_reports += 1;
                picture.vms.clear();
                picture.volumes.clear();
            }
            picture.vms.extend(report.vms.into_iter().map(|vm| (vm.vm_id.clone(), vm)));
            picture
                .volumes
                .extend(report.volumes.into_iter().map(|volume| (volume.volume_id.clone(), volume)));
            picture.pools.extend(report.pools.into_iter().map(|pool| (pool.pool_id.clone(), pool)));
            picture.cached = report.cached_images;
            picture.health = report.health;
        });
    }
}

/// The services; tonic hands out only `&self`.
#[derive(Clone)]
struct Face(Arc<Inner>);

impl std::ops::Deref for Face {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

#[tonic::async_trait]
impl AgentService for Face {
    type SessionStream = Answers<SessionResponse>;
    type TunnelStream = Answers<TunnelResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<tonic::Response<Self::SessionStream>, Status> {
        let mut said = request.into_inner();
        let Some(Said::Hello(hello)) = said.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("hello first"));
        };
        let (line, answers) = mpsc::channel(64);
        let answer = |message| Ok(SessionResponse { message: Some(message) });
        let redirect = self.redirect.lock().unwrap().clone();
        if let Some(leader) = redirect {
            let controllers = vec![leader.clone(), self.address()];
            let _ = line.send(answer(Heard::Redirect(Redirect { leader, controllers }))).await;
            return Ok(tonic::Response::new(Box::pin(ReceiverStream::new(answers))));
        }
        let epoch = *self.epoch.lock().unwrap();
        let welcome = Welcome {
            epoch,
            revision: epoch + 10,
            controllers: vec![self.address()],
            session_timeout_ms: 3000,
            cluster_id: "c".into(),
        };
        let _ = line.send(answer(Heard::Welcome(welcome))).await;
        let first = self.assignment.lock().unwrap().clone();
        if let Some(mut assignment) = first {
            assignment.epoch = if assignment.epoch == 0 { epoch } else { assignment.epoch };
            let _ = line.send(answer(Heard::Assignment(assignment))).await;
        }
        *self.line.lock().unwrap() = Some(line.clone());
        self.picture.send_modify(|picture| {
            picture.sessions += 1;
            picture.up = true;
            picture.hello = hello;
            picture.goodbye = None;
        });
        // The strong line is the tests' to drop; answers to heartbeats must not keep it.
        let line = line.downgrade();
        let inner = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = said.message().await {
                match request.message {
                    Some(Said::Heartbeat(beat)) if !*inner.mute.lock().unwrap() => {
                        let reply = HeartbeatAnswer {
                            sequence: beat.sequence,
                            sent_time: beat.sent_time,
                            revision: epoch + 20,
                        };
                        let Some(line) = line.upgrade() else { break };
                        let _ =
                            line.send(Ok(SessionResponse { message: Some(Heard::Heartbeat(reply)) })).await;
                    }
                    Some(Said::Report(report)) => inner.fold(report),
                    Some(Said::Inventory(inventory)) => {
                        inner.picture.send_modify(|picture| picture.inventory = Some(inventory));
                    }
                    Some(Said::Goodbye(goodbye)) => {
                        inner.picture.send_modify(|picture| picture.goodbye = Some(goodbye.nothing_runs));
                    }
                    _ => {}
                }
            }
            inner.picture.send_modify(|picture| picture.up = false);
        });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelRequest>>,
    ) -> Result<tonic::Response<Self::TunnelStream>, Status> {
        let mut said = request.into_inner();
        let first = said.message().await?.and_then(|first| first.part);
        let Some(tunnel_request::Part::TunnelId(id)) = first else {
            return Err(Status::invalid_argument("tunnel_id first"));
        };
        let (line, answers) = mpsc::channel(16);
        self.tunnel_lines.lock().unwrap().insert(id.clone(), line);
        self.picture
            .send_modify(|picture| drop(picture.tunnels.insert(id.clone(), TunnelPicture::default())));
        let inner = self.clone();
        tokio::spawn(async move {
            let on = |change: &dyn Fn(&mut TunnelPicture)| {
                inner.picture.send_modify(|picture| change(picture.tunnels.get_mut(&id).unwrap()));
            };
            while let Ok(Some(request)) = said.message().await {
                match request.part {
                    Some(tunnel_request::Part::Data(data)) => on(&|tunnel| tunnel.data.extend(&data)),
                    Some(tunnel_request::Part::Error(error)) => {
                        on(&|tunnel| tunnel.error = Some(error.clone()))
                    }
                    _ => {}
                }
            }
            on(&|tunnel| tunnel.ended = true);
            inner.tunnel_lines.lock().unwrap().remove(&id);
        });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

#[tonic::async_trait]
impl EnrollService for Face {
    async fn enroll_node(
        &self,
        request: Request<EnrollNodeRequest>,
    ) -> Result<tonic::Response<EnrollNodeResponse>, Status> {
        let request = request.into_inner();
        if request.secret != self.ca.token() {
            return Err(Status::permission_denied("the token is not known"));
        }
        Ok(tonic::Response::new(EnrollNodeResponse {
            node_id: uuid::Uuid::from_u128(77).to_string(),
            certificate: self.ca.sign(&request.csr),
            ca: self.ca.pem(),
            cluster_id: "c".into(),
            controllers: vec![self.address()],
        }))
    }

    async fn enroll_controller(
        &self,
        _: Request<EnrollControllerRequest>,
    ) -> Result<tonic::Response<EnrollControllerResponse>, Status> {
        Err(Status::unimplemented("not for nodes"))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<tonic::Response<RenewResponse>, Status> {
        let certificate = self.ca.sign(&request.into_inner().csr);
        Ok(tonic::Response::new(RenewResponse { certificate, ca: self.ca.pem() }))
    }
}

async fn image(
    Shared(inner): Shared<Arc<Inner>>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some(bytes) = inner.images.lock().unwrap().get(&digest).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let from: usize =
        range.map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
    inner.asked.lock().unwrap().push(from as u64);
    let giving = *inner.giving.lock().unwrap();
    if from >= bytes.len() {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let mut body = bytes[from..].to_vec();
    let length = body.len();
    match giving {
        Giving::Whole => {}
        Giving::Half => body.truncate(length / 2),
        Giving::Wrong => body[0] ^= 1,
    }
    let broken = giving == Giving::Half;
    let pieces = futures::stream::iter([Ok(body), Err(std::io::Error::other("cut"))]);
    let pieces = futures::StreamExt::take(pieces, if broken { 2 } else { 1 });
    let mut answer = Response::new(axum::body::Body::from_stream(pieces));
    answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if range.is_some() {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        answer.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    answer
}
