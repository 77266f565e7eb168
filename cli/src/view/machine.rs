//! How VMs, flavors and nodes are shown.

use tamdao_proto::v1::{Firmware, Flavor, Node, OnNodeLoss, OsType, RunPolicy, Vm, VmPhase, VmSpec, disk};

use super::{View, head, headers, pairs, phase, since, tail, told, trouble_of, yes};
use crate::output::{Cell, Table, Tone};
use crate::quantity::{mib, share};
use crate::resource::{Resource, word};

impl View for Vm {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(
            &["PHASE", "NODE", "VCPUS", "MEMORY", "ADDRESS"],
            &["IMAGE", "FLAVOR", "GUEST", "RESTARTS", "PRIORITY", "GROUPS", "LABELS"],
            wide,
        )
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let (vcpus, memory) = size(self);
        let status = self.status.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.push(phase(&self.phase()));
        cells.push(Cell::from(&status.node));
        cells.push(if vcpus == 0 { Cell::from("") } else { Cell::from(vcpus) });
        cells.push(if memory == 0 { Cell::from("") } else { Cell::from(mib(memory.into())) });
        cells.push(Cell::from(first_address(self)));
        if wide {
            let spec = self.spec.clone().unwrap_or_default();
            let labels = self.metadata.as_ref().map_or(String::new(), |metadata| pairs(&metadata.labels));
            cells.push(Cell::from(boot_image(self)));
            cells.push(Cell::from(spec.flavor));
            cells.push(Cell::from(if status.guest.is_some_and(|guest| guest.ready) { "ready" } else { "" }));
            cells.push(Cell::from(status.restarts));
            cells.push(Cell::from(spec.priority));
            cells.push(Cell::from(spec.placement_groups.join(",")));
            cells.push(Cell::from(labels));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, now_s: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let (vcpus, memory) = size(self);
        let flavor = if spec.flavor.is_empty() { String::new() } else { format!(" ({})", spec.flavor) };
        let platform = status.platform.clone().unwrap_or_default();
        let guest = status.guest.clone().unwrap_or_default();
        let mut run = word(spec.run().as_str_name(), "RUN_POLICY_");
        if spec.run() == RunPolicy::Unspecified {
            "OnFailure".clone_into(&mut run);
        }
        let mut machine = Vec::new();
        if spec.firmware() != Firmware::Unspecified {
            machine.push(spec.firmware().as_str_name().trim_start_matches("FIRMWARE_").to_owned());
        }
        if spec.os_type() != OsType::Unspecified {
            machine.push(word(spec.os_type().as_str_name(), "OS_TYPE_"));
        }
        machine
            .extend([platform.machine_type, platform.cpu_model].into_iter().filter(|part| !part.is_empty()));
        let mut fields = vec![
            ("Node", Cell::from(&status.node)),
            ("Size", Cell::from(format!("{vcpus} vCPUs, {}{flavor}", mib(memory.into())))),
            ("Machine", Cell::from(machine.join(", "))),
            ("Image", Cell::from(boot_image(self))),
            ("Run", Cell::from(run)),
            (
                "Running for",
                Cell::from(match status.phase() {
                    VmPhase::Running | VmPhase::Paused => since(&status.started_time, now_s),
                    _ => String::new(),
                }),
            ),
            (
                "Restarts",
                Cell::from(if status.restarts == 0 { String::new() } else { status.restarts.to_string() }),
            ),
        ];
        if guest.ready {
            let addresses = guest.addresses.join(", ");
            fields.push(("Guest", Cell::toned(format!("ready, {} {addresses}", guest.hostname), Tone::Good)));
        }
        fields.extend(placement(&spec));
        if spec.delete_protection {
            fields.push(("Protected", Cell::from("from deletion")));
        }
        fields
    }

    fn sections(&self) -> Vec<(&'static str, Table)> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let disks = spec.disks.iter().enumerate().map(|(at, disk)| {
            let volume = status.volumes.get(at).cloned().unwrap_or_default();
            let (source, size) = match &disk.source {
                Some(disk::Source::Create(made)) => (
                    if made.image.is_empty() { "empty".to_owned() } else { format!("image {}", made.image) },
                    if made.size_mib == 0 { String::new() } else { mib(made.size_mib.into()) },
                ),
                Some(disk::Source::Volume(volume)) => (format!("volume {volume}"), String::new()),
                Some(disk::Source::Iso(iso)) => (format!("iso {iso}"), String::new()),
                None => (String::new(), String::new()),
            };
            vec![Cell::from(at), Cell::from(source), Cell::from(size), Cell::from(volume)]
        });
        let interfaces = spec.interfaces.iter().enumerate().map(|(at, wanted)| {
            let given = status.interfaces.get(at).cloned().unwrap_or_default();
            let mac = if given.mac.is_empty() { &wanted.mac } else { &given.mac };
            let addresses = if given.addresses.is_empty() { &wanted.addresses } else { &given.addresses };
            vec![
                Cell::from(at),
                Cell::from(&wanted.network),
                Cell::from(addresses.join(", ")),
                Cell::from(mac),
            ]
        });
        vec![
            ("Disks", Table { headers: vec!["DISK", "SOURCE", "SIZE", "VOLUME"], rows: disks.collect() }),
            (
                "Interfaces",
                Table {
                    headers: vec!["INTERFACE", "NETWORK", "ADDRESSES", "MAC"],
                    rows: interfaces.collect(),
                },
            ),
        ]
    }

    fn story(&self) -> String {
        let status = self.status.clone().unwrap_or_default();
        let mut story = self.phase();
        if !status.node.is_empty() {
            story.push_str(&format!(" on {}", status.node));
        }
        let address = first_address(self);
        if status.phase() == VmPhase::Running && !address.is_empty() {
            story.push_str(&format!(", {address}"));
        }
        told(&story, self.trouble())
    }

    fn trouble(&self) -> Option<&str> {
        // These say what a guest has not reached yet, not what holds it up.
        trouble_of(self.conditions(), &["GuestReady", "Protected", "Ready"])
    }
}

