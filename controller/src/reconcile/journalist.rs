//! The journalist: writes every event into this controller's own journal, on every controller, from what the store
//! tells, and says so to the leader. Events leave the store after a day and when the journals have them; here they stay
//! as long as the configuration gives them time and room.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::Stored;
use tamdao_model::event::Event;
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

/// See the module.
pub struct Journalist {
    directory: PathBuf,
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
    pub fn new(directory: PathBuf, keep: Keep, forward: Forward) -> Self {
        Self { directory, keep, forward, journal: None, at: Revision::ZERO, told: None }
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
        TELL
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let view = shared.cache.view();
        // At the begin, and when the kept changes do not reach back far enough, all events are looked at; the
        // journal leaves out what it has.
        let recent = if self.journal.is_some() { shared.cache.after(self.at).ok() } else { None };
        let (entries, through) = match recent {
            Some(commits) => {
                let through = commits.last().map_or(self.at, |commit| commit.revision);
                let events = commits.iter().flat_map(|commit| {
                    commit.deltas.iter().filter_map(|delta| match &delta.after {
                        Some(Record::Event(event)) => Some(entry(event, commit.revision)),
                        _ => None,
                    })
                });
                (events.collect(), through)
            }
            None => {
                let mut entries: Vec<Entry> =
                    view.events.iter().map(|row| entry(row, row.revision)).collect();
                entries.sort_by(|a, b| (a.revision, &a.key).cmp(&(b.revision, &b.key)));
                (entries, view.revision)
            }
        };
        let (journal, directory, keep) = (self.journal.take(), self.directory.clone(), self.keep);
        let (now, trim) = (shared.clock.now(), self.due(shared.clock.instant()));
        let written = tokio::task::spawn_blocking(move || -> Result<Journal, JournalError> {
            let mut journal = match journal {
                Some(journal) => journal,
                None => Journal::open(&directory, keep)?,
            };
            journal.append(&entries, now)?;
            if trim {
                journal.trim(now)?;
            }
            Ok(journal)
        });
        let written = written.await.map_err(|error| Refusal::internal(error.to_string()))?;
        self.journal = Some(written.map_err(|error| Refusal::internal(format!("the journal: {error}")))?);
        self.at = through;
        self.tell(shared).await;
        Ok(0)
    }
}

fn entry(event: &Event, revision: Revision) -> Entry {
    let record = serde_json::to_string(event).expect("records are plain data");
    Entry { revision, key: event.key(), record }
}
