//! Moves over all that their ends may say: at every moment one node at most may start the VM, and at the end records
//! and places agree on where it is.

use proptest::prelude::*;
use tamdao_model::assignment::{Hold, Intent};
use tamdao_model::convert::agent::{FileState, MoveSeen, MoveState, VolumeSeen};
use tamdao_model::convert::moves::show_way;
use tamdao_model::fence::{Evidence, Silence};
use tamdao_model::forecast::Verdict;
use tamdao_model::moves::{Cause, Move, MoveEvent, MovePhase, Way};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::{GuestExit, GuestState, Vm, VmPhase};
use tamdao_model::{Name, NodeId, PoolId, TimeMs, VmId};
use tamdao_proto::agent::v1::Measurement;
use tamdao_proto::v1::MoveWay;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use uuid::Uuid;

use super::move_start::{self, Wish};
use super::move_step::{self, Due, Turns};
use super::report::{self, Part};
use super::tests::{AGENCY, POOL, SESSION, node_id, request, seen, world};
use super::{fence, move_forecast};
use super::{node, place, vm_create};
use crate::admission::Moment;
use crate::engine;
use crate::sessions::expand::{self, told_of};

struct Scene {
    draft: Draft,
    moment: Moment,
}

fn only_vm(view: &View) -> Vm {
    (*view.vms.iter().next().unwrap().value).clone()
}

impl Scene {
    /// A VM with a local disk that runs on node 0.
    fn new() -> Self {
        let (mut draft, mut moment) =
            (Draft::new(world(), Uuid::from_u128(2)), Moment { now: TimeMs(1_000) });
        for at in 0..3 {
            let mut node = (*draft.view().nodes.get(node_id(at)).unwrap().value).clone();
            (node.status.moves_port, node.status.address) = (7444, format!("10.0.0.{at}"));
            node.status.carries_files = true;
            draft.put(node);
        }
        vm_create::create(&mut draft, &mut moment, request(0, 1, 256, 100), AGENCY, None, "test").unwrap();
        let vm = only_vm(draft.view());
        let reservation = engine::shape(draft.view(), &vm).unwrap().reservation_on(false);
        place::place(&mut draft, &mut moment, node_id(0), &[(vm.id(), reservation).into()])[0]
            .clone()
            .unwrap();
        let mut scene = Self { draft, moment };
        let vm = scene.vm();
        let volume = vm.volumes().next().unwrap();
        let made = VolumeSeen { volume, state: FileState::Made, size_mib: 100, used_mib: 1, problem: None };
        let part =
            Part { vms: vec![seen(&vm, GuestState::Running, false)], volumes: vec![made], ..Part::default() };
        scene.report(0, &part);
        assert_eq!(scene.vm().status.phase, VmPhase::Running);
        scene
    }

    fn vm(&self) -> Vm {
        only_vm(self.draft.view())
    }

    fn report(&mut self, node: u128, part: &Part) {
        report::take(&mut self.draft, &mut self.moment, node_id(node), SESSION, part);
    }

    fn begin(&mut self) -> Move {
        let vm = self.vm();
        let reservation = engine::shape(self.draft.view(), &vm).unwrap().reservation_on(false);
        let target = node_id(1);
        let wish = Wish {
            vm: vm.id(),
            target,
            reservation,
            cells: Vec::new(),
            allow_cold: false,
            auto_converge: true,
            reason: String::new(),
        };
        move_start::start(&mut self.draft, &mut self.moment, &wish, "test").unwrap()
    }

    fn now(&self, one: &Move) -> Move {
        (*self.draft.view().moves.get(one.id()).unwrap().value).clone()
    }

    /// An end speaks of the move.
    fn say(&mut self, one: &Move, node: u128, state: MoveState) {
        let mut word = seen(&self.vm(), GuestState::Running, false);
        word.incarnation = if node == 0 { one.spec.incarnation_from } else { one.spec.incarnation_to };
        word.moving = Some(MoveSeen { id: one.id(), state, problem: None });
        self.report(node, &Part { vms: vec![word], ..Part::default() });
    }

