//! Drains and returns on nodes that do at once what they are told: whoever can go goes, whoever cannot is named, nobody
//! is lost, and what left comes back.

use proptest::prelude::*;
use tamdao_model::assignment::{Hold, Intent};
use tamdao_model::convert::agent::{FileState, VolumeSeen};
use tamdao_model::moves::MoveEvent;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::vm::{GuestState, MaintenancePolicy, Power, Vm, VmPhase};
use tamdao_model::{AgencyId, Meta, Name, PoolId, Scope};
use tamdao_store::typed::Draft;
use uuid::Uuid;

use super::*;
use crate::admission::Moment;
use crate::decide::drain::Ask;
use crate::decide::report::{self, Part};
use crate::decide::tests::{AGENCY, SESSION, node_id, request, seen, world};
use crate::decide::{move_step, place, vm_create};
use crate::engine;

/// Passes until nothing changes any more; a drain of a world this small needs far fewer.
const PASSES: usize = 200;

struct Scene {
    draft: Draft,
    moment: Moment,
}

impl Scene {
    /// Nodes with local pools, or with one that all share and every node's loss guarded.
    fn new(nodes: u128, shared: bool) -> Self {
        let draft = Draft::new(world(), Uuid::from_u128(2));
        let mut scene = Self { draft, moment: Moment { now: TimeMs(1_000) } };
        let model = (*scene.draft.view().nodes.get(node_id(0)).unwrap().value).clone();
        for at in 0..nodes {
            let mut node = model.clone();
            node.meta = Meta::new(node_id(at), Name::new(&format!("n{at}")).unwrap(), TimeMs(0));
            (node.status.moves_port, node.status.address) = (7444, format!("10.0.0.{at}"));
            node.status.carries_files = true;
            scene.draft.put(node);
        }
        for at in nodes..3 {
            scene.draft.remove::<tamdao_model::node::Node>(node_id(at).0);
        }
        if shared {
            let pool: Vec<PoolId> = scene.draft.view().pools.iter().map(|pool| pool.id()).collect();
            let mut pool = (*scene.draft.view().pools.get(pool[0]).unwrap().value).clone();
            pool.spec.shared = true;
            scene.draft.put(pool);
            let id = tamdao_model::ClusterId(Uuid::from_u128(0x5));
            let mut policy = SchedulingPolicy::of(id, TimeMs(0));
            policy.spec.guarded_failure_domains = vec!["node".to_owned()].into_iter().collect();
            scene.draft.create(policy);
        }
        scene
    }

    /// A VM that runs on a node; none if it does not fit.
    fn vm(&mut self, at: u8, node: u128, memory_mib: u32, maintenance: MaintenancePolicy) -> Option<Vm> {
        let before = self.draft.clone();
        let mut asked = request(at, 1, memory_mib, 16);
        asked.maintenance = maintenance;
        // The world has few addresses.
        asked.interfaces.clear();
        vm_create::create(&mut self.draft, &mut self.moment, asked, AGENCY, None, "test").ok()?;
        let vm = self.named(at);
        let reservation = engine::reservation(self.draft.view(), &vm).unwrap();
        let proposal = [(vm.id(), reservation).into()];
        if place::place(&mut self.draft, &mut self.moment, node_id(node), &proposal)[0].is_err() {
            self.draft = before;
            return None;
        }
        let vm = self.named(at);
        let volume = vm.volumes().next().unwrap();
        let made = VolumeSeen { volume, state: FileState::Made, size_mib: 16, used_mib: 1, problem: None };
        let part =
            Part { vms: vec![seen(&vm, GuestState::Running, false)], volumes: vec![made], ..Part::default() };
        self.report(node_id(node), &part);
        Some(self.named(at))
    }

    fn named(&self, at: u8) -> Vm {
        let row = self.draft.view().vms.find(Scope::Agency(AGENCY), &format!("vm-{at}")).unwrap();
        (*row.value).clone()
    }

