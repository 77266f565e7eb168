//! `tamdao simulate balance`: the moves that even out the load of nodes, and how uneven it is before and after. It answers
//! for the load as it is now; how long it has been so is the controller's to count.

use anyhow::Result;
use serde::Serialize;
use tamdao_scheduler::plan::balance::{Balance, Outcome, Policy, balance};
use tamdao_scheduler::text::write_plan;

use super::fork::{self, Fork};
use super::moves::{self, PlanReport};
use super::picture::{self, NodePicture};
use crate::app::App;
use crate::args::BalanceArgs;
use crate::problem::ExitStatus;

#[derive(Serialize)]
struct Report {
    outcome: &'static str,
    /// The farthest node's distance from the cluster's load, in percent of the node.
    farthest_before: f64,
    farthest_after: f64,
    plan: PlanReport,
    nodes: Vec<NodePicture>,
}

pub async fn run(app: &App, args: &BalanceArgs) -> Result<ExitStatus> {
    let mut fork = fork::load(app, &args.fork).await?;
    let policy = Policy {
        threshold: args.threshold * 100,
        hold: 0,
        at_most: args.at_most.unwrap_or(usize::MAX),
        ..Policy::default()
    };
    let terms = moves::terms(&fork, &args.pace, &args.guarded)?;
    let answer = moves::within(&args.pace, |budget| balance(&fork.view, &policy, 0, &terms, budget));
    let before = fork.view.clone();
    moves::carry(&mut fork.view, &answer.plan, &terms.limits)?;
    if app.output.is_machine() {
        app.output.value(&report(&fork, &answer))?;
    } else if app.output.is_text() {
        app.output.raw(write_plan(&answer.plan, &before).as_bytes())?;
    } else {
        moves::show(app, &fork, &answer.plan)?;
        picture::draw(app, &fork)?;
        let (from, to) = (percent(answer.before.worst), percent(answer.after.worst));
        app.output.note(&format!("the farthest node is off by {from} % before and {to} % after"));
        app.output.note(words(answer.outcome));
        app.output.note(&moves::sum(&answer.plan));
    }
    Ok(ExitStatus::Done)
}

/// Of 1/10,000.
fn percent(part: u32) -> f64 {
    f64::from(part) / 100.0
}

fn words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Even => "no node is further off than the threshold",
        Outcome::Waiting { .. } => "it is not yet uneven for long enough",
        Outcome::Best => "no further move is worth what it copies",
        Outcome::Limited => "further moves would be worth it; --at-most ends the plan",
        Outcome::Guarded => "with further moves some guarded loss would not be survived",
        Outcome::BudgetSpent => "the time was over before the best was found",
    }
}

fn report(fork: &Fork, answer: &Balance) -> Report {
    Report {
        outcome: match answer.outcome {
            Outcome::Even => "even",
            Outcome::Waiting { .. } => "waiting",
            Outcome::Best => "best",
            Outcome::Limited => "limited",
            Outcome::Guarded => "guarded",
            Outcome::BudgetSpent => "time_is_over",
        },
        farthest_before: percent(answer.before.worst),
        farthest_after: percent(answer.after.worst),
        plan: moves::report(fork, &answer.plan),
        nodes: picture::nodes(fork),
    }
}