    fn gone(&mut self, one: &Move, node: u128) {
        let mut word = seen(&self.vm(), GuestState::Absent, true);
        word.incarnation = if node == 0 { one.spec.incarnation_from } else { one.spec.incarnation_to };
        self.report(node, &Part { vms: vec![word], ..Part::default() });
    }

    /// A node is lost and something is proven of it.
    fn fence(&mut self, node: u128, evidence: Evidence) {
        self.set_phase(node, NodePhase::Fencing);
        let record = (*self.draft.view().nodes.get(node_id(node)).unwrap().value).clone();
        let proof = fence::proof_of(&record, evidence, "test".into(), self.moment.now);
        fence::prove(&mut self.draft, &mut self.moment, proof).unwrap();
    }

    /// The same, and what it said before comes later.
    fn prove(&mut self, node: u128, evidence: Evidence) {
        self.fence(node, evidence);
        self.set_phase(node, NodePhase::Ready);
    }

    fn set_phase(&mut self, node: u128, phase: NodePhase) {
        let mut record = (*self.draft.view().nodes.get(node_id(node)).unwrap().value).clone();
        record.status.phase = phase;
        self.draft.put(record);
    }

    fn deleted(&mut self, node: u128) {
        let volume = self.vm().volumes().next().unwrap();
        let word = VolumeSeen { volume, state: FileState::Deleted, size_mib: 0, used_mib: 0, problem: None };
        self.report(node, &Part { volumes: vec![word], ..Part::default() });
    }

    fn intent(&self, node: u128) -> Option<Intent> {
        let vm = self.vm().id();
        self.draft.view().assignment(node_id(node)).vms.get(&vm).map(|entry| entry.intent)
    }

    fn hold(&self, node: u128) -> Option<Hold> {
        let volume = self.vm().volumes().next().unwrap();
        self.draft.view().assignment(node_id(node)).volumes.get(&volume).map(|entry| entry.hold)
    }

    fn turn(&mut self) {
        for due in move_step::due(self.draft.view(), self.moment.now, Turns { per_node: 2, in_all: 4 }) {
            match due {
                Due::Send(id) => {
                    move_step::happens(&mut self.draft, &mut self.moment, id, MoveEvent::TargetReady, None)
                }
                Due::GiveUp(id) => {
                    move_step::happens(&mut self.draft, &mut self.moment, id, MoveEvent::GiveUp, None)
                }
                Due::Forget(_) => {}
            }
        }
    }

    fn cancel(&mut self, one: &Move) {
        let cause = Cause { reason: "Cancelled".into(), message: "asked".into(), cancelled: true };
        move_step::happens(&mut self.draft, &mut self.moment, one.id(), MoveEvent::GiveUp, Some(cause));
    }
}

#[test]
fn a_move_that_goes_well() {
    let mut scene = Scene::new();
    let one = scene.begin();
    assert_eq!(one.spec.way, Way::LiveWithDisks);
    assert_eq!((scene.intent(0), scene.intent(1)), (Some(Intent::Wanted), Some(Intent::Incoming)));
    assert_eq!((scene.hold(0), scene.hold(1)), (Some(Hold::Own), Some(Hold::Arriving)));
    scene.turn();
    assert_eq!(scene.now(&one).status.phase, MovePhase::Preparing, "the target is not ready");
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    assert_eq!((scene.intent(0), scene.intent(1)), (Some(Intent::Outgoing), Some(Intent::Incoming)));
    scene.say(&one, 0, MoveState::Gone);
    let vm = scene.vm();
    assert_eq!((vm.status.node, vm.status.incarnation, vm.status.moving), (Some(node_id(1)), 2, None));
    assert_eq!(vm.status.phase, VmPhase::Running, "it never stopped");
    assert_eq!((scene.intent(0), scene.intent(1)), (Some(Intent::Stale), Some(Intent::Wanted)));
    assert_eq!((scene.hold(0), scene.hold(1)), (Some(Hold::Leaving), Some(Hold::Own)));
    let volume = vm.volumes().next().unwrap();
    assert_eq!(scene.draft.view().volumes.get(volume).unwrap().status.node, Some(node_id(1)));
    scene.gone(&one, 0);
    scene.deleted(0);
    assert_eq!((scene.intent(0), scene.hold(0)), (None, None), "nothing is held there any more");
    assert!(scene.draft.view().volumes.get(volume).is_some());
    assert_eq!(scene.now(&one).status.phase, MovePhase::Done);
}

