//! The placer: gives VMs without a node a node. The engine admits many at once to a fork of its picture, each where the
//! failover guarantee is kept; `decide::place` holds the room under the nodes' guards.

pub mod hold;
pub mod replay;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::event::Decision;
use tamdao_model::{NodeId, TimeMs, VmId};
use tamdao_scheduler::check::Step;
use tamdao_scheduler::survive::guarantee::{Guarantee, Refusal as Unfit};
use tamdao_scheduler::{Placement, VmShape};
use tamdao_store::view::View;

use super::Loop;
use crate::decide::place::{self, Proposal};
use crate::decide::waiting;
use crate::engine::{self, Engine, judged, judged_plans};
use crate::refusal::Refusal;
use crate::shared::Shared;
use hold::Hold;

/// VMs decided in one pass. A pass writes the whole assignment of each node that it gives something to, so few large
/// passes cost less than many small ones; when little waits, a pass is small by itself.
const BATCH: usize = 2_048;
/// Records that the placements of one decision write at most, so that it fits a transaction, and two do mostly.
const PER_DECISION: usize = 60;
/// VMs without a place that are told why in one decision; each is a record and an event.
const TOLD: usize = 16;

/// See the module.
#[derive(Default)]
pub struct Placer {
    /// Who was refused, under which state of their own and of the cluster: asking again before either has changed
    /// would only keep those behind them waiting.
    refused: HashMap<VmId, (u64, u64)>,
    hold: Option<Hold>,
}

/// What one pass does.
#[derive(Default, Clone)]
struct Outcome {
    places: Vec<(Arc<VmShape>, NodeId, Proposal)>,
    waiting: Vec<Waits>,
    /// The guarantee before and after, on the fork that was decided in.
    before: Guarantee,
    after: Guarantee,
}

/// A VM that has no place, and why.
#[derive(Clone)]
struct Waits {
    vm: VmId,
    reason: String,
    message: String,
    decision: Option<Decision>,
}

#[async_trait]
impl Loop for Placer {
    fn name(&self) -> &'static str {
        "placer"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(10)
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        // What is decided is decided from one revision, view and picture alike.
        let (view, engine) = shared.engine.guarded(&shared.cache);
        if engine.waiting.is_empty() {
            return Ok(0);
        }
        let outcome = self.decide(&view, &engine, shared.clock.now());
        judge(&outcome)?;
        commit(shared, outcome).await?;
        Ok(shared.engine.newest(&shared.cache).1.waiting.len() as u64)
    }
}

impl Placer {
    /// What one pass does, from a view and the engine at its revision.
    fn decide(&mut self, view: &View, engine: &Engine, now: TimeMs) -> Outcome {
        let mut shapes: Vec<Arc<VmShape>> = Vec::new();
        let mut outcome = Outcome::default();
        let helped = engine.helped;
        let refused = &mut self.refused;
        refused.retain(|id, (_, at)| {
            *at == helped && view.vms.get(*id).is_some_and(|vm| vm.status.node.is_none())
        });
        for (_, _, id) in &engine.waiting {
            let Some(vm) = view.vms.get(*id) else { continue };
            if refused.get(id) == Some(&(vm.meta.generation, helped)) {
                continue;
            }
            match engine::shape(view, vm) {
                Ok(shape) => shapes.push(Arc::new(shape)),
                Err(error) => {
                    let (vm, reason, message) = (*id, "Incomplete".into(), error.to_string());
                    outcome.waiting.push(Waits { vm, reason, message, decision: None });
                }
            }
            if shapes.len() == BATCH {
                break;
            }
        }
        let mut fork = engine.guarantee.clone();
        self.hold = self.hold.take().filter(|hold| turn(view, hold.vm).is_some());
        let kept = self.hold.as_ref().map(Hold::parts);
        if let Some(hold) = &self.hold {
            hold.keep(&mut fork, view, &mut shapes);
        }
        let before = fork.clone();
        let planned = if engine.guard.is_empty() { 0 } else { engine.planned.0 };
        let mut placed = 0;
        let answers = fork.admit_each(&shapes);
        for (shape, answer) in shapes.iter().zip(answers) {
            let Some(vm) = view.vms.get(shape.id) else { continue };
            let (revision, turn, digest) = (view.revision.0, placed, replay::digest(shape));
            let decision = Decision { revision, planned, turn, score: 0, kept: kept.clone(), digest };
            let (reason, message) = match answer {
                Ok(Placement { node, cells, reservation, score, .. }) => {
                    placed += 1;
                    let decision = Some(Box::new(Decision { score, ..decision }));
                    let cells = engine::cell_numbers(view, node, cells);
                    let proposal = Proposal { vm: shape.id, reservation, cells, decision };
                    outcome.places.push((shape.clone(), node, proposal));
                    continue;
                }
                Err(refusal) => {
                    if self.hold.as_ref().is_none_or(|hold| hold.vm == shape.id) {
                        let since = vm.meta.create_time;
                        self.hold = match &refusal {
                            Unfit::NoPlace(rejection) => {
                                Hold::of(before.view(), shape, since, now, rejection)
                            }
                            Unfit::Unguarded { node, .. } => Hold::beside(&before, shape, since, now, *node),
                        };
                    }
                    waiting::told(vm, &refusal)
                }
            };
            refused.insert(shape.id, (vm.meta.generation, helped));
            let (vm, reason) = (shape.id, reason.into());
            outcome.waiting.push(Waits { vm, reason, message, decision: Some(decision) });
        }
        (outcome.before, outcome.after) = (before, fork);
        outcome
    }
}

