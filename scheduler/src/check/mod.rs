//! The judge of plans: given the cluster before and the steps, says which rule each step breaks. Used before every
//! commit. It shares no code with the rules and the search: its sums are its own, over the shapes that the view was
//! given, so that a mistake there cannot hide itself here. Deliberately absent: whether a plan is good.

pub mod plans;
mod standing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tamdao_model::{NodeId, PoolId, VmId, limits};

use crate::cells::Cells;
use crate::shape::{By, GroupId, NodeShape, Rule, RuleKind, VmShape};
use crate::view::View;
use standing::{Ground, Standing, memory_of};

/// One step of a plan. Steps are judged in order, each on the cluster that those before it leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The VM gets a place on the node, on these of its NUMA cells.
    Assign { vm: Arc<VmShape>, node: NodeId, cells: Cells },
    /// The VM gives up its place on the node.
    Release { vm: VmId, node: NodeId },
    /// The VM gets a place on these cells of `to`, judged while it still holds the one on `from`, then gives up
    /// that one.
    Move { vm: VmId, from: NodeId, to: NodeId, cells: Cells },
}

/// One rule broken by one step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step {step}: vm {vm} on node {node}: {broken}")]
pub struct Breach {
    pub step: usize,
    pub vm: VmId,
    pub node: NodeId,
    pub broken: Broken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    NodeUnknown,
    AlreadyThere,
    TooMany {
        would_be: usize,
        at_most: usize,
    },
    NotThere,
    NotReady,
    Cordoned,
    Vcpus {
        capacity: u64,
        would_be: u64,
    },
    Memory {
        capacity_mib: u64,
        would_be_mib: u64,
    },
    /// It asks for another number of cells.
    CellCount {
        asked: u32,
        given: u32,
    },
    CellUnknown {
        cell: usize,
    },
    CellVcpus {
        cell: usize,
        capacity: u64,
        would_be: u64,
    },
    CellMemory {
        cell: usize,
        capacity_mib: u64,
        would_be_mib: u64,
    },
    CellHuge {
        cell: usize,
        capacity_mib: u64,
        would_be_mib: u64,
    },
    Disk {
        pool: PoolId,
        capacity_mib: u64,
        would_be_mib: u64,
    },
    SharedPool {
        pool: PoolId,
        capacity_mib: u64,
        would_be_mib: u64,
    },
    PoolAbsent {
        pool: PoolId,
    },
    PoolNotReady {
        pool: PoolId,
    },
    Label {
        key: String,
    },
    ForbiddenLabel {
        key: String,
    },
    Pin,
    Bridge {
        bridge: String,
    },
    Firmware {
        firmware: String,
    },
    Tpm,
    Platform {
        platform: Arc<str>,
    },
    Isolation,
    /// By the position of the rule in its group.
    Group {
        group: GroupId,
        rule: usize,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeUnknown => f.write_str("the node is not in the cluster"),
            Self::AlreadyThere => f.write_str("the VM already holds a place there"),
            Self::TooMany { would_be, at_most } => write!(f, "{would_be} VMs of {at_most}"),
            Self::NotThere => f.write_str("the VM holds no place there"),
            Self::NotReady => f.write_str("the node is not ready"),
            Self::Cordoned => f.write_str("the node is cordoned"),
            Self::Vcpus { capacity, would_be } => write!(f, "{would_be} vCPUs of {capacity}"),
            Self::Memory { capacity_mib, would_be_mib } => {
                write!(f, "{would_be_mib} MiB of memory of {capacity_mib}")
            }
            Self::CellCount { asked, given } => write!(f, "{given} NUMA cells where {asked} are asked for"),
            Self::CellUnknown { cell } => write!(f, "the node has no NUMA cell {cell}"),
            Self::CellVcpus { cell, capacity, would_be } => {
                write!(f, "{would_be} vCPUs of {capacity} in NUMA cell {cell}")
            }
            Self::CellMemory { cell, capacity_mib, would_be_mib } => {
                write!(f, "{would_be_mib} MiB of {capacity_mib} in NUMA cell {cell}")
            }
            Self::CellHuge { cell, capacity_mib, would_be_mib } => {
                write!(f, "{would_be_mib} MiB of huge pages of {capacity_mib} in NUMA cell {cell}")
            }
            Self::Disk { pool, capacity_mib, would_be_mib } => {
                write!(f, "{would_be_mib} MiB of {capacity_mib} in pool {pool}")
            }
            Self::SharedPool { pool, capacity_mib, would_be_mib } => {
                write!(f, "{would_be_mib} MiB of {capacity_mib} in shared pool {pool}")
            }
            Self::PoolAbsent { pool } => write!(f, "pool {pool} is not there"),
            Self::PoolNotReady { pool } => write!(f, "pool {pool} is not ready"),
            Self::Label { key } => write!(f, "label {key} is not as required"),
            Self::ForbiddenLabel { key } => write!(f, "label {key} is as forbidden"),
            Self::Pin => f.write_str("the VM is pinned to another node"),
            Self::Bridge { bridge } => write!(f, "bridge {bridge} is not there"),
            Self::Firmware { firmware } => write!(f, "firmware {firmware} is not there"),
            Self::Tpm => f.write_str("the node has no TPM"),
            Self::Platform { platform } => write!(f, "the node cannot be a {platform}"),
            Self::Isolation => f.write_str("another isolation class is there"),
            Self::Group { group, rule } => write!(f, "rule {rule} of group {group}"),
        }
    }
}

