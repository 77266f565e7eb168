//! How controllers are reached: gRPC channels and image downloads, both by mutual TLS.
//!
//! Invariant: whatever address is dialled, the other side must prove to be a controller of our cluster. Identity
//! files are read for each connection. Deliberately absent: which controller to ask, and when again.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::pki::{CONTROLLER_NAME, Files, PkiError};

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long both sides may take to prove who they are.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a download may stand still.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("{controller}: {message}")]
    Connect { controller: String, message: String },
}

/// Reaches controllers as this node.
#[derive(Clone, Debug)]
pub struct Dial {
    files: Files,
}

/// The words of an error and of its causes, which tonic and reqwest keep apart.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

impl Dial {
    #[must_use]
    pub fn new(files: Files) -> Self {
        Self { files }
    }

    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// A connected channel to one controller, host:port.
    ///
    /// # Errors
    /// The identity cannot be read, or the controller cannot be reached or is none of ours.
    pub async fn channel(&self, controller: &str) -> Result<Channel, DialError> {
        let connect = |message| DialError::Connect { controller: controller.to_owned(), message };
        let identity = self.files.load()?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(identity.ca))
            .identity(tonic::transport::Identity::from_pem(identity.certificate, identity.key))
            .domain_name(CONTROLLER_NAME);
        let endpoint = Endpoint::from_shared(format!("https://{controller}"))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| connect(chain(&error)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5));
        // The endpoint's own limit ends with TCP, which the kernel of a host answers whose controller stands still.
        match tokio::time::timeout(CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| connect(chain(&error))),
            Err(_) => Err(connect("takes connections and does not answer".to_owned())),
        }
    }

    /// Asks one controller for a path, from the given byte on.
    ///
    /// # Errors
    /// As for [`Dial::channel`]; an answer of any status is no error here.
    pub async fn get(&self, controller: &str, path: &str, from: u64) -> Result<reqwest::Response, DialError> {
        let connect = |message| DialError::Connect { controller: controller.to_owned(), message };
        let mut tls = self.files.load()?.client()?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let addresses: Vec<_> =
            tokio::net::lookup_host(controller).await.map_err(|error| connect(error.to_string()))?.collect();
        let port = addresses.first().ok_or_else(|| connect("has no address".to_owned()))?.port();
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls)
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .resolve_to_addrs(CONTROLLER_NAME, &addresses)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL_TIMEOUT)
            .build()
            .map_err(|error| connect(chain(&error)))?;
        let mut request = client.get(format!("https://{CONTROLLER_NAME}:{port}{path}"));
        if from > 0 {
            request = request.header(reqwest::header::RANGE, format!("bytes={from}-"));
        }
        request.send().await.map_err(|error| connect(chain(&error)))
    }
}
