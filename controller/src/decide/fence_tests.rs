//! A node is lost, fenced, evacuated and comes back: what each transaction lets through.

use std::collections::BTreeSet;

use tamdao_model::address::Holder;
use tamdao_model::assignment::{Hold, Intent, Reservation, VolumeEntry};
use tamdao_model::bmc::{self, Bmc, Drilled, Trust};
use tamdao_model::condition::ConditionStatus;
use tamdao_model::convert::agent::{FileState, VolumeSeen};
use tamdao_model::fence::{Evidence, Silence};
use tamdao_model::node::NodePhase;
use tamdao_model::quota::{Amounts, Measure};
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{GuestState, OnNodeLoss};
use tamdao_model::{NodeId, SessionId, TimeMs, VmId, VolumeId};
use tamdao_store::typed::Draft;
use uuid::Uuid;

use super::super::evacuate::Place;
use super::super::node::Opening;
use super::super::report::{self, Part};
use super::super::{evacuate, fence, node, vm_delete};
use super::{POOL, SESSION, Step, apply, find, node_id, seen, world};
use crate::admission::Moment;
use crate::sessions::expand;

/// The session that the lost node opens when it is heard again.
const AGAIN: SessionId = SessionId(Uuid::from_u128(0xE));

/// A cluster in which VMs 0 and 1 run on n0, with their disks in a shared pool; the keeper has 0 and not 1.
struct Lost {
    draft: Draft,
    moment: Moment,
}

const LOST: u128 = 0;

fn volume_of_8_mib() -> Amounts {
    [(Measure::Volumes, 1), (Measure::DiskMib, 8)].into_iter().collect()
}

#[test]
fn a_node_whose_link_flaps_takes_vms_again_when_it_is_steady() {
    const STEADY_MS: u64 = 180_000;
    let mut lost = Lost::new();
    let ready = |lost: &Lost| {
        let status = lost.node().status;
        (status.phase, status.conditions.get("Ready").map(|ready| ready.reason.clone()).unwrap_or_default())
    };
    let back = |lost: &mut Lost, steady_ms| {
        lost.hello();
        node::set_health(&mut lost.draft, &mut lost.moment, node_id(LOST), AGAIN, "", steady_ms);
    };
    let lose = |lost: &mut Lost, after_ms| {
        lost.moment.now = lost.moment.now.plus_ms(after_ms);
        node::lose(&mut lost.draft, &mut lost.moment, node_id(LOST), "silent again");
    };
    // Lost once by `new`, and a second time.
    back(&mut lost, STEADY_MS);
    lose(&mut lost, 20_000);
    back(&mut lost, STEADY_MS);
    assert_eq!(ready(&lost), (NodePhase::Ready, "Healthy".into()), "twice may be chance");
    lose(&mut lost, 20_000);
    assert_eq!(ready(&lost), (NodePhase::Unreachable, "AgentSilent".into()));
    back(&mut lost, STEADY_MS);
    assert_eq!(ready(&lost), (NodePhase::NotReady, "Unsteady".into()));
    // Each report says so anew, and an illness is told of before.
    node::set_health(&mut lost.draft, &mut lost.moment, node_id(LOST), AGAIN, "no libvirt", STEADY_MS);
    assert_eq!(ready(&lost), (NodePhase::NotReady, "Unhealthy".into()));
    back(&mut lost, STEADY_MS);
    lost.moment.now = lost.moment.now.plus_ms(STEADY_MS - 1);
    node::release(&mut lost.draft, &mut lost.moment, node_id(LOST), STEADY_MS);
    assert_eq!(ready(&lost), (NodePhase::NotReady, "Unsteady".into()));
    lost.moment.now = lost.moment.now.plus_ms(1);
    assert_eq!(node::steady_again(lost.draft.view(), lost.moment.now, STEADY_MS), [node_id(LOST)]);
    node::release(&mut lost.draft, &mut lost.moment, node_id(LOST), STEADY_MS);
    assert_eq!(ready(&lost), (NodePhase::Ready, "Steady".into()));
    // Three losses that lie farther apart are three losses.
    lose(&mut lost, 600_000);
    back(&mut lost, STEADY_MS);
    assert_eq!(ready(&lost).0, NodePhase::Ready);
    // Where it is wanted so, a node that is heard is believed.
    for _ in 0..3 {
        lose(&mut lost, 1_000);
        back(&mut lost, 0);
    }
    assert_eq!(ready(&lost).0, NodePhase::Ready);
}

