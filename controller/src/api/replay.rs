//! Decisions computed again, for whoever wants to know why a VM is where it is, or whether the engine does what it did.

use std::collections::BTreeSet;

use tamdao_model::EventId;
use tamdao_model::convert::metadata::timestamp;
use tamdao_model::event::Event;
use tamdao_proto::v1;
use tamdao_store::view::{Row, View};

use super::{Api, agency_of};
use crate::reconcile::placer::replay::{Replayed, replay};
use crate::refusal::Refusal;

const LAST: u32 = 100;
const LAST_MAX: u32 = 10_000;

impl Api {
    pub(super) async fn replay(
        &self,
        request: v1::ReplayDecisionsRequest,
    ) -> Result<v1::ReplayDecisionsResponse, Refusal> {
        let view = self.fresh().await?;
        let wanted = wanted(&view, &request)?;
        let cache = self.shared.cache.clone();
        // The past of a large cloud takes a while, in which others want to be served.
        let done =
            tokio::task::spawn_blocking(move || replay(&cache, &view, |event| wanted.contains(&event.id)));
        let done: Vec<Replayed> =
            done.await.map_err(|error| Refusal::internal(format!("the replay ended early: {error}")))?;
        Ok(v1::ReplayDecisionsResponse { decisions: done.iter().map(show).collect() })
    }
}

/// The decisions that are asked for.
fn wanted(view: &View, request: &v1::ReplayDecisionsRequest) -> Result<BTreeSet<EventId>, Refusal> {
    let last = match request.last {
        0 => LAST,
        1..=LAST_MAX => request.last,
        more => return Err(Refusal::field("last", format!("is {more}, at most {LAST_MAX} are allowed"))),
    };
    let agency = if request.agency.is_empty() { None } else { Some(agency_of(view, &request.agency)?) };
    let takes = |event: &Row<Event>| {
        let Some(decision) = &event.decision else { return false };
        let of = request.revision;
        (of == 0 || of == decision.revision || of == event.revision.0)
            && agency.is_none_or(|agency| event.agency == Some(agency))
            && (request.vm.is_empty()
                || request.vm == event.name.as_str()
                || request.vm == event.subject.to_string())
    };
    let newest = view.events.iter().rev().filter(|event| takes(event));
    Ok(newest.take(last as usize).map(|event| event.id).collect())
}

fn show(one: &Replayed) -> v1::ReplayedDecision {
    v1::ReplayedDecision {
        revision: one.event.revision.0,
        decided_at: one.event.decision.as_ref().map_or(0, |decision| decision.revision),
        time: timestamp(one.event.time),
        vm_id: one.event.subject.to_string(),
        vm: one.event.name.to_string(),
        recorded: one.event.message.clone(),
        computed: one.again.clone(),
        differs: one.differs.clone(),
    }
}
