//! How long one decision takes with the failover guarantee on, and how much it refuses: the loss of any node and of
//! any rack of 40 is guarded, and all VMs are protected. A decision is one `admit`, which is the placement with all
//! plans of restarts carried on, or the refusal; before each a random VM leaves, so that the fleet stays as full as
//! it is. Deliberately absent: what a loss then takes, which is the storm's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use tamdao_scheduler::check::plans::check_plans;
use tamdao_scheduler::check::{Step, check};
use tamdao_scheduler::survive::Lack;
use tamdao_scheduler::survive::guarantee::{Guarantee, Refusal};
use tamdao_scheduler::{By, Placement, VmShape};

use crate::fleet::{Fleet, Kind};
use crate::speed::{DECISIONS, Speed, now};

/// One decision of so many is judged: a fork makes the next one slower.
const JUDGED: usize = 50;

/// What one fleet showed.
#[derive(Debug, Clone, Copy)]
pub struct Guarded {
    pub speed: Speed,
    /// Refusals that name a loss, and those of them that no sum proves.
    pub unguarded: usize,
    pub not_proven: usize,
    /// VMs that the guarantee left out when it took the fleet over as it had grown.
    pub left_out: usize,
    /// The time of the judge for one decision, the median: the place and the plans that it touches.
    pub judged: Duration,
    /// Decisions that would be made and judged, by the mean times of both.
    pub judged_per_second: f64,
    /// The time to plan every loss.
    pub planned: Duration,
}

/// Measures one fleet. A refused VM leaves its room to the next, so a fleet that is too full for the guarantee
/// empties to what it can keep.
pub fn measure(nodes: usize, percent: u64) -> Result<Guarded> {
    let mut fleet = Fleet::new(Kind::Plain, nodes, percent)?;
    let begin = now();
    let mut guarantee = Guarantee::new(fleet.view.clone(), &[By::Node, By::Domain("rack".into())]);
    let planned = now() - begin;
    let left_out = guarantee.broken().count();
    let mut took = Vec::with_capacity(DECISIONS);
    let (mut refused, mut unguarded, mut not_proven) = (0, 0, 0);
    let mut judged = Vec::new();
    for turn in 0..DECISIONS {
        let (node, out) = fleet.leaves();
        guarantee.release(node, out);
        let vm = fleet.vm();
        let before = (turn % JUDGED == 0).then(|| guarantee.clone());
        let begin = now();
        let answer = guarantee.admit(&vm);
        took.push(now() - begin);
        match answer {
            Ok(placement) => {
                if let Some(before) = before {
                    judged.push(judge(&before, &guarantee, &vm, &placement)?);
                }
                fleet.placed.push((placement.node, vm.id));
            }
            Err(refusal) => {
                refused += 1;
                if let Refusal::Unguarded { broken, .. } = refusal {
                    unguarded += 1;
                    not_proven += usize::from(broken.lack == Lack::NotProven);
                }
            }
        }
    }
    let whole = took.iter().sum();
    let speed = Speed::of(took, whole, refused);
    judged.sort_unstable();
    let mean = judged.iter().sum::<Duration>().as_secs_f64() / judged.len().max(1) as f64;
    let judged_per_second = 1.0 / (1.0 / speed.per_second + mean);
    let judged = judged.get(judged.len() / 2).copied().unwrap_or_default();
    Ok(Guarded { speed, unguarded, not_proven, left_out, judged, judged_per_second, planned })
}

/// How long the judge takes for one decision.
fn judge(
    before: &Guarantee,
    after: &Guarantee,
    vm: &Arc<VmShape>,
    placement: &Placement,
) -> Result<Duration> {
    let steps = [Step::Assign { vm: vm.clone(), node: placement.node, cells: placement.cells }];
    let begin = now();
    let place = check(before.view(), &steps);
    let plans = check_plans(before, after, &steps);
    let took = now() - begin;
    ensure!(place.is_ok() && plans.is_ok(), "the judge does not accept a decision: {place:?} {plans:?}");
    Ok(took)
}
