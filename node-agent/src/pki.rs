//! The node's identity: its key, which never leaves the node, its certificate and the cluster's CA.
//!
//! Invariants: the server is a controller only if its certificate is of our CA and bears the name
//! `tamdao-controller`, whatever address was dialled; files are replaced whole. A renewal keeps the key, so that
//! one rename is the whole change. Deliberately absent: revocation, which is the leader's refusal of the session.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;
use crate::ledger::write_file;

/// The DNS name that every controller's certificate bears.
pub const CONTROLLER_NAME: &str = "tamdao-controller";

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Bad { path: PathBuf, message: String },
    #[error("this node has not joined: {} is missing; run `tamdao-agent join`", path.display())]
    NotJoined { path: PathBuf },
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl From<&Config> for Files {
    fn from(config: &Config) -> Self {
        Self { certificate: config.certificate.clone(), key: config.key.clone(), ca: config.ca.clone() }
    }
}

/// The files' contents, PEM. Read anew for each connection, so that a renewal needs no word.
#[derive(Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
    pub ca: String,
}

impl Files {
    /// # Errors
    /// A file is missing or unreadable.
    pub fn load(&self) -> Result<Identity, PkiError> {
        let read = |path: &Path| match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(PkiError::NotJoined { path: path.to_owned() })
            }
            other => other.map_err(|source| PkiError::Io { path: path.to_owned(), source }),
        };
        Ok(Identity { certificate: read(&self.certificate)?, key: read(&self.key)?, ca: read(&self.ca)? })
    }

    /// The node's key, made on first use.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn key_pair(&self) -> Result<KeyPair, PkiError> {
        match std::fs::read_to_string(&self.key) {
            Ok(text) => Ok(KeyPair::from_pem(&text)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = KeyPair::generate()?;
                store(&self.key, key.serialize_pem().as_bytes(), 0o600)?;
                Ok(key)
            }
            Err(source) => Err(PkiError::Io { path: self.key.clone(), source }),
        }
    }

    /// Stores what the cluster gave out. The certificate comes last: where it is, the rest is too.
    ///
    /// # Errors
    /// A file cannot be written, or the texts are no certificates.
    pub fn store(&self, certificate: &str, ca: &str) -> Result<(), PkiError> {
        lifetime(&self.certificate, certificate)?;
        lifetime(&self.ca, ca)?;
        store(&self.ca, ca.as_bytes(), 0o644)?;
        store(&self.certificate, certificate.as_bytes(), 0o644)
    }

    /// When the certificate should be renewed: two thirds into its life.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn renew_at(&self) -> Result<SystemTime, PkiError> {
        let (from, to) = lifetime(&self.certificate, &self.load()?.certificate)?;
        let life = to.duration_since(from).unwrap_or(Duration::ZERO);
        Ok(from + life / 3 * 2)
    }
}

fn store(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    use std::os::unix::fs::DirBuilderExt;
    let io = |source| PkiError::Io { path: path.to_owned(), source };
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    }
    write_file(path, bytes, mode).map_err(io)
}

/// From when to when a certificate is good.
fn lifetime(path: &Path, pem: &str) -> Result<(SystemTime, SystemTime), PkiError> {
    let bad = |message: String| PkiError::Bad { path: path.to_owned(), message };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| bad(error.to_string()))?;
    let at = |time: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    Ok((at(parsed.validity().not_before), at(parsed.validity().not_after)))
}

/// A request for a certificate of this name. What the cluster puts into the certificate is its own decision.
///
/// # Errors
/// rcgen cannot sign.
pub fn request(name: &str, key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    Ok(params.serialize_request(key)?.pem()?)
}

impl Identity {
    /// A client that shows this identity and trusts the cluster's CA alone.
    ///
    /// # Errors
    /// A text is no certificate or key, or they do not belong together.
    pub fn client(&self) -> Result<rustls::ClientConfig, PkiError> {
        let bad = |what: &str, error: rustls::pki_types::pem::Error| PkiError::Bad {
            path: what.into(),
            message: error.to_string(),
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            roots.add(certificate.map_err(|error| bad("ca", error))?)?;
        }
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad("certificate", error))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|error| bad("key", error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?)
    }
}
