//! Connections between two nodes' agents: mutual TLS with the certificates that they have, and messages with their
//! length before them.
//!
//! Invariant: each end knows which node the other is, by a certificate of the cluster's CA; names and addresses prove
//! nothing. Deliberately absent: whether a node may speak of a move.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use uuid::Uuid;
use x509_parser::extensions::GeneralName;

use super::{MoveError, Result};
use crate::pki::Identity;

/// How long a connection and each message of its beginning may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// A message of a connection's beginning, bytes.
const MESSAGE: u32 = 64 * 1024;
/// What is read of a connection at once, bytes: rustls by itself asks for 4 KiB each time.
const READ: usize = 256 * 1024;

/// What TLS runs on.
pub type Line = BufReader<TcpStream>;

/// A connection as TLS shall use it.
///
/// # Errors
/// It is closed already.
pub fn line(stream: TcpStream) -> std::io::Result<Line> {
    stream.set_nodelay(true)?;
    Ok(BufReader::with_capacity(READ, stream))
}

fn tls(error: impl std::fmt::Display) -> MoveError {
    MoveError::Tls(error.to_string())
}

struct Own {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

fn own(identity: &Identity) -> Result<Own> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(identity.ca.as_bytes()) {
        roots.add(certificate.map_err(tls)?).map_err(tls)?;
    }
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(tls)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(tls)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(Own { roots: Arc::new(roots), chain, key, provider })
}

/// What the target's agent listens with.
pub fn acceptor(identity: &Identity) -> Result<tokio_rustls::TlsAcceptor> {
    let own = own(identity)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(own.roots, own.provider.clone()).build().map_err(tls)?;
    let config = rustls::ServerConfig::builder_with_provider(own.provider)
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain, own.key)
        .map_err(tls)?;
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

/// Connects to one node's agent, and to no other.
pub async fn connect(
    identity: &Identity,
    address: &str,
    node: Uuid,
) -> Result<tokio_rustls::client::TlsStream<Line>> {
    let own = own(identity)?;
    let verifier =
        OneNode { node, roots: own.roots, algorithms: own.provider.signature_verification_algorithms };
    let config = rustls::ClientConfig::builder_with_provider(own.provider)
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(own.chain, own.key)
        .map_err(tls)?;
    let peer = |message: String| MoveError::Peer { peer: address.to_owned(), message };
    // The verifier looks for the node and not for a name.
    let name = ServerName::try_from("tamdao-node").map_err(tls)?;
    let connecting = async {
        let line = line(TcpStream::connect(address).await?)?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, line).await
    };
    let connected = tokio::time::timeout(PATIENCE, connecting).await;
    connected.map_err(|_| peer("no answer".to_owned()))?.map_err(|error| peer(error.to_string()))
}

/// The node that a certificate names, whatever its cluster: that the CA signed it says which.
pub fn node_of(certificate: &CertificateDer<'_>) -> Option<Uuid> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            let mut parts = uri.strip_prefix("tamdao://")?.split('/').skip(1);
            match (parts.next(), parts.next(), parts.next()) {
                (Some("node"), Some(id), None) => Uuid::try_parse(id).ok(),
                _ => None,
            }
        }
        _ => None,
    })
}

/// Believes one node's certificate.
#[derive(Debug)]
struct OneNode {
    node: Uuid,
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for OneNode {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if node_of(certificate) == Some(self.node) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!("it is not node {}", self.node)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Sends one message.
pub async fn say(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> std::io::Result<()> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads one message.
pub async fn hear<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<M> {
    let length = stream.read_u32().await?;
    if length > MESSAGE {
        return Err(std::io::Error::other(format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await?;
    M::decode(&*bytes).map_err(std::io::Error::other)
}
