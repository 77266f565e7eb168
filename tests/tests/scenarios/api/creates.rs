//! A stream of creates through all controllers, each sent until it is acknowledged, while something happens to them;
//! and what must be there afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure};
use futures::future::join_all;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_proto::v1::{CreateVmRequest, Metadata, Vm, VmSpec};
use tamdao_tests::api::{Api, passes};
use tamdao_tests::cloud::AGENCY;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually, not_yet};
use tonic::Code;
use uuid::Uuid;

const CLIENTS: usize = 6;
/// Creates of each client after it saw that it was over.
const MORE: usize = 10;
/// Creates before anything happens.
const BEFORE: usize = 30;

/// Creates VMs while `happens` goes on, and a while after; the ids by name of all that were acknowledged.
///
/// # Errors
/// When a create is refused, or nobody acknowledges it in time, or `happens` fails.
pub async fn during<T>(
    api: &Api,
    happens: impl Future<Output = Result<T>>,
) -> Result<(BTreeMap<String, String>, T)> {
    let (over, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|client| create_on_and_on(api, client, &over, &acknowledged));
    let happens = async {
        eventually("a stream of creates is under way", SOON, async || {
            match acknowledged.load(Ordering::Relaxed) {
                enough if enough >= BEFORE => Ok(()),
                few => not_yet(format!("{few} creates")),
            }
        })
        .await?;
        let happened = happens.await;
        over.store(true, Ordering::Relaxed);
        happened
    };
    let (clients, happened) = tokio::join!(join_all(clients), happens);
    let mut ids = BTreeMap::new();
    for client in clients {
        ids.extend(client?);
    }
    ensure!(ids.len() >= CLIENTS * MORE, "writes went on: {}", ids.len());
    Ok((ids, happened?))
}

/// Creates VMs one after the other, through all controllers in turn, each until it is acknowledged.
async fn create_on_and_on(
    api: &Api,
    client: usize,
    over: &AtomicBool,
    count: &AtomicUsize,
) -> Result<BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    let mut after = 0;
    for number in 0.. {
        let name = format!("vm-{client}-{number}");
        let request = CreateVmRequest {
            agency: AGENCY.to_owned(),
            vm: Some(Vm {
                metadata: Some(Metadata { name: name.clone(), ..Default::default() }),
                spec: Some(VmSpec { vcpus: 1, memory_mib: 128, ..spec() }),
                status: None,
            }),
            request_id: Uuid::new_v4().to_string(),
            validate_only: false,
        };
        let vm = acknowledged(api, client + number, &request).await?;
        ids.insert(name, vm.metadata.unwrap_or_default().id);
        count.fetch_add(1, Ordering::Relaxed);
        after += usize::from(over.load(Ordering::Relaxed));
        if after >= MORE {
            break;
        }
    }
    Ok(ids)
}

fn spec() -> VmSpec {
    use tamdao_proto::v1::{Disk, DiskTemplate, disk::Source};
    let made = DiskTemplate { size_mib: 64, ..Default::default() };
    VmSpec {
        disks: vec![Disk { source: Some(Source::Create(made)), ..Default::default() }],
        ..Default::default()
    }
}

/// Sends the same request, with the same id, from controller to controller until one acknowledges it.
async fn acknowledged(api: &Api, first: usize, request: &CreateVmRequest) -> Result<Vm> {
    let mut turn = first;
    eventually("the create is acknowledged", SOON, async || {
        turn += 1;
        let mut client = VmServiceClient::new(api.wire(turn % api.count()));
        let sent = tokio::time::timeout(Duration::from_secs(15), client.create_vm(request.clone())).await;
        match sent {
            Ok(Ok(vm)) => Ok(vm.into_inner()),
            Ok(Err(status)) if passes(&status) || status.code() == Code::Aborted => not_yet(status),
            Ok(Err(status)) => Err(tamdao_tests::Hopeless(status.to_string()).into()),
            Err(_) => not_yet("silence"),
        }
    })
    .await
}

/// Each acknowledged VM is there once, under the id that was acknowledged, and nothing else is.
///
/// # Errors
/// When it is not so.
pub async fn check(cloud: &Cloud, ids: &BTreeMap<String, String>) -> Result<()> {
    let vms = eventually("the VMs are listed", SOON, async || Ok(cloud.api.vms().await?)).await?;
    let mut seen = BTreeMap::new();
    for vm in &vms {
        let metadata = vm.metadata.clone().unwrap_or_default();
        if let Some(other) = seen.insert(metadata.name.clone(), metadata.id.clone()) {
            bail!("{} is there twice: {other} and {}", metadata.name, metadata.id);
        }
    }
    ensure!(&seen == ids, "{} acknowledged, {} there", ids.len(), seen.len());
    let agency: serde_json::Value = cloud.cli.json(&["agency", "get", AGENCY]).await?;
    let used = agency["status"]["usage"]["vms"].as_u64();
    ensure!(used == Some(ids.len() as u64), "the agency's usage: {agency}");
    Ok(())
}
