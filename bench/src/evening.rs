//! Load is evened out by live moves, by ours and by Ganeti's `hbal` where that is installed: the same cluster, and
//! each plan judged by the same measure. Deliberately absent: loads that were measured.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tamdao_model::NodeId;
use tamdao_scheduler::View;
use tamdao_scheduler::plan::balance::{Policy, balance};
use tamdao_scheduler::plan::{Budget, Terms};

use crate::ganeti;
use crate::plan_file::PlanFile;
use crate::speed::now;

/// How far nodes' loads are from the fleet's own, in percent of a node: the deviation over all nodes, of CPU and of
/// memory, and the farthest node's.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub cpu: f64,
    pub memory: f64,
    pub worst: f64,
}

/// What one planner's answer came to.
#[derive(Debug, Clone, Copy)]
pub struct Evened {
    pub took: Duration,
    pub moves: usize,
    pub moved_mib: u64,
    pub after: Spread,
}

/// Of the fleet as it is.
pub fn spread(view: &View) -> Spread {
    let uses: Vec<_> = view.nodes().filter_map(|node| view.node_use(node.id)).collect();
    let loads = |part: &dyn Fn(usize) -> f64| (0..uses.len()).map(part).collect::<Vec<f64>>();
    let cpu = loads(&|at| 100.0 * uses[at].vcpus_used as f64 / uses[at].vcpus.max(1) as f64);
    let memory = loads(&|at| 100.0 * uses[at].memory_used_mib as f64 / uses[at].memory_mib.max(1) as f64);
    let count = uses.len().max(1) as f64;
    let mean = |loads: &[f64]| loads.iter().sum::<f64>() / count;
    let deviation = |loads: &[f64]| {
        let mean = mean(loads);
        (loads.iter().map(|load| (load - mean).powi(2)).sum::<f64>() / count).sqrt()
    };
    let far = |loads: &[f64]| {
        let mean = mean(loads);
        loads.iter().map(|load| (load - mean).abs()).fold(0.0, f64::max)
    };
    Spread { cpu: deviation(&cpu), memory: deviation(&memory), worst: far(&cpu).max(far(&memory)) }
}

/// By our planner, whose plan is written; at most so many moves.
pub fn ours(view: &View, at_most: usize, plan: &mut impl Write) -> Result<Evened> {
    let policy = Policy { hold: 0, at_most, ..Policy::default() };
    let begin = now();
    let answer = balance(view, &policy, 0, &Terms::default(), &mut Budget::default());
    let took = now() - begin;
    let mut file = PlanFile::begin(plan, view)?;
    file.rounds(1, &answer.plan)?;
    file.claim("moves", answer.plan.move_count() as u64)?;
    let moves = answer.plan.moves().map(|one| (one.vm.0.as_u128(), one.to));
    let after = spread(&moved(view, moves)?);
    Ok(Evened { took, moves: answer.plan.move_count(), moved_mib: answer.plan.copied_mib(), after })
}

/// By `hbal`, in so many moves at most.
pub fn theirs(view: &View, at_most: usize, folder: &Path) -> Result<Evened> {
    let (took, places) = ganeti::balance(folder, view, at_most)?;
    let mut moved_mib = 0;
    let mut moves = Vec::new();
    for node in view.nodes() {
        for vm in view.vms_on(node.id) {
            let to = *places.get(&vm.id.0.as_u128()).context("hbal lost an instance")?;
            if to != node.id {
                moved_mib += vm.reservation.memory_mib;
                moves.push((vm.id.0.as_u128(), to));
            }
        }
    }
    let count = moves.len();
    Ok(Evened { took, moves: count, moved_mib, after: spread(&moved(view, moves.into_iter())?) })
}

fn moved(view: &View, moves: impl Iterator<Item = (u128, NodeId)>) -> Result<View> {
    let mut end = view.clone();
    for (vm, to) in moves {
        let vm = tamdao_model::VmId(uuid::Uuid::from_u128(vm));
        let from = end.homes(vm).next().context("a VM moves that is not there")?;
        let vm = end.release(from, vm).context("a VM moves that is not there")?;
        end.assign(to, vm)?;
    }
    Ok(end)
}