#[test]
fn where_many_links_flap_no_node_is_held() {
    let mut lost = Lost::new();
    let nodes: Vec<NodeId> = lost.draft.view().nodes.iter().map(|row| row.id()).collect();
    assert!(nodes.len() > 2);
    for id in &nodes {
        let mut node = (*lost.draft.view().nodes.get(*id).unwrap().value).clone();
        node.status.losses = vec![TimeMs(1), TimeMs(2), TimeMs(3)];
        lost.draft.put(node);
    }
    lost.hello();
    node::set_health(&mut lost.draft, &mut lost.moment, node_id(LOST), AGAIN, "", 180_000);
    assert_eq!(lost.node().status.phase, NodePhase::Ready);
}

fn silence() -> Evidence {
    let silence = Silence { counter: 7, lease_ms: 6_000, watchdog_timeout_ms: 1_000, apart_ms: 8_200 };
    Evidence::StorageSilence { pool: POOL, silence }
}

impl Lost {
    fn new() -> Self {
        let mut moment = Moment { now: TimeMs(5) };
        let mut draft = Draft::new(world(), Uuid::from_u128(1));
        let mut pool = (*draft.view().pools.get(POOL).unwrap().value).clone();
        pool.spec.shared = true;
        draft.put(pool);
        let mut view = draft.view().clone();
        for at in 0..2 {
            view = apply(view, &mut moment, &Step::Create { at, vcpus: 1, memory_mib: 512, disk_mib: 8 });
            view = apply(view, &mut moment, &Step::Place { at, node: LOST });
        }
        let mut draft = Draft::new(view.clone(), Uuid::from_u128(2));
        let mut vms: Vec<_> =
            (0..2).map(|at| seen(&find(&view, at).unwrap(), GuestState::Running, false)).collect();
        vms[0].seen.guarded = true;
        report::take(&mut draft, &mut moment, node_id(LOST), SESSION, &Part { vms, ..Part::default() });
        node::lose(&mut draft, &mut moment, node_id(LOST), "silent");
        Self { draft, moment }
    }

    fn id(&self, at: u8) -> VmId {
        find(self.draft.view(), at).unwrap().id()
    }

    fn node(&self) -> tamdao_model::node::Node {
        (*self.draft.view().nodes.get(node_id(LOST)).unwrap().value).clone()
    }

    fn seek(&mut self, session: Option<SessionId>) {
        fence::seek(&mut self.draft, &mut self.moment, node_id(LOST), session);
    }

    fn prove(&mut self, evidence: Evidence) -> bool {
        let proof = fence::proof_of(&self.node(), evidence, "n1".into(), self.moment.now);
        fence::prove(&mut self.draft, &mut self.moment, proof).is_ok()
    }

    fn evacuate(&mut self, at: u8, to: u128) -> usize {
        let reservation = Reservation { vcpus: 1, memory_mib: 600 };
        let places = [Place { vm: self.id(at), node: node_id(to), reservation, cells: Vec::new() }];
        evacuate::evacuate(&mut self.draft, &mut self.moment, node_id(LOST), &places)
    }

    fn due(&self) -> BTreeSet<VmId> {
        evacuate::due(self.draft.view()).into_iter().map(|(_, vm)| vm).collect()
    }

    fn hello(&mut self) {
        let opening = Opening {
            session: AGAIN,
            boot_id: "b2".into(),
            address: String::new(),
            host_uuid: Uuid::nil(),
            moves_port: 0,
            carries_files: false,
        };
        node::open_session(&mut self.draft, &mut self.moment, node_id(LOST), &opening).unwrap();
    }

