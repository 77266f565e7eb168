//! Properties of headroom on random small clusters: what a failure domain holds, what remains without it and what a
//! quota leaves are what trying one VM after the other gives.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use tamdao_model::quota::{Amounts, Measure, Quota};
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::capacity::{Agency, Headroom, Stop, fit, headroom};
use tamdao_scheduler::check::{Step, check};
use tamdao_scheduler::explain::{Outcome, explain};
use tamdao_scheduler::place::place_each;
use tamdao_scheduler::survive::{Loss, survive};
use tamdao_scheduler::{By, View, VmShape};
use uuid::Uuid;

use cluster::any_plan;

const AT_MOST: u32 = 12;

/// One VM after the other goes to the best of these nodes, each place judged, until there is none.
fn slowly(view: &View, shape: &VmShape, among: &BTreeSet<NodeId>) -> u32 {
    let mut view = view.clone();
    for count in 0..AT_MOST {
        let vm = VmShape { id: VmId(Uuid::from_u128(u128::from(count) + 1_000)), ..shape.clone() };
        let mut best: Option<(i64, NodeId)> = None;
        for verdict in explain(&view, &vm).verdicts {
            if let Outcome::Fits { score, .. } = verdict.outcome
                && among.contains(&verdict.node)
                && best.is_none_or(|(top, node)| score > top || score == top && verdict.node < node)
            {
                best = Some((score, verdict.node));
            }
        }
        let Some((_, node)) = best else { return count };
        let cells = view.cells_for(node, &vm);
        let vm = Arc::new(vm);
        assert_eq!(check(&view, &[Step::Assign { vm: vm.clone(), node, cells }]), Ok(()));
        view.assign_to(node, cells, vm).unwrap();
    }
    AT_MOST
}

/// The cluster built anew without what is lost, its restarts in their places.
fn after(view: &View, loss: &Loss, vms: &[Arc<VmShape>]) -> (View, usize) {
    let survival = survive(view, loss.clone());
    let mut rest = View::new();
    view.pools().for_each(|pool| rest.set_pool(pool.clone()));
    view.groups().for_each(|group| rest.set_group(group.clone()));
    for node in view.nodes().filter(|node| !survival.lost.contains(&node.id)) {
        rest.set_node(node.clone());
        for vm in view.vms_on(node.id) {
            rest.assign_to(node.id, view.cells_of(node.id, vm.id), vm.clone()).unwrap();
        }
    }
    for place in &survival.plan {
        let vm = vms.iter().find(|vm| vm.id == place.vm).unwrap();
        rest.assign_to(place.node, place.cells, vm.clone()).unwrap();
    }
    (rest, survival.left_out.len())
}

fn has(view: &View, node: NodeId, loss: &Loss) -> bool {
    match loss {
        Loss::Node(id) => node == *id,
        Loss::Domain { key, value } => {
            let values = view.node(node).and_then(|node| node.domains.get(key));
            values.is_some_and(|values| values.contains(value))
        }
    }
}

fn nodes(view: &View) -> BTreeSet<NodeId> {
    view.nodes().map(|node| node.id).collect()
}

