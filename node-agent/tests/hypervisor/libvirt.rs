//! Real libvirt and real QEMU pass the contract: two hosts of the testbed (deploy/testbed), the tiny guest
//! (deploy/images/tiny), emulation, a directory that both hosts share.
//!
//! Invariant: what a run makes carries its own testbed prefix and is removed at its end, and what a crashed run
//! left is removed before the next. Deliberately absent: skipping; what is missing is installed, or it fails.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use tamdao_node_agent::hypervisor::contract::{Fixture, Guest, cases};
use tamdao_node_agent::hypervisor::libvirt::{AccelerationChoice, Libvirt, LibvirtConfig};
use tamdao_node_agent::hypervisor::{
    DiskFile, DiskFormat, DomainEvent, DomainSpec, Hypervisor, Port, disk_serial, domain_name, tap_name,
};
use tamdao_proto::agent::v1::{Machine, MachineDirectBoot};
use tamdao_proto::v1::{DiskKind, Firmware, Graphics, OsType};
use uuid::Uuid;

/// The least that the tiny guest is sure to boot in, MiB.
const MEMORY_MIB: u32 = 128;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().expect("the deploy directory")
}

fn try_run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()))
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}{}",
        program.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Two hosts and what they share.
struct Testbed {
    prefix: &'static str,
    directory: PathBuf,
    bridge: &'static str,
}

impl Testbed {
    fn up(prefix: &'static str, bridge: &'static str, network: u8) -> Testbed {
        let needed = ["virsh", "libvirtd", "qemu-system-x86_64", "qemu-img", "xmllint", "busybox", "nsenter"];
        if needed
            .iter()
            .any(|tool| Command::new("which").arg(tool).output().is_ok_and(|o| !o.status.success()))
        {
            run(&deploy().join("install-packages"), &[]);
        }
        // Not the build's directory: QEMU's socket paths must stay short.
        let directory = PathBuf::from(format!("/var/tmp/tamdao-test-{prefix}"));
        let testbed = Testbed { prefix, directory, bridge };
        testbed.down();
        std::fs::create_dir_all(testbed.shared()).expect("the shared directory");
        testbed.network(&["up", "--bridge", bridge, "--address", &format!("10.{network}.0.1/24")]);
        for number in [1, 2] {
            testbed.boot(number, network);
        }
        testbed
    }

    fn boot(&self, number: u8, network: u8) {
        let (name, address) = (format!("n{number}"), format!("10.{network}.0.1{number}/24"));
        let uuid = format!("7a6d0000-0000-4000-8000-00000000{network:03}{number}");
        self.node(&["up", &name, "--bridge", self.bridge, "--address", &address, "--uuid", &uuid]);
    }

    fn shared(&self) -> PathBuf {
        self.directory.join("shared")
    }

    fn node(&self, arguments: &[&str]) -> String {
        let directory = self.directory.display().to_string();
        let (command, rest) = arguments.split_at(2);
        let options = ["--prefix", self.prefix, "--dir", &directory];
        run(&deploy().join("testbed/node"), &[command, &options, rest].concat())
    }

    fn inside(&self, node: &str, script: &str) -> Output {
        let directory = self.directory.display().to_string();
        let options = ["--prefix", self.prefix, "--dir", &directory];
        let command = ["--", "bash", "-c", script];
        try_run(&deploy().join("testbed/node"), &[&["exec", node][..], &options, &command].concat())
    }

    fn network(&self, arguments: &[&str]) {
        let directory = self.directory.display().to_string();
        let (command, rest) = arguments.split_at(1);
        let options = ["--prefix", self.prefix, "--dir", &directory];
        run(&deploy().join("testbed/network"), &[command, &options, rest].concat());
    }

    fn down(&self) {
        self.network(&["down", "--purge"]);
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                panic!("{}: {error}", self.directory.display())
            }
            _ => {}
        }
    }

    async fn libvirt(&self, node: &str) -> Libvirt {
        let home = self.directory.join(node);
        Libvirt::open(LibvirtConfig {
            uri: format!("qemu:///system?socket={}", home.join("run/libvirt/libvirt-sock").display()),
            acceleration: AccelerationChoice::Emulation,
            log_directory: home.join("log/libvirt/qemu"),
            ..LibvirtConfig::default()
        })
        .await
        .expect("open libvirt")
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.down();
    }
}