#[test]
fn a_cancelled_move_ends_when_the_source_has_kept_and_the_target_has_cleared() {
    let mut scene = Scene::new();
    let one = scene.begin();
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    scene.cancel(&one);
    assert_eq!(scene.now(&one).status.phase, MovePhase::Recalling);
    assert_eq!(scene.now(&one).may_run_on(), [node_id(0), node_id(1)]);
    scene.gone(&one, 1);
    assert_eq!(scene.now(&one).status.phase, MovePhase::Recalling, "nobody asked the target to clear");
    scene.say(&one, 0, MoveState::Kept);
    assert_eq!(scene.now(&one).may_run_on(), [node_id(0)]);
    assert_eq!((scene.intent(0), scene.intent(1)), (Some(Intent::Outgoing), Some(Intent::Stale)));
    scene.gone(&one, 1);
    assert_eq!(scene.now(&one).status.phase, MovePhase::Cancelled);
    let vm = scene.vm();
    assert_eq!((vm.status.node, vm.status.incarnation, vm.status.moving), (Some(node_id(0)), 1, None));
    assert_eq!((scene.intent(0), scene.intent(1)), (Some(Intent::Wanted), None));
    // Its files go by their own entry, and until then it cannot come again.
    assert_eq!(scene.hold(1), Some(Hold::Leaving));
    let reservation = engine::shape(scene.draft.view(), &vm).unwrap().reservation_on(false);
    let (id, target) = (vm.id(), node_id(1));
    let wish = Wish {
        vm: id,
        target,
        reservation,
        cells: Vec::new(),
        allow_cold: false,
        auto_converge: true,
        reason: String::new(),
    };
    let refused = move_start::start(&mut scene.draft, &mut scene.moment, &wish, "test").unwrap_err();
    assert_eq!(refused.reason, "StillClearing");
    scene.deleted(1);
    assert_eq!(scene.begin().spec.incarnation_to, 3, "an incarnation is never given twice");
}

#[test]
fn what_came_too_late_is_done_all_the_same() {
    let mut scene = Scene::new();
    let one = scene.begin();
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    scene.cancel(&one);
    scene.say(&one, 1, MoveState::Runs);
    assert_eq!(scene.now(&one).status.phase, MovePhase::Done);
    assert_eq!(scene.vm().status.node, Some(node_id(1)));
}

#[test]
fn a_fenced_source_leaves_the_vm_its_own_once_the_target_has_cleared() {
    let mut scene = Scene::new();
    let one = scene.begin();
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    let silence = Silence { counter: 7, lease_ms: 60_000, watchdog_timeout_ms: 10_000, apart_ms: 70_000 };
    scene.prove(0, Evidence::StorageSilence { pool: PoolId(Uuid::from_u128(99)), silence });
    assert_eq!(
        scene.now(&one).status.phase,
        MovePhase::Sending,
        "its disk is local: the lease says nothing of it"
    );
    scene.prove(0, Evidence::Attestation { reason: "it is in the river".into() });
    assert_eq!(scene.now(&one).status.phase, MovePhase::Clearing);
    assert_eq!(scene.now(&one).may_run_on(), [node_id(0), node_id(1)], "the target may have begun");
    scene.gone(&one, 1);
    assert_eq!(scene.now(&one).status.phase, MovePhase::Failed);
    let status = scene.vm().status;
    assert_eq!(status.node, Some(node_id(0)));
    // Its ledger may know the old one as let go, and the target's the one that was meant to be.
    assert!(status.incarnation > one.spec.incarnation_to, "{status:?}");
    let entry = scene.draft.view().assignment(node_id(0)).vms[&one.spec.vm].clone();
    assert_eq!((entry.incarnation, entry.intent), (status.incarnation, Intent::Wanted));
}