    fn report(&mut self, node: NodeId, part: &Part) {
        report::take(&mut self.draft, &mut self.moment, node, SESSION, part);
    }

    fn drain(&mut self, nodes: &[u128], unguarded: bool) {
        let ask = Ask {
            by: "test".into(),
            reason: String::new(),
            allow_cold: false,
            unguarded,
            time_ms: 3_600_000,
        };
        for node in nodes {
            drain::begin(&mut self.draft, &mut self.moment, node_id(*node), &ask).unwrap();
        }
    }

    fn bring_back(&mut self, node: u128) {
        drain::begin_return(&mut self.draft, &mut self.moment, node_id(node), "test", false).unwrap();
    }

    fn engine(&self) -> Engine {
        let mut engine = Engine::draw(self.draft.view());
        engine.plan();
        engine
    }

    /// What the drainer does in one pass. Says whether it did anything.
    fn pass(&mut self) -> bool {
        let mut did = false;
        for due in drain::due(self.draft.view(), self.moment.now) {
            drain::settle(&mut self.draft, &mut self.moment, &due);
            did = true;
        }
        let (view, engine, now) = (self.draft.view().clone(), self.engine(), self.moment.now);
        let leaving = draining(&view, DrainPhase::Draining);
        if !leaving.is_empty() {
            let plan = plan::leaving(&view, &engine, &leaving, now);
            for rest in plan.rest.iter().filter(|rest| rest.what == What::ShutDown) {
                drain::shut_down(&mut self.draft, &mut self.moment, rest.vm);
                did = true;
            }
            did |= self.open(&plan, DrainPhase::Draining);
        }
        let back = draining(&view, DrainPhase::Returning);
        if !back.is_empty() {
            let view = self.draft.view().clone();
            let plan = plan::returning(&view, &self.engine(), &back, now);
            did |= self.open(&plan, DrainPhase::Returning);
            if plan.rounds.is_empty() && plan.rest.iter().all(|rest| rest.what != What::Waits) {
                for id in back.keys() {
                    drain::finish_return(&mut self.draft, &mut self.moment, *id, "");
                    did = true;
                }
            }
        }
        did
    }

    fn open(&mut self, plan: &Plan, phase: DrainPhase) -> bool {
        let view = self.draft.view().clone();
        let next = next(&view, plan);
        for go in &next {
            let wish = wish(&view, go, phase);
            drain::open(&mut self.draft, &mut self.moment, &wish, go.from).unwrap();
        }
        !next.is_empty()
    }

    /// The agents do what stands in their assignments.
    fn act(&mut self) -> bool {
        let mut did = self.remove_copies();
        let open: Vec<_> = self.draft.view().moves.iter().map(|row| (row.id(), row.spec.clone())).collect();
        for (id, spec) in open {
            if !self.draft.view().moves.get(id).is_some_and(|row| row.status.phase.is_open()) {
                continue;
            }
            did = true;
            let phase = self.draft.view().moves.get(id).unwrap().status.phase;
            let vm = (*self.draft.view().vms.get(spec.vm).unwrap().value).clone();
            if phase == MovePhase::Clearing {
                self.clears(&vm, spec.target, spec.incarnation_to);
                continue;
            }
            move_step::happens(&mut self.draft, &mut self.moment, id, MoveEvent::TargetReady, None);
            move_step::happens(&mut self.draft, &mut self.moment, id, MoveEvent::SourceGone, None);
            let vm = (*self.draft.view().vms.get(spec.vm).unwrap().value).clone();
            assert_eq!(vm.status.node, Some(spec.target));
            let on = if vm.wants_on() { GuestState::Running } else { GuestState::Stopped };
            self.report(spec.target, &Part { vms: vec![seen(&vm, on, false)], ..Part::default() });
            self.clears(&vm, spec.source, spec.incarnation_from);
        }
        let vms: Vec<Vm> = self.draft.view().vms.iter().map(|row| (*row.value).clone()).collect();
        for vm in vms {
            let on = if vm.wants_on() { GuestState::Running } else { GuestState::Stopped };
            if let Some(node) = vm.status.node
                && vm.status.seen.as_ref().is_some_and(|seen| seen.state != on)
            {
                did = true;
                self.report(node, &Part { vms: vec![seen(&vm, on, false)], ..Part::default() });
            }
        }
        did
    }