/// Every rule that the steps break, in the order of the steps; none if the plan may be committed.
pub fn check(before: &View, steps: &[Step]) -> Result<(), Vec<Breach>> {
    check_on(&mut Ground::new(before), &|_| false, steps)
}

/// The same where some nodes are lost, with all that stands on them.
fn check_on(
    ground: &mut Ground,
    is_lost: &dyn Fn(&NodeShape) -> bool,
    steps: &[Step],
) -> Result<(), Vec<Breach>> {
    let view = ground.view;
    let mut judge = Judge { view, ground, is_lost, changed: BTreeMap::new(), breaches: Vec::new(), step: 0 };
    for (step, what) in steps.iter().enumerate() {
        judge.step = step;
        match what {
            Step::Assign { vm, node, cells } => judge.assign(vm, *node, *cells),
            Step::Release { vm, node } => judge.release(*vm, *node),
            Step::Move { vm, from, to, cells } => match judge.on(*from).find(*vm).cloned() {
                Some(held) => {
                    judge.assign(&held, *to, *cells);
                    judge.release(*vm, *from);
                }
                None => judge.say(*vm, *from, Broken::NotThere),
            },
        }
    }
    if judge.breaches.is_empty() { Ok(()) } else { Err(judge.breaches) }
}

struct Judge<'a, 'g> {
    view: &'a View,
    ground: &'g mut Ground<'a>,
    is_lost: &'g dyn Fn(&NodeShape) -> bool,
    /// The nodes that the steps are about, as they are now.
    changed: BTreeMap<NodeId, Standing<'a>>,
    breaches: Vec<Breach>,
    step: usize,
}

