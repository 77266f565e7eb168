//! The loops: each brings one part of the world towards what is wanted, again and again.
//!
//! Their invariant: a pass takes no message about what happened; it is woken by a new revision and by a period,
//! looks at what is, and may be killed at any line. A pass retries nothing inside: the next pass is the retry.
//! Loops that decide run only while this controller leads.

pub mod archivist;
pub mod courier;
pub mod drainer;
pub mod driller;
pub mod evacuator;
pub mod fencer;
pub mod journalist;
pub mod liveness;
pub mod mover;
pub mod placer;
pub mod reaper;
pub mod rescuer;
pub mod seater;
pub mod surveyor;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::TimeMs;
use tamdao_store::kv::Leadership;

use crate::decide::recovery;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// One loop.
#[async_trait]
pub trait Loop: Send {
    /// An agent noun, such as placer.
    fn name(&self) -> &'static str;

    /// How often it looks even if nothing has changed.
    fn period(&self) -> Duration;

    /// Whether a new revision wakes it.
    fn wakes_on_change(&self) -> bool {
        true
    }

    /// Whether it does nothing while the cloud recovers. What only watches and proves goes on.
    fn rests_in_recovery(&self) -> bool {
        true
    }

    /// Looks once and does what is to do. Answers how much is left.
    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal>;
}

/// How the loops do, for people and metrics.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Vec<LoopRow>>>);

/// How one loop does.
#[derive(Debug, Clone)]
pub struct LoopRow {
    pub name: &'static str,
    pub running: bool,
    pub passes: u64,
    pub last_success: Option<TimeMs>,
    /// Empty when the last pass ended well.
    pub last_error: String,
    pub backlog: u64,
    pub last_duration_ms: u64,
}

impl Board {
    /// All loops by name.
    pub fn rows(&self) -> Vec<LoopRow> {
        self.0.lock().expect("no holder of the lock panics").clone()
    }

    fn update(&self, name: &'static str, update: impl FnOnce(&mut LoopRow)) {
        let mut rows = self.0.lock().expect("no holder of the lock panics");
        let at = match rows.binary_search_by(|row| row.name.cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                let row = LoopRow {
                    name,
                    running: false,
                    passes: 0,
                    last_success: None,
                    last_error: String::new(),
                    backlog: 0,
                    last_duration_ms: 0,
                };
                rows.insert(at, row);
                at
            }
        };
        update(&mut rows[at]);
    }
}

/// Runs a loop until the office is lost; without an office, for ever.
pub async fn drive(mut task: impl Loop, shared: Arc<Shared>, office: Option<Leadership>) {
    let name = task.name();
    let mut changes = shared.cache.changes();
    let mut told = String::new();
    shared.board.update(name, |row| row.running = true);
    loop {
        changes.borrow_and_update();
        let began = shared.clock.instant();
        let rests = task.rests_in_recovery() && recovery::is_on(&shared.cache.view());
        let pass = async { if rests { Ok(0) } else { task.pass(&shared).await } };
        let outcome = tokio::select! {
            biased;
            outcome = pass => outcome,
            () = lost(office.as_ref()) => break,
        };
        let took = shared.clock.instant().saturating_duration_since(began);
        let now = shared.clock.now();
        shared.board.update(name, |row| {
            row.passes += 1;
            row.last_duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            match &outcome {
                Ok(backlog) => {
                    (row.last_success, row.backlog) = (Some(now), *backlog);
                    row.last_error.clear();
                }
                Err(refusal) => row.last_error = refusal.to_string(),
            }
        });
        if let Err(refusal) = &outcome {
            // Once for each cause: a loop that fails for an hour must not bury the log.
            let error = refusal.to_string();
            if told != error {
                tracing::warn!(name, error, "pass failed");
                told = error;
            }
            // The period is the retry; a failing pass must not spin on every change.
            tokio::select! {
                biased;
                () = shared.clock.sleep(Duration::from_millis(200)) => {}
                () = lost(office.as_ref()) => break,
            }
            continue;
        }
        tokio::select! {
            biased;
            changed = changes.changed(), if task.wakes_on_change() => {
                if changed.is_err() {
                    break;
                }
            }
            () = shared.clock.sleep(task.period()) => {}
            () = lost(office.as_ref()) => break,
        }
    }
    shared.board.update(name, |row| row.running = false);
}

async fn lost(office: Option<&Leadership>) {
    match office {
        Some(office) => office.lost().await,
        None => std::future::pending().await,
    }
}
