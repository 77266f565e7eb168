//! Hand-made traps for the planners in the text format, with the plan that each gets. A plan that changes shows as
//! a difference of a snapshot, to be read and judged.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::View;
use tamdao_scheduler::judge::{Fault, judge};
use tamdao_scheduler::plan::balance::{Policy, balance};
use tamdao_scheduler::plan::consolidate::{Aim, First, consolidate};
use tamdao_scheduler::plan::defragment::defragment;
use tamdao_scheduler::plan::drain::{Blocker, drain};
use tamdao_scheduler::plan::maintain::maintain;
use tamdao_scheduler::plan::reach::reach;
use tamdao_scheduler::plan::rolling::rolling;
use tamdao_scheduler::plan::{Budget, Guard, Limits, Plan, Terms};
use tamdao_scheduler::text::{Cluster, parse_plan, write_plan};

fn read(name: &str) -> View {
    let path = format!("{}/tests/fixtures/plans/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    Cluster::parse(&std::fs::read_to_string(path).unwrap()).unwrap().view().unwrap()
}

fn node(view: &View, name: &str) -> NodeId {
    view.nodes().find(|node| &*node.name == name).unwrap().id
}

fn vm(view: &View, name: &str) -> VmId {
    view.nodes().flat_map(|node| view.vms_on(node.id)).find(|vm| &*vm.name == name).unwrap().id
}

/// The plan as text, judged and read back, with what is stuck.
fn report(view: &View, plan: &Plan, stuck: &[Blocker], limits: &Limits) -> String {
    assert_eq!(judge(view, plan, limits), Ok(()));
    let mut text = write_plan(plan, view);
    assert_eq!(&parse_plan(&text, view).unwrap(), plan);
    for blocker in stuck {
        writeln!(text, "{} stays: {}", blocker.name, blocker.cause).unwrap();
    }
    text
}

fn drained(view: &View, names: &[&str], terms: &Terms) -> String {
    let nodes: BTreeSet<NodeId> = names.iter().map(|name| node(view, name)).collect();
    let drained = drain(view, &nodes, terms, &mut Budget::default());
    let mut text = report(view, &drained.plan, &drained.stuck, &terms.limits);
    for survival in &drained.unborne {
        let lost: Vec<_> = survival.lost.iter().map(|id| view.node(*id).unwrap().name.to_string()).collect();
        writeln!(text, "cannot bear the loss of {}: {}", lost.join(" "), survival.left_out[0].1).unwrap();
    }
    text
}

#[test]
fn a_big_vm_goes_after_one_move() {
    insta::assert_snapshot!(drained(&read("one-move-first"), &["n1"], &Terms::default()));
}

#[test]
fn a_chain_of_two_makes_room() {
    insta::assert_snapshot!(drained(&read("two-moves-first"), &["n1"], &Terms::default()));
}

#[test]
fn full_nodes_swap_through_a_spare() {
    let view = read("swap");
    let wished = [("a", "n2"), ("b", "n3"), ("c", "n1")];
    let wished: BTreeMap<_, _> = wished.into_iter().map(|(v, n)| (vm(&view, v), node(&view, n))).collect();
    let reached = reach(&view, &wished, &Terms::default(), &mut Budget::default());
    insta::assert_snapshot!(report(&view, &reached.plan, &reached.stuck, &Limits::default()));
}

#[test]
fn a_group_moves_together() {
    insta::assert_snapshot!(drained(&read("together"), &["n1"], &Terms::default()));
}

#[test]
fn a_chain_of_affinities_moves_as_a_whole() {
    insta::assert_snapshot!(drained(&read("affinity-chain"), &["n1"], &Terms::default()));
}

#[test]
fn a_wish_that_would_tear_a_group_apart_is_refused() {
    let view = read("together");
    let wished = [("app", "n3"), ("rest", "n4")];
    let wished: BTreeMap<_, _> = wished.into_iter().map(|(v, n)| (vm(&view, v), node(&view, n))).collect();
    let reached = reach(&view, &wished, &Terms::default(), &mut Budget::default());
    insta::assert_snapshot!(report(&view, &reached.plan, &reached.stuck, &Limits::default()));
}

#[test]
fn what_stays_says_why_and_what_would_help() {
    let view = read("stuck");
    let terms = Terms { cold: BTreeSet::from([vm(&view, "legacy")]), ..Terms::default() };
    insta::assert_snapshot!(drained(&view, &["n1"], &terms));
}

#[test]
fn the_guarantee_is_asked_of_the_end() {
    let view = read("one-move-first");
    let mut protected = View::new();
    view.nodes().for_each(|node| protected.set_node(node.clone()));
    for node in view.nodes() {
        for vm in view.vms_on(node.id) {
            let mut vm = (**vm).clone();
            vm.protected = &*vm.name == "small";
            protected.assign(node.id, vm.into()).unwrap();
        }
    }
    let terms = Terms { guard: Some(Guard::by_node()), ..Terms::default() };
    insta::assert_snapshot!(drained(&protected, &["n1"], &terms));
}

#[test]
fn stranded_cpus_are_joined() {
    let view = read("cells");
    let size = Reservation { vcpus: 16, memory_mib: 0 };
    let mut text = String::new();
    for at_most in [1, 2, 10] {
        let answer = defragment(&view, size, at_most, &Terms::default(), &mut Budget::default());
        let rates = (answer.before.rate(), answer.after.rate());
        writeln!(text, "at most {at_most}: {rates:?}, {} places", answer.after.places).unwrap();
        text.push_str(&report(&view, &answer.plan, &[], &Limits::default()));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_place_that_another_move_has_taken_is_not_gained() {
    let view = read("spoiled");
    let size = Reservation { vcpus: 2, memory_mib: 8_192 };
    let answer = defragment(&view, size, 10, &Terms::default(), &mut Budget::default());
    let gain: u64 = answer.plan.moves().map(|one| one.gain).sum();
    assert_eq!((answer.before.places, answer.after.places, gain), (0, 1, 2));
}

#[test]
fn what_can_be_maintained() {
    let view = read("racks");
    let outages = Guard { nodes: true, keys: BTreeSet::from(["feed".to_owned(), "rack".to_owned()]) };
    let mut text = String::new();
    for answer in maintain(&view, &outages, &Terms::default(), &mut Budget::default()) {
        let name = |id| view.node(id).unwrap().name.to_string();
        let down: Vec<_> = answer.nodes.iter().map(|id| name(*id)).collect();
        writeln!(text, "{:?}: {} down, possible: {}", answer.outage, down.join(" "), answer.is_possible())
            .unwrap();
        text.push_str(&report(&view, &answer.drain.plan, &answer.drain.stuck, &Limits::default()));
        for enough in &answer.enough {
            let (nodes, like, value) =
                (enough.nodes, name(enough.like), enough.value.as_deref().unwrap_or("any"));
            let (vcpus, memory_mib) = (enough.vcpus, enough.memory_mib);
            writeln!(text, "enough: {nodes} like {like} in {value} with {vcpus} vCPUs, {memory_mib} MiB")
                .unwrap();
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn nodes_take_turns() {
    let view = read("racks");
    let nodes = view.nodes().map(|node| node.id).collect();
    let answer = rolling(&view, &nodes, &Terms::default(), &mut Budget::default());
    let turns: Vec<String> = answer
        .groups
        .iter()
        .map(|turn| {
            let names: Vec<_> =
                turn.nodes.iter().map(|id| view.node(*id).unwrap().name.to_string()).collect();
            format!("{}: {} moves", names.join(" "), turn.plan.move_count())
        })
        .collect();
    assert!(answer.left.is_empty());
    insta::assert_snapshot!(turns.join("\n"));
}

#[test]
fn nodes_are_emptied_by_bytes_or_by_end_of_support() {
    let view = read("scattered");
    let mut text = String::new();
    for (first, count) in
        [(First::FewestBytes, None), (First::FewestBytes, Some(1)), (First::SupportEnds, Some(1))]
    {
        let aim = Aim { among: None, count, first };
        let answer = consolidate(&view, &aim, &Terms::default(), &mut Budget::default());
        let names: Vec<_> =
            answer.emptied.iter().map(|id| view.node(*id).unwrap().name.to_string()).collect();
        writeln!(text, "{first:?} {count:?}: {}", names.join(" ")).unwrap();
        text.push_str(&report(&view, &answer.plan, &[], &Limits::default()));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_node_is_emptied_by_exchanges() {
    let view = read("exchange");
    let aim = Aim { among: Some(BTreeSet::from([node(&view, "n1")])), ..Aim::default() };
    let answer = consolidate(&view, &aim, &Terms::default(), &mut Budget::default());
    assert_eq!(answer.emptied, [node(&view, "n1")]);
    insta::assert_snapshot!(report(&view, &answer.plan, &[], &Limits::default()));
}

#[test]
fn load_is_evened_only_when_it_lasts() {
    let view = read("uneven");
    let policy = Policy { hold: 2, ..Policy::default() };
    let mut text = String::new();
    for lasted in [1, 2] {
        let answer = balance(&view, &policy, lasted, &Terms::default(), &mut Budget::default());
        writeln!(text, "{:?}, worst {} to {}", answer.outcome, answer.before.worst, answer.after.worst)
            .unwrap();
        text.push_str(&report(&view, &answer.plan, &[], &Limits::default()));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_judge_sees_each_fault() {
    let view = read("stuck");
    let plan = parse_plan(include_str!("fixtures/plans/faulty-plan.txt"), &view).unwrap();
    let limits = Limits { per_node: 2, at_once: 3, per_link: BTreeMap::new() };
    let faults = judge(&view, &plan, &limits).unwrap_err();
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_judge_sees_a_group_torn_apart_and_a_busy_link() {
    let view = read("together");
    let text = "tamdao-plan 1\nround\nmove app from=n1 to=n3 memory=8192 why=empty\nmove rest from=n2 to=n4 memory=4096 why=empty";
    let plan = parse_plan(text, &view).unwrap();
    let limits = Limits { per_link: BTreeMap::from([("rack".to_owned(), 1)]), ..Limits::default() };
    let lines: Vec<String> = judge(&view, &plan, &limits).unwrap_err().iter().map(Fault::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_documented_plan_is_read() {
    let text = include_str!("../../docs/operations/plan-text-format.md");
    let blocks: Vec<&str> = text.split("```").collect();
    let view = Cluster::parse(blocks[1].trim_start()).unwrap().view().unwrap();
    let plan = parse_plan(blocks[3].trim_start(), &view).unwrap();
    assert_eq!(judge(&view, &plan, &Limits::default()), Ok(()));
    assert_eq!(write_plan(&plan, &view), blocks[3].trim_start());
}

#[test]
fn errors_in_a_plan_say_where() {
    let view = read("swap");
    let errors: Vec<String> = [
        "",
        "tamdao-cluster 1",
        "tamdao-plan 1\nmove a from=n1 to=n4 why=even",
        "tamdao-plan 1\nround 2",
        "tamdao-plan 1\nround\nmove x from=n1 to=n4 why=even",
        "tamdao-plan 1\nround\nmove a from=n1 to=n9 why=even",
        "tamdao-plan 1\nround\nmove a from=n1 to=n4 why=fun",
        "tamdao-plan 1\nround\nmove a from=n1 to=n4",
        "tamdao-plan 1\nround\nmove a to=n4 why=even fast",
        "tamdao-plan 1\nround\nmove",
    ]
    .iter()
    .map(|text| parse_plan(text, &view).unwrap_err().to_string())
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}
