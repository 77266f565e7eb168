//! The cluster's own public-key infrastructure: its CA, the certificates of nodes and controllers, the cluster key
//! and the tokens by which one joins or rules.
//!
//! Its invariant: a certificate's names are ours, never the applicant's; of a request only the public key is taken.
//! No type here that holds a secret shows it, neither when printed for debugging nor in an error. Deliberately
//! absent: revocation lists, because who is no longer in the store is refused by the one place that authorises
//! ([`crate::auth`]).

mod authority;
mod credentials;
mod key;
mod pinned;
mod token;

use std::fmt;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tamdao_model::{ClusterId, ControllerId, NodeId};
use uuid::Uuid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use authority::{Authority, KeyAndRequest, public_key_of, request};
pub use credentials::{Credentials, renewal_time};
pub use key::ClusterKey;
pub use pinned::pinned_client;
pub(crate) use pinned::{Believe, Shown};
pub use token::{AdminToken, JoinSecret, TokenSecret, same};

/// The name that every controller's certificate carries, so that it can be asked for at any address.
pub const CONTROLLER_NAME: &str = "tamdao-controller";

/// What can go wrong with keys and certificates; never with the secret in it.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{what} cannot be made: {source}")]
    Make { what: &'static str, source: rcgen::Error },
    #[error("{what} cannot be read: {reason}")]
    Read { what: &'static str, reason: String },
    #[error("the certificate signing request is not acceptable: {0}")]
    Request(String),
    #[error(
        "a sealed field does not open: it belongs to another cluster key or another place, or is damaged"
    )]
    Sealed,
    #[error("the join token is not valid: {0}")]
    Token(&'static str),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the system gives no random numbers")]
    Random,
}

impl PkiError {
    pub(crate) fn read(what: &'static str, reason: impl fmt::Display) -> Self {
        Self::Read { what, reason: reason.to_string() }
    }
}

/// Whom a certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    Node(NodeId),
    Controller(ControllerId),
}

impl Holder {
    fn path(self) -> String {
        match self {
            Self::Node(id) => format!("node/{id}"),
            Self::Controller(id) => format!("controller/{id}"),
        }
    }

    fn common_name(self) -> String {
        match self {
            Self::Node(id) => format!("node:{id}"),
            Self::Controller(id) => format!("controller:{id}"),
        }
    }

    /// The URI under which the certificate names its holder.
    fn uri(self, cluster: ClusterId) -> String {
        format!("tamdao://{cluster}/{}", self.path())
    }

    /// Whom a certificate names, and of which cluster. Whether the certificate may be believed is decided by TLS.
    pub fn of(certificate: &[u8]) -> Option<(ClusterId, Self)> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Self::from_uri(uri),
            _ => None,
        })
    }

    fn from_uri(uri: &str) -> Option<(ClusterId, Self)> {
        let mut parts = uri.strip_prefix("tamdao://")?.split('/');
        let cluster = ClusterId(Uuid::parse_str(parts.next()?).ok()?);
        let (kind, id) = (parts.next()?, Uuid::parse_str(parts.next()?).ok()?);
        let holder = match kind {
            "node" => Self::Node(NodeId(id)),
            "controller" => Self::Controller(ControllerId(id)),
            _ => return None,
        };
        parts.next().is_none().then_some((cluster, holder))
    }
}

/// The DER of a certificate that is stored as PEM.
///
/// # Errors
/// When it is none.
pub fn der_of(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| PkiError::read("a certificate", error))
}

/// SHA-256, hex: how secrets and files are told apart without being shown.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(sha256(bytes))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], PkiError> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_uris_name_a_holder() {
        let cluster = ClusterId(Uuid::from_u128(1));
        let node = Holder::Node(NodeId(Uuid::from_u128(2)));
        let controller = Holder::Controller(ControllerId(Uuid::from_u128(3)));
        for holder in [node, controller] {
            assert_eq!(Holder::from_uri(&holder.uri(cluster)), Some((cluster, holder)));
        }
        let id = Uuid::from_u128(2);
        for wrong in [
            format!("http://{id}/node/{id}"),
            format!("tamdao://{id}/admin/{id}"),
            format!("tamdao://{id}/node/{id}/x"),
            format!("tamdao://{id}/node"),
            format!("tamdao:///node/{id}"),
        ] {
            assert_eq!(Holder::from_uri(&wrong), None, "{wrong}");
        }
    }
}
