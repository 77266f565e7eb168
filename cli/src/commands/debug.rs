//! `tamdao debug`: a look inside the controller that answers.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use tamdao_proto::v1::cluster_service_client::ClusterServiceClient;
use tamdao_proto::v1::{DumpClusterRequest, GetClusterRequest, ListLoopsRequest, ReplayDecisionsRequest};
use tonic::Response;

use crate::app::{App, now_s};
use crate::args::DebugVerb;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::bytes;
use crate::view::since;

pub async fn run(app: &App, verb: DebugVerb) -> Result<ExitStatus> {
    match verb {
        DebugVerb::Loops => loops(app).await,
        DebugVerb::Cluster => cluster(app).await,
        DebugVerb::Dump { file, force } => dump(app, file.as_deref(), force).await,
        DebugVerb::Replay { revision, vm, last } => replay(app, revision, vm, last).await,
    }
}

async fn loops(app: &App) -> Result<ExitStatus> {
    let answer = app.client()?.ask(ListLoopsRequest {}).await?;
    if app.output.is_machine() {
        app.output.value(&answer)?;
        return Ok(ExitStatus::Done);
    }
    let now = now_s();
    let rows = answer.loops.iter().map(|one| {
        let (word, tone) = match (one.running, one.last_error.is_empty()) {
            (false, _) => ("no", Tone::Faint),
            (true, true) => ("yes", Tone::Good),
            (true, false) => ("yes", Tone::Bad),
        };
        vec![
            Cell::from(&one.name),
            Cell::toned(word, tone),
            Cell::from(one.passes),
            Cell::from(one.backlog),
            Cell::from(since(&one.last_success, now)),
            Cell::from(format!("{} ms", one.last_duration_ms)),
            Cell::from(&one.last_error),
        ]
    });
    let headers = vec!["LOOP", "RUNNING", "PASSES", "BACKLOG", "SUCCESS", "TOOK", "ERROR"];
    app.output.table(&Table { headers, rows: rows.collect() }, "this controller has no loops")?;
    Ok(ExitStatus::Done)
}

async fn cluster(app: &App) -> Result<ExitStatus> {
    let cluster = app.client()?.ask(GetClusterRequest {}).await?;
    if app.output.is_machine() {
        app.output.value(&cluster)?;
        return Ok(ExitStatus::Done);
    }
    app.output.card(&[
        ("Name", Cell::from(&cluster.name)),
        ("Id", Cell::from(&cluster.id)),
        ("Leader", Cell::from(if cluster.leader.is_empty() { "none" } else { &cluster.leader })),
        ("Answered by", Cell::from(&cluster.controller)),
        ("Version", Cell::from(&cluster.version)),
        ("Command line", Cell::from(env!("CARGO_PKG_VERSION"))),
        ("Level", Cell::from(cluster.level)),
        ("Revision", Cell::from(cluster.revision)),
        ("Store", Cell::from(&cluster.store)),
    ])?;
    Ok(ExitStatus::Done)
}

async fn dump(app: &App, file: Option<&Path>, force: bool) -> Result<ExitStatus> {
    let text = live(app).await?;
    let Some(path) = file else {
        app.output.raw(text.as_bytes())?;
        return Ok(ExitStatus::Done);
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).create_new(!force);
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        let problem = Problem::failed(format!("{} cannot be written: {error}", path.display()));
        match error.kind() {
            ErrorKind::AlreadyExists => problem.hint("take another name, or add --force"),
            _ => problem,
        }
    })?;
    app.output.note(&format!("{}: written, {}", path.display(), bytes(text.len() as u64)));
    Ok(ExitStatus::Done)
}

/// Ends with 1 if a decision differs, so that it can be asked by a program.
async fn replay(app: &App, revision: Option<u64>, vm: Option<String>, last: u32) -> Result<ExitStatus> {
    let named = vm.unwrap_or_default();
    let (agency, vm) = named.split_once('/').unwrap_or(("", &named));
    let request = ReplayDecisionsRequest {
        revision: revision.unwrap_or_default(),
        agency: agency.to_owned(),
        vm: vm.to_owned(),
        last,
    };
    let answer = app.client()?.ask(request).await?;
    let differ = answer.decisions.iter().filter(|one| !one.differs.is_empty()).count();
    let status = if differ == 0 { ExitStatus::Done } else { ExitStatus::Failed };
    if app.output.is_machine() {
        app.output.value(&answer)?;
        return Ok(status);
    }
    let now = now_s();
    let rows = answer.decisions.iter().map(|one| {
        let again = match one.differs.as_str() {
            "" => Cell::toned("equal", Tone::Good),
            differs => Cell::toned(differs, Tone::Bad),
        };
        vec![
            Cell::from(one.revision),
            Cell::from(one.decided_at),
            Cell::from(since(&one.time, now)),
            Cell::from(&one.vm),
            Cell::from(&one.recorded),
            again,
        ]
    });
    let headers = vec!["REVISION", "FROM", "AGE", "VM", "DECIDED", "AGAIN"];
    app.output.table(&Table { headers, rows: rows.collect() }, "no decision is recorded")?;
    app.output.note(&format!("{} decisions computed again, {differ} differ", answer.decisions.len()));
    Ok(status)
}

/// The live cluster in the cluster text format.
pub async fn live(app: &App) -> Result<String> {
    let text = app.client()?.call_long(|wire| async move {
        let mut service = ClusterServiceClient::new(wire);
        let mut parts = service.dump_cluster(DumpClusterRequest {}).await?.into_inner();
        let mut text = String::new();
        // A stream that breaks is asked for anew, elsewhere: half a cluster is none.
        while let Some(part) = parts.message().await? {
            text.push_str(&part.text);
        }
        Ok(Response::new(text))
    });
    Ok(text.await?)
}