/// What users said about its place, as far as they said something.
fn placement(spec: &VmSpec) -> Vec<(&'static str, Cell)> {
    let mut fields = vec![
        ("Pinned to", spec.node.clone()),
        ("Priority", if spec.priority == 0 { String::new() } else { spec.priority.to_string() }),
        ("NUMA cells", if spec.numa_cells == 0 { String::new() } else { spec.numa_cells.to_string() }),
        ("Groups", spec.placement_groups.join(", ")),
        ("Isolation", spec.isolation_class.clone()),
        ("Needs", pairs(&spec.node_labels)),
        ("Avoids", pairs(&spec.forbidden_node_labels)),
    ];
    if spec.on_node_loss() == OnNodeLoss::Stay {
        fields.push(("On node loss", "stays".to_owned()));
    }
    fields.into_iter().map(|(name, text)| (name, Cell::from(text))).collect()
}

/// Present size, or the wanted one before there is a present one.
fn size(vm: &Vm) -> (u32, u32) {
    let spec = vm.spec.as_ref().map_or((0, 0), |spec| (spec.vcpus, spec.memory_mib));
    let status = vm.status.as_ref().map_or((0, 0), |status| (status.vcpus, status.memory_mib));
    (if status.0 == 0 { spec.0 } else { status.0 }, if status.1 == 0 { spec.1 } else { status.1 })
}

/// The first address, without its prefix length.
pub fn first_address(vm: &Vm) -> String {
    let interfaces = vm.status.iter().flat_map(|status| &status.interfaces);
    let first = interfaces.flat_map(|interface| &interface.addresses).next();
    first.map_or(String::new(), |address| address.split('/').next().unwrap_or_default().to_owned())
}

fn boot_image(vm: &Vm) -> String {
    let disks = vm.spec.iter().flat_map(|spec| &spec.disks);
    let mut images = disks.filter_map(|disk| match &disk.source {
        Some(disk::Source::Create(made)) if !made.image.is_empty() => Some(made.image.clone()),
        Some(disk::Source::Iso(iso)) => Some(iso.clone()),
        _ => None,
    });
    let kernel = vm.spec.iter().filter_map(|spec| Some(spec.direct_boot.as_ref()?.kernel.clone()));
    images.next().or_else(|| kernel.into_iter().next()).unwrap_or_default()
}

impl View for Flavor {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["VCPUS", "MEMORY"], &["CLASS"], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let spec = self.spec.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.extend([Cell::from(spec.vcpus), Cell::from(mib(spec.memory_mib.into()))]);
        cells.extend(wide.then(|| Cell::from(spec.class)));
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            ("vCPUs", Cell::from(spec.vcpus)),
            ("Memory", Cell::from(mib(spec.memory_mib.into()))),
            ("Class", Cell::from(spec.class)),
        ]
    }
}

