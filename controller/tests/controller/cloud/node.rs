//! Nodes that are sessions only: they do at once what they are told, and remember it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::agent::v1::agent_service_client::AgentServiceClient;
use tamdao_proto::agent::v1::session_request::Message as Said;
use tamdao_proto::agent::v1::session_response::Message as Heard;
use tamdao_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::{Cloud, User};

/// What a node says of each of its guests that is measured: 1 GiB, of which 10 MiB/s change, and 100 MiB/s may be sent.
pub const MEASURED: agent::Measurement = agent::Measurement {
    memory_bytes: 1 << 30,
    dirty_bytes_per_s: 10 << 20,
    limit_bytes_per_s: 100 << 20,
    pace_bytes_per_s: 0,
};

/// What a node runs: by VM, its incarnation.
type Guests = Arc<Mutex<BTreeMap<String, u64>>>;

pub struct Node {
    pub name: String,
    pub host_uuid: Uuid,
    guests: Guests,
    link: watch::Sender<bool>,
    session: tokio::task::JoinHandle<()>,
}

impl Node {
    /// Joins and holds a session.
    pub async fn join(cloud: &Cloud, name: &str) -> Self {
        let (_, user, host_uuid) = cloud.host(name).await;
        Self::speak(cloud, name, user, host_uuid)
    }

    /// Holds sessions under this identity, from a boot of its own.
    pub fn speak(cloud: &Cloud, name: &str, user: User, host_uuid: Uuid) -> Self {
        let guests = Guests::default();
        let (address, kept) = (cloud.address(0).to_owned(), guests.clone());
        let boot_id = Uuid::new_v4().to_string();
        let (link, mut up) = watch::channel(true);
        let session = tokio::spawn(async move {
            while up.wait_for(|up| *up).await.is_ok() {
                // A session that breaks is followed by the next.
                tokio::select! {
                    _ = session(&user, &kept, &address, &boot_id, host_uuid) => {}
                    _ = cut_off(up.clone()) => {}
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { name: name.into(), host_uuid, guests, link, session }
    }

    /// Is heard, or is not, until it is told otherwise.
    pub fn link(&self, up: bool) {
        self.link.send_replace(up);
    }

    /// Is never heard again. What it runs, it runs on.
    pub fn cut(&self) {
        self.session.abort();
    }

    pub fn runs(&self) -> BTreeMap<String, u64> {
        self.guests.lock().unwrap().clone()
    }
}

async fn cut_off(mut up: watch::Receiver<bool>) {
    // A node that is gone ends its sessions itself.
    let _ = up.wait_for(|up| !up).await;
}

fn obey(guests: &Guests, assignment: &agent::Assignment) -> agent::Report {
    let mut guests = guests.lock().unwrap();
    let mut vms = Vec::new();
    for vm in &assignment.vms {
        let runs = vm.intent() == agent::Intent::Wanted && vm.power() == v1::Power::On;
        match runs {
            true => drop(guests.insert(vm.vm_id.clone(), vm.incarnation)),
            false => drop(guests.remove(&vm.vm_id)),
        }
        let state = if runs { agent::GuestState::Running } else { agent::GuestState::Absent };
        vms.push(agent::VmReport {
            vm_id: vm.vm_id.clone(),
            incarnation: vm.incarnation,
            generation: vm.generation,
            state: state.into(),
            gone: !runs,
            vcpus: 1,
            memory_mib: 256,
            ..agent::VmReport::default()
        });
    }
    agent::Report { complete: assignment.complete, vms, ..agent::Report::default() }
}

async fn session(user: &User, guests: &Guests, address: &str, boot_id: &str, host_uuid: Uuid) -> Option<()> {
    let (sender, requests) = mpsc::channel(64);
    let say = async |said| sender.send(agent::SessionRequest { message: Some(said) }).await.ok();
    let hello = agent::Hello {
        session_id: Uuid::new_v4().to_string(),
        boot_id: boot_id.into(),
        agent_version: "test".into(),
        level: 1,
        address: "127.0.0.1".into(),
        host_uuid: host_uuid.to_string(),
        moves_port: 7444,
        ..agent::Hello::default()
    };
    say(Said::Hello(hello)).await?;
    let mut client = AgentServiceClient::new(user.channel(address));
    let mut responses = client.session(ReceiverStream::new(requests)).await.ok()?.into_inner();
    let mut beat = tokio::time::interval(Duration::from_millis(300));
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            _ = beat.tick() => {
                sequence += 1;
                say(Said::Heartbeat(agent::Heartbeat { sequence, sent_time: None })).await?;
                continue;
            }
            message = responses.message() => message.ok()??.message?,
        };
        match message {
            Heard::Welcome(_) => {
                let inventory = v1::Inventory {
                    acceleration: "kvm".into(),
                    cpus: 8,
                    memory_mib: 16_384,
                    firmware: vec!["bios".into(), "uefi".into()],
                    ..v1::Inventory::default()
                };
                say(Said::Inventory(inventory)).await?;
            }
            Heard::Assignment(assignment) => say(Said::Report(obey(guests, &assignment))).await?,
            Heard::Refusal(_) | Heard::Redirect(_) => return None,
            Heard::OpenTunnel(open) => {
                drop(tokio::spawn(answer(user.channel(address), guests.clone(), open)))
            }
            Heard::Heartbeat(_) | Heard::ReadLease(_) => {}
        }
    }
}

/// Answers what was asked through a tunnel: a measurement, or that it cannot.
async fn answer(channel: tonic::transport::Channel, guests: Guests, open: agent::OpenTunnel) {
    use agent::tunnel_request::Part;
    let asked = match open.purpose {
        Some(agent::open_tunnel::Purpose::Measure(asked)) => asked.vm_id,
        _ => String::new(),
    };
    let word = match guests.lock().unwrap().contains_key(&asked) {
        true => Part::Data(MEASURED.encode_to_vec().into()),
        false => Part::Error("it has no domain here".into()),
    };
    let parts = [Part::TunnelId(open.tunnel_id), word];
    let said = parts.map(|part| agent::TunnelRequest { part: Some(part) });
    if let Ok(heard) = AgentServiceClient::new(channel).tunnel(tokio_stream::iter(said)).await {
        let mut heard = heard.into_inner();
        while let Ok(Some(_)) = heard.message().await {}
    }
}
