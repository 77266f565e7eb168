//! The journalist: writes every event into this controller's own journal, on every controller, from what the store
//! tells. Events leave the store after a day; here they stay as long as the disk is given to them.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::Stored;
use tamdao_model::event::Event;
use tamdao_store::journal::{Entry, Journal, JournalError};
use tamdao_store::kv::Revision;
use tamdao_store::view::Record;

use super::Loop;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// The size of a journal, bytes; beyond it the oldest entries go.
const KEEP_BYTES: u64 = 8 << 30;

/// See the module.
pub struct Journalist {
    directory: PathBuf,
    journal: Option<Journal>,
    /// Everything through this revision is written.
    at: Revision,
}

impl Journalist {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, journal: None, at: Revision::ZERO }
    }
}

#[async_trait]
impl Loop for Journalist {
    fn name(&self) -> &'static str {
        "journalist"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(60)
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
        let (journal, directory) = (self.journal.take(), self.directory.clone());
        let written = tokio::task::spawn_blocking(move || -> Result<Journal, JournalError> {
            let mut journal = match journal {
                Some(journal) => journal,
                None => Journal::open(&directory, KEEP_BYTES)?,
            };
            journal.append(&entries)?;
            Ok(journal)
        });
        let written = written.await.map_err(|error| Refusal::internal(error.to_string()))?;
        self.journal = Some(written.map_err(|error| Refusal::internal(format!("the journal: {error}")))?);
        self.at = through;
        Ok(0)
    }
}

fn entry(event: &Event, revision: Revision) -> Entry {
    let record = serde_json::to_string(event).expect("records are plain data");
    Entry { revision, key: event.key(), record }
}
