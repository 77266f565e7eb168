//! From nothing to a cloud with nodes that are ready, and with what VMs need.

use std::net::Ipv4Addr;

use anyhow::{Context, bail};
use tamdao_proto::v1::{JoinTokenKind, Node};

use super::{AGENCY, Cloud, POOL};
use crate::Result;
use crate::agent::Agent;
use crate::api::Api;
use crate::binaries::Version;
use crate::cli::Cli;
use crate::controller::Controller;
use crate::etcd::Etcd;
use crate::guarded::{self, Guarded, Hang, LEASE_MS, SHARED};
use crate::island::Island;
use crate::slot::Slot;
use crate::testbed::{self, Testbed};
use crate::wait::{SOON, eventually, not_yet};

/// What a cloud shall have.
pub struct Builder {
    controllers: usize,
    nodes: u8,
    apart: bool,
    furnished: bool,
    /// The storage lease, ms, of nodes that share a pool.
    shared: Option<u64>,
    hang: Option<Hang>,
    etcd: bool,
    believing: bool,
    version: Version,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self {
            controllers: 1,
            nodes: 0,
            apart: false,
            furnished: true,
            shared: None,
            hang: None,
            etcd: false,
            believing: false,
            version: Version::Present,
        }
    }

    #[must_use]
    pub fn controllers(mut self, count: usize) -> Self {
        self.controllers = count;
        self
    }

    /// Each controller with a network of its own, whose links can be cut.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// Hosts with libvirt of their own, each with a joined agent.
    #[must_use]
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = count;
        self
    }

    /// With a keeper, a watchdog and a shared directory on each host, and the pool `shared` in that.
    #[must_use]
    pub fn shared(self) -> Self {
        self.leases_of(LEASE_MS)
    }

    /// The same with storage leases of so many milliseconds.
    #[must_use]
    pub fn leases_of(mut self, ms: u64) -> Self {
        self.shared = Some(ms);
        self
    }

    /// With a shared directory on each host that can be made to hang there.
    #[must_use]
    pub fn may_hang(mut self, hang: Hang) -> Self {
        self.hang = Some(hang);
        self.shared()
    }

    /// With the records on an etcd of three members.
    #[must_use]
    pub fn etcd(mut self) -> Self {
        self.etcd = true;
        self
    }

    /// Nodes that fall silent again and again take VMs as soon as they are heard: faults come faster in a measurement than
    /// anywhere else.
    #[must_use]
    pub fn believing(mut self) -> Self {
        self.believing = true;
        self
    }

    /// With controllers and agents of the release before this version.
    #[must_use]
    pub fn released(mut self) -> Self {
        self.version = Version::Released;
        self
    }

    /// Without agency, flavor, pool, network and image.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.furnished = false;
        self
    }

    /// Brings it up.
    ///
    /// # Errors
    /// When any part does not come up, with the end of its log.
    pub async fn start(self) -> Result<Cloud> {
        let slot = Slot::take()?;
        let testbed = Testbed::of(slot.number, &slot.directory);
        let host: Ipv4Addr = if self.nodes > 0 || self.apart {
            testbed.up()?;
            testbed.address(1).parse()?
        } else {
            Ipv4Addr::LOCALHOST
        };
        let (mut controllers, mut islands) = (Vec::new(), Vec::new());
        for number in 1..=self.controllers {
            let name = format!("c{number}");
            let mut controller = match self.apart {
                false => Controller::plan(&slot.directory, &name, host)?,
                true => {
                    islands.push(Island::new(&slot, &testbed, u8::try_from(number)?).await?);
                    Controller::plan_on(&slot.directory, &name, &islands[number - 1])?
                }
            };
            controller.version = self.version;
            if self.believing {
                controller.set("steady_ms = 0")?;
            }
            controllers.push(controller);
        }
        let etcd = (self.etcd || all_on_etcd()?).then(|| Etcd::start(&slot)).transpose()?;
        if let Some(etcd) = &etcd {
            controllers.iter().try_for_each(|controller| controller.configure(&etcd.section()))?;
        }
        let founder = &mut controllers[0];
        founder.init()?;
        let ca_file = founder.data_dir.join("ca.pem");
        let token_file = founder.data_dir.join("admin-token");
        let ca = std::fs::read_to_string(&ca_file).context("the CA that init made")?;
        let token =
            std::fs::read_to_string(&token_file).context("the token that init made")?.trim().to_owned();
        founder.start(&slot)?;
        let addresses: Vec<String> =
            controllers.iter().map(|controller| controller.address.clone()).collect();
        let api = Api::new(&addresses, &ca, Some(&token))?;
        let config = slot.directory.join("cli.toml");
        let cli = Cli::new(&config, &addresses, &ca_file, &token_file, AGENCY).await?;
        let mut cloud = Cloud {
            controllers,
            islands,
            agents: Vec::new(),
            guarded: Vec::new(),
            etcd,
            api,
            cli,
            testbed,
            ca,
            token,
            slot,
            done: false,
        };
        cloud.gather().await?;
        cloud.settle(self.nodes, self.shared, self.hang, self.version).await?;
        if self.furnished {
            cloud.furnish(self.nodes > 0).await?;
        }
        if self.shared.is_some() {
            cloud.share().await?;
        }
        Ok(cloud)
    }
}

