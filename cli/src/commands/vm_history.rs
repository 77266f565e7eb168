//! `tamdao vm history`: each restart elsewhere with the proof that let it, from the VM's own record, and then what
//! happened lately, from the events that are still kept.

use anyhow::Result;
use serde_json::json;
use tamdao_proto::v1::{ListEventsRequest, Vm};

use crate::app::{App, now_s};
use crate::args::NameArg;
use crate::output::{Cell, Table};
use crate::problem::ExitStatus;
use crate::quantity::clock;
use crate::resource::Resource;
use crate::view::events as event_table;

/// Events shown at most.
const EVENTS: u32 = 200;

pub async fn history(app: &App, args: &NameArg) -> Result<ExitStatus> {
    let place = app.place::<Vm>(&args.name, false)?;
    let client = app.client()?;
    let vm = Vm::fetch(client, &place).await.map_err(|problem| problem.about(&args.name))?;
    let request = ListEventsRequest {
        page_size: EVENTS,
        agency: place.agency,
        kind: Vm::KIND.to_owned(),
        name: place.name,
        ..Default::default()
    };
    let mut events = client.ask(request).await?.events;
    events.reverse();
    let evacuations = vm.status.map(|status| status.evacuations).unwrap_or_default();
    if app.output.is_machine() {
        app.output.value(&json!({"evacuations": evacuations, "events": events}))?;
        return Ok(ExitStatus::Done);
    }
    if !evacuations.is_empty() {
        let rows = evacuations.iter().map(|one| {
            let proof = one.proof.clone().unwrap_or_default();
            let time = |time: &Option<pbjson_types::Timestamp>| {
                time.as_ref().map_or(String::new(), |time| clock(time.seconds))
            };
            vec![
                Cell::from(time(&one.time)),
                Cell::from(&one.from),
                Cell::from(&one.to),
                Cell::from(one.incarnation),
                Cell::from(&proof.kind),
                Cell::from(&proof.observed_by),
                Cell::from(time(&proof.observed_time)),
                Cell::from(&proof.evidence),
            ]
        });
        let headers = vec!["TIME", "FROM", "TO", "INCARNATION", "PROOF", "OBSERVED-BY", "AT", "EVIDENCE"];
        app.output.section("Restarts elsewhere", &Table { headers, rows: rows.collect() })?;
    }
    app.output.table(&event_table(&events, now_s(), false), "there are no events")?;
    Ok(ExitStatus::Done)
}