impl<'a> Judge<'a, '_> {
    fn say(&mut self, vm: VmId, node: NodeId, broken: Broken) {
        self.breaches.push(Breach { step: self.step, vm, node, broken });
    }

    fn on(&mut self, node: NodeId) -> &mut Standing<'a> {
        self.changed.entry(node).or_insert_with(|| self.ground.of(node))
    }

    fn release(&mut self, vm: VmId, node: NodeId) {
        if !self.on(node).take(vm) {
            self.say(vm, node, Broken::NotThere);
        }
    }

    fn assign(&mut self, vm: &Arc<VmShape>, node: NodeId, cells: Cells) {
        let is_lost = self.is_lost;
        let there = self.on(node);
        let Some(shape) = there.shape.filter(|shape| !is_lost(shape)) else {
            return self.say(vm.id, node, Broken::NodeUnknown);
        };
        if there.find(vm.id).is_some() {
            return self.say(vm.id, node, Broken::AlreadyThere);
        }
        let mut broken = Vec::new();
        state(shape, vm, &mut broken);
        if there.isolates(vm) {
            broken.push(Broken::Isolation);
        }
        self.groups(vm, shape, &mut broken);
        self.shared(vm, &mut broken);
        self.on(node).put(vm.clone(), cells);
        let there = &self.changed[&node];
        if there.count > limits::VMS_PER_NODE {
            broken.push(Broken::TooMany { would_be: there.count, at_most: limits::VMS_PER_NODE });
        }
        self.room(shape, vm, there, &mut broken);
        self.numa(shape, vm, cells, there, &mut broken);
        for broken in broken {
            self.say(vm.id, node, broken);
        }
    }

    /// What all VMs of the node would hold, against what it may promise. A VM that needs nothing of a dimension
    /// cannot break it.
    fn room(&self, node: &NodeShape, new: &VmShape, there: &Standing, broken: &mut Vec<Broken>) {
        let capacity = u64::from(node.vcpus);
        if new.reservation.vcpus > 0 && there.vcpus > capacity {
            broken.push(Broken::Vcpus { capacity, would_be: there.vcpus });
        }
        if memory_of(new, Some(node)) > 0 && there.memory_mib > node.memory_mib {
            let (capacity_mib, would_be_mib) = (node.memory_mib, there.memory_mib);
            broken.push(Broken::Memory { capacity_mib, would_be_mib });
        }
        let mut needed: Vec<PoolId> =
            new.disks.iter().filter(|d| d.size_mib > 0 && d.on != Some(node.id)).map(|d| d.pool).collect();
        needed.sort_unstable();
        needed.dedup();
        for pool in needed {
            let Some(here) = node.pools.get(&pool) else { continue };
            if self.view.pool(pool).is_none_or(|pool| pool.shared.is_some()) {
                continue;
            }
            let disks = there.vms().flat_map(|vm| &vm.disks);
            let counted = disks.filter(|disk| disk.pool == pool && disk.on != Some(node.id));
            let would_be_mib = here.held_mib + counted.map(|disk| disk.size_mib).sum::<u64>();
            if would_be_mib > here.capacity_mib {
                broken.push(Broken::Disk { pool, capacity_mib: here.capacity_mib, would_be_mib });
            }
        }
        for disk in &new.disks {
            match (self.view.pool(disk.pool), node.pools.get(&disk.pool)) {
                (Some(_), Some(here)) if here.ready => {}
                (Some(_), Some(_)) => broken.push(Broken::PoolNotReady { pool: disk.pool }),
                _ => broken.push(Broken::PoolAbsent { pool: disk.pool }),
            }
        }
    }

    /// Room in shared pools. The view says what is left before the plan; the steps take from it what they place.
    fn shared(&self, new: &VmShape, broken: &mut Vec<Broken>) {
        let is_shared = |pool: PoolId| self.view.pool(pool).is_some_and(|pool| pool.shared.is_some());
        if !new.disks.iter().any(|disk| disk.size_mib > 0 && is_shared(disk.pool)) {
            return;
        }
        let is_placed = |vm: VmId| {
            let moved = |node: &NodeId| self.changed.contains_key(node);
            self.changed.values().any(|there| there.find(vm).is_some())
                || self.view.homes(vm).any(|node| !moved(&node))
        };
        if is_placed(new.id) {
            return;
        }
        for disk in new.disks.iter().filter(|d| d.size_mib > 0) {
            let pool = disk.pool;
            let Some(room) = self.view.pool(pool).and_then(|pool| pool.shared) else { continue };
            let mut placed: BTreeMap<VmId, &Arc<VmShape>> = BTreeMap::new();
            let unchanged = self.view.nodes().filter(|node| !self.changed.contains_key(&node.id));
            let changed = self.changed.values().flat_map(Standing::vms);
            for vm in unchanged.flat_map(|node| self.view.vms_on(node.id)).chain(changed) {
                placed.entry(vm.id).or_insert(vm);
            }
            let of =
                |vm: &VmShape| vm.disks.iter().filter(|d| d.pool == pool).map(|d| d.size_mib).sum::<u64>();
            let others: u64 = placed.values().map(|vm| of(vm)).sum();
            let would_be_mib = room.held_mib + others + of(new);
            if would_be_mib > room.capacity_mib {
                broken.push(Broken::SharedPool { pool, capacity_mib: room.capacity_mib, would_be_mib });
            }
        }
    }

    fn groups(&self, vm: &VmShape, node: &NodeShape, broken: &mut Vec<Broken>) {
        for id in &vm.groups {
            let Some(group) = self.view.group(*id) else { continue };
            let others = self.other_members(*id, vm.id);
            for (at, rule) in group.rules.iter().enumerate().filter(|(_, rule)| rule.required) {
                if !keeps(rule, node, &others) {
                    broken.push(Broken::Group { group: *id, rule: at });
                }
            }
        }
    }

    /// The nodes of all places held by others of the group, once per place.
    fn other_members(&self, group: GroupId, vm: VmId) -> Vec<&NodeShape> {
        let kept = self.view.members(group).filter(|(_, node)| !self.changed.contains_key(node));
        let kept = kept.filter(|(member, _)| *member != vm);
        let kept = kept.filter_map(|(_, node)| self.view.node(node)).filter(|node| !(self.is_lost)(node));
        let changed = self.changed.values().flat_map(|there| {
            let members = there.vms().filter(|held| held.id != vm && held.groups.contains(&group));
            members.filter_map(|_| there.shape)
        });
        kept.chain(changed).collect()
    }

    /// The cells of a VM: as many as it asks for, each there, and none with more than it may promise.
    fn numa(
        &self,
        node: &NodeShape,
        new: &VmShape,
        cells: Cells,
        there: &Standing,
        broken: &mut Vec<Broken>,
    ) {
        if cells.len() != new.cells {
            broken.push(Broken::CellCount { asked: new.cells, given: cells.len() });
        }
        for cell in cells.iter() {
            let Some(capacity) = node.cells.get(cell) else {
                broken.push(Broken::CellUnknown { cell });
                continue;
            };
            let here = there.held(self.view).filter(|(_, cells)| cells.contains(cell));
            let (mut vcpus, mut memory, mut huge) = (0, 0, 0);
            for (vm, cells) in here {
                // Rounded up: what cannot be split evenly is held by each.
                let over = u64::from(cells.len());
                vcpus += u64::from(vm.reservation.vcpus).div_ceil(over);
                memory += memory_of(vm, Some(node)).div_ceil(over);
                huge += vm.huge_mib.div_ceil(over);
            }
            if new.reservation.vcpus > 0 && vcpus > u64::from(capacity.vcpus) {
                let capacity = u64::from(capacity.vcpus);
                broken.push(Broken::CellVcpus { cell, capacity, would_be: vcpus });
            }
            if memory_of(new, Some(node)) > 0 && memory > capacity.memory_mib {
                let capacity_mib = capacity.memory_mib;
                broken.push(Broken::CellMemory { cell, capacity_mib, would_be_mib: memory });
            }
            if new.huge_mib > 0 && huge > capacity.huge_mib {
                let capacity_mib = capacity.huge_mib;
                broken.push(Broken::CellHuge { cell, capacity_mib, would_be_mib: huge });
            }
        }
    }
}

