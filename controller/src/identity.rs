//! What makes a data directory a controller: its id, its keys, and for a founder the first record of the cluster.
//!
//! Its invariant: a directory either holds a whole identity or none; every file is written aside, fsynced and
//! renamed, and the identity's own file comes last. Secrets are readable by their owner only. Deliberately absent:
//! the seat in the Raft group, which the store makes with its own part of the directory; on etcd, where there are no
//! seats, a number of this directory's own stands for it.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tamdao_model::cluster::Cluster;
use tamdao_model::{ClusterId, ControllerId, Name, TimeMs};
use tamdao_store::cache::Cache;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::config::Config;
use crate::pki::{self, AdminToken, Authority, ClusterKey, Credentials, Holder, PkiError};

/// Where the store of a controller lies that has one of its own.
pub const RAFT: &str = "raft";
/// Where the store of a new group is made ready to take that place; while it is there no controller starts.
pub const RECOVERED: &str = "raft.recovered";
const IDENTITY: &str = "identity.json";
const CLUSTER_KEY: &str = "cluster.key";
const CA: &str = "ca.pem";
const CERTIFICATE: &str = "controller.pem";
const SEED: &str = "bootstrap.json";
const ADMIN_TOKEN: &str = "admin-token";
/// Holds the number of [`member`].
pub const MEMBER: &str = "member";
/// The data format that a new cluster begins with.
const LEVEL: u32 = 1;
/// How often a certificate's age is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3_600);

/// What the data directory says about this controller.
#[derive(Clone)]
pub struct Identity {
    pub id: ControllerId,
    pub name: Name,
    pub cluster: ClusterId,
    /// Opens the sealed fields of the store.
    pub key: ClusterKey,
    /// The CA's certificate, PEM.
    pub ca: String,
    /// The own certificate and private key, PEM, in one text.
    certificate: String,
    /// What the founder has to write as the cluster's first record; None once that is done, and on all others.
    pub seed: Option<Cluster>,
    /// The hosts that the certificate speaks of.
    hosts: Vec<String>,
    directory: PathBuf,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, cluster {})", self.id, self.cluster)
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{0} is not empty; a controller begins with a directory of its own")]
    Used(PathBuf),
    #[error("{0} holds no controller yet; run `tamdao-controller init` or `tamdao-controller join` first")]
    None(PathBuf),
    #[error("a recovery of {0} broke off; run `tamdao-controller recover` again")]
    Unfinished(PathBuf),
    #[error("{0} belongs to controller {1}, but the configuration names it {2}")]
    OtherName(PathBuf, Name, Name),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be believed: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Pki(#[from] PkiError),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    id: ControllerId,
    name: Name,
    cluster: ClusterId,
    hosts: Vec<String>,
}

/// What a new identity is made of, whoever gave it out.
pub struct Given<'a> {
    pub id: ControllerId,
    pub cluster: ClusterId,
    pub key: &'a ClusterKey,
    pub ca: &'a str,
    pub certificate: &'a str,
    pub private_key: &'a str,
    pub seed: Option<&'a Cluster>,
}

/// The hosts that this controller's certificate has to speak of.
pub fn hosts(config: &Config) -> Vec<String> {
    let mut hosts = vec![config.host().to_owned()];
    let listen = config.listen.ip();
    if !listen.is_unspecified() && listen.to_string() != hosts[0] {
        hosts.push(listen.to_string());
    }
    hosts
}

/// Founds a cluster: makes CA, keys, the founder's certificate and the first admin's token, which is returned.
///
/// # Errors
/// When the data directory is used already or cannot be written.
pub fn found(
    config: &Config,
    cluster_name: &str,
    now: TimeMs,
) -> Result<(Identity, AdminToken), IdentityError> {
    claim(&config.data_dir, &[])?;
    let cluster = ClusterId(Uuid::new_v4());
    let key = ClusterKey::generate()?;
    let authority = Authority::generate(cluster, now)?;
    let token = AdminToken::generate()?;
    let seed = Cluster {
        id: cluster,
        name: cluster_name.to_owned(),
        level: LEVEL,
        ca_certificate: authority.pem().to_owned(),
        ca_key: authority.seal(&key)?,
        admin_tokens: vec![token.digest()],
        disarmed: None,
        recovery: None,
        base: 0,
        former: Vec::new(),
    };
    let first = First { cluster, key: &key, authority: &authority, token: &token, seed: Some(&seed) };
    Ok((first.write(config, now)?, token))
}

