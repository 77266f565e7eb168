//! A fleet of nodes that exist only as sessions: each enrols, opens its session and answers every assignment at once.
//! It is for scale, where real agents would measure the machine that all of them share. Guests move as soon as they are
//! told to, and hosts are updated, lost and boot anew at a word. Deliberately absent: all that a real agent refuses, retries or
//! remembers, and a guest that a move leaves where it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use futures::future::join_all;
use rcgen::{CertificateParams, KeyPair};
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::agent_service_client::AgentServiceClient;
use tamdao_proto::agent::v1::enroll_service_client::EnrollServiceClient;
use tamdao_proto::agent::v1::session_request::Message as ToLeader;
use tamdao_proto::agent::v1::session_response::Message as FromLeader;
use tamdao_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use uuid::Uuid;

use crate::Result;

/// The name that every controller's certificate has.
const CONTROLLER: &str = "tamdao-controller";

/// A bridge without VLANs.
pub const NO_VLANS: (u32, u32) = (1, 0);

/// What each node of the fleet has.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub cpus: u32,
    pub memory_mib: u64,
    pub pool_mib: u64,
    /// The first and the last tag of the VLANs on its bridge for guests.
    pub vlans: (u32, u32),
}

/// The nodes; they leave when it is dropped.
pub struct Fleet {
    hosts: BTreeMap<String, watch::Sender<Host>>,
    _sessions: JoinSet<()>,
}

/// What of a host changes when it is worked on.
#[derive(Debug, Clone)]
struct Host {
    boot_id: Uuid,
    qemu: String,
    lost: bool,
}

impl Fleet {
    /// Enrols `count` nodes named `NAME-N` by a token of as many uses and opens their sessions.
    ///
    /// # Errors
    /// When one cannot enrol.
    pub async fn join(
        controllers: &[String],
        ca: &str,
        token: &str,
        (name, count): (&str, usize),
        size: Size,
    ) -> Result<Self> {
        let enrolled = (0..count).map(|at| Node::enrol(controllers, ca, token, format!("{name}-{at}"), size));
        let (mut hosts, mut sessions) = (BTreeMap::new(), JoinSet::new());
        for (at, node) in join_all(enrolled).await.into_iter().enumerate() {
            let booted = Host { boot_id: Uuid::new_v4(), qemu: "7.2.0".into(), lost: false };
            let (changes, host) = watch::channel(booted);
            hosts.insert(format!("{name}-{at}"), changes);
            sessions.spawn(node?.run(host));
        }
        Ok(Self { hosts, _sessions: sessions })
    }

    /// A node gets another QEMU and boots anew.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn update(&self, node: &str, qemu: &str) -> Result<()> {
        self.change(node, |host| *host = Host { boot_id: Uuid::new_v4(), qemu: qemu.to_owned(), lost: false })
    }

    /// The power of a node goes, with all that runs there.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn lose(&self, node: &str) -> Result<()> {
        self.change(node, |host| host.lost = true)
    }

    /// A node that was lost boots.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn boot(&self, node: &str) -> Result<()> {
        self.change(node, |host| (host.boot_id, host.lost) = (Uuid::new_v4(), false))
    }

    fn change(&self, node: &str, change: impl FnOnce(&mut Host)) -> Result<()> {
        let host = self.hosts.get(node).with_context(|| format!("there is no node {node:?}"))?;
        host.send_modify(change);
        Ok(())
    }
}

/// One node of the fleet.
struct Node {
    controllers: Vec<String>,
    tls: ClientTlsConfig,
    size: Size,
    host_uuid: Uuid,
    /// What it would tell in a complete report.
    vms: BTreeMap<String, agent::VmReport>,
    volumes: BTreeMap<String, agent::VolumeReport>,
    pools: Vec<String>,
}

