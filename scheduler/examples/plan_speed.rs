//! How long plans take and how good they are, on random fleets of nodes with 64 CPUs and 256 GiB, one thread. Every
//! plan is judged. "planted": K full nodes are cut into random VMs, which are then scattered over 1.5 K nodes; the
//! best possible answer has K nodes in use. A cluster file is defragmented for 16 CPUs.
//! Usage: plan_speed [drain|consolidate|planted|balance|maintain|rolling|FILE]…

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::judge::judge;
use tamdao_scheduler::place::find;
use tamdao_scheduler::plan::balance::{Policy, balance};
use tamdao_scheduler::plan::consolidate::{Aim, consolidate};
use tamdao_scheduler::plan::defragment::{Fragments, defragment};
use tamdao_scheduler::plan::drain::drain;
use tamdao_scheduler::plan::maintain::maintain;
use tamdao_scheduler::plan::rolling::rolling;
use tamdao_scheduler::plan::{Budget, Guard, Plan, Terms};
use tamdao_scheduler::text::Cluster;
use tamdao_scheduler::{NodeShape, View, VmShape};
use uuid::Uuid;

/// (vCPUs, GiB), alike likely: 6.8 vCPUs and 20.2 GiB on average.
const FLAVORS: [(u32, u64); 9] =
    [(1, 2), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 32), (16, 64)];
const VCPUS: u32 = 64;
const GIB: u64 = 256;

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

fn node_id(n: usize) -> NodeId {
    NodeId(Uuid::from_u128(n as u128 + 1))
}

fn nodes(count: usize, vcpus: u32, gib: u64) -> View {
    let mut view = View::new();
    for n in 0..count {
        let mut node = NodeShape::bare(node_id(n), &format!("n{n}"));
        (node.vcpus, node.memory_mib) = (vcpus, gib * 1_024);
        node.domains.insert("rack".into(), BTreeSet::from([format!("r{}", n / 40)]));
        view.set_node(node);
    }
    view
}

fn vm(n: usize, vcpus: u32, mib: u64) -> Arc<VmShape> {
    let mut vm = VmShape::bare(VmId(Uuid::from_u128(n as u128 + 1)), &format!("v{n}"), vcpus, mib);
    vm.protected = true;
    Arc::new(vm)
}

/// About 20 VMs per node; each goes to a random node with room, so that load is uneven.
fn fleet(count: usize, percent: usize) -> View {
    let mut random = Random(0x5eed + count as u64);
    let (vcpus, gib) = (136 * 100 / percent, 404 * 100 / percent);
    let mut view = nodes(count, u32::try_from(vcpus).unwrap(), gib as u64);
    for n in 0..count * 20 {
        let (vcpus, gib) = FLAVORS[random.below(FLAVORS.len())];
        scatter(&mut view, &mut random, &vm(n, vcpus, gib * 1_024), count);
    }
    view
}

fn scatter(view: &mut View, random: &mut Random, vm: &Arc<VmShape>, count: usize) {
    for _ in 0..20 {
        let node = node_id(random.below(count));
        let used = view.node_use(node).unwrap();
        let room = used.vcpus - used.vcpus_used >= u64::from(vm.reservation.vcpus)
            && used.memory_mib - used.memory_used_mib >= vm.reservation.memory_mib;
        if room {
            view.assign(node, vm.clone()).unwrap();
            return;
        }
    }
    if let Some(place) = find(view, vm) {
        view.assign(place.node, vm.clone()).unwrap();
    }
}

/// K full nodes, each cut at random into about 20 VMs, scattered over half as many nodes more.
fn planted(k: usize) -> View {
    let mut random = Random(0xcafe + k as u64);
    let mut parts: Vec<(u32, u64)> = Vec::new();
    for _ in 0..k {
        let mut pieces = vec![(VCPUS, GIB)];
        // Fewer than 20 if no piece that is drawn can be cut.
        for _ in 0..100 {
            let at = random.below(pieces.len());
            let (vcpus, gib) = pieces[at];
            if vcpus < 2 || gib < 2 || pieces.len() >= 20 {
                continue;
            }
            let cut =
                (1 + random.below(vcpus as usize - 1) as u32, 1 + random.below(gib as usize - 1) as u64);
            pieces[at] = cut;
            pieces.push((vcpus - cut.0, gib - cut.1));
        }
        parts.extend(pieces);
    }
    parts.sort_by_key(|(vcpus, gib)| std::cmp::Reverse(u64::from(*vcpus) * 4 + gib));
    let count = k * 3 / 2;
    let mut view = nodes(count, VCPUS, GIB);
    for (n, (vcpus, gib)) in parts.into_iter().enumerate() {
        scatter(&mut view, &mut random, &vm(n, vcpus, gib * 1_024), count);
    }
    view
}

fn in_use(view: &View) -> usize {
    view.nodes().filter(|node| !view.vms_on(node.id).is_empty()).count()
}

