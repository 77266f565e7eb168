//! The journalist: writes every event and audit record into this controller's own journal, on every controller, from
//! what the store tells, and says so to the leader; and behind them what this controller's trail has beside. They leave
//! the store when the journals have them; here they stay as long as the configuration gives them time and room.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::Stored;
use tamdao_model::audit::Audit;
use tamdao_model::event::Event;
use tamdao_store::cache::COMMITS;
use tamdao_store::journal::{Entry, Journal, JournalError, Keep};
use tamdao_store::kv::Revision;
use tamdao_store::view::Record;
use tokio::time::Instant;

use super::Loop;
use crate::forward::Forward;
use crate::journals;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// How often the leader is told how far the journal has come, and what is too old is looked for.
const TELL: Duration = Duration::from_secs(30);
/// How often the trail is looked at when nothing is committed: so long is what was refused in memory only.
const LOOK: Duration = Duration::from_millis(500);
/// With this begin the keys of audit records in the journal; those of events have no slash.
pub const AUDIT: &str = "audit/";

/// See the module.
pub struct Journalist {
    keep: Keep,
    forward: Forward,
    journal: Option<Journal>,
    /// Everything through this revision is written.
    at: Revision,
    /// When the leader was last told so.
    told: Option<Instant>,
}

impl Journalist {
    /// `forward` is the way to the leader.
    pub fn new(keep: Keep, forward: Forward) -> Self {
        Self { keep, forward, journal: None, at: Revision::ZERO, told: None }
    }

    /// Tells the leader, now and then. One that does not hear it is told again at the next pass.
    async fn tell(&mut self, shared: &Shared) {
        let now = shared.clock.instant();
        if shared.leads() {
            shared.journals.note(shared.me.id, self.at, now);
        }
        if self.at == Revision::ZERO || !self.due(now) {
            return;
        }
        let told = if shared.leads() { Ok(()) } else { journals::tell(&self.forward, self.at).await };
        match told {
            Ok(()) => self.told = Some(now),
            Err(error) => tracing::debug!(%error, "the leader does not know how far the journal has come"),
        }
    }

    fn due(&self, now: Instant) -> bool {
        self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL)
    }
}

#[async_trait]
impl Loop for Journalist {
    fn name(&self) -> &'static str {
        "journalist"
    }

    fn period(&self) -> Duration {
        LOOK
    }

    fn rests_in_recovery(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let (entries, through) = self.committed(shared);
        let (now, trim) = (shared.clock.now(), self.due(shared.clock.instant()));
        let delivered = shared.trail.export().map(|export| export.delivered);
        let noted = shared.trail.next(now);
        let count = noted.len();
        if !entries.is_empty() || count > 0 || trim || self.journal.is_none() {
            let (journal, directory, keep) = (self.journal.take(), shared.trail.directory.clone(), self.keep);
            let written = tokio::task::spawn_blocking(move || -> Result<Journal, JournalError> {
                let mut journal = match journal {
                    Some(journal) => journal,
                    None => Journal::open(&directory, keep)?,
                };
                journal.append(&entries, now)?;
                journal.note(noted.iter().map(|record| audited(record, Revision::ZERO)).collect(), now)?;
                if trim {
                    journal.trim(now, delivered)?;
                }
                Ok(journal)
            });
            let written = written.await.map_err(|error| Refusal::internal(error.to_string()))?;
            self.journal = Some(written.map_err(|error| Refusal::internal(format!("the journal: {error}")))?);
        }
        self.at = through;
        if let Some(journal) = &self.journal {
            shared.trail.wrote(count, through, journal.end());
        }
        self.tell(shared).await;
        Ok(0)
    }
}

impl Journalist {
    /// What was committed and may not be written yet, in order, and through which commit that is all.
    fn committed(&self, shared: &Shared) -> (Vec<Entry>, Revision) {
        // Taken first: what is in it is among the kept changes too, if these reach back far enough.
        let view = shared.cache.view();
        // At the begin, and when they do not, all records are looked at; the journal leaves out what it has.
        let recent = if self.journal.is_some() { shared.cache.after(self.at).ok() } else { None };
        if let Some(commits) = recent {
            let last = commits.last().map_or(self.at, |commit| commit.revision);
            // A commit that changed no record of ours is not kept. Only the last part of many reaches the view.
            let through = if last < view.revision && commits.len() < COMMITS { view.revision } else { last };
            let told = commits.iter().flat_map(|commit| {
                commit.deltas.iter().filter_map(|delta| match &delta.after {
                    Some(Record::Event(event)) => Some(entry(event, commit.revision)),
                    Some(Record::Audit(audit)) => Some(audited(audit, commit.revision)),
                    _ => None,
                })
            });
            return (told.collect(), through);
        }
        let events = view.events.iter().map(|row| entry(row, row.revision));
        let audits = view.audits.iter().map(|row| audited(row, row.revision));
        let mut entries: Vec<Entry> = events.chain(audits).collect();
        entries.sort_by(|a, b| (a.revision, &a.key).cmp(&(b.revision, &b.key)));
        (entries, view.revision)
    }
}

fn audited(audit: &Audit, revision: Revision) -> Entry {
    let record = serde_json::to_string(audit).expect("records are plain data");
    Entry { revision, key: format!("{AUDIT}{}", audit.key()), record }
}

fn entry(event: &Event, revision: Revision) -> Entry {
    let record = serde_json::to_string(event).expect("records are plain data");
    Entry { revision, key: event.key(), record }
}
