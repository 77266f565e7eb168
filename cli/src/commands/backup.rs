//! `tamdao backup`: the cloud's records in a file that only its recipients read. The controller encrypts; what comes here
//! is written as a whole or not at all. A restore is the controller's own: `tamdao-controller restore`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tamdao_backup::{Head, Identities, check};
use tamdao_model::TimeMs;
use tamdao_proto::v1::TakeBackupRequest;
use tamdao_proto::v1::backup_service_client::BackupServiceClient;
use tonic::Response;

use crate::app::App;
use crate::args::BackupVerb;
use crate::output::{Cell, Table};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::bytes;

const SUFFIX: &str = "tamdao-backup";
/// Faults that are shown.
const SHOWN: usize = 20;
/// More than any first line.
const LINE: u64 = 8_192;

pub async fn run(app: &App, verb: BackupVerb) -> Result<ExitStatus> {
    match verb {
        BackupVerb::Create { to, recipients } => create(app, &to, &recipients).await,
        BackupVerb::List { directory } => list(app, &directory),
        BackupVerb::Verify { file, identity } => verify(app, &file, &identity),
    }
}

async fn create(app: &App, directory: &Path, recipients: &[String]) -> Result<ExitStatus> {
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
    let name = format!("{}-{}.{SUFFIX}", head.about.cluster_name, head.about.revision);
    let path = directory.join(name);
    write(directory, &path, &file)
        .map_err(|error| Problem::failed(format!("{} cannot be written: {error}", path.display())))?;
    if app.output.is_machine() {
        app.output.value(&shown(&path, &head, file.len() as u64))?;
        return Ok(ExitStatus::Done);
    }
    app.output.note(&format!(
        "{} records at revision {}, {}",
        head.records,
        head.about.revision,
        bytes(file.len() as u64)
    ));
    app.output.line(&path.display().to_string())?;
    Ok(ExitStatus::Done)
}

/// Writes aside, fsyncs and renames: the name stands for a whole file, or for none.
fn write(directory: &Path, path: &Path, file: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let aside = path.with_extension("partial");
    let mut out = File::create(&aside)?;
    out.write_all(file)?;
    out.sync_all()?;
    fs::rename(&aside, path)?;
    File::open(directory)?.sync_all()
}

fn shown(path: &Path, head: &Head, size: u64) -> serde_json::Value {
    serde_json::json!({"file": path, "bytes": size, "head": head})
}

/// The first lines only: nothing is proven of what is listed.
fn list(app: &App, directory: &Path) -> Result<ExitStatus> {
    let wrong = |error: std::io::Error| Problem::failed(format!("{}: {error}", directory.display()));
    let mut found: Vec<(PathBuf, u64, Result<Head, String>)> = Vec::new();
    for entry in fs::read_dir(directory).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        if path.extension().is_none_or(|extension| extension != SUFFIX) {
            continue;
        }
        let (line, size) = beginning(&path).map_err(wrong)?;
        found.push((path, size, tamdao_backup::head(&line).map_err(|error| error.to_string())));
    }
    let time = |head: &Result<Head, String>| head.as_ref().map_or(0, |head| head.about.time_ms);
    found.sort_by(|a, b| (time(&a.2), &a.0).cmp(&(time(&b.2), &b.0)));
    if app.output.is_machine() {
        let rows =
            found.iter().filter_map(|(path, size, head)| Some(shown(path, head.as_ref().ok()?, *size)));
        app.output.value(&serde_json::json!({"backups": rows.collect::<Vec<_>>()}))?;
        return Ok(ExitStatus::Done);
    }
    let rows = found.iter().map(|(path, size, head)| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut row = vec![Cell::from(name)];
        match head {
            Ok(Head { about, records, .. }) => row.extend([
                Cell::from(&about.cluster_name),
                Cell::from(about.revision),
                Cell::from(*records),
                Cell::from(bytes(*size)),
                Cell::from(TimeMs(about.time_ms).to_string()),
            ]),
            Err(error) => row.push(Cell::from(error.as_str())),
        }
        row.resize(6, Cell::from(""));
        row
    });
    let headers = vec!["FILE", "CLUSTER", "REVISION", "RECORDS", "SIZE", "TAKEN"];
    app.output.table(&Table { headers, rows: rows.collect() }, "there are no backups here")?;
    Ok(ExitStatus::Done)
}

fn beginning(path: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    use std::io::Read as _;
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut line = Vec::new();
    file.take(LINE).read_to_end(&mut line)?;
    Ok((line, size))
}

fn verify(app: &App, path: &Path, identity: &Path) -> Result<ExitStatus> {
    let wrong =
        |path: &Path, error: &dyn std::fmt::Display| Problem::failed(format!("{}: {error}", path.display()));
    let text = fs::read_to_string(identity).map_err(|error| wrong(identity, &error))?;
    let identities = Identities::parse(&text).map_err(|error| wrong(identity, &error))?;
    let file = fs::read(path).map_err(|error| wrong(path, &error))?;
    let (head, content) = tamdao_backup::open(&file, &identities).map_err(|error| wrong(path, &error))?;
    let faults = check::faults(&content.entries);
    if !faults.is_empty() {
        let mut problem =
            Problem::failed(format!("{}: {} records are not well", path.display(), faults.len()));
        problem.details = faults.into_iter().take(SHOWN).collect();
        return Err(problem.into());
    }
    if app.output.is_machine() {
        app.output.value(&shown(path, &head, file.len() as u64))?;
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
