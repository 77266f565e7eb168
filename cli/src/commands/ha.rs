//! `tamdao ha`: whether lost nodes are fenced and their VMs restarted elsewhere, off and on.

use anyhow::Result;
use tamdao_proto::v1::{
    ArmHaRequest, Cluster, DisarmHaRequest, GetClusterRequest, ListNodesRequest, NodePhase,
};

use crate::app::{App, now_s};
use crate::args::HaVerb;
use crate::output::{Cell, Table, Tone};
use crate::problem::ExitStatus;
use crate::quantity::until;
use crate::resource::word;

pub async fn run(app: &App, verb: HaVerb) -> Result<ExitStatus> {
    match verb {
        HaVerb::Status => status(app).await,
        HaVerb::Disarm { ttl } => {
            let ttl_s = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1);
            told(app, &app.client()?.ask(DisarmHaRequest { ttl_s }).await?)
        }
        HaVerb::Arm => told(app, &app.client()?.ask(ArmHaRequest {}).await?),
    }
}

fn told(app: &App, cluster: &Cluster) -> Result<ExitStatus> {
    if app.output.is_machine() {
        app.output.value(cluster)?;
    } else {
        app.output.note(&format!("ha: {}", sentence(cluster)));
    }
    Ok(ExitStatus::Done)
}

/// Whether it is on, for people.
fn sentence(cluster: &Cluster) -> String {
    let now = now_s();
    match &cluster.ha_disarmed_until {
        Some(time) if time.seconds > now => {
            format!("disarmed by {}, arms itself in {}", cluster.ha_disarmed_by, until(now, time.seconds))
        }
        _ => "armed".to_owned(),
    }
}

async fn status(app: &App) -> Result<ExitStatus> {
    let client = app.client()?;
    let cluster = client.ask(GetClusterRequest {}).await?;
    let nodes = client.ask(ListNodesRequest { page_size: 1_000, ..Default::default() }).await?.nodes;
    if app.output.is_machine() {
        app.output.value(&serde_json::json!({"cluster": cluster, "nodes": nodes}))?;
        return Ok(ExitStatus::Done);
    }
    app.output.card(&[("Restarts elsewhere", Cell::from(sentence(&cluster)))])?;
    let rows = nodes.iter().map(|node| {
        let status = node.status.clone().unwrap_or_default();
        let name = node.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let tone = if status.phase() == NodePhase::Ready { Tone::Plain } else { Tone::Busy };
        let keeper = if status.keeper_version.is_empty() { "none" } else { &status.keeper_version };
        let sought =
            status.conditions.iter().filter(|of| matches!(of.r#type.as_str(), "Fenced" | "PoweredOff"));
        let mut evidence: Vec<&str> = sought.map(|condition| condition.message.as_str()).collect();
        evidence.dedup();
        vec![
            Cell::from(name),
            Cell::toned(word(status.phase().as_str_name(), "NODE_PHASE_"), tone),
            Cell::from(keeper),
            Cell::from(evidence.join("; ")),
        ]
    });
    let table = Table { headers: vec!["NODE", "PHASE", "KEEPER", "EVIDENCE"], rows: rows.collect() };
    app.output.table(&table, "there are no nodes")?;
    Ok(ExitStatus::Done)
}
