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
    DiskFile, DiskFormat, DomainSpec, Hypervisor, Port, disk_serial, domain_name, tap_name,
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

#[tokio::test(flavor = "multi_thread")]
async fn libvirt_passes_the_contract() {
    let real = Real::new(Testbed::up("hvtest", "td-hvtest", 79)).await;
    for (name, case) in cases() {
        let began = std::time::Instant::now();
        println!("case {name}");
        case(&real).await;
        println!("     {:.1} s", began.elapsed().as_secs_f64());
    }
}
