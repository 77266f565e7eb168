//! TLS towards a BMC, believed by what its record says.
//!
//! Its invariant: nothing is sent to whom the record does not trust; only the record's own word `unverified` trusts
//! everybody.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use tamdao_model::bmc::Trust;

use super::Fault;

/// The settings for dialling a BMC that is trusted so.
pub fn client(trust: &Trust) -> Result<ClientConfig, Fault> {
    let untrusted = |error: &dyn std::fmt::Display| Fault::Untrusted(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| untrusted(&error))?;
    let only = match trust {
        Trust::Ca(certificates) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
                let certificate = certificate.map_err(|_| untrusted(&"its CA is no certificate in PEM"))?;
                roots.add(certificate).map_err(|error| untrusted(&error))?;
            }
            return Ok(builder.with_root_certificates(roots).with_no_client_auth());
        }
        Trust::Fingerprint(fingerprint) => Some(fingerprint.clone()),
        Trust::Unverified => None,
    };
    let verifier = Arc::new(Pinned { only, provider });
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Believes the one certificate of this SHA-256 (lower-case hex), or any.
#[derive(Debug)]
struct Pinned {
    only: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.only {
            Some(only) if *only != hex::encode(Sha256::digest(leaf)) => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
