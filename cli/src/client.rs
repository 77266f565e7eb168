//! The connection to the cloud: one lazy channel per controller, a token in every request, and failover. A call goes to
//! the next endpoint when one is dead, silent or answers UNAVAILABLE, until the time for trying is over; the request is
//! sent again unchanged, with the same request_id, so that nothing is made twice; so it is when its outcome is unknown.
//! Any other answer is final. The controller that answered last is asked first, also by the next run. Streams that break are opened again by `watch`, from their cursor.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use tamdao_proto::Unary;
use tokio::time::Instant;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::context::{Connection, Last};
use crate::output::Output;
use crate::problem::Problem;
use crate::quantity::duration;

/// How long a controller may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a controller may take to answer an ordinary request before another is asked.
const ANSWER: Duration = Duration::from_secs(15);
/// A silent connection is found dead after twice this time.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// More than the largest list page.
const MESSAGE_BYTES: usize = 64 << 20;

/// What requests are sent on.
pub type Wire = InterceptedService<Channel, Bearer>;

/// Puts the token into a request.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The controllers of one cloud.
#[derive(Clone)]
pub struct Client {
    controllers: Arc<[Controller]>,
    bearer: Bearer,
    present: Arc<AtomicUsize>,
    /// The place of the one that the next run will ask first.
    noted: Arc<AtomicUsize>,
    last: Option<Last>,
    retry_for: Duration,
    output: Output,
}

#[derive(Clone)]
struct Controller {
    url: String,
    address: String,
    channel: Channel,
}

/// Asks for a stream: `rpc!(client, EventServiceClient, watch_events, request)`. What has one answer goes by
/// [`Client::ask`].
#[macro_export]
#[doc(hidden)]
macro_rules! rpc {
    ($client:expr, $service:ident, $method:ident, $request:expr) => {{
        let request = $request;
        $client
            .call(move |wire| {
                let request = request.clone();
                async move {
                    let mut service =
                        $service::new(wire).max_decoding_message_size($crate::client::message_bytes());
                    service.$method(request).await
                }
            })
            .await
    }};
}

/// The largest answer that is taken, bytes.
pub const fn message_bytes() -> usize {
    MESSAGE_BYTES
}

