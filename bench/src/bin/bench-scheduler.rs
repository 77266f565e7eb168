//! Runs the cases, prints their tables and writes them where asked. Every run on a stream is judged by `check-run`,
//! a program of its own; a run that it does not accept ends the bench.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;
use tamdao_bench::fleet::{Fleet, Kind};
use tamdao_bench::policy::Policy;
use tamdao_bench::report::{Table, into_docs};
use tamdao_bench::stream::{self, Stream};
use tamdao_bench::{ganeti, speed, tightness};
use tamdao_model::VmId;
use tamdao_scheduler::VmShape;
use tamdao_scheduler::place::find;
use uuid::Uuid;

/// Measures the scheduler.
#[derive(Parser)]
struct Arguments {
    /// Also write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replace the section of the scheduler in this document
    #[arg(long, value_name = "FILE")]
    docs: Option<PathBuf>,
    /// Run only these cases
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    /// Keep the plan files in this folder
    #[arg(long, value_name = "FOLDER")]
    plans: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    Tightness,
    Speed,
    Ganeti,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder = arguments.plans.clone().unwrap_or_else(std::env::temp_dir);
    fs::create_dir_all(&folder)?;
    let mut tables = Vec::new();
    for case in Case::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(case) {
            continue;
        }
        let table = match case {
            Case::Tightness => tightness_table(&folder, arguments.plans.is_some())?,
            Case::Speed => speed_table()?,
            Case::Ganeti => ganeti_table(&folder)?,
        };
        writeln!(std::io::stdout(), "{}", table.markdown())?;
        tables.push(table);
    }
    if let Some(path) = &arguments.json {
        let all: Vec<Value> = tables.iter().map(Table::json).collect();
        fs::write(path, serde_json::to_string_pretty(&all)?)?;
    }
    if let Some(path) = &arguments.docs {
        ensure!(arguments.only.is_empty(), "the document holds all cases, so all have to run");
        let docs = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        fs::write(path, into_docs(&docs, &tables))?;
    }
    Ok(())
}

fn tightness_table(folder: &Path, keep: bool) -> Result<Table> {
    let mut rows = Vec::new();
    for stream in stream::all()? {
        let bound = tightness::bound(&stream);
        for policy in Policy::ALL {
            // More than any rule uses; and a tenth less than even the bound.
            let elastic = run_checked(&stream, policy, 2 * bound.peak + 8, folder, keep)?;
            let fixed = run_checked(&stream, policy, (bound.peak * 9 / 10).max(1), folder, keep)?;
            rows.push(vec![
                stream.name.to_owned(),
                policy.name().to_owned(),
                format!("{} of {}", elastic.peak, bound.peak),
                format!("{:.4}", elastic.node_seconds as f64 / bound.node_seconds as f64),
                format!("{:.2} %", share(fixed.accepted_milli_cpus, fixed.milli_cpus)),
                format!("{:.2} %", share(fixed.accepted as u64, fixed.vms as u64)),
            ]);
        }
    }
    let text = "Public streams of requests on nodes of 64 CPUs and 256 GiB. The bound is the least number of nodes \
        that hold all CPU and all memory in use at that moment, which no placement can beat. The fixed fleet has \
        nine tenths of the bound's peak. Every run was judged from its plan file by `check-run`.";
    Ok(Table {
        title: "Tightness".into(),
        text: text.into(),
        head: vec![
            "stream",
            "rule",
            "peak nodes, of the bound",
            "node-hours over the bound",
            "fixed fleet: CPU accepted",
            "VMs accepted",
        ],
        rows,
    })
}

fn share(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// A run with a plan that the checker accepts.
fn run_checked(
    stream: &Stream,
    policy: Policy,
    nodes: usize,
    folder: &Path,
    keep: bool,
) -> Result<tightness::Outcome> {
    let name = format!("{} {} {nodes} {}.plan", stream.name, policy.name(), std::process::id());
    let path = folder.join(name.replace(' ', "-"));
    let mut plan = BufWriter::new(File::create(&path)?);
    let outcome = tightness::run(stream, policy, nodes, &mut plan)?;
    plan.into_inner().map_err(|error| error.into_error())?;
    let checker = std::env::current_exe()?.with_file_name("check-run");
    let status = Command::new(&checker).arg(&path).status();
    let status = status.with_context(|| format!("{} cannot be started", checker.display()))?;
    ensure!(status.success(), "the checker does not accept {}", path.display());
    if !keep {
        fs::remove_file(&path)?;
    }
    Ok(outcome)
}

fn speed_table() -> Result<Table> {
    let mut rows = Vec::new();
    for (name, kind) in [("plain", Kind::Plain), ("spread, apart", Kind::Spread)] {
        for nodes in [100, 1_000, 5_000, 10_000, 20_000] {
            for percent in [60, 80, 95] {
                let speed = speed::measure(kind, nodes, percent)?;
                rows.push(vec![
                    format!("{name}, {nodes} nodes, {percent} %"),
                    micros(speed.p50),
                    micros(speed.p99),
                    micros(speed.p999),
                    format!("{:.0}", speed.per_second),
                    format!("{:.2} %", share(speed.refused as u64, speed.decisions as u64)),
                ]);
            }
        }
    }
    let text = "One thread, processor time, 20 VMs per node, 9 flavors. Between two decisions a random VM leaves. *Spread, apart*: \
        each VM is in a group of 10 with required anti-affinity by node and a preferred spread over racks of 40.";
    Ok(Table {
        title: "Speed of one placement".into(),
        text: text.into(),
        head: vec!["fleet", "p50 µs", "p99 µs", "p99.9 µs", "decisions/s", "refused"],
        rows,
    })
}

/// The same clusters and the same request, asked of both.
fn ganeti_table(folder: &Path) -> Result<Table> {
    let mut rows = Vec::new();
    for (nodes, checks) in [(100, false), (100, true), (1_000, false)] {
        let fleet = Fleet::new(Kind::Plain, nodes, 80)?;
        let vm = VmShape::bare(VmId(Uuid::from_u128(u128::MAX)), "new", 4, 8_192);
        let begin = speed::now();
        ensure!(find(&fleet.view, &vm).is_some(), "the request has no place");
        let ours = speed::now() - begin;
        let what = if checks { "with its capacity check" } else { "without its capacity check" };
        let (theirs, ratio) = if ganeti::is_installed() {
            let theirs = ganeti::allocate(folder, &ganeti::cluster(&fleet.view), checks)?;
            (
                format!("{:.2}", theirs.as_secs_f64()),
                format!("{:.0}", theirs.as_secs_f64() / ours.as_secs_f64()),
            )
        } else {
            ("not installed".into(), "-".into())
        };
        rows.push(vec![format!("{nodes} nodes, {what}"), theirs, micros(ours), ratio]);
    }
    let text = "One allocation of 4 vCPUs and 8 GiB on plain disks in a fleet that is 80 % full. `hail` (Debian: \
        ganeti-htools) is a process that reads the cluster from its text format, so its time holds the reading; ours \
        is one decision on a view in memory, without the failover guarantee. Processor time.";
    Ok(Table {
        title: "Beside Ganeti".into(),
        text: text.into(),
        head: vec!["fleet", "hail s", "ours µs", "ratio"],
        rows,
    })
}

fn micros(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f64() * 1e6)
}
