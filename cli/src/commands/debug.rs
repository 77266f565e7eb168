//! `tamdao debug`: a look inside the controller that answers.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use tamdao_proto::v1::cluster_service_client::ClusterServiceClient;
use tamdao_proto::v1::{DumpClusterRequest, GetClusterRequest, ListLoopsRequest};
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
