//! The XML of every kind of machine: as a snapshot, and checked against libvirt's own schema.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tamdao_proto::agent::v1::{Machine, MachineCell, MachineDirectBoot};
use tamdao_proto::v1::{DiskKind, Firmware, Graphics, OsType, Platform};
use uuid::Uuid;

use super::domain_xml::{arriving, read, vcpus_room, write};
use super::host::{Acceleration, Host};
use super::migration::Migration;
use super::xml::Element;
use super::{DiskFile, DiskFormat, DomainSpec, DomainState, PauseReason, Port, disk_serial, tap_name};

const VM: Uuid = Uuid::from_u128(0x9c1f6e1a_1111_4222_8333_000000000007);
const SCHEMA: &str = "/usr/share/libvirt/schemas/domain.rng";

fn started() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123)
}

fn platform() -> Platform {
    Platform { machine_type: "pc-q35-7.2".to_owned(), cpu_model: "Skylake-Client,-hle,-rtm".to_owned() }
}

fn disk(number: u128, shared: bool) -> DiskFile {
    let volume = Uuid::from_u128(0xd15c_0000_0000_4000_8000_0000_0000_0000 + number);
    DiskFile {
        path: Some(PathBuf::from(format!("/var/lib/tamdao/pools/a/{volume}.qcow2"))),
        format: DiskFormat::Qcow2,
        kind: DiskKind::Disk,
        boot_order: number as u32,
        shared,
        readonly: false,
        serial: disk_serial(volume),
    }
}

fn iso(path: Option<&str>) -> DiskFile {
    DiskFile {
        path: path.map(PathBuf::from),
        format: DiskFormat::Raw,
        kind: DiskKind::Cdrom,
        boot_order: 0,
        shared: false,
        readonly: true,
        serial: String::new(),
    }
}

fn port(index: usize, mtu: u32) -> Port {
    Port {
        mac: format!("52:54:00:aa:bb:{index:02x}"),
        bridge: "br-guests".to_owned(),
        mtu,
        tap: tap_name(VM, index),
    }
}

fn linux() -> DomainSpec {
    DomainSpec {
        vm: VM,
        incarnation: 3,
        generation: 12,
        machine: Machine {
            name: "web".to_owned(),
            agency: "so-y-te".to_owned(),
            vcpus: 2,
            memory_mib: 2048,
            firmware: Firmware::Bios as i32,
            os_type: OsType::Linux as i32,
            graphics: Graphics::None as i32,
            ..Machine::default()
        },
        disks: vec![disk(1, true), disk(2, false)],
        interfaces: vec![port(0, 0), port(1, 1450)],
        seed: Some(PathBuf::from("/var/lib/tamdao/seeds/web.iso")),
        kernel: None,
        initrd: None,
        serial_log: PathBuf::from("/var/lib/tamdao/serial/web.log"),
        nvram: PathBuf::from("/var/lib/tamdao/nvram/web.fd"),
    }
}

fn windows() -> DomainSpec {
    let mut spec = linux();
    spec.machine.os_type = OsType::Windows as i32;
    spec.machine.firmware = Firmware::Uefi as i32;
    spec.machine.secure_boot = true;
    spec.machine.tpm = true;
    spec.machine.graphics = Graphics::Vnc as i32;
    spec.disks.push(iso(Some("/var/lib/tamdao/images/windows.iso")));
    spec.disks.push(iso(None));
    spec
}

fn uefi() -> DomainSpec {
    let mut spec = linux();
    spec.machine.firmware = Firmware::Uefi as i32;
    spec.machine.graphics = Graphics::Vnc as i32;
    spec
}

fn direct() -> DomainSpec {
    let mut spec = linux();
    spec.machine.direct_boot = Some(MachineDirectBoot {
        command_line: "console=ttyS0 quiet panic=-1 x=\"<&'>\"".to_owned(),
        ..MachineDirectBoot::default()
    });
    spec.kernel = Some(PathBuf::from("/var/lib/tamdao/images/kernel"));
    spec.initrd = Some(PathBuf::from("/var/lib/tamdao/images/initrd"));
    spec.seed = None;
    spec
}

/// Whatever a name or a path may hold.
fn hostile() -> DomainSpec {
    let mut spec = direct();
    spec.machine.name = "</title><on_crash>preserve</on_crash>\n\u{0}'\"&amp;".to_owned();
    spec.serial_log = PathBuf::from("/tmp/a'/><hostdev/>&.log");
    spec.disks[0].path = Some(PathBuf::from("/tmp/ä ö'<b>.qcow2"));
    spec
}

fn large() -> DomainSpec {
    let mut spec = uefi();
    spec.machine.vcpus = 256;
    spec.machine.memory_mib = 4_194_304;
    spec.disks = (1..=16).map(|number| disk(number, number % 2 == 0)).collect();
    spec.interfaces = (0..8).map(|index| port(index, 9000)).collect();
    spec
}

