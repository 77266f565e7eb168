//! `tamdao simulate`: the placement engine's answers to what-ifs, worked out here on a fork, from a file or from the live
//! cluster's dump. Each module asks the engine one question and shows the answer to people and to programs.
//! Deliberately absent: decisions of our own; the controllers call the same functions.

mod balance;
mod consolidate;
mod drain;
mod fit;
mod fork;
mod headroom;
mod maintain;
mod moves;
mod picture;
mod place;
mod survive;
mod what_if;

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::score::TABLE;

use crate::app::App;
use crate::args::{ForkArgs, SimulateVerb};
use crate::output::{Cell, Table};
use crate::problem::{ExitStatus, Problem};

pub async fn run(app: &App, verb: SimulateVerb) -> Result<ExitStatus> {
    match verb {
        SimulateVerb::Place(args) => place::run(app, &args).await,
        SimulateVerb::Fit(args) => fit::run(app, &args).await,
        SimulateVerb::Survive(args) => survive::run(app, &args).await,
        SimulateVerb::Drain(args) => drain::run(app, &args).await,
        SimulateVerb::Maintain(args) => maintain::run(app, &args).await,
        SimulateVerb::Consolidate(args) => consolidate::run(app, &args).await,
        SimulateVerb::Balance(args) => balance::run(app, &args).await,
        SimulateVerb::Weights(args) => weights(app, &args).await,
    }
}

/// One line of the score's table, for programs.
#[derive(Serialize)]
struct Weight {
    name: &'static str,
    weight: u32,
    default: u32,
    measures: &'static str,
}

async fn weights(app: &App, args: &ForkArgs) -> Result<ExitStatus> {
    let fork = fork::load(app, args).await?;
    let weights: Vec<Weight> = TABLE
        .iter()
        .zip(fork.view.weights().0)
        .map(|(part, weight)| Weight {
            name: part.name,
            weight,
            default: part.weight,
            measures: part.measures,
        })
        .collect();
    if app.output.is_machine() {
        app.output.value(&weights)?;
    } else if app.output.is_text() {
        app.output.raw(fork.text().as_bytes())?;
    } else {
        let rows = weights.iter().map(|one| {
            vec![Cell::from(one.name), Cell::from(one.weight), Cell::from(one.default), one.measures.into()]
        });
        let headers = vec!["PART", "WEIGHT", "DEFAULT", "MEASURES"];
        app.output.table(&Table { headers, rows: rows.collect() }, "")?;
    }
    Ok(ExitStatus::Done)
}

/// 0 where all is well, 1 where the answer is no.
fn verdict(well: bool) -> ExitStatus {
    if well { ExitStatus::Done } else { ExitStatus::Failed }
}

/// Where the answer has no form in the engine's text.
fn no_text(verb: &str) -> Problem {
    Problem::usage(format!("simulate {verb} has no text form")).hint("take -o json or -o yaml")
}
