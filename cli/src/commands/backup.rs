//! `tamdao backup`: the cloud's records in files that only their recipients read. The controller encrypts; what comes here
//! is written as a whole or not at all. A restore is the controller's own: `tamdao-controller restore`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use pbjson_types::Timestamp;
use tamdao_backup::schedule::SUFFIX;
use tamdao_backup::{
    Access, BackupError, Content, Credentials, Destination, DestinationError, Head, Identities, Place, check,
};
use tamdao_model::TimeMs;
use tamdao_proto::v1::backup_service_client::BackupServiceClient;
use tamdao_proto::v1::{ListBackupsRequest, ListBackupsResponse, TakeBackupRequest};
use tonic::Response;

use super::backup_drill::{self, Drill};
use crate::app::{App, now_s};
use crate::args::{BackupVerb, S3Args};
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::{bytes, count};
use crate::view::since;

/// Faults that are shown.
pub const SHOWN: usize = 20;

pub async fn run(app: &App, verb: BackupVerb) -> Result<ExitStatus> {
    match verb {
        BackupVerb::Create { to, recipients, s3 } => create(app, &to, &recipients, &s3).await,
        BackupVerb::List { destination: None, .. } => {
            let kept = app.client()?.ask(ListBackupsRequest {}).await?;
            show(app, &kept)
        }
        BackupVerb::List { destination: Some(place), s3 } => {
            let destination = open(&place, &s3)?;
            let kept = destination.survey(&[]).await.map_err(failed)?;
            let backups = kept.iter().map(|(found, verdict)| verdict.shown(found)).collect();
            let destination = destination.place().to_string();
            show(app, &ListBackupsResponse { destination, backups, ..Default::default() })
        }
        BackupVerb::Verify { backup, destination, identity, s3 } => {
            let file = match destination {
                Some(place) => open(&place, &s3)?.get(&backup).await.map_err(failed)?,
                None => read(Path::new(&backup))?,
            };
            verify(app, &backup, &file, &identity)
        }
        BackupVerb::Fetch { name, destination, to, s3 } => {
            let file = open(&destination, &s3)?.get(&name).await.map_err(failed)?;
            let written = File::create_new(&to).and_then(|mut out| {
                out.write_all(&file)?;
                out.sync_all()
            });
            written.map_err(|error| Problem::failed(format!("{}: {error}", to.display())))?;
            app.output.note(&format!("{}: written, {}", to.display(), bytes(file.len() as u64)));
            Ok(ExitStatus::Done)
        }
        BackupVerb::Drill { destination, identity, cluster, max_age, controller, scratch, s3 } => {
            let destination = open(&destination, &s3)?;
            let drill = Drill { destination, identity, cluster, max_age, controller, scratch };
            backup_drill::run(app, drill).await
        }
    }
}

fn failed(error: DestinationError) -> Problem {
    Problem::failed(error.to_string())
}