/// An id that makes a repeated request the same request.
pub fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Client {
    /// Prepares the channels; nothing is dialled before the first request.
    pub fn new(connection: &Connection, retry_for: Duration, output: &Output) -> Result<Self> {
        let bearer = match &connection.token {
            Some(token) => {
                let mut value = MetadataValue::try_from(format!("Bearer {token}"))
                    .map_err(|_| Problem::usage("the token has characters that no token has"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut controllers = Vec::new();
        for url in &connection.endpoints {
            let (address, channel) = (authority(url).to_owned(), channel(url, connection)?);
            controllers.push(Controller { url: url.clone(), address, channel });
        }
        let last = connection.last.as_ref().and_then(Last::endpoint);
        let first = controllers.iter().position(|one| Some(&one.url) == last.as_ref()).unwrap_or(0);
        Ok(Self {
            controllers: controllers.into(),
            bearer: Bearer(bearer),
            present: Arc::new(AtomicUsize::new(first)),
            noted: Arc::new(AtomicUsize::new(first)),
            last: connection.last.clone(),
            retry_for,
            output: output.clone(),
        })
    }

    /// A client for each controller, for what each answers for itself. Where there are several, one that does not answer
    /// is not waited for.
    pub fn each(&self) -> Vec<Self> {
        let retry_for = if self.controllers.len() > 1 { Duration::ZERO } else { self.retry_for };
        let alone = |controller: &Controller| Self {
            controllers: [controller.clone()].into(),
            present: Arc::default(),
            noted: Arc::default(),
            last: None,
            retry_for,
            ..self.clone()
        };
        self.controllers.iter().map(alone).collect()
    }

    /// HOST:PORT of the controller that is asked at present.
    pub fn address(&self) -> &str {
        &self.at_present().1.address
    }

    /// How long to go on trying while no controller answers.
    pub fn retry_for(&self) -> Duration {
        self.retry_for
    }

    /// Sends a request that has one answer.
    pub async fn ask<Q: Unary>(&self, request: Q) -> Result<Q::Response, Problem> {
        let answer = self.ask_plain(Q::PATH, request.encode_to_vec().into()).await?;
        Q::Response::decode(answer).map_err(|error| {
            Problem::from_status(&Status::internal(format!("an unreadable answer: {error}")))
        })
    }

    /// The same for a message as bytes: this is compiled once, and not for each method.
    async fn ask_plain(&self, path: &'static str, request: Bytes) -> Result<Bytes, Problem> {
        self.call(|wire| {
            let request = Request::new(request.clone());
            async move {
                let mut wire = tonic::client::Grpc::new(wire).max_decoding_message_size(MESSAGE_BYTES);
                wire.ready()
                    .await
                    .map_err(|error| Status::unknown(format!("the service was not ready: {error}")))?;
                wire.unary(request, PathAndQuery::from_static(path), Plain).await
            }
        })
        .await
    }

    /// Sends an ordinary request.
    pub async fn call<T, F, Fut>(&self, send: F) -> Result<T, Problem>
    where
        F: Fn(Wire) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.attempt(Some(ANSWER), send).await
    }

    /// Sends a request that may take long, such as an upload; only a broken connection makes it go elsewhere.
    pub async fn call_long<T, F, Fut>(&self, send: F) -> Result<T, Problem>
    where
        F: Fn(Wire) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.attempt(None, send).await
    }

    async fn attempt<T, F, Fut>(&self, limit: Option<Duration>, send: F) -> Result<T, Problem>
    where
        F: Fn(Wire) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.retry_for;
        let mut said: Vec<Option<String>> = vec![None; self.controllers.len()];
        let mut pause = PAUSE_FIRST;
        let mut hopeless = true;
        let mut failures = 0;
        loop {
            let (index, controller) = self.at_present();
            let sent = send(Wire::new(controller.channel.clone(), self.bearer.clone()));
            let answer = match limit {
                Some(limit) => {
                    tokio::time::timeout(limit, sent).await.unwrap_or_else(|_| Err(Status::unavailable("")))
                }
                None => sent.await,
            };
            let status = match answer {
                Ok(response) => {
                    self.note(index);
                    return Ok(response.into_inner());
                }
                Err(status) if passes(&status) => status,
                Err(status) if asks_again(&status) && Instant::now() < deadline => {
                    let told = status.get_details_retry_info().and_then(|info| info.retry_delay);
                    tokio::time::sleep(told.unwrap_or_default().clamp(pause, ANSWER)).await;
                    continue;
                }
                Err(status) => return Err(Problem::from_status(&status)),
            };
            failures += 1;
            hopeless &= wrong_certificate(&status);
            said[index] = Some(told(&status));
            self.pass_on(index);
            if failures % self.controllers.len() == 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                if hopeless || left.is_zero() {
                    break;
                }
                if failures == self.controllers.len() {
                    let time = duration(Duration::from_secs(left.as_secs() + 1));
                    self.output.note(&format!("no controller answers yet; trying for {time}"));
                }
                tokio::time::sleep(pause.min(left)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        let addresses = self.controllers.iter().map(|controller| controller.address.clone());
        let tried = addresses.zip(said).filter_map(|(address, said)| Some((address, said?)));
        Err(Problem::unreachable(tried.collect()))
    }

    /// Asks another controller from now on, unless that has already been done since.
    pub fn pass_on(&self, from: usize) {
        let next = (from + 1) % self.controllers.len();
        let _ = self.present.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Lets the next run begin where this one was answered.
    fn note(&self, index: usize) {
        if self.noted.swap(index, Ordering::Relaxed) != index
            && let Some(last) = &self.last
        {
            last.note(&self.controllers[index].url);
        }
    }

    /// The place in the list of the controller that is asked at present.
    pub fn place(&self) -> usize {
        self.at_present().0
    }

    fn at_present(&self) -> (usize, &Controller) {
        let index = self.present.load(Ordering::Relaxed);
        (index, &self.controllers[index])
    }
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn channel(url: &str, connection: &Connection) -> Result<Channel> {
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|_| Problem::usage(format!("{url} is not an endpoint")).hint("write HOST:PORT"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    if url.starts_with("https://") {
        let mut tls = ClientTlsConfig::new();
        if let Some(pem) = &connection.ca_pem {
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        if !connection.server_name.is_empty() {
            tls = tls.domain_name(connection.server_name.clone());
        }
        endpoint = endpoint.tls_config(tls).context("the CA's certificate cannot be used")?;
    }
    Ok(endpoint.connect_lazy())
}

fn authority(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest)
}

/// True for what another controller, or the same one later, may answer better: it says UNAVAILABLE, or the fault is
/// the connection's. A status that was made here from a connection's error has a source, one that was sent has none.
pub fn passes(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// True where the same request again, with its request_id, brings the answer: others changed the same records at the same
/// time, the outcome was lost with the leader, or too much was asked in a short time.
fn asks_again(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let reasons: &[&str] = match status.code() {
        Code::Aborted => &["Conflict", "OutcomeUnknown"],
        Code::ResourceExhausted => &["TooManyRequests"],
        _ => &[],
    };
    reason.is_some_and(|reason| reasons.contains(&reason.as_str()))
}

fn wrong_certificate(status: &Status) -> bool {
    let mut error: Option<&(dyn std::error::Error + 'static)> = status.source();
    while let Some(present) = error {
        if let Some(io) = present.downcast_ref::<std::io::Error>() {
            let inner = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if matches!(inner, Some(rustls::Error::InvalidCertificate(_))) {
                return true;
            }
        }
        if matches!(present.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        error = present.source();
    }
    false
}

/// What one controller said, for the list of those that were tried.
fn told(status: &Status) -> String {
    if wrong_certificate(status) {
        return "its certificate is not from this cloud's CA, or not for this address".to_owned();
    }
    let mut deepest: Option<&(dyn std::error::Error + 'static)> = status.source();
    while let Some(inner) = deepest.and_then(|error| error.source()) {
        deepest = Some(inner);
    }
    match deepest {
        Some(error) => match error.downcast_ref::<std::io::Error>() {
            Some(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                "nothing listens there".to_owned()
            }
            Some(io) if io.kind() == std::io::ErrorKind::TimedOut => "no answer in time".to_owned(),
            _ => error.to_string().to_lowercase(),
        },
        None if status.message().is_empty() => "no answer in time".to_owned(),
        None => format!("answers \"{}\"", status.message()),
    }
}
