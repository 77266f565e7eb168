//! `tamdao audit`: who changed what, and who was refused. Each controller is asked: all have every change, which is taken
//! from the first that answers, and each has what it refused itself.

use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tamdao_proto::v1::audit_service_client::AuditServiceClient;
use tamdao_proto::v1::{
    AuditRecord, Role, VerifyAuditRequest, VerifyAuditResponse, WatchAuditRequest, WatchAuditResponse,
};

use crate::app::{App, now_s};
use crate::args::{AuditArgs, AuditListArgs, AuditVerb};
use crate::client::Client;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem, problem_of};
use crate::quantity::moment;
use crate::rpc;

/// What a list shows when nobody said since when.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub async fn run(app: &App, verb: AuditVerb) -> Result<ExitStatus> {
    match verb {
        AuditVerb::List(args) => list(app, &args).await,
        AuditVerb::Verify => verify(app).await,
        AuditVerb::Export(args) => export(app, &args).await,
    }
}

/// Messages of one controller until now, and the cursor behind them; the stream goes on if that was asked for.
type Told = BoxStream<'static, Result<WatchAuditResponse, Problem>>;

async fn list(app: &App, args: &AuditListArgs) -> Result<ExitStatus> {
    // A journal has years: without a time given the whole of it would be read for its last lines.
    let since = args.which.since.unwrap_or(A_DAY);
    if args.which.since.is_none() {
        app.output.note("of the last 24 hours; --since shows more");
    }
    let (mut records, mut rest) = (Vec::new(), Vec::new());
    for mut told in open(app, &AuditArgs { since: Some(since), ..args.which.clone() }).await? {
        while let Some(message) = told.next().await {
            match message?.record {
                Some(record) => records.push(record),
                // The first bookmark stands where the present is.
                None => break,
            }
        }
        rest.push(told);
    }
    records.sort_by_key(|record| record.time.as_ref().map(|time| (time.seconds, time.nanos)));
    let surplus = records.len().saturating_sub(args.limit);
    records.drain(..surplus);
    if app.output.is_machine() && !args.which.watch {
        app.output.value(&serde_json::json!({ "records": records }))?;
    } else if args.which.watch {
        records.iter().try_for_each(|record| tell(app, record))?;
        let mut rest = stream::select_all(rest);
        while let Some(message) = rest.next().await {
            message?.record.iter().try_for_each(|record| tell(app, record))?;
        }
    } else {
        let rows = records.iter().map(row).collect();
        let headers = vec!["TIME", "WHO", "FROM", "METHOD", "ON", "RESULT"];
        app.output.table(&Table { headers, rows }, "there are no audit records")?;
    }
    Ok(ExitStatus::Done)
}

async fn export(app: &App, args: &AuditArgs) -> Result<ExitStatus> {
    let opened = open(app, args).await?;
    let mut all = match args.watch {
        true => stream::select_all(opened).boxed(),
        false => stream::iter(opened).flatten().boxed(),
    };
    while let Some(message) = all.next().await {
        let message = message?;
        if message.record.is_some() {
            app.output.line(&serde_json::to_string(&message)?)?;
        }
    }
    Ok(ExitStatus::Done)
}

async fn verify(app: &App) -> Result<ExitStatus> {
    let mut found: Vec<VerifyAuditResponse> = Vec::new();
    let mut sound = true;
    for client in app.client()?.each() {
        let asked = VerifyAuditRequest {};
        let answer =
            client.call_long(|wire| async move { AuditServiceClient::new(wire).verify_audit(asked).await });
        match answer.await {
            Ok(answer) => {
                sound &= answer.damage.is_empty();
                found.push(answer);
            }
            Err(problem) if found.is_empty() && app.client()?.each().len() == 1 => return Err(problem.into()),
            Err(problem) => {
                sound = false;
                app.output.warning(&format!("{}: not verified: {}", client.address(), problem.what));
            }
        }
    }
    if app.output.is_machine() {
        app.output.value(&serde_json::json!({ "journals": found }))?;
    } else {
        let headers = vec!["CONTROLLER", "ENTRIES", "FIRST", "LAST", "DELIVERED", "RESULT"];
        let rows = found.iter().map(|one| {
            let result = match one.damage.as_str() {
                "" => Cell::toned("as it was written", Tone::Good),
                damage => Cell::toned(damage, Tone::Bad),
            };
            let cells = [one.controller.clone(), one.entries.to_string(), one.first.to_string()];
            let mut row: Vec<Cell> = cells.into_iter().map(Cell::from).collect();
            row.extend([Cell::from(one.last), delivered(one), result]);
            row
        });
        app.output.table(&Table { headers, rows: rows.collect() }, "no journal was read")?;
    }
    Ok(if sound { ExitStatus::Done } else { ExitStatus::Failed })
}

/// How far the receiver of syslog has the journal's records, or why it gets none.
fn delivered(one: &VerifyAuditResponse) -> Cell {
    match (one.receiver.as_str(), one.trouble.as_str()) {
        ("", _) => Cell::toned("-", Tone::Faint),
        (_, "") => Cell::from(one.delivered),
        (_, trouble) => Cell::toned(format!("{}: {trouble}", one.delivered), Tone::Bad),
    }
}

