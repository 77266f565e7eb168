//! The bench of availability: how long a VM is away when its node is lost. `cargo xtask bench availability` runs it;
//! it needs root. It prints a table on standard error and, with --json FILE, writes the same as data.
//!
//! A cloud of three controllers and three nodes with libvirt, keepers and a shared pool; the guest is tiny. A loss is
//! from the moment when the node's power or its network and storage are gone, to when the cloud says that the VM runs
//! elsewhere, looked at every few milliseconds; the node is back and ready before the next.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tamdao_proto::v1::{NodePhase, Vm, VmPhase};
use tamdao_tests::Cloud;
use tamdao_tests::api;
use tamdao_tests::bmc::Bmc;
use tamdao_tests::figures::{at, say};
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::Lookout;
use tamdao_tests::wait::BOOT;

/// Losses of each kind.
const ROUNDS: usize = 10;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// How long beyond the settings' own time a VM may be away before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const SHARED: [&str; 2] = ["--disk", "size=256M,image=tiny,pool=shared"];
/// The product's default.
const LEASE_MS: u64 = 60_000;
const SUSPECT_MS: u64 = 2_500;

#[tokio::main]
async fn main() -> Result<()> {
    let (mut file, mut lease_ms) = (None, LEASE_MS);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        match (name.as_str(), arguments.next()) {
            ("--json", Some(path)) => file = Some(PathBuf::from(path)),
            ("--lease-ms", Some(number)) => lease_ms = number.parse().context("--lease-ms")?,
            _ => bail!("usage: bench-availability [--lease-ms MS] [--json FILE]"),
        }
    }
    let cloud = Cloud::builder().controllers(3).nodes(3).leases_of(lease_ms).believing().start().await?;
    let mut bench = Bench { cloud, lease_ms, rows: Vec::new() };
    bench.losses().await?;
    let Bench { cloud, rows, .. } = bench;
    cloud.done()?;
    if let Some(file) = file {
        let report = json!({ "bench": "availability", "rows": rows });
        std::fs::write(&file, serde_json::to_string_pretty(&report)?)
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

struct Bench {
    cloud: Cloud,
    lease_ms: u64,
    rows: Vec<Value>,
}

/// What goes with a node.
#[derive(Clone, Copy)]
enum Lost {
    /// By its BMC, which the cloud asks when it has lost network and storage.
    ToItsBmc,
    Power,
    NetworkAndStorage,
}

impl Bench {
    async fn losses(&mut self) -> Result<()> {
        let arguments = ["vm", "create", "web", "--flavor", "tiny", "--network", "lan"];
        let _: Vm = self.cloud.cli.json(&[&arguments[..], &SHARED].concat()).await?;
        self.cloud.guest("web").says(READY, 1).await?;
        // Two missed heartbeats, then two readings of the lease that are a little more than itself apart
        // (docs/operations/failures.md).
        let own = Duration::from_millis(SUSPECT_MS + self.lease_ms * 102 / 100 + 2_000);
        self.row("by the settings: missed heartbeats and the lease's end", own);
        for (lost, words) in [
            (Lost::ToItsBmc, "network and storage cut, with a BMC"),
            (Lost::Power, "power cut"),
            (Lost::NetworkAndStorage, "network and storage cut"),
        ] {
            let mut took = Vec::new();
            for round in 1..=ROUNDS {
                took.push(self.lose(lost, own).await?);
                say(&format!("{words}, {round} of {ROUNDS}: {:.1} s", took[round - 1].as_secs_f64()));
            }
            took.sort_unstable();
            self.row(&format!("{words} to running elsewhere, median of {ROUNDS}"), at(&took, 0.5));
            self.row(&format!("{words} to running elsewhere, worst"), at(&took, 1.0));
        }
        Ok(())
    }

    /// One loss; how long the VM was away.
    async fn lose(&mut self, lost: Lost, own: Duration) -> Result<Duration> {
        let guarded = |vm: &Vm| vm.status.as_ref().is_some_and(|status| status.protected);
        let vm = self.cloud.becomes("web", "protected", BOOT, guarded).await?;
        let node = api::node(&vm).to_owned();
        let bmc = match lost {
            Lost::ToItsBmc => Some(self.give_bmc(&node).await?),
            _ => None,
        };
        let lookout = Lookout::start();
        match lost {
            Lost::Power => self.cloud.power_cut(&node)?,
            Lost::NetworkAndStorage | Lost::ToItsBmc => {
                self.cloud.guarded(&node)?.link(false)?;
                self.cloud.guarded(&node)?.unmount()?;
            }
        }
        let began = Instant::now();
        let elsewhere = |vm: &Vm| api::phase(vm) == VmPhase::Running && api::node(vm) != node;
        while !self.cloud.vm("web").await.is_ok_and(|vm| elsewhere(&vm)) {
            ensure!(began.elapsed() < own + PATIENCE, "the VM does not come back");
            tokio::time::sleep(PAUSE).await;
        }
        let took = began.elapsed();
        if let Some(bmc) = bmc {
            bmc.has_cut()?;
            self.cloud.powerless(&node)?;
        }
        match lost {
            Lost::Power | Lost::ToItsBmc => self.cloud.boot(&node).await?,
            Lost::NetworkAndStorage => {
                self.cloud.guarded(&node)?.mount()?;
                self.cloud.guarded(&node)?.link(true)?;
            }
        }
        let ready = |node: &tamdao_proto::v1::Node| {
            node.status.as_ref().is_some_and(|status| status.phase() == NodePhase::Ready)
        };
        self.cloud.node_becomes(&node, "ready again", ready).await?;
        lookout.end()?;
        if matches!(lost, Lost::ToItsBmc) {
            self.cloud.cli.run(&["node", "update", &node, "--no-bmcs"]).await?;
        }
        Ok(took)
    }

    /// A BMC that takes the node's power for real.
    async fn give_bmc(&self, node: &str) -> Result<Bmc> {
        let bmc = Bmc::start(&self.cloud.testbed, node).await?;
        let password = self.cloud.slot.directory.join("bmc-password");
        std::fs::write(&password, "secret\n")?;
        let given = format!("{},user=fencer,password-file={},unverified", bmc.url, password.display());
        self.cloud.cli.run(&["node", "update", node, "--bmc", &given]).await?;
        self.cloud.cli.run(&["node", "fence-drill", node]).await?;
        Ok(bmc)
    }

    fn row(&mut self, name: &str, value: Duration) {
        let seconds = value.as_secs_f64();
        say(&format!("{name:<64} {seconds:>8.1} s"));
        self.rows.push(json!({ "name": name, "value": seconds, "unit": "s" }));
    }
}
