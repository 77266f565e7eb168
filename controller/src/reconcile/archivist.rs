//! The archivist: makes a backup when one is due, and removes those that are not needed any more.
//!
//! Its invariants: what is due follows from the destination and the clock alone, so a new leader goes on where the old
//! one was; a backup counts from when it was read back whole; nothing is removed but what a schedule made of this
//! cluster, is whole, and is older than one that is. Deliberately absent: which those are (`tamdao_backup::schedule`).

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use metrics::{counter, gauge};
use sha2::{Digest, Sha256};
use tamdao_backup::schedule::{expendable, is_due};
use tamdao_backup::{BackupName, Destination, DestinationError, Found, Verdict};
use tamdao_model::TimeMs;
use tamdao_model::event::Severity;
use tokio::time::Instant;
use uuid::Uuid;

use super::Loop;
use crate::backups::{Outcome, Settings, take};
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// How often it looks whether it is time to look.
const LOOK: Duration = Duration::from_secs(5);
/// After what failed; sooner where one is wanted more often.
const RETRY: Duration = Duration::from_secs(60);

/// See the module.
pub struct Archivist {
    period: Duration,
    /// What the files of the destination are, so that none is read twice.
    known: Vec<(Found, Verdict)>,
    next_look: Option<Instant>,
    failed: bool,
    told_overdue: bool,
    told_damaged: BTreeSet<String>,
}

/// What one look found and did.
struct Looked {
    made: Option<BackupName>,
    removed: usize,
    newest: Option<TimeMs>,
}

#[async_trait]
impl Loop for Archivist {
    fn name(&self) -> &'static str {
        "archivist"
    }

    fn period(&self) -> Duration {
        self.period
    }

    fn wakes_on_change(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let Some(settings) = &shared.backups.settings else { return Ok(0) };
        let view = shared.cache.view();
        // A cloud that is being founded has nothing to lose yet, and no record that an event could be about.
        let Some(cluster) = view.cluster().filter(|_| view.controllers.get(shared.me.id).is_some()) else {
            return Ok(0);
        };
        if self.next_look.is_some_and(|next| shared.clock.instant() < next) {
            return Ok(0);
        }
        if self.failed {
            shared.clock.sleep(RETRY.min(settings.every)).await;
        }
        match self.look(shared, settings, cluster.id.0).await {
            Ok(looked) => self.done(shared, settings, looked).await,
            Err(refusal) => {
                self.trouble(shared, settings, &refusal).await?;
                Err(refusal)
            }
        }
    }
}

impl Archivist {
    /// One that makes a backup so often.
    pub fn new(every: Duration) -> Self {
        Self {
            period: LOOK.min(every),
            known: Vec::new(),
            next_look: None,
            failed: false,
            told_overdue: false,
            told_damaged: BTreeSet::new(),
        }
    }

    async fn look(&mut self, shared: &Shared, settings: &Settings, cluster: Uuid) -> Result<Looked, Refusal> {
        // Opened each time: a disk may have been mounted since.
        let destination = Destination::open(settings.place.clone(), &settings.access).map_err(refused)?;
        self.known = destination.survey(&self.known).await.map_err(refused)?;
        let mut made = None;
        if is_due(
            self.good(cluster).iter().map(|name| name.time_ms),
            shared.clock.now().0,
            settings.every_ms(),
        ) {
            let name = make(shared, settings, &destination).await?;
            self.known = destination.survey(&self.known).await.map_err(refused)?;
            if !self.good(cluster).contains(&name) {
                return Err(Refusal::unavailable(format!("{name} was written and is not whole")));
            }
            made = Some(name);
        }
        let (now, good) = (shared.clock.now(), self.good(cluster));
        let gone = expendable(&good, cluster, settings.keep, now.0);
        for name in &gone {
            destination.remove(&name.to_string()).await.map_err(refused)?;
        }
        let newest = good.iter().filter(|name| name.time_ms <= now.0).map(|name| TimeMs(name.time_ms)).max();
        Ok(Looked { made, removed: gone.len(), newest })
    }

