//! What a host can do, read from libvirt's capabilities: its inventory, and the platform that a new VM gets.
//!
//! Invariant: a platform names a versioned machine type and a named CPU model, so that the same words give the
//! same machine tomorrow and on the next node. Deliberately absent: asking libvirt (`libvirt::inventory`), and
//! trying whether KVM works (`probe`).

use std::path::Path;

use tamdao_proto::v1::{Inventory, NumaCell, Platform};

use super::xml::{Element, XmlError};

/// How guests' instructions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    Kvm,
    /// QEMU's own translation; ten times slower, works everywhere.
    Emulation,
}

impl Acceleration {
    /// libvirt's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "qemu",
        }
    }
}

/// CPU models for emulated guests, the best first. All are within what QEMU can emulate, so unlike `maximum` they
/// do not change with QEMU's version; the first is x86-64-v2, which current systems ask for.
const EMULATED_MODELS: [&str; 3] = ["Westmere", "Nehalem", "qemu64"];

/// What was read of one host.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    pub acceleration: Acceleration,
    /// What a VM gets that has no platform yet.
    pub platform: Platform,
    /// QEMU's program.
    pub emulator: String,
    machine_types: Vec<String>,
    /// What guests can be given here: named models, and the host's own.
    cpu_models: Vec<String>,
    cpu_model: String,
    cpu_features: Vec<String>,
    numa_cells: Vec<NumaCell>,
    firmware: Vec<String>,
    tpm: bool,
}

/// Whether libvirt offers KVM, and QEMU's program, from the host's capabilities.
pub fn offers(capabilities: &str) -> Result<(bool, String), XmlError> {
    let capabilities = Element::parse(capabilities)?;
    let arch = x86_64(&capabilities)?;
    let kvm = arch.all("domain").iter().any(|domain| domain.attribute("type") == Some("kvm"));
    let emulator = arch.find("emulator").ok_or_else(|| missing("emulator"))?;
    Ok((kvm, emulator.text.clone()))
}

impl Host {
    /// Reads the host's capabilities and those of a q35 domain under `acceleration`.
    pub fn read(
        capabilities: &str,
        domain_capabilities: &str,
        acceleration: Acceleration,
    ) -> Result<Host, XmlError> {
        let host = Element::parse(capabilities)?;
        let domain = Element::parse(domain_capabilities)?;
        let arch = x86_64(&host)?;
        let texts = |found: Vec<&Element>| found.into_iter().map(|e| e.text.clone()).collect::<Vec<_>>();
        let mut machine_types: Vec<String> = arch
            .all("machine")
            .into_iter()
            .filter(|machine| machine.attribute("canonical").is_none() && machine.text.starts_with("pc-q35-"))
            .map(|machine| machine.text.clone())
            .collect();
        machine_types.sort_by_key(|name| version_key(name));
        machine_types.dedup();
        let machine_type = arch
            .all("machine")
            .into_iter()
            .find(|machine| machine.text == "q35")
            .and_then(|machine| machine.attribute("canonical"))
            .ok_or_else(|| missing("machine q35"))?
            .to_owned();
        let values = |path: &str, name: &str| -> Vec<String> {
            domain
                .all(path)
                .into_iter()
                .filter(|e| e.attribute("name") == Some(name))
                .flat_map(|e| texts(e.all("value")))
                .collect()
        };
        let mut firmware = vec!["bios".to_owned()];
        if values("os/enum", "firmware").iter().any(|value| value == "efi") {
            firmware.push("uefi".to_owned());
            if values("os/loader/enum", "secure").iter().any(|value| value == "yes") {
                firmware.push("uefi-secure".to_owned());
            }
        }
        let own = cpu_model(&domain, acceleration)?;
        let mut cpu_models: Vec<String> = usable_models(&domain).map(str::to_owned).collect();
        cpu_models.push(own.clone());
        cpu_models.sort();
        cpu_models.dedup();
        Ok(Host {
            acceleration,
            platform: Platform { machine_type, cpu_model: own },
            cpu_models,
            emulator: arch.find("emulator").ok_or_else(|| missing("emulator"))?.text.clone(),
            machine_types,
            cpu_model: host.find("host/cpu/model").map(|e| e.text.clone()).unwrap_or_default(),
            cpu_features: host
                .all("host/cpu/feature")
                .into_iter()
                .filter_map(|feature| feature.attribute("name").map(str::to_owned))
                .collect(),
            numa_cells: numa_cells(&host),
            firmware,
            tpm: values("devices/tpm/enum", "backendModel").iter().any(|value| value == "emulator"),
        })
    }

