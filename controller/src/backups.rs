//! Backups as a controller takes them: all records at one revision and the cluster key, encrypted before they leave this
//! process; and what the leader knows of those that it makes by itself.
//!
//! Its invariant: the leader's knowledge is memory, and may be lost at any time: what is due is read from the destination
//! and the clock. Deliberately absent: when one is made and which are removed (`reconcile/archivist.rs`).

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tamdao_backup::{About, Access, Content, Entry, Keep, Place, Recipients};
use tamdao_model::TimeMs;
use tamdao_store::kv::{Entry as Stored, Key, Prefix, Read};

use crate::refusal::Refusal;
use crate::shared::Shared;

/// A backup is missed when the newest good one is older than so many periods.
const PERIODS: u64 = 2;

/// What the configuration says of backups that are made by themselves.
#[derive(Debug, Clone)]
pub struct Settings {
    pub place: Place,
    pub access: Access,
    pub recipients: Recipients,
    pub every: Duration,
    pub keep: Keep,
}

impl Settings {
    /// The period, ms.
    pub fn every_ms(&self) -> u64 {
        u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether there should have been a newer good backup than the newest.
    pub fn is_overdue(&self, newest: Option<TimeMs>, now: TimeMs) -> bool {
        newest.is_none_or(|newest| now.since(newest) > self.every_ms().saturating_mul(PERIODS))
    }
}

/// What came of the leader's last look at the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When the newest good backup of this cluster was taken.
    pub newest: Option<TimeMs>,
    /// When the next is due.
    pub next: Option<TimeMs>,
    /// Why the last look failed; empty when it did not.
    pub error: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Backups {
    /// None where none are made by themselves.
    pub settings: Option<Settings>,
    outcome: Mutex<Outcome>,
}

impl Backups {
    pub fn new(settings: Option<Settings>) -> Self {
        Self { settings, outcome: Mutex::default() }
    }

    /// What came of the last look; only the leader looks.
    pub fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().expect("no holder of the lock panics")
    }
}

/// One backup, the whole file.
///
/// # Errors
/// When the store does not answer, or the system gives no random numbers.
pub async fn take(shared: &Shared, recipients: Recipients) -> Result<Bytes, Refusal> {
    let (entries, revision) = shared.kv.list(&Prefix::all(), Read::Linearizable).await?;
    let view = shared.cache.view();
    let cluster = view.cluster().ok_or_else(|| Refusal::unavailable("the cluster is being made"))?;
    let about = About {
        cluster: cluster.id.0,
        cluster_name: cluster.name.clone(),
        revision: revision.0,
        level: shared.kv.status().level.max(cluster.level),
        time_ms: shared.clock.now().0,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let cluster_key = *shared.key.expose();
    // A large cloud's records take a while, in which others want to be served.
    let written = tokio::task::spawn_blocking(move || {
        // Who leads is of no interest to a cloud that has other controllers.
        let entries = entries.into_iter().filter(|entry| entry.key != Key::leader());
        let content = Content { cluster_key, entries: entries.map(entry).collect() };
        tamdao_backup::write(about, &content, &recipients)
    });
    let file =
        written.await.map_err(|error| Refusal::internal(format!("the backup ended early: {error}")))?;
    Ok(Bytes::from(file.map_err(|error| Refusal::internal(error.to_string()))?))
}

/// A record of the store as a backup holds it.
pub fn entry(stored: Stored) -> Entry {
    Entry {
        key: stored.key.as_str().to_owned(),
        value: stored.value,
        create_revision: stored.create_revision.0,
        mod_revision: stored.mod_revision.0,
    }
}
