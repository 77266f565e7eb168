//! Decisions against the invariants that they must keep, over random histories: an agency's usage equals the sum
//! over what it owns, no node holds more than it may, an address has one holder, and what is deleted leaves
//! nothing behind.

#[path = "fence_tests.rs"]
mod fencing;
#[path = "recovery_tests.rs"]
mod recovering;
#[path = "rescue_tests.rs"]
mod rescuing;

use std::collections::BTreeMap;

use proptest::prelude::*;
use tamdao_model::address::Holder;
use tamdao_model::agency::{Agency, AgencySpec, Usage};
use tamdao_model::convert::agent::{FileState, VmSeen, VolumeSeen};
use tamdao_model::convert::vm::{DiskRequest, InterfaceRequest, VmRequest, WantedDisk};
use tamdao_model::network::{AddressRange, Network, NetworkSpec, Provider, Subnet};
use tamdao_model::node::{Inventory, Node, NodePhase, NodeSpec, NodeStatus, PoolSeen};
use tamdao_model::pool::{Pool, PoolKind, PoolSpec};
use tamdao_model::quota::{Amounts, Measure};
use tamdao_model::vm::{
    DiskKind, Firmware, Graphics, GuestState, OnNodeLoss, OsType, RunPolicy, Seen, StopMode, Vm, VmPhase,
};
use tamdao_model::{AgencyId, Meta, Name, NetworkId, NodeId, PoolId, Resource, Scope, SessionId, TimeMs};
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use uuid::Uuid;

use super::report::{self, Part};
use super::vm_power::{Size, Verb};
use super::{node, place, vm_create, vm_delete, vm_power};
use crate::admission::Moment;
use crate::engine;

pub(crate) const AGENCY: AgencyId = AgencyId(Uuid::from_u128(0xA));
const NETWORK: NetworkId = NetworkId(Uuid::from_u128(0xB));
pub(crate) const POOL: PoolId = PoolId(Uuid::from_u128(0xC));
pub(crate) const SESSION: SessionId = SessionId(Uuid::from_u128(0xD));
const NODES: u128 = 3;

