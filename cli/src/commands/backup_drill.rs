//! `tamdao backup drill`: whether the cloud could be restored today, from what lies where its backups are kept. The restore
//! itself is done by the program that would do it in earnest, in a directory that it removes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tamdao_backup::{BackupName, Destination, Found, Verdict};
use uuid::Uuid;

use super::backup::{SHOWN, opened};
use crate::app::App;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::{bytes, duration};

/// What is drilled, and by whom.
pub struct Drill {
    pub destination: Destination,
    pub identity: PathBuf,
    pub cluster: Option<Uuid>,
    pub max_age: Option<Duration>,
    pub controller: PathBuf,
    pub scratch: Option<PathBuf>,
}

/// What the program that restores says (`tamdao-controller drill`).
#[derive(Debug, Deserialize)]
struct Restored {
    version: String,
    kinds: BTreeMap<String, (u64, u64)>,
    faults: Vec<String>,
}

/// What is told.
#[derive(Debug, Serialize)]
struct Report {
    backup: String,
    cluster: Uuid,
    revision: u64,
    records: u64,
    bytes: u64,
    age_s: u64,
    took_ms: u64,
    restored_by: String,
    /// Records of each kind, in the backup and as restored.
    kinds: BTreeMap<String, (u64, u64)>,
    faults: Vec<String>,
}

/// Ends with 1 if anything is wrong.
pub async fn run(app: &App, drill: Drill) -> Result<ExitStatus> {
    let began = Instant::now();
    let survey = drill.destination.survey(&[]).await.map_err(|error| Problem::failed(error.to_string()))?;
    let (name, mut faults) = choose(&survey, drill.cluster)?;
    let file = drill.destination.get(&name.to_string()).await;
    let file = file.map_err(|error| Problem::failed(error.to_string()))?;
    let (head, _) = opened(&file, &drill.identity).map_err(|problem| problem.about(&name.to_string()))?;
    let restored = restore(&drill, &file)?;
    // A clock that is behind the controllers' calls it new.
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_millis(name.time_ms))
        .unwrap_or_default();
    if let Some(most) = drill.max_age.filter(|most| age > *most) {
        faults.push(format!("{name}: is {} old, and {} is allowed", duration(age), duration(most)));
    }
    faults.extend(restored.faults);
    let report = Report {
        backup: name.to_string(),
        cluster: name.cluster,
        revision: name.revision,
        records: head.records,
        bytes: file.len() as u64,
        age_s: age.as_secs(),
        took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        restored_by: restored.version,
        kinds: restored.kinds,
        faults,
    };
    tell(app, &report)?;
    if report.faults.is_empty() {
        return Ok(ExitStatus::Done);
    }
    let mut problem = Problem::failed(format!("the drill found {} faults", report.faults.len()));
    problem.details = report.faults.into_iter().take(SHOWN).collect();
    Err(problem.into())
}

/// The newest that is whole, and what is wrong with others: what is damaged is found in a drill, or in need.
fn choose(survey: &[(Found, Verdict)], cluster: Option<Uuid>) -> Result<(&BackupName, Vec<String>), Problem> {
    let whole = survey.iter().filter_map(|(_, verdict)| verdict.whole());
    let newest = whole.filter(|name| cluster.is_none_or(|cluster| name.cluster == cluster)).max();
    let faults = survey.iter().filter_map(|(found, verdict)| Some((found, verdict.fault()?)));
    let faults: Vec<String> = faults.map(|(found, fault)| format!("{}: {fault}", found.name)).collect();
    match newest {
        Some(name) => Ok((name, faults)),
        None => {
            let mut problem = Problem::failed("there is no good scheduled backup here");
            problem.details = faults;
            Err(problem)
        }
    }
}

fn restore(drill: &Drill, file: &[u8]) -> Result<Restored> {
    let program = drill.controller.display().to_string();
    let mut command = Command::new(&drill.controller);
    command.arg("drill").arg("--identity").arg(&drill.identity);
    if let Some(scratch) = &drill.scratch {
        command.arg("--scratch").arg(scratch);
    }
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        let problem = Problem::failed(format!("{program} cannot be run: {error}"));
        match error.kind() {
            ErrorKind::NotFound => problem
                .hint("install it here too, its service need not run; or name the program with --controller"),
            _ => problem,
        }
    })?;
    let mut input = child.stdin.take().context("its input is piped")?;
    // One that ends early says why on its way out.
    let sent = input.write_all(file);
    drop(input);
    let output = child.wait_with_output().with_context(|| program.clone())?;
    let told = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let why = match (told.trim(), sent) {
            ("", Err(error)) => error.to_string(),
            ("", Ok(())) => output.status.to_string(),
            (told, _) => told.trim_start_matches("error: ").to_owned(),
        };
        Problem::failed(format!("the backup cannot be restored: {why}")).into()
    })
}

fn tell(app: &App, report: &Report) -> Result<()> {
    if app.output.is_machine() {
        return app.output.value(report);
    }
    let (age, took) = (Duration::from_secs(report.age_s), Duration::from_millis(report.took_ms));
    app.output.card(&[
        ("Backup", Cell::from(&report.backup)),
        ("Age", Cell::from(duration(age))),
        ("Size", Cell::from(bytes(report.bytes))),
        ("Revision", Cell::from(report.revision)),
        ("Restored by", Cell::from(format!("tamdao-controller {}", report.restored_by))),
        ("Took", Cell::from(duration(took))),
    ])?;
    let rows = report.kinds.iter().map(|(kind, (before, after))| {
        let tone = if before == after { Tone::Good } else { Tone::Faint };
        vec![Cell::from(kind), Cell::from(*before), Cell::toned(after.to_string(), tone)]
    });
    app.output.table(&Table { headers: vec!["KIND", "BACKUP", "RESTORED"], rows: rows.collect() }, "")
}