    /// The complete report of the session after the loss.
    fn report_well(&mut self) {
        node::set_health(&mut self.draft, &mut self.moment, node_id(LOST), AGAIN, "", 0);
    }

    /// Makes the pool a local one.
    fn keep_local(&mut self) {
        let mut pool = (*self.draft.view().pools.get(POOL).unwrap().value).clone();
        pool.spec.shared = false;
        self.draft.put(pool);
        // As they would have been made there.
        for at in 0..2 {
            for id in find(self.draft.view(), at).unwrap().volumes() {
                let mut volume = (*self.draft.view().volumes.get(id).unwrap().value).clone();
                volume.status.node = Some(node_id(LOST));
                let mut own = self.draft.view().assignment(node_id(LOST));
                own.volumes.insert(id, VolumeEntry::own(POOL, volume.spec.size_mib));
                self.draft.put(own);
                self.draft.put(volume);
            }
        }
    }

    fn files(&self) -> Vec<(VolumeId, i32)> {
        let told = expand::assignment(self.draft.view(), node_id(LOST), None, &|_| None);
        told.volumes.iter().map(|one| (VolumeId(one.volume_id.parse().unwrap()), one.intent)).collect()
    }

    fn told(&self) -> Vec<(VmId, i32)> {
        let told = expand::assignment(self.draft.view(), node_id(LOST), None, &|_| None);
        told.vms.iter().map(|vm| (VmId(vm.vm_id.parse().unwrap()), vm.intent)).collect()
    }
}

#[test]
fn without_a_proof_nothing_is_restarted_elsewhere() {
    let mut lost = Lost::new();
    assert_eq!(lost.due(), BTreeSet::new());
    assert_eq!(lost.evacuate(0, 1), 0);
    lost.seek(Some(SESSION));
    assert_eq!(lost.node().status.phase, NodePhase::Fencing);
    assert_eq!(lost.evacuate(0, 1), 0);
    assert_eq!(find(lost.draft.view(), 0).unwrap().status.node, Some(node_id(LOST)));
}

#[test]
fn nothing_is_sought_of_a_node_that_is_heard_again() {
    let mut lost = Lost::new();
    lost.hello();
    lost.seek(Some(SESSION));
    assert_eq!(lost.node().status.phase, NodePhase::Unreachable);
}

#[test]
fn silence_speaks_of_what_the_keeper_has_and_a_person_of_all() {
    let mut lost = Lost::new();
    let question = fence::question(lost.draft.view(), &lost.node());
    assert_eq!((question.vms.len(), question.pools), (2, [POOL].into()));
    assert!(lost.prove(silence()));
    assert_eq!(lost.due(), [lost.id(0)].into());
    assert_eq!((lost.evacuate(1, 1), lost.evacuate(0, 1)), (0, 1));
    assert_eq!(fence::question(lost.draft.view(), &lost.node()).vms, [lost.id(1)]);
    assert!(lost.prove(Evidence::Attestation { reason: "it burnt".into() }));
    assert_eq!(lost.evacuate(1, 2), 1);
    assert_eq!(lost.due(), BTreeSet::new());
    let vm = find(lost.draft.view(), 1).unwrap();
    assert_eq!((vm.status.node, vm.status.incarnation), (Some(node_id(2)), 2));
    let past = &vm.status.evacuations[0];
    assert_eq!((past.from.as_str(), past.to.as_str(), past.incarnation), ("n0", "n2", 2));
    assert_eq!(past.proof.evidence, Evidence::Attestation { reason: "it burnt".into() });
}

#[test]
fn a_batch_rewrites_the_lost_node_s_record() {
    let mut lost = Lost::new();
    assert!(lost.prove(silence()));
    let view = lost.draft.view().clone();
    let before = view.nodes.get(node_id(LOST)).unwrap().revision;
    lost.draft = Draft::new(view, Uuid::from_u128(9));
    assert_eq!(lost.evacuate(0, 1), 1);
    let txn = lost.draft.into_txn([]);
    let guard = format!("/node/{}", node_id(LOST));
    assert!(txn.guards.iter().any(|one| matches!(one,
        tamdao_store::kv::Guard::Unchanged(key, revision) if key.as_str() == guard && *revision == before)));
}