impl View for Node {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(
            &["PHASE", "VMS", "VCPUS", "MEMORY", "DISK"],
            &[
                "ADDRESS",
                "FAILURE-DOMAINS",
                "ACCELERATION",
                "CPU",
                "AGENT",
                "LIBVIRT",
                "QEMU",
                "BOOTED",
                "SEEN",
            ],
            wide,
        )
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let status = self.status.clone().unwrap_or_default();
        let (used, whole) = (status.allocated.unwrap_or_default(), status.allocatable.unwrap_or_default());
        let mut cells = head(self);
        cells.push(node_phase(self));
        cells.push(Cell::from(status.vms));
        cells.push(Cell::from(share(used.vcpus, whole.vcpus)));
        cells.push(Cell::from(amount(used.memory_mib, whole.memory_mib)));
        cells.push(Cell::from(amount(used.disk_mib, whole.disk_mib)));
        if wide {
            let inventory = status.inventory.clone().unwrap_or_default();
            cells.push(Cell::from(&status.address));
            cells.push(Cell::from(failure_domains(self)));
            cells.push(Cell::from(inventory.acceleration));
            cells.push(Cell::from(inventory.cpu_model));
            cells.push(Cell::from(inventory.agent_version));
            cells.push(Cell::from(inventory.libvirt_version));
            cells.push(Cell::from(inventory.qemu_version));
            cells.push(Cell::from(since(&status.boot_time, now_s)));
            cells.push(Cell::from(since(&status.last_seen, now_s)));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, now_s: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let (used, whole) = (status.allocated.unwrap_or_default(), status.allocatable.unwrap_or_default());
        let has = status.inventory.clone().unwrap_or_default();
        let host = match has.cpus {
            0 => String::new(),
            cpus => format!("{cpus} CPUs ({}), {}", has.cpu_model, mib(has.memory_mib)),
        };
        let software =
            [("agent", &has.agent_version), ("libvirt", &has.libvirt_version), ("QEMU", &has.qemu_version)];
        let software = software.into_iter().filter(|(_, version)| !version.is_empty());
        let software: Vec<String> = software.map(|(name, version)| format!("{name} {version}")).collect();
        let overcommit = format!(
            "CPU {} %, memory {} %",
            or(spec.cpu_overcommit_percent, 400),
            or(spec.memory_overcommit_percent, 100)
        );
        vec![
            ("Cordoned", Cell::toned(if spec.cordoned { yes(true) } else { "" }, Tone::Busy)),
            ("Drain", Cell::toned(drain(self), Tone::Busy)),
            ("Address", Cell::from(&status.address)),
            ("Seen", Cell::from(ago(since(&status.last_seen, now_s)))),
            ("Booted", Cell::from(ago(since(&status.boot_time, now_s)))),
            ("VMs", Cell::from(status.vms)),
            (
                "Foreign VMs",
                Cell::from(if status.foreign == 0 { String::new() } else { status.foreign.to_string() }),
            ),
            ("vCPUs", Cell::from(format!("{} allocated", share(used.vcpus, whole.vcpus)))),
            ("Memory", Cell::from(format!("{} allocated", amount(used.memory_mib, whole.memory_mib)))),
            ("Disk", Cell::from(format!("{} allocated", amount(used.disk_mib, whole.disk_mib)))),
            ("Overcommit", Cell::from(overcommit)),
            ("Failure domains", Cell::from(failure_domains(self))),
            ("Host", Cell::from(host)),
            ("Acceleration", Cell::from(&has.acceleration)),
            ("Software", Cell::from(software.join(", "))),
            ("Bridges", Cell::from(has.bridges.join(", "))),
            (
                "Clock offset",
                Cell::from(match has.clock_offset_ms {
                    0 => String::new(),
                    offset => format!("{offset} ms"),
                }),
            ),
            ("Support ends", Cell::from(&spec.support_ends)),
            ("BMCs", Cell::toned(bmcs(self, now_s), bmcs_tone(self))),
        ]
    }
}

fn node_phase(node: &Node) -> Cell {
    let mut cell = phase(&node.phase());
    if node.spec.as_ref().is_some_and(|spec| spec.cordoned) {
        cell.text.push_str(",Cordoned");
        if cell.tone == Tone::Good {
            cell.tone = Tone::Busy;
        }
    }
    cell
}

fn drain(node: &Node) -> String {
    let Some(drain) = node.status.as_ref().and_then(|status| status.drain.as_ref()) else {
        return String::new();
    };
    let phase = word(drain.phase().as_str_name(), "DRAIN_PHASE_");
    let mut told = format!("{phase}, {} left, {} on other nodes", drain.vms_left, drain.vms_away);
    told += &format!(" (asked by {}", drain.asked_by);
    if !drain.reason.is_empty() {
        told += &format!(": {}", drain.reason);
    }
    told + ")"
}

/// Each BMC with what it was found to be, and when.
fn bmcs(node: &Node, now_s: i64) -> String {
    let drilled = |url: &str| node.status.as_ref()?.fence_drill.iter().find(|drill| drill.url == url);
    let bmcs = node.spec.iter().flat_map(|spec| &spec.bmcs);
    let told = bmcs.map(|bmc| match drilled(&bmc.url) {
        None => format!("{} (not drilled yet)", bmc.url),
        Some(drill) => format!("{} ({}, {})", bmc.url, drill.reason, ago(since(&drill.time, now_s))),
    });
    told.collect::<Vec<_>>().join(", ")
}

fn bmcs_tone(node: &Node) -> Tone {
    let good = node.status.iter().flat_map(|status| &status.fence_drill).any(|drill| drill.good);
    if good { Tone::Plain } else { Tone::Busy }
}

fn failure_domains(node: &Node) -> String {
    let domains = node.spec.iter().flat_map(|spec| &spec.failure_domains);
    let mut domains: Vec<String> =
        domains.map(|(key, of)| format!("{key}={}", of.values.join("+"))).collect();
    domains.sort();
    domains.join(",")
}

fn amount(used_mib: u64, whole_mib: u64) -> String {
    share(mib(used_mib), mib(whole_mib))
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

fn ago(age: String) -> String {
    if age.is_empty() { age } else { format!("{age} ago") }
}