    /// A node says that nothing is left of an incarnation; of its disks it says so later.
    fn clears(&mut self, vm: &Vm, node: NodeId, incarnation: u64) {
        let mut gone = seen(vm, GuestState::Absent, true);
        gone.incarnation = incarnation;
        self.report(node, &Part { vms: vec![gone], ..Part::default() });
    }

    /// Nodes say that the disks of what has gone are removed.
    fn remove_copies(&mut self) -> bool {
        let nodes: Vec<NodeId> = self.draft.view().nodes.iter().map(|row| row.id()).collect();
        let mut did = false;
        for node in nodes {
            let assignment = self.draft.view().assignment(node);
            let leaving = assignment.volumes.iter().filter(|(_, entry)| entry.hold == Hold::Leaving);
            let removed = leaving.map(|(volume, _)| VolumeSeen {
                volume: *volume,
                state: FileState::Deleted,
                size_mib: 16,
                used_mib: 0,
                problem: None,
            });
            let part = Part { volumes: removed.collect(), ..Part::default() };
            did |= !part.volumes.is_empty();
            self.report(node, &part);
        }
        did
    }

    /// Until nothing changes any more.
    fn settle(&mut self) {
        for _ in 0..PASSES {
            let did = self.pass();
            self.check();
            if !(self.act() | did) {
                return;
            }
            self.check();
        }
        panic!("it goes on for ever");
    }

    /// What holds at every moment.
    fn check(&self) {
        let view = self.draft.view();
        for node in view.nodes.iter() {
            let (reserved, whole) = (view.assignment(node.id()).reserved(), node.allocatable());
            assert!(reserved.vcpus <= whole.vcpus && reserved.memory_mib <= whole.memory_mib);
            let ends = |row: &&tamdao_store::view::Row<Move>| {
                row.status.phase.is_open() && [row.spec.source, row.spec.target].contains(&node.id())
            };
            assert!(view.moves.iter().filter(ends).count() <= PER_NODE);
            // Whoever is drained may be switched off for good.
            let drained = drain::phase(view, node.id()) == Some(DrainPhase::Drained);
            assert!(!drained || drain::copies(&view.assignment(node.id())) == 0, "{:?}", node.id());
        }
        for vm in view.vms.iter() {
            let wanted = view.nodes.iter().filter(|node| {
                let entry = view.assignment(node.id()).vms.get(&vm.id()).map(|entry| entry.intent);
                matches!(entry, Some(Intent::Wanted | Intent::Outgoing))
            });
            assert_eq!(wanted.count(), 1, "{vm:?}");
        }
    }

    fn plan(&self, node: u128) -> Plan {
        let nodes = BTreeMap::from([(node_id(node), Leave::default())]);
        plan::leaving(self.draft.view(), &self.engine(), &nodes, self.moment.now)
    }

    fn phase(&self, node: u128) -> Option<DrainPhase> {
        drain::phase(self.draft.view(), node_id(node))
    }

    fn at(&self, vm: u8) -> NodeId {
        self.named(vm).status.node.unwrap()
    }
}

use MaintenancePolicy::{Block, Migrate, ShutDown};

fn policy() -> impl Strategy<Value = MaintenancePolicy> {
    prop_oneof![6 => Just(Migrate), 1 => Just(ShutDown), 1 => Just(Block)]
}