#[test]
fn a_target_that_is_fenced_already_has_nothing_to_clear() {
    let river = || Evidence::Attestation { reason: "it is in the river".into() };
    for returns in [false, true] {
        let mut scene = Scene::new();
        let one = scene.begin();
        scene.say(&one, 1, MoveState::Ready);
        scene.turn();
        scene.fence(1, river());
        assert_eq!(scene.now(&one).status.phase, MovePhase::Recalling);
        if returns {
            scene.set_phase(1, NodePhase::Returning);
        }
        scene.say(&one, 0, MoveState::Kept);
        if returns {
            assert_eq!(scene.now(&one).status.phase, MovePhase::Clearing, "it is there to say so itself");
            node::lose(&mut scene.draft, &mut scene.moment, node_id(1), "silent again");
        }
        assert_eq!(scene.now(&one).status.phase, MovePhase::Failed);
        assert_eq!((scene.vm().status.moving, scene.intent(0)), (None, Some(Intent::Wanted)));
        assert_eq!(scene.intent(1), Some(Intent::Stale), "it is told when it comes back");
    }
}

#[test]
fn a_lost_target_is_asked_about_though_no_vm_is_its_own() {
    let mut scene = Scene::new();
    let mut pool = (*scene.draft.view().pools.get(POOL).unwrap().value).clone();
    pool.spec.shared = true;
    scene.draft.put(pool);
    let asked = |scene: &Scene| {
        let view = scene.draft.view();
        fence::question(view, view.nodes.get(node_id(1)).unwrap()).vms
    };
    assert_eq!(asked(&scene), []);
    let one = scene.begin();
    assert_eq!(asked(&scene), [one.spec.vm]);
}

#[test]
fn a_move_between_two_fenced_nodes_does_not_hold_the_vm_up() {
    let river = || Evidence::Attestation { reason: "it is in the river".into() };
    let mut scene = Scene::new();
    let one = scene.begin();
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    scene.fence(1, river());
    scene.fence(0, river());
    assert_eq!(scene.now(&one).status.phase, MovePhase::Failed);
    assert_eq!((scene.vm().status.moving, scene.vm().status.node), (None, Some(node_id(0))));
}

#[test]
fn both_ends_are_told_of_what_changes_of_the_vm() {
    let mut scene = Scene::new();
    let told = |scene: &Scene| told_of(scene.draft.view(), &scene.vm()).collect::<Vec<_>>();
    assert_eq!(told(&scene), [node_id(0)]);
    scene.begin();
    assert_eq!(told(&scene), [node_id(0), node_id(1)]);
}

#[test]
fn moves_take_turns() {
    let mut scene = Scene::new();
    let one = scene.begin();
    scene.say(&one, 1, MoveState::Ready);
    let none = move_step::due(scene.draft.view(), scene.moment.now, Turns { per_node: 0, in_all: 4 });
    assert_eq!(none, []);
    let late = TimeMs(scene.moment.now.0 + 31 * 60 * 1_000);
    let due = move_step::due(scene.draft.view(), late, Turns { per_node: 2, in_all: 4 });
    assert_eq!(due, [Due::GiveUp(one.id())]);
}