/// The destination that a text names.
fn open(place: &str, s3: &S3Args) -> Result<Destination> {
    let place = Place::parse(place).map_err(|error| Problem::usage(error.to_string()))?;
    let credentials = match (&place, &s3.credentials) {
        (Place::Directory(_), _) => Credentials::default(),
        (_, Some(path)) => Credentials::parse(&text(path)?).ok_or_else(|| {
            let what = format!("{}: has not the form of Amazon's credentials", path.display());
            Problem::failed(what)
                .hint("write the lines aws_access_key_id = … and aws_secret_access_key = …, once each")
        })?,
        (_, None) => Credentials::from_environment().ok_or_else(|| {
            Problem::usage("there are no credentials for the bucket")
                .hint("add --s3-credentials FILE, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        })?,
    };
    let access = Access {
        endpoint: s3.endpoint.clone().unwrap_or_default(),
        region: s3.region.clone(),
        credentials,
        ca_pem: s3.ca.as_deref().map(text).transpose()?.unwrap_or_default(),
    };
    Ok(Destination::open(place, &access).map_err(failed)?)
}

fn text(path: &Path) -> Result<String, Problem> {
    fs::read_to_string(path).map_err(|error| Problem::failed(format!("{}: {error}", path.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    fs::read(path).map_err(|error| Problem::failed(format!("{}: {error}", path.display())))
}

async fn create(app: &App, to: &str, recipients: &[String], s3: &S3Args) -> Result<ExitStatus> {
    // Before the records are asked for: where nothing can be written nothing need be sent.
    if let Ok(Place::Directory(path)) = Place::parse(to) {
        fs::create_dir_all(&path).map_err(|error| Problem::failed(format!("{}: {error}", path.display())))?;
    }
    let destination = open(to, s3)?;
    let request = TakeBackupRequest { recipients: recipients.to_vec() };
    let taken = app.client()?.call_long(move |wire| {
        let request = request.clone();
        async move {
            let mut parts = BackupServiceClient::new(wire).take_backup(request).await?.into_inner();
            let mut file = Vec::new();
            // A stream that breaks is asked for anew, elsewhere: half a backup is none.
            while let Some(part) = parts.message().await? {
                file.extend_from_slice(&part.chunk);
            }
            Ok(Response::new(file))
        }
    });
    let file = taken.await?;
    let head = tamdao_backup::head(&file).map_err(|error| Problem::failed(error.to_string()))?;
    let about = &head.about;
    // Not the name of a scheduled one: what was made by hand is removed by hand.
    let name = format!("{}-{}{SUFFIX}", about.cluster_name.replace(['/', ' '], "-"), about.revision);
    let size = file.len() as u64;
    destination.put(&name, file.into()).await.map_err(failed)?;
    let path = format!("{}/{name}", destination.place());
    if app.output.is_machine() {
        app.output.value(&facts(&path, &head, size))?;
        return Ok(ExitStatus::Done);
    }
    app.output.note(&format!(
        "{} records at revision {}, {}",
        head.records,
        head.about.revision,
        bytes(size)
    ));
    app.output.line(&path)?;
    Ok(ExitStatus::Done)
}

fn facts(path: &str, head: &Head, size: u64) -> serde_json::Value {
    serde_json::json!({"file": path, "bytes": size, "head": head})
}

/// Ends with 1 if something is damaged or missed, so that it can be asked by a program.
fn show(app: &App, kept: &ListBackupsResponse) -> Result<ExitStatus> {
    let faulty = kept.backups.iter().filter(|one| !one.fault.is_empty()).count();
    let status = if faulty > 0 || kept.overdue { ExitStatus::Failed } else { ExitStatus::Done };
    if app.output.is_machine() {
        app.output.value(kept)?;
        return Ok(status);
    }
    let rows = kept.backups.iter().map(|one| {
        let state = match (one.fault.as_str(), one.proven) {
            ("", true) => Cell::toned("whole", Tone::Good),
            ("", false) => Cell::toned("not proven", Tone::Faint),
            (fault, _) => Cell::toned(fault, Tone::Bad),
        };
        let known = |text: String| if one.fault.is_empty() { Cell::from(text) } else { Cell::from("") };
        vec![
            Cell::from(&one.name),
            Cell::from(&one.cluster_name),
            known(one.revision.to_string()),
            known(one.records.to_string()),
            Cell::from(bytes(one.bytes)),
            known(since(&one.time, now_s())),
            state,
        ]
    });
    let headers = vec!["FILE", "CLUSTER", "REVISION", "RECORDS", "SIZE", "AGE", "STATE"];
    app.output.table(&Table { headers, rows: rows.collect() }, "there are no backups here")?;
    if kept.every_minutes > 0 {
        let next = kept.next_time.as_ref().map_or("not known yet".to_owned(), at);
        app.output.note(&format!(
            "in {}, one every {}, the next at {next}",
            kept.destination,
            count(kept.every_minutes as usize, "minute")
        ));
    }
    if !kept.error.is_empty() {
        app.output.warning(&format!("the last attempt failed: {}", kept.error));
    }
    if kept.overdue {
        app.output.warning("the newest good backup is older than two periods, or there is none");
    }
    if faulty > 0 {
        app.output.warning(&format!("{} no backup can be restored from", count(faulty, "file")));
    }
    Ok(status)
}

fn at(time: &Timestamp) -> String {
    let ms = u64::try_from(time.seconds).unwrap_or_default() * 1_000;
    TimeMs(ms).to_string()
}

/// What the file holds, once all of it is proven.
///
/// # Errors
/// When the identity cannot be read or does not open it, or it is not as it was written.
pub fn opened(file: &[u8], identity: &Path) -> Result<(Head, Content), Problem> {
    let wrong = |error: BackupError| Problem::failed(error.to_string());
    let identities = Identities::parse(&text(identity)?)
        .map_err(|error| wrong(error).about(&identity.display().to_string()))?;
    tamdao_backup::open(file, &identities).map_err(wrong)
}

fn verify(app: &App, name: &str, file: &[u8], identity: &Path) -> Result<ExitStatus> {
    let (head, content) = opened(file, identity).map_err(|problem| problem.about(name))?;
    let faults = check::faults(&content.entries);
    if !faults.is_empty() {
        let mut problem = Problem::failed(format!("{name}: {} records are not well", faults.len()));
        problem.details = faults.into_iter().take(SHOWN).collect();
        return Err(problem.into());
    }
    if app.output.is_machine() {
        app.output.value(&facts(name, &head, file.len() as u64))?;
        return Ok(ExitStatus::Done);
    }
    app.output.card(&[
        ("Cluster", Cell::from(format!("{} ({})", head.about.cluster_name, head.about.cluster))),
        ("Revision", Cell::from(head.about.revision)),
        ("Records", Cell::from(format!("{}, all readable", head.records))),
        ("Taken", Cell::from(TimeMs(head.about.time_ms).to_string())),
        ("By version", Cell::from(&head.about.version)),
        ("SHA-256", Cell::from(&head.sha256)),
    ])?;
    Ok(ExitStatus::Done)
}
