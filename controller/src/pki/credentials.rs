//! A controller's own certificate and key, and the TLS settings that use them.
//!
//! Its invariant: every handshake uses the newest certificate, and connections that stand are not touched when it
//! is replaced. A server shows its CA beside its leaf, so that a joiner can compare it with the digest in its token.

use std::fmt;
use std::sync::{Arc, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tamdao_model::TimeMs;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PkiError;

/// The certificate that this controller shows, now; a clone is another handle on it.
#[derive(Clone)]
pub struct Credentials {
    ca: CertificateDer<'static>,
    roots: Arc<RootCertStore>,
    shown: Arc<Shown>,
}

struct Shown(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown(hidden)")
    }
}

impl Credentials {
    /// From the CA's certificate, the own certificate and its key, all PEM.
    ///
    /// # Errors
    /// When one of them cannot be read, or certificate and key do not belong together.
    pub fn new(ca: &str, certificate: &str, key: &str) -> Result<Self, PkiError> {
        let ca = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|e| PkiError::read("the CA", e))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let shown = certified(&ca, certificate, key)?;
        Ok(Self { ca, roots: Arc::new(roots), shown: Arc::new(Shown(RwLock::new(Arc::new(shown)))) })
    }

    /// Shows another certificate from the next handshake on.
    ///
    /// # Errors
    /// As [`Self::new`]; then the old one stays.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), PkiError> {
        let shown = Arc::new(certified(&self.ca, certificate, key)?);
        *self.shown.0.write().expect("no holder of the lock panics") = shown;
        Ok(())
    }

    /// The certificate that is shown now.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.shown.get().cert[0].clone()
    }

    /// The CA that both sides are checked against.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// For the one port: users come without a certificate, agents and controllers with theirs.
    ///
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn server(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For calls to other controllers, by mutual TLS and HTTP/2.
    ///
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn client(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots.clone())
            .with_client_cert_resolver(self.shown.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Shown {
    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().expect("no holder of the lock panics").clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(ca: &CertificateDer<'static>, certificate: &str, key: &str) -> Result<CertifiedKey, PkiError> {
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes());
    let leaf = leaf.map_err(|error| PkiError::read("the certificate", error))?;
    // The parser's message is not passed on: it might show what it could not read.
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
    let key = key.map_err(|_| PkiError::read("the private key", "it is no PEM of a key"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    let certified = CertifiedKey::new(vec![leaf, ca.clone()], key);
    certified.keys_match()?;
    Ok(certified)
}

/// When a certificate is due to be replaced: at two thirds of its life.
///
/// # Errors
/// When it cannot be read.
pub fn renewal_time(certificate: &[u8]) -> Result<TimeMs, PkiError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| PkiError::read("the certificate", error))?;
    let validity = certificate.validity();
    let (from, to) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let due = from + (to - from) / 3 * 2;
    Ok(TimeMs(u64::try_from(due).unwrap_or(0).saturating_mul(1_000)))
}

#[cfg(test)]
mod tests {
    use tamdao_model::{ClusterId, ControllerId};
    use uuid::Uuid;

    use super::super::{Authority, Holder, public_key_of, request};
    use super::*;

    #[test]
    fn a_key_of_another_certificate_is_refused_and_the_old_one_stays() {
        let (cluster, now) = (ClusterId(Uuid::from_u128(1)), TimeMs(1_800_000_000_000));
        let authority = Authority::generate(cluster, now).unwrap();
        let holder = Holder::Controller(ControllerId(Uuid::from_u128(2)));
        let certify = |request: &str| {
            authority.certify(&public_key_of(request).unwrap(), cluster, holder, &[], now).unwrap()
        };
        let (one, two) = (request().unwrap(), request().unwrap());
        let (first, second) = (certify(&one.request), certify(&two.request));
        let credentials = Credentials::new(authority.pem(), &first, &one.key).unwrap();
        let shown = credentials.certificate();
        assert!(credentials.replace(&second, &one.key).is_err());
        assert_eq!(credentials.certificate(), shown);
        credentials.replace(&second, &two.key).unwrap();
        assert_ne!(credentials.certificate(), shown);
        let error = Credentials::new(authority.pem(), &first, "no key").unwrap_err().to_string();
        assert!(error.contains("private key"), "{error}");
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let (cluster, now) = (ClusterId(Uuid::from_u128(1)), TimeMs(1_800_000_000_000));
        let authority = Authority::generate(cluster, now).unwrap();
        let holder = Holder::Controller(ControllerId(Uuid::from_u128(2)));
        let key = public_key_of(&request().unwrap().request).unwrap();
        let pem = authority.certify(&key, cluster, holder, &[], now).unwrap();
        let due = renewal_time(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let days = due.since(now) / 86_400_000;
        assert!((59..=60).contains(&days), "{days}");
    }
}
