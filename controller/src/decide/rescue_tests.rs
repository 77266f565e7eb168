//! A VM whose node has lost its pool: when it is due, and that its node lets go of it before it runs elsewhere.

use tamdao_model::TimeMs;
use tamdao_model::assignment::{Intent, Reservation};
use tamdao_model::convert::agent::{MoveSeen, MoveState};
use tamdao_model::moves::{Cause, Move, MoveEvent};
use tamdao_model::node::PoolSeen;
use tamdao_model::vm::{GuestState, OnNodeLoss, Vm};
use tamdao_store::typed::Draft;
use uuid::Uuid;

use super::super::move_start::Wish;
use super::super::report::{self, Part};
use super::super::rescue::{self, Stranded};
use super::super::{move_step, node, put_vm};
use super::{POOL, SESSION, Step, apply, find, node_id, seen, world};
use crate::admission::Moment;

/// VM 0 ran on n0, which has lost the pool of its disks.
struct Scene {
    draft: Draft,
    moment: Moment,
}

impl Scene {
    fn new() -> Self {
        let mut moment = Moment { now: TimeMs(1_000_000) };
        let mut draft = Draft::new(world(), Uuid::from_u128(1));
        let mut pool = (*draft.view().pools.get(POOL).unwrap().value).clone();
        pool.spec.shared = true;
        draft.put(pool);
        let mut view = draft.view().clone();
        view = apply(view, &mut moment, &Step::Create { at: 0, vcpus: 1, memory_mib: 512, disk_mib: 8 });
        view = apply(view, &mut moment, &Step::Place { at: 0, node: 0 });
        let mut scene = Self { draft: Draft::new(view, Uuid::from_u128(2)), moment };
        scene.says(GuestState::Running);
        scene.pool(false);
        scene.says(GuestState::Preparing);
        assert_eq!(scene.due(), [], "it may be being mounted");
        scene.moment.now = scene.moment.now.plus_ms(30_000);
        scene
    }

    fn vm(&self) -> Vm {
        find(self.draft.view(), 0).unwrap()
    }

    fn says(&mut self, state: GuestState) {
        let vms = vec![seen(&self.vm(), state, false)];
        report::take(
            &mut self.draft,
            &mut self.moment,
            node_id(0),
            SESSION,
            &Part { vms, ..Part::default() },
        );
    }

    fn pool(&mut self, ready: bool) {
        let pools = vec![(POOL, PoolSeen { ready, capacity_mib: 8_192, ..PoolSeen::default() })];
        let part = Part { pools, ..Part::default() };
        report::take(&mut self.draft, &mut self.moment, node_id(0), SESSION, &part);
    }

    fn due(&self) -> Vec<Stranded> {
        rescue::due(self.draft.view(), self.moment.now)
    }

    fn change(&mut self, change: impl FnOnce(&mut Vm)) {
        let mut vm = self.vm();
        change(&mut vm);
        put_vm(&mut self.draft, vm);
    }

    fn open(&mut self) -> Move {
        let stranded = self.due()[0];
        let wish = Wish {
            vm: stranded.vm,
            target: node_id(1),
            reservation: Reservation { vcpus: 1, memory_mib: 600 },
            cells: Vec::new(),
            allow_cold: true,
            auto_converge: false,
            reason: rescue::reason(self.draft.view(), stranded),
        };
        assert_eq!(wish.reason, "node n0 has lost pool default");
        assert!(rescue::open(&mut self.draft, &mut self.moment, stranded, &wish).unwrap());
        let id = self.vm().status.moving.unwrap();
        (*self.draft.view().moves.get(id).unwrap().value).clone()
    }

    fn intents(&self) -> [Option<Intent>; 2] {
        let id = self.vm().id();
        [0, 1].map(|at| self.draft.view().assignment(node_id(at)).vms.get(&id).map(|entry| entry.intent))
    }
}

