//! How a node becomes part of a cluster, and how it keeps its certificate fresh.
//!
//! Invariants: the key is made here and never leaves; a join that was cut off may be repeated with the same key; a
//! renewal touches neither session nor guests, since identity files are read anew by each connection.
//! Deliberately absent: leaving the cluster, which is the operator's DeleteNode.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tamdao_proto::agent::v1::enroll_service_client::EnrollServiceClient;
use tamdao_proto::agent::v1::{EnrollNodeRequest, RenewRequest};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::config::Config;
use crate::dial::{CONNECT_TIMEOUT, Dial, DialError, chain};
use crate::ledger::{Ledger, write_file};
use crate::node::controllers;
use crate::pki::{self, CONTROLLER_NAME, Files, PkiError};
use crate::token::{PinnedCa, Token};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait between looks at the certificate.
const LOOK: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{controller}: {message}")]
    Refused { controller: String, message: String },
    #[error("no controller answered: {0}")]
    Unanswered(String),
    #[error("{}: {source}", path.display())]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("this node has joined already, as {name}; remove {} to join anew", path.display())]
    Joined { name: String, path: std::path::PathBuf },
}

/// What a node knows of its membership: `<data_dir>/node.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Membership {
    pub node_id: String,
    pub name: String,
    pub cluster_id: String,
    pub controllers: Vec<String>,
}

impl Membership {
    #[must_use]
    pub fn load(config: &Config) -> Option<Self> {
        let bytes = std::fs::read(config.data_dir.join("node.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// Makes this host a node of the cluster that the token is of. Asks one controller after the other.
///
/// # Errors
/// It has joined already, no controller of that cluster answers, one refuses, or a file cannot be written.
pub async fn join(
    config: &Config,
    token: &Token,
    controllers: &[String],
    host_uuid: &str,
) -> Result<Membership, EnrollError> {
    let files = Files::from(config);
    let path = config.data_dir.join("node.json");
    if let (Some(member), true) = (Membership::load(config), files.certificate.exists()) {
        return Err(EnrollError::Joined { name: member.name, path: files.certificate });
    }
    let io = |source| EnrollError::Io { path: config.data_dir.clone(), source };
    std::fs::create_dir_all(&config.data_dir).map_err(io)?;
    let csr = pki::request(&config.name, &files.key_pair()?)?;
    let request = EnrollNodeRequest {
        secret: token.secret().to_owned(),
        name: config.name.clone(),
        csr,
        host_uuid: host_uuid.to_owned(),
        addresses: if config.address.is_empty() { Vec::new() } else { vec![config.address.clone()] },
    };
    let mut reasons = Vec::new();
    for controller in controllers {
        let channel = match pinned_channel(controller, token).await {
            Ok(channel) => channel,
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        let mut ask = tonic::Request::new(request.clone());
        ask.set_timeout(PATIENCE);
        let answer = match EnrollServiceClient::new(channel).enroll_node(ask).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                reasons.push(format!("{controller}: {}", status.message()));
                continue;
            }
            Err(status) => {
                return Err(EnrollError::Refused {
                    controller: controller.clone(),
                    message: status.message().to_owned(),
                });
            }
        };
        let mut known = answer.controllers;
        known.extend(controllers.iter().filter(|one| !known.contains(*one)).cloned().collect::<Vec<_>>());
        let member = Membership {
            node_id: answer.node_id,
            name: config.name.clone(),
            cluster_id: answer.cluster_id,
            controllers: known,
        };
        let text = serde_json::to_vec_pretty(&member).map_err(|error| io(std::io::Error::other(error)))?;
        write_file(&path, &text, 0o644).map_err(|source| EnrollError::Io { path: path.clone(), source })?;
        files.store(&answer.certificate, &answer.ca)?;
        return Ok(member);
    }
    Err(EnrollError::Unanswered(reasons.join("; ")))
}

/// A channel to a controller that is known by its CA's digest alone.
async fn pinned_channel(controller: &str, token: &Token) -> Result<Channel, EnrollError> {
    let failed = |message: String| DialError::Connect { controller: controller.to_owned(), message };
    let tls = PinnedCa::new(token.ca_digest).client().map_err(|error| failed(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(tls));
    let address = controller.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(&address).await?;
            let name =
                rustls::pki_types::ServerName::try_from(CONTROLLER_NAME).map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    // The scheme is http since tonic must not put its own TLS over ours.
    let endpoint =
        Endpoint::from_shared(format!("http://{controller}")).map_err(|error| failed(chain(&error)))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
    Ok(endpoint.connect_with_connector(connect).await.map_err(|error| failed(chain(&error)))?)
}

/// Renews the certificate when two thirds of its life are over, for as long as the agent lives.
pub async fn keep_fresh(dial: Dial, ledger: Arc<Ledger>, configured: Vec<String>, name: String) {
    let mut failures = 0u32;
    loop {
        let due = match dial.files().renew_at() {
            Ok(due) => due.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO),
            Err(error) => {
                tracing::error!(error = %error, "certificate cannot be read");
                LOOK
            }
        };
        if !due.is_zero() {
            // A timer of weeks would not notice that the host's clock was set.
            tokio::time::sleep(due.min(LOOK)).await;
            continue;
        }
        let all = controllers(&ledger.state(), &configured);
        match renew(&dial, &all, &name).await {
            Ok(()) => {
                failures = 0;
                tracing::info!("certificate renewed");
                // Should a clock be so wrong that the new one is due at once too, this does not spin.
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(error = %error, failures, "certificate not renewed");
                let wait = Duration::from_secs(5 << failures.min(9));
                tokio::time::sleep(wait.min(LOOK)).await;
            }
        }
    }
}

/// Renews the certificate once, by the first controller that does.
///
/// # Errors
/// None does, or the answer cannot be stored; the old certificate is then untouched.
pub async fn renew(dial: &Dial, controllers: &[String], name: &str) -> Result<(), EnrollError> {
    let files = dial.files();
    let csr = pki::request(name, &files.key_pair()?)?;
    let mut reasons = Vec::new();
    for controller in controllers {
        let mut ask = tonic::Request::new(RenewRequest { csr: csr.clone() });
        ask.set_timeout(PATIENCE);
        let answer = match dial.channel(controller).await {
            Ok(channel) => EnrollServiceClient::new(channel).renew(ask).await,
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                files.store(&answer.certificate, &answer.ca)?;
                return Ok(());
            }
            Err(status) => reasons.push(format!("{controller}: {}", status.message())),
        }
    }
    Err(EnrollError::Unanswered(reasons.join("; ")))
}
