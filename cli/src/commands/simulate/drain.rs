//! `tamdao simulate drain`: the moves that empty nodes or whole failure domains, round by round, or what stays and why.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use tamdao_model::NodeId;
use tamdao_scheduler::plan::drain::{Drain, drain};
use tamdao_scheduler::text::write_plan;

use super::fork::{self, Fork};
use super::moves::{self, PlanReport, Stuck};
use super::picture::{self, NodePicture};
use super::what_if::{WhatIfError, subject_of};
use super::{survive, verdict};
use crate::app::App;
use crate::args::DrainArgs;
use crate::problem::{ExitStatus, Problem};

#[derive(Serialize)]
struct Report {
    done: bool,
    plan: PlanReport,
    stuck: Vec<Stuck>,
    /// Guarded losses that could be survived before and cannot at the end.
    no_longer_survived: Vec<String>,
    nodes: Vec<NodePicture>,
}

pub async fn run(app: &App, args: &DrainArgs) -> Result<ExitStatus> {
    let mut fork = fork::load(app, &args.fork).await?;
    let nodes = meant(&args.what, &fork).map_err(|error| Problem::usage(error.to_string()))?;
    let terms = moves::terms(&fork, &args.pace, &args.guarded)?;
    let answer = moves::within(&args.pace, |budget| drain(&fork.view, &nodes, &terms, budget));
    let before = fork.view.clone();
    moves::carry(&mut fork.view, &answer.plan, &terms.limits)?;
    if app.output.is_machine() {
        app.output.value(&report(&fork, &answer))?;
    } else if app.output.is_text() {
        app.output.raw(write_plan(&answer.plan, &before).as_bytes())?;
    } else {
        moves::show(app, &fork, &answer.plan)?;
        moves::show_stuck(app, &fork, &answer.stuck)?;
        survive::show_left_out(app, &fork, &answer.unborne)?;
        picture::draw(app, &fork)?;
        app.output.note(&moves::sum(&answer.plan));
    }
    Ok(verdict(answer.is_done()))
}

/// The nodes that words mean: a node's name, or KEY=VALUE for those that stand in this failure domain alone.
pub fn meant(words: &[String], fork: &Fork) -> Result<BTreeSet<NodeId>, WhatIfError> {
    let mut nodes = BTreeSet::new();
    for word in words {
        let loss = match word.split_once('=') {
            None => subject_of("node", word, fork)?,
            Some((key, value)) => subject_of(key, value, fork)?,
        };
        nodes.extend(fork.lost_with(&loss));
    }
    Ok(nodes)
}

fn report(fork: &Fork, drain: &Drain) -> Report {
    Report {
        done: drain.is_done(),
        plan: moves::report(fork, &drain.plan),
        stuck: moves::stuck(fork, &drain.stuck),
        no_longer_survived: drain.unborne.iter().map(|one| survive::name(fork, &one.loss)).collect(),
        nodes: picture::nodes(fork),
    }
}
