//! A node or a rack is lost: the whole plan of restarts, timed. Deliberately absent: fencing, which comes before.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use tamdao_scheduler::View;
use tamdao_scheduler::survive::{Loss, survive};

use crate::plan_file::PlanFile;
use crate::speed::now;

/// What a loss came to.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    pub took: Duration,
    pub restarted: usize,
    pub left_out: usize,
    /// Whether no VM is restarted before one of a higher priority.
    pub by_priority: bool,
}

/// The fastest of several equal plans, as noise only adds; with the plan written.
pub fn measure(view: &View, loss: &Loss, plan: &mut impl Write) -> Result<Storm> {
    let mut best: Option<Duration> = None;
    let mut survival = None;
    for _ in 0..5 {
        let begin = now();
        survival = Some(survive(view, loss.clone()));
        let took = now() - begin;
        best = Some(best.map_or(took, |best| best.min(took)));
    }
    let survival = survival.context("at least one plan was made")?;
    let mut file = PlanFile::begin(plan, view)?;
    let lost = |node| view.vms_on(node).iter();
    for vm in survival.lost.iter().flat_map(|node| lost(*node)) {
        file.go(1, vm.id)?;
    }
    for node in &survival.lost {
        file.close(*node)?;
    }
    let mut priorities = Vec::new();
    for placement in &survival.plan {
        let vm = survival.lost.iter().flat_map(|node| lost(*node)).find(|vm| vm.id == placement.vm);
        let vm = vm.context("a VM is restarted that was not lost")?;
        file.come(2, vm, (placement.node, placement.cells))?;
        priorities.push(vm.priority);
    }
    let restarted: BTreeSet<_> = survival.plan.iter().map(|placement| placement.vm).collect();
    let kept: usize = view.nodes().map(|node| view.vms_on(node.id).len()).sum();
    file.claim("accepted", (kept + restarted.len()) as u64)?;
    Ok(Storm {
        took: best.unwrap_or_default(),
        restarted: restarted.len(),
        left_out: survival.left_out.len(),
        by_priority: priorities.is_sorted_by(|before, after| before >= after),
    })
}
