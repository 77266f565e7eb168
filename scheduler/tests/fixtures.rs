//! Hand-made clusters in the text format with what the engine says of them. A decision that changes shows as a
//! difference of a snapshot, to be read and judged.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::fmt::Write as _;
use std::sync::Arc;

use proptest::prelude::*;
use tamdao_scheduler::capacity::{Agency, Flavor, fit};
use tamdao_scheduler::check::{Step, check};
use tamdao_scheduler::explain::{Outcome, explain};
use tamdao_scheduler::place::{place, place_all, place_each};
use tamdao_scheduler::score::TABLE;
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::survive::{Survival, survive_each_node, survive_each_value};
use tamdao_scheduler::text::Cluster;
use tamdao_scheduler::{By, Cells, View, VmShape};
use uuid::Uuid;

fn read(name: &str) -> Cluster {
    let path = format!("{}/tests/fixtures/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let cluster = Cluster::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(Cluster::parse(&cluster.to_string()).unwrap(), cluster, "{name} does not read back");
    cluster
}

fn report(view: &View, vm: &VmShape) -> String {
    let mut out = format!("{}:\n", vm.name);
    match place(view, vm) {
        Ok(placement) => {
            let name = &view.node(placement.node).unwrap().name;
            let points =
                TABLE.iter().zip(placement.points).map(|(part, points)| format!("{} {points}", part.name));
            let points = points.collect::<Vec<_>>().join(", ");
            let cells = if vm.cells > 0 { format!(" cells {}", placement.cells) } else { String::new() };
            writeln!(out, "  goes to {name}{cells}, score {} ({points})", placement.score).unwrap();
        }
        Err(rejection) => writeln!(out, "  {}", rejection.summary(true)).unwrap(),
    }
    let explanation = explain(view, vm);
    for verdict in &explanation.verdicts {
        match &verdict.outcome {
            Outcome::Fits { score, .. } => writeln!(out, "  {}: {score}", verdict.name).unwrap(),
            Outcome::Unfit { reasons } => {
                let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                writeln!(out, "  {}: {}", verdict.name, reasons.join("; ")).unwrap();
            }
        }
    }
    for fix in explanation.fixes.iter().take(3) {
        writeln!(out, "  would help: {fix}").unwrap();
    }
    out
}

fn reports(name: &str) -> String {
    let cluster = read(name);
    let view = cluster.view().unwrap();
    cluster.wants.iter().map(|vm| report(&view, vm)).collect()
}

#[test]
fn fragmentation() {
    insta::assert_snapshot!(reports("fragmentation"));
}

#[test]
fn state() {
    insta::assert_snapshot!(reports("state"));
}

#[test]
fn pools() {
    insta::assert_snapshot!(reports("pools"));
}

#[test]
fn groups() {
    insta::assert_snapshot!(reports("groups"));
}

#[test]
fn cells() {
    insta::assert_snapshot!(reports("cells"));
}

#[test]
fn losses() {
    let cluster = read("survive");
    let view = cluster.view().unwrap();
    let name = |id| cluster.vms.iter().find(|(vm, _)| vm.id == id).unwrap().0.name.to_string();
    let line = |survival: &Survival| {
        let node = |id| view.node(id).unwrap().name.to_string();
        let plan: Vec<_> =
            survival.plan.iter().map(|p| format!("{} to {}", name(p.vm), node(p.node))).collect();
        let left: Vec<_> =
            survival.left_out.iter().map(|(vm, why)| format!("{} ({why})", name(*vm))).collect();
        let lost: Vec<_> = survival.lost.iter().map(|id| node(*id)).collect();
        format!("lost {}: {}; left out: {}\n", lost.join(" "), plan.join(", "), left.join(", "))
    };
    let all: String =
        survive_each_node(&view).iter().chain(&survive_each_value(&view, "rack")).map(line).collect();
    insta::assert_snapshot!(all);
}

#[test]
fn guarantee() {
    let cluster = read("guarantee");
    let guarded = [By::Node, By::Domain("rack".into())];
    let mut guarantee = Guarantee::new(cluster.view().unwrap(), &guarded);
    let mut all = String::new();
    for vm in &cluster.wants {
        match guarantee.admit(vm) {
            Ok(place) => {
                let node = &guarantee.view().node(place.node).unwrap().name;
                writeln!(all, "{} goes to {node}", vm.name).unwrap();
            }
            Err(refusal) => writeln!(all, "{}: {refusal}", vm.name).unwrap(),
        }
    }
    for loss in guarantee.losses() {
        let step = |step: &Step| match step {
            Step::Assign { vm, node, .. } => {
                format!("{} to {}", vm.name, guarantee.view().node(*node).unwrap().name)
            }
            other => panic!("{other:?}"),
        };
        let plan: Vec<_> = guarantee.plan(loss).iter().map(step).collect();
        writeln!(all, "lost {loss}: {}", plan.join(", ")).unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_batch_takes_the_best_fit_and_says_who_has_no_place() {
    let cluster = read("fragmentation");
    let mut view = cluster.view().unwrap();
    let named = |name: &str| cluster.wants.iter().find(|vm| &*vm.name == name).unwrap().clone();
    let failed = place_all(&mut view, &[named("small"), named("big")]).unwrap_err();
    assert_eq!((failed.index, view.vm_count()), (1, 3));
    let answers = place_each(&mut view, &[named("small"), named("big"), named("lean")]);
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(view.vm_count(), 5);
}

#[test]
fn capacity_counts_what_fits_and_what_stops() {
    let cluster = read("fragmentation");
    let view = cluster.view().unwrap();
    let lean = cluster.wants.iter().find(|vm| &*vm.name == "lean").unwrap();
    let all = fit(&view, lean, 1_000);
    assert_eq!(all.count, 3);
    insta::assert_snapshot!(all.stopped_by.unwrap().summary(true), @"no place on any of 3 nodes: 3 not enough vCPUs (nearest n1: needs 4 vCPUs, has 0 free)");
    assert_eq!(fit(&view, lean, 2).count, 2);
}

#[test]
fn huge_pages_run_out_by_themselves() {
    let text = "tamdao-cluster 1
        node n1 vcpus=16 memory=8192 cell=8/4096/2048 cell=8/4096/1024
        node n2 vcpus=16 memory=8192 cell=8/4096 cell=8/4096
        vm a on.n1=1 vcpus=2 memory=256 cells=1 huge=1024
        want b vcpus=2 memory=256 cells=1 huge=2048
        want c vcpus=2 memory=256 cells=1 huge=512
        want d vcpus=2 memory=256 cells=2";
    let cluster = Cluster::parse(text).unwrap();
    let mut view = cluster.view().unwrap();
    let [b, c, d] = &cluster.wants[..] else { panic!("there are three") };
    let wrong = Step::Assign { vm: b.clone(), node: cluster.nodes[0].id, cells: Cells::of([1]).unwrap() };
    let breaches = check(&view, &[wrong]).unwrap_err();
    let said: Vec<String> = breaches.iter().map(|breach| breach.broken.to_string()).collect();
    assert_eq!(said, ["3072 MiB of huge pages of 1024 in NUMA cell 1"]);
    let place_b = place(&view, b).unwrap();
    assert_eq!((place_b.node, place_b.cells.to_string().as_str()), (cluster.nodes[0].id, "0"));
    view.assign(place_b.node, b.clone()).unwrap();
    insta::assert_snapshot!(place(&view, c).unwrap_err().summary(true), @"no place on any of 2 nodes: 2 no NUMA cell has room (nearest n1: needs a NUMA cell with 2 vCPUs, 256 MiB and 512 MiB of huge pages, the nearest has 6 vCPUs, 3840 MiB and 0 MiB of huge pages free)");
    assert!(place(&view, d).is_ok());
}

#[test]
fn the_documented_example_is_read() {
    let text = include_str!("../../docs/operations/cluster-text-format.md");
    let example = text.split("```").nth(1).unwrap().trim_start();
    let cluster = Cluster::parse(example).unwrap();
    let answer = place(&cluster.view().unwrap(), &cluster.wants[0]);
    insta::assert_snapshot!(answer.unwrap_err().summary(true));
}

#[test]
fn errors_say_where() {
    let errors: Vec<String> = [
        "",
        "node n1",
        "tamdao-cluster 2",
        "tamdao-cluster 1\nhost n1",
        "tamdao-cluster 1\nnode",
        "tamdao-cluster 1\nnode n1 vcpus=many",
        "tamdao-cluster 1\nnode n1\nnode n1",
        "tamdao-cluster 1\nnode n1 colour=red",
        "tamdao-cluster 1\nnode n1 memory=99999999999999999999999",
        "tamdao-cluster 1\nnode n1 label.a=\"b",
        "tamdao-cluster 1\npool p",
        "tamdao-cluster 1\npool p shared",
        "tamdao-cluster 1\nnode n1\nvm a on=n2",
        "tamdao-cluster 1\nnode n1\nvm a on=n1 on=n1",
        "tamdao-cluster 1\nvm a vcpus=1",
        "tamdao-cluster 1\nwant a disk.nowhere=5",
        "tamdao-cluster 1\ngroup g apart=rack:1",
        "tamdao-cluster 1\nnode n1 id=7",
        "tamdao-cluster 1\nnode n1\nvm a on.n1=0+64",
        "tamdao-cluster 1\nwant a agency=nobody",
        "tamdao-cluster 1\nagency a open",
        "tamdao-cluster 1\nagency a free.colour=3",
        "tamdao-cluster 1\nwant a huge=5",
    ]
    .iter()
    .map(|text| Cluster::parse(text).unwrap_err().to_string())
    .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        plan in cluster::any_plan(6, 12),
        strange in ".{0,12}",
        amounts in prop::collection::btree_map(0usize..4, 0u64..3, 0..4),
    ) {
        let mut view = plan.view();
        let (placed, wants) = plan.vms.split_at(plan.vms.len() / 2);
        place_each(&mut view, placed);
        let mut odd: Vec<Arc<VmShape>> = wants.to_vec();
        if let Some(vm) = odd.first_mut() {
            // Labels hold whatever users write.
            Arc::make_mut(vm).labels.insert(strange.clone(), strange.clone());
            Arc::make_mut(vm).isolation = Some(strange.as_str().into());
            Arc::make_mut(vm).agency = Some(Uuid::from_u128(7).into());
        }
        let words = ["vms", "vcpus", "memory_mib", "flavor_class/gpu"];
        let amounts = || amounts.iter().map(|(at, amount)| (words[*at].parse().unwrap(), *amount));
        let flavors = odd.iter().map(|vm| Flavor { shape: vm.clone(), counts: amounts().collect() });
        let agency = |n: u128| Agency {
            id: Uuid::from_u128(n).into(),
            name: format!("{strange}{n}").into(),
            closed: n == 7,
            free: amounts().collect(),
        };
        let cluster = Cluster {
            flavors: flavors.collect(),
            agencies: vec![agency(1), agency(7)],
            ..Cluster::of(&view, &odd)
        };
        let text = cluster.to_string();
        let back = Cluster::parse(&text).unwrap_or_else(|error| panic!("{error} in\n{text}"));
        prop_assert_eq!(&back, &cluster);
        prop_assert_eq!(back.to_string(), text);
        let again = back.view().unwrap();
        for vm in &odd {
            prop_assert_eq!(place(&again, vm), place(&view, vm));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(tamdao-cluster 1\n)?[a-z0-9 =\".#\n/@:]{0,200}") {
        Cluster::parse(&text).ok();
    }
}
