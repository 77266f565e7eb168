//! From a backup to the first controller of a cloud that recovers.
//!
//! Its invariant: nothing is written before the backup is proven whole, readable and openable; the identity's own file
//! comes last, so that a restore that broke off leaves no controller. What comes out recovers: there is no way around
//! that. Deliberately absent: what becomes of the records (`decide::restore`), and stores that are not of controllers.

use tamdao_backup::{BackupError, Entry, Head, Identities, check};
use tamdao_model::recovery::Cause;
use tamdao_model::{ClusterId, TimeMs};
use tamdao_store::backend::raft::{OpenError, RaftConfig, RaftStore};
use tamdao_store::kv::{Entry as Stored, Key, Revision, StoreError};
use tamdao_store::mvcc::{self, Applied, Command, Mvcc};
use tamdao_store::typed::Draft;
use tamdao_store::view::{Unreadable, View};
use uuid::Uuid;

use crate::config::{Backend, Config};
use crate::decide::restore::{self as decide, Renewed};
use crate::identity::{self, First, Identity, IdentityError};
use crate::pki::{AdminToken, Authority, ClusterKey, PkiError};
use crate::refusal::Refusal;

/// Faults that are told.
const TOLD: usize = 5;

/// Why a cloud is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("the backup's records are not what this version can run on: {0}")]
    Records(String),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("a backup is restored onto store.backend = \"raft\" only; move the cloud to etcd afterwards")]
    Backend,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the store cannot be made: {0}")]
    Open(#[from] OpenError),
}

/// What came of it.
#[derive(Debug)]
pub struct Restored {
    pub identity: Identity,
    /// A new admin's token. Those of the backup work too.
    pub token: AdminToken,
    pub head: Head,
    /// From where revisions count.
    pub base: Revision,
}

/// Makes the configuration's data directory that of a cloud's first controller, from a backup.
///
/// # Errors
/// When the backup cannot be believed or read, the store is another than Raft, or the directory is used.
pub fn restore(
    config: &Config,
    file: &[u8],
    identities: &Identities,
    now: TimeMs,
) -> Result<Restored, RestoreError> {
    if !matches!(config.store.backend, Backend::Raft) {
        return Err(RestoreError::Backend);
    }
    let (head, content) = tamdao_backup::open(file, identities)?;
    let faults = check::faults(&content.entries);
    if !faults.is_empty() {
        let told: Vec<&str> = faults.iter().take(TOLD).map(String::as_str).collect();
        return Err(RestoreError::Records(format!("{} faults: {}", faults.len(), told.join("; "))));
    }
    let (cluster, token) = (ClusterId(Uuid::new_v4()), AdminToken::generate()?);
    let new = Renewed {
        cluster,
        cause: Cause::Restored,
        token: Some(token.digest()),
        backup_time: TimeMs(head.about.time_ms),
        revision: head.about.revision,
    };
    let entries = content.entries.iter().map(stored).collect::<Result<Vec<_>, StoreError>>()?;
    let Begun { base, state, view } = begin(entries, head.about.level, now, &new)?;
    let key = ClusterKey::from_bytes(&content.cluster_key)?;
    let authority = authority(&view, &key)?;
    identity::claim(&config.data_dir, &[])?;
    let settings =
        RaftConfig::new(config.data_dir.join(identity::RAFT), config.name.as_str(), &config.address);
    RaftStore::found_from(&settings, cluster.0, state)?;
    let first = First { cluster, key: &key, authority: &authority, token: &token, seed: None };
    Ok(Restored { identity: first.write(config, now)?, token, head, base })
}

/// The CA of the records, which proves that the key opens them.
pub(crate) fn authority(view: &View, key: &ClusterKey) -> Result<Authority, RestoreError> {
    let record = view.cluster().ok_or_else(|| RestoreError::Records("there is no cluster".into()))?;
    Ok(Authority::open(&record.ca_certificate, &record.ca_key, key)?)
}

fn stored(entry: &Entry) -> Result<Stored, StoreError> {
    Ok(Stored {
        key: Key::new(&entry.key)?,
        value: entry.value.clone(),
        create_revision: Revision(entry.create_revision),
        mod_revision: Revision(entry.mod_revision),
    })
}

/// Records of the past as a store begins with them.
pub(crate) struct Begun {
    /// From where its revisions count: above all that agents can have been told.
    pub base: Revision,
    pub state: mvcc::View,
    pub view: View,
}

/// Renews the records by one commit after the base.
pub(crate) fn begin(
    entries: Vec<Stored>,
    level: u32,
    now: TimeMs,
    new: &Renewed,
) -> Result<Begun, RestoreError> {
    let before = View::of(Revision(new.revision), entries.iter().cloned())?;
    let told = before.cluster().map_or(0, |cluster| cluster.base) + new.revision;
    let base = decide::base(Revision(told));
    let mut draft = Draft::new(View::of(base, entries.iter().cloned())?, Uuid::new_v4());
    decide::renew(&mut draft, now, new)?;
    let view = draft.view().clone();
    let mut store = Mvcc::from(mvcc::View::from_entries(base, level, entries));
    match store.apply(Command::Txn(draft.into_txn([]))) {
        Applied::Committed(_) => Ok(Begun { base, state: store.view(), view }),
        other => Err(RestoreError::Records(format!("they contradict themselves: {other:?}"))),
    }
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
