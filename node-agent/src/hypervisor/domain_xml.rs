//! Domains as libvirt writes them: from a [`DomainSpec`] to XML, and from a running domain's XML to a [`Domain`].
//!
//! Invariants: equal input gives equal XML; what is ours says so in its metadata; image locks are never switched
//! off; nothing starts by itself. Deliberately absent: talking to libvirt, and choosing a platform (`host`).

use std::path::Path;
use std::time::{Duration, SystemTime};

use tamdao_proto::agent::v1::Machine;
use tamdao_proto::v1::{DiskKind, Firmware, Graphics, OsType, Platform};
use uuid::Uuid;

use super::host::Acceleration;
use super::migration::Migration;
use super::xml::{Element, XmlError, element};
use super::{
    DiskFile, DiskFormat, Domain, DomainSpec, DomainState, PauseReason, Port, domain_name, vm_of_domain_name,
};

/// The namespace of our metadata.
pub const NAMESPACE: &str = "urn:tamdao:domain:1";

/// The prefix of our metadata, which libvirt calls its key.
pub const PREFIX: &str = "tamdao";

/// The cache of translated code of an emulated guest. QEMU's own default grows to 1 GiB a guest; with this one a
/// guest of 512 MiB boots as fast and takes 200 MiB on top of its memory instead of 600.
const EMULATION_CACHE_MIB: u32 = 128;

/// PCIe slots kept free for devices that come later; q35 cannot add a slot to a running machine.
const SPARE_PCIE_PORTS: usize = 8;
const LEAST_PCIE_PORTS: usize = 16;

/// Where a CPU's interrupts need an interrupt remapper.
const LARGE_MACHINE_VCPUS: u32 = 256;

/// How many virtual CPUs a machine may grow to while it runs: four times what it starts with, 64 at most. The
/// guest reserves a little memory for each, so the room is not larger.
pub fn vcpus_room(vcpus: u32) -> u32 {
    vcpus.saturating_mul(4).min(64).max(vcpus)
}

/// The document that creates the domain.
pub fn write(
    spec: &DomainSpec,
    platform: &Platform,
    acceleration: Acceleration,
    started: SystemTime,
) -> String {
    let machine = &spec.machine;
    let windows = machine.os_type() == OsType::Windows;
    let title: String = format!("{}/{}", machine.agency, machine.name);
    element("domain")
        .with("type", acceleration.as_str())
        .child(element("name").text(domain_name(spec.vm)))
        .child(element("uuid").text(spec.vm))
        // libvirt refuses a title of more than one line.
        .child(element("title").text(title.replace(['\n', '\r'], " ")))
        .child(metadata(mark(spec.incarnation, spec.generation, platform, started, false)))
        .child(element("memory").with("unit", "MiB").text(machine.memory_mib))
        .child(element("currentMemory").with("unit", "MiB").text(machine.memory_mib))
        .child(
            element("vcpu")
                .with("placement", "static")
                .with("current", machine.vcpus)
                .text(most_vcpus(machine)),
        )
        .children(on_cells(machine))
        .child(os(spec, platform))
        .child(features(machine, acceleration))
        .child(cpu(machine, platform, acceleration))
        .child(clock(windows, acceleration))
        .child(element("on_poweroff").text("destroy"))
        .child(element("on_reboot").text("restart"))
        .child(element("on_crash").text("destroy"))
        .child(
            element("pm")
                .child(element("suspend-to-mem").with("enabled", "no"))
                .child(element("suspend-to-disk").with("enabled", "no")),
        )
        .child(devices(spec))
        .print()
}

/// Our mark as libvirt takes it for a running domain: it adds the namespace by itself. The mark also keeps what
/// libvirt does not: when the domain was created, whether it was ever resumed, and the platform as it was asked
/// for (libvirt rewrites the CPU of a running domain).
pub fn mark(
    incarnation: u64,
    generation: u64,
    platform: &Platform,
    started: SystemTime,
    has_run: bool,
) -> Element {
    let started_ms =
        started.duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_millis()).unwrap_or_default();
    element("domain")
        .with("incarnation", incarnation)
        .with("generation", generation)
        .with("machine_type", &platform.machine_type)
        .with("cpu_model", &platform.cpu_model)
        .with("started_ms", started_ms)
        .with("has_run", has_run)
}

