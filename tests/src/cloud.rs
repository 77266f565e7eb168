//! The cloud under test, from nothing to nodes that are ready, and back to nothing. When a test ends without
//! [`Cloud::done`], the ends of all logs are shown.

use std::time::Duration;

use anyhow::Context;
use tamdao_proto::v1::cluster_service_client::ClusterServiceClient;
use tamdao_proto::v1::controller_service_client::ControllerServiceClient;
use tamdao_proto::v1::node_service_client::NodeServiceClient;
use tamdao_proto::v1::{
    ControllerRole, CreateJoinTokenRequest, JoinTokenKind, ListControllersRequest, ListNodesRequest, Node,
    NodePhase, Vm, VmPhase,
};

use crate::agent::Agent;
use crate::api::{self, Api};
use crate::cli::Cli;
use crate::controller::Controller;
use crate::etcd::Etcd;
use crate::fleet::{Fleet, NO_VLANS, Size};
use crate::guarded::Guarded;
use crate::guest::Guest;
use crate::island::Island;
use crate::process::tail;
use crate::rest::Rest;
use crate::slot::Slot;
use crate::testbed::Testbed;
use crate::wait::{BOOT, SOON, eventually, not_yet};
use crate::{Hopeless, Result};

mod builder;

pub use builder::Builder;

/// Who owns what the tests make.
pub const AGENCY: &str = "lab";
/// Where the pool `default` lies on every node; a directory of the node's own.
pub const POOL: &str = "/var/lib/libvirt/pool";

/// The cloud under test. Its fields go in this order: processes first, then what they lived in.
pub struct Cloud {
    pub controllers: Vec<Controller>,
    /// The controllers' networks, where each has its own.
    pub islands: Vec<Island>,
    pub agents: Vec<Agent>,
    /// Keepers, watchdogs and shared storage, where the cloud has them.
    pub guarded: Vec<Guarded>,
    /// Where the records are, if not with the controllers.
    pub etcd: Option<Etcd>,
    pub api: Api,
    pub cli: Cli,
    pub testbed: Testbed,
    /// The CA's certificate, PEM.
    pub ca: String,
    /// The first admin's token.
    pub token: String,
    pub slot: Slot,
    done: bool,
}

impl Cloud {
    /// A cloud of one controller and no node.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// # Errors
    /// When there is no VM of this name.
    pub async fn vm(&self, name: &str) -> Result<Vm> {
        Ok(self.api.vm(AGENCY, name).await?)
    }

    /// Waits until a VM is in a phase. Failed ends the waiting, unless it is what is waited for.
    ///
    /// # Errors
    /// When it does not come there, with what the VM says instead.
    pub async fn reaches(&self, name: &str, phase: VmPhase) -> Result<Vm> {
        self.becomes(name, phase.as_str_name(), BOOT, |vm| api::phase(vm) == phase).await
    }

