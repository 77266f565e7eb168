//! The agent's configuration: one TOML file, read once and checked whole before anything else happens.
//!
//! Invariant: a `Config` that exists is usable; every message about a bad one names the key and the file.
//! Deliberately absent: pools, networks and images, which the controllers tell, and reloading, since a restart of
//! the agent touches no guest.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tamdao_keeper::core::{LEASE_MAX_MS, LEASE_MIN_MS};

/// The exit code for a bad configuration: `EX_CONFIG` of sysexits.
pub const EXIT_CONFIG: u8 = 78;

/// Where the file is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/tamdao/agent.toml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: `{key}`: {message}", path.display())]
    Invalid { path: PathBuf, key: &'static str, message: String },
}

/// The port for moves between nodes.
pub const MOVES_PORT: u16 = 7444;

/// What runs guests.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// A guest is tried under KVM, and emulation is taken where that does not work.
    #[default]
    Auto,
    Kvm,
    Qemu,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Whether guests may send under foreign addresses.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Spoofing {
    #[default]
    Block,
    /// No packet filter is touched; for hosts that filter elsewhere.
    Allow,
}

/// The file as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    #[serde(default)]
    controllers: Vec<String>,
    data_dir: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
    libvirt_uri: Option<String>,
    #[serde(default)]
    acceleration: Acceleration,
    address: Option<String>,
    metrics_listen: Option<String>,
    moves_listen: Option<String>,
    #[serde(default)]
    moves_bandwidth_mib: u32,
    image_cache_mib: Option<u64>,
    boots_at_once: Option<usize>,
    #[serde(default)]
    log_format: LogFormat,
    #[serde(default)]
    spoofing: Spoofing,
    boot_id_file: Option<PathBuf>,
    keeper_socket: Option<PathBuf>,
    storage_lease_ms: Option<u64>,
}

/// A checked configuration with all defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The node's name in the cluster; the host's name by default. Only used to join.
    pub name: String,
    /// Controllers as host:port, beside those that are learned.
    pub controllers: Vec<String>,
    pub data_dir: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
    pub libvirt_uri: String,
    pub acceleration: Acceleration,
    /// Where other machines reach this node, a name or an address; empty takes the one from which it speaks to controllers.
    pub address: String,
    /// Where /metrics and /healthz are served, in the clear; `None` serves nothing.
    pub metrics_listen: Option<SocketAddr>,
    /// Where other nodes' agents bring guests and fetch them, over mutual TLS; `None` takes no part in moves.
    pub moves_listen: Option<SocketAddr>,
    /// What all moves of this node together may send, MiB a second; 0 does not limit.
    pub moves_bandwidth_mib: u32,
    /// How much the image cache may hold, MiB. Images in use are kept beyond it.
    pub image_cache_mib: u64,
    /// So many guests boot side by side; those of a higher priority first.
    pub boots_at_once: usize,
    pub log_format: LogFormat,
    pub spoofing: Spoofing,
    /// The kernel's boot id; another file lets a test give several nodes of one machine boots of their own.
    pub boot_id_file: PathBuf,
    /// Where the node's keeper listens.
    pub keeper_socket: PathBuf,
    /// How long this node's storage leases are, ms; its keeper's watchdog must fire within a sixth of it.
    pub storage_lease_ms: u64,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, has an unknown key, or a value that cannot be used.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Takes another node name.
    ///
    /// # Errors
    /// It is no DNS label.
    pub fn rename(&mut self, name: String) -> Result<(), String> {
        check_name(&name)?;
        self.name = name;
        Ok(())
    }

    /// Checks a text; `path` is only named in errors.
    ///
    /// # Errors
    /// As for [`Config::load`], but for reading.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        file.check().map_err(|(key, message)| ConfigError::Invalid { path: path.to_owned(), key, message })
    }
}