/// On one cell, and split over two.
fn on_cells(count: u32) -> DomainSpec {
    let mut spec = linux();
    spec.machine.vcpus = 4;
    let cell = |id: u32| MachineCell { id, cpus: (id * 8..id * 8 + 8).collect() };
    spec.machine.cells = (0..count).map(cell).collect();
    spec
}

fn bare() -> DomainSpec {
    let mut spec = linux();
    spec.disks.clear();
    spec.interfaces.clear();
    spec.seed = None;
    spec
}

fn all() -> Vec<(&'static str, DomainSpec)> {
    vec![
        ("linux", linux()),
        ("windows", windows()),
        ("uefi", uefi()),
        ("direct", direct()),
        ("hostile", hostile()),
        ("large", large()),
        ("bare", bare()),
        ("one-cell", on_cells(1)),
        ("two-cells", on_cells(2)),
    ]
}

#[test]
fn documents_are_as_they_were() {
    for (name, spec) in all() {
        if name == "large" {
            continue;
        }
        for acceleration in [Acceleration::Kvm, Acceleration::Emulation] {
            let document = write(&spec, &platform(), acceleration, started());
            insta::assert_snapshot!(format!("{name}-{}", acceleration.as_str()), document);
        }
    }
}

#[test]
fn documents_are_valid_in_libvirts_schema() {
    assert!(
        std::path::Path::new(SCHEMA).exists(),
        "{SCHEMA} is missing: install libvirt-daemon-system and libxml2-utils"
    );
    let directory = tempfile::tempdir().unwrap();
    for (name, spec) in all() {
        for acceleration in [Acceleration::Kvm, Acceleration::Emulation] {
            let file = directory.path().join(format!("{name}-{}.xml", acceleration.as_str()));
            std::fs::write(&file, write(&spec, &platform(), acceleration, started())).unwrap();
            let output =
                Command::new("xmllint").args(["--noout", "--relaxng", SCHEMA]).arg(&file).output().unwrap();
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn hostile_text_changes_nothing_else() {
    let plain = Element::parse(&write(&direct(), &platform(), Acceleration::Kvm, started())).unwrap();
    let hostile = Element::parse(&write(&hostile(), &platform(), Acceleration::Kvm, started())).unwrap();
    fn shape(element: &Element) -> String {
        let children: Vec<String> = element.children.iter().map(shape).collect();
        let attributes: Vec<&str> = element.attributes.iter().map(|(name, _)| name.as_str()).collect();
        format!("{}{attributes:?}({})", element.name, children.join(","))
    }
    assert_eq!(shape(&plain), shape(&hostile));
    assert_eq!(hostile.find("on_crash").unwrap().text, "destroy");
}

#[test]
fn what_must_always_hold() {
    for (name, spec) in all() {
        for acceleration in [Acceleration::Kvm, Acceleration::Emulation] {
            let document = write(&spec, &platform(), acceleration, started());
            assert!(!document.contains("locking"), "{name}");
            assert!(!document.contains("shareable"), "{name}");
            let domain = Element::parse(&document).unwrap();
            assert_eq!(domain.find("on_crash").unwrap().text, "destroy", "{name}");
            let ports = domain
                .all("devices/controller")
                .iter()
                .filter(|controller| controller.attribute("model") == Some("pcie-root-port"))
                .count();
            assert!(ports >= 16 && ports >= spec.disks.len() + spec.interfaces.len() + 8, "{name}");
            for disk in domain.all("devices/disk") {
                let source = disk.find("source").and_then(|source| source.attribute("file"));
                let shared = spec
                    .disks
                    .iter()
                    .any(|file| file.shared && file.path.as_deref().and_then(|path| path.to_str()) == source);
                let cache = disk.find("driver").unwrap().attribute("cache");
                assert_eq!(shared, cache == Some("none"), "{name}: {source:?}");
            }
            for target in domain.all("devices/interface/target") {
                assert_eq!(target.attribute("dev").unwrap().len(), 15, "{name}");
            }
        }
    }
}

#[test]
fn what_was_written_is_read_back() {
    let document = write(&linux(), &platform(), Acceleration::Emulation, started())
        .replace("<memory unit='MiB'>2048<", "<memory unit='KiB'>2097152<");
    let domain = read(&document, DomainState::Paused(PauseReason::OnDemand)).unwrap().unwrap();
    assert_eq!(domain.vm, VM);
    assert_eq!((domain.incarnation, domain.generation), (3, 12));
    assert_eq!((domain.vcpus, domain.memory_mib), (2, 2048));
    assert_eq!(domain.platform, platform());
    assert_eq!(domain.started, started());
    assert_eq!(domain.state, DomainState::Paused(PauseReason::NotYetRun));
    assert!(!domain.guest_agent_connected);
}

#[test]
fn a_domain_is_ours_only_by_name_uuid_and_mark() {
    let document = write(&linux(), &platform(), Acceleration::Emulation, started())
        .replace("<memory unit='MiB'>2048<", "<memory unit='KiB'>2097152<");
    let ours = |document: &str| read(document, DomainState::Running).unwrap().is_some();
    assert!(ours(&document));
    let other = Uuid::from_u128(1).to_string();
    assert!(!ours(&document.replace(&format!("tamdao-{VM}"), "web")));
    assert!(!ours(&document.replace(&format!("<uuid>{VM}"), &format!("<uuid>{other}"))));
    assert!(!ours(&document.replace("urn:tamdao:domain:1", "urn:other")));
    assert!(!ours(&document.replace("tamdao:domain", "other:domain")));
    assert!(read("<domain>", DomainState::Running).is_err());
}

#[test]
fn platforms_are_resolved_once() {
    let capabilities = include_str!("testdata/capabilities.xml");
    let emulated = Host::read(
        capabilities,
        include_str!("testdata/domain-capabilities-qemu.xml"),
        Acceleration::Emulation,
    )
    .unwrap();
    assert_eq!(
        emulated.platform,
        Platform { machine_type: "pc-q35-7.2".to_owned(), cpu_model: "Westmere".to_owned() }
    );
    assert_eq!(emulated.resolve(Some(&platform())), platform());
    let half = Platform { machine_type: "pc-q35-6.2".to_owned(), cpu_model: String::new() };
    assert_eq!(emulated.resolve(Some(&half)).machine_type, "pc-q35-6.2");
    assert_eq!(emulated.resolve(Some(&half)).cpu_model, "Westmere");
    let kvm =
        Host::read(capabilities, include_str!("testdata/domain-capabilities-kvm.xml"), Acceleration::Kvm)
            .unwrap();
    assert_eq!(kvm.platform.cpu_model, "kvm64,-pni");
    let inventory = emulated.inventory();
    assert_eq!(inventory.firmware, ["bios", "uefi", "uefi-secure"]);
    assert_eq!(inventory.machine_types.last().map(String::as_str), Some("pc-q35-7.2"));
    assert_eq!(inventory.numa_cells.len(), 1);
    assert!(!inventory.tpm);
    assert!(inventory.cpu_models.contains(&"Westmere".to_owned()));
    assert!(kvm.inventory().cpu_models.contains(&kvm.platform.cpu_model));
}

#[test]
fn there_is_room_to_grow() {
    assert_eq!([1, 2, 16, 17, 64, 65, 256].map(vcpus_room), [4, 8, 64, 64, 64, 65, 256]);
}

#[test]
fn an_arrival_has_its_own_mark_and_every_file_by_its_name_there() {
    let spec = linux();
    let document = write(&spec, &platform(), Acceleration::Emulation, started());
    let domain = read(&document, DomainState::Running).unwrap().unwrap();
    let there = |path: &PathBuf| PathBuf::from(path.to_string_lossy().replace("/var/lib", "/srv"));
    let disks = spec.disks.iter().filter_map(|disk| disk.path.clone());
    let paths: Vec<PathBuf> = disks.chain(spec.seed.clone()).chain([spec.serial_log.clone()]).collect();
    let migration = Migration {
        destination: String::new(),
        memory_socket: PathBuf::new(),
        disks_socket: PathBuf::new(),
        incarnation_to: 4,
        files: paths.iter().map(|path| (path.clone(), there(path))).collect(),
        copies: vec![spec.disks[1].path.clone().unwrap()],
        auto_converge: true,
    };
    let arrival = arriving(&document, &domain, &migration).unwrap();
    assert_eq!(arrival.copies, ["vdb"], "only the local disk is copied");
    assert!(!arrival.document.contains("/var/lib"), "{}", arrival.document);
    assert!(arrival.emulated, "so that it stands still while its memory is copied");
    let accelerated = write(&spec, &platform(), Acceleration::Kvm, started());
    assert!(!arriving(&accelerated, &domain, &migration).unwrap().emulated);
    let arrived = read(&arrival.document, DomainState::Paused(PauseReason::OnDemand)).unwrap().unwrap();
    assert_eq!((arrived.incarnation, arrived.generation), (4, 12));
    assert_eq!(arrived.state, DomainState::Paused(PauseReason::NotYetRun));
    assert_eq!((arrived.platform, arrived.started), (domain.platform.clone(), domain.started));

    let mut less = migration.clone();
    less.files.remove(&paths[0]);
    let error = arriving(&document, &domain, &less).err().unwrap().to_string();
    assert!(error.contains("name on the target"), "{error}");
}
