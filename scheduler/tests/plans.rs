//! Properties of plans on random small clusters: the judge accepts every plan, in any order of the moves of a round,
//! also when it is stopped half-way; a drain empties or says why not; equal input gives a byte-equal plan; what is
//! written reads back. A failure shows the cluster as text, to be kept as a fixture.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::judge::judge;
use tamdao_scheduler::place::{find, place_each};
use tamdao_scheduler::plan::balance::{Outcome, Policy, balance};
use tamdao_scheduler::plan::consolidate::{Aim, First, consolidate};
use tamdao_scheduler::plan::defragment::{Fragments, defragment};
use tamdao_scheduler::plan::drain::{Cause, drain};
use tamdao_scheduler::plan::maintain::maintain;
use tamdao_scheduler::plan::reach::reach;
use tamdao_scheduler::plan::rolling::rolling;
use tamdao_scheduler::plan::{Budget, Guard, Limits, Plan, Terms, Way};
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::survive::{Loss, Survival};
use tamdao_scheduler::text::{Cluster, parse_plan, write_plan};
use tamdao_scheduler::{NodeShape, View, VmShape};
use uuid::Uuid;

/// A cluster in use: all VMs that have a place are placed, and some nodes are then cordoned or fail.
fn settle(plan: &cluster::Plan) -> View {
    let mut view = plan.view();
    place_each(&mut view, &plan.vms);
    view
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1u32..4, 1u32..6, prop::option::of(1u32..3)).prop_map(|(per_node, at_once, link)| Limits {
        per_node,
        at_once,
        per_link: link.map(|at_most| ("rack".to_owned(), at_most)).into_iter().collect(),
    })
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let some = || prop::collection::btree_set((1u128..25).prop_map(|id| VmId(Uuid::from_u128(id))), 0..3);
    (any_limits(), any::<bool>(), some(), some(), any::<bool>()).prop_map(
        |(limits, guarded, still, cold, may_stop)| Terms {
            limits,
            guard: guarded.then(Guard::by_node),
            still,
            cold,
            may_stop,
            ..Terms::default()
        },
    )
}

fn chosen(view: &View, mask: u32) -> BTreeSet<NodeId> {
    let nodes = view.nodes().enumerate().filter(|(at, _)| mask >> (at % 32) & 1 == 1);
    nodes.map(|(_, node)| node.id).collect()
}

fn show(view: &View) -> String {
    Cluster::of(view, &[]).to_string()
}

/// Judges the plan as it is, with every round in other orders, and cut off after each round; reads it back.
fn assert_good(view: &View, plan: &Plan, limits: &Limits) -> Result<(), TestCaseError> {
    let text = write_plan(plan, view);
    let shown = || format!("{}\n{text}", show(view));
    prop_assert_eq!(judge(view, plan, limits), Ok(()), "{}", shown());
    prop_assert_eq!(&parse_plan(&text, view).unwrap(), plan, "{}", shown());
    let mut turned = plan.clone();
    turned.rounds.iter_mut().for_each(|round| round.moves.reverse());
    prop_assert_eq!(judge(view, &turned, limits), Ok(()), "{}", shown());
    for round in &mut turned.rounds {
        let count = round.moves.len();
        round.moves.rotate_left(count / 2);
    }
    prop_assert_eq!(judge(view, &turned, limits), Ok(()), "{}", shown());
    Ok(())
}

/// The cluster after a plan, with these nodes cordoned.
fn carried_out(view: &View, plan: &Plan, nodes: &BTreeSet<NodeId>) -> View {
    let mut end = view.clone();
    for a_move in plan.moves() {
        let vm = end.release(a_move.from, a_move.vm).unwrap();
        end.assign_to(a_move.to, a_move.cells, vm).unwrap();
    }
    for node in nodes {
        let mut node = view.node(*node).unwrap().clone();
        node.cordoned = true;
        end.set_node(node);
    }
    end
}