    /// Those of the cluster that are whole.
    fn good(&self, cluster: Uuid) -> Vec<BackupName> {
        let whole = self.known.iter().filter_map(|(_, verdict)| verdict.whole());
        whole.filter(|name| name.cluster == cluster).cloned().collect()
    }

    /// Says what was done, and when it looks again.
    async fn done(&mut self, shared: &Shared, settings: &Settings, looked: Looked) -> Result<u64, Refusal> {
        (self.failed, self.told_overdue) = (false, false);
        let now = shared.clock.now();
        let next = looked.newest.map_or(now, |newest| newest.plus_ms(settings.every_ms()));
        let wait = Duration::from_millis(next.since(now)).min(settings.every);
        self.next_look = Some(shared.clock.instant() + wait);
        *shared.backups.outcome() = Outcome { newest: looked.newest, next: Some(next), error: String::new() };
        gauge!("tamdao_backup_newest_timestamp_seconds")
            .set(looked.newest.map_or(0.0, |time| time.0 as f64 / 1_000.0));
        let damaged: Vec<(String, String)> = self.damaged();
        gauge!("tamdao_backup_damaged").set(damaged.len() as f64);
        if let Some(name) = looked.made {
            tracing::info!(%name, removed = looked.removed, "backup made");
            let message = format!("{name} in {}; {} older ones removed", settings.place, looked.removed);
            tell(shared, Severity::Info, "BackupMade", message).await?;
        }
        for (name, fault) in &damaged {
            if self.told_damaged.insert(name.clone()) {
                let message = format!("{name} in {}: {fault}", settings.place);
                tell(shared, Severity::Warning, "BackupDamaged", message).await?;
            }
        }
        Ok(damaged.len() as u64)
    }

    fn damaged(&self) -> Vec<(String, String)> {
        let faults = self.known.iter().filter_map(|(found, verdict)| Some((found, verdict.fault()?)));
        faults.map(|(found, fault)| (found.name.clone(), fault.to_owned())).collect()
    }

    /// Says once that it fails, and once that a backup is missed by now.
    async fn trouble(
        &mut self,
        shared: &Shared,
        settings: &Settings,
        refusal: &Refusal,
    ) -> Result<(), Refusal> {
        counter!("tamdao_backup_failures_total").increment(1);
        let first = !std::mem::replace(&mut self.failed, true);
        let newest = {
            let mut outcome = shared.backups.outcome();
            outcome.error = refusal.to_string();
            outcome.newest
        };
        if first {
            tell(shared, Severity::Warning, "BackupFailed", refusal.to_string()).await?;
        }
        if settings.is_overdue(newest, shared.clock.now()) && !std::mem::replace(&mut self.told_overdue, true)
        {
            let age = newest.map_or("there is no good backup".to_owned(), |at| {
                format!("the newest good backup is of {at}")
            });
            let message = format!("{age}, and one is wanted every {} minutes", settings.every.as_secs() / 60);
            tell(shared, Severity::Warning, "BackupOverdue", message).await?;
        }
        Ok(())
    }
}

/// Takes one and writes it under the name that says what it is.
async fn make(
    shared: &Shared,
    settings: &Settings,
    destination: &Destination,
) -> Result<BackupName, Refusal> {
    let file = take(shared, settings.recipients.clone()).await?;
    let head = tamdao_backup::head(&file).map_err(|error| Refusal::internal(error.to_string()))?;
    let name = BackupName::of(&head, &hex::encode(Sha256::digest(&file)));
    gauge!("tamdao_backup_bytes").set(file.len() as f64);
    destination.put(&name.to_string(), file).await.map_err(refused)?;
    Ok(name)
}

fn refused(error: DestinationError) -> Refusal {
    Refusal::unavailable(error.to_string())
}

/// An event about the controller that leads.
async fn tell(
    shared: &Shared,
    severity: Severity,
    reason: &'static str,
    message: String,
) -> Result<(), Refusal> {
    let me = shared.me.clone();
    let told = shared.writer.submit(move |draft, moment| {
        let record = draft.view().controllers.get(me.id).map(|row| (*row.value).clone());
        if let Some(record) = record {
            decide::event(draft, moment, &record, severity, reason, message.clone(), &me.name);
        }
        Ok(())
    });
    told.await.map(drop)
}
