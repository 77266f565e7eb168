//! Runs the cases, prints their tables and writes them where asked. Every run on a stream is judged by `check-run`,
//! a program of its own; a run that it does not accept ends the bench.

use std::collections::BTreeSet;
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
use tamdao_bench::stream;
use tamdao_bench::{emptying, fleet, ganeti, speed, storm, tightness};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::VmShape;
use tamdao_scheduler::place::find;
use tamdao_scheduler::plan::Terms;
use tamdao_scheduler::survive::Loss;
use uuid::Uuid;

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
    /// Keep the plan files in this folder
    #[arg(long, value_name = "FOLDER")]
    plans: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    Tightness,
    Speed,
    Storm,
    Emptying,
    Ganeti,
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
            Case::Tightness => tightness_table(&plans)?,
            Case::Speed => speed_table()?,
            Case::Storm => storm_table(&plans)?,
            Case::Emptying => emptying_table(&plans)?,
            Case::Ganeti => ganeti_table(&plans.folder)?,
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

fn tightness_table(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    for stream in stream::all()? {
        let bound = tightness::bound(&stream);
        for policy in Policy::ALL {
            // More than any rule uses; and a tenth less than even the bound.
            let run = |nodes: usize| {
                let name = format!("{} {} {nodes}", stream.name, policy.name());
                plans.checked(&name, |plan| tightness::run(&stream, policy, nodes, plan))
            };
            let elastic = run(2 * bound.peak + 8)?;
            let fixed = run((bound.peak * 9 / 10).max(1))?;
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

fn storm_table(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    for percent in [60, 80, 95] {
        let fleet = Fleet::new(Kind::Plain, 1_000, percent)?;
        let node = Loss::Node(fleet::node_id(0));
        let rack = Loss::Domain { key: "rack".into(), value: "r0".into() };
        for (name, loss) in [("one node", node), ("one rack of 40", rack)] {
            let storm = plans.checked(&format!("storm {percent} {name}"), |plan| {
                storm::measure(&fleet.view, &loss, plan)
            })?;
            rows.push(vec![
                format!("{name}, {percent} % full"),
                format!("{:.2}", storm.took.as_secs_f64() * 1e3),
                storm.restarted.to_string(),
                storm.left_out.to_string(),
                if storm.by_priority { "kept" } else { "broken" }.to_owned(),
            ]);
        }
    }
    let text = "1,000 nodes, 20 VMs each, all protected, in three priorities. The time is the whole plan's, on one \
        thread. Judged from its plan file: nothing lands on what is lost.";
    Ok(Table {
        title: "Failover storm".into(),
        text: text.into(),
        head: vec!["lost", "plan ms", "VMs restarted", "without a place", "order by priority"],
        rows,
    })
}

fn emptying_table(plans: &Plans) -> Result<Table> {
    let mut rows = Vec::new();
    let nodes = 1_000;
    for percent in [60, 80] {
        let fleet = Fleet::new(Kind::Plain, nodes, percent)?;
        for k in [1, 5, nodes / 20, nodes / 10] {
            let empty: BTreeSet<NodeId> = (0..k).map(fleet::node_id).collect();
            let done = plans.checked(&format!("emptying {percent} {k}"), |plan| {
                emptying::measure(&fleet.view, &empty, &Terms::default(), plan)
            })?;
            rows.push(vec![
                format!("{k} of {nodes} nodes, {percent} % full"),
                format!("{} of {}", done.moves, done.vms),
                format!("{} of {}", done.moved_mib / 1_024, done.memory_mib / 1_024),
                done.rounds.to_string(),
                done.stuck.to_string(),
                format!("{:.1}", done.took.as_secs_f64() * 1e3),
            ]);
        }
    }
    let text = "Live moves that empty given nodes, at most two at once on a node and 32 in the cluster, both ends held \
        while a move runs. *Of* is the least: each VM that stands there moves once.";
    Ok(Table {
        title: "Emptying nodes".into(),
        text: text.into(),
        head: vec![
            "nodes",
            "moves, of the least",
            "GiB moved, of the least",
            "rounds",
            "VMs stuck",
            "plan ms",
        ],
        rows,
    })
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
