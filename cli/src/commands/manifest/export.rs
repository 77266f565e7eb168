//! `tamdao export`: a stack, or what an agency owns without one, written as a manifest. Read only.

use std::collections::BTreeSet;

use anyhow::Result;
use tamdao_manifests::{Expanded, Live, Owner, Place, STACK};

use super::live::{each_kind, listed, seen};
use crate::app::App;
use crate::args::ExportArgs;
use crate::problem::{ExitStatus, Problem};
use crate::quantity::count;
use crate::resource::Query;

pub async fn export(app: &App, args: &ExportArgs) -> Result<ExitStatus> {
    let (stack, which, live) = match &args.stack {
        Some(stack) => of_stack(app, stack).await?,
        None => of_agency(app, args.name.as_deref()).await?,
    };
    if which.is_empty() {
        let problem = match &args.stack {
            Some(stack) => Problem::failed(format!("there is nothing of a stack {stack:?}"))
                .hint("see `tamdao stack list`"),
            None => Problem::failed(format!("agency {} owns nothing that has no stack", app.agency()?)),
        };
        return Err(problem.into());
    }
    let text = tamdao_manifests::export(&stack, &which, &live)
        .map_err(|fault| Problem::failed(format!("the manifest cannot be written: {}", fault.message)))?;
    app.output.raw(text.as_bytes())?;
    if live.iter().any(|(place, _)| place.kind == "vm" && which.contains(place)) {
        app.output.note("user data is sealed and never shown, so it is not in the manifest; to leave it out of a plan changes nothing");
    }
    Ok(ExitStatus::Done)
}

/// All that a stack has.
async fn of_stack(app: &App, stack: &str) -> Result<(String, BTreeSet<Place>, Live)> {
    let live = seen(app, stack, &Expanded::default()).await?;
    let own = live.iter().filter(|(_, is)| is["metadata"]["labels"][STACK] == stack);
    Ok((stack.to_owned(), own.map(|(place, _)| place.clone()).collect(), live))
}

/// All that an agency owns and no stack has.
async fn of_agency(app: &App, name: Option<&str>) -> Result<(String, BTreeSet<Place>, Live)> {
    let agency = app.agency()?.to_owned();
    let stack = name.unwrap_or(&agency).to_owned();
    let mut live = Live::new();
    for kind in tamdao_manifests::kinds().values().filter(|kind| kind.owner != Owner::Cluster) {
        let query = Query { agency: agency.clone(), ..Query::default() };
        live.extend(each_kind!(kind.word.as_str(), R => listed::<R>(app, query).await)?);
    }
    live.retain(|place, _| place.agency == agency);
    let (free, taken): (Vec<_>, Vec<_>) =
        live.iter().partition(|(_, is)| is["metadata"]["labels"][STACK].as_str().is_none_or(str::is_empty));
    if !taken.is_empty() {
        app.output.note(&format!("{} left out, which stacks have already", count(taken.len(), "resource")));
    }
    let which = free.into_iter().map(|(place, _)| place.clone()).collect();
    Ok((stack, which, live))
}