impl Node {
    async fn enrol(controllers: &[String], ca: &str, token: &str, name: String, size: Size) -> Result<Self> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(CONTROLLER);
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
        let host_uuid = Uuid::new_v4();
        let request = agent::EnrollNodeRequest {
            secret: token.to_owned(),
            name: name.clone(),
            csr,
            host_uuid: host_uuid.to_string(),
            addresses: vec!["127.0.0.1".to_owned()],
        };
        let channel = channel(&controllers[0], &tls)?;
        let answer = EnrollServiceClient::new(channel).enroll_node(request).await;
        let answer = answer.with_context(|| format!("{name} enrols"))?.into_inner();
        let tls = tls.identity(Identity::from_pem(answer.certificate, key.serialize_pem()));
        Ok(Self {
            controllers: controllers.to_vec(),
            tls,
            size,
            host_uuid,
            vms: BTreeMap::new(),
            volumes: BTreeMap::new(),
            pools: Vec::new(),
        })
    }

    /// Holds a session with whoever leads, for ever.
    async fn run(mut self, mut host: watch::Receiver<Host>) {
        let mut at = self.controllers[0].clone();
        let mut tries = 0;
        loop {
            // A session that breaks is the normal end of one: the next controller knows who leads.
            let now = host.borrow_and_update().clone();
            if now.lost {
                self.vms.clear();
                if host.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let ended = tokio::select! {
                ended = self.session(&at, &now) => ended,
                Ok(()) = host.changed() => Ok(None),
            };
            match ended {
                Ok(Some(leader)) if !leader.is_empty() && leader != at => at = leader,
                _ => {
                    tries += 1;
                    at = self.controllers[tries % self.controllers.len()].clone();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// One session; the answer is where to go instead.
    async fn session(&mut self, at: &str, host: &Host) -> Result<Option<String>> {
        let (sender, requests) = mpsc::channel(256);
        let send = async |message| sender.send(agent::SessionRequest { message: Some(message) }).await;
        let hello = agent::Hello {
            session_id: Uuid::new_v4().to_string(),
            boot_id: host.boot_id.to_string(),
            agent_version: "fleet".into(),
            level: 1,
            address: "127.0.0.1".into(),
            host_uuid: self.host_uuid.to_string(),
            // So that plans find targets; nothing listens there.
            moves_port: 7_444,
            ..agent::Hello::default()
        };
        send(ToLeader::Hello(hello)).await?;
        let client = AgentServiceClient::new(channel(at, &self.tls)?).max_decoding_message_size(16 << 20);
        let mut responses = { client }.session(ReceiverStream::new(requests)).await?.into_inner();
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        let mut sequence = 0;
        loop {
            let message = tokio::select! {
                _ = beat.tick() => {
                    sequence += 1;
                    send(ToLeader::Heartbeat(agent::Heartbeat { sequence, sent_time: None })).await?;
                    continue;
                }
                message = responses.message() => message?.and_then(|response| response.message),
            };
            match message {
                None | Some(FromLeader::Refusal(_)) => return Ok(None),
                Some(FromLeader::Redirect(redirect)) => return Ok(Some(redirect.leader)),
                Some(FromLeader::Welcome(_)) => send(ToLeader::Inventory(self.inventory(host))).await?,
                Some(FromLeader::Assignment(assignment)) => {
                    let report = self.obey(assignment);
                    send(ToLeader::Report(report)).await?;
                }
                Some(FromLeader::OpenTunnel(_) | FromLeader::Heartbeat(_) | FromLeader::ReadLease(_)) => {}
            }
        }
    }

    fn inventory(&self, host: &Host) -> v1::Inventory {
        let (first, last) = self.size.vlans;
        let tagged = (first..=last).map(|tag| format!("br-guests.{tag}"));
        let bridges = ["br-guests".to_owned()].into_iter().chain(tagged).collect();
        v1::Inventory {
            hostname: "fleet".into(),
            qemu_version: host.qemu.clone(),
            acceleration: "kvm".into(),
            cpus: self.size.cpus,
            memory_mib: self.size.memory_mib,
            bridges,
            firmware: vec!["bios".into(), "uefi".into()],
            ..v1::Inventory::default()
        }
    }

    /// Does at once what is asked and says so.
    fn obey(&mut self, assignment: agent::Assignment) -> agent::Report {
        let complete = assignment.complete;
        for pool in assignment.pools {
            if !self.pools.contains(&pool.pool_id) {
                self.pools.push(pool.pool_id);
            }
        }
        let volumes: Vec<_> = assignment.volumes.into_iter().map(|volume| self.obey_volume(volume)).collect();
        let vms: Vec<_> = assignment.vms.into_iter().map(|vm| self.obey_vm(vm)).collect();
        let pool = |id: &String| agent::PoolReport {
            pool_id: id.clone(),
            ready: true,
            capacity_mib: self.size.pool_mib,
            used_mib: 0,
            message: String::new(),
            lease: None,
        };
        agent::Report {
            complete,
            vms: if complete {
                self.vms.values().chain(vms.iter().filter(|vm| vm.gone)).cloned().collect()
            } else {
                vms
            },
            volumes: if complete { self.volumes.values().cloned().collect() } else { volumes },
            pools: self.pools.iter().map(pool).collect(),
            ..agent::Report::default()
        }
    }

    fn obey_volume(&mut self, wanted: agent::AssignedVolume) -> agent::VolumeReport {
        let deleted = wanted.intent() == agent::VolumeIntent::Delete;
        let state = if deleted { agent::VolumeState::Deleted } else { agent::VolumeState::Made };
        let report = agent::VolumeReport {
            volume_id: wanted.volume_id.clone(),
            state: state as i32,
            size_mib: wanted.size_mib,
            ..agent::VolumeReport::default()
        };
        if deleted {
            self.volumes.remove(&wanted.volume_id);
        } else {
            self.volumes.insert(wanted.volume_id, report.clone());
        }
        report
    }

    fn obey_vm(&mut self, wanted: agent::AssignedVm) -> agent::VmReport {
        let runs = wanted.intent() == agent::Intent::Wanted && wanted.power() == v1::Power::On;
        let platform = v1::Platform { machine_type: "pc-q35-7.2".into(), cpu_model: "qemu64".into() };
        // The target waits for what the source lets go of at once.
        let (moving, state) = match wanted.intent() {
            agent::Intent::Incoming => (Some(agent::MoveState::Ready), agent::GuestState::Paused),
            agent::Intent::Outgoing => (Some(agent::MoveState::Gone), agent::GuestState::Absent),
            _ if runs => (None, agent::GuestState::Running),
            _ => (None, agent::GuestState::Absent),
        };
        let moved = wanted.r#move.as_ref().zip(moving);
        let report = agent::VmReport {
            vm_id: wanted.vm_id.clone(),
            incarnation: wanted.incarnation,
            generation: wanted.generation,
            state: state.into(),
            platform: Some(platform),
            gone: moving.is_none() && wanted.intent() != agent::Intent::Wanted,
            r#move: moved.map(|(to, state)| agent::MoveReport {
                move_id: to.move_id.clone(),
                state: state.into(),
                problem: None,
            }),
            ..agent::VmReport::default()
        };
        if report.gone {
            self.vms.remove(&wanted.vm_id);
        } else {
            self.vms.insert(wanted.vm_id, report.clone());
        }
        report
    }
}

fn channel(address: &str, tls: &ClientTlsConfig) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?
        .connect_timeout(Duration::from_secs(3))
        .tls_config(tls.clone())?;
    Ok(endpoint.connect_lazy())
}
