//! The reaper: removes what has had its time: old events, answered requests, rested addresses, used-up tokens; and
//! forgets the store's history behind them.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::address::{Address, Holder};
use tamdao_model::cluster::{JoinToken, Request};
use tamdao_model::event::Event;
use tamdao_model::{Stored, limits};
use tamdao_store::kv::Revision;
use tamdao_store::view::View;

use super::Loop;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// Records removed by one decision.
const PER_DECISION: usize = 100;
/// Commits of history that the store keeps for readers that fell behind.
const KEPT_HISTORY: u64 = 50_000;

/// See the module.
#[derive(Default)]
pub struct Reaper {
    compacted: Revision,
}

/// The key of a record whose time is over.
#[derive(Clone)]
enum Over {
    Event(String),
    Request(String),
    Address(String),
    Token(String),
}

#[async_trait]
impl Loop for Reaper {
    fn name(&self) -> &'static str {
        "reaper"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn wakes_on_change(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let view = shared.cache.view();
        for chunk in over(&view, shared.clock.now()).chunks(PER_DECISION) {
            let chunk = chunk.to_vec();
            let decided = shared.writer.submit(move |draft, _| {
                for over in &chunk {
                    match over {
                        Over::Event(key) => draft.delete::<Event>(key),
                        Over::Request(key) => draft.delete::<Request>(key),
                        Over::Address(key) => draft.delete::<Address>(key),
                        Over::Token(key) => draft.delete::<JoinToken>(key),
                    }
                }
                Ok(())
            });
            decided.await?;
        }
        let through = Revision(view.revision.0.saturating_sub(KEPT_HISTORY));
        if through.0 > self.compacted.0 + KEPT_HISTORY / 10 {
            shared.kv.compact(through).await?;
            self.compacted = through;
        }
        Ok(0)
    }
}

/// All whose time is over.
fn over(view: &View, now: tamdao_model::TimeMs) -> Vec<Over> {
    // Events are sorted by time, so the first young one ends the search.
    let events = view.events.iter().take_while(|event| now.since(event.time) > limits::EVENT_KEEP_MS);
    let requests = view.requests.iter().filter(|request| now.since(request.time) > limits::REQUEST_KEEP_MS);
    let addresses = view.addresses.iter().filter(|row| match row.holder {
        Holder::Resting { until } => until < now,
        Holder::Vm { .. } => false,
    });
    let tokens = view.join_tokens.iter().filter(|token| token.expire_time < now || token.uses_left == 0);
    events
        .map(|row| Over::Event(row.key()))
        .chain(requests.map(|row| Over::Request(row.key())))
        .chain(addresses.map(|row| Over::Address(row.key())))
        .chain(tokens.map(|row| Over::Token(row.key())))
        .collect()
}
