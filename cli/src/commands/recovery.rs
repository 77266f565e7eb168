//! `tamdao recovery`: how far a cloud that recovers has found out what runs, and the word that lets it act again.

use anyhow::Result;
use tamdao_proto::v1::{EndRecoveryRequest, FoundGuest, GetRecoveryRequest, Recovery, RecoveryCause};

use crate::app::{App, now_s};
use crate::args::RecoveryVerb;
use crate::output::{Cell, Table};
use crate::problem::ExitStatus;
use crate::quantity::mib;
use crate::view::since;

pub async fn run(app: &App, verb: RecoveryVerb) -> Result<ExitStatus> {
    match verb {
        RecoveryVerb::Status => {
            let recovery = app.client()?.ask(GetRecoveryRequest {}).await?;
            show(app, &recovery)
        }
        RecoveryVerb::End { leave_strangers, yes } => {
            let recovery = app.client()?.ask(GetRecoveryRequest {}).await?;
            let question = format!(
                "end the recovery, start {} VMs that run nowhere, and leave {} as they are",
                recovery.down.len(),
                recovery.unknown.len()
            );
            app.confirm(yes, &question)?;
            let ended = app.client()?.ask(EndRecoveryRequest { leave_strangers }).await?;
            if app.output.is_machine() {
                app.output.value(&ended)?;
            } else {
                app.output.note("the recovery has ended; the cloud acts again");
            }
            Ok(ExitStatus::Done)
        }
    }
}

fn show(app: &App, recovery: &Recovery) -> Result<ExitStatus> {
    if app.output.is_machine() {
        app.output.value(recovery)?;
        return Ok(ExitStatus::Done);
    }
    if !recovery.active {
        app.output.line("the cloud does not recover from anything")?;
        return Ok(ExitStatus::Done);
    }
    let now = now_s();
    let names = |names: &[String]| match names.len() {
        0 => Cell::from("none"),
        count => Cell::from(format!("{count}: {}", names.join(", "))),
    };
    app.output.card(&[
        ("Recovers since", Cell::from(since(&recovery.since, now))),
        ("Records", Cell::from(origin(recovery, now))),
        ("Nodes awaited", names(&recovery.awaited)),
        ("Nodes that reported", names(&recovery.reported)),
        ("Nodes proven gone", names(&recovery.gone)),
        ("Strange nodes", names(&recovery.strangers)),
    ])?;
    for (title, guests) in [
        ("Runs, and is in no record: left as it is", &recovery.unknown),
        ("Runs elsewhere than its record says: what runs wins", &recovery.moved),
        ("Runs twice: stop all but one by hand", &recovery.twice),
        ("In the records, and does not run: is started when the recovery ends", &recovery.down),
    ] {
        if !guests.is_empty() {
            app.output.section(title, &table(guests))?;
        }
    }
    Ok(ExitStatus::Done)
}

/// Of when the records are, and what brought them back.
fn origin(recovery: &Recovery, now: i64) -> String {
    let revision = recovery.backup_revision;
    match recovery.cause() {
        RecoveryCause::Survivor => {
            format!("revision {revision}, as the last controller of a lost group had them")
        }
        RecoveryCause::WentBack => format!(
            "revision {revision}, and node {} had seen {}: the store went back in time",
            recovery.witness, recovery.witness_revision
        ),
        RecoveryCause::Restored | RecoveryCause::Unspecified => {
            format!("revision {revision}, of a backup taken {} ago", since(&recovery.backup_time, now))
        }
    }
}

fn table(guests: &[FoundGuest]) -> Table {
    let rows = guests.iter().map(|guest| {
        let name = match (guest.agency.as_str(), guest.vm.as_str()) {
            (_, "") => guest.vm_id.clone(),
            (agency, vm) => format!("{agency}/{vm}"),
        };
        vec![
            Cell::from(name),
            Cell::from(&guest.node),
            Cell::from(guest.incarnation),
            match (guest.vcpus, guest.memory_mib) {
                (0, _) | (_, 0) => Cell::from(""),
                (vcpus, memory) => Cell::from(format!("{vcpus} vCPUs, {}", mib(memory.into()))),
            },
            Cell::from(guest.addresses.join(", ")),
        ]
    });
    Table { headers: vec!["VM", "NODE", "INCARNATION", "SIZE", "ADDRESSES"], rows: rows.collect() }
}
