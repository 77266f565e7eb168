//! How fast the failover guarantee decides, what it refuses, and how fast a loss is planned from scratch: 1,000 nodes
//! in 25 racks of 40 unless told otherwise, 9 flavors, all VMs protected, the loss of any node and of any rack
//! guarded, one thread. A decision is one `admit`, or the refusal; before each a random VM leaves, so that the
//! fullness stays. Times are of the thread on the processor, so that other work of the machine does not count.
//! Usage: failover_speed [NODES]

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::survive::guarantee::{Guarantee, Lack, Refusal};
use tamdao_scheduler::survive::{Loss, survive};
use tamdao_scheduler::{By, NodeShape, View, VmShape};
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

/// Time of this thread on the processor.
fn spent() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn node_id(n: usize) -> NodeId {
    NodeId(Uuid::from_u128(n as u128 + 1))
}

/// The fleet as it grew at random, without regard to losses.
fn fleet(nodes: usize, percent: u64, random: &mut Random) -> (View, Vec<(NodeId, VmId)>) {
    let mut view = View::new();
    let whole = |used: u64| used * 100 / percent;
    for n in 0..nodes {
        let mut node = NodeShape::bare(node_id(n), &format!("n{n}"));
        node.vcpus = u32::try_from(whole(136)).unwrap();
        node.memory_mib = whole(404 * 1_024);
        node.domains = BTreeMap::from([("rack".into(), [format!("r{:03}", n / RACK)].into())]);
        view.set_node(node);
    }
    let mut placed = Vec::new();
    for n in 0..nodes * VMS_PER_NODE {
        let vm = vm(n, random);
        let fits = |view: &View, node: NodeId| {
            let used = view.node_use(node).unwrap();
            used.vcpus - used.vcpus_used >= u64::from(vm.reservation.vcpus)
                && used.memory_mib - used.memory_used_mib >= vm.reservation.memory_mib
        };
        let node = (0..200).map(|_| node_id(random.below(nodes))).find(|node| fits(&view, *node));
        let Some(node) = node else { break };
        placed.push((node, vm.id));
        view.assign(node, vm).unwrap();
    }
    (view, placed)
}

fn vm(n: usize, random: &mut Random) -> Arc<VmShape> {
    let (vcpus, gib) = FLAVORS[random.below(FLAVORS.len())];
    let id = VmId(Uuid::from_u128(n as u128 + 1));
    let mut vm = VmShape::bare(id, "v", vcpus, gib * 1_024 + 150);
    (vm.protected, vm.priority) = (true, u32::try_from(random.below(3)).unwrap());
    Arc::new(vm)
}

fn main() {
    let nodes = std::env::args().nth(1).map_or(1_000, |nodes| nodes.parse().unwrap());
    println!(
        "full  plan all ms  left out  decisions/s  refused %  not proven %  p50 us  p99 us  p99.9 us  leave us"
    );
    for percent in [60, 80, 90, 95] {
        measure(nodes, percent);
    }
    println!("\nlost    full   VMs  plan ms  left out");
    for percent in [60, 80] {
        storm(nodes, percent);
    }
}

fn measure(nodes: usize, percent: u64) {
    let mut random = Random(0x7a6d_dab0);
    let (view, mut placed) = fleet(nodes, percent, &mut random);
    let begin = spent();
    let mut guarantee = Guarantee::new(view, &[By::Node, By::Domain("rack".into())]);
    let planned = spent() - begin;
    let left_out = guarantee.broken().count();
    let mut took = Vec::with_capacity(DECISIONS);
    let (mut refused, mut not_proven, mut leaving) = (0, 0, Duration::ZERO);
    for n in 0..DECISIONS {
        // A refused VM leaves its room to the next, so the fullness sinks to what the guarantee can keep.
        let (node, out) = placed.swap_remove(random.below(placed.len()));
        let begin = spent();
        guarantee.release(node, out);
        leaving += spent() - begin;
        let vm = vm(1_000_000 + n, &mut random);
        let begin = spent();
        let answer = guarantee.admit(&vm);
        took.push(spent() - begin);
        match answer {
            Ok(placement) => placed.push((placement.node, vm.id)),
            Err(refusal) => {
                refused += 1;
                let Refusal::Unguarded { broken, .. } = refusal else { continue };
                not_proven += usize::from(broken.lack == Lack::NotProven);
            }
        }
    }
    let all: Duration = took.iter().sum();
    took.sort_unstable();
    let at = |per_mille: usize| took[took.len() * per_mille / 1_000].as_secs_f64() * 1e6;
    let percent_of = |count: usize| 100.0 * count as f64 / DECISIONS as f64;
    println!(
        "{percent:3}%  {:11.0}  {left_out:8}  {:11.0}  {:9.2}  {:12.2}  {:6.1}  {:6.1}  {:8.1}  {:8.1}",
        planned.as_secs_f64() * 1e3,
        DECISIONS as f64 / all.as_secs_f64(),
        percent_of(refused),
        percent_of(not_proven),
        at(500),
        at(990),
        at(999),
        leaving.as_secs_f64() * 1e6 / DECISIONS as f64,
    );
}

fn storm(nodes: usize, percent: u64) {
    let mut random = Random(0x7a6d_dab0);
    let (view, _) = fleet(nodes, percent, &mut random);
    let rack = Loss::Domain { key: "rack".into(), value: "r001".into() };
    for (name, loss) in [("node", Loss::Node(node_id(3))), ("rack", rack)] {
        let begin = spent();
        let survival = survive(&view, loss);
        let took = (spent() - begin).as_secs_f64() * 1e3;
        let vms = survival.plan.len() + survival.left_out.len();
        println!("{name}    {percent:3}%  {vms:4}  {took:7.2}  {:8}", survival.left_out.len());
    }
}
