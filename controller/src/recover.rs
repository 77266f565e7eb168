//! From the last survivor of a group that lost its majority to the first controller of a new one.
//!
//! Its invariants: nothing that the survivor ever acknowledged is left out; nothing is written before its data are
//! proven whole and openable; and at every moment a broken-off recovery leaves either the old group's controller or the
//! new one's, never half of both: the new store is made ready aside, the identity then names the new cluster, and only
//! after that the stores change places, which is done again where it was not. Deliberately absent: what becomes of the
//! records (`decide::restore`), and choosing among survivors, which is the operator's.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tamdao_model::recovery::Cause;
use tamdao_model::{ClusterId, TimeMs};
use tamdao_store::backend::raft::{OpenError, RaftConfig, RaftStore, Remains};
use tamdao_store::kv::Revision;
use tamdao_store::view::View;
use uuid::Uuid;

use crate::config::{Backend, Config};
use crate::decide::restore::Renewed;
use crate::identity::{Identity, IdentityError, RAFT, RECOVERED};
use crate::restore::{self, Begun, RestoreError};

/// Why no group is made of this controller.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("with store.backend = \"raft\" only; members of an etcd are its own to recover")]
    Backend,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("its store is not whole, or in use: {0}")]
    Store(#[from] OpenError),
    #[error("its store is of cluster {0}, and its identity of {1}")]
    OtherCluster(ClusterId, ClusterId),
    #[error("its records: {0}")]
    Records(#[from] RestoreError),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// What a data directory holds.
pub enum Found {
    Survivor(Box<Survivor>),
    /// A recovery that had broken off after it could not be undone any more: it is completed now, as this cluster.
    Completed(ClusterId),
}

/// A controller that does not run, and all that it has of its group. Nothing else can open it meanwhile.
pub struct Survivor {
    pub identity: Identity,
    pub remains: Remains,
    /// Its records, those too that it did not know to be committed.
    pub view: View,
    settings: RaftConfig,
    data_dir: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub struct Recovered {
    pub identity: Identity,
    /// From where revisions count.
    pub base: Revision,
    /// Where the old group's data lie now.
    pub old: PathBuf,
}

/// Looks at the configuration's data directory, and changes nothing that matters.
///
/// # Errors
/// When a process has it open, when it holds no member of a group, or when anything in it is missing or altered.
pub fn look(config: &Config) -> Result<Found, RecoverError> {
    if !matches!(config.store.backend, Backend::Raft) {
        return Err(RecoverError::Backend);
    }
    let identity = Identity::named(config)?;
    let settings = |directory: &str| {
        RaftConfig::new(config.data_dir.join(directory), config.name.as_str(), &config.address)
    };
    let made = settings(RECOVERED);
    let begun = made.directory.exists();
    if begun && RaftStore::remains(&made).is_ok_and(|made| made.cluster == identity.cluster.0) {
        swap(&config.data_dir, identity.cluster)?;
        return Ok(Found::Completed(identity.cluster));
    }
    let remains = RaftStore::remains(&settings(RAFT))?;
    if remains.cluster != identity.cluster.0 {
        return Err(RecoverError::OtherCluster(ClusterId(remains.cluster), identity.cluster));
    }
    if begun {
        let path = made.directory.clone();
        fs::remove_dir_all(&path).map_err(|source| RecoverError::File { path, source })?;
    }
    let view = View::of(remains.state.revision, remains.state.entries()).map_err(RestoreError::from)?;
    // The key must open what it has to open later, while there is still a way back.
    restore::authority(&view, &identity.key)?;
    let data_dir = config.data_dir.clone();
    Ok(Found::Survivor(Box::new(Survivor { identity, remains, view, settings: made, data_dir })))
}

impl Survivor {
    /// What an operator has to know before he gives up all others.
    pub fn describe(&self) -> Vec<String> {
        let Remains { member, members, last: (term, entry), open, state, .. } = &self.remains;
        let name = self.view.cluster().map(|cluster| cluster.name.clone()).unwrap_or_default();
        let mut lines = vec![format!(
            "cluster {name} ({}), as controller {} knew it last:",
            self.identity.cluster, self.identity.name
        )];
        lines.extend(members.iter().map(|one| {
            let what = if one.voter { "" } else { ", did not vote" };
            let this = if one.id == *member { ", this one" } else { "" };
            format!("  {} at {}{what}{this}", one.name, one.address)
        }));
        lines.push(format!(
            "its log ends with term {term}, entry {entry}; {} records at revision {}",
            state.len(),
            state.revision
        ));
        if *open > 0 {
            lines.push(format!(
                "its last {open} entries were not known here to be committed; they are kept, since they may be"
            ));
        }
        if self.remains.term > *term {
            lines.push(format!(
                "it has heard of term {} and has no entry of it: others may have acknowledged what is missing here",
                self.remains.term
            ));
        }
        lines
    }

    /// Makes it the first controller of a new group, which recovers. The old group's data stay beside the new ones.
    ///
    /// # Errors
    /// When the records contradict themselves or something cannot be written.
    pub fn recover(self, now: TimeMs) -> Result<Recovered, RecoverError> {
        let Self { mut identity, remains, settings, data_dir, .. } = self;
        let cluster = ClusterId(Uuid::new_v4());
        let new = Renewed {
            cluster,
            cause: Cause::Survivor,
            token: None,
            backup_time: TimeMs(0),
            revision: remains.state.revision.0,
        };
        let entries = remains.state.entries().collect();
        let Begun { base, state, .. } = restore::begin(entries, remains.state.level, now, &new)?;
        RaftStore::found_from(&settings, cluster.0, state)?;
        identity.belong_to(cluster)?;
        let old = swap(&data_dir, cluster)?;
        Ok(Recovered { identity, base, old })
    }
}

/// Puts the new store where the old one was. Says where that is now.
fn swap(data_dir: &Path, cluster: ClusterId) -> Result<PathBuf, RecoverError> {
    let (raft, made) = (data_dir.join(RAFT), data_dir.join(RECOVERED));
    let old = data_dir.join(format!("{RAFT}.before-{cluster}"));
    let wrong = |path: &Path| {
        let path = path.to_owned();
        |source| RecoverError::File { path, source }
    };
    if raft.exists() {
        fs::rename(&raft, &old).map_err(wrong(&raft))?;
    }
    fs::rename(&made, &raft).map_err(wrong(&made))?;
    File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(wrong(data_dir))?;
    Ok(old)
}

#[cfg(test)]
#[path = "recover_tests.rs"]
mod tests;
