//! What a controller is told by its one TOML file.
//!
//! Its invariant: a [`Config`] that exists is valid as a whole; every error names the key, the value and what is
//! allowed, and all of them are found before any port is bound. Deliberately absent: secrets, which lie in the
//! data directory, and what the whole cloud must agree on, which lies in the store.

mod backup;
mod etcd;
mod oidc_file;
mod rates;
mod syslog_file;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tamdao_model::{Name, limits};
use tamdao_store::backend::etcd::EtcdConfig;
use tamdao_store::journal::Keep;

use backup::BackupFile;
use etcd::EtcdFile;
use oidc_file::OidcFile;
use rates::RatesFile;
use syslog_file::SyslogFile;

use crate::backups;
use crate::oidc;
use crate::rate::Allowances;
use crate::syslog;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// This controller's name, unique among the controllers.
    pub name: Name,
    /// Where it accepts users, agents and other controllers.
    pub listen: SocketAddr,
    /// host:port at which these reach it.
    pub address: String,
    /// Where everything lies that it keeps.
    pub data_dir: PathBuf,
    /// After this silence an agent counts as unreachable.
    pub session_timeout: Duration,
    /// For how long a node whose link flaps has to be heard before it takes VMs again; zero believes it at once.
    pub steady: Duration,
    pub store: StoreConfig,
    pub log: LogConfig,
    pub metrics: MetricsConfig,
    pub images: ImagesConfig,
    /// What this controller's own journal keeps.
    pub journal: Keep,
    /// Backups that are made by themselves; none where the operator makes them.
    pub backup: Option<backups::Settings>,
    /// Who receives the audit log as syslog; none where nobody does.
    pub syslog: Option<syslog::Settings>,
    /// Who vouches for people; none where only tokens come in.
    pub oidc: Option<oidc::Settings>,
    /// What callers and agencies may ask of this controller.
    pub allowances: Allowances,
}

/// Where the state lives, and how fast a lost leader is replaced.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub backend: Backend,
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
}

#[derive(Debug, Clone)]
pub enum Backend {
    /// Replicated between the controllers, on disk.
    Raft,
    /// On an etcd that is the operator's own.
    Etcd(Box<EtcdConfig>),
    /// In this process only: for trials; everything is gone when it ends.
    Memory,
}

#[derive(Debug, Clone)]
pub struct LogConfig {
    /// A level, or directives of tracing such as "info,tamdao_store=debug".
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// The plain HTTP port for /metrics, /healthz and /readyz.
#[derive(Debug, Clone)]
pub struct MetricsConfig {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone)]
pub struct ImagesConfig {
    /// The largest file of an image, bytes, as stored.
    pub max_bytes: u64,
    /// The largest disk that an image may describe, MiB.
    pub max_virtual_mib: u32,
    /// Certificates of CAs, PEM, that are trusted beside the public ones where an image is fetched from a URL; empty
    /// for none.
    pub ca_pem: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path}: {}", .problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Values { path: PathBuf, problems: Vec<Problem> },
}

/// One value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub key: &'static str,
    pub value: String,
    pub allowed: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?} is not allowed: {}", self.key, self.value, self.allowed)
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, has unknown keys, or has values that are not allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a text; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let mut problems = Vec::new();
        let config = file.check(&mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Values { path: path.to_owned(), problems }),
        }
    }

    /// The host part of the advertised address.
    pub fn host(&self) -> &str {
        split_address(&self.address).map_or("", |(host, _)| host)
    }
}

/// The host without brackets and the port of `host:port`.
pub fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        // A colon without brackets makes it unclear where an IPv6 address ends.
        None if host.contains(':') => return None,
        None => host,
    };
    let named = bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'));
    let port: u16 = port.parse().ok()?;
    (!bare.is_empty() && bare.len() <= 253 && named && port != 0).then_some((bare, port))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default = "default_listen")]
    listen: String,
    address: String,
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    #[serde(default = "default_session_timeout_ms")]
    session_timeout_ms: u64,
    #[serde(default = "default_steady_ms")]
    steady_ms: u64,
    #[serde(default)]
    store: StoreFile,
    #[serde(default)]
    log: LogFile,
    #[serde(default)]
    metrics: MetricsFile,
    #[serde(default)]
    images: ImagesFile,
    #[serde(default)]
    journal: JournalFile,
    #[serde(default)]
    limits: RatesFile,
    oidc: Option<OidcFile>,
    syslog: Option<SyslogFile>,
    backup: Option<BackupFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StoreFile {
    backend: BackendFile,
    heartbeat_ms: u64,
    election_min_ms: u64,
    election_max_ms: u64,
    etcd: EtcdFile,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BackendFile {
    Raft,
    Etcd,
    Memory,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogFile {
    level: String,
    format: LogFormat,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MetricsFile {
    listen: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ImagesFile {
    max_size_mib: u64,
    max_virtual_size_mib: u32,
    ca_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JournalFile {
    keep_days: u64,
    max_size_mib: u64,
}

fn default_listen() -> String {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7443)).to_string()
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/tamdao-controller")
}

fn default_session_timeout_ms() -> u64 {
    10_000
}

fn default_steady_ms() -> u64 {
    180_000
}

impl Default for StoreFile {
    fn default() -> Self {
        Self {
            backend: BackendFile::Raft,
            heartbeat_ms: 250,
            election_min_ms: 1_000,
            election_max_ms: 2_000,
            etcd: EtcdFile::default(),
        }
    }
}

impl Default for LogFile {
    fn default() -> Self {
        Self { level: "info,openraft=error".into(), format: LogFormat::Text }
    }
}

impl Default for MetricsFile {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7480)).to_string() }
    }
}

