//! `tamdao simulate maintain`: the question of every maintenance window. For each node and each value of each key: the
//! moves that empty it with no VM stopped and the guarded losses still survived, or what stays and what is missing. One
//! at a time: each line begins with the cluster as it is.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::plan::maintain::{Enough, Maintenance, maintain_one};
use tamdao_scheduler::survive::Loss;

use super::fork::{self, Fork};
use super::moves::{self, PlanReport, Stuck};
use super::what_if::{keys, values_of};
use super::{no_text, survive, verdict};
use crate::app::App;
use crate::args::MaintainArgs;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::{count, mib};

#[derive(Serialize)]
struct Report {
    what: String,
    nodes: Vec<String>,
    possible: bool,
    plan: PlanReport,
    stuck: Vec<Stuck>,
    /// Guarded losses that could be survived before and cannot meanwhile.
    no_longer_survived: Vec<String>,
    /// Any one of these would be enough for what stays.
    enough: Vec<Room>,
}

/// Room that is not there.
#[derive(Serialize)]
struct Room {
    /// The value of what is emptied in which it would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_value: Option<String>,
    /// Nodes like this one, apart from their size.
    like: String,
    nodes: usize,
    vcpus: u64,
    memory_mib: u64,
    disk_mib: u64,
}

pub async fn run(app: &App, args: &MaintainArgs) -> Result<ExitStatus> {
    if app.output.is_text() {
        return Err(no_text("maintain").hint("`tamdao simulate drain WHAT -o text` writes one plan").into());
    }
    let fork = fork::load(app, &args.fork).await?;
    let terms = moves::terms(&fork, &args.pace, &args.guarded)?;
    let mut lines = Vec::new();
    for loss in each(&fork, &args.each)? {
        let answer = moves::within(&args.pace, |budget| maintain_one(&fork.view, loss, &terms, budget));
        moves::carry(&mut fork.view.clone(), &answer.drain.plan, &terms.limits)?;
        lines.push(answer);
    }
    if app.output.is_machine() {
        let reports: Vec<Report> = lines.iter().map(|line| report(&fork, line)).collect();
        app.output.value(&reports)?;
    } else {
        show(app, &fork, &lines)?;
    }
    Ok(verdict(lines.iter().all(Maintenance::is_possible)))
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

fn report(fork: &Fork, line: &Maintenance) -> Report {
    let room = |enough: &Enough| Room {
        in_value: enough.value.clone(),
        like: fork.node(enough.like),
        nodes: enough.nodes,
        vcpus: enough.vcpus,
        memory_mib: enough.memory_mib,
        disk_mib: enough.disk_mib,
    };
    Report {
        what: survive::name(fork, &line.outage),
        nodes: line.nodes.iter().map(|node| fork.node(*node)).collect(),
        possible: line.is_possible(),
        plan: moves::report(fork, &line.drain.plan),
        stuck: moves::stuck(fork, &line.drain.stuck),
        no_longer_survived: line.drain.unborne.iter().map(|one| survive::name(fork, &one.loss)).collect(),
        enough: line.enough.iter().map(room).collect(),
    }
}

fn show(app: &App, fork: &Fork, lines: &[Maintenance]) -> Result<()> {
    let rows = lines.iter().map(|line| {
        let (word, tone) = match line.is_possible() {
            true => ("yes", Tone::Good),
            false => ("no", Tone::Bad),
        };
        let plan = &line.drain.plan;
        vec![
            Cell::from(survive::name(fork, &line.outage)),
            Cell::toned(word, tone),
            Cell::from(line.nodes.len()),
            Cell::from(plan.move_count()),
            Cell::from(plan.rounds.len()),
            Cell::from(mib(plan.copied_mib())),
            Cell::from(missing(fork, line)),
        ]
    });
    let headers = vec!["EMPTIED", "POSSIBLE", "NODES", "MOVES", "ROUNDS", "COPIES", "MISSING"];
    app.output.table(&Table { headers, rows: rows.collect() }, "there is nothing to maintain")
}

/// The counterexample in half a line: the first VM that stays, with the room that would be enough for all that stay, or
/// the first loss that is no longer survived.
fn missing(fork: &Fork, line: &Maintenance) -> String {
    if let Some(first) = line.drain.stuck.first() {
        let others = line.drain.stuck.len() - 1;
        let others = if others == 0 { String::new() } else { format!(" (and {others} more VMs)") };
        let enough = line.enough.first().map(|one| format!("; enough would be {}", room(fork, line, one)));
        let (vm, node, why) = (&first.name, fork.node(first.node), &first.cause);
        return format!("{vm} stays on {node}: {why}{others}{}", enough.unwrap_or_default());
    }
    let Some(first) = line.drain.unborne.first() else { return String::new() };
    let loss = survive::name(fork, &first.loss);
    let vm = first.left_out.first().map(|(vm, why)| format!(": {}: {}", fork.vm(*vm), why.summary(true)));
    format!("{loss} would not be survived{}", vm.unwrap_or_default())
}

/// Room as words: 4 vCPUs, 16 GiB and 80 GiB of disk on 2 nodes like n3 in rack r2.
fn room(fork: &Fork, line: &Maintenance, enough: &Enough) -> String {
    let disk = match enough.disk_mib {
        0 => String::new(),
        some => format!(" and {} of disk", mib(some)),
    };
    let place = match (&line.outage, &enough.value) {
        (Loss::Domain { key, .. }, Some(value)) => format!(" in {key} {value}"),
        _ => String::new(),
    };
    let (vcpus, memory) = (enough.vcpus, mib(enough.memory_mib));
    let nodes = count(enough.nodes, "node");
    format!("{vcpus} vCPUs, {memory}{disk} more on {nodes} like {}{place}", fork.node(enough.like))
}