impl Cloud {
    /// Boots the nodes and joins them.
    async fn settle(
        &mut self,
        nodes: u8,
        shared: Option<u64>,
        hang: Option<Hang>,
        version: Version,
    ) -> Result<()> {
        if nodes == 0 {
            return Ok(());
        }
        let acceleration = "qemu";
        let addresses: Vec<String> = self.controllers.iter().map(|one| one.address.clone()).collect();
        for number in 1..=nodes {
            let name = format!("n{number}");
            self.testbed.boot(&name, number)?;
            self.testbed.shell(&name, &format!("mkdir -p {POOL}"))?;
            let token = self.join_token(JoinTokenKind::Node, &name).await?;
            let mut agent = Agent::plan(&self.slot.directory, &self.testbed, &name, acceleration)?;
            agent.version = version;
            agent.join(&addresses, &token)?;
            if let Some(lease_ms) = shared {
                agent.configure(&format!("storage_lease_ms = {lease_ms}"))?;
                self.guarded.push(Guarded::start(&self.slot, &self.testbed, &name, hang).await?);
            }
            agent.start()?;
            self.agents.push(agent);
        }
        self.nodes_ready().await
    }

    /// The pool that all nodes share.
    async fn share(&self) -> Result<()> {
        let make = ["pool", "create", "shared", "--path", SHARED, "--shared", "--no-wait"];
        let pool: serde_json::Value = self.cli.json(&make).await?;
        guarded::mark(&self.slot.directory, pool["metadata"]["id"].as_str().context("an id")?)?;
        eventually("the pool is ready and every node holds a lease on it", SOON, async || {
            let nodes = self.nodes().await?;
            let kept = |node: &&Node| node.status.as_ref().is_some_and(|s| !s.keeper_version.is_empty());
            if nodes.iter().filter(kept).count() < self.guarded.len() {
                return not_yet("not every node has a keeper");
            }
            let pool: serde_json::Value = self.cli.json(&["pool", "get", "shared"]).await?;
            match pool["status"]["phase"].as_str() {
                Some("POOL_PHASE_READY") => Ok(()),
                other => not_yet(format!("{other:?}")),
            }
        })
        .await
    }

    /// What VMs need: an agency, a size, a pool, a network, and the tiny guest's image where there are nodes.
    async fn furnish(&self, with_image: bool) -> Result<()> {
        self.cli.run(&["agency", "create", AGENCY]).await?;
        self.cli.run(&["flavor", "create", "tiny", "--vcpus", "1", "--memory", "128M"]).await?;
        let wait: &[&str] = if with_image { &["--timeout", "90s"] } else { &["--no-wait"] };
        self.cli.run(&[&["pool", "create", "default", "--path", POOL], wait].concat()).await?;
        let address = |host| self.testbed.address(host);
        let subnet =
            format!("{}/24,gateway={},range={}-{}", address(0), address(1), address(100), address(200));
        self.cli.run(&["network", "create", "lan", "--bridge", "br-guests", "--subnet", &subnet]).await?;
        if with_image {
            let disk = testbed::tiny()?.join("tiny.qcow2");
            let Some(disk) = disk.to_str() else { bail!("{} has a strange name", disk.display()) };
            self.cli.run(&["image", "import", "tiny", "--file", disk]).await?;
        }
        Ok(())
    }
}

/// Whether `TAMDAO_TEST_STORE` wants every cloud on etcd.
fn all_on_etcd() -> Result<bool> {
    match std::env::var("TAMDAO_TEST_STORE").as_deref() {
        Ok("etcd") => Ok(true),
        Ok("raft") | Err(_) => Ok(false),
        Ok(other) => bail!("TAMDAO_TEST_STORE is {other:?}, and must be raft or etcd"),
    }
}
