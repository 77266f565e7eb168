//! From the store's records to the engine's shapes: with a node's overcommit and reserves as its record applies them. Pure; the
//! caller passes the records of one revision. Deliberately absent: which VMs count as placed, which the nodes'
//! assignments say.
//!
//! A view is built so: [`pool`] for each pool, [`node`] for each node with its assignment, then for each entry of
//! each assignment [`placed`] of its VM, assigned to that node.

use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::agency::Agency;
use tamdao_model::assignment::{Assignment, Reservation, VmEntry};
use tamdao_model::flavor::Flavor;
use tamdao_model::network::Network;
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::placement_group::{NODE, PlacedBy, PlacementGroup, PlacementRuleKind};
use tamdao_model::pool::Pool;
use tamdao_model::quota::{Measure, Quota};
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::vm::{Firmware, Graphics, OnNodeLoss, Platform, Vm};
use tamdao_model::volume::Volume;
use tamdao_model::{NetworkId, NodeId, PoolId, VmId, VolumeId};

use crate::capacity;
use crate::cells::{CELLS_MAX, Cells};
use crate::overhead::{emulation_overhead_mib, overhead_mib};
use crate::plan::Guard;
use crate::score::{TABLE, Weights};
use crate::shape::{
    AMOUNT_MAX, By, Cell, Day, DiskNeed, Group, GroupId, NodePool, NodeShape, PoolShape, Rule, RuleKind,
    SharedRoom, VmShape,
};

/// Why a record cannot be read as a shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("volume {0} is not known")]
    VolumeUnknown(VolumeId),
    #[error("pool {0} is not known")]
    PoolUnknown(PoolId),
    #[error("network {0} is not known")]
    NetworkUnknown(NetworkId),
}

/// Virtual CPUs that a node may promise.
pub fn vcpus_allocatable(node: &Node) -> u32 {
    node.allocatable().vcpus
}

/// Memory that a node may promise, MiB: physical less reserve, times overcommit.
pub fn memory_allocatable_mib(node: &Node) -> u64 {
    node.allocatable().memory_mib
}

/// A pool; a shared one with what its nodes see of it and with the sizes of all its volumes, placed or not.
///
/// `seen` is (capacity, used) by each node that has it ready; the smallest capacity and the largest use count.
pub fn pool(pool: &Pool, seen: impl Iterator<Item = (u64, u64)>, promised_mib: u64) -> PoolShape {
    let shared = pool.spec.shared.then(|| {
        let worst = seen.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        let (capacity, used) = worst.unwrap_or((0, 0));
        SharedRoom { capacity_mib: pool.allocatable_mib(capacity, used), held_mib: promised_mib }
    });
    PoolShape { id: pool.id(), name: pool.meta.name.as_str().into(), shared }
}

/// A node with the pools that it should hold, asked about the platforms that VMs have. The volumes of its assignment are what it holds on disk.
pub fn node<'a>(
    node: &Node,
    assignment: &Assignment,
    pools: impl Iterator<Item = &'a Pool>,
    platforms: impl Iterator<Item = &'a Platform>,
) -> NodeShape {
    let inventory = &node.status.inventory;
    let id = node.id();
    let here = |pool: &Pool| {
        let seen = node.status.pools.get(&pool.id());
        let (ready, capacity, used) = seen.map_or((false, 0, 0), |s| (s.ready, s.capacity_mib, s.used_mib));
        match pool.spec.shared {
            true => NodePool { ready, ..NodePool::default() },
            false => NodePool {
                ready,
                capacity_mib: pool.allocatable_mib(capacity, used),
                held_mib: assignment.promised_mib(pool.id()),
            },
        }
    };
    // Nodes do not tell of huge pages yet.
    let cell = |of: Reservation| Cell { vcpus: of.vcpus, memory_mib: of.memory_mib, huge_mib: 0 };
    NodeShape {
        id,
        name: node.meta.name.as_str().into(),
        labels: node.meta.labels.clone(),
        domains: node.spec.failure_domains.clone(),
        ready: node.status.phase == NodePhase::Ready,
        cordoned: node.spec.cordoned,
        vcpus: vcpus_allocatable(node),
        memory_mib: memory_allocatable_mib(node),
        pools: pools.filter(|pool| pool.is_on(id)).map(|pool| (pool.id(), here(pool))).collect(),
        cells: node.cells_allocatable().into_iter().map(cell).collect(),
        platforms: platforms.filter(|one| node.cannot_be(one).is_none()).map(word).collect(),
        emulation: inventory.acceleration == "qemu",
        bridges: inventory.bridges.iter().cloned().collect(),
        firmware: inventory.firmware.iter().cloned().collect(),
        tpm: inventory.tpm,
        support_ends: day(&node.spec.support_ends),
    }
}

