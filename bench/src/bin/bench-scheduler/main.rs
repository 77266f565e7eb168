//! Runs the cases, prints their tables and writes them where asked. Every run on a stream is judged by `check-run`,
//! a program of its own; a run that it does not accept ends the bench.

mod placing;
mod planning;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use tamdao_bench::fleet::Kind;
use tamdao_bench::report::{Table, into_docs};

/// Measures the scheduler.
#[derive(Parser)]
struct Arguments {
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the tables into this document, each in the place of an older one
    #[arg(long, value_name = "FILE")]
    docs: Option<PathBuf>,
    /// Run only these cases
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    /// Processor seconds for each instance of the global rebalance
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    rebalance_seconds: u64,
    /// Keep the plan files in this folder
    #[arg(long, value_name = "FOLDER")]
    plans: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    Tightness,
    Speed,
    Spread,
    Cells,
    Guarded,
    Storm,
    Fragments,
    Emptying,
    Planted,
    Maintenance,
    Evening,
    Ganeti,
    Rebalance,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = arguments.plans.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&folder)?;
    let plans = Plans { folder, keep: arguments.plans.is_some() };
    let mut tables = Vec::new();
    for case in Case::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(case) {
            continue;
        }
        let table = match case {
            Case::Tightness => placing::tightness(&plans)?,
            Case::Speed => placing::speed(Kind::Plain)?,
            Case::Spread => placing::speed(Kind::Spread)?,
            Case::Cells => placing::speed(Kind::Cells)?,
            Case::Guarded => placing::guarded()?,
            Case::Storm => placing::storm(&plans)?,
            Case::Fragments => planning::fragments(&plans)?,
            Case::Emptying => planning::emptying(&plans)?,
            Case::Planted => planning::planted(&plans)?,
            Case::Maintenance => planning::maintenance(&plans)?,
            Case::Evening => planning::evening(&plans)?,
            Case::Rebalance => planning::rebalance(arguments.rebalance_seconds)?,
            Case::Ganeti => placing::ganeti(&plans.folder)?,
        };
        writeln!(std::io::stdout(), "{}", table.markdown())?;
        tables.push(table);
    }
    if let Some(path) = &arguments.json {
        let all: Vec<Value> = tables.iter().map(Table::json).collect();
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    if let Some(path) = &arguments.docs {
        let docs = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        fs::write(path, into_docs(&docs, &tables))?;
    }
    Ok(())
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// Of a decision.
fn micros(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f64() * 1e6)
}

fn seconds(took: Duration) -> String {
    format!("{:.2}", took.as_secs_f64())
}

/// Where plan files lie, and whether they stay there once they are judged.
struct Plans {
    folder: PathBuf,
    keep: bool,
}

impl Plans {
    /// A run whose plan the checker accepts.
    fn checked<T>(&self, name: &str, run: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
        let name = format!("{name} {}.plan", std::process::id());
        let path = self.folder.join(name.replace(' ', "-"));
        let mut plan = BufWriter::new(File::create(&path)?);
        let outcome = run(&mut plan)?;
        plan.into_inner().map_err(|error| error.into_error())?;
        let checker = std::env::current_exe()?.with_file_name("check-run");
        let status = Command::new(&checker).arg(&path).status();
        let status = status.with_context(|| format!("{} cannot be started", checker.display()))?;
        ensure!(status.success(), "the checker does not accept {}", path.display());
        if !self.keep {
            fs::remove_file(&path)?;
        }
        Ok(outcome)
    }
}
