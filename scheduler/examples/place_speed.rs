//! How fast VMs are placed: decisions per second and their percentiles on random fleets of several sizes and
//! fullnesses, 20 VMs per node, 9 flavors, one thread. A decision is one `place` and one `assign`; between two of
//! them a random VM leaves, so that the fullness stays. A fork is a clone with its first change; a refusal counts
//! every node's reason. Usage: place_speed [plain|spread|disk]…

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tamdao_model::{NodeId, PoolId, VmId};
use tamdao_scheduler::place::{find, place};
use tamdao_scheduler::{
    By, DiskNeed, Group, GroupId, NodePool, NodeShape, PoolShape, Rule, RuleKind, View, VmShape,
};
use uuid::Uuid;

/// (vCPUs, GiB), alike likely: 6.8 vCPUs and 20.2 GiB on average.
const FLAVORS: [(u32, u64); 9] =
    [(1, 2), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 32), (16, 64)];
const VMS_PER_NODE: usize = 20;
const DECISIONS: usize = 20_000;
const RACK: usize = 40;

/// Xorshift (Marsaglia 2003): a fixed seed makes every run the same.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// Every VM is in a group of 10 with anti-affinity by node and a preferred spread by rack.
    Spread,
    /// Every VM has a disk of random size in the node's local pool.
    Disk,
}

struct Fleet {
    view: View,
    random: Random,
    kind: Kind,
    next: u128,
    placed: Vec<(NodeId, VmId)>,
}

impl Fleet {
    fn new(kind: Kind, nodes: usize, percent: u64) -> Self {
        let mut view = View::new();
        let pool = PoolId(Uuid::from_u128(1));
        view.set_pool(PoolShape { id: pool, name: "local".into(), shared: None });
        let whole = |used: u64| used * 100 / percent;
        for n in 0..nodes {
            let mut node = NodeShape::bare(NodeId(Uuid::from_u128(n as u128 + 1)), &format!("n{n}"));
            node.vcpus = u32::try_from(whole(136)).unwrap();
            node.memory_mib = whole(404 * 1_024);
            let capacity_mib = whole(20 * 50 * 1_024);
            node.pools.insert(pool, NodePool { ready: true, capacity_mib, held_mib: 0 });
            node.domains = BTreeMap::from([("rack".into(), [format!("r{}", n / RACK)].into())]);
            view.set_node(node);
        }
        for g in 0..nodes * VMS_PER_NODE / 10 + 1 {
            let spread = |at_most, by, required| Rule { kind: RuleKind::Apart { at_most }, by, required };
            let rules = vec![spread(1, By::Node, true), spread(1, By::Domain("rack".into()), false)];
            view.set_group(Group {
                id: GroupId(Uuid::from_u128(g as u128)),
                name: format!("g{g}").into(),
                rules,
            });
        }
        let mut fleet = Self { view, random: Random(0x7a6d_dab0), kind, next: 0, placed: Vec::new() };
        // A fleet that grew at random, not one that was packed: fullness is spread over all nodes.
        while fleet.placed.len() < nodes * VMS_PER_NODE {
            let vm = fleet.vm();
            let slot = (0..200).map(|_| fleet.random.below(nodes)).find(|n| {
                let id = NodeId(Uuid::from_u128(*n as u128 + 1));
                let mut pinned = (*vm).clone();
                pinned.pin = Some(id);
                find(&fleet.view, &pinned).is_some()
            });
            let Some(n) = slot else { break };
            let id = NodeId(Uuid::from_u128(n as u128 + 1));
            fleet.view.assign(id, vm.clone()).unwrap();
            fleet.placed.push((id, vm.id));
        }
        fleet
    }

    fn vm(&mut self) -> Arc<VmShape> {
        self.next += 1;
        let (vcpus, gib) = FLAVORS[self.random.below(FLAVORS.len())];
        let mut vm = VmShape::bare(VmId(Uuid::from_u128(self.next)), "v", vcpus, gib * 1_024 + 150);
        match self.kind {
            Kind::Plain => {}
            Kind::Spread => {
                let groups = self.view.node_count() * VMS_PER_NODE / 10;
                let group = u128::try_from(self.random.below(groups)).unwrap();
                vm.groups.insert(GroupId(Uuid::from_u128(group)));
            }
            Kind::Disk => {
                let size_mib = 1_024 * (1 + self.random.below(99)) as u64;
                vm.disks = vec![DiskNeed { pool: PoolId(Uuid::from_u128(1)), size_mib, on: None }];
            }
        }
        Arc::new(vm)
    }
}

fn main() {
    let kinds = [("plain", Kind::Plain), ("spread", Kind::Spread), ("disk", Kind::Disk)];
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    println!(
        "kind    nodes  full  decisions/s  refused  p50 us  p99 us  p99.9 us  assign us  fork us  refusal us"
    );
    for (name, kind) in
        kinds.into_iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name))
    {
        for nodes in [100, 1_000, 10_000] {
            for percent in [60, 80, 95] {
                measure(name, kind, nodes, percent);
            }
        }
    }
}

fn measure(name: &str, kind: Kind, nodes: usize, percent: u64) {
    let mut fleet = Fleet::new(kind, nodes, percent);
    let mut took = Vec::with_capacity(DECISIONS);
    let (mut deciding, mut assigning, mut refused) = (Duration::ZERO, Duration::ZERO, 0usize);
    for _ in 0..DECISIONS {
        let out = fleet.random.below(fleet.placed.len());
        let (node, vm) = fleet.placed.swap_remove(out);
        fleet.view.release(node, vm);
        let vm = fleet.vm();
        let begin = Instant::now();
        let answer = place(&fleet.view, &vm);
        let decided = begin.elapsed();
        match answer {
            Ok(placement) => {
                let begin = Instant::now();
                fleet.view.assign(placement.node, vm.clone()).unwrap();
                assigning += begin.elapsed();
                fleet.placed.push((placement.node, vm.id));
            }
            Err(_) => refused += 1,
        }
        deciding += decided;
        took.push(decided);
    }
    let begin = Instant::now();
    let mut fork = fleet.view.clone();
    let (node, vm) = fleet.placed[0];
    fork.release(node, vm);
    let forked = begin.elapsed();
    let mut huge = (*fleet.vm()).clone();
    huge.reservation.memory_mib = 1 << 40;
    let begin = Instant::now();
    assert!(place(&fleet.view, &huge).is_err());
    let refused_in = begin.elapsed();
    took.sort_unstable();
    let at =
        |per_mille: usize| took[(took.len() * per_mille / 1_000).min(took.len() - 1)].as_secs_f64() * 1e6;
    let rate = DECISIONS as f64 / (deciding + assigning).as_secs_f64();
    let placed = (DECISIONS - refused).max(1) as f64;
    println!(
        "{name:6} {nodes:6}  {percent:3}%  {rate:11.0}  {refused:7}  {:6.1}  {:6.1}  {:8.1}  {:9.1}  {:7.1}  {:10.1}",
        at(500),
        at(990),
        at(999),
        assigning.as_secs_f64() * 1e6 / placed,
        forked.as_secs_f64() * 1e6,
        refused_in.as_secs_f64() * 1e6,
    );
}
