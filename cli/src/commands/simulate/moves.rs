//! What the verbs that plan moves have in common: the terms under which is planned, and how a plan is shown. A plan is
//! shown only after the engine's own judge has found no fault with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use tamdao_model::VmId;
use tamdao_scheduler::View;
use tamdao_scheduler::judge::judge;
use tamdao_scheduler::plan::drain::Blocker;
use tamdao_scheduler::plan::{Budget, Guard, Limits, Move, Plan, Terms, Way, Why};

use super::fork::Fork;
use super::what_if::{unknown, values_of};
use crate::app::App;
use crate::args::PaceArgs;
use crate::output::{Cell, Table, Tone};
use crate::problem::Problem;
use crate::quantity::{count, mib};

/// Moves that are printed, unless all are wanted.
const LINES: usize = 40;
/// Steps of planning without a time limit; a minute or so.
const STEPS: u64 = 5_000_000;

/// A plan for programs.
#[derive(Serialize)]
pub struct PlanReport {
    moves: usize,
    copied_mib: u64,
    rounds: Vec<Vec<MoveReport>>,
}

#[derive(Serialize)]
struct MoveReport {
    vm: String,
    id: String,
    from: String,
    to: String,
    live: bool,
    memory_mib: u64,
    disk_mib: u64,
    why: String,
}

/// A VM that stays although it should go, for programs.
#[derive(Serialize)]
pub struct Stuck {
    vm: String,
    id: String,
    node: String,
    why: String,
}

/// The terms that the flags mean.
pub fn terms(fork: &Fork, pace: &PaceArgs, guarded: &[String]) -> Result<Terms, Problem> {
    let mut per_link = BTreeMap::new();
    for (key, at_most) in &pace.per_link {
        values_of(key, fork).map_err(|error| Problem::usage(format!("--per-link: {error}")))?;
        per_link.insert(key.clone(), *at_most);
    }
    let mut still: BTreeSet<VmId> = BTreeSet::new();
    for name in &pace.keep {
        let placed = || fork.view.nodes().flat_map(|node| fork.view.vms_on(node.id));
        let named: Vec<VmId> =
            placed().filter(|vm| *vm.name == **name || vm.id.to_string() == *name).map(|vm| vm.id).collect();
        if named.is_empty() {
            let error = unknown("VM", name, placed().map(|vm| &*vm.name));
            return Err(Problem::usage(format!("--keep: {error}")));
        }
        still.extend(named);
    }
    let limits = Limits { per_node: pace.per_node, at_once: pace.at_once, per_link };
    Ok(Terms { limits, guard: guard(fork, guarded)?, still, ..Terms::default() })
}

/// The losses that are guarded against; none when no key is given.
pub fn guard(fork: &Fork, keys: &[String]) -> Result<Option<Guard>, Problem> {
    let mut guard = Guard::default();
    for key in keys {
        if key == "node" {
            guard.nodes = true;
        } else {
            values_of(key, fork).map_err(|error| Problem::usage(format!("--guarded: {error}")))?;
            guard.keys.insert(key.clone());
        }
    }
    Ok((!keys.is_empty()).then_some(guard))
}

/// Runs a planner within the time that the flags give.
pub fn within<T>(pace: &PaceArgs, plan: impl FnOnce(&mut Budget) -> T) -> T {
    match pace.time_limit {
        None => plan(&mut Budget::steps(STEPS)),
        Some(limit) => {
            let begun = Instant::now();
            plan(&mut Budget::until(u64::MAX, &|| begun.elapsed() >= limit))
        }
    }
}

/// Judges a plan and carries it out in the view.
///
/// # Errors
/// When the judge finds fault, which only an error of the engine can lead to.
pub fn carry(view: &mut View, plan: &Plan, limits: &Limits) -> Result<(), Problem> {
    judge(view, plan, limits).map_err(|faults| {
        let mut problem = Problem::usage("the engine's own judge refuses the engine's plan");
        problem.details = faults.iter().take(5).map(ToString::to_string).collect();
        problem.hint("this is an error of the engine: please report it with the file of `tamdao debug dump`")
    })?;
    for one in plan.moves() {
        if let Some(vm) = view.release(one.from, one.vm) {
            // The judge has seen that the node is there and does not have the VM.
            let _ = view.assign_to(one.to, one.cells, vm);
        }
    }
    Ok(())
}

