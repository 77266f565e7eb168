//! The placer: gives VMs without a node a node. The engine decides for many at once on a fork of its picture;
//! `decide::place` holds the room under the nodes' guards.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::VmShape;
use tamdao_scheduler::place::place_each;

use super::Loop;
use crate::decide::place;
use crate::engine::{self, Engine};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// VMs decided in one pass; a pass must stay short, so that an early VM does not wait for a late one.
const BATCH: usize = 256;
/// Placements of one decision: each writes a VM, its volumes and an event, and all must fit one transaction.
const PER_DECISION: usize = 16;

/// See the module.
#[derive(Default)]
pub struct Placer {
    engine: Option<Engine>,
}

/// What one decision does.
#[derive(Default, Clone)]
struct Outcome {
    places: Vec<(VmId, NodeId, Reservation)>,
    waiting: Vec<(VmId, String)>,
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
        let engine = self.catch_up(shared);
        if engine.waiting.is_empty() {
            return Ok(0);
        }
        let view = shared.cache.view();
        let mut shapes: Vec<Arc<VmShape>> = Vec::new();
        let mut outcome = Outcome::default();
        for (_, id) in engine.waiting.iter().take(BATCH) {
            let Some(vm) = view.vms.get(*id) else { continue };
            match engine::shape(&view, vm) {
                Ok(shape) => shapes.push(Arc::new(shape)),
                Err(error) => outcome.waiting.push((*id, error.to_string())),
            }
        }
        let mut fork = engine.picture.clone();
        let answers = place_each(&mut fork, &shapes);
        for (shape, answer) in shapes.iter().zip(answers) {
            match answer {
                Ok(placement) => outcome.places.push((shape.id, placement.node, placement.reservation)),
                Err(rejection) => outcome.waiting.push((shape.id, rejection.to_string())),
            }
        }
        commit(shared, outcome).await?;
        Ok(self.catch_up(shared).waiting.len() as u64)
    }
}

impl Placer {
    /// The engine in step with the newest view.
    fn catch_up(&mut self, shared: &Shared) -> &mut Engine {
        let view = shared.cache.view();
        if let Some(engine) = &mut self.engine {
            // The history is complete up to the view; commits beyond it are followed next time.
            while let Ok(commits) = shared.cache.after(engine.at) {
                let within = commits.partition_point(|commit| commit.revision <= view.revision);
                if within == 0 {
                    break;
                }
                engine.follow(&commits[..within], &view);
            }
            if shared.cache.after(engine.at).is_ok() {
                return self.engine.as_mut().expect("it was there a line above");
            }
        }
        self.engine.insert(Engine::draw(&view))
    }
}

async fn commit(shared: &Shared, outcome: Outcome) -> Result<(), Refusal> {
    // All are handed in at once, so that the writer folds them.
    let places = outcome.places.chunks(PER_DECISION).map(|chunk| {
        let chunk = chunk.to_vec();
        shared.writer.submit(move |draft, moment| {
            for (vm, node, reservation) in &chunk {
                // What was overtaken stays pending, and the next pass sees why.
                if let Err(overtaken) = place::place(draft, moment, *vm, *node, *reservation) {
                    tracing::debug!(%vm, %node, ?overtaken, "placement overtaken");
                }
            }
            Ok(())
        })
    });
    let waiting = outcome.waiting.chunks(PER_DECISION).map(|chunk| {
        let chunk = chunk.to_vec();
        shared.writer.submit(move |draft, moment| {
            for (vm, message) in &chunk {
                place::explain_waiting(draft, moment, *vm, "NoRoom", message);
            }
            Ok(())
        })
    });
    let (placed, told) =
        futures::join!(futures::future::join_all(places), futures::future::join_all(waiting));
    placed.into_iter().chain(told).find_map(Result::err).map_or(Ok(()), Err)
}