#[test]
fn a_proof_of_an_earlier_session_or_boot_is_none() {
    let mut lost = Lost::new();
    let old = fence::proof_of(&lost.node(), silence(), "n1".into(), TimeMs(6));
    lost.hello();
    assert!(fence::prove(&mut lost.draft, &mut lost.moment, old.clone()).is_err(), "it has been heard since");
    lost.report_well();
    assert_eq!(lost.node().status.phase, NodePhase::Ready);
    assert!(!lost.prove(silence()), "a node that is heard is not fenced");
    node::lose(&mut lost.draft, &mut lost.moment, node_id(LOST), "silent again");
    assert!(fence::prove(&mut lost.draft, &mut lost.moment, old).is_err(), "used for another loss");
    assert!(lost.prove(silence()));
}

#[test]
fn a_hello_comes_before_a_proof_or_after_it_and_never_in_between() {
    let mut lost = Lost::new();
    lost.seek(Some(SESSION));
    lost.hello();
    assert_eq!(lost.node().status.phase, NodePhase::Unreachable, "the search is called off");
    lost.report_well();
    assert_eq!((lost.node().status.phase, lost.told().len()), (NodePhase::Ready, 2));
}

#[test]
fn a_deletion_goes_on_elsewhere_once_it_is_proven_that_the_guest_is_gone() {
    let mut lost = Lost::new();
    let (vm, id) = (find(lost.draft.view(), 0).unwrap(), lost.id(0));
    vm_delete::want(&mut lost.draft, &mut lost.moment, &vm, false, "a user").unwrap();
    assert_eq!(lost.evacuate(0, 1), 0, "the guest may run for all that is known");
    assert!(lost.prove(silence()));
    assert_eq!((lost.due(), lost.evacuate(0, 1)), ([id].into(), 1));
    let (there, told) = (find(lost.draft.view(), 0).unwrap(), lost.draft.view().assignment(node_id(1)));
    assert_eq!((there.status.node, told.vms[&id].intent), (Some(node_id(1)), Intent::Stop));
    // The new node has no guest of this name, and removes the file.
    let vms = vec![seen(&there, GuestState::Absent, true)];
    report::take(&mut lost.draft, &mut lost.moment, node_id(1), SESSION, &Part { vms, ..Part::default() });
    let volumes: Vec<_> = there.volumes().collect();
    assert!(!volumes.is_empty());
    for volume in volumes {
        let deleting = lost.draft.view().volumes.get(volume).unwrap().spec.deleting;
        assert!(deleting);
        vm_delete::volume_gone(&mut lost.draft, &mut lost.moment, volume);
    }
    assert!(lost.draft.view().vms.get(id).is_none());
    let left = lost.draft.view().assignment(node_id(LOST));
    assert_eq!(left.vms[&id].intent, Intent::Stale, "the lost node has to confirm that it is gone there too");
}

