//! The placer: gives VMs without a node a node. The engine admits many at once to a fork of its picture, each where the
//! failover guarantee is kept; `decide::place` holds the room under the nodes' guards.

pub mod hold;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::check::{Step, check};
use tamdao_scheduler::survive::guarantee::Refusal as Unfit;
use tamdao_scheduler::{self as scheduler, Cells, VmShape};

use super::Loop;
use crate::decide::{place, waiting};
use crate::engine;
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

/// What one decision does.
#[derive(Default, Clone)]
struct Outcome {
    places: Vec<(VmId, NodeId, Reservation)>,
    /// VM, reason, message.
    waiting: Vec<(VmId, String, String)>,
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
            match engine::shape(&view, vm) {
                Ok(shape) => shapes.push(Arc::new(shape)),
                Err(error) => outcome.waiting.push((*id, "Incomplete".into(), error.to_string())),
            }
            if shapes.len() == BATCH {
                break;
            }
        }
        let mut fork = engine.guarantee.clone();
        let turn = |id: VmId| view.vms.get(id).and_then(|vm| engine::waiting(vm));
        self.hold = self.hold.filter(|hold| turn(hold.vm).is_some());
        if let Some(hold) = &self.hold {
            let ahead = shapes.partition_point(|shape| turn(shape.id) <= turn(hold.vm));
            hold.keep(&mut fork, &mut shapes[ahead..]);
        }
        let picture = fork.view().clone();
        for (shape, answer) in shapes.iter().zip(fork.admit_each(&shapes)) {
            let Some(vm) = view.vms.get(shape.id) else { continue };
            let (reason, message) = match answer {
                Ok(placement) => {
                    outcome.places.push((shape.id, placement.node, placement.reservation));
                    continue;
                }
                Err(Unfit::NoPlace(rejection)) => {
                    if self.hold.is_none_or(|hold| hold.vm == shape.id) {
                        let now = shared.clock.now();
                        self.hold = Hold::of(&picture, shape, vm.meta.create_time, now, &rejection);
                    }
                    waiting::tell(vm, &rejection)
                }
                Err(Unfit::Unguarded { broken, .. }) => waiting::unguarded(&broken),
            };
            refused.insert(shape.id, (vm.meta.generation, helped));
            outcome.waiting.push((shape.id, reason.into(), message));
        }
        judge(engine.picture(), &shapes, &outcome)?;
        commit(shared, outcome).await?;
        Ok(shared.engine.newest(&shared.cache).1.waiting.len() as u64)
    }
}

/// Lets the independent judge look at the plan before it is committed.
fn judge(before: &scheduler::View, shapes: &[Arc<VmShape>], outcome: &Outcome) -> Result<(), Refusal> {
    // A VM's record cannot ask for NUMA cells yet.
    let step = |(id, node, _): &(VmId, NodeId, Reservation)| {
        let vm = shapes.iter().find(|shape| shape.id == *id)?.clone();
        Some(Step::Assign { vm, node: *node, cells: Cells::NONE })
    };
    let steps: Vec<Step> = outcome.places.iter().filter_map(step).collect();
    check(before, &steps).map_err(|breaches| {
        let breach = breaches.first().map(ToString::to_string).unwrap_or_default();
        tracing::error!(error = breach, "the engine's plan breaks its own rules; nothing is placed");
        Refusal::internal(format!("the engine's plan breaks its own rules: {breach}"))
    })
}

async fn commit(shared: &Shared, outcome: Outcome) -> Result<(), Refusal> {
    let view = shared.cache.view();
    // By node, because each node's record is written once for all of a decision.
    let mut by_node: BTreeMap<NodeId, Vec<(VmId, Reservation)>> = BTreeMap::new();
    for (vm, node, reservation) in outcome.places {
        by_node.entry(node).or_default().push((vm, reservation));
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
            for ((vm, _), answer) in vms.iter().zip(answers) {
                if let Err(overtaken) = answer {
                    tracing::debug!(%vm, %node, ?overtaken, "placement overtaken");
                }
            }
            Ok(())
        })
    });
    let waiting = outcome.waiting.chunks(TOLD).map(|chunk| {
        let chunk = chunk.to_vec();
        shared.writer.submit(move |draft, moment| {
            for (vm, reason, message) in &chunk {
                place::explain_waiting(draft, moment, *vm, reason, message);
            }
            Ok(())
        })
    });
    let (placed, told) =
        futures::join!(futures::future::join_all(places), futures::future::join_all(waiting));
    placed.into_iter().chain(told).find_map(Result::err).map_or(Ok(()), Err)
}

/// Cuts one node's placements into decisions that each fit a transaction, by how many records each writes.
fn split(vms: &[(VmId, Reservation)], weigh: impl Fn(VmId) -> usize) -> Vec<Vec<(VmId, Reservation)>> {
    let mut weight = 0;
    let parts = vms.chunk_by(|(before, _), (next, _)| {
        weight += weigh(*before);
        let same = weight + weigh(*next) <= PER_DECISION;
        weight *= usize::from(same);
        same
    });
    parts.map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_decision_writes_more_than_a_transaction_takes() {
        let vms: Vec<_> =
            (0..16).map(|at| (VmId(uuid::Uuid::from_u128(at)), Reservation::default())).collect();
        let sizes = |weight| split(&vms, |_| weight).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(3), [16]);
        // Six disks each.
        assert_eq!(sizes(8), [7, 7, 2]);
        assert_eq!(sizes(PER_DECISION + 1), [1; 16]);
    }
}
