//! Properties of the engine on random small clusters: place answers what a slow reference answers, no step breaks a
//! rule by the judge's own sums, equal input gives equal output, and a view that was changed equals one built anew.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::sync::Arc;

use proptest::prelude::*;
use tamdao_model::{NodeId, PoolId, VmId};
use tamdao_scheduler::check::{Breach, Step, check};
use tamdao_scheduler::explain::{Outcome, explain};
use tamdao_scheduler::place::{place, place_all, place_each};
use tamdao_scheduler::survive::{survive_each_node, survive_each_value};
use tamdao_scheduler::view::CellUse;
use tamdao_scheduler::{Cells, DiskNeed, NodePool, NodeShape, Placement, PoolShape, View, VmShape};
use uuid::Uuid;

use cluster::{Plan, any_plan};

/// Every set of cells is tried; of those that the judge allows, the one with the least left in its cells, CPUs and
/// memory as parts of the node's capacity, then in huge pages. None if no set is allowed.
fn cells(view: &View, vm: &VmShape, node: &NodeShape) -> Option<Cells> {
    let uses: Vec<CellUse> = view.cell_use(node.id).collect();
    let mut best: Option<((u128, u64), Cells)> = None;
    for set in 0u32..1 << node.cells.len() {
        let chosen: Vec<usize> = (0..node.cells.len()).filter(|at| set >> at & 1 == 1).collect();
        let cells = Cells::of(chosen.clone()).unwrap();
        let step = Step::Assign { vm: Arc::new(vm.clone()), node: node.id, cells };
        if check(view, &[step]).is_err() {
            continue;
        }
        let left = |at: &usize| {
            let cell = &uses[*at];
            let vcpus = u128::from(cell.vcpus - cell.vcpus_used) * u128::from(node.memory_mib.max(1));
            vcpus + u128::from(cell.memory_mib - cell.memory_used_mib) * u128::from(node.vcpus.max(1))
        };
        let huge = |at: &usize| uses[*at].huge_mib - uses[*at].huge_used_mib;
        let left: (u128, u64) = (chosen.iter().map(left).sum(), chosen.iter().map(huge).sum());
        let order = |a: Cells, b: Cells| a.iter().cmp(b.iter()).is_lt();
        let better = best.is_none_or(|(least, at)| left < least || left == least && order(cells, at));
        if better {
            best = Some((left, cells));
        }
    }
    best.map(|(_, cells)| cells)
}

/// Every node is tried, the judge says whether it may, the highest score wins, the lowest id among equals.
fn reference(view: &View, vm: &VmShape) -> Option<(NodeId, Cells, i64)> {
    let mut best: Option<(NodeId, Cells, i64)> = None;
    for verdict in explain(view, vm).verdicts {
        let chosen = cells(view, vm, view.node(verdict.node).unwrap());
        let allowed = chosen.is_some();
        match verdict.outcome {
            Outcome::Fits { score, .. } => {
                assert!(allowed, "explain says {} fits, the judge does not", verdict.name);
                let better =
                    best.is_none_or(|(node, _, top)| score > top || score == top && verdict.node < node);
                if better {
                    best = chosen.map(|cells| (verdict.node, cells, score));
                }
            }
            Outcome::Unfit { reasons } => {
                assert!(
                    !allowed,
                    "explain says {} does not fit ({reasons:?}), the judge allows it",
                    verdict.name
                );
            }
        }
    }
    best
}

fn place_of(placement: &Placement) -> (NodeId, Cells, i64) {
    (placement.node, placement.cells, placement.score)
}

/// The view of a plan, with all VMs placed that have a place, each placement judged and compared.
fn settle(plan: &Plan) -> View {
    let mut view = plan.view();
    for vm in &plan.vms {
        let answer = place(&view, vm);
        assert_eq!(answer.as_ref().ok().map(place_of), reference(&view, vm));
        if let Ok(placement) = answer {
            let cells = view.assign(placement.node, vm.clone()).unwrap();
            assert_eq!(cells, placement.cells);
        }
    }
    view
}