impl Default for ImagesFile {
    fn default() -> Self {
        Self {
            max_size_mib: limits::IMAGE_BYTES >> 20,
            max_virtual_size_mib: *limits::VOLUME_MIB.end(),
            ca_file: PathBuf::new(),
        }
    }
}

impl Default for JournalFile {
    fn default() -> Self {
        Self { keep_days: 365, max_size_mib: 8_192 }
    }
}

/// The certificates in a file; empty without one.
fn read_certificates(file: &Path) -> Result<String, String> {
    if file.as_os_str().is_empty() {
        return Ok(String::new());
    }
    let pem = std::fs::read_to_string(file).map_err(|error| format!("a file that can be read ({error})"))?;
    let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes());
    match certificates.next().is_some_and(|one| one.is_ok()) && certificates.all(|one| one.is_ok()) {
        true => Ok(pem),
        false => Err("a file of certificates in PEM".into()),
    }
}

impl File {
    /// Finds everything that is wrong; the answer is None when something is.
    fn check(self, problems: &mut Vec<Problem>) -> Option<Config> {
        let mut refuse = |key, value: &dyn fmt::Display, allowed: String| {
            problems.push(Problem { key, value: value.to_string(), allowed });
        };
        let name = Name::new(&self.name).map_err(|why| refuse("name", &self.name, format!("it {why}"))).ok();
        let an_address = "an IP address and a port, such as 0.0.0.0:7443 or [::]:7443";
        let listen = self.listen.parse().map_err(|_| refuse("listen", &self.listen, an_address.into())).ok();
        if split_address(&self.address).is_none() {
            let allowed = "host:port at which users, agents and other controllers reach this one";
            refuse("address", &self.address, allowed.into());
        }
        if !self.data_dir.is_absolute() {
            refuse("data_dir", &self.data_dir.display(), "an absolute path".into());
        }
        let backend = match self.store.backend {
            BackendFile::Raft => Backend::Raft,
            BackendFile::Etcd => Backend::Etcd(Box::new(self.store.etcd.check(&mut refuse))),
            BackendFile::Memory => Backend::Memory,
        };
        let mut within = |key, value: u64, from: u64, to: u64| {
            if !(from..=to).contains(&value) {
                refuse(key, &value, format!("{from} to {to}"));
            }
            Duration::from_millis(value)
        };
        let session_timeout = within("session_timeout_ms", self.session_timeout_ms, 1_000, 600_000);
        let steady = within("steady_ms", self.steady_ms, 0, 3_600_000);
        let store = StoreConfig {
            backend,
            heartbeat: within("store.heartbeat_ms", self.store.heartbeat_ms, 10, 10_000),
            election_min: within("store.election_min_ms", self.store.election_min_ms, 30, 60_000),
            election_max: within("store.election_max_ms", self.store.election_max_ms, 60, 120_000),
        };
        within("images.max_size_mib", self.images.max_size_mib, 1, limits::IMAGE_BYTES >> 20);
        let virtual_mib = self.images.max_virtual_size_mib;
        within("images.max_virtual_size_mib", virtual_mib.into(), 1, (*limits::VOLUME_MIB.end()).into());
        let allowances = self.limits.check(&mut within);
        within("journal.keep_days", self.journal.keep_days, 1, 36_500);
        within("journal.max_size_mib", self.journal.max_size_mib, 128, 1 << 24);
        let ca = read_certificates(&self.images.ca_file);
        let ca = ca.map_err(|allowed| refuse("images.ca_file", &self.images.ca_file.display(), allowed)).ok();
        let oidc = self.oidc.map(|file| file.check(&mut refuse));
        let syslog = self.syslog.map(|file| file.check(&mut refuse));
        let backup = self.backup.and_then(|file| file.check(&mut refuse));
        if store.election_min < 2 * store.heartbeat {
            let allowed = "at least twice store.heartbeat_ms, or one lost heartbeat deposes a leader";
            refuse("store.election_min_ms", &self.store.election_min_ms, allowed.into());
        }
        if store.election_max <= store.election_min || store.election_max < 4 * store.heartbeat {
            let allowed = "more than store.election_min_ms, so that members do not all stand at once, and at least \
                           four times store.heartbeat_ms";
            refuse("store.election_max_ms", &self.store.election_max_ms, allowed.into());
        }
        if self.log.level.parse::<tracing_subscriber::EnvFilter>().is_err() || self.log.level.is_empty() {
            let allowed = "error, warn, info, debug or trace, or directives such as info,tamdao_store=debug";
            refuse("log.level", &self.log.level, allowed.into());
        }
        let metrics = self.metrics.listen.parse();
        let metrics =
            metrics.map_err(|_| refuse("metrics.listen", &self.metrics.listen, an_address.into())).ok();
        Some(Config {
            name: name?,
            listen: listen?,
            address: self.address,
            data_dir: self.data_dir,
            session_timeout,
            steady,
            store,
            log: LogConfig { level: self.log.level, format: self.log.format },
            metrics: MetricsConfig { listen: metrics? },
            images: ImagesConfig {
                max_bytes: self.images.max_size_mib << 20,
                max_virtual_mib: virtual_mib,
                ca_pem: ca?,
            },
            oidc,
            syslog,
            backup,
            allowances,
            journal: Keep {
                bytes: self.journal.max_size_mib << 20,
                age_ms: self.journal.keep_days * 24 * 60 * 60 * 1_000,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("c.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn two_lines_are_enough() {
        let config = parse("name = 'c1'\naddress = 'c1.example:7443'").unwrap();
        assert_eq!(config.listen.port(), 7443);
        assert!(config.metrics.listen.ip().is_loopback());
        assert_eq!(config.session_timeout, Duration::from_secs(10));
        assert!(matches!(config.store.backend, Backend::Raft));
        assert_eq!(config.host(), "c1.example");
    }

    #[test]
    fn every_wrong_value_is_named_at_once() {
        let text = "name = 'C1'\naddress = 'c1'\nlisten = 'x'\ndata_dir = 'd'\nsession_timeout_ms = 5\n\
            [store]\nheartbeat_ms = 900\nelection_min_ms = 1000\nelection_max_ms = 1000\n\
            [log]\nlevel = 'a=b=c'\n[metrics]\nlisten = '9'\n[images]\nmax_size_mib = 0\nca_file = '/none.pem'\n\
            [journal]\nkeep_days = 0\nmax_size_mib = 1\n[limits]\nagency_burst = 0\n\
            [oidc]\nissuer = 'http://id.example'\nclient_id = ''";
        let error = parse(text).unwrap_err();
        for key in [
            "name = \"C1\"",
            "address = \"c1\"",
            "listen = \"x\"",
            "data_dir = \"d\"",
            "session_timeout_ms = \"5\" is not allowed: 1000 to 600000",
            "store.election_min_ms = \"1000\"",
            "store.election_max_ms = \"1000\"",
            "log.level",
            "metrics.listen",
            "images.max_size_mib = \"0\"",
            "images.ca_file = \"/none.pem\" is not allowed: a file that can be read",
            "journal.keep_days = \"0\"",
            "journal.max_size_mib = \"1\"",
            "oidc.issuer = \"http://id.example\"",
            "oidc.client_id = \"\"",
            "limits.agency_burst = \"0\" is not allowed: 1 to 1000000",
        ] {
            assert!(error.contains(key), "{key} is missing in: {error}");
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = parse("name = 'c1'\naddress = 'c:1'\n[store]\nbackedn = 'raft'").unwrap_err();
        assert!(error.contains("backedn"), "{error}");
        assert!(error.contains("backend"), "{error}");
    }

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(split_address("[fd00::1]:7443"), Some(("fd00::1", 7443)));
        assert_eq!(split_address("10.0.0.1:1"), Some(("10.0.0.1", 1)));
        for wrong in ["", "host", ":7443", "host:0", "fd00::1:7443", "ho st:1", "host:70000", "[::1:7"] {
            assert_eq!(split_address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_example_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/controller.toml");
        let config = Config::load(&path).unwrap();
        assert_eq!(config.store.heartbeat, Duration::from_millis(250));
    }
}