type Fault = (&'static str, String);

impl File {
    fn check(self) -> Result<Config, Fault> {
        let name = match self.name {
            Some(name) => name,
            None => host_name(),
        };
        check_name(&name).map_err(|message| ("name", message))?;
        for controller in &self.controllers {
            check_host_port(controller).map_err(|message| ("controllers", message))?;
        }
        let data_dir = self.data_dir.unwrap_or_else(|| "/var/lib/tamdao".into());
        let pki = data_dir.join("pki");
        let certificate = self.certificate.unwrap_or_else(|| pki.join("node.crt"));
        let key = self.key.unwrap_or_else(|| pki.join("node.key"));
        let ca = self.ca.unwrap_or_else(|| pki.join("ca.crt"));
        let boot_id_file = self.boot_id_file.unwrap_or_else(|| "/proc/sys/kernel/random/boot_id".into());
        let keeper_socket = self.keeper_socket.unwrap_or_else(|| "/run/tamdao-keeper/socket".into());
        for (field, path) in [
            ("data_dir", &data_dir),
            ("certificate", &certificate),
            ("key", &key),
            ("ca", &ca),
            ("boot_id_file", &boot_id_file),
            ("keeper_socket", &keeper_socket),
        ] {
            if !path.is_absolute() {
                return Err((field, format!("{} is not an absolute path", path.display())));
            }
        }
        let libvirt_uri = self.libvirt_uri.unwrap_or_else(|| "qemu:///system".to_owned());
        if !libvirt_uri.contains(':') {
            return Err(("libvirt_uri", format!("{libvirt_uri:?} is not a libvirt URI")));
        }
        let metrics_listen = match self.metrics_listen.as_deref() {
            None => Some(SocketAddr::from(([127, 0, 0, 1], 9180))),
            Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                ("metrics_listen", format!("{text:?} is not an address and port, such as 127.0.0.1:9180"))
            })?),
        };
        let moves_listen = match self.moves_listen.as_deref() {
            None => Some(SocketAddr::from(([0, 0, 0, 0], MOVES_PORT))),
            Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                ("moves_listen", format!("{text:?} is not an address and port, such as 0.0.0.0:{MOVES_PORT}"))
            })?),
        };
        let image_cache_mib = self.image_cache_mib.unwrap_or(20 * 1024);
        if image_cache_mib < 64 {
            return Err(("image_cache_mib", "less than 64 MiB holds no image".to_owned()));
        }
        let boots_at_once = self.boots_at_once.unwrap_or(8);
        if !(1..=1_000).contains(&boots_at_once) {
            return Err(("boots_at_once", "give 1 to 1000".to_owned()));
        }
        let storage_lease_ms = self.storage_lease_ms.unwrap_or(60_000);
        if !(LEASE_MIN_MS..=LEASE_MAX_MS).contains(&storage_lease_ms) {
            return Err(("storage_lease_ms", format!("give {LEASE_MIN_MS} to {LEASE_MAX_MS}")));
        }
        let address = self.address.unwrap_or_default();
        if address.contains(|c: char| c.is_whitespace() || c == '/') {
            return Err(("address", format!("{address:?} is neither a name nor an address")));
        }
        Ok(Config {
            name,
            controllers: self.controllers,
            data_dir,
            certificate,
            key,
            ca,
            libvirt_uri,
            acceleration: self.acceleration,
            address,
            metrics_listen,
            moves_listen,
            moves_bandwidth_mib: self.moves_bandwidth_mib,
            image_cache_mib,
            boots_at_once,
            log_format: self.log_format,
            spoofing: self.spoofing,
            boot_id_file,
            keeper_socket,
            storage_lease_ms,
        })
    }
}

/// The host's own name up to its first dot.
#[must_use]
pub fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.split('.').next().unwrap_or_default().to_ascii_lowercase()
}

/// A node's name: a DNS label.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 {
        return Err(format!("{name:?} must have 1 to 63 characters"));
    }
    if !name.chars().all(label) || name.starts_with('-') || name.ends_with('-') {
        return Err(format!("{name:?} may only have lower-case letters, digits and inner hyphens"));
    }
    Ok(())
}

/// `host:port` or `[v6]:port`.
pub(crate) fn check_host_port(text: &str) -> Result<(), String> {
    let fault = || format!("{text:?} is not host:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(fault)?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_is_good = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-'),
    };
    if !host_is_good || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err(fault());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_has_all_defaults() {
        let config = parse("name = \"n1\"").expect("defaults are usable");
        assert_eq!(config.data_dir, Path::new("/var/lib/tamdao"));
        assert_eq!(config.key, Path::new("/var/lib/tamdao/pki/node.key"));
        assert_eq!(config.boot_id_file, Path::new("/proc/sys/kernel/random/boot_id"));
        assert_eq!(config.metrics_listen, Some(SocketAddr::from(([127, 0, 0, 1], 9180))));
    }

    #[test]
    fn every_error_names_the_key() {
        for (text, part) in [
            ("name = \"N1\"", "`name`"),
            ("name = \"-a\"", "`name`"),
            ("name = \"a\"\ncontrollers = [\"nowhere\"]", "`controllers`"),
            ("name = \"a\"\ncontrollers = [\"h:0\"]", "`controllers`"),
            ("name = \"a\"\ncontrollers = [\"::1:7443\"]", "`controllers`"),
            ("name = \"a\"\ndata_dir = \"x\"", "`data_dir`"),
            ("name = \"a\"\nkey = \"x\"", "`key`"),
            ("name = \"a\"\nmetrics_listen = \"9180\"", "`metrics_listen`"),
            ("name = \"a\"\nmoves_listen = \"7444\"", "`moves_listen`"),
            ("name = \"a\"\nstorage_lease_ms = 5", "`storage_lease_ms`"),
            ("name = \"a\"\nkeeper_socket = \"x\"", "`keeper_socket`"),
            ("name = \"a\"\nimage_cache_mib = 1", "`image_cache_mib`"),
            ("name = \"a\"\nboots_at_once = 0", "`boots_at_once`"),
            ("name = \"a\"\naddress = \"10.0.0.1/24\"", "`address`"),
            ("name = \"a\"\nlibvirt_uri = \"system\"", "`libvirt_uri`"),
            ("colour = 1", "colour"),
            ("acceleration = \"xen\"", "xen"),
            ("name = 3", "name"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part) && error.contains("agent.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn the_shipped_example_is_good_and_is_the_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/agent.toml");
        let config = Config::load(&path).expect("the example parses");
        assert_eq!(
            config,
            Config {
                name: config.name.clone(),
                controllers: config.controllers.clone(),
                ..parse("name = \"a\"").expect("parses")
            }
        );
    }

    #[test]
    fn v6_controllers_are_bracketed() {
        assert!(check_host_port("[fd00::1]:7443").is_ok());
        assert!(check_host_port("c1.example:7443").is_ok());
        assert!(check_host_port("[c1]:7443").is_err());
    }
}