fn assert_not_over(view: &View) {
    for node in view.nodes() {
        let vms = view.vms_on(node.id);
        let vcpus: u64 = vms.iter().map(|vm| u64::from(vm.reservation.vcpus)).sum();
        let memory: u64 = vms.iter().map(|vm| vm.reservation_on(node.emulation).memory_mib).sum();
        assert!(vcpus <= u64::from(node.vcpus) && memory <= node.memory_mib);
        let used = view.node_use(node.id).unwrap();
        assert_eq!((used.vcpus_used, used.memory_used_mib), (vcpus, memory));
        for (at, cell) in view.cell_use(node.id).enumerate() {
            assert!(cell.vcpus_used <= cell.vcpus && cell.memory_used_mib <= cell.memory_mib);
            assert!(cell.huge_used_mib <= cell.huge_mib);
            let here = || vms.iter().filter(|vm| view.cells_of(node.id, vm.id).contains(at));
            let vcpus: u32 = here().map(|vm| vm.reservation.vcpus.div_ceil(vm.cells)).sum();
            let huge = here().map(|vm| vm.huge_mib.div_ceil(vm.cells.into())).sum();
            assert_eq!((cell.vcpus_used, cell.huge_used_mib), (u64::from(vcpus), huge));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 3 / 2))]

    #[test]
    fn place_agrees_with_the_reference_and_never_oversubscribes(plan in any_plan(12, 30)) {
        assert_not_over(&settle(&plan));
    }

    #[test]
    fn a_changed_view_equals_one_built_anew(plan in any_plan(8, 20), changes in prop::collection::vec((0usize..8, 0usize..20, 0u8..4), 0..40)) {
        let mut view = settle(&plan);
        for (node, vm, what) in changes {
            let Some(node) = plan.nodes.get(node % plan.nodes.len().max(1)) else { continue };
            let vm = plan.vms.get(vm % plan.vms.len().max(1));
            match (what, vm) {
                (0, _) => { view.remove_node(node.id); }
                (1, _) => view.set_node(node.clone()),
                (2, Some(vm)) => { view.release(node.id, vm.id); }
                (_, Some(vm)) => { view.assign(node.id, vm.clone()).ok(); }
                _ => {}
            }
        }
        let mut anew = plan.empty_view();
        view.nodes().for_each(|node| anew.set_node(node.clone()));
        for node in view.nodes() {
            for vm in view.vms_on(node.id) {
                anew.assign_to(node.id, view.cells_of(node.id, vm.id), vm.clone()).unwrap();
            }
        }
        for node in view.nodes() {
            prop_assert!(view.cell_use(node.id).eq(anew.cell_use(node.id)));
        }
        for vm in &plan.vms {
            prop_assert_eq!(place(&view, vm), place(&anew, vm));
            prop_assert_eq!(explain(&view, vm), explain(&anew, vm));
        }
    }

    /// The judge of many steps says what it says of each on the cluster that those before it leave.
    #[test]
    fn steps_are_judged_one_after_the_other(plan in any_plan(6, 12), steps in prop::collection::vec((0u8..4, 0usize..12, 0usize..8, 0usize..8), 0..30)) {
        let before = settle(&plan);
        let node = |n: usize| NodeId(Uuid::from_u128(n as u128 + 1));
        let step = |(what, vm, to, from): (u8, usize, usize, usize)| {
            let vm = plan.vms.get(vm)?.clone();
            // Where it stands, so that most leave what they hold.
            let from = before.homes(vm.id).next().filter(|_| from > 1).unwrap_or(node(from));
            let cells = before.cells_for(node(to), &vm);
            Some(match what {
                0 => Step::Release { vm: vm.id, node: from },
                1 => Step::Move { vm: vm.id, from, to: node(to), cells },
                _ => Step::Assign { vm, node: node(to), cells },
            })
        };
        let steps: Vec<Step> = steps.into_iter().filter_map(step).collect();
        let mut view = before.clone();
        let mut expected = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let breaches = check(&view, std::slice::from_ref(step)).err().unwrap_or_default();
            expected.extend(breaches.into_iter().map(|breach| Breach { step: at, ..breach }));
            match step {
                Step::Assign { vm, node, cells } => drop(view.assign_to(*node, *cells, vm.clone())),
                Step::Release { vm, node } => drop(view.release(*node, *vm)),
                Step::Move { vm, from, to, cells } => {
                    if let Some(held) = view.vms_on(*from).iter().find(|held| held.id == *vm).cloned() {
                        view.assign_to(*to, *cells, held).ok();
                        view.release(*from, *vm);
                    }
                }
            }
        }
        prop_assert_eq!(check(&before, &steps).err().unwrap_or_default(), expected);
    }

    #[test]
    fn equal_input_gives_equal_output(plan in any_plan(10, 20)) {
        let (mut one, mut two) = (plan.view(), plan.view());
        prop_assert_eq!(place_each(&mut one, &plan.vms), place_each(&mut two, &plan.vms));
        let fork = one.clone();
        prop_assert_eq!(one.nodes().count(), fork.nodes().count());
    }

    #[test]
    fn a_batch_is_all_or_nothing(plan in any_plan(6, 8)) {
        let before = plan.view();
        let mut view = before.clone();
        match place_all(&mut view, &plan.vms) {
            Ok(places) => {
                prop_assert_eq!(places.len(), plan.vms.len());
                assert_not_over(&view);
            }
            Err(_) => prop_assert_eq!(view.vm_count(), before.vm_count()),
        }
    }

    #[test]
    fn the_plan_for_a_loss_is_accepted_by_the_judge(plan in any_plan(8, 25)) {
        let view = settle(&plan);
        for survival in survive_each_node(&view).into_iter().chain(survive_each_value(&view, "rack")) {
            let mut rest = view.clone();
            survival.lost.iter().for_each(|node| drop(rest.remove_node(*node)));
            let vm = |id| plan.vms.iter().find(|vm| vm.id == id).unwrap().clone();
            let step = |placement: &Placement| Step::Assign {
                vm: vm(placement.vm),
                node: placement.node,
                cells: placement.cells,
            };
            let steps: Vec<_> = survival.plan.iter().map(step).collect();
            prop_assert_eq!(check(&rest, &steps), Ok(()));
            let lost: usize = survival.lost.iter().map(|node| view.vms_on(*node).len()).sum();
            prop_assert_eq!(survival.plan.len() + survival.left_out.len() + survival.unprotected.len(), lost);
        }
    }

    #[test]
    fn a_fork_does_not_change_what_it_was_forked_from(plan in any_plan(6, 12)) {
        let before = plan.view();
        let answers: Vec<_> = plan.vms.iter().map(|vm| explain(&before, vm)).collect();
        place_each(&mut before.clone(), &plan.vms);
        for (vm, answer) in plan.vms.iter().zip(answers) {
            prop_assert_eq!(explain(&before, vm), answer);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(10)))]

    #[test]
    fn place_agrees_with_the_reference_across_many_blocks(plan in any_plan(400, 60)) {
        assert_not_over(&settle(&plan));
    }

    #[test]
    fn place_agrees_with_the_reference_on_a_fleet_in_use(
        used in prop::collection::vec((0u32..=64, 0u64..=256, 0u64..=100, prop::bool::weighted(0.1)), 300),
        wanted in prop::collection::vec((0u32..=16, 0u64..=64, 0u64..=30), 40),
    ) {
        let local = PoolId(Uuid::from_u128(1));
        let mut view = View::new();
        view.set_pool(PoolShape { id: local, name: "local".into(), shared: None });
        let vm = |id: usize, vcpus, gib: u64, disk_gib: u64| {
            let id = VmId(Uuid::from_u128(id as u128 + 1));
            let disks = vec![DiskNeed { pool: local, size_mib: disk_gib * 1_024, on: None }];
            Arc::new(VmShape { disks, ..VmShape::bare(id, "v", vcpus, gib * 1_024) })
        };
        for (n, (vcpus, gib, disk_gib, big)) in used.iter().enumerate() {
            let mut node = NodeShape::bare(NodeId(Uuid::from_u128(n as u128 + 1)), &format!("n{n}"));
            (node.vcpus, node.memory_mib) = if *big { (128, 600 * 1_024) } else { (64, 256 * 1_024) };
            node.pools.insert(local, NodePool { ready: true, capacity_mib: 100 * 1_024, held_mib: 0 });
            let id = node.id;
            view.set_node(node);
            view.assign(id, vm(n, *vcpus, *gib, *disk_gib)).unwrap();
        }
        for (n, (vcpus, gib, disk_gib)) in wanted.into_iter().enumerate() {
            let vm = vm(1_000 + n, vcpus, gib, disk_gib);
            let answer = place(&view, &vm);
            prop_assert_eq!(answer.as_ref().ok().map(place_of), reference(&view, &vm));
            if let Ok(placement) = answer {
                view.assign(placement.node, vm).unwrap();
            }
        }
    }
}