/// The cluster after a plan, by its places alone.
fn after(view: &View, plan: &Plan) -> BTreeMap<VmId, BTreeSet<NodeId>> {
    let mut homes: BTreeMap<VmId, BTreeSet<NodeId>> = BTreeMap::new();
    for node in view.nodes() {
        for vm in view.vms_on(node.id) {
            homes.entry(vm.id).or_default().insert(node.id);
        }
    }
    for a_move in plan.moves() {
        let places = homes.get_mut(&a_move.vm).unwrap();
        assert!(places.remove(&a_move.from));
        places.insert(a_move.to);
    }
    homes
}

/// Every guarded loss that could be borne before can be borne at the end.
fn assert_borne(terms: &Terms, before: &View, end: &View) -> Result<(), TestCaseError> {
    let Some(guard) = &terms.guard else { return Ok(()) };
    let kept = Guarantee::new(before.clone(), &guard.guarded());
    let known: BTreeSet<&Loss> = kept.broken().map(|(loss, _)| loss).collect();
    for unborne in guard.unborne(end).iter().filter(|unborne| !known.contains(&unborne.loss)) {
        prop_assert!(can_be_borne(end, unborne), "{}\n{}", unborne.loss, show(before));
    }
    Ok(())
}

/// Whether there is any plan for a loss: every node is tried for every VM.
fn can_be_borne(view: &View, survival: &Survival) -> bool {
    fn all_fit(rest: &View, vms: &[Arc<VmShape>]) -> bool {
        let Some((vm, others)) = vms.split_first() else { return true };
        let fits = |node: NodeId| {
            let there = VmShape { pin: Some(node), ..VmShape::clone(vm) };
            let free = vm.pin.is_none_or(|pin| pin == node);
            let Some(placement) = find(rest, &there).filter(|_| free) else { return false };
            let mut with = rest.clone();
            with.assign_to(node, placement.cells, vm.clone()).unwrap();
            all_fit(&with, others)
        };
        rest.nodes().any(|node| fits(node.id))
    }
    if survival.is_guaranteed() {
        return true;
    }
    let all: BTreeSet<VmId> =
        survival.plan.iter().map(|p| p.vm).chain(survival.left_out.iter().map(|(vm, _)| *vm)).collect();
    let mut rest = view.clone();
    let mut vms: Vec<Arc<VmShape>> =
        survival.lost.iter().flat_map(|node| rest.remove_node(*node).unwrap()).collect();
    vms.retain(|vm| all.contains(&vm.id));
    vms.sort_by_key(|vm| (Reverse((vm.priority, vm.reservation.memory_mib, vm.reservation.vcpus)), vm.id));
    vms.dedup_by_key(|vm| vm.id);
    all_fit(&rest, &vms)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 2))]

    #[test]
    fn a_drain_empties_or_says_why_not(plan in cluster::any_plan(8, 24), mask in any::<u32>(), terms in any_terms()) {
        let view = settle(&plan);
        let nodes = chosen(&view, mask);
        let drained = drain(&view, &nodes, &terms, &mut Budget::default());
        assert_good(&view, &drained.plan, &terms.limits)?;
        let mut left: Vec<(NodeId, VmId)> = Vec::new();
        for (vm, places) in after(&view, &drained.plan) {
            left.extend(places.intersection(&nodes).map(|node| (*node, vm)));
        }
        left.sort_unstable();
        let said: Vec<_> = drained.stuck.iter().map(|blocker| (blocker.node, blocker.vm)).collect();
        prop_assert_eq!(left, said, "{}", show(&view));
        let end = carried_out(&view, &drained.plan, &nodes);
        for blocker in &drained.stuck {
            prop_assert!(blocker.cause != Cause::BudgetSpent);
            if matches!(blocker.cause, Cause::NoPlace { .. }) {
                let vm = end.vms_on(blocker.node).iter().find(|vm| vm.id == blocker.vm).unwrap();
                prop_assert!(find(&end, vm).is_none(), "{} has a place\n{}", vm.name, show(&view));
                prop_assert!(blocker.cause.to_string().starts_with("no place") || end.node_count() == nodes.len());
            }
        }
        prop_assert!(drained.plan.moves().all(|m| !nodes.contains(&m.to) && !terms.still.contains(&m.vm)));
    }

    #[test]
    fn a_small_budget_gives_a_part_that_is_good_too(plan in cluster::any_plan(6, 20), mask in any::<u32>(), steps in 0u64..12) {
        let view = settle(&plan);
        let nodes = chosen(&view, mask);
        let mut budget = Budget::steps(steps);
        let drained = drain(&view, &nodes, &Terms::default(), &mut budget);
        prop_assert!(budget.spent() <= steps);
        assert_good(&view, &drained.plan, &Limits::default())?;
    }

    #[test]
    fn equal_input_gives_a_byte_equal_plan_on_every_thread(plan in cluster::any_plan(8, 24), mask in any::<u32>()) {
        let all = || {
            let view = settle(&plan);
            let (nodes, terms) = (chosen(&view, mask), Terms::default());
            let drained = drain(&view, &nodes, &terms, &mut Budget::default()).plan;
            let emptied = consolidate(&view, &Aim::default(), &terms, &mut Budget::default()).plan;
            let policy = Policy { hold: 0, threshold: 0, ..Policy::default() };
            let evened = balance(&view, &policy, 0, &terms, &mut Budget::default()).plan;
            let size = Reservation { vcpus: 5, memory_mib: 0 };
            let joined = defragment(&view, size, 12, &terms, &mut Budget::default()).plan;
            let turns = rolling(&view, &nodes, &terms, &mut Budget::default()).groups;
            let plans = [drained, emptied, evened, joined].into_iter().chain(turns.into_iter().map(|turn| turn.plan));
            plans.map(|plan| write_plan(&plan, &view)).collect::<Vec<_>>()
        };
        let here = all();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(all)).collect();
            for thread in threads {
                prop_assert_eq!(&thread.join().unwrap(), &here);
            }
            Ok(())
        })?;
    }

    #[test]
    fn what_was_cut_out_of_full_nodes_is_packed_back_into_close_to_them(
        cuts in prop::collection::vec(prop::collection::vec((any::<prop::sample::Index>(), 1u32..16, 1u64..16), 0..8), 2..8),
        order in any::<u64>(),
    ) {
        let mut parts: Vec<(u32, u64)> = Vec::new();
        for node in &cuts {
            let mut pieces = vec![(16u32, 16u64)];
            for (at, vcpus, gib) in node {
                let piece = at.get(&pieces);
                if *vcpus < piece.0 && *gib < piece.1 {
                    let (at, rest) = (at.index(pieces.len()), (piece.0 - vcpus, piece.1 - gib));
                    pieces[at] = (*vcpus, *gib);
                    pieces.push(rest);
                }
            }
            parts.extend(pieces);
        }
        let k = cuts.len();
        let mut view = View::new();
        for n in 0..2 * k as u128 {
            let mut node = NodeShape::bare(NodeId(Uuid::from_u128(n + 1)), &format!("n{n}"));
            (node.vcpus, node.memory_mib) = (16, 16 * 1_024);
            view.set_node(node);
        }
        // Scattered: each goes to the first with room from somewhere on.
        let ids: Vec<NodeId> = view.nodes().map(|node| node.id).collect();
        for (n, (vcpus, gib)) in parts.iter().enumerate() {
            let id = VmId(Uuid::from_u128(n as u128 + 1));
            let vm = VmShape::bare(id, &format!("v{n}"), *vcpus, gib * 1_024);
            let begin = (order as usize).wrapping_mul(n + 1) % ids.len();
            let fits = |node: &&NodeId| find(&view, &VmShape { pin: Some(**node), ..vm.clone() }).is_some();
            let place = ids[begin..].iter().chain(&ids[..begin]).find(fits).copied();
            let Some(place) = place else { return Ok(()) };
            view.assign(place, vm.into()).unwrap();
        }
        let in_use = |view: &View| view.nodes().filter(|node| !view.vms_on(node.id).is_empty()).count();
        let answer = consolidate(&view, &Aim::default(), &Terms::default(), &mut Budget::default());
        assert_good(&view, &answer.plan, &Limits::default())?;
        let after = in_use(&view) - answer.emptied.len();
        prop_assert!(after >= k && after <= k + 1 + k / 4, "{after} nodes for {k} full ones\n{}", show(&view));
    }

    #[test]
    fn a_wish_is_reached_or_said_to_be_stuck(plan in cluster::any_plan(6, 20), wishes in prop::collection::btree_map(1u128..20, 1u128..7, 0..8), terms in any_terms()) {
        let view = settle(&plan);
        let wished: BTreeMap<VmId, NodeId> =
            wishes.into_iter().map(|(vm, node)| (VmId(Uuid::from_u128(vm)), NodeId(Uuid::from_u128(node)))).collect();
        let reached = reach(&view, &wished, &terms, &mut Budget::default());
        assert_good(&view, &reached.plan, &terms.limits)?;
        let stuck: BTreeSet<VmId> = reached.stuck.iter().map(|blocker| blocker.vm).collect();
        for (vm, places) in after(&view, &reached.plan) {
            let Some(to) = wished.get(&vm).filter(|to| view.node(**to).is_some()) else { continue };
            prop_assert!(places.contains(to) != stuck.contains(&vm), "{}", show(&view));
        }
    }

    #[test]
    fn a_consolidation_empties_what_it_says(plan in cluster::any_plan(8, 24), mask in any::<u32>(), some in any::<bool>(), count in prop::option::of(0usize..4), by_support in any::<bool>(), terms in any_terms()) {
        let view = settle(&plan);
        let first = if by_support { First::SupportEnds } else { First::FewestBytes };
        let aim = Aim { among: some.then(|| chosen(&view, mask)), count, first };
        let answer = consolidate(&view, &aim, &terms, &mut Budget::default());
        assert_good(&view, &answer.plan, &terms.limits)?;
        let end = carried_out(&view, &answer.plan, &BTreeSet::new());
        let is_empty = |view: &View, node: &NodeId| view.vms_on(*node).is_empty();
        let emptied: Vec<NodeId> = end.nodes().map(|n| n.id).filter(|n| is_empty(&end, n) && !is_empty(&view, n)).collect();
        prop_assert_eq!(&emptied, &answer.emptied, "{}", show(&view));
        prop_assert!(view.nodes().all(|n| !is_empty(&view, &n.id) || is_empty(&end, &n.id)), "an empty node was filled");
        prop_assert!(count.is_none_or(|count| emptied.len() <= count));
        prop_assert!(aim.among.is_none_or(|among| emptied.iter().all(|node| among.contains(node))));
        prop_assert!(emptied.is_empty() == answer.plan.is_empty());
        if answer.unborne.is_empty() {
            assert_borne(&terms, &view, &end)?;
        }
    }

    #[test]
    fn balance_never_worsens_and_is_stable(plan in cluster::any_plan(8, 24), threshold in 0u32..2_000, cost_per_gib in 0u64..20_000, margin in 0u64..50_000, at_most in 0usize..20, terms in any_terms()) {
        let view = settle(&plan);
        let policy = Policy { threshold, hold: 2, cost_per_gib, margin, at_most };
        let run = |view: &View, lasted| balance(view, &policy, lasted, &terms, &mut Budget::default());
        prop_assert!(run(&view, 1).plan.is_empty());
        let answer = run(&view, 2);
        assert_good(&view, &answer.plan, &terms.limits)?;
        prop_assert!(answer.plan.is_empty() || answer.after.squares < answer.before.squares, "{}", show(&view));
        prop_assert!(answer.plan.move_count() <= at_most);
        let end = carried_out(&view, &answer.plan, &BTreeSet::new());
        assert_borne(&terms, &view, &end)?;
        let again = run(&end, 2);
        prop_assert_eq!(again.before, answer.after, "{}", show(&view));
        if answer.outcome == Outcome::Best {
            prop_assert!(again.plan.is_empty(), "{}", show(&view));
        }
    }

    #[test]
    fn joining_only_gains_places(plan in cluster::any_plan(8, 24), vcpus in 0u32..17, memory_mib in prop::sample::select(vec![0u64, 512, 8_192]), at_most in 0usize..12, terms in any_terms()) {
        let view = settle(&plan);
        let size = Reservation { vcpus, memory_mib };
        let answer = defragment(&view, size, at_most, &terms, &mut Budget::default());
        assert_good(&view, &answer.plan, &terms.limits)?;
        prop_assert!(answer.plan.move_count() <= at_most);
        let end = carried_out(&view, &answer.plan, &BTreeSet::new());
        prop_assert_eq!((answer.before, answer.after), (Fragments::of(&view, size), Fragments::of(&end, size)));
        let gain: u64 = answer.plan.moves().map(|m| m.gain).sum();
        prop_assert_eq!(answer.before.free_vcpus, answer.after.free_vcpus);
        prop_assert!(answer.before.stranded_vcpus >= answer.after.stranded_vcpus + gain);
        prop_assert!(answer.plan.is_empty() || gain > 0);
        assert_borne(&terms, &view, &end)?;
    }

    #[test]
    fn what_can_be_maintained_is_proved_by_a_plan(plan in cluster::any_plan(6, 20), terms in any_terms()) {
        let view = settle(&plan);
        let outages = Guard { nodes: true, keys: BTreeSet::from(["rack".to_owned(), "feed".to_owned()]) };
        let answers = maintain(&view, &outages, &terms, &mut Budget::default());
        prop_assert_eq!(answers.len(), outages.losses(&view).len());
        for answer in answers {
            assert_good(&view, &answer.drain.plan, &terms.limits)?;
            prop_assert!(answer.drain.plan.moves().all(|m| m.way == Way::Live));
            let end = carried_out(&view, &answer.drain.plan, &answer.nodes);
            let is_empty = answer.nodes.iter().all(|node| end.vms_on(*node).is_empty());
            prop_assert_eq!(is_empty, answer.drain.stuck.is_empty());
            if answer.is_possible() {
                assert_borne(&terms, &view, &end)?;
            }
            for enough in &answer.enough {
                prop_assert!(!is_empty && enough.nodes > 0);
                let like = view.node(enough.like).unwrap();
                prop_assert!(!answer.nodes.contains(&like.id) && like.ready && !like.cordoned);
            }
        }
    }

    #[test]
    fn every_node_has_its_turn_or_says_why_not(plan in cluster::any_plan(7, 20), mask in any::<u32>(), terms in any_terms()) {
        let view = settle(&plan);
        let nodes = chosen(&view, mask);
        let answer = rolling(&view, &nodes, &terms, &mut Budget::default());
        let mut now = view.clone();
        let mut seen: Vec<NodeId> = answer.left.iter().map(|(node, _)| *node).collect();
        for turn in &answer.groups {
            assert_good(&now, &turn.plan, &terms.limits)?;
            assert_borne(&terms, &now, &carried_out(&now, &turn.plan, &turn.nodes))?;
            now = carried_out(&now, &turn.plan, &BTreeSet::new());
            prop_assert!(!turn.nodes.is_empty() && turn.nodes.iter().all(|node| now.vms_on(*node).is_empty()));
            seen.extend(&turn.nodes);
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, nodes.into_iter().collect::<Vec<_>>());
        prop_assert!(answer.left.iter().all(|(_, stuck)| !stuck.is_empty() || terms.guard.is_some()), "{}", show(&view));
    }
}
