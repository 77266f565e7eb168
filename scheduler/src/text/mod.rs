//! A cluster as text that people can write and read: fixtures, bug reports and what-ifs are the same file. Writing
//! and reading are inverse: what was written reads back equal, ids included. The format is documented in
//! docs/operations/cluster-text-format.md. Deliberately absent: files, and anything that the engine does not use.

mod parse;
mod plan;
mod word;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tamdao_model::quota::Measure;
use tamdao_model::{AgencyId, NodeId, PoolId, VmId};
use uuid::Uuid;

pub use parse::{ParseError, Problem};
pub use plan::{parse_plan, write_plan};
use word::Line;

use crate::capacity::{Agency, Flavor};
use crate::cells::Cells;
use crate::score::{TABLE, Weights};
use crate::shape::{By, Group, GroupId, NodeShape, PoolShape, Rule, RuleKind, VmShape};
use crate::view::{View, ViewError};

/// The first line of every file: the format and its version.
const HEADER: &str = "tamdao-cluster 1";

/// A node on which a VM holds a place, with the NUMA cells that it holds there.
pub type Home = (NodeId, Cells);

/// A cluster and what is asked of it, as plain lists in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    pub weights: Weights,
    pub pools: Vec<PoolShape>,
    pub groups: Vec<Group>,
    pub nodes: Vec<NodeShape>,
    /// VMs with their homes.
    pub vms: Vec<(Arc<VmShape>, Vec<Home>)>,
    /// VMs that ask for a place.
    pub wants: Vec<Arc<VmShape>>,
    /// What a what-if adds and a capacity is asked for.
    pub flavors: Vec<Flavor>,
    /// Whose quotas a capacity may be asked for.
    pub agencies: Vec<Agency>,
}

impl Cluster {
    /// All of a view, with VMs that ask for a place.
    pub fn of(view: &View, wants: &[Arc<VmShape>]) -> Self {
        let mut vms: Vec<(Arc<VmShape>, Vec<Home>)> = Vec::new();
        let mut known: BTreeMap<VmId, Vec<usize>> = BTreeMap::new();
        for node in view.nodes() {
            for vm in view.vms_on(node.id) {
                let place = (node.id, view.cells_of(node.id, vm.id));
                let lines = known.entry(vm.id).or_default();
                // The two ends of a move may hold different amounts; then they are two lines.
                if let Some(line) = lines.iter().find(|line| vms[**line].0 == *vm) {
                    vms[*line].1.push(place);
                } else {
                    lines.push(vms.len());
                    vms.push((vm.clone(), vec![place]));
                }
            }
        }
        Self {
            weights: *view.weights(),
            pools: view.pools().cloned().collect(),
            groups: view.groups().cloned().collect(),
            nodes: view.nodes().cloned().collect(),
            vms,
            wants: wants.to_vec(),
            flavors: Vec::new(),
            agencies: Vec::new(),
        }
    }

    /// The file, with a comment of one line below its header.
    pub fn write(&self, comment: &str) -> String {
        self.to_string().replacen('\n', &format!("\n# {comment}\n"), 1)
    }

    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        parse::parse(text)
    }

    /// The cluster without what is asked of it.
    pub fn view(&self) -> Result<View, ViewError> {
        let mut view = View::new();
        view.set_weights(self.weights);
        self.pools.iter().for_each(|pool| view.set_pool(pool.clone()));
        self.groups.iter().for_each(|group| view.set_group(group.clone()));
        self.nodes.iter().for_each(|node| view.set_node(node.clone()));
        for (vm, nodes) in &self.vms {
            for (node, cells) in nodes {
                view.assign_to(*node, *cells, vm.clone())?;
            }
        }
        Ok(view)
    }
}

/// The id of the nth line of its kind, from 1, where the line gives none.
fn ordinal(n: usize) -> Uuid {
    Uuid::from_u128(n as u128)
}

