//! The bench of availability: what maintenance and losses cost. `cargo xtask bench availability` runs it; it needs root,
//! but for the evacuation. It prints a table on standard error and, with --json FILE, writes the same as data, also what
//! was measured before something failed. Each case has a cloud of its own, which goes however the case ends.

mod bare;
mod drain;
mod evacuation;
mod losses;
mod migration;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use report::Report;
use tamdao_tests::figures::say;

/// In the order in which they run.
const CASES: [&str; 4] = ["losses", "migration", "drain", "evacuation"];
/// The product's default.
const LEASE_MS: u64 = 60_000;

#[tokio::main]
async fn main() -> Result<()> {
    let (mut file, mut lease_ms, mut only) = (None, LEASE_MS, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match (name.as_str(), arguments.next()) {
            ("--json", Some(path)) => file = Some(PathBuf::from(path)),
            ("--lease-ms", Some(number)) => lease_ms = number.parse().context("--lease-ms")?,
            ("--only", Some(case)) => only.push(case),
            _ => bail!("usage: bench-availability [--only CASE]... [--lease-ms MS] [--json FILE]"),
        }
    }
    for case in &only {
        ensure!(CASES.contains(&case.as_str()), "--only takes one of {}, not {case:?}", CASES.join(", "));
    }
    let mut report = Report::default();
    let measured = tokio::select! {
        measured = measure(&mut report, &only, lease_ms) => measured,
        // Whatever is up goes with what is dropped here.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if let Some(file) = file {
        report.write(&file)?;
    }
    measured
}

async fn measure(report: &mut Report, only: &[String], lease_ms: u64) -> Result<()> {
    for case in CASES.into_iter().filter(|case| only.is_empty() || only.iter().any(|one| one == case)) {
        say(&format!("--- {case}"));
        let measured = match case {
            "losses" => losses::run(report, lease_ms).await,
            "migration" => migration::run(report).await,
            "drain" => drain::run(report).await,
            _ => evacuation::run(report).await,
        };
        measured.context(case)?;
    }
    Ok(())
}