proptest! {
    #[test]
    fn headroom_is_what_trying_gives(plan in any_plan(6, 14), like in any_plan(1, 1)) {
        let mut view = plan.view();
        place_each(&mut view, &plan.vms);
        let Some(shape) = like.vms.first() else { return Ok(()) };
        let shape = VmShape { id: VmId(Uuid::from_u128(1_000)), ..(**shape).clone() };
        for by in [By::Node, By::Domain("rack".into()), By::Domain("feed".into()), By::Domain("none".into())] {
            let all = headroom(&view, &shape, &by, AT_MOST);
            let known: BTreeSet<String> = match &by {
                By::Node => view.nodes().map(|node| node.id.to_string()).collect(),
                By::Domain(key) => view.nodes().filter_map(|node| node.domains.get(key)).flatten().cloned().collect(),
            };
            prop_assert_eq!(all.len(), known.len());
            for Headroom { loss, within, without, left_out } in all {
                let among = nodes(&view).into_iter().filter(|node| has(&view, *node, &loss)).collect();
                prop_assert_eq!(within.count, slowly(&view, &shape, &among), "within {}", &loss);
                let (rest, no_place) = after(&view, &loss, &plan.vms);
                prop_assert_eq!(without.count, slowly(&rest, &shape, &nodes(&rest)), "without {}", &loss);
                prop_assert_eq!(left_out, no_place);
                for fit in [&within, &without] {
                    prop_assert_eq!(fit.stopped_by.is_none(), fit.count == AT_MOST);
                }
                let ruled_out = within.stopped_by.map(|rejection| rejection.nodes as usize);
                prop_assert!(ruled_out.is_none_or(|nodes| nodes == among.len()));
            }
        }
    }

    /// Where a VM minds no other, what fits in the whole is what fits in each node.
    #[test]
    fn nodes_add_up_to_the_whole(plan in any_plan(6, 14), vcpus in 1u32..8, memory_mib in 500u64..5_000) {
        let mut view = plan.view();
        place_each(&mut view, &plan.vms);
        let shape = VmShape::bare(VmId(Uuid::from_u128(1_000)), "new", vcpus, memory_mib);
        let within = headroom(&view, &shape, &By::Node, 100).iter().map(|one| one.within.count).sum::<u32>();
        prop_assert_eq!(fit(&view, &shape, 600).count, within);
    }

    #[test]
    fn a_quota_leaves_what_counting_gives(
        free in prop::collection::btree_map(0usize..4, 0u64..40, 0..4),
        counts in prop::collection::btree_map(0usize..4, 0u64..6, 0..4),
    ) {
        let measures = [Measure::Vms, Measure::Vcpus, Measure::MemoryMib, "flavor_class/gpu".parse().unwrap()];
        let measure = |(at, amount): (usize, u64)| (measures[at].clone(), amount);
        let free: Quota = free.into_iter().map(measure).collect();
        let counts: Amounts = counts.into_iter().map(measure).collect();
        let agency = Agency { id: Uuid::from_u128(1).into(), name: "a".into(), closed: false, free: free.clone() };
        let room = |made: u64| counts.iter().all(|(measure, each)| free.get(measure).is_none_or(|free| made * each <= *free));
        let most = (0..100).find(|made| !room(made + 1));
        let leaves = agency.leaves(&counts);
        prop_assert_eq!(leaves.as_ref().map(|(count, _)| *count), most);
        if let Some((count, Stop::Quota { measure, need, left })) = leaves {
            prop_assert_eq!(count * need + left, free[&measure]);
            prop_assert!(need == counts.of(&measure) && left < need);
        }
        prop_assert_eq!(Agency { closed: true, ..agency }.leaves(&counts), Some((0, Stop::Closed)));
    }
}

#[test]
fn a_cell_is_chosen_within_a_domain_too() {
    let text = "tamdao-cluster 1
        node n1 vcpus=16 memory=8192 cell=8/4096 cell=8/4096 domain.rack=r1
        node n2 vcpus=16 memory=8192 cell=8/4096 cell=8/4096 domain.rack=r2
        vm a on.n1=0 vcpus=6 memory=1024 cells=1";
    let view = tamdao_scheduler::text::Cluster::parse(text).unwrap().view().unwrap();
    let shape = VmShape { cells: 1, ..VmShape::bare(VmId(Uuid::from_u128(9)), "b", 4, 1_024) };
    let rooms = headroom(&view, &shape, &By::Domain("rack".into()), 100);
    let counts: Vec<_> = rooms.iter().map(|one| (one.within.count, one.without.count)).collect();
    assert_eq!(counts, [(2, 4), (4, 2)]);
}
