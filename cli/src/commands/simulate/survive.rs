//! `tamdao simulate survive`: each value of the guarded keys is lost in turn. The engine's plan of restarts is the proof
//! that all protected VMs have a place; where there is none, the VMs that are left out are named with their reasons.

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::View;
use tamdao_scheduler::survive::{Loss, Survival, survive_each_node, survive_each_value};

use super::fork::{self, Fork};
use super::picture::Held;
use super::what_if::values_of;
use super::{no_text, verdict};
use crate::app::App;
use crate::args::SurviveArgs;
use crate::bar::{LEGEND, bar};
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};

/// Lines of plans and of VMs left out that are printed, unless all are wanted.
const LINES: usize = 40;

#[derive(Serialize)]
struct Report {
    loss: String,
    nodes: Vec<String>,
    guaranteed: bool,
    /// In the order of restarts.
    plan: Vec<Restart>,
    left_out: Vec<LeftOut>,
    unprotected: Vec<String>,
}

#[derive(Serialize)]
struct Restart {
    vm: String,
    id: String,
    to: String,
}

#[derive(Serialize)]
struct LeftOut {
    vm: String,
    id: String,
    why: String,
}

pub async fn run(app: &App, args: &SurviveArgs) -> Result<ExitStatus> {
    if app.output.is_text() {
        return Err(no_text("survive").into());
    }
    let fork = fork::load(app, &args.fork).await?;
    let survivals = all(&fork, &fork.view, &args.guarded)?;
    if app.output.is_machine() {
        let reports: Vec<Report> = survivals.iter().map(|one| report(&fork, one)).collect();
        app.output.value(&reports)?;
    } else {
        show(app, &fork, &survivals)?;
    }
    Ok(verdict(survivals.iter().all(Survival::is_guaranteed)))
}

/// The answer for each value of each key; `node` stands for each node.
pub fn all(fork: &Fork, view: &View, keys: &[String]) -> Result<Vec<Survival>, Problem> {
    let mut all = Vec::new();
    for key in keys {
        if key == "node" {
            all.extend(survive_each_node(view));
        } else {
            values_of(key, fork).map_err(|error| Problem::usage(format!("--guarded: {error}")))?;
            all.extend(survive_each_value(view, key));
        }
    }
    Ok(all)
}

fn report(fork: &Fork, survival: &Survival) -> Report {
    Report {
        loss: name(fork, &survival.loss),
        nodes: survival.lost.iter().map(|node| fork.node(*node)).collect(),
        guaranteed: survival.is_guaranteed(),
        plan: survival
            .plan
            .iter()
            .map(|place| Restart {
                vm: fork.vm(place.vm),
                id: place.vm.to_string(),
                to: fork.node(place.node),
            })
            .collect(),
        left_out: survival
            .left_out
            .iter()
            .map(|(vm, why)| LeftOut { vm: fork.vm(*vm), id: vm.to_string(), why: why.summary(true) })
            .collect(),
        unprotected: survival.unprotected.iter().map(|vm| fork.vm(*vm)).collect(),
    }
}

pub fn name(fork: &Fork, loss: &Loss) -> String {
    match loss {
        Loss::Node(node) => format!("node {}", fork.node(*node)),
        Loss::Domain { key, value } => format!("{key} {value}"),
    }
}

fn show(app: &App, fork: &Fork, survivals: &[Survival]) -> Result<()> {
    let rows = survivals.iter().map(|one| {
        let (word, tone) = match one.is_guaranteed() {
            true => ("yes", Tone::Good),
            false => ("no", Tone::Bad),
        };
        vec![
            Cell::from(name(fork, &one.loss)),
            Cell::toned(word, tone),
            Cell::from(one.lost.len()),
            Cell::from(one.plan.len() + one.left_out.len()),
            Cell::toned(
                one.left_out.len().to_string(),
                if one.left_out.is_empty() { Tone::Plain } else { Tone::Bad },
            ),
            Cell::from(one.unprotected.len()),
            Cell::from(memory_of_rest(fork, one)),
        ]
    });
    let headers =
        vec!["LOST", "SURVIVED", "NODES", "PROTECTED", "LEFT-OUT", "UNPROTECTED", "MEMORY-OF-THE-REST"];
    app.output.table(&Table { headers, rows: rows.collect() }, "there is nothing to lose")?;
    let plan = survivals.iter().flat_map(|one| {
        one.plan.iter().enumerate().map(move |(order, place)| {
            let lost = name(fork, &one.loss);
            vec![
                Cell::from(lost),
                Cell::from(order + 1),
                Cell::from(fork.vm(place.vm)),
                Cell::from(fork.node(place.node)),
            ]
        })
    });
    show_left_out(app, fork, survivals)?;
    few(app, "Restarts", vec!["LOST", "ORDER", "VM", "NODE"], plan.collect())?;
    app.output.note(&format!("memory: {LEGEND}"));
    Ok(())
}

/// Draws the VMs without a place, by what is lost.
pub fn show_left_out(app: &App, fork: &Fork, survivals: &[Survival]) -> Result<()> {
    let rows = survivals.iter().flat_map(|one| {
        one.left_out.iter().map(move |(vm, why)| {
            let lost = name(fork, &one.loss);
            vec![Cell::from(lost), Cell::toned(fork.vm(*vm), Tone::Bad), why.summary(true).into()]
        })
    });
    few(app, "Left out", vec!["LOST", "VM", "WHY"], rows.collect())
}

/// A section of which people see the beginning, or all when wide.
pub fn few(app: &App, title: &str, headers: Vec<&'static str>, mut rows: Vec<Vec<Cell>>) -> Result<()> {
    let all = rows.len();
    if !app.output.is_wide() {
        rows.truncate(LINES);
    }
    let left = all - rows.len();
    app.output.section(title, &Table { headers, rows })?;
    if left > 0 {
        app.output.note(&format!("{left} more lines of this are shown by -o wide"));
    }
    Ok(())
}

/// How full the nodes that remain are, before and after the restarts.
fn memory_of_rest(fork: &Fork, survival: &Survival) -> String {
    let mut rest = fork.view.clone();
    for node in &survival.lost {
        rest.remove_node(*node);
    }
    let before = Held::of(&rest);
    let came: u64 = survival.plan.iter().map(|place| place.reservation.memory_mib).sum();
    bar(before.memory_used_mib, before.memory_used_mib + came, before.memory_mib)
}