#[test]
fn a_vm_is_due_while_it_is_off_for_want_of_its_pool_on_a_node_that_is_heard() {
    let mut scene = Scene::new();
    assert_eq!(scene.due().len(), 1);
    for runs in [GuestState::Running, GuestState::Paused, GuestState::Stopping, GuestState::Starting] {
        scene.says(runs);
        assert_eq!(scene.due(), [], "{runs:?}");
    }
    scene.says(GuestState::Preparing);
    scene.change(|vm| vm.spec.on_node_loss = OnNodeLoss::Stay);
    assert_eq!(scene.due(), [], "it is asked to stay");
    scene.change(|vm| vm.spec.on_node_loss = OnNodeLoss::Evacuate);
    scene.pool(true);
    assert_eq!(scene.due(), [], "the pool is back");
    scene.pool(false);
    assert_eq!(scene.due(), [], "it is away only now");
    scene.moment.now = scene.moment.now.plus_ms(29_999);
    scene.pool(false);
    assert_eq!(scene.due(), []);
    scene.moment.now = scene.moment.now.plus_ms(1);
    assert_eq!(scene.due().len(), 1);
    node::lose(&mut scene.draft, &mut scene.moment, node_id(0), "silent");
    assert_eq!(scene.due(), [], "of a node that is not heard others have to prove it");
}

#[test]
fn it_runs_elsewhere_only_after_its_node_has_let_go_of_it() {
    let mut scene = Scene::new();
    let one = scene.open();
    assert_eq!(scene.due(), [], "it is on its way");
    assert_eq!(scene.intents(), [Some(Intent::Wanted), Some(Intent::Incoming)]);
    move_step::happens(&mut scene.draft, &mut scene.moment, one.id(), MoveEvent::TargetReady, None);
    assert_eq!(scene.intents(), [Some(Intent::Outgoing), Some(Intent::Incoming)]);
    let mut word = seen(&scene.vm(), GuestState::Stopped, false);
    word.moving = Some(MoveSeen { id: one.id(), state: MoveState::Gone, problem: None });
    let part = Part { vms: vec![word], ..Part::default() };
    report::take(&mut scene.draft, &mut scene.moment, node_id(0), SESSION, &part);
    assert_eq!(scene.intents(), [Some(Intent::Stale), Some(Intent::Wanted)]);
    let vm = scene.vm();
    assert_eq!((vm.status.node, vm.status.incarnation), (Some(node_id(1)), one.spec.incarnation_to));
}

#[test]
fn a_rescue_is_given_up_when_the_pool_is_back_before_the_node_was_told() {
    let mut scene = Scene::new();
    let one = scene.open();
    assert_eq!(rescue::needless(scene.draft.view()), []);
    scene.pool(true);
    scene.says(GuestState::Running);
    assert_eq!(rescue::needless(scene.draft.view()), [one.id()]);
    rescue::give_up(&mut scene.draft, &mut scene.moment, one.id());
    assert_eq!(scene.intents(), [Some(Intent::Wanted), Some(Intent::Stale)]);
    // Once the node is told, it is too late: what it says then counts.
    let mut told = Scene::new();
    let one = told.open();
    move_step::happens(&mut told.draft, &mut told.moment, one.id(), MoveEvent::TargetReady, None);
    told.says(GuestState::Running);
    assert_eq!(rescue::needless(told.draft.view()), []);
}

#[test]
fn a_rescue_that_failed_is_not_tried_again_at_once() {
    let mut scene = Scene::new();
    let one = scene.open();
    let cause = Cause { reason: "Tried".into(), message: "it did not work".into(), cancelled: false };
    move_step::happens(&mut scene.draft, &mut scene.moment, one.id(), MoveEvent::GiveUp, Some(cause));
    let mut gone = seen(&scene.vm(), GuestState::Absent, true);
    gone.incarnation = one.spec.incarnation_to;
    let part = Part { vms: vec![gone], ..Part::default() };
    report::take(&mut scene.draft, &mut scene.moment, node_id(1), SESSION, &part);
    assert_eq!(scene.vm().status.moving, None);
    scene.says(GuestState::Preparing);
    assert_eq!(scene.due(), []);
    scene.moment.now = scene.moment.now.plus_ms(60_000);
    assert_eq!(scene.due().len(), 1);
}
