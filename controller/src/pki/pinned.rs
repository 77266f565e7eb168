//! TLS for a joiner, who has no CA yet and only knows its digest from the token; and the seam by which a rule of one's own
//! says which server is believed.
//!
//! Its invariant: nothing is sent to a server whose chain does not hold the CA of that digest, or whose leaf that CA
//! did not sign for a controller.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{PkiError, same, sha256};

/// The settings for dialling a controller of the cluster whose CA has this digest; ask for
/// [`super::CONTROLLER_NAME`].
///
/// # Errors
/// When the TLS library refuses the settings.
pub fn pinned_client(ca_digest: [u8; 32]) -> Result<Arc<ClientConfig>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let usual = provider.clone();
    let rule = move |shown: Shown<'_>| signed_by_the_ca(ca_digest, usual.clone(), shown);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Believe::when(rule, provider))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A server's certificate, those sent with it, the name it was dialled by, its OCSP answer, and the time.
pub(crate) type Shown<'a> =
    (&'a CertificateDer<'a>, &'a [CertificateDer<'a>], &'a ServerName<'a>, &'a [u8], UnixTime);

/// The CA of this digest is among what was sent, and signed the leaf.
fn signed_by_the_ca(
    ca_digest: [u8; 32],
    provider: Arc<CryptoProvider>,
    (leaf, chain, name, ocsp, now): Shown<'_>,
) -> Result<(), Error> {
    let ca = chain.iter().find(|certificate| same(&sha256(certificate), &ca_digest));
    let ca = ca.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    // From here on the CA is known, and the usual rules hold.
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let usual = usual.map_err(|error| Error::General(error.to_string()))?;
    usual.verify_server_cert(leaf, chain, name, ocsp, now).map(drop)
}

/// A rule of one's own for which server is believed. That the server holds its certificate's key is proven as ever.
pub(crate) struct Believe<F> {
    rule: F,
    provider: Arc<CryptoProvider>,
}

impl<F> Believe<F>
where
    F: Fn(Shown<'_>) -> Result<(), Error> + Send + Sync + 'static,
{
    pub(crate) fn when(rule: F, provider: Arc<CryptoProvider>) -> Arc<Self> {
        Arc::new(Self { rule, provider })
    }
}

impl<F> fmt::Debug for Believe<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Believe")
    }
}

impl<F> ServerCertVerifier for Believe<F>
where
    F: Fn(Shown<'_>) -> Result<(), Error> + Send + Sync,
{
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.rule)((leaf, chain, name, ocsp, now)).map(|()| ServerCertVerified::assertion())
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