proptest! {
    #[test]
    fn who_can_go_goes_who_cannot_is_named_and_all_come_back(
        vms in proptest::collection::vec((0u128..4, 64u32..900, policy()), 1..24),
        drained in proptest::collection::btree_set(0u128..4, 1..3),
        shared in any::<bool>(),
        cancelled in any::<bool>(),
    ) {
        let mut scene = Scene::new(4, shared);
        let mut homes = Vec::new();
        for (at, (node, memory_mib, policy)) in vms.into_iter().enumerate() {
            let at = u8::try_from(at).unwrap();
            if scene.vm(at, node, memory_mib, policy).is_some() {
                homes.push((at, node, policy));
            }
        }
        let drained: Vec<u128> = drained.into_iter().collect();
        scene.drain(&drained, false);
        if cancelled {
            scene.pass();
            // What nothing ran on is drained already.
            for node in drained.iter().filter(|node| scene.phase(**node) == Some(DrainPhase::Draining)).collect::<Vec<_>>() {
                drain::cancel(&mut scene.draft, &mut scene.moment, node_id(*node), "test").unwrap();
            }
            scene.settle();
            for (at, node, _) in &homes {
                prop_assert_eq!(scene.at(*at), node_id(*node));
                prop_assert_eq!(scene.named(*at).status.phase, VmPhase::Running);
            }
            return Ok(());
        }
        scene.settle();
        for node in &drained {
            let plan = scene.plan(*node);
            let here = homes.iter().filter(|(at, ..)| scene.at(*at) == node_id(*node));
            for (at, _, policy) in here {
                let vm = scene.named(*at);
                let rest = plan.rest.iter().find(|rest| rest.vm == vm.id());
                let told = rest.map(|rest| rest.what);
                match policy {
                    ShutDown => prop_assert_eq!(vm.status.phase, VmPhase::Stopped),
                    // Whoever still runs has a reason, and something that would help.
                    Migrate | Block => {
                        prop_assert_eq!(told, Some(What::Blocked));
                        prop_assert!(!rest.unwrap().why.is_empty() && !rest.unwrap().lift.is_empty());
                    }
                }
            }
            let blocked = plan.rest.iter().any(|rest| rest.what == What::Blocked);
            let expected = if blocked { DrainPhase::Draining } else { DrainPhase::Drained };
            prop_assert_eq!(scene.phase(*node), Some(expected));
        }
        drained.iter().for_each(|node| scene.bring_back(*node));
        scene.settle();
        for (at, node, _) in &homes {
            let vm = scene.named(*at);
            prop_assert_eq!(vm.status.phase, VmPhase::Running);
            prop_assert_eq!(vm.spec.power, Power::On);
            prop_assert_eq!(vm.status.drained, None);
            // All room that there was before is there again.
            if !shared {
                prop_assert_eq!(vm.status.node, Some(node_id(*node)));
            }
        }
        prop_assert!(drained.iter().all(|node| scene.phase(*node).is_none()));
    }
}

#[test]
fn twenty_guests_leave_two_at_a_time_and_come_back() {
    let mut scene = Scene::new(3, false);
    for node in scene.draft.view().nodes.iter().map(|row| (*row.value).clone()).collect::<Vec<_>>() {
        let mut node = node;
        (node.status.inventory.cpus, node.status.inventory.memory_mib) = (64, 65_536);
        scene.draft.put(node);
    }
    for at in 0..24 {
        scene.vm(at, 0, 128, Migrate).unwrap();
    }
    let plan = scene.plan(0);
    assert_eq!((plan.moves().count(), plan.rounds.len(), plan.rest.len()), (24, 12, 0), "{:?}", plan.rest);
    scene.drain(&[0], false);
    scene.settle();
    assert_eq!(scene.phase(0), Some(DrainPhase::Drained));
    assert!((0..24).all(|at| scene.at(at) != node_id(0)));
    assert!(scene.draft.view().assignment(node_id(0)).vms.is_empty());
    scene.bring_back(0);
    scene.settle();
    assert!((0..24).all(|at| scene.at(at) == node_id(0)));
}

