//! Losses: how long a VM is away when its node is lost, on real nodes.
//!
//! A cloud of three controllers and three nodes with libvirt, keepers and a shared pool; the guest is tiny. A loss is
//! from the moment when the node's power or its network and storage are gone, to when the cloud says that the VM runs
//! elsewhere, looked at every few milliseconds; the node is back and ready before the next.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tamdao_proto::v1::{NodePhase, Vm, VmPhase};
use tamdao_tests::Cloud;
use tamdao_tests::api;
use tamdao_tests::bmc::Bmc;
use tamdao_tests::figures::say;
use tamdao_tests::guest::READY;
use tamdao_tests::lookout::Lookout;
use tamdao_tests::wait::BOOT;

use crate::report::Report;

/// Losses of each kind.
const ROUNDS: usize = 10;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// How long beyond the settings' own time a VM may be away before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);
const SHARED: [&str; 2] = ["--disk", "size=256M,image=tiny,pool=shared"];
const SUSPECT_MS: u64 = 2_500;

/// # Errors
/// When a VM does not come back, or the cloud does not do what it is asked.
pub async fn run(report: &mut Report, lease_ms: u64) -> Result<()> {
    let cloud = Cloud::builder().controllers(3).nodes(3).leases_of(lease_ms).believing().start().await?;
    let mut bench = Bench { cloud, lease_ms };
    bench.losses(report).await?;
    bench.cloud.done()
}

struct Bench {
    cloud: Cloud,
    lease_ms: u64,
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
    async fn losses(&mut self, report: &mut Report) -> Result<()> {
        let arguments = ["vm", "create", "web", "--flavor", "tiny", "--network", "lan"];
        let _: Vm = self.cloud.cli.json(&[&arguments[..], &SHARED].concat()).await?;
        self.cloud.guest("web").says(READY, 1).await?;
        // Two missed heartbeats, then two readings of the lease that are a little more than itself apart
        // (docs/operations/failures.md).
        let own = Duration::from_millis(SUSPECT_MS + self.lease_ms * 102 / 100 + 2_000);
        report.seconds("by the settings: missed heartbeats and the lease's end", own);
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
            report.spread_s(&format!("{words} to running elsewhere"), took);
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
}