    /// Waits until something is true of a VM.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn becomes(
        &self,
        name: &str,
        what: &str,
        patience: Duration,
        is: impl Fn(&Vm) -> bool,
    ) -> Result<Vm> {
        eventually(&format!("{name}: {what}"), patience, async || {
            let vm = self.vm(name).await?;
            match api::phase(&vm) {
                _ if is(&vm) => Ok(vm),
                VmPhase::Failed => Err(Hopeless(api::told(&vm)).into()),
                _ => not_yet(api::told(&vm)),
            }
        })
        .await
    }

    /// Waits until a VM is gone from the records.
    ///
    /// # Errors
    /// When it stays.
    pub async fn vanishes(&self, name: &str) -> Result<()> {
        eventually(&format!("{name} is gone"), BOOT, async || match self.api.vm(AGENCY, name).await {
            Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
            Err(status) => Err(status.into()),
            Ok(vm) => not_yet(api::told(&vm)),
        })
        .await
    }

    /// Waits until an event about a VM has this reason.
    ///
    /// # Errors
    /// When none comes; the error lists those that are there.
    pub async fn event(&self, vm: &str, reason: &str) -> Result<()> {
        eventually(&format!("an event {reason} about {vm}"), SOON, async || {
            let events = self.api.events(AGENCY, "vm", vm).await?;
            if events.iter().any(|event| event.reason == reason) {
                return Ok(());
            }
            let seen: Vec<String> =
                events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect();
            not_yet(seen.join("; "))
        })
        .await
    }

    /// The guest of a VM.
    pub fn guest(&self, vm: &str) -> Guest<'_> {
        Guest::new(self, vm)
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents
            .iter()
            .find(|agent| agent.name == node)
            .with_context(|| format!("there is no node {node:?}"))
    }

    /// # Errors
    /// When there is no such node.
    pub fn agent_mut(&mut self, node: &str) -> Result<&mut Agent> {
        let found = self.agents.iter_mut().find(|agent| agent.name == node);
        found.with_context(|| format!("there is no node {node:?}"))
    }

    /// One controller over REST.
    ///
    /// # Errors
    /// When the CA cannot be used.
    pub fn rest(&self, controller: usize) -> Result<Rest> {
        Rest::new(&self.controllers[controller].address, &self.ca, Some(&self.token))
    }

    /// The place in the list of the controller that leads.
    ///
    /// # Errors
    /// When none leads in time.
    pub async fn leader(&self) -> Result<usize> {
        eventually("a controller leads", SOON, async || {
            let request = ListControllersRequest::default();
            let send =
                async |wire| ControllerServiceClient::new(wire).list_controllers(request.clone()).await;
            let answer = self.api.call(send).await?;
            for controller in &answer.controllers {
                let status = controller.status.clone().unwrap_or_default();
                let led = status.role() == ControllerRole::Leader;
                let found = self.controllers.iter().position(|one| led && one.address == status.address);
                if let Some(index) = found.filter(|index| self.controllers[*index].is_started()) {
                    return Ok(index);
                }
            }
            not_yet(format!("{:?}", answer.controllers))
        })
        .await
    }

    /// # Errors
    /// When they cannot be listed.
    pub async fn nodes(&self) -> Result<Vec<Node>> {
        let request = ListNodesRequest::default();
        let answer = self
            .api
            .call(async |wire| NodeServiceClient::new(wire).list_nodes(request.clone()).await)
            .await?;
        Ok(answer.nodes)
    }

    /// Waits until every node whose agent is started is ready.
    ///
    /// # Errors
    /// When one is not in time.
    pub async fn nodes_ready(&mut self) -> Result<()> {
        let wanted = self.agents.iter().filter(|agent| agent.is_started()).count();
        eventually(&format!("{wanted} nodes are ready"), 2 * SOON, async || {
            self.check()?;
            let nodes = self.nodes().await?;
            let ready = |node: &&Node| node.status.as_ref().is_some_and(|s| s.phase() == NodePhase::Ready);
            if nodes.iter().filter(ready).count() >= wanted {
                return Ok(());
            }
            let told = |node: &Node| {
                let (metadata, status) =
                    (node.metadata.clone().unwrap_or_default(), node.status.clone().unwrap_or_default());
                format!("{} {} {:?}", metadata.name, status.phase().as_str_name(), status.conditions)
            };
            not_yet(nodes.iter().map(told).collect::<Vec<_>>().join("; "))
        })
        .await
    }

    /// # Errors
    /// When a process that was started has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        for controller in &mut self.controllers {
            controller.check()?;
        }
        for agent in &mut self.agents {
            agent.check()?;
        }
        Ok(())
    }

    /// Starts a controller that was stopped or killed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_controller(&mut self, index: usize) -> Result<()> {
        self.controllers[index].start(&self.slot)
    }

    /// A token by which one can join.
    ///
    /// # Errors
    /// When the cloud gives none.
    pub async fn join_token(&self, kind: JoinTokenKind, name: &str) -> Result<String> {
        let request =
            CreateJoinTokenRequest { kind: kind.into(), ttl_s: 3600, uses: 1, name: name.to_owned() };
        let send = async |wire| ClusterServiceClient::new(wire).create_join_token(request.clone()).await;
        let answer = eventually("a join token", SOON, async || Ok(self.api.call(send).await?)).await;
        Ok(answer?.secret)
    }

    /// So many nodes that are sessions without hypervisors, for who looks at records only.
    ///
    /// # Errors
    /// When one cannot enrol.
    pub async fn fleet(&self, count: usize) -> Result<Fleet> {
        let size = Size { cpus: 8, memory_mib: 16_384, pool_mib: 1 << 20, vlans: NO_VLANS };
        self.fleet_of("fleet", count, size).await
    }

    /// The same under a name of its own, of a size.
    ///
    /// # Errors
    /// When one cannot enrol.
    pub async fn fleet_of(&self, name: &str, count: usize, size: Size) -> Result<Fleet> {
        let uses = u32::try_from(count)?;
        let request = CreateJoinTokenRequest { kind: JoinTokenKind::Node.into(), uses, ..Default::default() };
        let send = async |wire| ClusterServiceClient::new(wire).create_join_token(request.clone()).await;
        let token = self.api.call(send).await?.secret;
        let addresses: Vec<String> = self.controllers.iter().map(|one| one.address.clone()).collect();
        Fleet::join(&addresses, &self.ca, &token, (name, count), size).await
    }

    /// Creates a VM with the tiny guest and waits until QEMU runs it. Further arguments are of `tamdao vm create`.
    ///
    /// # Errors
    /// When it does not come to run.
    pub async fn create_tiny(&self, name: &str, more: &[&str]) -> Result<Vm> {
        let arguments = ["vm", "create", name, "--flavor", "tiny", "--image", "tiny", "--network", "lan"];
        self.cli.json(&[&arguments, more].concat()).await
    }

    /// The test has seen what it wanted: everything goes, and the logs stay unsaid.
    ///
    /// # Errors
    /// When a process died on its own, or something cannot be removed.
    pub fn done(mut self) -> Result<()> {
        self.check()?;
        self.done = true;
        self.clear()
    }

    fn clear(&mut self) -> Result<()> {
        self.agents.clear();
        self.guarded.clear();
        self.controllers.clear();
        self.islands.clear();
        self.etcd = None;
        self.slot.clear()
    }

    #[allow(clippy::print_stderr, reason = "this is what a failed test says")]
    fn show_logs(&self) {
        let controllers = self.controllers.iter().map(|controller| (&controller.name, &controller.log));
        let agents = self.agents.iter().map(|agent| (&agent.name, &agent.log));
        let keepers = self.guarded.iter().map(|guarded| (&guarded.node, &guarded.log));
        for (name, log) in controllers.chain(agents).chain(keepers) {
            eprintln!("--- the end of the log of {name} ---\n{}", tail(log, 40));
        }
        for (name, end) in self.etcd.iter().flat_map(Etcd::tails) {
            eprintln!("--- the end of the log of {name} ---\n{end}");
        }
        for (node, data_dir) in self.agents.iter().map(|agent| (&agent.name, &agent.data_dir)) {
            if let Ok(seen) = self.testbed.autopsy(node, data_dir) {
                eprintln!("--- the guests of {node} ---\n{seen}");
            }
        }
    }
}

