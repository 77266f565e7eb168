//! Random small clusters for property tests: few values of everything, so that rules meet and ties happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use tamdao_model::{NodeId, PoolId, VmId};
use tamdao_scheduler::{
    By, Cell, Day, DiskNeed, Group, GroupId, NodePool, NodeShape, PoolShape, Rule, RuleKind, SharedRoom,
    View, VmShape,
};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: Vec<NodeShape>,
    pub pools: Vec<PoolShape>,
    pub groups: Vec<Group>,
    pub vms: Vec<Arc<VmShape>>,
}

impl Plan {
    pub fn empty_view(&self) -> View {
        let mut view = View::new();
        self.pools.iter().for_each(|pool| view.set_pool(pool.clone()));
        self.groups.iter().for_each(|group| view.set_group(group.clone()));
        view
    }

    pub fn view(&self) -> View {
        let mut view = self.empty_view();
        self.nodes.iter().for_each(|node| view.set_node(node.clone()));
        view
    }
}

fn pool_id(n: u128) -> PoolId {
    PoolId(Uuid::from_u128(n))
}

fn set(values: &[&str], mask: u8) -> BTreeSet<String> {
    let chosen = values.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1);
    chosen.map(|(_, value)| (*value).to_owned()).collect()
}

fn mostly(rare: bool) -> impl Strategy<Value = bool> {
    prop::bool::weighted(if rare { 0.1 } else { 0.9 })
}

prop_compose! {
    fn any_node(id: u128)(
        vcpus in prop::sample::select(vec![0u32, 8, 16, 17, 64]),
        memory_mib in prop::sample::select(vec![4_096u64, 8_192, 8_200, 32_768, 32_768, 1 << 50]),
        (ready, cordoned, emulation, tpm) in (mostly(false), mostly(true), mostly(true), any::<bool>()),
        racks in prop::sample::select(vec![1u8, 1, 2, 4, 3, 0]),
        feeds in prop::sample::select(vec![1u8, 2, 3]),
        (bridges, firmware, labels, platforms) in (prop::sample::select(vec![3u8, 3, 1]), prop::sample::select(vec![7u8, 7, 1]), 0u8..4, prop::sample::select(vec![3u8, 3, 3, 1])),
        local in prop::option::weighted(0.8, (mostly(false), 0u64..60_000, 0u64..20_000)),
        shared in prop::option::weighted(0.8, mostly(false)),
        support in prop::option::of(prop::sample::select(vec![20_270_101u32, 20_300_630])),
        cells in prop::collection::vec((prop::sample::select(vec![4u32, 8, 8, 16]), prop::sample::select(vec![2_048u64, 4_096, 16_384]), prop::sample::select(vec![0u64, 1_024, 2_048])), 0..4),
    ) -> NodeShape {
        let mut node = NodeShape::bare(NodeId(Uuid::from_u128(id)), &format!("n{id}"));
        (node.vcpus, node.memory_mib) = (vcpus, memory_mib);
        (node.ready, node.cordoned, node.emulation, node.tpm) = (ready, cordoned, emulation, tpm);
        node.domains = BTreeMap::from([("rack".to_owned(), set(&["r1", "r2", "r3"], racks)), ("feed".to_owned(), set(&["a", "b"], feeds))]);
        node.domains.retain(|_, values| !values.is_empty());
        node.bridges = set(&["br0", "br1"], bridges);
        node.firmware = set(&["bios", "uefi", "uefi-secure"], firmware);
        node.platforms = set(&["old", "new"], platforms).into_iter().map(Into::into).collect();
        node.labels = set(&["gold", "old"], labels).into_iter().map(|key| (key, "yes".to_owned())).collect();
        if let Some((ready, capacity_mib, held_mib)) = local {
            node.pools.insert(pool_id(1), NodePool { ready, capacity_mib, held_mib });
        }
        if let Some(ready) = shared {
            node.pools.insert(pool_id(2), NodePool { ready, ..NodePool::default() });
        }
        node.support_ends = support.map(Day);
        node.cells = cells.into_iter().map(|(vcpus, memory_mib, huge_mib)| Cell { vcpus, memory_mib, huge_mib }).collect();
        node
    }
}