/// Reads YYYY-MM-DD; none if it is anything else.
fn day(text: &str) -> Option<Day> {
    let mut parts = text.split('-').map(|part| part.parse::<u32>().ok());
    match (parts.next()??, parts.next()??, parts.next()??, parts.next()) {
        (year @ 1..=9_999, month @ 1..=12, day @ 1..=31, None) => {
            Some(Day(year * 10_000 + month * 100 + day))
        }
        _ => None,
    }
}

/// The engine's word for a platform.
fn word(platform: &Platform) -> Arc<str> {
    match platform.machine_type.as_str() {
        // The node says which.
        "" => platform.cpu_model.as_str().into(),
        machine_type => format!("{machine_type}/{}", platform.cpu_model).into(),
    }
}

/// A VM that asks for a place, with the platform that its guest sees or is to see.
///
/// A volume of a local pool that already lies on a node pins the VM to that node. Shared volumes count as held by
/// the pool since they were made as records, so they ask for the pool and for no further room.
pub fn vm<'a>(
    vm: &Vm,
    platform: Option<&Platform>,
    volume: impl Fn(VolumeId) -> Option<&'a Volume>,
    pool: impl Fn(PoolId) -> Option<&'a Pool>,
    network: impl Fn(NetworkId) -> Option<&'a Network>,
) -> Result<VmShape, ShapeError> {
    let mut shape = VmShape::bare(vm.id(), vm.meta.name.as_str(), 0, 0);
    for id in vm.volumes() {
        let volume = volume(id).ok_or(ShapeError::VolumeUnknown(id))?;
        let pool = pool(volume.spec.pool).ok_or(ShapeError::PoolUnknown(volume.spec.pool))?;
        let on = volume.status.node.filter(|_| !pool.spec.shared);
        shape.pin = shape.pin.or(on);
        let size_mib = if pool.spec.shared { 0 } else { u64::from(volume.spec.size_mib) };
        shape.disks.push(DiskNeed { pool: volume.spec.pool, size_mib, on });
    }
    for interface in &vm.spec.interfaces {
        let network = network(interface.network).ok_or(ShapeError::NetworkUnknown(interface.network))?;
        shape.bridges.insert(network.spec.provider.device());
    }
    let display = u32::from(vm.spec.graphics != Graphics::None);
    let devices = vm.spec.disks.len() + vm.spec.interfaces.len();
    let devices = u32::try_from(devices).unwrap_or(u32::MAX).saturating_add(display);
    let memory = u64::from(vm.spec.memory_mib);
    shape.reservation.vcpus = vm.spec.vcpus;
    shape.reservation.memory_mib = memory + overhead_mib(vm.spec.vcpus, memory, false, devices);
    shape.emulation_extra_mib = emulation_overhead_mib();
    // An admin's pin is the stronger one: a VM whose disks lie elsewhere is then told so.
    shape.pin = vm.spec.pin.or(shape.pin);
    shape.labels = vm.spec.node_labels.clone();
    shape.forbidden_labels = vm.spec.forbidden_node_labels.clone();
    shape.isolation = vm.spec.isolation_class.as_ref().map(|class| class.as_str().into());
    shape.priority = vm.spec.priority;
    shape.groups = vm.spec.placement_groups.iter().map(|id| GroupId(id.0)).collect();
    shape.protected = stays(vm, &volume, &pool).is_none();
    shape.firmware = firmware(vm);
    shape.tpm = vm.spec.tpm;
    shape.platform = platform.map(word);
    shape.agency = Some(vm.agency);
    shape.cells = vm.spec.numa_cells;
    Ok(shape)
}

/// The cells of a node that have these numbers of libvirt's; those that it no longer has are left out.
pub fn cells(node: &Node, numbers: &[u32]) -> Cells {
    let all = node.status.inventory.numa_cells.iter().enumerate();
    let positions = all.filter(|(_, cell)| numbers.contains(&cell.id)).map(|(at, _)| at);
    Cells::of(positions.take_while(|at| *at < CELLS_MAX)).unwrap_or_default()
}

/// Libvirt's numbers of a node's cells.
pub fn cell_numbers(node: &Node, cells: Cells) -> Vec<u32> {
    let all = &node.status.inventory.numa_cells;
    cells.iter().filter_map(|at| all.get(at)).map(|cell| cell.id).collect()
}

/// Why a VM is not restarted on another node when its own is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stays {
    /// Its spec says so.
    Asked,
    /// It may run on one node only.
    Pinned,
    /// No other node has this volume.
    Local(VolumeId),
}

