//! `tamdao simulate consolidate`: the moves that empty as many nodes as possible, or as many as are asked for, and which
//! nodes those are.

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::plan::consolidate::{Aim, Consolidation, First, consolidate};
use tamdao_scheduler::text::write_plan;

use super::fork::{self, Fork};
use super::moves::{self, PlanReport};
use super::picture::{self, NodePicture};
use super::{drain, survive, verdict};
use crate::app::App;
use crate::args::ConsolidateArgs;
use crate::problem::{ExitStatus, Problem};
use crate::quantity::count;

#[derive(Serialize)]
struct Report {
    emptied: Vec<String>,
    plan: PlanReport,
    /// Guarded losses that could be survived before and cannot at the end.
    no_longer_survived: Vec<String>,
    nodes: Vec<NodePicture>,
}

pub async fn run(app: &App, args: &ConsolidateArgs) -> Result<ExitStatus> {
    let mut fork = fork::load(app, &args.fork).await?;
    let among = drain::meant(&args.among, &fork).map_err(|error| Problem::usage(error.to_string()))?;
    let aim = Aim {
        among: (!args.among.is_empty()).then_some(among),
        count: args.count,
        first: if args.oldest_first { First::SupportEnds } else { First::FewestBytes },
    };
    let terms = moves::terms(&fork, &args.pace, &args.guarded)?;
    let answer = moves::within(&args.pace, |budget| consolidate(&fork.view, &aim, &terms, budget));
    let before = fork.view.clone();
    moves::carry(&mut fork.view, &answer.plan, &terms.limits)?;
    if app.output.is_machine() {
        app.output.value(&report(&fork, &answer))?;
    } else if app.output.is_text() {
        app.output.raw(write_plan(&answer.plan, &before).as_bytes())?;
    } else {
        moves::show(app, &fork, &answer.plan)?;
        survive::show_left_out(app, &fork, &answer.unborne)?;
        picture::draw(app, &fork)?;
        app.output.note(&emptied(&fork, &answer));
        app.output.note(&moves::sum(&answer.plan));
    }
    // Without a count there is no number that would be too few.
    let enough = args.count.is_none_or(|count| answer.emptied.len() >= count);
    Ok(verdict(enough && answer.unborne.is_empty()))
}

fn emptied(fork: &Fork, answer: &Consolidation) -> String {
    let names: Vec<String> = answer.emptied.iter().map(|node| fork.node(*node)).collect();
    match names.len() {
        0 => "no node can be emptied".to_owned(),
        some => format!("{} emptied: {}", count(some, "node"), names.join(", ")),
    }
}

fn report(fork: &Fork, answer: &Consolidation) -> Report {
    Report {
        emptied: answer.emptied.iter().map(|node| fork.node(*node)).collect(),
        plan: moves::report(fork, &answer.plan),
        no_longer_survived: answer.unborne.iter().map(|one| survive::name(fork, &one.loss)).collect(),
        nodes: picture::nodes(fork),
    }
}
