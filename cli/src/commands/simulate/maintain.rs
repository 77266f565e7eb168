//! `tamdao simulate maintain`: the question of every maintenance window. For each node and each value of each key: the
//! moves that empty it with no VM stopped and the guarded losses still survived, or what stays and what is missing. One
//! at a time: each line begins with the cluster as it is.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::plan::drain::{Drain, drain};
use tamdao_scheduler::survive::Loss;

use super::fork::{self, Fork};
use super::moves::{self, PlanReport, Stuck};
use super::what_if::{keys, values_of};
use super::{no_text, survive, verdict};
use crate::app::App;
use crate::args::MaintainArgs;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::mib;

#[derive(Serialize)]
struct Report {
    what: String,
    nodes: Vec<String>,
    possible: bool,
    plan: PlanReport,
    stuck: Vec<Stuck>,
    /// Guarded losses that could be survived before and cannot meanwhile.
    no_longer_survived: Vec<String>,
}

/// One line: what is emptied, and how that goes.
struct Line {
    loss: Loss,
    nodes: Vec<String>,
    answer: Drain,
}

pub async fn run(app: &App, args: &MaintainArgs) -> Result<ExitStatus> {
    if app.output.is_text() {
        return Err(no_text("maintain").hint("`tamdao simulate drain WHAT -o text` writes one plan").into());
    }
    let fork = fork::load(app, &args.fork).await?;
    let terms = moves::terms(&fork, &args.pace, &args.guarded)?;
    let mut lines = Vec::new();
    for loss in each(&fork, &args.each)? {
        let nodes = fork.lost_with(&loss);
        let answer = moves::within(&args.pace, |budget| drain(&fork.view, &nodes, &terms, budget));
        moves::carry(&mut fork.view.clone(), &answer.plan, &terms.limits)?;
        lines.push(Line { loss, nodes: nodes.iter().map(|node| fork.node(*node)).collect(), answer });
    }
    if app.output.is_machine() {
        let reports: Vec<Report> = lines.iter().map(|line| report(&fork, line)).collect();
        app.output.value(&reports)?;
    } else {
        show(app, &fork, &lines)?;
    }
    Ok(verdict(lines.iter().all(|line| line.answer.is_done())))
}

/// All that is maintained, one at a time: values that no node has alone are left out, since nothing is lost with them.
fn each(fork: &Fork, given: &[String]) -> Result<Vec<Loss>, Problem> {
    let given: Vec<String> = match given {
        [] => std::iter::once("node".to_owned()).chain(keys(fork)).collect(),
        given => given.to_vec(),
    };
    let mut all = Vec::new();
    for key in given {
        if key == "node" {
            all.extend(fork.view.nodes().map(|node| Loss::Node(node.id)));
            continue;
        }
        let values = values_of(&key, fork).map_err(|error| Problem::usage(format!("--each: {error}")))?;
        let values: BTreeSet<String> = values.into_iter().map(str::to_owned).collect();
        all.extend(values.into_iter().map(|value| Loss::Domain { key: key.clone(), value }));
    }
    all.retain(|loss| !fork.lost_with(loss).is_empty());
    Ok(all)
}

fn report(fork: &Fork, line: &Line) -> Report {
    Report {
        what: survive::name(fork, &line.loss),
        nodes: line.nodes.clone(),
        possible: line.answer.is_done(),
        plan: moves::report(fork, &line.answer.plan),
        stuck: moves::stuck(fork, &line.answer.stuck),
        no_longer_survived: line.answer.unborne.iter().map(|one| survive::name(fork, &one.loss)).collect(),
    }
}

fn show(app: &App, fork: &Fork, lines: &[Line]) -> Result<()> {
    let rows = lines.iter().map(|line| {
        let (word, tone) = match line.answer.is_done() {
            true => ("yes", Tone::Good),
            false => ("no", Tone::Bad),
        };
        let plan = &line.answer.plan;
        vec![
            Cell::from(survive::name(fork, &line.loss)),
            Cell::toned(word, tone),
            Cell::from(line.nodes.len()),
            Cell::from(plan.move_count()),
            Cell::from(plan.rounds.len()),
            Cell::from(mib(plan.copied_mib())),
            Cell::from(missing(fork, &line.answer)),
        ]
    });
    let headers = vec!["EMPTIED", "POSSIBLE", "NODES", "MOVES", "ROUNDS", "COPIES", "MISSING"];
    app.output.table(&Table { headers, rows: rows.collect() }, "there is nothing to maintain")
}

/// The counterexample in half a line: the first VM that stays, or the first loss that is no longer survived.
fn missing(fork: &Fork, answer: &Drain) -> String {
    if let Some(first) = answer.stuck.first() {
        let others = answer.stuck.len() - 1;
        let others = if others == 0 { String::new() } else { format!(" (and {others} more VMs)") };
        return format!("{} stays on {}: {}{others}", first.name, fork.node(first.node), first.cause);
    }
    let Some(first) = answer.unborne.first() else { return String::new() };
    let loss = survive::name(fork, &first.loss);
    let vm = first.left_out.first().map(|(vm, why)| format!(": {}: {}", fork.vm(*vm), why.summary(true)));
    format!("{loss} would not be survived{}", vm.unwrap_or_default())
}