#[test]
fn a_forecast_is_of_the_guest_and_of_what_its_node_can_send_now() {
    let mut scene = Scene::new();
    let volume = scene.vm().volumes().next().unwrap();
    let mut volume = (*scene.draft.view().volumes.get(volume).unwrap().value).clone();
    volume.status.used_mib = 7;
    scene.draft.put(volume);
    let told = Measurement {
        memory_bytes: 100 << 20,
        dirty_bytes_per_s: 1 << 20,
        limit_bytes_per_s: 10 << 20,
        pace_bytes_per_s: 50 << 20,
    };
    let expect = |scene: &Scene, told: &Measurement| {
        let (view, vm) = (scene.draft.view(), scene.vm());
        let source = view.nodes.get(node_id(0)).unwrap();
        let copies = move_start::local_volumes(view, &vm);
        move_forecast::expect(view, &vm, source, &copies, true, told)
    };
    let alone = expect(&scene, &told);
    assert_eq!(
        (alone.verdict, alone.bytes_per_s),
        (Verdict::Arrives, 10 << 20),
        "the limit is the narrowest"
    );
    assert_eq!((alone.memory_bytes, alone.disk_bytes), (100 << 20, 7 << 20));
    let unlimited = Measurement { limit_bytes_per_s: 0, ..told };
    assert_eq!(expect(&scene, &unlimited).bytes_per_s, 50 << 20);
    let unknown = Measurement { limit_bytes_per_s: 0, pace_bytes_per_s: 0, ..told };
    assert_eq!(expect(&scene, &unknown).verdict, Verdict::Unknown);
    let one = scene.begin();
    let mut other = one.clone();
    (other.spec.vm, other.meta.id) = (VmId(Uuid::from_u128(99)), Uuid::from_u128(98));
    other.meta.name = Name::new("other").unwrap();
    other.status.phase = MovePhase::Sending;
    scene.draft.create(other);
    assert_eq!(expect(&scene, &told).bytes_per_s, 5 << 20, "two share what the node can send");

    move_forecast::note(&mut scene.draft, one.id(), alone);
    let later = expect(&scene, &unknown);
    move_forecast::note(&mut scene.draft, one.id(), later);
    assert_eq!(scene.now(&one).status.forecast, Some(alone), "the first one stands");
    assert_eq!(scene.now(&one).status.send_time, None);
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    assert_eq!(scene.now(&one).status.send_time, Some(scene.moment.now));
}

#[test]
fn a_vm_that_cannot_move_is_told_why() {
    let mut scene = Scene::new();
    scene.begin();
    let vm = scene.vm();
    let reason = |vm: &Vm| move_start::way(scene.draft.view(), vm, true).unwrap_err().reason;
    assert_eq!(reason(&vm), "MoveOpen");
    let mut still = vm.clone();
    still.status.moving = None;
    for (change, expected) in [
        ((|vm| vm.spec.deleting = true) as fn(&mut Vm), "Deleting"),
        (|vm| vm.spec.pin = Some(NodeId(Uuid::nil())), "Pinned"),
        (|vm| vm.status.node = None, "NotPlaced"),
        (|vm| vm.status.phase = VmPhase::Starting, "NotRunning"),
    ] {
        let mut vm = still.clone();
        change(&mut vm);
        assert_eq!(reason(&vm), expected);
    }
}