/// What a cluster's first controller begins with, be it founded or restored.
pub struct First<'a> {
    pub cluster: ClusterId,
    pub key: &'a ClusterKey,
    pub authority: &'a Authority,
    /// Is kept where its operator finds it.
    pub token: &'a AdminToken,
    pub seed: Option<&'a Cluster>,
}

impl First<'_> {
    /// Writes its identity into the claimed data directory, with a certificate of its own.
    ///
    /// # Errors
    /// When the certificate cannot be made or something cannot be written.
    pub fn write(&self, config: &Config, now: TimeMs) -> Result<Identity, IdentityError> {
        let &Self { cluster, key, authority, token, seed } = self;
        let id = ControllerId(Uuid::new_v4());
        let made = pki::request()?;
        let public_key = pki::public_key_of(&made.request)?;
        let holder = Holder::Controller(id);
        let certificate = authority.certify(&public_key, cluster, holder, &hosts(config), now)?;
        let text = format!("{}\n", token.expose());
        write(&config.data_dir.join(ADMIN_TOKEN), text.as_bytes(), Secrecy::Secret)?;
        let (ca, certificate, private_key) = (authority.pem(), certificate.as_str(), made.key.as_str());
        store(config, &Given { id, cluster, key, ca, certificate, private_key, seed })
    }
}

