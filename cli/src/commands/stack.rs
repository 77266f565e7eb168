//! `tamdao stack`: what belongs to stacks of manifests, as the resources themselves say it.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value as Json, json};
use tamdao_manifests::STACK;

use super::manifest::{each_kind, listed};
use crate::app::App;
use crate::args::StackVerb;
use crate::output::Table;
use crate::problem::ExitStatus;
use crate::resource::Query;

pub async fn run(app: &App, verb: StackVerb) -> Result<ExitStatus> {
    match verb {
        StackVerb::List => list(app).await,
    }
}

async fn list(app: &App) -> Result<ExitStatus> {
    let mut stacks: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for kind in tamdao_manifests::kinds().keys() {
        let query = Query { labels: STACK.to_owned(), ..Query::default() };
        let found = each_kind!(kind.as_str(), R => listed::<R>(app, query).await)?;
        for (_, resource) in found {
            if let Some(stack) = resource["metadata"]["labels"][STACK].as_str() {
                *stacks.entry(stack.to_owned()).or_default().entry(kind.clone()).or_default() += 1;
            }
        }
    }
    if app.output.is_machine() {
        let all = stacks.iter().map(|(name, resources)| json!({"name": name, "resources": resources}));
        app.output.value(&json!({"stacks": all.collect::<Vec<Json>>()}))?;
        return Ok(ExitStatus::Done);
    }
    let rows = stacks.iter().map(|(name, resources)| {
        let kinds: Vec<String> = resources.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        vec![name.into(), resources.values().sum::<usize>().into(), kinds.join(", ").into()]
    });
    let table = Table { headers: vec!["NAME", "RESOURCES", "KINDS"], rows: rows.collect() };
    app.output.table(&table, "there are no stacks")?;
    Ok(ExitStatus::Done)
}