/// Our mark within a domain's document.
fn metadata(mark: Element) -> Element {
    let mark = mark.with(&format!("xmlns:{PREFIX}"), NAMESPACE);
    element("metadata").child(Element { name: format!("{PREFIX}:domain"), ..mark })
}

fn os(spec: &DomainSpec, platform: &Platform) -> Element {
    let machine = &spec.machine;
    let mut os = element("os");
    let uefi = machine.firmware() == Firmware::Uefi;
    if uefi {
        os = os.with("firmware", "efi");
    }
    os = os.child(element("type").with("arch", "x86_64").with("machine", &platform.machine_type).text("hvm"));
    if uefi {
        let enabled = if machine.secure_boot { "yes" } else { "no" };
        let feature = |name| element("feature").with("enabled", enabled).with("name", name);
        os = os
            .child(element("firmware").child(feature("enrolled-keys")).child(feature("secure-boot")))
            .child(element("nvram").text(path_text(&spec.nvram)));
    }
    if let (Some(direct), Some(kernel)) = (&machine.direct_boot, &spec.kernel) {
        os = os.child(element("kernel").text(path_text(kernel)));
        if let Some(initrd) = &spec.initrd {
            os = os.child(element("initrd").text(path_text(initrd)));
        }
        os = os.child(element("cmdline").text(&direct.command_line));
    }
    os
}

fn features(machine: &Machine, acceleration: Acceleration) -> Element {
    let on = |name| element(name).with("state", "on");
    let mut features = element("features").child(element("acpi")).child(element("apic"));
    // QEMU offers the enlightenments only under KVM.
    if machine.os_type() == OsType::Windows && acceleration == Acceleration::Kvm {
        features = features.child(
            element("hyperv")
                .with("mode", "custom")
                .children([on("relaxed"), on("vapic"), on("spinlocks").with("retries", 8191)])
                .children([on("vpindex"), on("runtime"), on("synic")])
                .children([on("stimer"), on("frequencies"), on("tlbflush"), on("ipi")]),
        );
    }
    features = features.child(element("vmport").with("state", "off"));
    if machine.secure_boot {
        features = features.child(on("smm"));
    }
    if machine.vcpus >= LARGE_MACHINE_VCPUS {
        features = features.child(element("ioapic").with("driver", "qemu"));
    }
    if acceleration == Acceleration::Emulation {
        features = features
            .child(element("tcg").child(element("tb-cache").with("unit", "MiB").text(EMULATION_CACHE_MIB)));
    }
    features
}

/// A platform's CPU is a model and the features that it lacks on the hosts where it was resolved, such as
/// `Skylake-Client,-hle,-rtm`.
fn cpu(machine: &Machine, platform: &Platform, acceleration: Acceleration) -> Element {
    let mut words = platform.cpu_model.split(',');
    let model = words.next().unwrap_or_default();
    // Emulation ignores what it cannot do; real CPUs must have what the model says.
    let check = match acceleration {
        Acceleration::Kvm => "partial",
        Acceleration::Emulation => "none",
    };
    // One socket, because some systems are licensed for so many sockets and see no more.
    let topology = element("topology")
        .with("sockets", 1)
        .with("dies", 1)
        .with("cores", most_vcpus(machine))
        .with("threads", 1);
    let cells = Some(machine.cells.len()).filter(|count| *count > 1).map(|count| guest_cells(machine, count));
    element("cpu")
        .with("mode", "custom")
        .with("match", "exact")
        .with("check", check)
        .child(element("model").with("fallback", "forbid").text(model))
        .child(topology)
        .children(
            words
                .filter_map(|word| word.strip_prefix('-'))
                .map(|name| element("feature").with("policy", "disable").with("name", name)),
        )
        .children(cells)
}

/// How many virtual CPUs the machine may grow to. One that lies on cells keeps its size.
fn most_vcpus(machine: &Machine) -> u32 {
    if machine.cells.is_empty() { vcpus_room(machine.vcpus) } else { machine.vcpus }
}

/// The virtual CPUs of each of so many equal parts of the machine.
fn parts(machine: &Machine, count: usize) -> impl Iterator<Item = std::ops::Range<u32>> {
    let each = machine.vcpus / u32::try_from(count).unwrap_or(u32::MAX).max(1);
    (0..).take(count).map(move |at| at * each..(at + 1) * each)
}

