//! Calls to other controllers: one pooled HTTP/2 connection to each, by mutual TLS.
//!
//! Its invariant: whoever answers has a certificate of our CA for the name that only controllers get, whatever
//! address was dialled. An error says whether the request can have been sent. Deliberately absent: retries, which
//! need to know what the request does.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tamdao_store::backend::raft::{Dial, DialError, tune};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::pki::{CONTROLLER_NAME, Credentials, PkiError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The other controllers; a clone shares the connections.
#[derive(Clone)]
pub struct Peers {
    client: Client<Connector, Body>,
    connector: Connector,
}

/// Why another controller did not answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent, so nothing can have happened.
    #[error("controller at {address} cannot be reached: {reason}")]
    NotSent { address: String, reason: String },
    /// The connection broke after the request may have been sent.
    #[error("controller at {address} did not answer: {reason}")]
    Broken { address: String, reason: String },
}

impl Peers {
    /// Calls with these credentials, in the form they have at each handshake.
    ///
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn new(credentials: &Credentials) -> Result<Self, PkiError> {
        let connector = Connector { tls: credentials.client()? };
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .http2_only(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE)
            .http2_keep_alive_while_idle(true)
            .http2_adaptive_window(true)
            .build(connector.clone());
        Ok(Self { client, connector })
    }

    /// Sends a request to the controller at `address`; of its URI only path and query are used.
    ///
    /// # Errors
    /// [`PeerError`], which says whether it can have been sent.
    pub async fn send(&self, address: &str, request: Request<Body>) -> Result<Response<Incoming>, PeerError> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = format!("https://{address}{path}").parse().map_err(|error: http::uri::InvalidUri| {
            PeerError::NotSent { address: address.to_owned(), reason: error.to_string() }
        })?;
        parts.version = Version::HTTP_2;
        self.client.request(Request::from_parts(parts, body)).await.map_err(|error| {
            let (address, reason) = (address.to_owned(), chain(&error));
            match error.is_connect() || never_sent(&error) {
                true => PeerError::NotSent { address, reason },
                false => PeerError::Broken { address, reason },
            }
        })
    }
}

impl Dial for Peers {
    fn dial(&self, address: &str) -> Result<Channel, DialError> {
        // The scheme stays http: TLS is the connector's business, and tonic would want to do it itself.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| DialError { address: address.to_owned(), reason: error.to_string() })?;
        Ok(tune(endpoint).connect_with_connector_lazy(self.connector.clone()))
    }
}

fn never_sent(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // The library says so of requests that were still in its queue when the connection ended.
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error with its causes, which the libraries do not show by themselves.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// Dials by TCP and TLS.
#[derive(Clone)]
pub struct Connector {
    tls: Arc<ClientConfig>,
}

impl Connector {
    /// With these TLS settings; the server must be a controller.
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TlsSocket>> {
        let refuse = |reason: &str| io::Error::new(io::ErrorKind::InvalidInput, reason.to_owned());
        let authority = uri.authority().ok_or_else(|| refuse("there is no address to dial"))?;
        let name = ServerName::try_from(CONTROLLER_NAME).map_err(|_| refuse("the name is no DNS name"))?;
        let dial = async {
            let socket = TcpStream::connect(authority.as_str()).await?;
            socket.set_nodelay(true)?;
            TlsConnector::from(self.tls).connect(name, socket).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
            Ok(stream) => Ok(TokioIo::new(TlsSocket(stream?))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody answered in time")),
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsSocket>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A TLS stream that the HTTP client may pool.
pub struct TlsSocket(TlsStream<TcpStream>);

impl Connection for TlsSocket {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl tokio::io::AsyncRead for TlsSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for TlsSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