impl Drop for Cloud {
    #[allow(clippy::print_stderr, reason = "a test that cannot clean up has to say so")]
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.show_logs();
        if std::env::var_os("TAMDAO_TEST_KEEP").is_some() {
            eprintln!("everything runs on, until the next test: {}", self.slot.directory.display());
            self.controllers.drain(..).for_each(std::mem::forget);
            self.islands.drain(..).for_each(std::mem::forget);
            self.agents.drain(..).for_each(std::mem::forget);
            std::mem::forget(self.etcd.take());
            return;
        }
        if let Err(error) = self.clear() {
            eprintln!("what the test made could not be removed: {error:#}");
        }
    }
}

impl Cloud {
    /// The further controllers join the first, one after the other.
    ///
    /// # Errors
    /// When one does not come to vote.
    pub async fn gather(&mut self) -> Result<()> {
        for index in 0..self.controllers.len() {
            if index > 0 {
                let name = self.controllers[index].name.clone();
                let token = self.join_token(JoinTokenKind::Controller, &name).await?;
                self.controllers[index].join(&self.controllers[0].address, &token)?;
                self.controllers[index].start(&self.slot)?;
            }
            self.controllers_ready(index + 1).await?;
        }
        Ok(())
    }

    /// Waits until this many controllers vote and answer.
    ///
    /// # Errors
    /// When they do not.
    pub async fn controllers_ready(&mut self, count: usize) -> Result<()> {
        eventually(&format!("{count} controllers vote"), SOON, async || {
            self.check()?;
            for index in 0..count {
                let mut client = ControllerServiceClient::new(self.api.wire(index));
                let answer = client.list_controllers(ListControllersRequest::default()).await?.into_inner();
                let roles = answer.controllers.iter().filter_map(|one| one.status.as_ref());
                let votes = |role| matches!(role, ControllerRole::Leader | ControllerRole::Follower);
                if roles.filter(|status| votes(status.role())).count() != count {
                    return not_yet(format!(
                        "as {} sees it: {:?}",
                        self.controllers[index].name, answer.controllers
                    ));
                }
            }
            Ok(())
        })
        .await
    }