/// Each virtual CPU on its cell's processors, and the memory from the cells or not at all.
fn on_cells(machine: &Machine) -> Vec<Element> {
    if machine.cells.is_empty() {
        return Vec::new();
    }
    let list = |numbers: &[u32]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (mut tune, mut memory) = (element("cputune"), element("numatune"));
    for (cell, vcpus) in machine.cells.iter().zip(parts(machine, machine.cells.len())) {
        tune = tune
            .children(vcpus.map(|at| element("vcpupin").with("vcpu", at).with("cpuset", list(&cell.cpus))));
    }
    let cells: Vec<u32> = machine.cells.iter().map(|cell| cell.id).collect();
    memory = memory.child(element("memory").with("mode", "strict").with("nodeset", list(&cells)));
    if cells.len() > 1 {
        memory = memory.children((0..).zip(&cells).map(|(at, cell): (u32, _)| {
            element("memnode").with("cellid", at).with("mode", "strict").with("nodeset", cell)
        }));
    }
    vec![tune, memory]
}

/// What the guest sees of its cells.
fn guest_cells(machine: &Machine, count: usize) -> Element {
    let memory = machine.memory_mib / u32::try_from(count).unwrap_or(u32::MAX).max(1);
    let cell = |(at, vcpus): (u32, std::ops::Range<u32>)| {
        let cpus = format!("{}-{}", vcpus.start, vcpus.end.saturating_sub(1));
        element("cell").with("id", at).with("cpus", cpus).with("memory", memory).with("unit", "MiB")
    };
    element("numa").children((0..).zip(parts(machine, count)).map(cell))
}

fn clock(windows: bool, acceleration: Acceleration) -> Element {
    let timer = |name: &str| element("timer").with("name", name);
    let mut clock = element("clock").with("offset", if windows { "localtime" } else { "utc" });
    if acceleration == Acceleration::Kvm {
        clock = clock
            .child(timer("rtc").with("tickpolicy", "catchup"))
            .child(timer("pit").with("tickpolicy", "delay"))
            .child(timer("hpet").with("present", "no"));
        if windows {
            clock = clock.child(timer("hypervclock").with("present", "yes"));
        }
    }
    clock
}

fn devices(spec: &DomainSpec) -> Element {
    let machine = &spec.machine;
    let windows = machine.os_type() == OsType::Windows;
    let disks = disks(spec, windows);
    let screen = machine.graphics() == Graphics::Vnc;
    let ports = (disks.len() + spec.interfaces.len() + SPARE_PCIE_PORTS).max(LEAST_PCIE_PORTS);
    let mut devices = element("devices")
        .child(element("controller").with("type", "pci").with("model", "pcie-root"))
        .children(
            (0..ports).map(|_| element("controller").with("type", "pci").with("model", "pcie-root-port")),
        )
        .child(
            element("controller")
                .with("type", "usb")
                .with("model", if screen { "qemu-xhci" } else { "none" }),
        )
        .child(element("controller").with("type", "virtio-serial").with("index", 0))
        .children(disks)
        .children(spec.interfaces.iter().map(interface))
        .child(serial(&spec.serial_log))
        .child(
            element("channel")
                .with("type", "unix")
                .child(element("target").with("type", "virtio").with("name", "org.qemu.guest_agent.0")),
        );
    if screen {
        // A socket of the file system: no port to run out of, and no other user of the host can reach it.
        devices = devices
            .child(element("input").with("type", "tablet").with("bus", "usb"))
            .child(element("graphics").with("type", "vnc").child(element("listen").with("type", "socket")))
            .child(
                element("video").child(element("model").with("type", if windows { "vga" } else { "virtio" })),
            );
    }
    if machine.tpm {
        // A transient domain's TPM would forget its keys at each stop.
        devices = devices.child(
            element("tpm").with("model", "tpm-crb").child(
                element("backend")
                    .with("type", "emulator")
                    .with("version", "2.0")
                    .with("persistent_state", "yes"),
            ),
        );
    }
    if machine.vcpus >= LARGE_MACHINE_VCPUS {
        devices = devices.child(
            element("iommu")
                .with("model", "intel")
                .child(element("driver").with("intremap", "on").with("eim", "on")),
        );
    }
    devices
        .child(element("memballoon").with("model", "virtio").child(element("stats").with("period", 10)))
        .child(
            element("rng")
                .with("model", "virtio")
                .child(element("backend").with("model", "random").text("/dev/urandom")),
        )
        .child(element("panic").with("model", "isa"))
}

