//! `tamdao simulate place`: a place for each VM that waits, by the file or by what-ifs, with the parts of its score, or
//! with the reasons of all nodes and what would help.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::explain::{Outcome, explain};
use tamdao_scheduler::place::{Placement, Rejection};
use tamdao_scheduler::score::{Points, TABLE};

use super::fork::{self, Asked, Fork};
use super::picture::{self, NodePicture};
use super::verdict;
use crate::app::App;
use crate::args::ForkArgs;
use crate::output::{Cell, Table, Tone};
use crate::problem::ExitStatus;
use crate::quantity::mib;

/// VMs without a place that are explained in full, unless all are wanted.
const EXPLAINED: usize = 5;
/// Nodes that an explanation names, unless all are wanted.
const NODES: usize = 5;

#[derive(Serialize)]
struct Report {
    placed: Vec<Placed>,
    refused: Vec<Refused>,
    nodes: Vec<NodePicture>,
}

#[derive(Serialize)]
struct Placed {
    vm: String,
    id: String,
    node: String,
    score: i64,
    /// Part to points, 10,000 at most.
    points: BTreeMap<&'static str, i64>,
}

#[derive(Serialize)]
struct Refused {
    vm: String,
    id: String,
    summary: String,
    /// Reason to how many nodes it rules out.
    reasons: BTreeMap<&'static str, u32>,
    /// What would make it fit, the least effort first.
    would_help: Vec<String>,
}

pub async fn run(app: &App, args: &ForkArgs) -> Result<ExitStatus> {
    let mut fork = fork::load(app, args).await?;
    fork.place_wants();
    if app.output.is_machine() {
        app.output.value(&report(&fork))?;
    } else if app.output.is_text() {
        app.output.raw(fork.text().as_bytes())?;
    } else {
        show(app, &fork)?;
    }
    Ok(verdict(fork.asked.iter().all(|one| one.answer.is_ok())))
}

fn report(fork: &Fork) -> Report {
    let mut report = Report { placed: Vec::new(), refused: Vec::new(), nodes: picture::nodes(fork) };
    for one in &fork.asked {
        let (vm, id) = (one.vm.name.to_string(), one.vm.id.to_string());
        match &one.answer {
            Ok(place) => report.placed.push(Placed {
                vm,
                id,
                node: fork.node(place.node),
                score: place.score,
                points: TABLE.iter().map(|part| part.name).zip(place.points).collect(),
            }),
            Err(rejection) => report.refused.push(Refused {
                vm,
                id,
                summary: rejection.summary(true),
                reasons: rejection.by_reason.iter().map(|(kind, tally)| (kind.code(), tally.nodes)).collect(),
                would_help: explain(&fork.view, &one.vm).fixes.iter().map(ToString::to_string).collect(),
            }),
        }
    }
    report
}

/// VMs of one kind with one answer, as one row.
struct Group<'a> {
    first: &'a Asked,
    count: usize,
}

fn groups(fork: &Fork) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for one in &fork.asked {
        let Some(kind) = &one.kind else {
            groups.push(Group { first: one, count: 1 });
            continue;
        };
        let answer = match &one.answer {
            Ok(place) => fork.node(place.node),
            Err(rejection) => rejection.summary(true),
        };
        match known.get(&(&**kind, answer.clone())) {
            Some(at) => groups[*at].count += 1,
            None => {
                known.insert((&**kind, answer), groups.len());
                groups.push(Group { first: one, count: 1 });
            }
        }
    }
    groups
}

fn show(app: &App, fork: &Fork) -> Result<()> {
    let groups = groups(fork);
    let rows = groups.iter().map(|group| {
        let vm = &group.first.vm;
        let name = match &group.first.kind {
            Some(kind) if group.count > 1 => format!("{} x {kind}", group.count),
            _ => vm.name.to_string(),
        };
        let size = vm.reservation;
        let mut row = vec![Cell::from(name), Cell::from(size.vcpus), Cell::from(mib(size.memory_mib))];
        row.extend(match &group.first.answer {
            Ok(place) => why(fork, place),
            Err(rejection) => why_not(rejection),
        });
        row
    });
    let headers = vec!["VM", "VCPUS", "MEMORY", "NODE", "SCORE", "WHY"];
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        app.output.note("no VM asks for a place; --what-if 'add 1 FLAVOR' makes one ask");
        return Ok(());
    }
    app.output.table(&Table { headers, rows }, "")?;
    let refused: Vec<&Group> = groups.iter().filter(|group| group.first.answer.is_err()).collect();
    let limit = if app.output.is_wide() { usize::MAX } else { EXPLAINED };
    for group in refused.iter().take(limit) {
        show_reasons(app, fork, group.first)?;
    }
    if refused.len() > limit {
        app.output.note(&format!("{} more are explained by -o wide", refused.len() - limit));
    }
    picture::draw(app, fork)
}

fn why(fork: &Fork, place: &Placement) -> [Cell; 3] {
    [
        Cell::toned(fork.node(place.node), Tone::Good),
        Cell::from(place.score),
        Cell::from(points(fork, &place.points)),
    ]
}

fn why_not(rejection: &Rejection) -> [Cell; 3] {
    [Cell::toned("none", Tone::Bad), Cell::from(""), Cell::from(rejection.summary(true))]
}

/// The parts of a score that count, in percent of what they could be.
fn points(fork: &Fork, points: &Points) -> String {
    let parts = TABLE.iter().zip(points).zip(fork.view.weights().0).filter(|(_, weight)| *weight > 0);
    let parts = parts.map(|((part, points), _)| format!("{} {}", part.name, points / 100));
    parts.collect::<Vec<_>>().join(", ")
}

/// What each of the nearest nodes says, and what would help.
fn show_reasons(app: &App, fork: &Fork, asked: &Asked) -> Result<()> {
    let explanation = explain(&fork.view, &asked.vm);
    let limit = if app.output.is_wide() { usize::MAX } else { NODES };
    let rows = explanation.verdicts.iter().take(limit).map(|verdict| {
        let said = match &verdict.outcome {
            Outcome::Fits { .. } => "fits now, as other VMs have gone".to_owned(),
            Outcome::Unfit { reasons } => {
                reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
        };
        vec![Cell::from(&verdict.name), Cell::from(said)]
    });
    let mut rows: Vec<Vec<Cell>> = rows.collect();
    let mut fixes: Vec<String> = explanation.fixes.iter().map(ToString::to_string).collect();
    // Nodes may need the same change of the same group.
    fixes.dedup();
    for fix in fixes.iter().take(3) {
        rows.push(vec![Cell::toned("would help", Tone::Good), Cell::from(fix)]);
    }
    let title = format!("Why {} has no place", asked.vm.name);
    app.output.section(&title, &Table { headers: vec!["NODE", "SAYS"], rows })?;
    Ok(())
}
