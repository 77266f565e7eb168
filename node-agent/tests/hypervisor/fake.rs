//! The fake hypervisor passes the contract, and is cheap enough for tens of thousands of VMs.

use std::path::PathBuf;

use async_trait::async_trait;
use tamdao_node_agent::hypervisor::contract::{Fixture, Guest, cases};
use tamdao_node_agent::hypervisor::fake::{Break, FakeHypervisor, FakeWorld, Script};
use tamdao_node_agent::hypervisor::migration::Migration;
use tamdao_node_agent::hypervisor::{
    DiskFile, DiskFormat, DomainSpec, DomainState, Hypervisor, HypervisorError, PauseReason, Port,
    disk_serial, tap_name,
};
use tamdao_proto::agent::v1::Machine;
use tamdao_proto::v1::DiskKind;
use uuid::Uuid;

struct Fake {
    here: FakeHypervisor,
    there: FakeHypervisor,
}

impl Fake {
    fn new() -> Self {
        let world = FakeWorld::default();
        let fake = Self { here: world.host("here"), there: world.host("there") };
        fake.there.reachable_at("fake:there");
        fake
    }
}

fn spec() -> DomainSpec {
    let vm = Uuid::new_v4();
    DomainSpec {
        vm,
        incarnation: 1,
        generation: 1,
        machine: Machine { vcpus: 1, memory_mib: 128, ..Machine::default() },
        disks: vec![DiskFile {
            path: Some(PathBuf::from(format!("/pool/{vm}.qcow2"))),
            format: DiskFormat::Qcow2,
            kind: DiskKind::Disk,
            boot_order: 1,
            shared: true,
            readonly: false,
            serial: disk_serial(vm),
        }],
        interfaces: vec![Port {
            mac: "52:54:00:00:00:01".to_owned(),
            bridge: "br-guests".to_owned(),
            mtu: 0,
            tap: tap_name(vm, 0),
        }],
        seed: None,
        kernel: None,
        initrd: None,
        serial_log: PathBuf::from("/serial.log"),
        nvram: PathBuf::from("/nvram.fd"),
    }
}

#[async_trait]
impl Fixture for Fake {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.here
    }

    fn other(&self) -> &dyn Hypervisor {
        &self.there
    }

    fn route(&self) -> (String, PathBuf) {
        ("fake:there".to_owned(), PathBuf::from("/run"))
    }

    async fn spec(&self, guest: Guest) -> DomainSpec {
        let spec = spec();
        self.here.script(spec.vm, Script { obeys_acpi: guest != Guest::Stubborn, guest_agent: true });
        if guest == Guest::OnFullPool {
            self.here.fail_first_write(spec.vm);
        }
        spec
    }

    async fn lose_disk(&self, spec: &DomainSpec) {
        let error = HypervisorError::Refused {
            reason: "FileMissing",
            message: "No such file or directory".to_owned(),
            permanent: false,
        };
        self.here.refuse_start(spec.vm, Some(error));
    }

    async fn let_power_off(&self, vm: Uuid) {
        self.here.power_off(vm);
    }

    async fn make_room(&self) {}

    async fn kill_qemu(&self, vm: Uuid) {
        self.here.crash(vm);
    }

    async fn stop_libvirt(&self) {
        self.here.disconnect();
    }

    async fn start_libvirt(&self) {
        self.here.reconnect();
    }

    async fn start_foreign(&self) -> String {
        let name = format!("tamdao-{}", Uuid::new_v4());
        self.here.add_foreign(&name);
        name
    }

    async fn foreign_runs(&self, name: &str) -> bool {
        self.here.has_foreign(name)
    }

    async fn stop_foreign(&self, name: &str) {
        self.here.remove_foreign(name);
    }
}

#[tokio::test]
async fn the_fake_passes_the_contract() {
    for (name, case) in cases() {
        println!("case {name}");
        case(&Fake::new()).await;
    }
}

#[tokio::test]
async fn a_cut_host_frees_its_locks_and_says_nothing() {
    let fake = Fake::new();
    let spec = spec();
    fake.here.start(&spec).await.unwrap();
    fake.here.resume(spec.vm, 1).await.unwrap();
    let mut events = fake.here.events();
    fake.here.cut_power();
    assert!(events.try_recv().is_err());
    assert!(fake.here.observe().await.unwrap().ours.is_empty());
    fake.there.start(&spec).await.unwrap();
}

/// Breaks that libvirt has: what is left on the two hosts after each.
#[tokio::test]
async fn a_migration_breaks_as_libvirt_s_do() {
    let fake = Fake::new();
    for (how, here, there) in [
        (Break::Early, Some(DomainState::Running), false),
        (Break::Resumed, Some(DomainState::Running), true),
        (Break::Stalled, Some(DomainState::Paused(PauseReason::Migration)), true),
        (Break::Unheard, None, true),
    ] {
        let spec = spec();
        fake.here.start(&spec).await.unwrap();
        fake.here.resume(spec.vm, 1).await.unwrap();
        fake.here.break_migration(how);
        let migration = Migration {
            destination: "fake:there".to_owned(),
            memory_socket: PathBuf::from("/memory"),
            disks_socket: PathBuf::from("/disks"),
            incarnation_to: 2,
            files: Default::default(),
            copies: Vec::new(),
            auto_converge: true,
        };
        fake.here.migrate(spec.vm, 1, &migration).await.unwrap_err();
        let state = async |host: &FakeHypervisor| {
            let seen = host.observe().await.unwrap().ours;
            seen.into_iter()
                .find(|domain| domain.vm == spec.vm)
                .map(|domain| (domain.state, domain.incarnation))
        };
        assert_eq!(state(&fake.here).await.map(|(state, _)| state), here, "{how:?}");
        let arrived = there.then_some((DomainState::Paused(PauseReason::NotYetRun), 2));
        assert_eq!(state(&fake.there).await, arrived, "{how:?}: it never runs by itself");
    }
}

#[tokio::test]
async fn twenty_thousand_guests_are_cheap() {
    let world = FakeWorld::default();
    let hosts: Vec<_> = (0..200).map(|number| world.host(&format!("host-{number}"))).collect();
    for host in &hosts {
        for _ in 0..100 {
            let spec = spec();
            host.start(&spec).await.unwrap();
            host.resume(spec.vm, 1).await.unwrap();
        }
    }
    let mut running = 0;
    for host in &hosts {
        running += host.observe().await.unwrap().ours.len();
    }
    assert_eq!(running, 20_000);
}
