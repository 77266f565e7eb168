//! What a guest is told at its first boot: the NoCloud seed, an ISO 9660 image labelled `cidata` with meta-data,
//! user-data and network-config (version 2).
//!
//! Invariants: the texts are pure functions of the entry; a user's own user data passes through byte for byte; a
//! seed is complete or not there. Deliberately absent: vendor data, and any change of a seed while its guest runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tamdao_proto::agent::v1::{CloudInit, MachineInterface};
use tokio::process::Command;

/// The longest user data, bytes; the public contract's limit.
const USER_DATA_MAX: usize = 48 * 1024;

/// Who gets the keys when the user brings no user data.
const DEFAULT_USER: &str = "debian";

/// How cloud-init tells the forms of user data apart: by their first characters.
const HEADERS: &[&str] = &[
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
    "Content-Type:",
    "content-type:",
    "MIME-Version:",
    "From nobody",
];

#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("user_data must begin with #cloud-config, #! or another header of cloud-init's, not {0:?}")]
    Header(String),
    #[error("user_data has {0} bytes; {USER_DATA_MAX} are allowed")]
    TooLong(usize),
    #[error("interface {mac}: {message}")]
    Interface { mac: String, message: String },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("genisoimage: {0}")]
    Iso(String),
    #[error("cannot write the seed's text: {0}")]
    Text(#[from] serde_yaml_ng::Error),
}

impl SeedError {
    /// It will not pass before the entry changes.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Header(_) | Self::TooLong(_) | Self::Interface { .. })
    }
}

/// The seed's three files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub meta_data: String,
    pub user_data: String,
    pub network_config: String,
}

#[derive(Serialize)]
struct MetaData<'a> {
    #[serde(rename = "instance-id")]
    instance_id: &'a str,
    #[serde(rename = "local-hostname")]
    local_hostname: &'a str,
    #[serde(rename = "public-keys", skip_serializing_if = "<[String]>::is_empty")]
    public_keys: &'a [String],
}

#[derive(Serialize)]
struct UserData<'a> {
    hostname: &'a str,
    users: [User<'a>; 1],
    ssh_pwauth: bool,
    disable_root: bool,
}

