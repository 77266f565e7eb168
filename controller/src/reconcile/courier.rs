//! The courier: brings the audit records of this controller's own journal to a receiver of syslog, on every controller.
//!
//! Its invariants: the position, a file beside the journal, is moved only over what is proven to be delivered, so each
//! record arrives at least once, and again with the same id where the proof was lost; nobody else's state is needed, so
//! a change of leaders is nothing to it. Each controller sends all that its journal has: what one cannot send any more,
//! or does not want to, comes from the others. Deliberately absent: form and proof (`syslog`).

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use metrics::{counter, gauge};
use serde::{Deserialize, Serialize};
use tamdao_model::TimeMs;
use tamdao_model::audit::Audit;
use tamdao_store::journal::Reader;
use tokio::time::Instant;

use super::Loop;
use crate::api::audit::message;
use crate::forward::Forward;
use crate::receiver::{News, tell};
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::syslog::{Settings, add, deliver};
use crate::trail::read::{Page, read_on};
use crate::trail::{Export, Trail};

/// How often it looks what is new; what is found goes over one connection.
const LOOK: Duration = Duration::from_secs(1);
/// After what failed.
const RETRY: Duration = Duration::from_secs(2);
/// Entries of the journal that are looked at for one connection.
const AT_ONCE: usize = 500;

/// See the module.
pub struct Courier {
    settings: Settings,
    forward: Forward,
    /// Everything through this entry was delivered, or is nothing for the receiver.
    at: u64,
    reader: Option<Reader>,
    /// Read and not yet delivered.
    batch: Option<Batch>,
    failing: Option<Failing>,
    /// What the cloud is to be told, the oldest first.
    news: Vec<News>,
}

struct Batch {
    frames: Vec<u8>,
    records: usize,
    /// The last entry that it covers.
    through: u64,
    /// Whether there may be more behind it.
    more: bool,
}

struct Failing {
    since: Instant,
    told: bool,
}

/// The position as it lies beside the journal.
#[derive(Serialize, Deserialize)]
struct Position {
    receiver: String,
    delivered: u64,
}

#[async_trait]
impl Loop for Courier {
    fn name(&self) -> &'static str {
        "courier"
    }

    fn period(&self) -> Duration {
        LOOK
    }

    fn wakes_on_change(&self) -> bool {
        false
    }

    fn rests_in_recovery(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        if self.failing.is_some() {
            shared.clock.sleep(RETRY).await;
        }
        let Some(end) = shared.trail.reached().borrow().end.clone() else { return Ok(0) };
        // A position in a journal that has gone does not count.
        if self.at > end.sequence {
            self.at = 0;
        }
        let outcome = self.bring(shared).await;
        let at = self.at;
        let trouble = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let left = end.sequence.saturating_sub(at);
        gauge!("tamdao_audit_undelivered").set(left as f64);
        self.judge(shared, &trouble, left);
        shared.trail.exported(Export { receiver: self.settings.receiver.clone(), delivered: at, trouble });
        self.report(shared).await;
        outcome.map(|()| left)
    }
}

impl Courier {
    /// Takes up the position, and says it: so the journal lets nothing go meanwhile. `forward` is the way to the leader,
    /// who is told what the cloud is to know.
    pub fn new(settings: Settings, forward: Forward, trail: &Trail) -> Self {
        let text = std::fs::read(file(trail)).unwrap_or_default();
        let position: Option<Position> = serde_json::from_slice(&text).ok();
        let ours = position.filter(|at| at.receiver == settings.receiver);
        let at = ours.map_or(0, |position| position.delivered);
        let (receiver, trouble) = (settings.receiver.clone(), String::new());
        trail.exported(Export { receiver, delivered: at, trouble });
        Self { settings, forward, at, reader: None, batch: None, failing: None, news: Vec::new() }
    }

    /// Delivers what there is, one connection after the other.
    async fn bring(&mut self, shared: &Shared) -> Result<(), Refusal> {
        loop {
            let batch = match self.batch.take() {
                Some(batch) => batch,
                None => self.gather(shared).await?,
            };
            if batch.records > 0
                && let Err(error) = deliver(&self.settings, &batch.frames).await
            {
                self.batch = Some(batch);
                counter!("tamdao_audit_delivery_failures_total").increment(1);
                return Err(Refusal::unavailable(format!("{}: {error}", self.settings.receiver)));
            }
            self.at = batch.through;
            if batch.records > 0 {
                self.keep(shared)?;
                counter!("tamdao_audit_delivered_total").increment(batch.records as u64);
            }
            if !batch.more {
                return Ok(());
            }
        }
    }

    /// Reads on.
    async fn gather(&mut self, shared: &Shared) -> Result<Batch, Refusal> {
        let (directory, at) = (&shared.trail.directory, self.at);
        let reader = self.reader.take().unwrap_or_else(|| Reader::new(directory, at, TimeMs(0)));
        let (reader, page) = read_on(reader, AT_ONCE).await?;
        self.reader = Some(reader);
        let Page { audits, entries, first, last } = page;
        // Of a journal that began before there was a receiver nothing is missed.
        if at > 0 && first > at + 1 {
            self.news.push(News::Lost { from: at + 1, to: first - 1 });
        }
        let view = shared.cache.view();
        let (mut frames, mut records) = (Vec::new(), 0);
        for told in audits {
            let Ok(audit) = serde_json::from_str::<Audit>(&told.record) else { continue };
            add(&mut frames, &shared.me.name, &audit, &message(shared.me.id, &audit, told, &view));
            records += 1;
        }
        Ok(Batch { frames, records, through: last.max(at), more: entries == AT_ONCE })
    }

    /// Writes the position. A power cut may take it back or away: then more is sent again.
    fn keep(&self, shared: &Shared) -> Result<(), Refusal> {
        let position = Position { receiver: self.settings.receiver.clone(), delivered: self.at };
        let (file, text) = (file(&shared.trail), serde_json::to_vec(&position).expect("a text and a number"));
        let aside = file.with_extension("tmp");
        let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &file));
        written.map_err(|error| Refusal::internal(format!("{}: {error}", file.display())))
    }

    /// Notices when it has failed for long, and when that is over.
    fn judge(&mut self, shared: &Shared, trouble: &str, left: u64) {
        let (now, receiver) = (shared.clock.instant(), &self.settings.receiver);
        if trouble.is_empty() {
            gauge!("tamdao_audit_receiver_silent_seconds").set(0.0);
            if self.failing.take().is_some_and(|failing| failing.told) {
                self.news.push(News::Back { receiver: receiver.clone() });
            }
            return;
        }
        let failing = self.failing.get_or_insert(Failing { since: now, told: false });
        let silent = now.saturating_duration_since(failing.since);
        gauge!("tamdao_audit_receiver_silent_seconds").set(silent.as_secs_f64());
        if silent >= self.settings.silence && !std::mem::replace(&mut failing.told, true) {
            let trouble = trouble.to_owned();
            self.news.push(News::Silent { seconds: silent.as_secs(), left, trouble });
        }
    }

    /// Tells the cloud; what nobody hears is told again at the next pass.
    async fn report(&mut self, shared: &Shared) {
        while let Some(news) = self.news.first() {
            if let Err(error) = tell(shared, &self.forward, news).await {
                tracing::debug!(%error, "the leader does not know how the receiver of the audit log does");
                return;
            }
            self.news.remove(0);
        }
    }
}

/// It goes with the journal that it is a position in.
fn file(trail: &Trail) -> PathBuf {
    trail.directory.join("delivered.json")
}
