//! `tamdao move` and `tamdao vm migrate`: asks, then follows the move to its end, with a bar while it is copied.

use std::time::Duration;

use anyhow::Result;
use tamdao_proto::v1::{CancelMoveRequest, MigrateVmRequest, Move, MovePhase, Vm, WatchEvent};

use super::standard;
use crate::app::App;
use crate::args::{MoveVerb, VmMigrateArgs, WaitArgs};
use crate::client::request_id;
use crate::problem::{ExitStatus, Problem};
use crate::progress::Spinner;
use crate::quantity::duration;
use crate::resource::{Place, Resource};
use crate::view::{View, progress};
use crate::watch::Watch;

/// How often progress is asked for.
const LOOK: Duration = Duration::from_secs(1);

pub async fn run(app: &App, verb: MoveVerb) -> Result<ExitStatus> {
    match verb {
        MoveVerb::List(args) => standard::list::<Move>(app, &args, false).await,
        MoveVerb::Get(args) => standard::get::<Move>(app, &args, false).await,
        MoveVerb::Cancel(args) => {
            let place = app.place::<Move>(&args.name, false)?;
            let request = CancelMoveRequest {
                agency: place.agency,
                name: place.name,
                request_id: request_id(),
                validate_only: false,
            };
            let one = app.client()?.ask(request).await.map_err(|problem| problem.about(&args.name))?;
            follow(app, one, &args.wait, MovePhase::Cancelled).await
        }
        MoveVerb::Watch(args) => {
            let place = app.place::<Move>(&args.name, false)?;
            let one =
                Move::fetch(app.client()?, &place).await.map_err(|problem| problem.about(&args.name))?;
            follow(app, one, &args.wait, MovePhase::Done).await
        }
    }
}

pub async fn migrate(app: &App, args: &VmMigrateArgs) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    let asked = |dry_run| MigrateVmRequest {
        agency: place.agency.clone(),
        name: place.name.clone(),
        request_id: request_id(),
        validate_only: dry_run,
        target_node: args.to.clone().unwrap_or_default(),
        allow_cold: args.allow_cold,
        no_auto_converge: args.no_auto_converge,
        reason: args.reason.clone(),
    };
    // Who sits before a terminal hears first what is to be expected, which takes a second; programs ask with --dry-run.
    let reader = app.output.can_ask() && !args.wait.no_wait;
    if args.dry_run || reader {
        let one = app.client()?.ask(asked(true)).await.map_err(|problem| problem.about(&args.name))?;
        if args.dry_run && app.output.is_machine() {
            app.output.value(&one)?;
            return Ok(ExitStatus::Done);
        }
        let (spec, status) = (one.spec.unwrap_or_default(), one.status.unwrap_or_default());
        if args.dry_run {
            let way = crate::view::way(&spec);
            app.output.note(&format!(
                "dry run: vm {place} would move from {} to {} {way}; nothing was changed",
                spec.source_node, spec.target_node
            ));
        }
        match &status.forecast {
            Some(told) => app.output.note(&format!("forecast: {}", crate::view::forecast(told))),
            None if !status.message.is_empty() => app.output.note(&status.message),
            None => {}
        }
        if args.dry_run {
            return Ok(ExitStatus::Done);
        }
    }
    let one = app.client()?.ask(asked(false)).await.map_err(|problem| problem.about(&args.name))?;
    follow(app, one, &args.wait, MovePhase::Done).await
}

/// Follows a move until it is over; `wanted` is the end that is no failure.
async fn follow(app: &App, one: Move, wait: &WaitArgs, wanted: MovePhase) -> Result<ExitStatus> {
    if wait.no_wait {
        return standard::done(app, &one, "");
    }
    let mut last = one;
    let ended = tokio::time::timeout(wait.timeout, to_the_end(app, &mut last)).await;
    match ended {
        Ok(ended) => ended?,
        Err(_) => {
            let what = format!(
                "still in progress after {}: {}: {}",
                duration(wait.timeout),
                last.name(),
                last.story()
            );
            let hint =
                format!("see `tamdao move watch {0}`, or give it up: `tamdao move cancel {0}`", last.place());
            return Err(Problem::in_progress(what).hint(hint).into());
        }
    }
    let status = last.status.clone().unwrap_or_default();
    if status.phase() == wanted {
        return standard::done(app, &last, "");
    }
    let what = match status.phase() {
        MovePhase::Done => format!("{} had come too far to be given up", last.name()),
        _ => format!("{} is {}", last.name(), last.story()),
    };
    Err(Problem::failed(what).into())
}

fn is_over(one: &Move) -> bool {
    let phase = one.status.as_ref().map_or(MovePhase::Unspecified, |status| status.phase());
    matches!(phase, MovePhase::Done | MovePhase::Failed | MovePhase::Cancelled)
}

async fn to_the_end(app: &App, last: &mut Move) -> Result<()> {
    let metadata = last.metadata.clone().unwrap_or_default();
    let place = Place { agency: metadata.agency.clone(), name: metadata.id.clone() };
    let mut spinner = Spinner::new(&app.output);
    let (mut told, mut foretold) = (String::new(), false);
    let mut watch = Watch::<Move>::new(app.client()?, place.clone(), "", String::new());
    loop {
        let story = last.story();
        if story != told {
            spinner.line(&format!("{}: {story}", metadata.name));
            told = story;
        }
        if let Some(told) =
            last.status.as_ref().and_then(|status| status.forecast.as_ref()).filter(|_| !foretold)
        {
            spinner.line(&format!("{}: forecast: {}", metadata.name, crate::view::forecast(told)));
            foretold = true;
        }
        if is_over(last) {
            return Ok(());
        }
        spinner.waiting(format!("{}: {}", metadata.name, progress(last)));
        tokio::select! {
            change = watch.next() => {
                let change = change?;
                match (change.event, change.resource) {
                    (WatchEvent::Put, Some(one)) => *last = one,
                    (WatchEvent::Deleted, _) => {
                        return Err(Problem::failed(format!("{} is forgotten by now", metadata.name)).into());
                    }
                    _ => {}
                }
            }
            () = tokio::time::sleep(LOOK) => {
                // Progress is no part of the record, so nobody is told of it.
                if let Ok(one) = Move::fetch(app.client()?, &place).await {
                    *last = one;
                }
            }
        }
    }
}
