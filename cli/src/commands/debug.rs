//! `tamdao debug`: a look inside the controller that answers.

use anyhow::Result;
use tamdao_proto::v1::{GetClusterRequest, ListLoopsRequest};

use crate::app::{App, now_s};
use crate::args::DebugVerb;
use crate::output::{Cell, Table, Tone};
use crate::problem::ExitStatus;
use crate::view::since;

pub async fn run(app: &App, verb: DebugVerb) -> Result<ExitStatus> {
    match verb {
        DebugVerb::Loops => loops(app).await,
        DebugVerb::Cluster => cluster(app).await,
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
