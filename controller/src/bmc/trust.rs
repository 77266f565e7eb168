//! TLS towards a BMC, believed by what its record says.
//!
//! Its invariant: nothing is sent to whom the record does not trust; only the record's own word `unverified` trusts
//! everybody.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use tamdao_model::bmc::Trust;

use super::Fault;
use crate::pki::{Believe, Shown};

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
    // The one certificate of this SHA-256 (lower-case hex), or any.
    let rule = move |(leaf, ..): Shown<'_>| match &only {
        Some(only) if *only != hex::encode(Sha256::digest(leaf)) => {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
        _ => Ok(()),
    };
    let verifier = Believe::when(rule, provider);
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}