struct Real {
    // Closed before the testbed goes away.
    here: Libvirt,
    there: Libvirt,
    image: PathBuf,
    command_line: String,
    specs: AtomicU32,
    testbed: Testbed,
}

impl Real {
    async fn new(testbed: Testbed) -> Real {
        let image = PathBuf::from(run(&deploy().join("images/tiny"), &[]));
        let command_line = std::fs::read_to_string(image.join("cmdline")).expect("the command line");
        Real {
            here: testbed.libvirt("n1").await,
            there: testbed.libvirt("n2").await,
            image,
            command_line: command_line.trim().to_owned(),
            specs: AtomicU32::new(0),
            testbed,
        }
    }

    fn empty_disk(&self, path: &Path, format: &str) {
        let path = path.to_str().expect("a path of ours");
        run(Path::new("qemu-img"), &["create", "-q", "-f", format, path, "8M"]);
    }
}

#[async_trait]
impl Fixture for Real {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.here
    }

    fn other(&self) -> &dyn Hypervisor {
        &self.there
    }

    fn route(&self) -> (String, PathBuf) {
        let socket = self.testbed.directory.join("n2/run/libvirt/libvirt-sock");
        (format!("qemu+unix:///system?socket={}", socket.display()), self.testbed.shared())
    }

    async fn spec(&self, guest: Guest) -> DomainSpec {
        let vm = Uuid::new_v4();
        let number = self.specs.fetch_add(1, Ordering::Relaxed);
        let shared = self.testbed.shared();
        let (path, format, is_shared) = if guest == Guest::OnFullPool {
            // A file system of 64 KiB on which a file of 8 MiB has no room.
            let mounted = self.testbed.inside(
                "n1",
                "set -e; cd /var/lib/libvirt; mkdir -p full; mount -t tmpfs -o size=64k full full; \
                 truncate -s 8M full/disk.raw; ! cat /dev/zero 2>/dev/null >full/fill",
            );
            assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
            (PathBuf::from("/var/lib/libvirt/full/disk.raw"), DiskFormat::Raw, false)
        } else {
            let path = shared.join(format!("{vm}.qcow2"));
            self.empty_disk(&path, "qcow2");
            (path, DiskFormat::Qcow2, true)
        };
        let command_line = match guest {
            Guest::ShortLived => format!("{} tamdao.poweroff_after=1", self.command_line),
            _ => self.command_line.clone(),
        };
        // A machine that finds nothing to boot does not look at its power button.
        let boots = guest != Guest::Stubborn;
        DomainSpec {
            vm,
            incarnation: 1,
            generation: 1,
            machine: Machine {
                name: format!("guest {number} <&>"),
                agency: "test".to_owned(),
                vcpus: 1,
                memory_mib: MEMORY_MIB,
                firmware: Firmware::Bios as i32,
                os_type: OsType::Linux as i32,
                graphics: Graphics::None as i32,
                direct_boot: boots
                    .then(|| MachineDirectBoot { command_line, ..MachineDirectBoot::default() }),
                ..Machine::default()
            },
            disks: vec![DiskFile {
                path: Some(path),
                format,
                kind: DiskKind::Disk,
                boot_order: 1,
                shared: is_shared,
                readonly: false,
                serial: disk_serial(vm),
            }],
            interfaces: vec![Port {
                mac: format!("52:54:00:00:01:{:02x}", number & 0xff),
                bridge: "br-guests".to_owned(),
                mtu: 1400,
                tap: tap_name(vm, 0),
            }],
            seed: None,
            kernel: Some(self.image.join("kernel")),
            initrd: Some(self.image.join("initrd")),
            // One that each node has for itself.
            serial_log: PathBuf::from(format!("/var/lib/libvirt/{vm}.serial")),
            nvram: PathBuf::from(format!("/var/lib/libvirt/{vm}.fd")),
        }
    }

    async fn lose_disk(&self, spec: &DomainSpec) {
        let path = spec.disks[0].path.as_ref().expect("a disk of ours has a file");
        std::fs::remove_file(path).expect("the file can be removed");
    }

    async fn let_power_off(&self, _vm: Uuid) {}

    async fn make_room(&self) {
        let done = self.testbed.inside("n1", "mount -o remount,size=16m /var/lib/libvirt/full");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    async fn kill_qemu(&self, vm: Uuid) {
        let file = format!("/run/libvirt/qemu/{}.pid", domain_name(vm));
        let done = self.testbed.inside("n1", &format!("kill -KILL $(cat {file})"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    async fn stop_libvirt(&self) {
        let done = self.testbed.inside("n1", "kill $(cat /run/libvirtd.pid)");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    async fn start_libvirt(&self) {
        self.testbed.node(&["restart-libvirtd", "n1"]);
    }

    async fn start_foreign(&self) -> String {
        let vm = Uuid::new_v4();
        let name = domain_name(vm);
        let document = format!(
            "<domain type=\"qemu\"><name>{name}</name><uuid>{vm}</uuid><memory unit=\"MiB\">16</memory>\
             <os><type machine=\"q35\">hvm</type></os></domain>"
        );
        let script = format!("virsh -q create --paused <(printf %s '{document}')");
        let done = self.testbed.inside("n1", &script);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        name
    }

    async fn foreign_runs(&self, name: &str) -> bool {
        self.testbed.inside("n1", &format!("virsh -q domid {name}")).status.success()
    }

    async fn stop_foreign(&self, name: &str) {
        assert!(self.testbed.inside("n1", &format!("virsh -q destroy {name}")).status.success());
    }
}

/// Starts the machine as far as its first instruction, and ends it.
async fn try_start(hypervisor: &Libvirt, what: &str, spec: &DomainSpec) {
    let domain = hypervisor.start(spec).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(domain.vcpus, spec.machine.vcpus, "{what}");
    assert_eq!(domain.memory_mib, spec.machine.memory_mib, "{what}");
    hypervisor.resume(spec.vm, spec.incarnation).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    hypervisor.destroy(spec.vm, spec.incarnation).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_every_kind_start() {
    let real = Real::new(Testbed::up("hvkinds", "td-hvkinds", 80)).await;
    let inventory = real.here.inventory().await.expect("inventory");
    assert_eq!(inventory.hostname, "n1");
    assert_eq!((inventory.libvirt_version.split('.').count(), inventory.acceleration.as_str()), (3, "qemu"));

    let mut spec = real.spec(Guest::Stubborn).await;
    spec.machine.firmware = Firmware::Uefi as i32;
    spec.machine.graphics = Graphics::Vnc as i32;
    try_start(&real.here, "uefi with a screen", &spec).await;
    // The variables that the first start made are kept and used.
    assert!(
        real.testbed.directory.join("n1/lib/libvirt").join(spec.nvram.file_name().expect("a name")).exists()
    );
    try_start(&real.here, "uefi again", &spec).await;

    let mut spec = real.spec(Guest::Stubborn).await;
    spec.machine.firmware = Firmware::Uefi as i32;
    spec.machine.secure_boot = true;
    spec.machine.os_type = OsType::Windows as i32;
    spec.machine.graphics = Graphics::Vnc as i32;
    let cdrom = |path: Option<PathBuf>| DiskFile {
        path,
        format: DiskFormat::Raw,
        kind: DiskKind::Cdrom,
        boot_order: 0,
        shared: false,
        readonly: true,
        serial: String::new(),
    };
    let iso = real.testbed.shared().join("some.iso");
    std::fs::write(&iso, [0u8; 4096]).expect("an image");
    spec.disks.push(cdrom(Some(iso.clone())));
    spec.disks.push(cdrom(None));
    spec.seed = Some(iso.clone());
    try_start(&real.here, "windows with secure boot", &spec).await;

    let mut spec = real.spec(Guest::Obedient).await;
    let template = spec.disks[0].clone();
    for number in 1..16 {
        let path = real.testbed.shared().join(format!("{}-{number}.qcow2", spec.vm));
        real.empty_disk(&path, "qcow2");
        let serial = disk_serial(Uuid::new_v4());
        spec.disks.push(DiskFile { path: Some(path), serial, boot_order: 0, ..template.clone() });
    }
    for index in 1..8 {
        let mac = format!("52:54:00:00:02:{index:02x}");
        let port = Port { mac, tap: tap_name(spec.vm, index), ..spec.interfaces[0].clone() };
        spec.interfaces.push(port);
    }
    spec.seed = Some(iso);
    spec.machine.vcpus = 8;
    try_start(&real.here, "all that a machine may have", &spec).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_reasons() {
    let real = Real::new(Testbed::up("hvrefuse", "td-hvrefuse", 81)).await;
    let reason = async |what: &str, spec: &DomainSpec| {
        let error = real.here.start(spec).await.err().unwrap_or_else(|| panic!("{what}: it started"));
        println!("{what}: {error:?}");
        assert!(real.here.observe().await.expect("observe").ours.is_empty(), "{what}");
        (error.reason(), error.is_permanent())
    };
    let fresh = || real.spec(Guest::Obedient);

    let mut spec = fresh().await;
    spec.interfaces[0].bridge = "br-none".to_owned();
    assert_eq!(reason("no bridge", &spec).await, ("BridgeMissing", false));

    let mut spec = fresh().await;
    spec.kernel = Some(PathBuf::from("/nowhere/kernel"));
    assert_eq!(reason("no kernel", &spec).await, ("FileMissing", false));

    let spec = fresh().await;
    let path = spec.disks[0].path.as_ref().expect("a disk of ours has a file");
    std::fs::write(path, b"this is no qcow2").expect("a broken image");
    assert_eq!(reason("a broken image", &spec).await, ("ImageDamaged", true));

    let mut spec = fresh().await;
    spec.machine.memory_mib = 4_194_304;
    assert_eq!(reason("too much memory", &spec).await, ("NotEnoughMemory", false));

    let mut spec = fresh().await;
    spec.interfaces[0].mac = "52:54:00".to_owned();
    assert_eq!(reason("no mac", &spec).await, ("InvalidMachine", true));

    let mut spec = fresh().await;
    spec.machine.platform = Some(tamdao_proto::v1::Platform {
        machine_type: "pc-q35-99.9".to_owned(),
        cpu_model: "qemu64".to_owned(),
    });
    assert!(reason("a machine type of the future", &spec).await.1);

    let mut spec = fresh().await;
    spec.machine.platform = Some(tamdao_proto::v1::Platform {
        machine_type: "pc-q35-7.2".to_owned(),
        cpu_model: "Unheard-Of".to_owned(),
    });
    assert!(reason("an unknown cpu", &spec).await.1);

    let mut spec = fresh().await;
    spec.machine.tpm = true;
    if !real.here.inventory().await.expect("inventory").tpm {
        reason("no swtpm", &spec).await;
    }

    let spec = fresh().await;
    let name = domain_name(spec.vm);
    let foreign = format!(
        "<domain type=\"qemu\"><name>{name}</name><memory unit=\"MiB\">16</memory>\
         <os><type machine=\"q35\">hvm</type></os></domain>"
    );
    let made = real.testbed.inside("n1", &format!("virsh -q create --paused <(printf %s '{foreign}')"));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(reason("a foreign domain has the name", &spec).await, ("NameTaken", false));
    real.stop_foreign(&name).await;

    let spec = fresh().await;
    let raised = real.testbed.inside("n1", &format!("ip tuntap add {} mode tap", spec.interfaces[0].tap));
    assert!(raised.status.success());
    assert_eq!(reason("the tap exists", &spec).await, ("TapTaken", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_passes_the_contract() {
    let real = Real::new(Testbed::up("hvtest", "td-hvtest", 79)).await;
    // To look at one case alone: TAMDAO_CASE=a_console_has_one_holder.
    let only = std::env::var("TAMDAO_CASE").ok();
    for (name, case) in cases() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let began = std::time::Instant::now();
        println!("case {name}");
        case(&real).await;
        println!("     {:.1} s", began.elapsed().as_secs_f64());
    }
}

/// A libvirtd that answers no more is taken as gone, and found again when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_libvirtd_is_survived() {
    let real = Real::new(Testbed::up("hvfrozen", "td-hvfrozen", 82)).await;
    let signal = |name: &str| {
        let done = real.testbed.inside("n1", &format!("kill -{name} $(cat /run/libvirtd.pid)"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let spec = real.spec(Guest::Stubborn).await;
    real.here.start(&spec).await.expect("start");
    let mut events = real.here.events();
    signal("STOP");
    let away = real.here.observe().await.expect_err("it cannot answer");
    assert_eq!(away.reason(), "HypervisorAway", "{away:?}");
    assert_eq!(events.recv().await.expect("an event"), DomainEvent::ConnectionLost);
    let away = real.here.pause(spec.vm, 1).await.expect_err("it cannot answer");
    assert_eq!(away.reason(), "HypervisorAway", "{away:?}");
    signal("CONT");
    assert_eq!(events.recv().await.expect("an event"), DomainEvent::ConnectionUp);
    assert_eq!(real.here.observe().await.expect("observe").ours.len(), 1);
    real.here.destroy(spec.vm, 1).await.expect("destroy");
}
