//! `tamdao stack`: what belongs to stacks of manifests, as the resources themselves say it, and what has become of it since
//! their last apply, as the cloud says it. Since when and by whose doing is the audit log's to tell, to who may read it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use tamdao_manifests::{Place, STACK};
use tamdao_proto::v1::{AuditRecord, StackResource, StackState};
use tonic::Code;

use super::manifest::{applied, each_kind, listed};
use crate::app::App;
use crate::args::StackVerb;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::{count, moment};
use crate::resource::Query;

/// What is one thing of a stack that is not as it was applied.
#[derive(Serialize)]
struct Drift {
    resource: String,
    /// What was applied and what is, by the fields that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<Field>,
    gone: bool,
    /// When somebody first changed it after the apply, as far as the audit log tells the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

#[derive(Serialize)]
struct Field {
    path: String,
    applied: String,
    now: String,
}

/// What failed in the last apply.
#[derive(Serialize)]
struct Failure {
    resource: String,
    error: String,
}

/// One stack.
#[derive(Default, Serialize)]
struct Stack {
    name: String,
    state: &'static str,
    /// How many of each kind there are.
    resources: BTreeMap<String, usize>,
    drift: Vec<Drift>,
    failed: Vec<Failure>,
    /// Resources of which nothing is known before the next apply.
    unknown: usize,
}

pub async fn run(app: &App, verb: StackVerb) -> Result<ExitStatus> {
    match verb {
        StackVerb::List => list(app).await,
    }
}

async fn list(app: &App) -> Result<ExitStatus> {
    let mut stacks: BTreeMap<String, Stack> = BTreeMap::new();
    let mut owned: BTreeSet<(String, Place)> = BTreeSet::new();
    for kind in tamdao_manifests::kinds().keys() {
        let query = Query { labels: STACK.to_owned(), ..Query::default() };
        let found = each_kind!(kind.as_str(), R => listed::<R>(app, query).await)?;
        for (place, resource) in found {
            if let Some(stack) = resource["metadata"]["labels"][STACK].as_str() {
                let of = stacks.entry(stack.to_owned()).or_default();
                *of.resources.entry(kind.clone()).or_default() += 1;
                owned.insert((stack.to_owned(), place));
            }
        }
    }
    let applied = match applied(app, "").await {
        Err(problem) if matches!(problem.code, Some(Code::Unimplemented | Code::PermissionDenied)) => {
            Vec::new()
        }
        applied => applied?,
    };
    let changes = changes(app, &applied).await?;
    for one in &applied {
        let place = super::manifest::place_of(one);
        owned.remove(&(one.stack.clone(), place.clone()));
        let of = stacks.entry(one.stack.clone()).or_default();
        match one.state() {
            StackState::Failed => {
                of.failed.push(Failure { resource: place.to_string(), error: one.error.clone() });
            }
            StackState::Drifted | StackState::Gone => of.drift.push(drift(one, &place, &changes)),
            StackState::InSync | StackState::Unspecified => {}
        }
    }
    owned.iter().for_each(|(stack, _)| stacks.entry(stack.clone()).or_default().unknown += 1);
    for (name, stack) in &mut stacks {
        (stack.name, stack.state) = (name.clone(), state(stack));
    }
    show(app, &stacks.into_values().collect::<Vec<_>>())?;
    Ok(ExitStatus::Done)
}

fn state(stack: &Stack) -> &'static str {
    match (stack.failed.len(), stack.drift.len(), stack.unknown) {
        (0, 0, 0) => "in sync",
        (0, 0, _) => "not known",
        (0, _, _) => "drifted",
        _ => "failed",
    }
}

/// The audit records of what was changed since the first apply of anything that is not as it was applied; none where
/// nothing has drifted, or the caller may not read them.
async fn changes(app: &App, applied: &[StackResource]) -> Result<Vec<AuditRecord>, Problem> {
    let drifted = applied.iter().filter(|one| matches!(one.state(), StackState::Drifted | StackState::Gone));
    let since = drifted.filter_map(|one| one.apply_time).min_by_key(|time| (time.seconds, time.nanos));
    let Some(since) = since else { return Ok(Vec::new()) };
    match super::audit::changes_since(app, since).await {
        Err(problem) if matches!(problem.code, Some(Code::PermissionDenied | Code::Unimplemented)) => {
            Ok(Vec::new())
        }
        changes => changes,
    }
}