/// How ids are written: by name where there is one.
struct Names {
    nodes: BTreeMap<NodeId, Arc<str>>,
    pools: BTreeMap<PoolId, Arc<str>>,
    groups: BTreeMap<GroupId, Arc<str>>,
    agencies: BTreeMap<AgencyId, Arc<str>>,
}

impl Names {
    fn node(&self, id: NodeId) -> String {
        self.nodes.get(&id).map_or_else(|| id.to_string(), ToString::to_string)
    }

    fn pool(&self, id: PoolId) -> String {
        self.pools.get(&id).map_or_else(|| id.to_string(), ToString::to_string)
    }

    fn group(&self, id: GroupId) -> String {
        self.groups.get(&id).map_or_else(|| id.to_string(), ToString::to_string)
    }

    fn agency(&self, id: AgencyId) -> String {
        self.agencies.get(&id).map_or_else(|| id.to_string(), ToString::to_string)
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Names {
            nodes: self.nodes.iter().map(|node| (node.id, node.name.clone())).collect(),
            pools: self.pools.iter().map(|pool| (pool.id, pool.name.clone())).collect(),
            groups: self.groups.iter().map(|group| (group.id, group.name.clone())).collect(),
            agencies: self.agencies.iter().map(|agency| (agency.id, agency.name.clone())).collect(),
        };
        writeln!(f, "{HEADER}")?;
        if self.weights != Weights::default() {
            let mut line = Line::new("weights");
            for (part, weight) in TABLE.iter().zip(self.weights.0) {
                line.value(part.name, weight);
            }
            writeln!(f, "{line}")?;
        }
        for (n, pool) in self.pools.iter().enumerate() {
            let mut line = Line::named("pool", &pool.name, pool.id.0, ordinal(n + 1));
            match pool.shared {
                None => line.flag("local", true),
                Some(room) => {
                    line.flag("shared", true);
                    line.value("capacity", room.capacity_mib);
                    line.some("held", room.held_mib);
                }
            }
            writeln!(f, "{line}")?;
        }
        for (n, group) in self.groups.iter().enumerate() {
            let mut line = Line::named("group", &group.name, group.id.0, ordinal(n + 1));
            group.rules.iter().for_each(|rule| write_rule(&mut line, rule));
            writeln!(f, "{line}")?;
        }
        for (n, agency) in self.agencies.iter().enumerate() {
            let mut line = Line::named("agency", &agency.name, agency.id.0, ordinal(n + 1));
            line.flag("closed", agency.closed);
            agency.free.iter().for_each(|(measure, free)| line.value(&format!("free.{measure}"), free));
            writeln!(f, "{line}")?;
        }
        for (n, flavor) in self.flavors.iter().enumerate() {
            let shape = &flavor.shape;
            let mut line = Line::named("flavor", &shape.name, shape.id.0, ordinal(n + 1));
            write_vm(&mut line, shape, &names);
            if *flavor != Flavor::new(shape.clone()) {
                // One such word is always there, also where nothing counts.
                line.value("counts.vms", flavor.counts.of(&Measure::Vms));
                let others = flavor.counts.iter().filter(|(measure, _)| **measure != Measure::Vms);
                others.for_each(|(measure, each)| line.value(&format!("counts.{measure}"), each));
            }
            writeln!(f, "{line}")?;
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let mut line = Line::named("node", &node.name, node.id.0, ordinal(n + 1));
            write_node(&mut line, node, &names);
            writeln!(f, "{line}")?;
        }
        for (n, (vm, nodes)) in self.vms.iter().enumerate() {
            let mut line = Line::named("vm", &vm.name, vm.id.0, ordinal(n + 1));
            for (node, cells) in nodes {
                match cells.is_empty() {
                    true => line.value("on", names.node(*node)),
                    false => line.value(&format!("on.{}", names.node(*node)), cells),
                }
            }
            write_vm(&mut line, vm, &names);
            writeln!(f, "{line}")?;
        }
        for (n, vm) in self.wants.iter().enumerate() {
            let mut line = Line::named("want", &vm.name, vm.id.0, ordinal(self.vms.len() + n + 1));
            write_vm(&mut line, vm, &names);
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

fn write_rule(line: &mut Line, rule: &Rule) {
    let by = match &rule.by {
        By::Node => "node".to_owned(),
        By::Domain(key) => format!("domain.{key}"),
    };
    match (rule.kind, rule.required) {
        (RuleKind::Apart { at_most }, true) => line.value("apart", format!("{by}:{at_most}")),
        (RuleKind::Apart { at_most }, false) => line.value("prefer-apart", format!("{by}:{at_most}")),
        (RuleKind::Together, true) => line.value("together", by),
        (RuleKind::Together, false) => line.value("prefer-together", by),
    }
}

fn write_node(line: &mut Line, node: &NodeShape, names: &Names) {
    line.value("vcpus", node.vcpus);
    line.value("memory", node.memory_mib);
    line.flag("not-ready", !node.ready);
    line.flag("cordoned", node.cordoned);
    line.flag("emulation", node.emulation);
    line.flag("tpm", node.tpm);
    node.labels.iter().for_each(|(key, value)| line.value(&format!("label.{key}"), value));
    for (key, values) in &node.domains {
        values.iter().for_each(|value| line.value(&format!("domain.{key}"), value));
    }
    for (id, pool) in &node.pools {
        let held = if pool.held_mib > 0 { format!("/{}", pool.held_mib) } else { String::new() };
        let key = if pool.ready { "pool" } else { "pool-not-ready" };
        line.value(&format!("{key}.{}", names.pool(*id)), format!("{}{held}", pool.capacity_mib));
    }
    for cell in &node.cells {
        let huge = if cell.huge_mib > 0 { format!("/{}", cell.huge_mib) } else { String::new() };
        line.value("cell", format!("{}/{}{huge}", cell.vcpus, cell.memory_mib));
    }
    node.platforms.iter().for_each(|platform| line.value("platform", platform));
    node.bridges.iter().for_each(|bridge| line.value("bridge", bridge));
    node.firmware.iter().for_each(|firmware| line.value("firmware", firmware));
    if let Some(day) = node.support_ends {
        line.value("support-ends", day.0);
    }
}

fn write_vm(line: &mut Line, vm: &VmShape, names: &Names) {
    line.value("vcpus", vm.reservation.vcpus);
    line.value("memory", vm.reservation.memory_mib);
    line.some("emulation-extra", vm.emulation_extra_mib);
    line.some("cells", u64::from(vm.cells));
    line.some("huge", vm.huge_mib);
    for disk in &vm.disks {
        let on = disk.on.map(|node| format!("@{}", names.node(node))).unwrap_or_default();
        line.value(&format!("disk.{}", names.pool(disk.pool)), format!("{}{on}", disk.size_mib));
    }
    vm.labels.iter().for_each(|(key, value)| line.value(&format!("label.{key}"), value));
    vm.forbidden_labels.iter().for_each(|(key, value)| line.value(&format!("not-label.{key}"), value));
    if let Some(pin) = vm.pin {
        line.value("pin", names.node(pin));
    }
    vm.bridges.iter().for_each(|bridge| line.value("bridge", bridge));
    vm.firmware.iter().for_each(|firmware| line.value("firmware", firmware));
    line.flag("tpm", vm.tpm);
    if let Some(platform) = &vm.platform {
        line.value("platform", platform);
    }
    if let Some(agency) = vm.agency {
        line.value("agency", names.agency(agency));
    }
    if let Some(isolation) = &vm.isolation {
        line.value("isolation", isolation);
    }
    line.some("priority", u64::from(vm.priority));
    line.flag("protected", vm.protected);
    vm.groups.iter().for_each(|group| line.value("group", names.group(*group)));
}