/// A VM's place in the queue, if it waits.
fn turn(view: &View, vm: VmId) -> Option<engine::Waiting> {
    view.vms.get(vm).and_then(|vm| engine::waiting(vm))
}

/// Lets the independent judge look at the places, and at the plans for failures that they came near to, before they are
/// committed.
fn judge(outcome: &Outcome) -> Result<(), Refusal> {
    let after = outcome.after.view();
    let step = |(vm, node, _): &(Arc<VmShape>, NodeId, Proposal)| Step::Assign {
        vm: vm.clone(),
        node: *node,
        cells: after.cells_of(*node, vm.id),
    };
    let steps: Vec<Step> = outcome.places.iter().map(step).collect();
    judged(outcome.before.view(), &steps)?;
    judged_plans(&outcome.before, &outcome.after, &steps)
}

async fn commit(shared: &Shared, outcome: Outcome) -> Result<(), Refusal> {
    let view = shared.cache.view();
    // By node, because each node's record is written once for all of a decision.
    let mut by_node: BTreeMap<NodeId, Vec<Proposal>> = BTreeMap::new();
    for (_, node, proposal) in outcome.places {
        by_node.entry(node).or_default().push(proposal);
    }
    // The VM, its volumes and an event.
    let weigh = |vm: VmId| 2 + view.vms.get(vm).map_or(0, |row| row.volumes().count());
    // All are handed in at once, so that the writer folds them.
    let places = by_node
        .into_iter()
        .flat_map(|(node, vms)| split(&vms, weigh).into_iter().map(move |vms| (node, vms)));
    let places = places.map(|(node, vms)| {
        shared.writer.submit(move |draft, moment| {
            // What was overtaken stays pending, and the next pass sees why.
            let answers = place::place(draft, moment, node, &vms);
            for (proposal, answer) in vms.iter().zip(answers) {
                if let Err(overtaken) = answer {
                    tracing::debug!(vm = %proposal.vm, %node, ?overtaken, "placement overtaken");
                    place::tell_overtaken(draft, moment, node, proposal);
                }
            }
            Ok(())
        })
    });
    let waiting = outcome.waiting.chunks(TOLD).map(|chunk| {
        let chunk = chunk.to_vec();
        shared.writer.submit(move |draft, moment| {
            for Waits { vm, reason, message, decision } in &chunk {
                place::explain_waiting(draft, moment, *vm, reason, message, decision.as_ref());
            }
            Ok(())
        })
    });
    let (placed, told) =
        futures::join!(futures::future::join_all(places), futures::future::join_all(waiting));
    placed.into_iter().chain(told).find_map(Result::err).map_or(Ok(()), Err)
}

/// Cuts one node's placements into decisions that each fit a transaction, by how many records each writes.
fn split(vms: &[Proposal], weigh: impl Fn(VmId) -> usize) -> Vec<Vec<Proposal>> {
    let mut weight = 0;
    let parts = vms.chunk_by(|before, next| {
        weight += weigh(before.vm);
        let same = weight + weigh(next.vm) <= PER_DECISION;
        weight *= usize::from(same);
        same
    });
    parts.map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use tamdao_model::assignment::Reservation;

    use super::*;

    #[test]
    fn no_decision_writes_more_than_a_transaction_takes() {
        let vms: Vec<Proposal> =
            (0..16).map(|at| (VmId(uuid::Uuid::from_u128(at)), Reservation::default()).into()).collect();
        let sizes = |weight| split(&vms, |_| weight).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(3), [16]);
        // Six disks each.
        assert_eq!(sizes(8), [7, 7, 2]);
        assert_eq!(sizes(PER_DECISION + 1), [1; 16]);
    }
}