    /// What guards a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn guarded(&self, node: &str) -> Result<&Guarded> {
        let found = self.guarded.iter().find(|guarded| guarded.node == node);
        found.with_context(|| format!("nothing guards {node:?}"))
    }

    /// The same, to be changed.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn guarded_mut(&mut self, node: &str) -> Result<&mut Guarded> {
        let found = self.guarded.iter_mut().find(|guarded| guarded.node == node);
        found.with_context(|| format!("nothing guards {node:?}"))
    }

    /// The power of a node goes, with all that runs on it.
    ///
    /// # Errors
    /// When its processes stay.
    pub fn power_cut(&mut self, node: &str) -> Result<()> {
        self.testbed.cut(node)?;
        self.powerless(node)
    }

    /// Forgets the processes of a node whose power went in another way.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn powerless(&mut self, node: &str) -> Result<()> {
        self.agent_mut(node)?.forget();
        self.guarded.iter_mut().filter(|guarded| guarded.node == node).for_each(Guarded::end);
        Ok(())
    }

    /// A node whose power was cut boots, with its agent.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn boot(&mut self, node: &str) -> Result<()> {
        let place = self.agents.iter().position(|agent| agent.name == node).context("no such node")?;
        self.testbed.boot(node, u8::try_from(place + 1)?)?;
        for guarded in self.guarded.iter_mut().filter(|guarded| guarded.node == node) {
            guarded.begin(&self.slot).await?;
        }
        self.agent_mut(node)?.start()
    }

    /// Waits until something is true of a node.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn node_becomes(&self, name: &str, what: &str, is: impl Fn(&Node) -> bool) -> Result<Node> {
        eventually(&format!("{name}: {what}"), 3 * SOON, async || {
            let nodes = self.nodes().await?;
            let named = |node: &&Node| node.metadata.as_ref().is_some_and(|metadata| metadata.name == name);
            match nodes.iter().find(named) {
                Some(node) if is(node) => Ok(node.clone()),
                other => not_yet(format!("{:?}", other.and_then(|node| node.status.clone()))),
            }
        })
        .await
    }
}