/// Disks are virtio and cdroms SATA, as installers expect. The seed is a virtio disk for Linux, because cloud
/// kernels come without a driver for SATA, and a cdrom for Windows, which comes without one for virtio.
fn disks(spec: &DomainSpec, windows: bool) -> Vec<Element> {
    let seed = spec.seed.as_ref().map(|path| DiskFile {
        path: Some(path.clone()),
        format: DiskFormat::Raw,
        kind: if windows { DiskKind::Cdrom } else { DiskKind::Disk },
        boot_order: 0,
        shared: false,
        readonly: true,
        serial: "seed".to_owned(),
    });
    let (mut virtio, mut sata) = (0, 0);
    spec.disks
        .iter()
        .chain(&seed)
        .map(|file| {
            let (bus, index) = match file.kind {
                DiskKind::Cdrom => ("sata", &mut sata),
                DiskKind::Disk | DiskKind::Unspecified => ("virtio", &mut virtio),
            };
            let target = format!("{}{}", if bus == "sata" { "sd" } else { "vd" }, letters(*index));
            *index += 1;
            disk(file, bus, &target)
        })
        .collect()
}

fn disk(file: &DiskFile, bus: &str, target: &str) -> Element {
    let cdrom = file.kind == DiskKind::Cdrom;
    let format = match file.format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    };
    let mut driver = element("driver").with("name", "qemu").with("type", format);
    if !cdrom && !file.readonly {
        // A shared disk must never be in one host's page cache only. On local disks the page cache lets all
        // guests of one image read it once, and a guest's flush still reaches the disk. A guest whose disk fails
        // or whose pool is full stops, and goes on when that has passed.
        driver = driver
            .with("cache", if file.shared { "none" } else { "writeback" })
            .with("error_policy", "stop")
            .with("rerror_policy", "stop")
            .with("discard", "unmap");
    }
    let mut disk = element("disk")
        .with("type", "file")
        .with("device", if cdrom { "cdrom" } else { "disk" })
        .child(driver);
    if let Some(path) = &file.path {
        disk = disk.child(element("source").with("file", path_text(path)));
    }
    disk = disk.child(element("target").with("dev", target).with("bus", bus));
    if cdrom || file.readonly {
        disk = disk.child(element("readonly"));
    }
    if !file.serial.is_empty() {
        disk = disk.child(element("serial").text(&file.serial));
    }
    if file.boot_order > 0 {
        disk = disk.child(element("boot").with("order", file.boot_order));
    }
    disk
}

/// a, b, … z, aa, ab, …
fn letters(index: usize) -> String {
    let last = char::from(b'a' + (index % 26) as u8);
    match index / 26 {
        0 => last.to_string(),
        more => format!("{}{last}", letters(more - 1)),
    }
}

fn interface(port: &Port) -> Element {
    let mut interface = element("interface")
        .with("type", "bridge")
        .child(element("mac").with("address", &port.mac))
        .child(element("source").with("bridge", &port.bridge))
        .child(element("target").with("dev", &port.tap))
        .child(element("model").with("type", "virtio"));
    if port.mtu != 0 {
        interface = interface.child(element("mtu").with("size", port.mtu));
    }
    // Guests do not boot from the network; without its ROM the firmware is done sooner.
    interface.child(element("rom").with("enabled", "no"))
}

