//! A restore drill: a backup is restored into a scratch directory by the code that a real restore runs, read back from
//! its disk, and compared with the backup record by record.
//!
//! Its invariant: nothing is left of it, since a restored directory holds the cluster key in the clear. Deliberately
//! absent: where the backup comes from, which is the command line's matter, and starting what was restored.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tamdao_backup::{Entry, Identities, check};
use tamdao_model::cluster::{Cluster, Controller, JoinToken};
use tamdao_model::recovery::Finding;
use tamdao_model::vm::Vm;
use tamdao_model::{ClusterId, Stored, TimeMs};
use tamdao_model::{assignment::Assignment, moves::Move, node::Node, volume::Volume};
use tamdao_store::backend::raft::{OpenError, RaftConfig, RaftStore};
use tamdao_store::view::View;

use crate::backups;
use crate::config::{Config, ConfigError};
use crate::decide::recovery;
use crate::decide::restore::{incarnations, stale};
use crate::identity::{Identity, IdentityError, RAFT};
use crate::restore::{self, RestoreError};

/// A restore removes these: their seats are gone, and what was used up since would work again.
const GONE: [&str; 3] = [Controller::KIND, JoinToken::KIND, Finding::KIND];
/// A restore renews these where they speak of the present.
const RENEWED: [&str; 6] = [Cluster::KIND, Node::KIND, Move::KIND, Assignment::KIND, Volume::KIND, Vm::KIND];

/// Why a backup cannot be drilled. What would be wrong with the restored cloud is no error but a fault.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    #[error("the scratch directory: {0}")]
    Scratch(#[from] std::io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("what was restored cannot be read: {0}")]
    Store(#[from] OpenError),
    #[error("what was restored cannot be read: {0}")]
    Identity(#[from] IdentityError),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drilled {
    /// Of this program, which would do the restore.
    pub version: String,
    /// Records of each kind, in the backup and as restored.
    pub kinds: BTreeMap<String, (u64, u64)>,
    /// Everything that is wrong.
    pub faults: Vec<String>,
}

/// Restores a backup below `base`, looks at what came of it, and removes it.
///
/// # Errors
/// When a real restore would fail, or what it made could not be read.
pub fn drill(file: &[u8], identities: &Identities, base: &Path, now: TimeMs) -> Result<Drilled, DrillError> {
    // Nobody else may look into it, and it goes with this value.
    let scratch = tempfile::Builder::new().prefix("tamdao-drill-").tempdir_in(base)?;
    let data = std::path::absolute(scratch.path())?.join("data");
    let text = format!(
        "name = 'drill'\naddress = 'drill.invalid:7443'\ndata_dir = {:?}",
        data.display().to_string()
    );
    let config = Config::parse(&text, Path::new("(drill)"))?;
    let restored = restore::restore(&config, file, identities, now)?;
    let (_, content) = tamdao_backup::open(file, identities).map_err(RestoreError::from)?;
    let drilled = compare(&config, &content.entries, ClusterId(restored.head.about.cluster))?;
    scratch.close()?;
    Ok(drilled)
}

/// Reads the restored directory as a controller that starts there would, and more thoroughly.
fn compare(config: &Config, before: &[Entry], old: ClusterId) -> Result<Drilled, DrillError> {
    let identity = Identity::of(config)?;
    let settings = RaftConfig::new(config.data_dir.join(RAFT), config.name.as_str(), &config.address);
    let remains = RaftStore::remains(&settings)?;
    let view = View::of(remains.state.revision, remains.state.entries()).map_err(RestoreError::from)?;
    let after: Vec<Entry> = remains.state.entries().map(backups::entry).collect();
    let mut faults = check::faults(&after);
    faults.extend(differences(before, &after));
    faults.extend(speaks_of_the_past(&view, old));
    if remains.cluster != identity.cluster.0 {
        faults.push("the store and the identity are of two clusters".into());
    }
    if let Err(error) = restore::authority(&view, &identity.key) {
        faults.push(format!("the cluster key does not open the CA: {error}"));
    }
    let mut kinds: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    before.iter().for_each(|entry| kinds.entry(kind(&entry.key).to_owned()).or_default().0 += 1);
    after.iter().for_each(|entry| kinds.entry(kind(&entry.key).to_owned()).or_default().1 += 1);
    Ok(Drilled { version: env!("CARGO_PKG_VERSION").into(), kinds, faults })
}

/// Record by record: what a restore has no business with is as it was.
fn differences(before: &[Entry], after: &[Entry]) -> Vec<String> {
    let restored: BTreeMap<&str, &Entry> = after.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let known: BTreeMap<&str, &Entry> = before.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let lost = before.iter().filter_map(|entry| {
        let what = match restored.get(entry.key.as_str()) {
            None if GONE.contains(&of(&entry.key)) => return None,
            None => "is lost",
            Some(_) if GONE.contains(&of(&entry.key)) => "should have gone",
            Some(_) if RENEWED.contains(&kind(&entry.key)) => return None,
            Some(now) if now.value != entry.value => "is another",
            Some(_) => return None,
        };
        Some(format!("{}: {what}", entry.key))
    });
    let new = after.iter().filter(|entry| !known.contains_key(entry.key.as_str()));
    lost.chain(new.map(|entry| format!("{}: is in no backup", entry.key))).collect()
}

/// What must be true of a cloud that was brought back, before any node is told of it.
fn speaks_of_the_past(view: &View, old: ClusterId) -> Vec<String> {
    let mut faults: Vec<String> = stale(view, incarnations(view.revision))
        .into_iter()
        .map(|what| format!("{what:?}: speaks of the present as it was"))
        .collect();
    let former = view.cluster().is_some_and(|cluster| cluster.former.contains(&old) && cluster.id != old);
    if !former || !recovery::is_on(view) {
        faults.push("/cluster/self: does not recover as a new cluster".into());
    }
    faults
}

/// The first part of a key.
fn kind(key: &str) -> &str {
    key.split('/').nth(1).unwrap_or_default()
}

/// The kind that a record is of, or names.
fn of(key: &str) -> &str {
    match kind(key) {
        "name" => key.split('/').nth(2).unwrap_or_default(),
        kind => kind,
    }
}