#[test]
fn a_deletion_goes_on_without_a_lost_node_that_has_the_disk_once_the_whole_node_is_proven_gone() {
    let mut lost = Lost::new();
    lost.keep_local();
    let (vm, id) = (find(lost.draft.view(), 0).unwrap(), lost.id(0));
    let volume = vm.volumes().next().unwrap();
    let address = vm.spec.interfaces[0].addresses[0].addr();
    vm_delete::want(&mut lost.draft, &mut lost.moment, &vm, false, "a user").unwrap();
    let held_up = |lost: &Lost| vm_delete::held_up(lost.draft.view());
    let go_on = |lost: &mut Lost| {
        vm_delete::go_on(&mut lost.draft, &mut lost.moment, vm_delete::HeldUp::Vm(id));
    };
    for evidence in [None, Some(silence())] {
        assert!(evidence.is_none_or(|evidence| lost.prove(evidence)));
        assert_eq!(held_up(&lost), [], "a lease on a pool that it does not use says nothing of the guest");
        go_on(&mut lost);
        assert!(lost.draft.view().vms.get(id).is_some());
    }
    let before = lost.draft.view().usage(vm.agency).amounts;
    assert!(lost.prove(Evidence::Attestation { reason: String::new() }));
    assert_eq!(held_up(&lost), [vm_delete::HeldUp::Vm(id)]);
    let record = lost.node();
    go_on(&mut lost);
    assert_ne!(lost.node(), record, "so that a hello at the same time comes before it or after it");
    let view = lost.draft.view();
    assert!(view.vms.get(id).is_none() && view.volumes.get(volume).is_none());
    assert_eq!(view.usage(vm.agency).amounts, before.minus(&vm.amounts()).minus(&volume_of_8_mib()));
    let holder = view.addresses.iter().find(|row| row.address == address).map(|row| row.holder.clone());
    assert!(matches!(holder, Some(Holder::Resting { .. })), "{holder:?}");
    let left = view.assignment(node_id(LOST));
    assert_eq!((left.vms[&id].intent, left.volumes[&volume].hold), (Intent::Stale, Hold::Leaving));

    // When it is back it destroys what may still be there, and only then is told to remove the file.
    lost.hello();
    let stale = tamdao_proto::agent::v1::Intent::Stale as i32;
    assert_eq!((lost.told(), lost.files()), (vec![(id, stale)], vec![]));
    let vms = vec![seen(&vm, GuestState::Absent, true)];
    report::take(&mut lost.draft, &mut lost.moment, node_id(LOST), AGAIN, &Part { vms, ..Part::default() });
    lost.report_well();
    assert_eq!(lost.node().status.phase, NodePhase::Ready);
    let delete = tamdao_proto::agent::v1::VolumeIntent::Delete as i32;
    assert!(lost.files().contains(&(volume, delete)), "{:?}", lost.files());
    let gone = VolumeSeen { volume, state: FileState::Deleted, size_mib: 0, used_mib: 0, problem: None };
    let part = Part { volumes: vec![gone], ..Part::default() };
    report::take(&mut lost.draft, &mut lost.moment, node_id(LOST), AGAIN, &part);
    assert!(!lost.draft.view().assignment(node_id(LOST)).volumes.contains_key(&volume));
}

#[test]
fn a_disk_that_is_kept_and_a_volume_alone_are_told_apart() {
    let mut lost = Lost::new();
    lost.keep_local();
    let (vm, id) = (find(lost.draft.view(), 0).unwrap(), lost.id(0));
    let volume = vm.volumes().next().unwrap();
    let mut kept = (*lost.draft.view().volumes.get(volume).unwrap().value).clone();
    kept.spec.keep_on_delete = true;
    lost.draft.put(kept);
    vm_delete::want(&mut lost.draft, &mut lost.moment, &vm, false, "a user").unwrap();
    assert!(lost.prove(Evidence::Goodbye));
    vm_delete::go_on(&mut lost.draft, &mut lost.moment, vm_delete::HeldUp::Vm(id));
    assert!(lost.draft.view().vms.get(id).is_none());
    let mut kept = (*lost.draft.view().volumes.get(volume).unwrap().value).clone();
    let hold = |lost: &Lost| lost.draft.view().assignment(node_id(LOST)).volumes[&volume].hold;
    assert_eq!((kept.status.vm, hold(&lost)), (None, Hold::Own), "its data is still wanted");
    let alone = vm_delete::HeldUp::Volume(volume);
    vm_delete::go_on(&mut lost.draft, &mut lost.moment, alone);
    assert_eq!((vm_delete::held_up(lost.draft.view()), hold(&lost)), (vec![], Hold::Own));
    kept.spec.deleting = true;
    lost.draft.put(kept);
    assert_eq!(vm_delete::held_up(lost.draft.view()), [alone]);
    vm_delete::go_on(&mut lost.draft, &mut lost.moment, alone);
    assert!(lost.draft.view().volumes.get(volume).is_none());
    assert_eq!(hold(&lost), Hold::Leaving);
}