/// Why a VM would stay down when its node is lost; none if it is to be restarted elsewhere, which is what guarded
/// failure domains keep room for.
pub fn stays<'a>(
    vm: &Vm,
    volume: impl Fn(VolumeId) -> Option<&'a Volume>,
    pool: impl Fn(PoolId) -> Option<&'a Pool>,
) -> Option<Stays> {
    match (vm.spec.on_node_loss, vm.spec.pin) {
        (OnNodeLoss::Stay, _) => return Some(Stays::Asked),
        (OnNodeLoss::Evacuate, Some(_)) => return Some(Stays::Pinned),
        (OnNodeLoss::Evacuate, None) => {}
    }
    let shared =
        |id: &VolumeId| volume(*id).and_then(|volume| pool(volume.spec.pool)).is_some_and(|p| p.spec.shared);
    vm.volumes().find(|id| !shared(id)).map(Stays::Local)
}

/// A placement group with its rules.
pub fn group(group: &PlacementGroup) -> Group {
    let rule = |rule: &tamdao_model::placement_group::PlacementRule| Rule {
        kind: match rule.kind {
            PlacementRuleKind::Apart => RuleKind::Apart { at_most: rule.at_most.max(1) },
            PlacementRuleKind::Together => RuleKind::Together,
        },
        by: match &rule.by {
            PlacedBy::Node => By::Node,
            PlacedBy::Domain(key) => By::Domain(key.clone()),
        },
        required: !rule.preferred,
    };
    let rules = group.spec.rules.iter().map(rule).collect();
    Group { id: GroupId(group.id().0), name: group.meta.name.as_str().into(), rules }
}

/// The weights that a policy sets; names that this engine does not have weigh nothing.
pub fn weights(policy: &SchedulingPolicy) -> Weights {
    Weights(TABLE.map(|part| policy.spec.weights.get(part.name).copied().unwrap_or(part.weight)))
}

/// The losses that a policy guards against.
pub fn guard(policy: &SchedulingPolicy) -> Guard {
    let keys = policy.spec.guarded_failure_domains.iter();
    let (nodes, keys): (Vec<_>, Vec<_>) = keys.cloned().partition(|key| key == NODE);
    Guard { nodes: !nodes.is_empty(), keys: keys.into_iter().collect() }
}

/// The smallest VM of a flavor: one disk, one interface, no display. Where its disk lies is not the flavor's to say, so
/// it asks for no room in a pool, and neither disk nor address counts in a quota.
pub fn flavor(flavor: &Flavor) -> capacity::Flavor {
    let (vcpus, memory) = (flavor.spec.vcpus, u64::from(flavor.spec.memory_mib));
    let memory_mib = memory + overhead_mib(vcpus, memory, false, 2);
    let mut shape = VmShape::bare(VmId(flavor.id().0), flavor.meta.name.as_str(), vcpus, memory_mib);
    shape.emulation_extra_mib = emulation_overhead_mib();
    let class = flavor.spec.class.clone().map(|class| (Measure::FlavorClass(class), 1));
    let counts = [
        (Measure::Vms, 1),
        (Measure::Vcpus, u64::from(vcpus)),
        (Measure::MemoryMib, memory),
        (Measure::ProtectedMemoryMib, memory),
    ];
    capacity::Flavor { shape: Arc::new(shape), counts: counts.into_iter().chain(class).collect() }
}

/// An agency with what its quota leaves for itself, and whether it takes nothing new.
pub fn agency(agency: &Agency, free: Quota, closed: bool) -> capacity::Agency {
    let free = free.into_iter().map(|(measure, free)| (measure, free.min(AMOUNT_MAX))).collect();
    capacity::Agency { id: agency.id(), name: agency.meta.name.as_str().into(), closed, free }
}

fn firmware(vm: &Vm) -> BTreeSet<String> {
    // Kernel and initrd are loaded by QEMU itself, but its firmware still runs first.
    let name = match (vm.spec.firmware, vm.spec.secure_boot) {
        (_, true) => "uefi-secure",
        (Firmware::Uefi, false) => "uefi",
        (Firmware::Bios, false) => "bios",
    };
    BTreeSet::from([name.to_owned()])
}

