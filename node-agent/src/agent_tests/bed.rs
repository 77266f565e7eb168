//! A node to test on: its directory, its hypervisor, and an agent that comes and goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tamdao_proto::agent::v1::*;
use tamdao_proto::v1::{DiskKind, Power, RunPolicy};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::controller::{Ca, Controller};
use crate::agent::{self, AgentError, Outside};
use crate::config::Config;
use crate::hypervisor::fake::{FakeHypervisor, FakeWorld};

pub const POOL: Uuid = Uuid::from_u128(0x100);
pub const VOLUME: Uuid = Uuid::from_u128(0x200);
pub const VM: Uuid = Uuid::from_u128(0x300);

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub world: FakeWorld,
    pub hypervisor: Arc<FakeHypervisor>,
    pub config: Config,
}

/// An agent at work. Dropping it kills it where it stands.
pub struct Running {
    task: JoinHandle<Result<(), AgentError>>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Kills it, and returns when all of it has gone.
    pub async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Ends it as SIGTERM does.
    pub async fn end(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }
}

impl Bed {
    pub fn new(controllers: &[String]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let _ = tracing_subscriber::fmt()
            .with_env_filter("tamdao_node_agent=debug")
            .with_test_writer()
            .try_init();
        let dir = tempfile::tempdir().unwrap();
        let boot = dir.path().join("boot_id");
        std::fs::write(&boot, "boot-1\n").unwrap();
        let text = format!(
            "name = \"n1\"\ndata_dir = {:?}\nboot_id_file = {:?}\nspoofing = \"allow\"\nmetrics_listen = \"\"\n\
             moves_listen = \"127.0.0.1:0\"\n\
             controllers = {controllers:?}\n",
            dir.path().join("data"),
            boot,
        );
        let config = Config::parse(Path::new("agent.toml"), &text).unwrap();
        let world = FakeWorld::new(std::time::SystemTime::now);
        Self { hypervisor: Arc::new(world.host("n1")), world, config, dir }
    }

    /// With the certificate that a join would have brought.
    pub fn joined(ca: &Arc<Ca>, controller: &Controller) -> Self {
        Self::joined_as(ca, controller, Uuid::from_u128(77))
    }

    /// The same, as this node.
    pub fn joined_as(ca: &Arc<Ca>, controller: &Controller, node: Uuid) -> Self {
        let bed = Self::new(&[controller.address()]);
        let (certificate, key) = ca.leaf("n1", node);
        std::fs::create_dir_all(bed.config.key.parent().unwrap()).unwrap();
        std::fs::write(&bed.config.key, key).unwrap();
        std::fs::write(&bed.config.certificate, certificate).unwrap();
        std::fs::write(&bed.config.ca, ca.pem()).unwrap();
        bed
    }

    pub fn start(&self) -> Running {
        let stop = CancellationToken::new();
        let outside = Outside {
            hypervisor: self.hypervisor.clone(),
            host_uuid: Uuid::from_u128(1).to_string(),
            recorder: None,
        };
        let (config, ending) = (self.config.clone(), stop.clone());
        let task = tokio::spawn(async move { agent::run(&config, outside, ending).await });
        Running { task, stop }
    }

    /// Another boot of the host: every guest is gone.
    pub fn boot(&self, id: &str) {
        self.hypervisor.cut_power();
        std::fs::write(&self.config.boot_id_file, id).unwrap();
    }

    pub fn pool_path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    pub fn pool(&self) -> AssignedPool {
        AssignedPool {
            pool_id: POOL.to_string(),
            name: "local".into(),
            path: self.pool_path().to_str().unwrap().into(),
            shared: false,
        }
    }

    pub fn volume_files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.pool_path().join("volumes")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A pool, an empty volume of 8 MiB to be made, and a VM on it.
    pub fn whole(&self) -> Assignment {
        Assignment {
            complete: true,
            pools: vec![self.pool()],
            volumes: vec![volume(VolumeIntent::Make)],
            vms: vec![vm(1)],
            ..Assignment::default()
        }
    }
}

pub fn volume(intent: VolumeIntent) -> AssignedVolume {
    AssignedVolume {
        copy: 0,
        volume_id: VOLUME.to_string(),
        pool_id: POOL.to_string(),
        intent: intent.into(),
        size_mib: 8,
        image: String::new(),
    }
}

pub fn vm(incarnation: u64) -> AssignedVm {
    AssignedVm {
        vm_id: VM.to_string(),
        incarnation,
        generation: 1,
        intent: Intent::Wanted.into(),
        power: Power::On.into(),
        run: RunPolicy::OnFailure.into(),
        machine: Some(machine()),
        ..AssignedVm::default()
    }
}

pub fn bare_vm(n: u128) -> AssignedVm {
    let machine = Machine { disks: Vec::new(), ..machine() };
    AssignedVm { vm_id: Uuid::from_u128(n).to_string(), machine: Some(machine), ..vm(1) }
}

fn machine() -> Machine {
    Machine {
        name: "web".into(),
        agency: "works".into(),
        vcpus: 1,
        memory_mib: 128,
        disks: vec![MachineDisk {
            volume_id: VOLUME.to_string(),
            pool_id: POOL.to_string(),
            kind: DiskKind::Disk.into(),
            boot_order: 1,
            ..MachineDisk::default()
        }],
        interfaces: vec![MachineInterface {
            mac: "52:54:00:00:00:07".into(),
            bridge: "br-guests".into(),
            addresses: vec!["10.20.0.7/24".into()],
            gateways: vec!["10.20.0.1".into()],
            ..MachineInterface::default()
        }],
        cloud_init: Some(CloudInit {
            instance_id: VM.to_string(),
            hostname: "web".into(),
            ..CloudInit::default()
        }),
        ..Machine::default()
    }
}