/// A plan as data.
pub fn report(fork: &Fork, plan: &Plan) -> PlanReport {
    let one = |one: &Move| MoveReport {
        vm: fork.vm(one.vm),
        id: one.vm.to_string(),
        from: fork.node(one.from),
        to: fork.node(one.to),
        live: one.way == Way::Live,
        memory_mib: one.memory_mib,
        disk_mib: one.disk_mib,
        why: why(fork, one),
    };
    PlanReport {
        moves: plan.move_count(),
        copied_mib: plan.copied_mib(),
        rounds: plan.rounds.iter().map(|round| round.moves.iter().map(one).collect()).collect(),
    }
}

/// What stays as data.
pub fn stuck(fork: &Fork, blockers: &[Blocker]) -> Vec<Stuck> {
    let one = |one: &Blocker| Stuck {
        vm: one.name.to_string(),
        id: one.vm.to_string(),
        node: fork.node(one.node),
        why: one.cause.to_string(),
    };
    blockers.iter().map(one).collect()
}

/// A plan in one line.
pub fn sum(plan: &Plan) -> String {
    if plan.is_empty() {
        return "nothing moves".to_owned();
    }
    let moves = count(plan.move_count(), "move");
    format!("{moves} in {}, {} to copy", count(plan.rounds.len(), "round"), mib(plan.copied_mib()))
}

/// Draws the moves by rounds.
pub fn show(app: &App, fork: &Fork, plan: &Plan) -> Result<()> {
    let limit = if app.output.is_wide() { usize::MAX } else { LINES };
    let rounds = plan.rounds.iter().enumerate();
    let moves = rounds.flat_map(|(at, round)| round.moves.iter().map(move |one| (at + 1, one)));
    let rows = moves.take(limit).map(|(round, one)| {
        let (way, tone) = match one.way {
            Way::Live => ("live", Tone::Plain),
            Way::Cold => ("stopped", Tone::Busy),
        };
        vec![
            Cell::from(round),
            Cell::from(fork.vm(one.vm)),
            Cell::from(fork.node(one.from)),
            Cell::from(fork.node(one.to)),
            Cell::toned(way, tone),
            Cell::from(mib(one.copied_mib())),
            Cell::from(why(fork, one)),
        ]
    });
    let headers = vec!["ROUND", "VM", "FROM", "TO", "HOW", "COPIES", "WHY"];
    app.output.table(&Table { headers, rows: rows.collect() }, "nothing has to move")?;
    if plan.move_count() > limit {
        let left = plan.move_count() - limit;
        app.output
            .note(&format!("{left} more moves are shown by -o wide; -o text writes the plan as a file"));
    }
    Ok(())
}

/// Draws what stays and why.
pub fn show_stuck(app: &App, fork: &Fork, blockers: &[Blocker]) -> Result<()> {
    let rows = blockers.iter().map(|one| {
        vec![
            Cell::toned(&*one.name, Tone::Bad),
            Cell::from(fork.node(one.node)),
            Cell::from(one.cause.to_string()),
        ]
    });
    app.output.section("What stays", &Table { headers: vec!["VM", "NODE", "WHY"], rows: rows.collect() })
}

fn why(fork: &Fork, one: &Move) -> String {
    match one.why {
        Why::Empty => format!("empties {}", fork.node(one.from)),
        Why::RoomFor(vm) => format!("makes room for {}", fork.vm(vm)),
        Why::With(vm) => format!("goes with {}", fork.vm(vm)),
        Why::Even => "evens out load".to_owned(),
        Why::Join => "joins small free rooms".to_owned(),
        Why::Wished => "goes where it was wished".to_owned(),
    }
}
