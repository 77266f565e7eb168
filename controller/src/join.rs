//! A new controller's first step: it shows its token to a controller of the cluster, and gets its identity.
//!
//! Its invariant: the token is shown only to a server whose CA has the digest that the token carries, and nothing
//! stands in the data directory until the cluster has answered. Deliberately absent: becoming a member of the Raft
//! group, which happens when the controller runs.

use std::sync::Arc;

use tamdao_model::{ClusterId, ControllerId};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::enroll_service_client::EnrollServiceClient;
use tamdao_store::backend::raft::{OpenError, PlainDial, RaftConfig, RaftStore, tune};
use tonic::transport::Endpoint;
use tonic_types::StatusExt;

use crate::config::{Backend, Config};
use crate::identity::{self, Given, Identity, IdentityError};
use crate::peers::{Connector, chain};
use crate::pki::{self, ClusterKey, JoinSecret, PkiError};

/// Where the store on Raft lies in the data directory.
const SEAT: &str = "raft";

/// Why a controller did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the store cannot be opened: {0}")]
    Store(#[from] OpenError),
    #[error("{address} is no address: {reason}")]
    Address { address: String, reason: String },
    #[error(
        "the controller at {address} cannot be reached, or has not the CA that the token names: {reason}"
    )]
    Dial { address: String, reason: String },
    #[error("the cluster refused: {message}{}", .hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default())]
    Refused { message: String, hint: Option<String> },
    #[error("the cluster's answer is not understood: {0}")]
    Answer(String),
}

/// Joins the cluster of the token by the controller at `address`, and writes the identity that it gave.
///
/// # Errors
/// When the data directory is used, the token is not good, or the cluster does not answer or refuses.
pub async fn join(config: &Config, token: &str, address: &str) -> Result<Identity, JoinError> {
    let secret = JoinSecret::parse(token)?;
    // The seat of an attempt that was refused is used again: to the cluster this is the same controller.
    identity::claim(&config.data_dir, &[SEAT, identity::MEMBER])?;
    // Dialled first, so that a wrong address leaves the directory as it was.
    let mut client = dial(&secret, address).await?;
    let made = pki::request()?;
    let request = agent::EnrollControllerRequest {
        secret: secret.expose(),
        name: config.name.to_string(),
        csr: made.request,
        address: config.address.clone(),
        member: seat(config).await?,
    };
    let answer = match client.enroll_controller(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let details = status.get_error_details();
            let hint = details.error_info().and_then(|info| info.metadata.get("hint")).cloned();
            return Err(JoinError::Refused { message: status.message().to_owned(), hint });
        }
    };
    let unclear = |error: uuid::Error| JoinError::Answer(error.to_string());
    let id: ControllerId = answer.controller_id.parse().map_err(unclear)?;
    let cluster: ClusterId = answer.cluster_id.parse().map_err(unclear)?;
    if !pki::same(&pki::sha256(&pki::der_of(&answer.ca)?), &secret.ca_digest) {
        return Err(JoinError::Answer("it gave another CA than the token names".into()));
    }
    let key = ClusterKey::from_bytes(&answer.cluster_key)?;
    let given = Given {
        id,
        cluster,
        key: &key,
        ca: &answer.ca,
        certificate: &answer.certificate,
        private_key: &made.key,
        seed: None,
    };
    let identity = identity::store(config, &given)?;
    // The pair must work before the operator is told that it does.
    identity.credentials()?;
    Ok(identity)
}

async fn dial(
    secret: &JoinSecret,
    address: &str,
) -> Result<EnrollServiceClient<tonic::transport::Channel>, JoinError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| JoinError::Address { address: address.to_owned(), reason: error.to_string() })?;
    let connector = Connector::new(pki::pinned_client(secret.ca_digest)?);
    let channel = tune(endpoint).connect_with_connector(connector).await;
    let channel =
        channel.map_err(|error| JoinError::Dial { address: address.to_owned(), reason: chain(&error) })?;
    Ok(EnrollServiceClient::new(channel))
}

/// The seat's id, which the store makes with its part of the data directory.
async fn seat(config: &Config) -> Result<u64, JoinError> {
    if let Backend::Etcd(_) = config.store.backend {
        return Ok(identity::member(config)?);
    }
    let settings = RaftConfig::new(config.data_dir.join(SEAT), config.name.as_str(), &config.address);
    // It belongs to no cluster yet, so it dials nobody.
    let store = RaftStore::open(settings, Arc::new(PlainDial)).await?;
    let id = store.id();
    store.shutdown().await;
    Ok(id)
}