#[test]
fn what_is_off_takes_its_local_disk_along() {
    let mut scene = Scene::new();
    let mut word = seen(&scene.vm(), GuestState::Stopped, false);
    word.seen.exit = Some(GuestExit::ByItself);
    scene.report(0, &Part { vms: vec![word], ..Part::default() });
    let vm = scene.vm();
    assert_eq!(vm.status.phase, VmPhase::Stopped);
    let mut volume = (*scene.draft.view().volumes.get(vm.volumes().next().unwrap()).unwrap().value).clone();
    volume.status.used_mib = 5 << 10;
    scene.draft.put(volume.clone());
    let one = scene.begin();
    assert_eq!((one.spec.way, &one.spec.copies), (Way::Cold, &vec![volume.id()]));
    assert_eq!(
        show_way(&one.spec),
        i32::from(MoveWay::ColdWithDisks),
        "no older agent takes it for a plain one"
    );
    assert_eq!((scene.hold(0), scene.hold(1)), (Some(Hold::Own), Some(Hold::Arriving)));
    let told = expand::assignment(scene.draft.view(), node_id(1), None, &|_| None);
    let told = told.vms[0].r#move.clone().unwrap();
    assert!(told.stays_off && told.way() == MoveWay::ColdWithDisks, "nobody has switched it off: {told:?}");
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    let limit = scene.now(&one).status.deadline.unwrap().since(scene.moment.now);
    assert_eq!(limit, move_step::send_limit_ms((5 << 10) + 256), "its files take their time");
    scene.say(&one, 0, MoveState::Gone);
    assert_eq!((scene.hold(0), scene.hold(1)), (Some(Hold::Leaving), Some(Hold::Own)));
    let volume = scene.draft.view().volumes.get(volume.id()).unwrap();
    assert_eq!(volume.status.node, Some(node_id(1)));
}

#[test]
fn only_agents_that_carry_disks_are_asked_to() {
    let mut scene = Scene::new();
    let mut vm = scene.vm();
    vm.status.phase = VmPhase::Stopped;
    let node = |scene: &Scene, at| (*scene.draft.view().nodes.get(node_id(at)).unwrap().value).clone();
    let (source, mut target) = (node(&scene, 0), node(&scene, 1));
    assert_eq!(move_start::way(scene.draft.view(), &vm, false), Ok(Way::Cold));
    let unfit = |target: &Node| move_start::unfit(scene.draft.view(), &vm, Way::Cold, &source, target);
    assert_eq!(unfit(&target), None);
    target.status.carries_files = false;
    assert_eq!(unfit(&target).unwrap().0, "NoMoves");
    (target.status.carries_files, target.status.moves_port) = (true, 0);
    assert_eq!(unfit(&target).unwrap().0, "NoMoves");
    let mut older = source.clone();
    older.status.carries_files = false;
    scene.draft.put(older);
    let refused = move_start::way(scene.draft.view(), &vm, false).unwrap_err();
    assert_eq!(refused.reason, "ColdImpossible", "{refused:?}");
    scene.draft.put(source);
    let volume = vm.volumes().next().unwrap();
    let mut volume = (*scene.draft.view().volumes.get(volume).unwrap().value).clone();
    volume.status.made = false;
    scene.draft.put(volume);
    assert_eq!(move_start::way(scene.draft.view(), &vm, false).unwrap_err().reason, "ColdImpossible");
    // What cannot move while it runs goes off with its disks, if somebody allows it.
    let mut runs = scene.vm();
    runs.spec.tpm = true;
    assert_eq!(move_start::way(scene.draft.view(), &runs, false).unwrap_err().reason, "LiveImpossible");
}

#[test]
fn a_node_of_another_kind_is_refused() {
    let view = world();
    let mut nodes: Vec<_> = view.nodes.iter().map(|row| (*row.value).clone()).collect();
    let platform =
        tamdao_model::vm::Platform { machine_type: "q35-7".into(), cpu_model: "Skylake,-hle".into() };
    let (source, target) = (nodes.remove(0), &mut nodes[0]);
    assert_eq!(move_start::incompatible(Some(&platform), &source, target), None);
    target.status.inventory.machine_types = vec!["q35-6".into()];
    assert!(move_start::incompatible(Some(&platform), &source, target).unwrap().contains("machine type"));
    target.status.inventory.machine_types.clear();
    target.status.inventory.acceleration = "qemu".into();
    assert!(move_start::incompatible(Some(&platform), &source, target).is_some());
    target.status.inventory.acceleration.clear();
    for (given, can) in [
        ("Haswell", false),
        ("Skylake", true),
        ("Skylake,-hle", true),
        ("Skylake,-rtm", false),
        ("Skylake,-hle,-rtm", false),
    ] {
        target.status.inventory.cpu_models = vec!["Westmere".into(), given.into()];
        let why = move_start::incompatible(Some(&platform), &source, target);
        assert_eq!(why.is_none(), can, "{given}: {why:?}");
    }
}

