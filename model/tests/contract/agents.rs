//! Agents' reports, and the records that are only shown.

use serde_json::json;
use tamdao_model::cluster::{Cluster, Controller, JoinKind, JoinToken};
use tamdao_model::convert::agent::{self, FileState, ReportError};
use tamdao_model::convert::{Shown, cluster, event, metadata};
use tamdao_model::event::{Event, Severity};
use tamdao_model::node::Inventory;
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{GuestExit, GuestState};
use tamdao_model::{
    ActionId, ClusterId, ControllerId, EventId, JoinTokenId, Kind, Meta, Name, NodeId, PoolId, TimeMs, VmId,
};
use tamdao_proto::agent::v1 as wire;
use tamdao_proto::v1;

use crate::world::{AGENCY, NOW, id, parse, world};

fn report() -> wire::VmReport {
    wire::VmReport {
        vm_id: id(61).to_string(),
        incarnation: 3,
        generation: 2,
        state: wire::GuestState::Stopped.into(),
        exit: wire::GuestExit::ByItself.into(),
        problem: Some(wire::Problem {
            reason: "DiskFull".into(),
            message: format!("no\n\u{1b}[31mroom{}", "x".repeat(5_000)),
            permanent: true,
            attempts: 4,
        }),
        guest: Some(v1::GuestStatus {
            ready: true,
            hostname: "we\u{7}b".into(),
            addresses: vec!["10.0.0.7/24".into(); 100],
        }),
        platform: Some(v1::Platform { machine_type: "pc-q35-7.2".into(), cpu_model: "host".into() }),
        action_id: id(5).to_string(),
        started_time: metadata::timestamp(NOW),
        restarts: 6,
        gone: true,
        ..Default::default()
    }
}

#[test]
fn a_vm_report_is_read_and_its_texts_are_cleaned() {
    let seen = agent::read_vm(&report()).unwrap();
    assert_eq!((seen.vm, seen.incarnation, seen.generation), (VmId(id(61)), 3, 2));
    assert_eq!((seen.seen.state, seen.seen.exit), (GuestState::Stopped, Some(GuestExit::ByItself)));
    let problem = seen.seen.problem.unwrap();
    assert!(problem.message.starts_with("no  [31mroom") && problem.message.len() == 2_000);
    assert_eq!(agent::read_problem(&agent::show_problem(&problem)), problem);
    assert_eq!((seen.guest.hostname.as_str(), seen.guest.addresses.len()), ("we b", 64));
    assert_eq!(agent::read_guest(&agent::show_guest(&seen.guest)), seen.guest);
    let platform = seen.platform.unwrap();
    assert_eq!(agent::read_platform(&agent::show_platform(&platform)), platform);
    assert_eq!((seen.action_done, seen.started_time), (Some(ActionId(id(5))), Some(NOW)));
    assert!(seen.gone && !seen.unknown && seen.restarts == 6);
}

#[test]
fn a_report_without_id_or_state_is_refused() {
    let nameless = wire::VmReport { vm_id: "web".into(), ..report() };
    assert_eq!(agent::read_vm(&nameless), Err(ReportError::Id { field: "vm_id" }));
    for number in [0, 99] {
        let stateless = wire::VmReport { state: number, ..report() };
        assert_eq!(agent::read_vm(&stateless), Err(ReportError::Number { field: "state", number }));
        let volume =
            wire::VolumeReport { volume_id: id(51).to_string(), state: number, ..Default::default() };
        assert_eq!(agent::read_volume(&volume), Err(ReportError::Number { field: "state", number }));
    }
    let volume = wire::VolumeReport { volume_id: id(51).to_string(), state: 3, ..Default::default() };
    assert_eq!(agent::read_volume(&volume).unwrap().state, FileState::Missing);
    let pool = wire::PoolReport { pool_id: id(11).to_string(), used_mib: 5, ..Default::default() };
    let (id, seen) = agent::read_pool(&pool).unwrap();
    assert_eq!((id, seen.used_mib, seen.ready), (PoolId(crate::world::id(11)), 5, false));
}

#[test]
fn an_inventory_is_the_same_both_ways() {
    let wire: v1::Inventory = parse(json!({
        "hostname": "h", "agent_version": "1", "libvirt_version": "9", "qemu_version": "7", "acceleration": "kvm",
        "cpu_model": "m", "cpu_features": ["f"], "cpus": 2, "memory_mib": "8192", "bridges": ["br0"],
        "numa_cells": [{"id": 0, "cpus": [0, 1], "memory_mib": "8192"}], "clock_offset_ms": "-3",
        "machine_types": ["q35"], "firmware": ["bios"], "tpm": true}));
    let inventory = agent::read_inventory(&wire);
    assert_ne!(inventory, Inventory::default());
    assert_eq!(agent::show_inventory(&inventory), wire);
}

#[test]
fn events_tokens_and_controllers_are_shown_by_name() {
    let event = Event {
        id: EventId(id(1)),
        time: NOW,
        severity: Severity::Warning,
        reason: "Placed".into(),
        message: "m".into(),
        kind: Kind::Vm,
        agency: Some(AGENCY),
        subject: id(61),
        name: Name::new("web").unwrap(),
        node: Some(NodeId(id(9))),
        actor: "placer".into(),
        decision: None,
    };
    let shown = event::show(&event, 7, &world());
    assert_eq!((shown.kind.as_str(), shown.agency.as_str(), shown.revision), ("vm", "health", 7));
    assert_eq!(shown.node, id(9).to_string(), "a node that has gone is shown by its id");
    assert_eq!(metadata::time_ms(&shown.time.unwrap()), NOW);

    let token = JoinToken {
        id: JoinTokenId(id(2)),
        kind: JoinKind::Node,
        digest: "secret".into(),
        expire_time: NOW,
        uses_left: 3,
        name: None,
    };
    assert!(!format!("{:?}", cluster::show_join_token(&token)).contains("secret"));

    let cluster = Cluster {
        id: ClusterId(id(3)),
        name: "province".into(),
        level: 1,
        ca_certificate: String::new(),
        ca_key: Sealed(vec![]),
        admin_tokens: vec![],
        disarmed: None,
        recovery: None,
        base: 0,
        former: Vec::new(),
    };
    assert_eq!(cluster::show(&cluster, 9).revision, 9);

    let meta = Meta::new(ControllerId(id(71)), Name::new("c1").unwrap(), TimeMs(0));
    let controller = Controller { meta, address: "h:1".into(), member: 4, version: String::new(), level: 1 };
    let shown = controller.show(7, &world());
    assert_eq!(shown.metadata.unwrap().create_time, None, "the beginning of time stands for never");
    assert_eq!(shown.status.unwrap().member, 4);
}