prop_compose! {
    fn any_vm(id: u128, nodes: usize)(
        vcpus in prop::sample::select(vec![0u32, 1, 2, 3, 4, 8, 16]),
        memory_mib in prop::sample::select(vec![0u64, 512, 512, 1_024, 1_024, 1_500, 4_096, 8_192, 1 << 50]),
        extra in prop::sample::select(vec![0u64, 200]),
        disks in prop::collection::vec((prop::sample::select(vec![1u128, 1, 2, 9]), 0u64..20_000, prop::option::weighted(0.1, 0..nodes.max(1))), 0..3),
        has_disks in any::<bool>(),
        (labels, forbidden) in (prop::sample::select(vec![0u8, 0, 0, 1]), prop::sample::select(vec![0u8, 0, 2])),
        pin in prop::option::weighted(0.1, 0..=nodes),
        (bridges, firmware, tpm, platform) in (prop::sample::select(vec![0u8, 1, 2]), prop::sample::select(vec![0u8, 1, 2]), mostly(true), prop::option::weighted(0.3, prop::sample::select(vec!["old", "old", "new", "none"]))),
        isolation in prop::option::weighted(0.1, prop::sample::select(vec!["health", "police"])),
        groups in prop::sample::select(vec![0u8, 0, 0, 1, 1, 2, 4, 3]),
        priority in 0u32..3,
        (protected, cells, huge_mib) in (any::<bool>(), prop::sample::select(vec![0u32, 0, 0, 1, 1, 2, 3]), prop::sample::select(vec![0u64, 0, 0, 512, 1_025])),
    ) -> Arc<VmShape> {
        let node = |n: usize| NodeId(Uuid::from_u128(n as u128 + 1));
        let mut vm = VmShape::bare(VmId(Uuid::from_u128(id)), &format!("v{id}"), vcpus, memory_mib);
        vm.emulation_extra_mib = extra;
        if has_disks {
            let need = |(pool, size_mib, on): (u128, u64, Option<usize>)| DiskNeed { pool: pool_id(pool), size_mib, on: on.filter(|_| pool == 1).map(node) };
            vm.disks = disks.into_iter().filter(|(pool, ..)| *pool != 9 || id.is_multiple_of(7)).map(need).collect();
        }
        vm.labels = set(&["gold"], labels).into_iter().map(|key| (key, "yes".to_owned())).collect();
        vm.forbidden_labels = set(&["gold", "old"], forbidden).into_iter().map(|key| (key, "yes".to_owned())).collect();
        vm.pin = pin.map(node);
        vm.bridges = set(&["br0", "br1"], bridges);
        vm.firmware = set(&["bios", "uefi"], firmware);
        vm.tpm = tpm;
        vm.platform = platform.map(Into::into);
        vm.isolation = isolation.map(Into::into);
        vm.groups = (0..3).filter(|g| groups >> g & 1 == 1).map(|g| GroupId(Uuid::from_u128(g + 1))).collect();
        vm.priority = priority;
        (vm.protected, vm.cells) = (protected, cells);
        vm.huge_mib = if cells > 0 { huge_mib } else { 0 };
        Arc::new(vm)
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let by = prop::sample::select(vec![
        By::Node,
        By::Domain("rack".into()),
        By::Domain("feed".into()),
        By::Domain("none".into()),
    ]);
    let kind = prop_oneof![3 => (1u32..3).prop_map(|at_most| RuleKind::Apart { at_most }), 1 => Just(RuleKind::Together)];
    (kind, by, any::<bool>()).prop_map(|(kind, by, required)| Rule { kind, by, required })
}

pub fn any_plan(nodes: usize, vms: usize) -> impl Strategy<Value = Plan> {
    (0..=nodes, 0..=vms).prop_flat_map(|(nodes, vms)| {
        let all_nodes: Vec<_> = (0..nodes).map(|n| any_node(n as u128 + 1)).collect();
        let all_vms: Vec<_> = (0..vms).map(|v| any_vm(v as u128 + 1, nodes)).collect();
        let groups = prop::collection::vec(prop::collection::vec(any_rule(), 0..3), 3);
        (all_nodes, all_vms, groups, 0u64..100_000).prop_map(|(nodes, vms, rules, capacity_mib)| {
            let room = SharedRoom { capacity_mib, held_mib: 1_000 };
            let pool = |id, name: &str, shared| PoolShape { id: pool_id(id), name: name.into(), shared };
            let group = |(g, rules)| Group {
                id: GroupId(Uuid::from_u128(g as u128 + 1)),
                name: format!("g{}", g + 1).into(),
                rules,
            };
            Plan {
                nodes,
                pools: vec![pool(1, "local", None), pool(2, "shared", Some(room))],
                groups: rules.into_iter().enumerate().map(group).collect(),
                vms,
            }
        })
    })
}