fn serial(log: &Path) -> Element {
    element("serial")
        .with("type", "pty")
        .child(element("log").with("file", path_text(log)).with("append", "on"))
        .child(element("target").with("type", "isa-serial").with("port", 0))
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A domain's document for the host that it goes to.
pub struct Arrival {
    pub document: String,
    /// The targets of the disks that are copied along, such as vda.
    pub copies: Vec<String>,
    /// Whether QEMU itself computes what the guest's processor does.
    pub emulated: bool,
}

/// Makes a running domain's document into that of its arrival: our mark with the new incarnation and as never run, and
/// each file by its name over there.
///
/// # Errors
/// The document has no mark of ours, or names a file of which nobody knows the name over there.
pub fn arriving(document: &str, domain: &Domain, migration: &Migration) -> Result<Arrival, XmlError> {
    let mut root = Element::parse(document)?;
    let name = |path: &str| {
        let there = migration.files.get(Path::new(path));
        there.map(|there| path_text(there)).ok_or_else(|| missing(&format!("name on the target for {path}")))
    };
    let emulated = root.attribute("type") == Some("qemu");
    let mut copies = Vec::new();
    let mark = mark(migration.incarnation_to, domain.generation, &domain.platform, domain.started, false);
    for part in &mut root.children {
        match part.name.as_str() {
            "metadata" => *part = metadata(mark.clone()),
            "os" => {
                for file in &mut part.children {
                    if matches!(file.name.as_str(), "kernel" | "initrd" | "nvram")
                        && !file.text.trim().is_empty()
                    {
                        file.text = name(file.text.trim())?;
                    }
                }
            }
            "devices" => {
                for device in &mut part.children {
                    let copied = rename(device, &name, &migration.copies)?;
                    copies.extend(copied);
                }
            }
            _ => {}
        }
    }
    Ok(Arrival { document: root.print(), copies, emulated })
}

/// Renames the files of one device; returns the target of a disk that is to be copied.
fn rename(
    device: &mut Element,
    name: &impl Fn(&str) -> Result<String, XmlError>,
    copies: &[std::path::PathBuf],
) -> Result<Option<String>, XmlError> {
    let disk = device.name == "disk";
    let target = device.find("target").and_then(|target| target.attribute("dev")).map(str::to_owned);
    // What backs a file is that file's own to say, and other files do so over there.
    device.children.retain(|child| child.name != "backingStore");
    let mut copied = None;
    for child in &mut device.children {
        if !(disk && child.name == "source" || child.name == "log") {
            continue;
        }
        for (key, value) in &mut child.attributes {
            if key == "file" {
                if disk && copies.iter().any(|copy| copy == Path::new(value.as_str())) {
                    copied.clone_from(&target);
                }
                *value = name(value)?;
            }
        }
    }
    Ok(copied)
}

/// A running domain as its XML tells; `None` when it is not ours. `state` is what libvirt says beside the XML.
pub fn read(document: &str, state: DomainState) -> Result<Option<Domain>, XmlError> {
    let domain = Element::parse(document)?;
    let Some(vm) = domain.find("name").and_then(|name| vm_of_domain_name(&name.text)) else {
        return Ok(None);
    };
    let uuid = domain.find("uuid").and_then(|uuid| Uuid::try_parse(uuid.text.trim()).ok());
    let Some(mark) = domain.find(&format!("metadata/{PREFIX}:domain")) else { return Ok(None) };
    if uuid != Some(vm) || mark.attribute(&format!("xmlns:{PREFIX}")) != Some(NAMESPACE) {
        return Ok(None);
    }
    let vcpu = domain.find("vcpu").ok_or_else(|| missing("vcpu"))?;
    let vcpus = match vcpu.attribute("current") {
        Some(current) => number(current, "vcpu current")?,
        None => number(&vcpu.text, "vcpu")?,
    };
    let memory = domain.find("memory").ok_or_else(|| missing("memory"))?;
    // libvirt answers in KiB, whatever it was given.
    let memory_kib: u64 = number(&memory.text, "memory")?;
    let own = |name: &str| mark.attribute(name).ok_or_else(|| missing(name));
    let started_ms = number(own("started_ms")?, "started_ms")?;
    let guest_agent_connected = domain.all("devices/channel/target").iter().any(|target| {
        target.attribute("name") == Some("org.qemu.guest_agent.0")
            && target.attribute("state") == Some("connected")
    });
    let has_run: bool = number(own("has_run")?, "has_run")?;
    // libvirt itself does not tell a guest that was never run from one that someone has paused.
    let state = match state {
        DomainState::Paused(PauseReason::OnDemand) if !has_run => DomainState::Paused(PauseReason::NotYetRun),
        state => state,
    };
    Ok(Some(Domain {
        vm,
        incarnation: number(own("incarnation")?, "incarnation")?,
        generation: number(own("generation")?, "generation")?,
        state,
        platform: Platform {
            machine_type: own("machine_type")?.to_owned(),
            cpu_model: own("cpu_model")?.to_owned(),
        },
        vcpus,
        memory_mib: u32::try_from(memory_kib / 1024).map_err(|_| missing("sane memory"))?,
        started: SystemTime::UNIX_EPOCH + Duration::from_millis(started_ms),
        guest_agent_connected,
    }))
}

fn missing(what: &str) -> XmlError {
    XmlError::Missing(what.to_owned())
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, XmlError> {
    text.trim().parse().map_err(|_| missing(what))
}
