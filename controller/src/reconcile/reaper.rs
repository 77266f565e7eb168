//! The reaper keeps the store small. It removes what has had its time: old events and audit records that the controllers'
//! journals hold, answered requests, rested addresses, expired tokens, what stacks applied in agencies that have gone. It
//! forgets the store's history behind them, and tells when the state grows large all the same.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::address::{Address, Holder};
use tamdao_model::applied::Applied;
use tamdao_model::audit::Audit;
use tamdao_model::cluster::{JoinToken, Request};
use tamdao_model::event::{Event, Severity};
use tamdao_model::{Stored, TimeMs, limits};
use tamdao_store::kv::Revision;
use tamdao_store::view::View;

use super::Loop;
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// Records removed by one decision.
const PER_DECISION: usize = 100;
/// An audit record that has waited for the journals so long is held up; before that it is on its way.
const ON_ITS_WAY_MS: u64 = 10 * 60 * 1_000;
/// Commits of history that the store keeps for readers that fell behind.
const KEPT_HISTORY: u64 = 50_000;

/// See the module.
#[derive(Default)]
pub struct Reaper {
    compacted: Revision,
    /// How full the state was when that was last told, in percent of its limit; 0 for less than half.
    told: u64,
}

/// The key of a record whose time is over.
#[derive(Clone)]
enum Over {
    Event(String),
    Audit(String),
    Request(String),
    Address(String),
    Token(String),
    Applied(String),
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
        let controllers = view.controllers.iter().map(|controller| controller.id());
        let journalled = shared.journals.enough(controllers, shared.clock.instant());
        let (over, kept) = over(&view, shared.clock.now(), journalled);
        for chunk in over.chunks(PER_DECISION) {
            let chunk = chunk.to_vec();
            let decided = shared.writer.submit(move |draft, _| {
                for over in &chunk {
                    match over {
                        Over::Event(key) => draft.delete::<Event>(key),
                        Over::Audit(key) => draft.delete::<Audit>(key),
                        Over::Request(key) => draft.delete::<Request>(key),
                        Over::Address(key) => draft.delete::<Address>(key),
                        Over::Token(key) => draft.delete::<JoinToken>(key),
                        Over::Applied(key) => draft.delete::<Applied>(key),
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
        self.tell(shared).await?;
        Ok(kept)
    }
}

impl Reaper {
    /// Writes an event when the state has become larger than was told.
    async fn tell(&mut self, shared: &Shared) -> Result<(), Refusal> {
        let bytes = shared.kv.status().bytes;
        let full = full(bytes, self.told);
        if full > self.told {
            let me = shared.me.id;
            let message = format!(
                "the store's state is {} MiB, more than {full} % of {} MiB: look at what there is so much of",
                bytes >> 20,
                limits::STATE_BYTES >> 20
            );
            let told = shared.writer.submit(move |draft, moment| {
                // One that is being removed has no record any more, and another leader tells.
                if let Some(controller) = draft.view().controllers.get(me.to_string()).cloned() {
                    let (severity, reason) = (Severity::Warning, "StateLarge");
                    decide::event(draft, moment, &*controller, severity, reason, message.clone(), "reaper");
                }
                Ok(())
            });
            told.await?;
        }
        self.told = full;
        Ok(())
    }
}

/// How full the state is, in the steps that people are told of. A step that was told holds until the state is a
/// twentieth of the limit below it, so that one that lingers there is told once.
fn full(bytes: u64, told: u64) -> u64 {
    let percent = bytes.saturating_mul(100) / limits::STATE_BYTES;
    let reached = |step: &u64| percent >= if told >= *step { step - 5 } else { *step };
    [80, 50].into_iter().find(reached).unwrap_or(0)
}

/// All whose time is over, and how many events and audit records stay beyond theirs because the journals hold no more
/// than `journalled`.
fn over(view: &View, now: TimeMs, journalled: Revision) -> (Vec<Over>, u64) {
    // Events are sorted by time, so the first young one ends the search.
    let old = view.events.iter().take_while(|event| now.since(event.time) > limits::EVENT_KEEP_MS);
    let (events, kept): (Vec<_>, Vec<_>) = old.partition(|event| event.revision <= journalled);
    // Nobody reads these here: they are on their way into the journals.
    let (audits, waiting): (Vec<_>, Vec<_>) =
        view.audits.iter().partition(|audit| audit.revision <= journalled);
    let requests = view.requests.iter().filter(|request| now.since(request.time) > limits::REQUEST_KEEP_MS);
    let addresses = view.addresses.iter().filter(|row| match row.holder {
        Holder::Resting { until } => until < now,
        Holder::Vm { .. } => false,
    });
    // One that is used up stays as long as it would have: a node whose answer was lost comes with it again.
    let tokens = view.join_tokens.iter().filter(|token| token.expire_time < now);
    let orphaned = view
        .applied
        .iter()
        .filter(|row| row.agency.is_some_and(|agency| view.agencies.get(agency).is_none()));
    let over = events
        .into_iter()
        .map(|row| Over::Event(row.key()))
        .chain(audits.into_iter().map(|row| Over::Audit(row.key())))
        .chain(requests.map(|row| Over::Request(row.key())))
        .chain(addresses.map(|row| Over::Address(row.key())))
        .chain(tokens.map(|row| Over::Token(row.key())))
        .chain(orphaned.map(|row| Over::Applied(row.key())))
        .collect();
    let held_up = waiting.iter().filter(|audit| now.since(audit.time) > ON_ITS_WAY_MS);
    (over, (kept.len() + held_up.count()) as u64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tamdao_model::{EventId, Kind, Name};
    use tamdao_store::backend::memory::MemoryStore;
    use tamdao_store::cache::Cache;
    use tamdao_store::kv::Kv;
    use tamdao_store::typed::{self, Draft};
    use uuid::Uuid;

    use super::*;

    fn an_event(id: u128, time: TimeMs) -> Event {
        Event {
            id: EventId(Uuid::from_u128(id)),
            time,
            severity: Severity::Info,
            reason: "Joined".into(),
            message: String::new(),
            kind: Kind::Node,
            agency: None,
            subject: Uuid::nil(),
            name: Name::new("n1").unwrap(),
            node: None,
            actor: String::new(),
            decision: None,
        }
    }

    #[test]
    fn a_state_that_grows_is_told_of_once_at_each_step() {
        let at = |percent: u64, told| full(limits::STATE_BYTES / 100 * percent + 100, told);
        assert_eq!(
            [at(0, 0), at(49, 0), at(50, 0), at(79, 50), at(80, 50), at(300, 0)],
            [0, 0, 50, 50, 80, 80]
        );
        // Down again: it lingers, it is below, it grows once more.
        assert_eq!([at(76, 80), at(74, 80), at(46, 50), at(44, 50), at(50, 0)], [80, 50, 50, 0, 50]);
    }

    fn an_audit_record(time: TimeMs) -> Audit {
        let record = serde_json::json!({"id": Uuid::nil(), "time": time, "principal": "admin:1",
            "controller": Uuid::nil(), "method": "VmService/CreateVm", "code": "Ok"});
        serde_json::from_value(record).unwrap()
    }

    #[tokio::test]
    async fn an_audit_record_goes_as_soon_as_the_journals_have_it_and_not_before() {
        let kv: Arc<dyn Kv> = Arc::new(MemoryStore::new("c1"));
        let (cache, feed) = Cache::new(kv.clone());
        tokio::spawn(feed.run());
        let mut draft = Draft::new((*cache.view()).clone(), Uuid::from_u128(1));
        draft.put(an_audit_record(TimeMs(5)));
        let committed = typed::commit(&*kv, draft.id(), draft.into_txn([])).await.unwrap();
        cache.at_least(committed).await.unwrap();
        let left = |now, journalled| {
            let (over, kept) = over(&cache.view(), TimeMs(now), journalled);
            (over.len(), kept)
        };
        assert_eq!(left(5, committed), (1, 0));
        assert_eq!(left(5, Revision::ZERO), (0, 0));
        assert_eq!(left(5 + 10 * limits::EVENT_KEEP_MS, Revision(committed.0 - 1)), (0, 1));
    }

    #[tokio::test]
    async fn an_old_event_goes_once_the_journals_have_it() {
        let kv: Arc<dyn Kv> = Arc::new(MemoryStore::new("c1"));
        let (cache, feed) = Cache::new(kv.clone());
        tokio::spawn(feed.run());
        let mut revisions = Vec::new();
        for (id, time) in [(1, 0), (2, 1), (3, limits::EVENT_KEEP_MS)] {
            let mut draft = Draft::new((*cache.view()).clone(), Uuid::from_u128(id));
            draft.put(an_event(id, TimeMs(time)));
            let committed = typed::commit(&*kv, draft.id(), draft.into_txn([])).await.unwrap();
            cache.at_least(committed).await.unwrap();
            revisions.push(committed);
        }
        // How many leave the store, and how many wait for it. The last event is young, whoever has it.
        let now = TimeMs(limits::EVENT_KEEP_MS + 2);
        for (journalled, expected) in
            [(Revision::ZERO, (0, 2)), (revisions[0], (1, 1)), (revisions[1], (2, 0)), (revisions[2], (2, 0))]
        {
            let (over, kept) = over(&cache.view(), now, journalled);
            assert_eq!((over.len(), kept), expected, "{journalled}");
        }
    }

    #[test]
    fn what_stacks_applied_in_an_agency_goes_with_it() {
        let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
        for agency in [serde_json::Value::Null, Uuid::from_u128(3).to_string().into()] {
            let record = serde_json::json!({"stack": "site", "kind": "vm", "agency": agency, "name": "web",
                "time": 1, "principal": "admin:1"});
            draft.put::<Applied>(serde_json::from_value(record).unwrap());
        }
        // The cluster's own stays; there is no agency in this cloud.
        let (over, _) = over(draft.view(), TimeMs(2), Revision::ZERO);
        assert!(matches!(&over[..], [Over::Applied(key)] if key.contains("/site/vm/web")));
    }
}
