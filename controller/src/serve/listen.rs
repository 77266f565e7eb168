//! Accepting connections: TLS, limits, and an end that lets running requests finish.
//!
//! Its invariants: a client that is slow, silent or one of very many costs a bounded amount, and never keeps others
//! waiting: the handshake runs in the connection's own task. And however a connection ends, the client is told so by
//! TLS, and has an answer even if it was still sending when it was refused ([`ending`]).

mod ending;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::ending::Line;
use crate::auth::Peer;
use crate::pki::{Credentials, Holder, PkiError};

/// Connections at the same time; each is at most a few hundred KiB.
const CONNECTIONS: usize = 4_096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 client may take for its headers, the wait for its next request included.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const HEADER_BYTES: usize = 32 * 1024;
const STREAMS: u32 = 1_024;
/// A peer that is gone without a word is noticed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long running requests may take when the controller stops.
const GRACE: Duration = Duration::from_secs(5);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("the descriptors of the protos cannot be served: {0}")]
    Reflection(String),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The bound port; [`Self::run`] serves it.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    header_timeout: Duration,
}

impl Listener {
    /// Binds the port.
    ///
    /// # Errors
    /// When it cannot be bound, or the credentials are unusable.
    pub async fn bind(address: SocketAddr, credentials: &Credentials) -> Result<Self, ServeError> {
        let tls = credentials.server()?;
        let failed = |source| ServeError::Listen { address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, tls, header_timeout: HEADER_TIMEOUT })
    }

    /// Gives up an HTTP/1.1 connection that has not sent a request's headers for so long.
    #[must_use]
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// The port as bound, which matters where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is stopped; then running requests get a grace period.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let acceptor = TlsAcceptor::from(self.tls);
        let header_timeout = self.header_timeout;
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                permit = room.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            let (socket, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually there are no file descriptors left; trying again at once would only burn a core.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
            connections.spawn(async move {
                if let Err(error) = serve((socket, from), acceptor, router, header_timeout, stop).await {
                    tracing::debug!(%error, %from, "connection ended");
                }
                drop(permit);
            });
            while connections.try_join_next().is_some() {}
        }
        drop(self.socket);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::info!("streams cut off at the end of the grace period");
        }
    }
}

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve(
    (socket, from): (TcpStream, SocketAddr),
    acceptor: TlsAcceptor,
    router: Router,
    header_timeout: Duration,
    stop: CancellationToken,
) -> Result<(), Failure> {
    socket.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let holder = certificate.and_then(|certificate| Holder::of(certificate)).map(|(_, holder)| holder);
    let peer = Peer { holder, address: Some(from), local: None };
    let line = Line::new(stream);
    let ended = converse(line.clone(), peer, router, header_timeout, &stop).await;
    line.end(&stop).await;
    ended
}

/// Speaks HTTP/1.1 or HTTP/2 over a stream until one side ends it, or it is stopped; then running requests finish.
pub(super) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    header_timeout: Duration,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().oneshot(ending::read_to_its_end(request))
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEADER_BYTES.max(8_192))
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES as u32)
        .max_concurrent_streams(STREAMS)
        .adaptive_window(true)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
    };
    match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Serves plain HTTP, for metrics and probes.
///
/// # Errors
/// When the port cannot be bound.
pub async fn plain(
    address: SocketAddr,
    router: Router,
    stop: CancellationToken,
) -> Result<SocketAddr, ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let socket = TcpListener::bind(address).await.map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    tokio::spawn(async move {
        let served = axum::serve(socket, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(bound)
}
