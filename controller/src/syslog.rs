//! Audit records on their way to a receiver of syslog: the form of each (RFC 5424), and the connection of TLS that carries
//! a batch of them (RFC 5425).
//!
//! Its invariant: a batch counts as delivered only by the receiver's close_notify in answer to ours, which TLS vouches
//! for: it is sent by whoever has read all that came before. Neither a write that succeeded nor an end of TCP is taken
//! for that. Deliberately absent: what is sent when, and how far it came (`reconcile/courier.rs`).

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tamdao_model::Name;
use tamdao_model::audit::Audit;
use tamdao_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::split_address;

/// How long one batch may take: a receiver that stands still must not hold its courier for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// Facility 13, log audit; severities notice and warning.
const DONE: u8 = 13 * 8 + 5;
const REFUSED: u8 = 13 * 8 + 4;

/// Who receives, and by what both know each other.
#[derive(Debug, Clone)]
pub struct Settings {
    /// host:port; the host is the name that its certificate must have.
    pub receiver: String,
    /// PEM. All files are read anew for each connection, so that certificates can be replaced under it.
    pub ca_file: PathBuf,
    /// Certificate and key that are shown to it; none where it wants none.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// After so long without a delivery the cloud says so.
    pub silence: Duration,
}

/// Why a batch may not have arrived.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(std::io::Error),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the receiver ended the connection before everything was sent")]
    EndedFirst,
    #[error(
        "the receiver ended the connection without TLS's close_notify, which alone proves that it has read \
         everything; rsyslog sends it with the driver ossl"
    )]
    Unproven,
    #[error("nothing was proven to be delivered within {} s", PATIENCE.as_secs())]
    Slow,
}

/// Adds a record as one frame. Its text is the line that `tamdao audit export` prints, in ASCII, so that no receiver has
/// to know which encoding it is.
pub fn add(frames: &mut Vec<u8>, host: &Name, audit: &Audit, shown: &v1::WatchAuditResponse) {
    let priority = if audit.is_refused() { REFUSED } else { DONE };
    let version = env!("CARGO_PKG_VERSION");
    let json = serde_json::to_string(shown).expect("a message of the contract");
    let message = format!(
        "<{priority}>1 {} {host} tamdao-controller - audit [origin software=\"tamdao-controller\" \
         swVersion=\"{version}\"] {}",
        audit.time,
        ascii(&json)
    );
    frames.extend_from_slice(format!("{} {message}", message.len()).as_bytes());
}

/// The same JSON with escapes for all that is not ASCII; in JSON such letters stand in strings only.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter.is_ascii() {
            text.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut [0; 2]) {
            write!(text, "\\u{unit:04x}").expect("a string takes all");
        }
    }
    text
}

/// Sends frames over a connection of their own, and returns when it is proven that the receiver has read all of them.
///
/// # Errors
/// Whatever leaves that open: some, all or none may have arrived.
pub async fn deliver(settings: &Settings, frames: &[u8]) -> Result<(), DeliveryError> {
    timeout(PATIENCE, send(settings, frames)).await.map_err(|_| DeliveryError::Slow)?
}

async fn send(settings: &Settings, frames: &[u8]) -> Result<(), DeliveryError> {
    use DeliveryError::{Broken, Connect, EndedFirst, Unproven};
    let host = split_address(&settings.receiver).map_or("", |(host, _)| host);
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| Connect(std::io::Error::new(ErrorKind::InvalidInput, error)))?;
    let tls = TlsConnector::from(Arc::new(client(settings)?));
    let socket = TcpStream::connect(&settings.receiver).await.map_err(Connect)?;
    let mut stream = tls.connect(name, socket).await.map_err(Connect)?;
    stream.write_all(frames).await.map_err(Broken)?;
    stream.flush().await.map_err(Broken)?;
    let mut said = [0; 1_024];
    // A close_notify that is here before ours was sent answers nothing: it goes out of its own will.
    if let Some(Ok(0) | Err(_)) = stream.read(&mut said).now_or_never() {
        return Err(EndedFirst);
    }
    stream.shutdown().await.map_err(Broken)?;
    loop {
        match stream.read(&mut said).await {
            Ok(0) => break,
            // It has nothing to say in this protocol, and may all the same.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(Unproven),
            Err(error) => return Err(Broken(error)),
        }
    }
    // Who closes without having read everything resets the connection.
    while stream.get_mut().0.read(&mut said).await.map_err(Broken)? > 0 {}
    Ok(())
}

fn client(settings: &Settings) -> Result<ClientConfig, DeliveryError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&settings.ca_file)? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match &settings.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let wrong = |reason: String| DeliveryError::File { path: key.clone(), reason };
            let pem = std::fs::read(key).map_err(|error| wrong(error.to_string()))?;
            // The reason of a key that cannot be read is not told: it may quote the key.
            let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| wrong("no key in PEM".into()))?;
            builder.with_client_auth_cert(certificates(certificate)?, secret)?
        }
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DeliveryError> {
    let wrong = |reason: String| DeliveryError::File { path: path.to_owned(), reason };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() { Err(wrong("no certificate in PEM".into())) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use tamdao_model::{ControllerId, TimeMs};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_frame_is_a_line_of_rfc_5424_behind_its_length_and_its_text_is_ascii() {
        let audit = Audit {
            id: Uuid::from_u128(7).into(),
            time: TimeMs(1_700_000_000_123),
            principal: "user:lan".into(),
            role: None,
            role_agency: None,
            peer: String::new(),
            via: None,
            controller: ControllerId(Uuid::nil()),
            method: "VmService/CreateVm".into(),
            agency: "Sở Y tế 🏥".into(),
            name: "a\"]\n".into(),
            request_id: None,
            code: "Ok".into(),
            reason: String::new(),
            changes: Vec::new(),
            count: 1,
        };
        let record =
            v1::AuditRecord { agency: audit.agency.clone(), name: audit.name.clone(), ..Default::default() };
        let shown =
            v1::WatchAuditResponse { record: Some(record.clone()), sequence: 5, ..Default::default() };
        let mut frames = Vec::new();
        let host = Name::new("c1").unwrap();
        add(&mut frames, &host, &audit, &shown);
        let once = frames.len();
        add(&mut frames, &host, &Audit { code: "NotFound".into(), ..audit }, &shown);
        let text = String::from_utf8(frames).unwrap();
        assert!(text.is_ascii() && !text.contains('\n'));
        let (length, rest) = text.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap() + length.len() + 1, once);
        let begin = format!(
            "<109>1 2023-11-14T22:13:20.123Z c1 tamdao-controller - audit [origin \
             software=\"tamdao-controller\" swVersion=\"{}\"] ",
            env!("CARGO_PKG_VERSION")
        );
        let json = rest[..once - length.len() - 1].strip_prefix(&begin).expect(rest);
        assert_eq!(serde_json::from_str::<v1::WatchAuditResponse>(json).unwrap(), shown);
        assert!(text[once..].split_once(' ').unwrap().1.starts_with("<108>1 "), "{text}");
    }
}
