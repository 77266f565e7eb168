//! The bench of manifests: the province of deploy/examples/vinh-phuc, and a stack of 5,000 resources, each planned from
//! nothing, applied and planned again by the command line, on three real controllers with fsync and nodes that answer at
//! once. `cargo xtask bench manifests` runs it. It prints a table on standard error and, with --json FILE, writes the
//! same as data. What it measures shares this machine with the nodes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tamdao_tests::Cloud;
use tamdao_tests::figures::say;
use tamdao_tests::fleet::{NO_VLANS, Size};
use tamdao_tests::province::Province;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(1_800);
const NODES: usize = 64;
/// 50 agencies, each with itself, a group, 49 volumes and 49 VMs: 5,000 resources, and a pool beside them.
const MANY: &str = r#"
tamdao {
  stack = "many"
}

resource "pool" "default" {
  kind = "dir"
  path = "/pool"
}

resource "agency" "many" {
  count = 50
  name  = "many-${count.index}"
  quota = { vms = 49, vcpus = 49 }
}

resource "placement_group" "many" {
  count  = 50
  name   = "even"
  agency = agency.many[count.index].name
  rules {
    kind    = "apart"
    at_most = 40
  }
}

resource "volume" "many" {
  count    = 2450
  name     = "data-${count.index % 49}"
  agency   = agency.many[floor(count.index / 49)].name
  pool     = pool.default.name
  size_mib = 1024
}

resource "vm" "many" {
  count            = 2450
  name             = "vm-${count.index % 49}"
  agency           = agency.many[floor(count.index / 49)].name
  vcpus            = 1
  memory_mib       = 512
  placement_groups = [placement_group.many[floor(count.index / 49)].name]
  disks {
    volume = volume.many[count.index].name
  }
}
"#;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--json"), Some(file)) => Some(PathBuf::from(file)),
        _ => bail!("usage: bench-manifests [--json FILE]"),
    };
    let mut rows = Vec::new();
    let province = Province::start(&[]).await?;
    let folder = province.folder.path().display().to_string();
    measure("the province", &province.cloud, &folder, &mut rows).await?;
    province.cloud.done()?;
    many(&mut rows).await?;
    if let Some(file) = file {
        let report = json!({ "bench": "manifests", "rows": rows });
        std::fs::write(&file, serde_json::to_string_pretty(&report)?)
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

async fn many(rows: &mut Vec<Value>) -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).bare().start().await?;
    let size = Size { cpus: 64, memory_mib: 1 << 18, pool_mib: 1 << 24, vlans: NO_VLANS };
    let fleet = cloud.fleet_of("n", NODES, size).await?;
    cloud.nodes_ready().await?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("main.tf"), MANY)?;
    let folder = folder.path().display().to_string();
    measure("the large stack", &cloud, &folder, rows).await?;
    drop(fleet);
    cloud.done()
}

/// Plans, applies, and plans again.
async fn measure(what: &str, cloud: &Cloud, folder: &str, rows: &mut Vec<Value>) -> Result<()> {
    let mut row = |name: &str, value: f64, unit: &str| {
        let name = format!("{what}: {name}");
        say(&format!("{name:<56} {value:>10.1} {unit}"));
        rows.push(json!({ "name": name, "value": value, "unit": unit }));
    };
    let plan = ["plan", "-f", folder];
    let (told, took, memory) = cloud.cli.measured(PATIENCE, &plan).await?;
    let line = told.lines().find_map(|line| line.strip_prefix("Plan: ")).context("a plan has a summary")?;
    let count: f64 = line.split(' ').next().unwrap_or_default().parse()?;
    row("resources", count, "");
    row("plan from nothing", took.as_secs_f64(), "s");
    row("memory of that plan", memory, "MiB");
    let apply = ["apply", "-f", folder, "--yes", "--parallelism", "64"];
    let (told, took, memory) = cloud.cli.measured(PATIENCE, &apply).await?;
    ensure!(told.contains(&format!("done: {count} added")), "{told}");
    row("apply until all run", took.as_secs_f64(), "s");
    row("rate of that", count / took.as_secs_f64(), "/s");
    row("memory of that apply", memory, "MiB");
    let (told, took, memory) = cloud.cli.measured(PATIENCE, &plan).await?;
    ensure!(told.contains("No changes."), "{told}");
    row("plan of what is", took.as_secs_f64(), "s");
    row("memory of that plan", memory, "MiB");
    Ok(())
}
