//! An evacuation: how long the cloud takes to have a hundred VMs running elsewhere, once it is proven that their node
//! runs nothing any more. Nodes are sessions without hypervisors that do at once what they are told, so this is the time
//! of decisions, transactions and reports alone.
//!
//! From the operator's attestation being sent to the last VM's record saying that it runs on another node, looked at
//! every few milliseconds. For each round the VMs are made anew on one node.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use tamdao_proto::v1;
use tamdao_proto::v1::node_service_client::NodeServiceClient;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_proto::v1::{Node, NodePhase, Vm, VmPhase};
use tamdao_tests::Cloud;
use tamdao_tests::api;
use tamdao_tests::cloud::AGENCY;
use tamdao_tests::figures::{ms, say};
use tamdao_tests::fleet::{Fleet, NO_VLANS, Size};
use tamdao_tests::wait::SOON;
use tamdao_tests::{eventually, not_yet};
use uuid::Uuid;

use crate::report::Report;

const VMS: usize = 100;
const NODES: usize = 8;
const ROUNDS: usize = 10;
const LOST: &str = "fleet-0";
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// # Errors
/// When a VM does not come back, or the cloud does not do what it is asked.
pub async fn run(report: &mut Report) -> Result<()> {
    let mut cloud = Cloud::builder().controllers(3).bare().start().await?;
    let size = Size { cpus: 160, memory_mib: 1 << 20, pool_mib: 64 << 20, vlans: NO_VLANS };
    let fleet = cloud.fleet_of("fleet", NODES, size).await?;
    cloud.nodes_ready().await?;
    cloud.cli.run(&["agency", "create", AGENCY]).await?;
    cloud.cli.run(&["pool", "create", "san", "--path", "/san", "--shared", "--timeout", "60s"]).await?;
    // Freed addresses rest for a while.
    cloud.cli.run(&["network", "create", "lan", "--bridge", "br-guests", "--subnet", "10.0.0.0/8"]).await?;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (one, all) = evacuate(&cloud, &fleet, round).await?;
        say(&format!("{round} of {ROUNDS}: {:.0} ms, the first after {:.0} ms", ms(all), ms(one)));
        first.push(one);
        last.push(all);
    }
    report.spread_ms(&format!("proof to the first of {VMS} VMs running elsewhere"), first);
    report.spread_ms(&format!("proof to the last of {VMS} VMs running elsewhere"), last);
    cloud.done()
}

/// One loss; when the first VM and when the last was back.
async fn evacuate(cloud: &Cloud, fleet: &Fleet, round: usize) -> Result<(Duration, Duration)> {
    let names: Vec<String> = (0..VMS).map(|at| format!("v{round}-{at}")).collect();
    others(cloud, "cordon").await?;
    let creates = names.iter().enumerate().map(|(at, name)| {
        let mut client = VmServiceClient::new(cloud.api.wire(at % cloud.api.count()));
        async move { client.create_vm(request(name)).await }
    });
    try_join_all(creates).await?;
    let runs_there = |vm: &Vm| api::phase(vm) == VmPhase::Running && api::node(vm) == LOST;
    eventually("all VMs run on one node", SOON, async || {
        let vms = cloud.api.vms().await?;
        match vms.iter().filter(|vm| runs_there(vm)).count() {
            VMS => Ok(()),
            count => not_yet(format!("{count} of {}", vms.len())),
        }
    })
    .await?;
    others(cloud, "uncordon").await?;

    fleet.lose(LOST)?;
    let phase = |node: &Node| node.status.as_ref().map_or(NodePhase::Unspecified, |status| status.phase());
    let lost = |node: &Node| matches!(phase(node), NodePhase::Unreachable | NodePhase::Fencing);
    cloud.node_becomes(LOST, "lost", lost).await?;
    let asked = v1::AttestNodeGoneRequest {
        name: LOST.into(),
        reason: "the bench".into(),
        request_id: Uuid::new_v4().to_string(),
    };
    let began = Instant::now();
    cloud.api.call(async |wire| NodeServiceClient::new(wire).attest_node_gone(asked.clone()).await).await?;
    let (mut first, elsewhere) =
        (None, |vm: &Vm| api::phase(vm) == VmPhase::Running && api::node(vm) != LOST);
    let last = loop {
        let vms = cloud.api.vms().await?;
        let (count, now) = (vms.iter().filter(|vm| elsewhere(vm)).count(), began.elapsed());
        if count > 0 {
            first.get_or_insert(now);
        }
        if count == VMS {
            break now;
        }
        ensure!(now < SOON, "{count} of {} VMs are back", vms.len());
        tokio::time::sleep(PAUSE).await;
    };

    fleet.boot(LOST)?;
    cloud.node_becomes(LOST, "ready again", |node| phase(node) == NodePhase::Ready).await?;
    let deletes = names.iter().enumerate().map(|(at, name)| {
        let mut client = VmServiceClient::new(cloud.api.wire(at % cloud.api.count()));
        let asked = v1::DeleteVmRequest {
            agency: AGENCY.into(),
            name: name.clone(),
            force: true,
            ..Default::default()
        };
        async move { client.delete_vm(asked).await }
    });
    try_join_all(deletes).await?;
    eventually("all VMs are deleted", SOON, async || match cloud.api.vms().await?.len() {
        0 => Ok(()),
        left => not_yet(format!("{left} are left")),
    })
    .await?;
    Ok((first.context("none came back")?, last))
}

/// Cordons all other nodes, or takes them into use again.
async fn others(cloud: &Cloud, verb: &str) -> Result<()> {
    for at in 1..NODES {
        cloud.cli.run(&["node", verb, &format!("fleet-{at}")]).await?;
    }
    Ok(())
}

/// A VM whose disk every node reaches.
fn request(name: &str) -> v1::CreateVmRequest {
    let disk = v1::DiskTemplate { size_mib: 1_024, pool: "san".into(), ..v1::DiskTemplate::default() };
    let disk = v1::Disk { source: Some(v1::disk::Source::Create(disk)), ..v1::Disk::default() };
    let interface = v1::Interface { network: "lan".into(), ..v1::Interface::default() };
    let spec = v1::VmSpec {
        vcpus: 1,
        memory_mib: 512,
        disks: vec![disk],
        interfaces: vec![interface],
        ..v1::VmSpec::default()
    };
    let metadata = v1::Metadata { name: name.into(), ..v1::Metadata::default() };
    v1::CreateVmRequest {
        agency: AGENCY.into(),
        vm: Some(v1::Vm { metadata: Some(metadata), spec: Some(spec), status: None }),
        request_id: Uuid::new_v4().to_string(),
        validate_only: false,
    }
}
