//! The rescuer: gives VMs that are off because their node, which is heard, has lost the pool of their disks to nodes that
//! have it, by cold moves, the most important first. What it does is in the records, so the next leader's goes on with it.
//! Deliberately absent: how a move runs (the mover and the agents), and nodes that are not heard (the fencer and the
//! evacuator).

use std::time::Duration;

use async_trait::async_trait;
use tamdao_store::view::View;

use super::Loop;
use super::evacuator::{self, Outcome};
use crate::decide::move_start::Wish;
use crate::decide::rescue::{self, Stranded};
use crate::refusal::Refusal;
use crate::shared::Shared;

/// VMs that are rescued in one pass; the next one sees what is left.
const AT_ONCE: usize = 32;

/// See the module.
#[derive(Default)]
pub struct Rescuer;

#[async_trait]
impl Loop for Rescuer {
    fn name(&self) -> &'static str {
        "rescuer"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let (view, engine) = shared.engine.guarded(&shared.cache);
        for id in rescue::needless(&view) {
            let decided = shared.writer.submit(move |draft, moment| {
                rescue::give_up(draft, moment, id);
                Ok(())
            });
            decided.await?;
        }
        let now = shared.clock.now();
        let mut due = rescue::due(&view, now);
        if due.is_empty() || view.cluster().is_some_and(|it| it.is_disarmed(now)) {
            return Ok(due.len() as u64);
        }
        due.truncate(AT_ONCE);
        let asked: Vec<_> = due.iter().map(|one| (one.node, one.vm)).collect();
        let outcome = evacuator::decide(&view, &engine.guarantee, &asked)?;
        for stranded in &due {
            if let Some(wish) = wish(&view, &outcome, *stranded) {
                open(shared, *stranded, wish).await?;
            }
        }
        Ok(due.len() as u64)
    }
}

fn wish(view: &View, outcome: &Outcome, stranded: Stranded) -> Option<Wish> {
    let place = outcome.places.get(&stranded.node)?.iter().find(|place| place.vm == stranded.vm)?;
    Some(Wish {
        vm: stranded.vm,
        target: place.node,
        reservation: place.reservation,
        cells: place.cells.clone(),
        allow_cold: true,
        auto_converge: false,
        reason: rescue::reason(view, stranded),
    })
}

async fn open(shared: &Shared, stranded: Stranded, wish: Wish) -> Result<(), Refusal> {
    let (vm, to) = (wish.vm, wish.target);
    match shared.writer.submit(move |draft, moment| rescue::open(draft, moment, stranded, &wish)).await {
        Ok((true, _)) => {
            tracing::warn!(%vm, node = %to, "a VM whose node has lost its pool goes elsewhere");
            Ok(())
        }
        Ok((false, _)) => Ok(()),
        Err(refusal) if refusal.is_overtaken() => {
            tracing::debug!(%vm, node = %to, error = %refusal.message, "a rescue is overtaken");
            Ok(())
        }
        Err(refusal) => Err(refusal),
    }
}
