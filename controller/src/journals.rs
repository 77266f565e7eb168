//! How far each controller's journal has come, as the leader was told: what all of them have written, or a majority for
//! an hour, may leave the store.
//!
//! Its invariant: nothing counts that its controller has not said itself, and what one has said stays true. All of it
//! is memory: a new leader is told anew, and the hour begins anew with it. Deliberately absent: the journals, which
//! `reconcile/journalist.rs` writes, and the removal, which `reconcile/reaper.rs` does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderMap, Method, Request, StatusCode};
use serde::Deserialize;
use tamdao_model::ControllerId;
use tamdao_store::kv::Revision;
use tokio::time::Instant;

use crate::answer;
use crate::auth::{self, Principal};
use crate::forward::Forward;
use crate::refusal::Refusal;

const PATH: &str = "/internal/journal/held";
/// For so long a majority must have had an entry, where not all have it.
const MAJORITY_TIME: Duration = Duration::from_secs(3_600);
/// The least time between two points that are remembered of one controller.
const POINT_EVERY: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub struct Journals {
    told: Mutex<BTreeMap<ControllerId, Progress>>,
}

/// How far one controller was, and when.
#[derive(Default)]
struct Progress {
    newest: Revision,
    /// Oldest first; the first is the only one that may be older than [`MAJORITY_TIME`].
    points: VecDeque<(Instant, Revision)>,
}

impl Progress {
    /// How far it has been for the whole [`MAJORITY_TIME`].
    fn settled(&self, now: Instant) -> Revision {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= MAJORITY_TIME;
        let settled = self.points.iter().take_while(|(at, _)| old(at)).last();
        settled.map_or(Revision::ZERO, |(_, through)| *through)
    }
}

impl Journals {
    /// A controller says that its journal holds everything through a revision.
    pub fn note(&self, controller: ControllerId, through: Revision, now: Instant) {
        let mut told = self.told.lock().expect("no holder of the lock panics");
        let progress = told.entry(controller).or_default();
        progress.newest = progress.newest.max(through);
        let newest = progress.newest;
        let last = progress.points.back();
        if last.is_none_or(|(at, known)| *known < newest && now.saturating_duration_since(*at) >= POINT_EVERY)
        {
            progress.points.push_back((now, newest));
        }
        let old = |(at, _): &(Instant, Revision)| now.saturating_duration_since(*at) >= MAJORITY_TIME;
        while progress.points.get(1).is_some_and(old) {
            progress.points.pop_front();
        }
    }

    /// Through which revision these controllers' journals are enough: all have it, or a majority has had it for an
    /// hour.
    pub fn enough(&self, controllers: impl Iterator<Item = ControllerId>, now: Instant) -> Revision {
        let mut told = self.told.lock().expect("no holder of the lock panics");
        let mut known: Vec<(Revision, Revision)> = Vec::new();
        let mut still = BTreeMap::new();
        for controller in controllers {
            let progress = told.remove(&controller).unwrap_or_default();
            known.push((progress.newest, progress.settled(now)));
            still.insert(controller, progress);
        }
        // Who is no longer a controller is forgotten.
        *told = still;
        let all = known.iter().map(|(newest, _)| *newest).min().unwrap_or(Revision::ZERO);
        let mut settled: Vec<Revision> = known.iter().map(|(_, settled)| *settled).collect();
        settled.sort_unstable_by(|a, b| b.cmp(a));
        let majority = settled.get(settled.len() / 2).copied().unwrap_or(Revision::ZERO);
        all.max(majority)
    }
}

/// The route by which followers tell their leader; who may call it is decided by the gate in front.
pub fn routes(journals: Arc<Journals>) -> Router {
    Router::new().route(PATH, post(held)).with_state(journals)
}

#[derive(Deserialize)]
struct Held {
    through: u64,
}

async fn held(
    State(journals): State<Arc<Journals>>,
    Query(held): Query<Held>,
    headers: HeaderMap,
) -> Response {
    match auth::of_headers(&headers) {
        Principal::Controller(controller) => {
            journals.note(controller, Revision(held.through), Instant::now());
            StatusCode::NO_CONTENT.into_response()
        }
        other => answer::refuse(&headers, Refusal::internal(format!("{other} is no controller"))),
    }
}

/// A follower tells its leader how far its journal has come.
///
/// # Errors
/// When there is no leader, or it does not answer.
pub async fn tell(forward: &Forward, through: Revision) -> Result<(), Refusal> {
    let request = Request::builder().method(Method::POST).uri(format!("{PATH}?through={}", through.0));
    let (parts, ()) = request.body(()).expect("a number makes a path").into_parts();
    let response = forward.ask(parts, Bytes::new()).await?;
    match response.status().is_success() {
        true => Ok(()),
        false => Err(Refusal::unavailable(format!("the leader answered {}", response.status()))),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const IDS: [ControllerId; 3] = [
        ControllerId(Uuid::from_u128(1)),
        ControllerId(Uuid::from_u128(2)),
        ControllerId(Uuid::from_u128(3)),
    ];

    #[test]
    fn what_all_have_is_enough_at_once() {
        let (journals, now) = (Journals::default(), Instant::now());
        assert_eq!(journals.enough(IDS.into_iter(), now), Revision::ZERO);
        for (id, through) in IDS.into_iter().zip([9, 5, 7]) {
            assert_eq!(journals.enough(IDS.into_iter(), now), Revision::ZERO);
            journals.note(id, Revision(through), now);
        }
        assert_eq!(journals.enough(IDS.into_iter(), now), Revision(5));
        journals.note(IDS[1], Revision(8), now);
        assert_eq!(journals.enough(IDS.into_iter(), now), Revision(7));
        // Who was removed holds nobody up.
        assert_eq!(journals.enough(IDS.into_iter().take(2), now), Revision(8));
        assert_eq!(journals.enough([].into_iter(), now), Revision::ZERO);
    }

    #[test]
    fn what_a_majority_has_is_enough_after_an_hour() {
        let (journals, begun) = (Journals::default(), Instant::now());
        let at = |minutes: u64| begun + Duration::from_secs(60 * minutes);
        journals.note(IDS[2], Revision(2), at(0));
        for minute in 0..=90 {
            for id in &IDS[..2] {
                journals.note(*id, Revision(100 + minute), at(minute));
            }
        }
        assert_eq!(journals.enough(IDS.into_iter(), at(59)), Revision(2));
        assert_eq!(journals.enough(IDS.into_iter(), at(90)), Revision(130));
        // One of three is no majority.
        assert_eq!(
            journals.enough([IDS[0], IDS[2], ControllerId(Uuid::nil())].into_iter(), at(90)),
            Revision(2)
        );
    }

    #[test]
    fn what_is_remembered_of_one_is_bounded() {
        let (journals, begun) = (Journals::default(), Instant::now());
        for second in 0..20_000 {
            journals.note(IDS[0], Revision(second), begun + Duration::from_secs(second));
        }
        let points = journals.told.lock().unwrap()[&IDS[0]].points.len();
        assert!(points <= 62, "{points}");
    }
}
