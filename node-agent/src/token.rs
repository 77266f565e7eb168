//! Join tokens: `tdjoin1.<token id>.<secret>.<SHA-256 of the CA certificate, DER, in hexadecimal digits>`.
//!
//! Invariant: a node that joins by a token speaks only to a server that proves to be a controller of the cluster
//! whose CA the token names. The token itself is sent only after that. Deliberately absent: what the secret means.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::pki::CONTROLLER_NAME;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a join token has four parts: tdjoin1.<id>.<secret>.<digest>")]
    Form,
    #[error("the token is of another form than tdjoin1; this agent is too old or too new for it")]
    Version,
    #[error("the token's id is not a UUID")]
    Id,
    #[error("the token's digest is not a SHA-256 in hexadecimal digits; was it cut off?")]
    Digest,
}

/// A token's parts. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    whole: String,
    pub id: Uuid,
    pub ca_digest: [u8; 32],
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    /// # Errors
    /// The text has another form.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let parts: Vec<&str> = text.split('.').collect();
        let &[version, id, secret, digest] = parts.as_slice() else { return Err(TokenError::Form) };
        if version != "tdjoin1" {
            return Err(TokenError::Version);
        }
        let secret_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if secret.is_empty() || !secret.chars().all(secret_good) {
            return Err(TokenError::Form);
        }
        let id = Uuid::try_parse(id).map_err(|_| TokenError::Id)?;
        let mut ca_digest = [0; 32];
        hex::decode_to_slice(digest, &mut ca_digest).map_err(|_| TokenError::Digest)?;
        Ok(Self { whole: text.to_owned(), id, ca_digest })
    }

    /// The whole token, as the controller gave it out and wants to see it.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.whole
    }
}

/// Trusts a server whose chain holds the CA with the digest, and whose leaf is signed by that CA for a controller.
#[derive(Debug)]
pub struct PinnedCa {
    digest: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    #[must_use]
    pub fn new(digest: [u8; 32]) -> Self {
        Self { digest, provider: Arc::new(rustls::crypto::ring::default_provider()) }
    }

    /// A client that shows no certificate and trusts this CA alone.
    ///
    /// # Errors
    /// rustls lacks a protocol version.
    pub fn client(self) -> Result<rustls::ClientConfig, rustls::Error> {
        let provider = self.provider.clone();
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let _ = ocsp;
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = chain.iter().find(|certificate| Sha256::digest(certificate)[..] == self.digest);
        let mut roots = RootCertStore::empty();
        roots.add(ca.ok_or(unknown)?.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, chain, now, algorithms)?;
        let name = ServerName::try_from(CONTROLLER_NAME)
            .map_err(|_| rustls::Error::General("the controllers' name is no DNS name".into()))?;
        rustls::client::verify_server_name(&parsed, &name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse_and_do_not_show_their_secret() {
        let id = Uuid::from_u128(5);
        let good = format!("tdjoin1.{id}.s3cr_t-x.{}", "ab".repeat(32));
        let token = Token::parse(&format!(" {good}\n")).unwrap();
        assert_eq!((token.id, token.ca_digest), (id, [0xab; 32]));
        assert_eq!(token.secret(), good);
        assert!(!format!("{token:?}").contains("s3cr"));
        for (text, error) in [
            ("".to_owned(), TokenError::Form),
            (good.replace("tdjoin1", "tdjoin2"), TokenError::Version),
            (good.replace(&id.to_string(), "me"), TokenError::Id),
            (good[..good.len() - 2].to_owned(), TokenError::Digest),
            (good.replace("s3cr_t-x", "a b"), TokenError::Form),
        ] {
            assert_eq!(Token::parse(&text), Err(error), "{text}");
        }
    }
}