fn report(name: &str, view: &View, begin: Instant, plan: &Plan, terms: &Terms, budget: &Budget, what: &str) {
    let took = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    judge(view, plan, &terms.limits).unwrap();
    println!(
        "{name:12} {:6} nodes: {took:7.3} s, {:7} steps, {:5} moves, {:4} rounds, {:6} GiB, judged in {:.3} s; {what}",
        view.node_count(),
        budget.spent(),
        plan.move_count(),
        plan.rounds.len(),
        plan.copied_mib() / 1_024,
        begin.elapsed().as_secs_f64(),
    );
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let terms = Terms::default();
    if is_wanted("drain") {
        for (count, percent, drained) in [
            (1_000, 60, 1),
            (1_000, 80, 5),
            (1_000, 80, 50),
            (1_000, 60, 100),
            (1_000, 90, 50),
            (10_000, 80, 100),
        ] {
            let view = fleet(count, percent);
            let chosen: BTreeSet<NodeId> = (0..drained).map(|n| node_id(n * (count / drained))).collect();
            let (begin, mut budget) = (Instant::now(), Budget::default());
            let answer = drain(&view, &chosen, &terms, &mut budget);
            let what = format!("{percent} % full, {drained} drained, {} VMs stuck", answer.stuck.len());
            report("drain", &view, begin, &answer.plan, &terms, &budget, &what);
        }
    }
    if is_wanted("consolidate") {
        for (count, percent, steps) in [
            (100, 60, 100_000),
            (1_000, 60, 100_000),
            (1_000, 80, 100_000),
            (1_000, 80, 20_000),
            (5_000, 80, 100_000),
        ] {
            let view = fleet(count, percent);
            let (begin, mut budget) = (Instant::now(), Budget::steps(steps));
            let answer = consolidate(&view, &Aim::default(), &terms, &mut budget);
            let what = format!("{percent} % full, {} emptied", answer.emptied.len());
            report("consolidate", &view, begin, &answer.plan, &terms, &budget, &what);
        }
    }
    if is_wanted("maintain") {
        for (count, percent, guard) in [(100, 60, true), (1_000, 60, false), (1_000, 60, true)] {
            let view = fleet(count, percent);
            let outages = Guard { nodes: false, keys: BTreeSet::from(["rack".to_owned()]) };
            let terms = Terms { guard: guard.then(Guard::by_node), ..Terms::default() };
            let (begin, mut budget) = (Instant::now(), Budget::default());
            let answers = maintain(&view, &outages, &terms, &mut budget);
            let possible = answers.iter().filter(|answer| answer.is_possible()).count();
            let unborne: usize = answers.iter().map(|answer| answer.drain.unborne.len()).sum();
            let what = format!(
                "{possible} of {} racks possible, guard {guard}, {unborne} losses unborne",
                answers.len()
            );
            report("maintain", &view, begin, &answers[0].drain.plan, &terms, &budget, &what);
        }
    }
    if is_wanted("rolling") {
        for (count, percent) in [(100, 60), (1_000, 60), (1_000, 80)] {
            let view = fleet(count, percent);
            let nodes = view.nodes().map(|node| node.id).collect();
            let (begin, mut budget) = (Instant::now(), Budget::default());
            let answer = rolling(&view, &nodes, &terms, &mut budget);
            let sizes: Vec<String> = answer.groups.iter().map(|turn| turn.nodes.len().to_string()).collect();
            let what =
                format!("{percent} % full, turns of {} nodes, {} left", sizes.join(" "), answer.left.len());
            report("rolling", &view, begin, &answer.groups[0].plan, &terms, &budget, &what);
        }
    }
    if is_wanted("balance") {
        for (count, percent) in [(100, 60), (1_000, 60), (5_000, 80)] {
            let view = fleet(count, percent);
            let (begin, mut budget) = (Instant::now(), Budget::default());
            let policy = Policy { hold: 0, ..Policy::default() };
            let answer = balance(&view, &policy, 0, &terms, &mut budget);
            let what =
                format!("{percent} % full, {:?} to {:?}, {:?}", answer.before, answer.after, answer.outcome);
            report("balance", &view, begin, &answer.plan, &terms, &budget, &what);
        }
    }
    for file in wanted.iter().filter(|file| file.ends_with(".txt")) {
        let view = Cluster::parse(&std::fs::read_to_string(file).unwrap()).unwrap().view().unwrap();
        for at_most in [10, 25, 50, 100, view.vm_count() / 50, view.vm_count() / 20] {
            let (begin, mut budget) = (Instant::now(), Budget::default());
            let size = Reservation { vcpus: 16, memory_mib: 0 };
            let answer = defragment(&view, size, at_most, &terms, &mut budget);
            let rate = |fragments: Fragments| fragments.rate() as f64 / 100.0;
            let what =
                format!("at most {at_most}: {:.1} % to {:.1} %", rate(answer.before), rate(answer.after));
            report("defragment", &view, begin, &answer.plan, &terms, &budget, &what);
        }
    }
    if is_wanted("planted") {
        let steps = std::env::var("STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(200_000);
        for k in [2, 4, 10, 20, 50, 100, 400] {
            let view = planted(k);
            let (begin, mut budget) = (Instant::now(), Budget::steps(steps));
            let answer = consolidate(&view, &Aim::default(), &terms, &mut budget);
            let before = in_use(&view);
            let what =
                format!("planted {k}, in use {before} before, {} after", before - answer.emptied.len());
            report("planted", &view, begin, &answer.plan, &terms, &budget, &what);
        }
    }
}