fn drift(one: &StackResource, place: &Place, changes: &[AuditRecord]) -> Drift {
    // What the apply itself wrote has a revision up to the one that it saw last.
    let later = changes.iter().filter(|record| record.revision > one.applied_revision);
    let mut ours = later.filter(|record| record.changes.iter().any(|change| change.id == one.id));
    let first = ours.next();
    let value = |json: &str| if json.is_empty() { "unset".to_owned() } else { json.to_owned() };
    let fields = one.differences.iter().map(|field| Field {
        path: field.path.clone(),
        applied: value(&field.applied),
        now: value(&field.now),
    });
    Drift {
        resource: place.to_string(),
        fields: fields.collect(),
        gone: one.state() == StackState::Gone,
        since: first.and_then(|record| Some(moment(record.time.as_ref()?.seconds))),
        by: first.map(super::audit::who),
    }
}

fn show(app: &App, stacks: &[Stack]) -> Result<()> {
    if app.output.is_machine() {
        return app.output.value(&json!({ "stacks": stacks }));
    }
    let rows = stacks.iter().map(|stack| {
        let kinds: Vec<String> =
            stack.resources.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let tone = match stack.state {
            "in sync" => Tone::Good,
            "not known" => Tone::Faint,
            _ => Tone::Bad,
        };
        let all = stack.resources.values().sum::<usize>();
        vec![stack.name.as_str().into(), Cell::toned(stack.state, tone), all.into(), kinds.join(", ").into()]
    });
    let table = Table { headers: vec!["NAME", "STATE", "RESOURCES", "KINDS"], rows: rows.collect() };
    app.output.table(&table, "there are no stacks")?;
    for stack in stacks {
        let headers = vec!["RESOURCE", "FIELD", "APPLIED", "NOW", "SINCE", "BY"];
        let rows = stack.drift.iter().flat_map(rows_of).collect();
        app.output.section(&format!("What has drifted in {}", stack.name), &Table { headers, rows })?;
        let rows =
            stack.failed.iter().map(|one| vec![one.resource.as_str().into(), one.error.as_str().into()]);
        let table = Table { headers: vec!["RESOURCE", "ERROR"], rows: rows.collect() };
        app.output.section(&format!("What failed when {} was applied last", stack.name), &table)?;
        if stack.unknown > 0 {
            let some = count(stack.unknown, "resource");
            app.output.note(&format!("{}: what becomes of {some} is known after the next apply", stack.name));
        }
    }
    Ok(())
}

/// One row for each field that differs; one for what is gone.
fn rows_of(drift: &Drift) -> Vec<Vec<Cell>> {
    let since = drift.since.clone().unwrap_or_default();
    let by = drift.by.clone().unwrap_or_default();
    let row = |path: &str, applied: &str, now: &str| {
        let cells = [drift.resource.as_str(), path, applied, now, since.as_str(), by.as_str()];
        cells.into_iter().map(Cell::from).collect::<Vec<_>>()
    };
    match drift.gone {
        true => vec![row("", "there", "gone")],
        false => drift.fields.iter().map(|one| row(&one.path, &one.applied, &one.now)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use tamdao_proto::v1::AuditChange;

    use super::*;

    #[test]
    fn drift_is_told_with_the_first_change_after_the_apply() {
        let one = StackResource {
            id: "1".into(),
            state: StackState::Gone.into(),
            applied_revision: 7,
            ..Default::default()
        };
        let place = Place { kind: "vm".into(), agency: "health".into(), name: "web".into() };
        let record = |revision, id: &str, who: &str| AuditRecord {
            revision,
            principal: who.into(),
            time: Some(pbjson_types::Timestamp { seconds: i64::try_from(revision).unwrap(), nanos: 0 }),
            changes: vec![AuditChange { id: id.into(), ..Default::default() }],
            ..Default::default()
        };
        // The apply itself, another resource, the one who did it, and one who came later.
        let changes = [
            record(7, "1", "admin:apply"),
            record(8, "2", "admin:other"),
            record(9, "1", "admin:it"),
            record(10, "1", "admin:later"),
        ];
        let told = drift(&one, &place, &changes);
        assert_eq!((told.since, told.by.as_deref()), (Some(moment(9)), Some("admin:it")));
        assert_eq!(drift(&one, &place, &changes[..2]).by, None);
    }
}