#[test]
fn a_pin_and_a_wish_to_stay_bind_no_deletion() {
    for pinned in [true, false] {
        let mut lost = Lost::new();
        let mut vm = find(lost.draft.view(), 0).unwrap();
        match pinned {
            true => vm.spec.pin = Some(node_id(LOST)),
            false => vm.spec.on_node_loss = OnNodeLoss::Stay,
        }
        lost.draft.put(vm.clone());
        assert!(lost.prove(Evidence::Goodbye));
        assert!(!lost.due().contains(&vm.id()));
        vm_delete::want(&mut lost.draft, &mut lost.moment, &vm, false, "a user").unwrap();
        assert!(lost.due().contains(&vm.id()));
        assert_eq!((lost.evacuate(0, 1), vm_delete::held_up(lost.draft.view())), (1, vec![]));
    }
}

#[test]
fn a_fenced_node_that_returns_is_told_only_what_it_must_not_run() {
    let mut lost = Lost::new();
    assert!(lost.prove(silence()));
    assert_eq!(lost.evacuate(0, 1), 1);
    lost.hello();
    assert_eq!(lost.node().status.phase, NodePhase::Returning);
    let stale = tamdao_proto::agent::v1::Intent::Stale as i32;
    assert_eq!(lost.told(), [(lost.id(0), stale)]);
    assert_eq!(lost.due(), BTreeSet::new(), "nothing leaves a node that is coming back");
    lost.report_well();
    assert_eq!(lost.node().status.phase, NodePhase::Returning, "it has not confirmed");
    // It falls silent once more, and has been given nothing: its proof still holds.
    node::lose(&mut lost.draft, &mut lost.moment, node_id(LOST), "silent again");
    assert_eq!(lost.node().status.phase, NodePhase::Fenced);
    lost.hello();
    let mut gone = seen(&find(lost.draft.view(), 0).unwrap(), GuestState::Absent, true);
    gone.incarnation = 1;
    let part = Part { vms: vec![gone], ..Part::default() };
    report::take(&mut lost.draft, &mut lost.moment, node_id(LOST), AGAIN, &part);
    lost.report_well();
    let wanted = tamdao_proto::agent::v1::Intent::Wanted as i32;
    assert_eq!((lost.node().status.phase, lost.node().status.fence), (NodePhase::Ready, None));
    assert_eq!(lost.told(), [(lost.id(1), wanted)]);
}

#[test]
fn while_a_move_is_open_a_vm_may_be_on_either_node_and_waits() {
    let mut lost = Lost::new();
    let mut vm = find(lost.draft.view(), 0).unwrap();
    vm.status.moving = Some(tamdao_model::MoveId(Uuid::from_u128(7)));
    vm.status.incarnation_given = 4;
    lost.draft.put(vm.clone());
    assert!(lost.prove(silence()));
    assert_eq!((lost.due(), lost.evacuate(0, 1)), (BTreeSet::new(), 0));
    vm.status.moving = None;
    lost.draft.put(vm);
    assert_eq!((lost.due(), lost.evacuate(0, 1)), ([lost.id(0)].into(), 1));
    assert_eq!(find(lost.draft.view(), 0).unwrap().status.incarnation, 5, "one that nobody has heard of");
}

#[test]
fn who_asks_to_stay_stays() {
    let mut lost = Lost::new();
    let mut vm = find(lost.draft.view(), 0).unwrap();
    vm.spec.on_node_loss = OnNodeLoss::Stay;
    lost.draft.put(vm);
    assert!(lost.prove(silence()));
    assert_eq!((lost.due(), lost.evacuate(0, 1)), (BTreeSet::new(), 0));
}

#[test]
fn a_full_node_takes_nobody() {
    let mut lost = Lost::new();
    assert!(lost.prove(silence()));
    let reservation = Reservation { vcpus: 1, memory_mib: 4_000 };
    let place = Place { vm: lost.id(0), node: node_id(1), reservation, cells: Vec::new() };
    let places = [place.clone()];
    assert_eq!(evacuate::evacuate(&mut lost.draft, &mut lost.moment, node_id(LOST), &places), 0);
    let entry = lost.draft.view().assignment(node_id(LOST)).vms[&lost.id(0)].clone();
    assert_eq!((entry.intent, entry.incarnation), (Intent::Wanted, 1));
    let to_itself: NodeId = node_id(LOST);
    let places = [Place { node: to_itself, reservation: Reservation::default(), ..place }];
    assert_eq!(evacuate::evacuate(&mut lost.draft, &mut lost.moment, node_id(LOST), &places), 0);
}