/// Asks each controller. One that does not answer is named, unless none does.
async fn open(app: &App, args: &AuditArgs) -> Result<Vec<Told>> {
    let since = args.since.map(|time| pbjson_types::Timestamp {
        seconds: now_s() - i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    });
    let (mut opened, mut silent) = (Vec::new(), Vec::new());
    for client in app.client()?.each() {
        let request = WatchAuditRequest {
            agency: app.agency_unless(args.all_agencies)?,
            principal: args.who.clone().unwrap_or_default(),
            method: args.method.clone().unwrap_or_default(),
            since,
            refused_only: args.refused,
            until_now: !args.watch,
            ..Default::default()
        };
        // The changes are the same everywhere: what others than the first say of them is left out.
        let first = opened.is_empty();
        let asked: Result<tonic::Streaming<WatchAuditResponse>, Problem> = ask(&client, request).await;
        match asked {
            Ok(told) => opened.push(
                told.map(|message| message.map_err(|status| Problem::from_status(&status)))
                    .filter(move |message| {
                        let committed = matches!(message, Ok(WatchAuditResponse { record: Some(record), .. })
                            if record.revision != 0);
                        std::future::ready(first || !committed)
                    })
                    .boxed(),
            ),
            Err(problem) => silent.push((client.address().to_owned(), problem)),
        }
    }
    if opened.is_empty()
        && let Some((_, problem)) = silent.pop()
    {
        return Err(problem.into());
    }
    for (address, problem) in silent {
        app.output.warning(&format!("{address}: what it refused is missing here: {}", problem.what));
    }
    Ok(opened)
}

/// What was changed since a time, the oldest first, as far as the caller may read it. One controller is enough: all have
/// every change.
pub(crate) async fn changes_since(
    app: &App,
    since: pbjson_types::Timestamp,
) -> Result<Vec<AuditRecord>, Problem> {
    let request = WatchAuditRequest { since: Some(since), until_now: true, ..Default::default() };
    let mut told = ask(app.client().map_err(problem_of)?, request).await?;
    let mut records = Vec::new();
    while let Some(message) = told.message().await.map_err(|status| Problem::from_status(&status))? {
        records.extend(message.record.filter(|record| record.revision != 0));
    }
    Ok(records)
}

async fn ask(
    client: &Client,
    request: WatchAuditRequest,
) -> Result<tonic::Streaming<WatchAuditResponse>, Problem> {
    rpc!(client, AuditServiceClient, watch_audit, request)
}

fn tell(app: &App, record: &AuditRecord) -> Result<()> {
    match app.output.is_machine() {
        true => app.output.stream_value(record),
        false => app.output.bare(&row(record)),
    }
}

fn row(record: &AuditRecord) -> Vec<Cell> {
    let time = record.time.as_ref().map_or(String::new(), |time| moment(time.seconds));
    let tone = if record.code == "Ok" { Tone::Good } else { Tone::Bad };
    vec![
        Cell::toned(time, Tone::Faint),
        Cell::from(who(record)),
        Cell::from(record.peer.rsplit_once(':').map_or(record.peer.as_str(), |(host, _)| host)),
        Cell::from(&record.method),
        Cell::from(on(record)),
        Cell::toned(result(record), tone),
    ]
}

/// The principal without the id of a token, and the role.
pub(crate) fn who(record: &AuditRecord) -> String {
    let name = match record.principal.splitn(3, ':').collect::<Vec<_>>()[..] {
        ["token", _, name] => name,
        ["user", ..] => record.principal.split_once(':').map_or("", |(_, name)| name),
        _ => record.principal.as_str(),
    };
    match record.role() {
        Role::Unspecified => name.to_owned(),
        role => {
            let word = role.as_str_name().trim_start_matches("ROLE_").to_lowercase().replace('_', "-");
            match record.role_agency.as_str() {
                "" => format!("{name} ({word})"),
                agency => format!("{name} ({word} of {agency})"),
            }
        }
    }
}

/// What was changed first, and how many more; else what was named.
fn on(record: &AuditRecord) -> String {
    let path = |agency: &str, name: &str| match (agency, name) {
        ("", name) => name.to_owned(),
        (agency, "") => agency.to_owned(),
        (agency, name) => format!("{agency}/{name}"),
    };
    let Some(first) = record.changes.iter().find(|one| one.name == record.name).or(record.changes.first())
    else {
        return path(&record.agency, &record.name);
    };
    let own = if first.kind == "agency" { "" } else { first.agency.as_str() };
    let name = if first.name.is_empty() { &first.id } else { &first.name };
    match record.changes.len() {
        1 => format!("{} {}", first.kind, path(own, name)),
        many => format!("{} {} +{}", first.kind, path(own, name), many - 1),
    }
}

fn result(record: &AuditRecord) -> String {
    let times = if record.count > 1 { format!(" x{}", record.count) } else { String::new() };
    match (record.code.as_str(), record.reason.as_str()) {
        ("Ok", _) => "ok".to_owned(),
        (code, "") => format!("{code}{times}"),
        (_, reason) => format!("{reason}{times}"),
    }
}
