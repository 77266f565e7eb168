//! A drain: how long it takes to empty a node of twenty guests, and to bring them back, on real nodes.
//!
//! A cloud of three controllers and three nodes with libvirt, keepers and a shared pool; the guests are tiny and idle.
//! A drain is the whole command, from its start to its exit with nothing left on the node; so is a return.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::Value;
use tamdao_proto::v1::{Vm, VmPhase};
use tamdao_tests::Cloud;
use tamdao_tests::api;
use tamdao_tests::figures::say;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::running;
use tamdao_tests::process::said;
use tamdao_tests::wait::{BOOT, SOON};
use tamdao_tests::{eventually, not_yet};

use crate::report::Report;

const GUESTS: usize = 20;
/// Guests that boot at once: more would starve one another under emulation.
const BOOTING: usize = 4;
const ROUNDS: usize = 3;
const NODE: &str = "n1";
/// How long a drain or a return may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// Twenty virtual CPUs stand on the two of this machine.
const OVERCOMMIT: &str = "3200";

/// # Errors
/// When a guest is lost on the way, or the cloud does not do what it is asked.
pub async fn run(report: &mut Report) -> Result<()> {
    let cloud = Cloud::builder().controllers(3).nodes(3).shared().start().await?;
    for agent in &cloud.agents {
        cloud.cli.run(&["node", "update", &agent.name, "--cpu-overcommit", OVERCOMMIT]).await?;
    }
    let names: Vec<String> = (0..GUESTS).map(|at| format!("g{at}")).collect();
    let others: Vec<&str> =
        cloud.agents.iter().map(|agent| agent.name.as_str()).filter(|name| *name != NODE).collect();
    for other in &others {
        cloud.cli.run(&["node", "cordon", other]).await?;
    }
    for some in names.chunks(BOOTING) {
        try_join_all(some.iter().map(|name| boot(&cloud, name))).await?;
    }
    for other in &others {
        cloud.cli.run(&["node", "uncordon", other]).await?;
    }
    say(&format!("{GUESTS} guests run on {NODE}"));
    let plan: Value = cloud.cli.json(&["node", "drain", NODE, "--dry-run"]).await?;
    report.row(
        &format!("drain of {GUESTS} guests: rounds that it plans"),
        plan["rounds"].as_f64().unwrap_or(0.0),
        "",
    );
    let (mut drains, mut returns) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        drains.push(timed(&cloud, "drain").await?);
        ensure!(cloud.testbed.qemus(NODE)?.is_empty(), "something runs on {NODE}");
        all_run(&cloud, |node| node != NODE).await?;
        returns.push(timed(&cloud, "return").await?);
        all_run(&cloud, |node| node == NODE).await?;
        let (drain, back) = (drains[round - 1].as_secs_f64(), returns[round - 1].as_secs_f64());
        say(&format!("{round} of {ROUNDS}: drain {drain:.1} s, return {back:.1} s"));
    }
    report.spread_s(&format!("drain of {GUESTS} guests, whole command"), drains);
    report.spread_s(&format!("return of {GUESTS} guests, whole command"), returns);
    cloud.done()
}

async fn boot(cloud: &Cloud, name: &str) -> Result<()> {
    let arguments = ["vm", "create", name, "--flavor", "tiny", "--network", "lan"];
    let disk = ["--disk", "size=256M,image=tiny,pool=shared"];
    let vm: Vm = cloud.cli.json(&[&arguments[..], &disk].concat()).await?;
    ensure!(api::node(&vm) == NODE, "{name} is on {}", api::node(&vm));
    cloud.guest(name).says(READY, 1).await?;
    let guarded = |vm: &Vm| vm.status.as_ref().is_some_and(|status| status.protected);
    cloud.becomes(name, "protected", BOOT, guarded).await.map(drop)
}

/// How long a command on the node takes.
async fn timed(cloud: &Cloud, verb: &str) -> Result<Duration> {
    let began = Instant::now();
    let output = cloud.cli.within(PATIENCE, &["node", verb, NODE, "--yes", "--timeout", "10m"]).await?;
    let took = began.elapsed();
    ensure!(output.status.success(), "{verb}: {}", said(&output));
    Ok(took)
}

/// Waits until all guests run where they should, and refuses one that runs twice. The last to move may still have to be
/// let run over there when its old node is empty.
async fn all_run(cloud: &Cloud, there: impl Fn(&str) -> bool) -> Result<()> {
    let vms = eventually("all guests run", SOON, async || {
        let vms = cloud.api.vms().await?;
        let wrong = vms.iter().find(|vm| api::phase(vm) != VmPhase::Running || !there(api::node(vm)));
        match wrong {
            Some(vm) => not_yet(api::told(vm)),
            None => Ok(vms),
        }
    })
    .await?;
    ensure!(vms.len() == GUESTS, "{} VMs", vms.len());
    let processes = running()?;
    for vm in &vms {
        let id = &vm.metadata.as_ref().context("metadata")?.id;
        let count = processes.get(id).map_or(0, Vec::len);
        ensure!(count == 1, "{} has {count} processes", api::told(vm));
    }
    Ok(())
}