#[derive(Debug, Clone, Copy)]
enum Word {
    Ready,
    Turn,
    Cancel,
    Kept,
    Gone,
    Runs,
    Cleared,
    FenceSource,
    FenceTarget,
}

proptest! {
    /// Whatever comes in whatever order, but for what an end never says: both words of a source, or that the target
    /// runs what was not let go.
    #[test]
    fn at_most_one_node_may_start_it(words in proptest::collection::vec(prop_oneof![
        Just(Word::Ready), Just(Word::Turn), Just(Word::Cancel), Just(Word::Kept), Just(Word::Gone),
        Just(Word::Runs), Just(Word::Cleared), Just(Word::FenceSource), Just(Word::FenceTarget),
    ], 1..16)) {
        let mut scene = Scene::new();
        let one = scene.begin();
        let mut source = None;
        for word in words {
            let told = scene.intent(0) == Some(Intent::Outgoing);
            match word {
                Word::Ready => scene.say(&one, 1, MoveState::Ready),
                Word::Turn => scene.turn(),
                Word::Cancel => scene.cancel(&one),
                Word::Kept if told && source != Some(false) => {
                    source = Some(true);
                    scene.say(&one, 0, MoveState::Kept);
                }
                Word::Gone if told && source != Some(true) => {
                    source = Some(false);
                    scene.say(&one, 0, MoveState::Gone);
                }
                Word::Runs if source == Some(false) => scene.say(&one, 1, MoveState::Runs),
                Word::Cleared if scene.intent(1) == Some(Intent::Stale) => scene.gone(&one, 1),
                Word::FenceSource => scene.prove(0, Evidence::Goodbye),
                Word::FenceTarget => scene.prove(1, Evidence::Goodbye),
                _ => {}
            }
            let starts = |node| scene.intent(node) == Some(Intent::Wanted);
            prop_assert!(!(starts(0) && starts(1)));
            let now = scene.now(&one);
            let vm = scene.vm();
            prop_assert_eq!(vm.status.moving.is_some(), now.status.phase.is_open());
            let at = if now.status.phase == MovePhase::Done { 1 } else { 0 };
            prop_assert_eq!(vm.status.node, Some(node_id(at)));
            prop_assert!(now.may_run_on().contains(&node_id(at)));
            if now.status.phase == MovePhase::Done {
                prop_assert_eq!(source, Some(false));
            }
        }
    }
}

#[test]
fn the_ends_of_a_move_hold_the_guest_without_a_story_of_their_own() {
    let mut scene = Scene::new();
    let one = scene.begin();
    scene.say(&one, 1, MoveState::Ready);
    scene.turn();
    let told = |scene: &mut Scene, state: GuestState, reason: &str| {
        let events = scene.draft.view().events.len();
        let mut word = seen(&scene.vm(), state, false);
        (word.incarnation, word.seen.pause_reason) = (one.spec.incarnation_from, reason.into());
        scene.report(0, &Part { vms: vec![word], ..Part::default() });
        scene.draft.view().events.len() - events
    };
    assert_eq!(told(&mut scene, GuestState::Paused, "migration"), 0);
    assert_eq!(scene.vm().status.phase, VmPhase::Paused);
    assert_eq!(told(&mut scene, GuestState::Stopping, ""), 0);
    assert_eq!(told(&mut scene, GuestState::Paused, "io-error"), 1, "failed storage is told all the same");
}