    /// The platform of a VM: its own, with what is missing filled in.
    pub fn resolve(&self, asked: Option<&Platform>) -> Platform {
        let mut platform = asked.cloned().unwrap_or_default();
        if platform.machine_type.is_empty() {
            platform.machine_type.clone_from(&self.platform.machine_type);
        }
        if platform.cpu_model.is_empty() {
            platform.cpu_model.clone_from(&self.platform.cpu_model);
        }
        platform
    }

    /// The inventory, less what is asked for anew each time: names, versions, sizes and bridges.
    pub fn inventory(&self) -> Inventory {
        Inventory {
            acceleration: self.acceleration.as_str().to_owned(),
            cpu_model: self.cpu_model.clone(),
            cpu_features: self.cpu_features.clone(),
            numa_cells: self.numa_cells.clone(),
            machine_types: self.machine_types.clone(),
            cpu_models: self.cpu_models.clone(),
            firmware: self.firmware.clone(),
            tpm: self.tpm,
            ..Inventory::default()
        }
    }
}

fn x86_64(capabilities: &Element) -> Result<&Element, XmlError> {
    capabilities
        .all("guest/arch")
        .into_iter()
        .find(|arch| arch.attribute("name") == Some("x86_64"))
        .ok_or_else(|| missing("guest of x86_64"))
}

/// Under KVM the host's model as libvirt computed it, with the features that this host lacks; the features that it
/// has beyond the model are left out, so that the VM can move to a host that does not have them.
fn cpu_model(domain: &Element, acceleration: Acceleration) -> Result<String, XmlError> {
    match acceleration {
        Acceleration::Emulation => {
            let usable: Vec<&str> = usable_models(domain).collect();
            EMULATED_MODELS
                .into_iter()
                .find(|model| usable.contains(model))
                .map(str::to_owned)
                .ok_or_else(|| missing("usable CPU model"))
        }
        Acceleration::Kvm => {
            let host = cpu_mode(domain, "host-model").ok_or_else(|| missing("host-model"))?;
            let model = host.find("model").ok_or_else(|| missing("host-model"))?;
            let lacking = host
                .all("feature")
                .into_iter()
                .filter(|feature| feature.attribute("policy") == Some("disable"))
                .filter_map(|feature| feature.attribute("name"));
            Ok(lacking.fold(model.text.clone(), |words, name| format!("{words},-{name}")))
        }
    }
}

/// The named models that libvirt says a guest can be given.
fn usable_models(domain: &Element) -> impl Iterator<Item = &str> {
    let models = cpu_mode(domain, "custom").map(|mode| mode.all("model")).unwrap_or_default();
    let usable = models.into_iter().filter(|model| model.attribute("usable") == Some("yes"));
    usable.map(|model| model.text.as_str())
}

fn cpu_mode<'a>(domain: &'a Element, name: &str) -> Option<&'a Element> {
    domain.all("cpu/mode").into_iter().find(|mode| mode.attribute("name") == Some(name))
}

fn numa_cells(host: &Element) -> Vec<NumaCell> {
    host.all("host/topology/cells/cell")
        .into_iter()
        .filter_map(|cell| {
            Some(NumaCell {
                id: cell.attribute("id")?.parse().ok()?,
                memory_mib: cell.find("memory")?.text.trim().parse::<u64>().ok()? / 1024,
                cpus: cell
                    .all("cpus/cpu")
                    .into_iter()
                    .filter_map(|cpu| cpu.attribute("id")?.parse().ok())
                    .collect(),
            })
        })
        .collect()
}

/// The bridge devices under a `/sys/class/net`, by name. It must be the one of the network namespace in which
/// libvirt runs.
pub fn bridges(class_net: &Path) -> Vec<String> {
    let mut bridges: Vec<String> = std::fs::read_dir(class_net)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|device| device.path().join("bridge").is_dir())
        .filter_map(|device| device.file_name().into_string().ok())
        .collect();
    bridges.sort();
    bridges
}

/// libvirt's versions are numbers: 9,000,000 is 9.0.0.
pub fn version(number: u32) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
}

/// Sorts pc-q35-2.9 before pc-q35-2.10.
fn version_key(name: &str) -> Vec<u32> {
    name.trim_start_matches("pc-q35-").split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

fn missing(what: &str) -> XmlError {
    XmlError::Missing(what.to_owned())
}
