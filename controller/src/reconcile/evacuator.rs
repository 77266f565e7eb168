//! The evacuator: restarts the VMs of fenced nodes elsewhere, the most important first: where room is left for the next
//! failure if all find such places, else where the plan for this failure has them. What was being deleted is deleted on.
//!
//! Invariants: each batch is committed only while its node is Fenced; nothing is evacuated while the brake is on or
//! automatic restarts are disarmed. Deliberately absent: evidence (the fencer gathers it), and waiting for room: what has
//! no place is told why and asked for again when something has changed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::VmShape;
use tamdao_scheduler::check::Step;
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::Loop;
use crate::admission::Moment;
use crate::decide::evacuate::Place;
use crate::decide::{brake, evacuate, vm_delete, waiting};
use crate::engine::{self, judged};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// VMs without a place that are told why in one decision.
const TOLD: usize = 16;

/// Why a VM waits while the brake is on.
const BRAKED: &str = "Braked";

/// See the module.
#[derive(Default)]
pub struct Evacuator {
    braked: bool,
}

#[async_trait]
impl Loop for Evacuator {
    fn name(&self) -> &'static str {
        "evacuator"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let (view, engine) = shared.engine.guarded(&shared.cache);
        let (held_up, due) = (vm_delete::held_up(&view), evacuate::due(&view));
        if view.cluster().is_some_and(|it| it.is_disarmed(shared.clock.now())) {
            return Ok(due.len() as u64);
        }
        for held in held_up {
            let go_on = move |draft: &mut Draft, moment: &mut Moment| {
                vm_delete::go_on(draft, moment, held);
                Ok(())
            };
            shared.writer.submit(go_on).await?;
        }
        if due.is_empty() {
            return Ok(0);
        }
        let braked = brake::applied(&view);
        if let Some(braked) = braked
            && !self.braked
        {
            tracing::error!(error = %braked, "evacuation is stopped");
        }
        self.braked = braked.is_some();
        let outcome = match braked {
            Some(braked) => {
                let waiting = due.iter().map(|(_, vm)| (*vm, BRAKED.to_owned(), braked.to_string()));
                Outcome { waiting: waiting.collect(), ..Outcome::default() }
            }
            None => decide(&view, &engine.guarantee, &due)?,
        };
        let left = outcome.waiting.len() as u64;
        commit(shared, &view, outcome).await?;
        Ok(left)
    }
}

/// What one pass does.
#[derive(Default)]
pub(super) struct Outcome {
    /// By lost node, in the order of restarts.
    pub(super) places: BTreeMap<NodeId, Vec<Place>>,
    /// VM, reason, message.
    waiting: Vec<(VmId, String, String)>,
}

/// Finds a place for each VM that is due, all at the same time.
pub(super) fn decide(view: &View, guarantee: &Guarantee, due: &[(NodeId, VmId)]) -> Result<Outcome, Refusal> {
    let mut outcome = Outcome::default();
    let mut rest = guarantee.view().clone();
    let mut shapes: Vec<(NodeId, Arc<VmShape>)> = Vec::new();
    for (lost, id) in due {
        let Some(vm) = view.vms.get(*id) else { continue };
        rest.release(*lost, *id);
        match engine::shape(view, vm) {
            Ok(mut shape) => {
                if vm.spec.deleting {
                    shape.pin = None;
                }
                shapes.push((*lost, Arc::new(shape)));
            }
            Err(error) => outcome.waiting.push((*id, "Incomplete".into(), error.to_string())),
        }
    }
    let mut steps = Vec::new();
    for ((lost, shape), answer) in shapes.iter().zip(guarantee.restart(&shapes)) {
        match answer {
            Ok(placement) => {
                let places = outcome.places.entry(*lost).or_default();
                places.push(Place {
                    vm: shape.id,
                    node: placement.node,
                    reservation: placement.reservation,
                    cells: engine::cell_numbers(view, placement.node, placement.cells),
                });
                let (vm, node, cells) = (shape.clone(), placement.node, placement.cells);
                steps.push(Step::Assign { vm, node, cells });
            }
            Err(rejection) => {
                let Some(vm) = view.vms.get(shape.id) else { continue };
                let (reason, message) = waiting::tell(vm, &rejection);
                outcome.waiting.push((shape.id, reason.into(), message));
            }
        }
    }
    judged(&rest, &steps)?;
    Ok(outcome)
}

async fn commit(shared: &Shared, view: &View, outcome: Outcome) -> Result<(), Refusal> {
    // The most important VM of all nodes is in the first batch.
    let mut batches: Vec<(Reverse<u32>, NodeId, Vec<Place>)> = Vec::new();
    for (lost, places) in outcome.places {
        for batch in places.chunks(evacuate::BATCH) {
            let priority = |place: &Place| view.vms.get(place.vm).map(|vm| vm.spec.priority);
            let highest = batch.iter().filter_map(priority).max().unwrap_or_default();
            batches.push((Reverse(highest), lost, batch.to_vec()));
        }
    }
    batches.sort_by_key(|(priority, lost, _)| (*priority, *lost));
    for (_, lost, batch) in batches {
        tracing::warn!(node = %lost, vms = batch.len(), "restarting the VMs of a lost node elsewhere");
        let decided =
            shared.writer.submit(move |draft, moment| Ok(evacuate::evacuate(draft, moment, lost, &batch)));
        decided.await?;
    }
    // Told once: each word is a record and an event.
    for chunk in outcome.waiting.chunks(TOLD) {
        let news = chunk.iter().filter(|(vm, reason, message)| {
            view.vms.get(*vm).is_some_and(|vm| evacuate::is_news(vm, reason, message))
        });
        let chunk: Vec<_> = news.cloned().collect();
        if chunk.is_empty() {
            continue;
        }
        let decided = shared.writer.submit(move |draft, moment| {
            let released = brake::applied(draft.view()).is_none();
            for (vm, reason, message) in chunk.iter().filter(|(_, reason, _)| !(released && reason == BRAKED))
            {
                evacuate::explain_waiting(draft, moment, *vm, reason, message);
            }
            Ok(())
        });
        decided.await?;
    }
    Ok(())
}