/// Makes sure that a data directory exists and is empty, but for what an earlier attempt may have left.
///
/// # Errors
/// `Used` when it is not empty.
pub fn claim(directory: &Path, left: &[&str]) -> Result<(), IdentityError> {
    let error = |source| IdentityError::File { path: directory.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(error)?;
    for entry in std::fs::read_dir(directory).map_err(error)? {
        // A file system of its own has this one from the start.
        let name = entry.map_err(error)?.file_name();
        if name != "lost+found" && !left.iter().any(|left| name == **left) {
            return Err(IdentityError::Used(directory.to_owned()));
        }
    }
    Ok(())
}

/// The number that stands for a controller where the store has no seats: made with the data directory, gone with it.
///
/// # Errors
/// When it cannot be read or written.
pub fn member(config: &Config) -> Result<u64, IdentityError> {
    let path = config.data_dir.join(MEMBER);
    match read(&path) {
        Ok(text) => {
            let member = String::from_utf8_lossy(&text).trim().parse().ok().filter(|member| *member != 0);
            member.ok_or_else(|| IdentityError::Damaged { path, reason: "it is no number above 0".into() })
        }
        Err(IdentityError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let member = Uuid::new_v4().as_u64_pair().0.max(1);
            write(&path, format!("{member}\n").as_bytes(), Secrecy::Public)?;
            Ok(member)
        }
        Err(error) => Err(error),
    }
}

/// Writes a new identity into the data directory.
///
/// # Errors
/// When it cannot be written.
pub fn store(config: &Config, given: &Given<'_>) -> Result<Identity, IdentityError> {
    let directory = &config.data_dir;
    write(&directory.join(CLUSTER_KEY), given.key.expose(), Secrecy::Secret)?;
    write(&directory.join(CA), given.ca.as_bytes(), Secrecy::Public)?;
    let certificate = format!("{}{}", given.certificate, given.private_key);
    write(&directory.join(CERTIFICATE), certificate.as_bytes(), Secrecy::Secret)?;
    if let Some(seed) = given.seed {
        let seed = serde_json::to_vec_pretty(seed).expect("a record is plain data");
        write(&directory.join(SEED), &seed, Secrecy::Secret)?;
    }
    let (id, name, cluster) = (given.id, config.name.clone(), given.cluster);
    IdentityFile { id, name, cluster, hosts: hosts(config) }.write(directory)?;
    load(directory)
}

impl IdentityFile {
    fn write(&self, directory: &Path) -> Result<(), IdentityError> {
        let file = serde_json::to_vec_pretty(self).expect("an identity is plain data");
        write(&directory.join(IDENTITY), &file, Secrecy::Secret)
    }
}

/// Reads what a data directory says.
///
/// # Errors
/// `None` when it holds no controller; `Damaged` when it holds half of one.
pub fn load(directory: &Path) -> Result<Identity, IdentityError> {
    let file = match read(&directory.join(IDENTITY)) {
        Err(IdentityError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(IdentityError::None(directory.to_owned()));
        }
        file => file?,
    };
    let damaged = |name: &str, reason: String| IdentityError::Damaged { path: directory.join(name), reason };
    let file: IdentityFile =
        serde_json::from_slice(&file).map_err(|error| damaged(IDENTITY, error.to_string()))?;
    let text = |name: &'static str| {
        String::from_utf8(read(&directory.join(name))?).map_err(|error| damaged(name, error.to_string()))
    };
    let seed = match read(&directory.join(SEED)) {
        Ok(seed) => Some(serde_json::from_slice(&seed).map_err(|e| damaged(SEED, e.to_string()))?),
        Err(IdentityError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(Identity {
        id: file.id,
        name: file.name,
        cluster: file.cluster,
        key: ClusterKey::from_bytes(&read(&directory.join(CLUSTER_KEY))?)?,
        ca: text(CA)?,
        certificate: text(CERTIFICATE)?,
        seed,
        hosts: file.hosts,
        directory: directory.to_owned(),
    })
}

impl Identity {
    /// The identity in the configuration's data directory, which must be of the configured name.
    ///
    /// # Errors
    /// As [`Self::named`]; `Unfinished` when a recovery of it broke off.
    pub fn of(config: &Config) -> Result<Self, IdentityError> {
        match config.data_dir.join(RECOVERED).exists() {
            true => Err(IdentityError::Unfinished(config.data_dir.clone())),
            false => Self::named(config),
        }
    }

    /// The same, even where a recovery broke off.
    ///
    /// # Errors
    /// As [`load`]; `OtherName`.
    pub fn named(config: &Config) -> Result<Self, IdentityError> {
        let identity = load(&config.data_dir)?;
        match identity.name == config.name {
            true => Ok(identity),
            false => {
                let (path, name) = (config.data_dir.clone(), identity.name);
                Err(IdentityError::OtherName(path, name, config.name.clone()))
            }
        }
    }

    /// The certificate as TLS uses it.
    ///
    /// # Errors
    /// When certificate and key do not belong together.
    pub fn credentials(&self) -> Result<Credentials, IdentityError> {
        Ok(Credentials::new(&self.ca, &self.certificate, &self.certificate)?)
    }

    /// Belongs to another cluster from now on, under the same certificate and key.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn belong_to(&mut self, cluster: ClusterId) -> Result<(), IdentityError> {
        self.cluster = cluster;
        self.file().write(&self.directory)
    }

    fn file(&self) -> IdentityFile {
        let (name, hosts) = (self.name.clone(), self.hosts.clone());
        IdentityFile { id: self.id, name, cluster: self.cluster, hosts }
    }

    /// Forgets the seed, once the cluster's record is committed.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn founded(&mut self) -> Result<(), IdentityError> {
        if self.seed.take().is_some() {
            let path = self.directory.join(SEED);
            std::fs::remove_file(&path).map_err(|source| IdentityError::File { path, source })?;
        }
        Ok(())
    }
}

/// Replaces the own certificate before it ends, and when the hosts have changed. Any controller can sign for
/// itself, because the CA's key is in the store.
pub struct Renewer {
    pub identity: Identity,
    /// What the certificate should speak of, by [`hosts`].
    pub hosts: Vec<String>,
    pub credentials: Credentials,
    pub cache: Cache,
    pub clock: Arc<dyn Clock>,
}