/// A VM that holds a place on a node by its assignment's entry: what it holds is the entry's, whatever its record
/// asks now, and its disks are the node's by record. `asked` is the shape of its record, if there still is one.
pub fn placed(node: NodeId, id: VmId, entry: &VmEntry, asked: Option<VmShape>) -> Arc<VmShape> {
    let mut shape = asked.unwrap_or_else(|| VmShape::bare(id, &id.to_string(), 0, 0));
    let memory_mib = entry.reservation.memory_mib.min(AMOUNT_MAX);
    shape.reservation = Reservation { memory_mib, ..entry.reservation };
    shape.emulation_extra_mib = 0;
    for disk in &mut shape.disks {
        disk.on = Some(node);
    }
    Arc::new(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tamdao_model::node::NumaCell;
    use tamdao_model::node::{Inventory, NodeSpec, NodeStatus, PoolSeen};
    use tamdao_model::pool::{PoolKind, PoolSpec};
    use tamdao_model::{Meta, Name, TimeMs};
    use uuid::Uuid;

    fn meta(id: u128, name: &str) -> Meta {
        Meta::new(Uuid::from_u128(id), Name::new(name).unwrap(), TimeMs::default())
    }

    fn a_node() -> Node {
        let inventory = Inventory { cpus: 16, memory_mib: 65_536, ..Inventory::default() };
        let status = NodeStatus { phase: NodePhase::Ready, inventory, ..NodeStatus::default() };
        Node { meta: meta(1, "n1"), spec: NodeSpec::default(), status }
    }

    fn a_pool(percent: u32, reserve_mib: u32) -> Pool {
        let spec = PoolSpec {
            kind: PoolKind::Dir,
            shared: false,
            path: "/var/lib/vms".into(),
            nodes: BTreeSet::new(),
            overcommit_percent: percent,
            reserve_mib,
        };
        Pool { meta: meta(2, "local"), spec }
    }

    #[test]
    fn overcommit_and_reserve_are_applied_once() {
        let mut node = a_node();
        assert_eq!((vcpus_allocatable(&node), memory_allocatable_mib(&node)), (64, 65_536 - 1_310));
        node.spec.cpu_overcommit_percent = 150;
        node.spec.memory_overcommit_percent = 110;
        node.spec.reserve_memory_mib = 5_536;
        assert_eq!((vcpus_allocatable(&node), memory_allocatable_mib(&node)), (24, 66_000));
        node.status.inventory.memory_mib = 100;
        assert_eq!(memory_allocatable_mib(&node), 0);
        node.status.inventory.memory_mib = u64::MAX;
        assert_eq!(memory_allocatable_mib(&node), AMOUNT_MAX);
    }

    #[test]
    fn a_pool_that_is_really_full_promises_nothing() {
        let pool = a_pool(200, 1_000);
        assert_eq!(pool.allocatable_mib(10_000, 0), 18_000);
        assert_eq!(pool.allocatable_mib(10_000, 8_999), 18_000);
        assert_eq!(pool.allocatable_mib(10_000, 9_000), 0);
        let mut record = a_node();
        let seen = PoolSeen { ready: true, capacity_mib: 10_000, ..PoolSeen::default() };
        record.status.pools.insert(pool.id(), seen);
        let shape = node(&record, &Assignment::empty(record.id()), [&pool].into_iter(), std::iter::empty());
        assert_eq!(shape.pools[&pool.id()], NodePool { ready: true, capacity_mib: 18_000, held_mib: 0 });
        // The check of a placement, and what users are shown, go by the same number.
        for used_mib in [0, 8_999, 9_000, u64::MAX] {
            record.status.pools.get_mut(&pool.id()).unwrap().used_mib = used_mib;
            let shape =
                node(&record, &Assignment::empty(record.id()), [&pool].into_iter(), std::iter::empty());
            assert_eq!(shape.pools[&pool.id()].capacity_mib, record.pool_allocatable_mib(&pool));
        }
    }

    #[test]
    fn cells_share_what_the_node_may_promise() {
        let mut record = a_node();
        let cell =
            |id, cpus: std::ops::Range<u32>, memory_mib| NumaCell { id, cpus: cpus.collect(), memory_mib };
        record.status.inventory.numa_cells = vec![cell(0, 0..12, 49_152), cell(1, 12..16, 16_384)];
        let shape = node(&record, &Assignment::empty(record.id()), std::iter::empty(), std::iter::empty());
        assert_eq!(shape.cells[0], Cell { vcpus: 48, memory_mib: (65_536 - 1_310) * 3 / 4, huge_mib: 0 });
        assert_eq!(shape.cells[1], Cell { vcpus: 16, memory_mib: (65_536 - 1_310) / 4, huge_mib: 0 });
    }

    #[test]
    fn only_whole_dates_are_dates() {
        assert_eq!(day("2031-12-31"), Some(Day(20_311_231)));
        for text in ["", "2031", "2031-13-01", "2031-12-31-1", "soon"] {
            assert_eq!(day(text), None);
        }
    }
}