#[test]
fn nothing_is_powered_off_while_the_brake_holds() {
    let mut lost = Lost::new();
    let may = |lost: &mut Lost, session| {
        fence::power_off(&mut lost.draft, &mut lost.moment, node_id(LOST), Some(session), "https://bmc")
    };
    assert!(!may(&mut lost, AGAIN), "another session than the one that is known to have ended");
    assert!(lost.node().status.conditions.get(fence::POWER).is_none(), "what is not done is not told");
    for other in 1..3 {
        node::lose(&mut lost.draft, &mut lost.moment, node_id(other), "silent");
        assert_eq!(may(&mut lost, SESSION), other == 1, "with {} of 3 silent", other + 1);
    }
    let told = lost.node().status.conditions.get(fence::POWER).cloned().unwrap();
    assert!(told.reason == "PoweringOff" && told.message.contains("https://bmc"), "{told:?}");
}

#[test]
fn a_node_that_is_heard_again_is_not_powered_off() {
    let mut lost = Lost::new();
    lost.hello();
    lost.report_well();
    assert!(!fence::may_power_off(lost.draft.view(), node_id(LOST), Some(AGAIN), lost.moment.now));
}

#[test]
fn power_off_speaks_of_every_vm() {
    let mut lost = Lost::new();
    assert!(
        lost.prove(Evidence::PowerOff { bmc: "https://bmc".into(), system_uuid: Uuid::nil().to_string() })
    );
    assert_eq!(lost.due(), [lost.id(0), lost.id(1)].into());
    assert_eq!(lost.node().status.conditions.get(fence::POWER).unwrap().reason, "Off");
    lost.hello();
    lost.report_well();
    assert_eq!(lost.node().status.conditions.get(fence::POWER), None, "it is on again");
}

#[test]
fn a_drill_is_recorded_for_what_was_asked_and_told_when_it_turns() {
    let mut lost = Lost::new();
    let bmc = |at: u8| Bmc {
        url: format!("https://bmc{at}"),
        username: "fencer".into(),
        password: Sealed(vec![at]),
        trust: Trust::Unverified,
    };
    let mut node = lost.node();
    node.spec.bmcs = vec![bmc(1), bmc(2)];
    lost.draft.put(node);
    let found = |at, reason: &str| {
        let (url, message) = (bmc(at).url, "is so".to_owned());
        (bmc(at), Drilled { url, time: TimeMs(7), reason: reason.into(), message, said_on: None })
    };
    let mut drill = |found: &[(Bmc, Drilled)]| {
        let node = fence::drilled(&mut lost.draft, &mut lost.moment, node_id(LOST), found).unwrap();
        let told = node.status.conditions.get(bmc::CONDITION).unwrap().clone();
        let events = lost.draft.view().events.iter().filter(|event| event.actor == "driller").count();
        (node.status.fence_drill.len(), told.status, told.reason, events)
    };
    let (yes, no) = (ConditionStatus::True, ConditionStatus::False);
    assert_eq!(drill(&[found(2, "SaysOff")]), (1, no, "SaysOff".into(), 1));
    assert_eq!(drill(&[found(1, "Good"), found(2, "SaysOff")]), (2, yes, "Good".into(), 2));
    assert_eq!(drill(&[found(1, "Good"), found(2, "SaysOff")]), (2, yes, "Good".into(), 2), "no news");
    let another = (Bmc { username: "another".into(), ..bmc(1) }, found(1, "TooSlow").1);
    assert_eq!(drill(&[another]), (2, yes, "Good".into(), 2), "it was asked as it is no more");
    assert_eq!(drill(&[found(1, "TooSlow")]), (2, no, "TooSlow".into(), 3));
}