#[test]
fn no_room_is_told_with_what_would_help() {
    let mut scene = Scene::new(2, false);
    scene.vm(0, 0, 2_000, Migrate).unwrap();
    scene.vm(1, 1, 2_500, Migrate).unwrap();
    let plan = scene.plan(0);
    let [rest] = plan.rest.as_slice() else { panic!("{plan:?}") };
    assert_eq!(rest.what, What::Blocked);
    assert!(rest.why.contains("memory"), "{rest:?}");
    assert!(!rest.lift.is_empty(), "{rest:?}");
}

#[test]
fn the_guarantee_holds_a_move_up_unless_it_is_waived() {
    let mut scene = Scene::new(2, true);
    scene.vm(0, 0, 500, Migrate).unwrap();
    scene.drain(&[0], false);
    scene.settle();
    assert_eq!((scene.phase(0), scene.at(0)), (Some(DrainPhase::Draining), node_id(0)));
    let plan = scene.plan(0);
    let rest = &plan.rest[0];
    assert!(rest.why.contains("without a place") && rest.lift.contains("--unguarded"), "{rest:?}");
    scene.drain(&[0], true);
    scene.settle();
    assert_eq!((scene.phase(0), scene.at(0)), (Some(DrainPhase::Drained), node_id(1)));
}

#[test]
fn a_guest_that_another_node_cannot_run_is_told() {
    let mut scene = Scene::new(2, false);
    scene.vm(0, 0, 500, Migrate).unwrap();
    let mut node = (*scene.draft.view().nodes.get(node_id(1)).unwrap().value).clone();
    node.status.inventory.acceleration = "qemu".into();
    scene.draft.put(node);
    let plan = scene.plan(0);
    assert_eq!((plan.rounds.len(), plan.rest[0].what), (0, What::Blocked), "{plan:?}");
    assert!(plan.rest[0].why.contains("/vm-0 while it runs"), "{plan:?}");
}

#[test]
fn disks_of_what_is_off_go_along_where_the_drain_allows_it() {
    let mut scene = Scene::new(2, false);
    for at in [0, 1] {
        let mut node = (*scene.draft.view().nodes.get(node_id(at)).unwrap().value).clone();
        node.status.inventory.tpm = true;
        scene.draft.put(node);
    }
    let mut off = scene.vm(0, 0, 500, Migrate).unwrap();
    off.spec.power = Power::Off;
    scene.draft.put(off.clone());
    let part = Part { vms: vec![seen(&off, GuestState::Stopped, false)], ..Part::default() };
    scene.report(node_id(0), &part);
    let mut bound = scene.vm(1, 0, 500, Migrate).unwrap();
    bound.spec.tpm = true;
    scene.draft.put(bound.clone());
    let plan = scene.plan(0);
    assert_eq!(plan.moves().count(), 0, "{plan:?}");
    let told: Vec<_> = plan.rest.iter().map(|rest| (rest.vm, rest.what)).collect();
    assert_eq!(told, [(bound.id(), What::Blocked), (off.id(), What::Stays)], "{plan:?}");
    assert!(plan.rest.iter().all(|rest| rest.lift.contains("--allow-cold")), "{plan:?}");
    let agreed = BTreeMap::from([(node_id(0), Leave { allow_cold: true, ..Leave::default() })]);
    let plan = plan::leaving(scene.draft.view(), &scene.engine(), &agreed, scene.moment.now);
    let goes: Vec<_> = plan.moves().map(|go| (go.way, go.copies_mib)).collect();
    assert_eq!(goes, [(Way::Cold, 16), (Way::Cold, 16)], "{plan:?}");
    let mut older = (*scene.draft.view().nodes.get(node_id(1)).unwrap().value).clone();
    older.status.carries_files = false;
    scene.draft.put(older);
    let plan = plan::leaving(scene.draft.view(), &scene.engine(), &agreed, scene.moment.now);
    assert_eq!(plan.moves().count(), 0, "{plan:?}");
    assert!(plan.rest[0].why.contains("with its disks"), "{plan:?}");
}