impl Renewer {
    /// Works until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            match self.pass() {
                Ok(true) => tracing::info!("certificate renewed"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "certificate cannot be renewed"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.clock.sleep(RENEWAL_CHECK) => {}
            }
        }
    }

    /// Renews if it is time to; says whether it did.
    ///
    /// # Errors
    /// When the CA cannot be opened or the new certificate cannot be kept.
    pub fn pass(&mut self) -> Result<bool, IdentityError> {
        let now = self.clock.now();
        let due = pki::renewal_time(&self.credentials.certificate())?;
        let view = self.cache.view();
        // Before the first list of the store there is nothing to sign with; the next pass comes soon enough.
        let Some(cluster) = view.cluster().filter(|_| now >= due || self.hosts != self.identity.hosts) else {
            return Ok(false);
        };
        let authority = Authority::open(&cluster.ca_certificate, &cluster.ca_key, &self.identity.key)?;
        let made = pki::request()?;
        let public_key = pki::public_key_of(&made.request)?;
        let holder = Holder::Controller(self.identity.id);
        let leaf = authority.certify(&public_key, cluster.id, holder, &self.hosts, now)?;
        let text = format!("{leaf}{}", made.key);
        write(&self.identity.directory.join(CERTIFICATE), text.as_bytes(), Secrecy::Secret)?;
        self.credentials.replace(&leaf, &made.key)?;
        let renewed = Identity { hosts: self.hosts.clone(), certificate: text, ..self.identity.clone() };
        renewed.file().write(&renewed.directory)?;
        self.identity = renewed;
        Ok(true)
    }
}

#[derive(Clone, Copy)]
enum Secrecy {
    Secret,
    Public,
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

/// Writes a file as a whole or not at all.
fn write(path: &Path, bytes: &[u8], secrecy: Secrecy) -> Result<(), IdentityError> {
    let aside = path.with_extension("tmp");
    let mode = match secrecy {
        Secrecy::Secret => 0o600,
        Secrecy::Public => 0o644,
    };
    let written = || -> std::io::Result<()> {
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(directory)?.sync_all()
    };
    written().map_err(|source| IdentityError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(directory: &Path) -> Config {
        let text = format!("name = 'c1'\naddress = 'c1.example:7443'\ndata_dir = '{}'", directory.display());
        Config::parse(&text, Path::new("c.toml")).unwrap()
    }

    #[test]
    fn a_founder_finds_itself_again() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory.path().join("data"));
        let (made, token) = found(&config, "north", TimeMs(1_800_000_000_000)).unwrap();
        let mut again = Identity::of(&config).unwrap();
        assert_eq!((made.id, made.cluster), (again.id, again.cluster));
        assert!(again.credentials().is_ok());
        let seed = again.seed.clone().unwrap();
        assert_eq!((seed.name.as_str(), &seed.admin_tokens), ("north", &vec![token.digest()]));
        assert!(Authority::open(&seed.ca_certificate, &seed.ca_key, &again.key).is_ok());
        let kept = std::fs::read_to_string(config.data_dir.join(ADMIN_TOKEN)).unwrap();
        assert_eq!(kept.trim(), token.expose());
        again.founded().unwrap();
        assert!(load(&config.data_dir).unwrap().seed.is_none());
    }

    #[test]
    fn secrets_are_their_owners_only() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory.path().join("data"));
        found(&config, "north", TimeMs(1_800_000_000_000)).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&config.data_dir), 0o700);
        for name in [CLUSTER_KEY, CERTIFICATE, SEED, ADMIN_TOKEN, IDENTITY] {
            assert_eq!(mode(&config.data_dir.join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn a_used_directory_and_another_name_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        assert!(matches!(Identity::of(&config), Err(IdentityError::None(_))));
        found(&config, "north", TimeMs(1)).unwrap();
        assert!(matches!(found(&config, "north", TimeMs(1)), Err(IdentityError::Used(_))));
        config.name = Name::new("c2").unwrap();
        assert!(matches!(Identity::of(&config), Err(IdentityError::OtherName(..))));
        std::fs::remove_file(config.data_dir.join(CLUSTER_KEY)).unwrap();
        assert!(load(&config.data_dir).unwrap_err().to_string().contains(CLUSTER_KEY));
    }
}