#[derive(Serialize)]
struct User<'a> {
    name: &'static str,
    gecos: &'static str,
    groups: [&'static str; 2],
    shell: &'static str,
    sudo: [&'static str; 1],
    lock_passwd: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    ssh_authorized_keys: &'a [String],
}

#[derive(Serialize)]
struct Network {
    version: u8,
    ethernets: BTreeMap<String, Ethernet>,
}

#[derive(Serialize)]
struct Ethernet {
    #[serde(rename = "match")]
    matched: Match,
    #[serde(rename = "set-name")]
    set_name: String,
    dhcp4: bool,
    dhcp6: bool,
    #[serde(rename = "accept-ra")]
    accept_ra: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nameservers: Option<Nameservers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
}

#[derive(Serialize)]
struct Match {
    macaddress: String,
}

#[derive(Serialize)]
struct Route {
    to: &'static str,
    via: String,
}

#[derive(Serialize)]
struct Nameservers {
    addresses: Vec<String>,
}

/// The seed's texts for one VM.
///
/// # Errors
/// The user data has no header that cloud-init knows or is too long, or an address is none.
pub fn seed(told: &CloudInit, interfaces: &[MachineInterface]) -> Result<Seed, SeedError> {
    let meta = MetaData {
        instance_id: &told.instance_id,
        local_hostname: &told.hostname,
        public_keys: &told.ssh_keys,
    };
    let user_data = if told.user_data.is_empty() {
        default_user_data(told)?
    } else {
        check_user_data(&told.user_data)?;
        told.user_data.clone()
    };
    Ok(Seed {
        meta_data: serde_yaml_ng::to_string(&meta)?,
        user_data,
        network_config: network_config(interfaces)?,
    })
}

fn default_user_data(told: &CloudInit) -> Result<String, SeedError> {
    let user = User {
        name: DEFAULT_USER,
        gecos: "Debian",
        groups: ["adm", "sudo"],
        shell: "/bin/bash",
        sudo: ["ALL=(ALL) NOPASSWD:ALL"],
        lock_passwd: true,
        ssh_authorized_keys: &told.ssh_keys,
    };
    let data = UserData { hostname: &told.hostname, users: [user], ssh_pwauth: false, disable_root: true };
    Ok(format!("#cloud-config\n{}", serde_yaml_ng::to_string(&data)?))
}

fn check_user_data(text: &str) -> Result<(), SeedError> {
    if text.len() > USER_DATA_MAX {
        return Err(SeedError::TooLong(text.len()));
    }
    if HEADERS.iter().any(|header| text.starts_with(header)) {
        return Ok(());
    }
    // Only the first few characters: user data may hold secrets, and this goes into a status.
    Err(SeedError::Header(text.chars().take(12).collect()))
}

fn network_config(interfaces: &[MachineInterface]) -> Result<String, SeedError> {
    let mut ethernets = BTreeMap::new();
    for (index, interface) in interfaces.iter().enumerate() {
        let bad = |message: String| SeedError::Interface { mac: interface.mac.clone(), message };
        for address in &interface.addresses {
            let (bare, length) =
                address.split_once('/').ok_or_else(|| bad(format!("{address} has no prefix length")))?;
            let ip: std::net::IpAddr = bare.parse().map_err(|_| bad(format!("{address} is no address")))?;
            let most = if ip.is_ipv4() { 32 } else { 128 };
            if length.parse::<u8>().map_or(true, |length| length > most) {
                return Err(bad(format!("{address} has no good prefix length")));
            }
        }
        let mut routes = Vec::new();
        for gateway in &interface.gateways {
            let ip: std::net::IpAddr =
                gateway.parse().map_err(|_| bad(format!("gateway {gateway} is no address")))?;
            // cloud-init renders "default" differently per family and release; the prefix is understood by all.
            let to = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            routes.push(Route { to, via: gateway.clone() });
        }
        let nameservers = (!interface.dns_servers.is_empty())
            .then(|| Nameservers { addresses: interface.dns_servers.clone() });
        let name = format!("eth{index}");
        let ethernet = Ethernet {
            matched: Match { macaddress: interface.mac.to_ascii_lowercase() },
            set_name: name.clone(),
            dhcp4: false,
            dhcp6: false,
            accept_ra: false,
            addresses: interface.addresses.clone(),
            routes,
            nameservers,
            mtu: (interface.mtu != 0).then_some(interface.mtu),
        };
        ethernets.insert(name, ethernet);
    }
    Ok(serde_yaml_ng::to_string(&Network { version: 2, ethernets })?)
}

/// Writes the ISO to `path`, aside and then renamed. It holds secrets: only root reads it, and whom libvirt lets.
///
/// # Errors
/// A file cannot be written, or `genisoimage` is missing or fails.
pub async fn write_iso(path: &Path, seed: &Seed) -> Result<(), SeedError> {
    use std::os::unix::fs::PermissionsExt;
    let io = |source| SeedError::Io { path: path.to_owned(), source };
    let parent = path.parent().ok_or_else(|| io(std::io::Error::other("no directory")))?;
    let aside = tempfile::Builder::new().prefix(".seed").tempdir_in(parent).map_err(io)?;
    for (name, text) in [
        ("meta-data", &seed.meta_data),
        ("user-data", &seed.user_data),
        ("network-config", &seed.network_config),
    ] {
        tokio::fs::write(aside.path().join(name), text).await.map_err(io)?;
    }
    let iso = aside.path().join("seed.iso");
    let output = Command::new("genisoimage")
        .args(["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"])
        .arg(&iso)
        .args(["meta-data", "user-data", "network-config"])
        .current_dir(aside.path())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| SeedError::Iso(error.to_string()))?;
    if !output.status.success() {
        return Err(SeedError::Iso(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    tokio::fs::set_permissions(&iso, std::fs::Permissions::from_mode(0o600)).await.map_err(io)?;
    tokio::fs::File::open(&iso).await.map_err(io)?.sync_all().await.map_err(io)?;
    tokio::fs::rename(&iso, path).await.map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(user_data: &str) -> CloudInit {
        CloudInit {
            instance_id: "00000000-0000-0000-0000-000000000007".into(),
            hostname: "web".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA an: odd #comment".into()],
            user_data: user_data.into(),
        }
    }

    fn interfaces() -> Vec<MachineInterface> {
        vec![
            MachineInterface {
                mac: "52:54:00:AA:00:01".into(),
                mtu: 1450,
                addresses: vec!["10.20.0.7/24".into(), "fd00::7/64".into()],
                gateways: vec!["10.20.0.1".into(), "fd00::1".into()],
                dns_servers: vec!["10.20.0.2".into()],
                ..Default::default()
            },
            MachineInterface {
                mac: "52:54:00:aa:00:02".into(),
                addresses: vec!["192.168.9.7/24".into()],
                ..Default::default()
            },
        ]
    }

    fn show(seed: &Seed) -> String {
        format!(
            "-- meta-data\n{}-- user-data\n{}-- network-config\n{}",
            seed.meta_data, seed.user_data, seed.network_config
        )
    }

    #[test]
    fn the_default_seed_reads() {
        insta::assert_snapshot!(show(&seed(&told(""), &interfaces()).unwrap()));
    }

    #[test]
    fn own_user_data_passes_through_and_keys_go_by_meta_data() {
        let own = "#cloud-config\n# mine\nruncmd: [date]\n";
        let seed = seed(&told(own), &[]).unwrap();
        assert_eq!(seed.user_data, own);
        assert!(seed.meta_data.contains("public-keys"));
    }

    #[test]
    fn user_data_without_a_header_is_refused_without_showing_it() {
        let error = seed(&told("password: hunter2-and-more"), &[]).unwrap_err();
        assert!(error.is_permanent() && !error.to_string().contains("hunter2-and"), "{error}");
        let long = format!("#!{}", "x".repeat(USER_DATA_MAX));
        assert!(matches!(seed(&told(&long), &[]), Err(SeedError::TooLong(_))));
    }

    #[test]
    fn a_bad_address_names_its_interface() {
        let mut wrong = interfaces();
        wrong[0].addresses = vec!["10.20.0.7".into()];
        let error = seed(&told(""), &wrong).unwrap_err().to_string();
        assert!(error.contains("52:54:00:AA:00:01"), "{error}");
    }

    #[tokio::test]
    async fn the_iso_holds_what_was_put_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.iso");
        write_iso(&path, &seed(&told(""), &interfaces()).unwrap()).await.unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // The primary volume descriptor is sector 16; its label stands 40 bytes in.
        assert_eq!(&bytes[16 * 2048 + 1..16 * 2048 + 6], b"CD001");
        assert_eq!(&bytes[16 * 2048 + 40..16 * 2048 + 46], b"cidata");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("local-hostname: web") && text.contains("macaddress: 52:54:00:aa:00:01"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