/// Two agencies may each have a VM of the same name, and only one of them is bound to what its node is.
#[test]
fn what_one_guest_is_bound_to_binds_no_other_agencys_guest_of_the_same_name() {
    let mut scene = Scene::new(3, false);
    for at in [1, 2] {
        let mut node = (*scene.draft.view().nodes.get(node_id(at)).unwrap().value).clone();
        node.status.inventory.acceleration = "qemu".into();
        scene.draft.put(node);
    }
    let bound = scene.vm(0, 0, 500, Migrate).unwrap();
    let mut free = scene.vm(1, 2, 500, Migrate).unwrap();
    free.agency = AgencyId(Uuid::from_u128(0xa2));
    free.meta.name = bound.meta.name.clone();
    scene.draft.put(free.clone());
    scene.drain(&[0, 2], false);
    let leaving = draining(scene.draft.view(), DrainPhase::Draining);
    let plan = plan::leaving(scene.draft.view(), &scene.engine(), &leaving, scene.moment.now);
    let goes: Vec<_> = plan.moves().map(|go| (go.vm, go.to)).collect();
    assert_eq!(goes, [(free.id(), node_id(1))], "{plan:?}");
    assert_eq!(plan.rest.iter().map(|rest| rest.vm).collect::<Vec<_>>(), [bound.id()], "{plan:?}");
}

#[test]
fn a_failed_move_rests_before_it_is_tried_again() {
    let mut scene = Scene::new(2, false);
    scene.vm(0, 0, 500, Migrate).unwrap();
    scene.drain(&[0], false);
    scene.pass();
    let id = scene.draft.view().moves.iter().next().unwrap().id();
    let cause = tamdao_model::moves::Cause { reason: "X".into(), message: "no way".into(), cancelled: false };
    move_step::happens(&mut scene.draft, &mut scene.moment, id, MoveEvent::GiveUp, Some(cause));
    move_step::happens(&mut scene.draft, &mut scene.moment, id, MoveEvent::TargetCleared, None);
    assert_eq!(scene.draft.view().moves.get(id).unwrap().status.phase, MovePhase::Failed);
    // The target has confirmed that nothing of it is left.
    let vm = scene.named(0);
    let mut gone = seen(&vm, GuestState::Absent, true);
    gone.incarnation = vm.status.incarnation_given;
    let volume = vm.volumes().next().unwrap();
    let deleted = VolumeSeen { volume, state: FileState::Deleted, size_mib: 16, used_mib: 0, problem: None };
    scene.report(node_id(1), &Part { vms: vec![gone], volumes: vec![deleted], ..Part::default() });
    assert!(!scene.pass());
    let leaves = draining(scene.draft.view(), DrainPhase::Draining);
    let plan = plan::leaving(scene.draft.view(), &scene.engine(), &leaves, scene.moment.now);
    assert!(plan.rest[0].why.contains("no way"), "{plan:?}");
    scene.moment.now = scene.moment.now.plus_ms(31_000);
    scene.settle();
    assert_eq!(scene.phase(0), Some(DrainPhase::Drained));
}

#[test]
fn what_has_no_end_is_given_up_and_an_uncordon_ends_it() {
    let mut scene = Scene::new(2, false);
    scene.vm(0, 0, 500, Block).unwrap();
    scene.drain(&[0], false);
    scene.settle();
    assert_eq!(scene.phase(0), Some(DrainPhase::Draining));
    scene.moment.now = scene.moment.now.plus_ms(3_600_001);
    scene.settle();
    assert_eq!(scene.phase(0), None);
    assert!(scene.draft.view().nodes.get(node_id(0)).unwrap().spec.cordoned);
    scene.drain(&[0], false);
    let mut node = (*scene.draft.view().nodes.get(node_id(0)).unwrap().value).clone();
    node.spec.cordoned = false;
    scene.draft.put(node);
    scene.settle();
    assert_eq!((scene.phase(0), scene.at(0)), (None, node_id(0)));
}