pub(crate) fn node_id(at: u128) -> NodeId {
    NodeId(Uuid::from_u128(0x100 + at))
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn meta(id: impl Into<Uuid>, text: &str) -> Meta {
    Meta::new(id, name(text), TimeMs(1))
}

/// A small cluster: three nodes of 4 CPUs and 4 GiB, one pool, one network of 14 addresses.
pub(crate) fn world() -> View {
    let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
    draft.create(Agency { meta: meta(AGENCY, "health"), spec: AgencySpec::default() });
    let cidr = "10.0.0.0/28".parse().unwrap();
    let range = AddressRange { first: "10.0.0.1".parse().unwrap(), last: "10.0.0.14".parse().unwrap() };
    draft.create(Network {
        meta: meta(NETWORK, "lan"),
        agency: None,
        spec: NetworkSpec {
            provider: Provider::Bridge { bridge: "br0".into() },
            subnets: vec![Subnet { cidr, gateway: None, ranges: vec![range] }],
            mtu: 1_500,
            dns_servers: Vec::new(),
        },
    });
    draft.create(Pool {
        meta: meta(POOL, "default"),
        spec: PoolSpec {
            kind: PoolKind::Dir,
            shared: false,
            path: "/p".into(),
            nodes: Default::default(),
            overcommit_percent: 100,
            reserve_mib: 0,
        },
    });
    for at in 0..NODES {
        let seen = PoolSeen { ready: true, capacity_mib: 8_192, ..PoolSeen::default() };
        draft.create(Node {
            meta: meta(node_id(at), &format!("n{at}")),
            spec: NodeSpec { cpu_overcommit_percent: 100, ..NodeSpec::default() },
            status: NodeStatus {
                phase: NodePhase::Ready,
                session: Some(SESSION),
                inventory: Inventory {
                    cpus: 4,
                    memory_mib: 4_096,
                    bridges: vec!["br0".into()],
                    firmware: vec!["bios".into()],
                    ..Inventory::default()
                },
                pools: BTreeMap::from([(POOL, seen)]),
                ..NodeStatus::default()
            },
        });
    }
    draft.view().clone()
}

pub(crate) fn request(at: u8, vcpus: u32, memory_mib: u32, disk_mib: u32) -> VmRequest {
    let name = name(&format!("vm-{at}"));
    VmRequest {
        name: name.clone(),
        display_name: String::new(),
        labels: BTreeMap::new(),
        flavor: None,
        vcpus,
        memory_mib,
        disks: vec![WantedDisk {
            source: DiskRequest::Create {
                size_mib: disk_mib,
                image: None,
                pool: None,
                keep_on_delete: false,
            },
            kind: DiskKind::Disk,
            boot_order: 0,
        }],
        interfaces: vec![InterfaceRequest { network: NETWORK, wanted: Vec::new(), mac: None }],
        firmware: Firmware::Bios,
        os_type: OsType::Linux,
        graphics: Graphics::None,
        secure_boot: false,
        tpm: false,
        direct_boot: None,
        ssh_keys: Vec::new(),
        user_data: None,
        run: RunPolicy::OnFailure,
        delete_protection: false,
        hostname: name,
        pin: None,
        node_labels: BTreeMap::new(),
        forbidden_node_labels: BTreeMap::new(),
        priority: 0,
        isolation_class: None,
        placement_groups: Vec::new(),
        on_node_loss: OnNodeLoss::Evacuate,
        numa_cells: 0,
        maintenance: Default::default(),
    }
}

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Create { at: u8, vcpus: u32, memory_mib: u32, disk_mib: u32 },
    Place { at: u8, node: u128 },
    Resize { at: u8, vcpus: u32, memory_mib: u32 },
    Stop { at: u8 },
    Delete { at: u8 },
    Report { at: u8, state: GuestState, gone: bool },
    Files { at: u8, state: FileState },
    Wait { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0u8..6;
    let size = (1u32..5, 64u32..3_000, 1u32..5_000);
    prop_oneof![
        3 => (at.clone(), size).prop_map(|(at, (vcpus, memory_mib, disk_mib))| Step::Create { at, vcpus, memory_mib, disk_mib }),
        4 => (at.clone(), 0..NODES).prop_map(|(at, node)| Step::Place { at, node }),
        2 => (at.clone(), 1u32..5, 64u32..3_000).prop_map(|(at, vcpus, memory_mib)| Step::Resize { at, vcpus, memory_mib }),
        1 => at.clone().prop_map(|at| Step::Stop { at }),
        3 => at.clone().prop_map(|at| Step::Delete { at }),
        4 => (at.clone(), prop_oneof![Just(GuestState::Running), Just(GuestState::Stopped), Just(GuestState::Absent)], any::<bool>())
            .prop_map(|(at, state, gone)| Step::Report { at, state, gone }),
        4 => (at, prop_oneof![Just(FileState::Made), Just(FileState::Deleted), Just(FileState::Missing)])
            .prop_map(|(at, state)| Step::Files { at, state }),
        1 => (0u64..1_200_000).prop_map(|ms| Step::Wait { ms }),
    ]
}

fn find(view: &View, at: u8) -> Option<Vm> {
    view.vms.find(Scope::Agency(AGENCY), &format!("vm-{at}")).map(|row| (*row.value).clone())
}

pub(crate) fn seen(vm: &Vm, state: GuestState, gone: bool) -> VmSeen {
    VmSeen {
        vm: vm.id(),
        incarnation: vm.status.incarnation,
        generation: vm.meta.generation,
        seen: Seen {
            state,
            exit: None,
            problem: None,
            pause_reason: String::new(),
            vcpus: 0,
            memory_mib: 0,
            guarded: false,
        },
        guest: Default::default(),
        platform: None,
        action_done: None,
        started_time: None,
        restarts: 0,
        unknown: false,
        gone,
        moving: None,
        addresses: Vec::new(),
    }
}

/// Applies a step on a draft of its own, as the writer does: a refused one leaves nothing.
fn apply(view: View, moment: &mut Moment, step: &Step) -> View {
    let mut draft = Draft::new(view.clone(), Uuid::from_u128(2));
    let vm_at = |at: u8| find(&view, at);
    let done = match step {
        Step::Create { at, vcpus, memory_mib, disk_mib } => {
            let request = request(*at, *vcpus, *memory_mib, *disk_mib);
            vm_create::create(&mut draft, moment, request, AGENCY, None, "test").is_ok()
        }
        Step::Place { at, node } => vm_at(*at).is_some_and(|vm| {
            let reservation = engine::shape(&view, &vm).unwrap().reservation_on(false);
            place::place(&mut draft, moment, node_id(*node), &[(vm.id(), reservation).into()])[0].is_ok()
        }),
        Step::Resize { at, vcpus, memory_mib } => vm_at(*at).is_some_and(|vm| {
            let size = Size::of(None, *vcpus, *memory_mib);
            let mut wanted = vm.clone();
            (wanted.spec.vcpus, wanted.spec.memory_mib) = (*vcpus, *memory_mib);
            let reservation = engine::reservation(&view, &wanted).unwrap();
            vm_power::resize(&mut draft, moment, &vm, &size, reservation, "test").is_ok()
        }),
        Step::Stop { at } => vm_at(*at).is_some_and(|vm| {
            vm_power::act(&mut draft, moment, &vm, &Verb::Stop(StopMode::default()), "test").is_ok()
        }),
        Step::Delete { at } => {
            vm_at(*at).is_some_and(|vm| vm_delete::want(&mut draft, moment, &vm, false, "test").is_ok())
        }
        Step::Report { at, state, gone } => vm_at(*at).is_some_and(|vm| {
            let part = Part { vms: vec![seen(&vm, *state, *gone)], ..Part::default() };
            vm.status.node.inspect(|node| report::take(&mut draft, moment, *node, SESSION, &part)).is_some()
        }),
        Step::Files { at, state } => vm_at(*at).is_some_and(|vm| {
            let volumes = vm.volumes().map(|volume| VolumeSeen {
                volume,
                state: *state,
                size_mib: view.volumes.get(volume).map_or(0, |row| row.spec.size_mib),
                used_mib: 1,
                problem: None,
            });
            let part = Part { volumes: volumes.collect(), ..Part::default() };
            vm.status.node.inspect(|node| report::take(&mut draft, moment, *node, SESSION, &part)).is_some()
        }),
        Step::Wait { ms } => {
            moment.now = moment.now.plus_ms(*ms);
            false
        }
    };
    if done { draft.view().clone() } else { view }
}

/// Invariants 3 and 6 of the design, and that nothing is left of what is gone.
fn check(view: &View) {
    let mut used: Vec<(Measure, u64)> = Vec::new();
    for vm in view.vms.iter() {
        used.push((Measure::Vms, 1));
        used.push((Measure::Vcpus, vm.spec.vcpus.into()));
        used.push((Measure::MemoryMib, vm.spec.memory_mib.into()));
        used.push((Measure::ProtectedMemoryMib, vm.spec.memory_mib.into()));
        used.extend(vm.spec.interfaces.iter().map(|i| (Measure::Addresses, i.addresses.len() as u64)));
        for interface in &vm.spec.interfaces {
            for address in &interface.addresses {
                let held = view.addresses.get(format!("{}/{}", interface.network, address.addr())).unwrap();
                assert_eq!(held.holder, Holder::Vm { vm: vm.id(), interface: 0 });
            }
        }
        let entry = vm.status.node.and_then(|node| view.assignment(node).vms.get(&vm.id()).cloned());
        assert_eq!(entry.is_some(), vm.status.node.is_some(), "{vm:?}");
        assert_ne!(vm.status.phase, VmPhase::Unknown);
    }
    for volume in view.volumes.iter() {
        used.extend([(Measure::Volumes, 1), (Measure::DiskMib, volume.spec.size_mib.into())]);
        assert!(
            volume.status.vm.is_some_and(|vm| view.vms.get(vm).is_some()),
            "an orphaned volume: {volume:?}"
        );
    }
    let used: Amounts = used.into_iter().collect();
    assert_eq!(view.usage(AGENCY).amounts, used);
    for node in view.nodes.iter() {
        let assignment = view.assignment(node.id());
        let (reserved, allocatable) = (assignment.reserved(), node.allocatable());
        assert!(reserved.vcpus <= allocatable.vcpus, "{reserved:?} of {allocatable:?}");
        assert!(reserved.memory_mib <= allocatable.memory_mib, "{reserved:?} of {allocatable:?}");
        assert!(assignment.promised_mib(POOL) <= 8_192);
        for vm in assignment.vms.keys() {
            assert_eq!(view.vms.get(*vm).unwrap().status.node, Some(node.id()));
        }
        for volume in assignment.volumes.keys() {
            assert_eq!(view.volumes.get(*volume).unwrap().status.node, Some(node.id()));
        }
    }
    let holders = view.addresses.iter().filter(|row| matches!(row.holder, Holder::Vm { .. })).count();
    assert_eq!(holders as u64, used.of(&Measure::Addresses));
}

proptest! {
    #[test]
    fn histories_keep_the_invariants(steps in proptest::collection::vec(step(), 1..60)) {
        let mut view = world();
        let mut moment = Moment { now: TimeMs(1_000) };
        for step in &steps {
            view = apply(view, &mut moment, step);
            check(&view);
        }
    }
}

#[test]
fn a_deleted_vm_goes_only_after_its_node_has_confirmed() {
    let mut moment = Moment { now: TimeMs(1_000) };
    let mut view = world();
    let steps = [
        Step::Create { at: 0, vcpus: 1, memory_mib: 256, disk_mib: 100 },
        Step::Place { at: 0, node: 0 },
        Step::Files { at: 0, state: FileState::Made },
        Step::Report { at: 0, state: GuestState::Running, gone: false },
    ];
    for step in &steps {
        view = apply(view, &mut moment, step);
    }
    assert_eq!(find(&view, 0).unwrap().status.phase, VmPhase::Running);
    view = apply(view, &mut moment, &Step::Delete { at: 0 });
    assert_eq!(find(&view, 0).unwrap().status.phase, VmPhase::Deleting);
    assert_eq!(view.usage(AGENCY).amounts.of(&Measure::Vms), 1, "quota is held until the guest is gone");
    // The file may not be reported gone before the guest is: nothing asked for it yet.
    view = apply(view, &mut moment, &Step::Files { at: 0, state: FileState::Deleted });
    assert!(find(&view, 0).is_some());
    view = apply(view, &mut moment, &Step::Report { at: 0, state: GuestState::Absent, gone: true });
    assert!(find(&view, 0).is_some(), "its file is still there");
    view = apply(view, &mut moment, &Step::Files { at: 0, state: FileState::Deleted });
    assert!(find(&view, 0).is_none());
    assert!(view.volumes.is_empty());
    assert_eq!(view.usage(AGENCY), Usage::none(AGENCY));
    let address = view.addresses.iter().next().unwrap();
    assert!(matches!(address.holder, Holder::Resting { .. }), "a freed address rests");
}

#[test]
fn a_file_that_is_first_heard_of_as_missing_was_made() {
    let mut moment = Moment { now: TimeMs(1_000) };
    let mut view = world();
    let steps = [
        Step::Create { at: 0, vcpus: 1, memory_mib: 256, disk_mib: 100 },
        Step::Place { at: 0, node: 0 },
        Step::Files { at: 0, state: FileState::Missing },
    ];
    for step in &steps {
        view = apply(view, &mut moment, step);
    }
    assert!(view.volumes.iter().all(|volume| volume.status.made), "no node may make it again");
}

#[test]
fn a_resting_address_is_not_given_out() {
    let mut moment = Moment { now: TimeMs(1_000) };
    let mut view = world();
    view = apply(view, &mut moment, &Step::Create { at: 0, vcpus: 1, memory_mib: 256, disk_mib: 100 });
    let first = find(&view, 0).unwrap().spec.interfaces[0].addresses[0];
    view = apply(view, &mut moment, &Step::Delete { at: 0 });
    assert!(find(&view, 0).is_none(), "it never had a node, so it goes at once");
    view = apply(view, &mut moment, &Step::Create { at: 1, vcpus: 1, memory_mib: 256, disk_mib: 100 });
    assert_ne!(find(&view, 1).unwrap().spec.interfaces[0].addresses[0], first);
    view = apply(view, &mut moment, &Step::Wait { ms: tamdao_model::limits::ADDRESS_REST_MS + 1 });
    view = apply(view, &mut moment, &Step::Create { at: 2, vcpus: 1, memory_mib: 256, disk_mib: 100 });
    assert_eq!(find(&view, 2).unwrap().spec.interfaces[0].addresses[0], first);
}

#[test]
fn a_report_of_an_older_session_changes_nothing() {
    let mut moment = Moment { now: TimeMs(1_000) };
    let mut view = world();
    view = apply(view, &mut moment, &Step::Create { at: 0, vcpus: 1, memory_mib: 256, disk_mib: 100 });
    view = apply(view, &mut moment, &Step::Place { at: 0, node: 0 });
    let vm = find(&view, 0).unwrap();
    let mut draft = Draft::new(view.clone(), Uuid::from_u128(3));
    let part = Part { vms: vec![seen(&vm, GuestState::Running, false)], ..Part::default() };
    report::take(&mut draft, &mut moment, node_id(0), SessionId(Uuid::from_u128(0xE)), &part);
    assert!(draft.is_empty());
}

#[test]
fn names_of_volumes_follow_the_vm_and_step_aside() {
    let mut moment = Moment { now: TimeMs(1_000) };
    let view = apply(world(), &mut moment, &Step::Create { at: 0, vcpus: 1, memory_mib: 256, disk_mib: 100 });
    let volume = view.volumes.iter().next().unwrap();
    assert_eq!(volume.meta().name.as_str(), "vm-0-0");
    assert_eq!(vm_create::volume_name(&view, AGENCY, &name("vm-0"), 0).as_str(), "vm-0-0-2");
}

#[test]
fn a_goodbye_is_recorded_at_once_and_only_of_the_present_session() {
    let (mut draft, mut moment) = (Draft::new(world(), Uuid::from_u128(2)), Moment { now: TimeMs(5) });
    let (id, events) = (node_id(0), draft.view().events.len());
    let told = |draft: &Draft| {
        let status = draft.view().nodes.get(id).unwrap().status.clone();
        (status.phase, status.conditions.get("Ready").map(|ready| ready.reason.clone()))
    };
    node::take_goodbye(&mut draft, &mut moment, id, SessionId(Uuid::from_u128(99)));
    assert_eq!(told(&draft), (NodePhase::Ready, None));
    node::take_goodbye(&mut draft, &mut moment, id, SESSION);
    assert_eq!(told(&draft), (NodePhase::Unreachable, Some("Goodbye".into())));
    assert_eq!(draft.view().events.len(), events + 1);
    // The next session's first report ends it.
    node::set_health(&mut draft, &mut moment, id, SessionId(Uuid::from_u128(99)), "", 0);
    assert_eq!(told(&draft).0, NodePhase::Unreachable, "another session's says nothing");
    node::set_health(&mut draft, &mut moment, id, SESSION, "", 0);
    assert_eq!(told(&draft), (NodePhase::Ready, Some("Healthy".into())));
}

#[test]
fn a_boot_has_the_time_at_which_it_was_first_heard_of() {
    let (mut draft, mut moment) = (Draft::new(world(), Uuid::from_u128(2)), Moment { now: TimeMs(5_000) });
    let mut hello = |now, boot: &str| {
        moment.now = TimeMs(now);
        let opening = node::Opening {
            session: SESSION,
            boot_id: boot.into(),
            address: String::new(),
            host_uuid: Uuid::nil(),
            moves_port: 0,
            carries_files: false,
        };
        node::open_session(&mut draft, &mut moment, node_id(0), &opening).unwrap().status.boot_time
    };
    assert_eq!(hello(6_000, "b1"), Some(TimeMs(6_000)));
    // The agent comes again, the host has run all the time.
    assert_eq!(hello(9_000, "b1"), Some(TimeMs(6_000)));
    assert_eq!(hello(12_000, "b2"), Some(TimeMs(12_000)));
}