/// What does not depend on other VMs.
fn state(node: &NodeShape, vm: &VmShape, broken: &mut Vec<Broken>) {
    if !node.ready {
        broken.push(Broken::NotReady);
    }
    if node.cordoned {
        broken.push(Broken::Cordoned);
    }
    if let Some(pin) = vm.pin
        && pin != node.id
    {
        broken.push(Broken::Pin);
    }
    for (key, value) in &vm.labels {
        if node.labels.get(key).is_none_or(|has| has != value) {
            broken.push(Broken::Label { key: key.clone() });
        }
    }
    for (key, value) in &vm.forbidden_labels {
        if node.labels.get(key).is_some_and(|has| has == value) {
            broken.push(Broken::ForbiddenLabel { key: key.clone() });
        }
    }
    for bridge in vm.bridges.iter().filter(|bridge| !node.bridges.contains(*bridge)) {
        broken.push(Broken::Bridge { bridge: bridge.clone() });
    }
    for firmware in vm.firmware.iter().filter(|firmware| !node.firmware.contains(*firmware)) {
        broken.push(Broken::Firmware { firmware: firmware.clone() });
    }
    for platform in vm.platform.iter().filter(|platform| !node.platforms.contains(*platform)) {
        broken.push(Broken::Platform { platform: platform.clone() });
    }
    if vm.tpm && !node.tpm {
        broken.push(Broken::Tpm);
    }
}

/// Whether a VM on this node would keep a rule, with the others where they are.
fn keeps(rule: &Rule, node: &NodeShape, others: &[&NodeShape]) -> bool {
    let By::Domain(key) = &rule.by else {
        let near = others.iter().filter(|other| other.id == node.id).count();
        return match rule.kind {
            RuleKind::Apart { at_most } => near < at_most as usize,
            RuleKind::Together => near == others.len(),
        };
    };
    let Some(mine) = node.domains.get(key).filter(|values| !values.is_empty()) else { return false };
    match rule.kind {
        // Only nodes with the same single value are lost together with this one.
        RuleKind::Apart { at_most } => {
            let lost_too = others.iter().filter(|other| other.domains.get(key) == Some(mine)).count();
            mine.len() > 1 || lost_too < at_most as usize
        }
        RuleKind::Together => mine.iter().any(|value| {
            others.iter().all(|other| other.domains.get(key).is_some_and(|values| values.contains(value)))
        }),
    }
}
