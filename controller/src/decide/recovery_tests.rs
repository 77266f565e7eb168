//! A cloud is restored and finds out what runs: what is let through, what the records follow, and when it may end.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tamdao_model::assignment::Intent;
use tamdao_model::cluster::Cluster;
use tamdao_model::convert::agent::VmSeen;
use tamdao_model::fence::Evidence;
use tamdao_model::node::NodePhase;
use tamdao_model::recovery::Cause;
use tamdao_model::role;
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{GuestState, Power};
use tamdao_model::{ClusterId, NodeId, SessionId, TimeMs, VmId};
use tamdao_proto::agent::v1 as agent;
use tamdao_store::kv::Revision;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use uuid::Uuid;

use super::super::fence;
use super::super::node::{self, Opening};
use super::super::recovery::{self, Accounts, Due};
use super::super::report::{self, Part};
use super::super::restore::{self, Renewed};
use super::super::went_back;
use super::{NODES, Step, apply, find, node_id, seen, world};
use crate::admission::Moment;
use crate::sessions::expand;

const STRANGE: VmId = VmId(Uuid::from_u128(0xF00));

fn session(at: u128) -> SessionId {
    SessionId(Uuid::from_u128(0x200 + at))
}

/// VMs 0 and 1 ran on n0, 2 on n1, 3 had no node yet; then the cloud was lost and restored.
struct Restored {
    draft: Draft,
    moment: Moment,
}

impl Restored {
    /// As it was before.
    fn running() -> Self {
        let mut moment = Moment { now: TimeMs(5) };
        let mut draft = Draft::new(world(), Uuid::from_u128(1));
        draft.put(Cluster {
            id: ClusterId(Uuid::from_u128(1)),
            name: "north".into(),
            level: 1,
            ca_certificate: String::new(),
            ca_key: Sealed(Vec::new()),
            admin_tokens: Vec::new(),
            disarmed: None,
            recovery: None,
            base: 0,
            former: Vec::new(),
        });
        let mut view = draft.view().clone();
        for at in 0..4 {
            view = apply(view, &mut moment, &Step::Create { at, vcpus: 1, memory_mib: 512, disk_mib: 8 });
        }
        for (at, node) in [(0, 0), (1, 0), (2, 1)] {
            view = apply(view, &mut moment, &Step::Place { at, node });
        }
        view.revision = Revision(7);
        Self { draft: Draft::new(view, Uuid::from_u128(2)), moment }
    }

    fn new() -> Self {
        let Self { draft, moment } = Self::running();
        let view = View { revision: restore::base(Revision(7)), ..draft.view().clone() };
        let mut draft = Draft::new(view, Uuid::from_u128(2));
        let new = Renewed {
            cluster: ClusterId(Uuid::from_u128(2)),
            cause: Cause::Restored,
            token: Some("digest".into()),
            backup_time: TimeMs(4),
            revision: 7,
        };
        restore::renew(&mut draft, moment.now, &new).unwrap();
        Self { draft, moment }
    }

    fn view(&self) -> &View {
        self.draft.view()
    }

    fn id(&self, at: u8) -> VmId {
        find(self.view(), at).unwrap().id()
    }

    fn open(&mut self, at: u128) {
        let opening = Opening {
            session: session(at),
            boot_id: "b".into(),
            address: String::new(),
            host_uuid: Uuid::nil(),
            moves_port: 0,
            carries_files: false,
        };
        node::open_session(&mut self.draft, &mut self.moment, node_id(at), &opening).unwrap();
    }

    /// A guest as its node would tell it.
    fn runs(&self, vm: VmId, incarnation: u64) -> VmSeen {
        let any = find(self.view(), 0).unwrap();
        let mut told = seen(&any, GuestState::Running, false);
        (told.vm, told.incarnation) = (vm, incarnation);
        (told.seen.vcpus, told.seen.memory_mib) = (2, 1_024);
        told
    }

    /// A node opens a session and tells all that runs there.
    fn tell(&mut self, at: u128, vms: Vec<VmSeen>) {
        self.open(at);
        let part = Part { whole: Some(recovery::living(&vms)), vms, ..Part::default() };
        self.take(at, &part);
        recovery::heard_all(&mut self.draft, node_id(at), session(at));
        node::set_health(&mut self.draft, &mut self.moment, node_id(at), session(at), "", 0);
    }

    fn take(&mut self, at: u128, part: &Part) {
        report::take(&mut self.draft, &mut self.moment, node_id(at), session(at), part);
    }

    fn attest(&mut self, at: u128) {
        let node = (*self.view().nodes.get(node_id(at)).unwrap().value).clone();
        let evidence = Evidence::Attestation { reason: "burnt".into() };
        let proof = fence::proof_of(&node, evidence, "op".into(), self.moment.now);
        fence::prove(&mut self.draft, &mut self.moment, proof).unwrap();
    }

    fn settle(&mut self) {
        for what in recovery::due(self.view()) {
            recovery::settle(&mut self.draft, &mut self.moment, &what);
        }
    }

    fn end(&mut self) -> Result<(), &'static str> {
        self.settle();
        recovery::end(&mut self.draft).map_err(|refusal| refusal.reason)
    }

    fn told(&self, at: u128) -> agent::Assignment {
        expand::assignment(self.view(), node_id(at), None, &|_| None)
    }

    fn entry(&self, at: u128, vm: VmId) -> Option<(Intent, u64)> {
        self.view().assignment(node_id(at)).vms.get(&vm).map(|entry| (entry.intent, entry.incarnation))
    }
}

#[test]
fn nothing_of_the_backups_present_is_believed() {
    let cloud = Restored::new();
    let cluster = cloud.view().cluster().unwrap();
    let on = cluster.recovery.as_ref().unwrap();
    assert_eq!((on.cluster, cluster.id), (ClusterId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2))));
    for node in cloud.view().nodes.iter() {
        assert_eq!((node.status.phase, node.status.session), (NodePhase::Unreachable, None));
    }
    // None is made over one that may have been made since.
    assert!(cloud.view().volumes.iter().all(|volume| volume.status.made));
    let next = find(cloud.view(), 0).unwrap().next_incarnation();
    assert!(next > 1_000_000, "{next} may have been given since the backup");
    assert_eq!(recovery::accounts(cloud.view()).awaited, (0..NODES).map(node_id).collect::<Vec<_>>());
}

#[test]
fn a_base_is_above_every_revision_that_the_lost_cloud_can_have_reached() {
    use tamdao_store::kv::Revision;
    let base = restore::base(Revision(1_000_000));
    assert!(base.0 > 1_000_000_000_000);
    assert!(restore::base(Revision(base.0 + 5)) > base, "a second restore counts from higher still");
}

#[test]
fn a_node_is_told_nothing_while_the_cloud_recovers() {
    let mut cloud = Restored::new();
    cloud.tell(0, Vec::new());
    let told = cloud.told(0);
    assert!(told.complete && told.vms.is_empty() && told.volumes.is_empty(), "{told:?}");
    assert!(!told.pools.is_empty(), "it looks at its pools all the same");
    cloud.tell(1, Vec::new());
    cloud.tell(2, Vec::new());
    assert_eq!(cloud.end(), Ok(()));
    assert_eq!(cloud.told(0).vms.len(), 2);
}

#[test]
fn it_ends_when_each_node_has_told_all_or_is_attested_gone() {
    let mut cloud = Restored::new();
    assert_eq!(cloud.end(), Err("NodesAwaited"));
    let running = vec![cloud.runs(cloud.id(0), 1), cloud.runs(STRANGE, 3)];
    cloud.tell(0, running);
    cloud.attest(2);
    assert_eq!(cloud.end(), Err("NodesAwaited"), "n1 is awaited");
    // Half a report is none.
    cloud.open(1);
    cloud.take(1, &Part { whole: Some(BTreeSet::new()), ..Part::default() });
    assert_eq!(cloud.end(), Err("NodesAwaited"), "n1 has told only a part");
    cloud.tell(1, Vec::new());
    let accounts = recovery::accounts(cloud.view());
    assert_eq!((accounts.gone.as_slice(), accounts.reported.len()), ([node_id(2)].as_slice(), 2));
    assert_eq!(cloud.end(), Ok(()));
    assert!(!recovery::is_on(cloud.view()));
    assert_eq!(cloud.end(), Err("NotRecovering"));
}

#[test]
fn a_session_that_is_opened_anew_is_awaited_anew() {
    let mut cloud = Restored::new();
    (0..NODES).for_each(|at| cloud.tell(at, Vec::new()));
    assert_eq!(recovery::accounts(cloud.view()).awaited, []);
    let opening = Opening {
        session: session(9),
        boot_id: "b".into(),
        address: String::new(),
        host_uuid: Uuid::nil(),
        moves_port: 0,
        carries_files: false,
    };
    node::open_session(&mut cloud.draft, &mut cloud.moment, node_id(0), &opening).unwrap();
    assert_eq!(recovery::accounts(cloud.view()).awaited, [node_id(0)]);
}

#[test]
fn silence_on_a_pool_is_not_enough() {
    use tamdao_model::fence::Silence;
    let mut cloud = Restored::new();
    cloud.tell(0, Vec::new());
    cloud.tell(1, Vec::new());
    let node = (*cloud.view().nodes.get(node_id(2)).unwrap().value).clone();
    let silence = Silence { counter: 7, lease_ms: 6_000, watchdog_timeout_ms: 1_000, apart_ms: 8_200 };
    let evidence = Evidence::StorageSilence { pool: super::POOL, silence };
    let proof = fence::proof_of(&node, evidence, "n1".into(), cloud.moment.now);
    fence::prove(&mut cloud.draft, &mut cloud.moment, proof).unwrap();
    assert_eq!(cloud.end(), Err("NodesAwaited"));
    cloud.attest(2);
    assert_eq!(cloud.end(), Ok(()));
}

#[test]
fn what_no_record_knows_keeps_its_room_and_its_addresses_until_it_is_gone() {
    let mut cloud = Restored::new();
    let mut strange = cloud.runs(STRANGE, 3);
    strange.addresses = vec!["10.0.0.9".parse().unwrap()];
    cloud.tell(0, vec![cloud.runs(cloud.id(0), 1), strange.clone()]);
    cloud.tell(1, Vec::new());
    cloud.tell(2, Vec::new());
    let accounts = recovery::accounts(cloud.view());
    assert_eq!(
        accounts.unknown.iter().map(|(node, vm, _)| (*node, *vm)).collect::<Vec<_>>(),
        [(node_id(0), STRANGE)]
    );
    assert_eq!(
        accounts.down,
        BTreeSet::from([1, 2, 3].map(|at| cloud.id(at))).into_iter().collect::<Vec<_>>()
    );
    assert_eq!(cloud.end(), Ok(()));
    cloud.settle();
    assert_eq!(cloud.entry(0, STRANGE), Some((Intent::Left, 3)));
    let held = cloud.view().assignment(node_id(0)).vms[&STRANGE].reservation;
    assert!(held.vcpus == 2 && held.memory_mib > 1_024, "{held:?}");
    assert!(recovery::is_used(cloud.view(), "10.0.0.9".parse().unwrap()));
    assert!(!cloud.told(0).vms.iter().any(|vm| vm.vm_id == STRANGE.to_string()), "it is left alone");
    // A later session tells it again, in parts; it is never free in between.
    cloud.open(0);
    cloud.take(0, &Part { whole: Some([cloud.id(0), STRANGE].into()), ..Part::default() });
    assert!(recovery::is_used(cloud.view(), "10.0.0.9".parse().unwrap()));
    assert_eq!(cloud.entry(0, STRANGE), Some((Intent::Left, 3)));
    // It is gone when its node says so.
    let mut gone = strange;
    gone.seen.state = GuestState::Absent;
    cloud.take(0, &Part { vms: vec![gone], ..Part::default() });
    assert_eq!(cloud.entry(0, STRANGE), None);
    assert!(!recovery::is_used(cloud.view(), "10.0.0.9".parse().unwrap()));
    assert!(cloud.view().findings.is_empty(), "nothing is left to follow");
}

#[test]
fn what_runs_wins_over_the_record() {
    let mut cloud = Restored::new();
    let vm = cloud.id(0);
    // It was moved to n1 after the backup, and VM 3 was placed and started.
    cloud.tell(0, vec![cloud.runs(cloud.id(1), 1)]);
    cloud.tell(1, vec![cloud.runs(cloud.id(2), 1), cloud.runs(vm, 2), cloud.runs(cloud.id(3), 1)]);
    cloud.tell(2, Vec::new());
    assert_eq!(recovery::accounts(cloud.view()).moved.len(), 2);
    assert_eq!(cloud.end(), Ok(()));
    let found = find(cloud.view(), 0).unwrap();
    assert_eq!((found.status.node, found.status.incarnation), (Some(node_id(1)), 2));
    assert_eq!((cloud.entry(0, vm), cloud.entry(1, vm)), (None, Some((Intent::Wanted, 2))));
    assert_eq!(cloud.entry(1, cloud.id(3)), Some((Intent::Wanted, 1)));
    for vm in [vm, cloud.id(3)] {
        for volume in cloud.view().vms.get(vm).unwrap().volumes() {
            assert_eq!(cloud.view().volumes.get(volume).unwrap().status.node, Some(node_id(1)));
            assert!(cloud.view().assignment(node_id(1)).volumes.contains_key(&volume));
            assert!(!cloud.view().assignment(node_id(0)).volumes.contains_key(&volume));
        }
    }
}

#[test]
fn a_guest_that_was_started_since_is_not_shut_down_by_the_backup() {
    let mut cloud = Restored::new();
    let mut off = find(cloud.view(), 0).unwrap();
    off.spec.power = Power::Off;
    cloud.draft.put(off);
    cloud.tell(0, vec![cloud.runs(cloud.id(0), 1), cloud.runs(cloud.id(1), 1)]);
    cloud.tell(1, Vec::new());
    cloud.tell(2, Vec::new());
    assert_eq!(cloud.end(), Ok(()));
    assert!(find(cloud.view(), 0).unwrap().wants_on());
    let told = cloud.told(0);
    assert!(told.vms.iter().all(|vm| vm.power() == tamdao_proto::v1::Power::On), "{told:?}");
}

#[test]
fn what_runs_nowhere_gets_an_incarnation_that_no_node_can_know() {
    let mut cloud = Restored::new();
    (0..NODES).for_each(|at| cloud.tell(at, Vec::new()));
    assert_eq!(cloud.end(), Ok(()));
    let down = find(cloud.view(), 0).unwrap();
    assert!(down.status.incarnation > 1_000_000);
    assert_eq!(cloud.entry(0, down.id()), Some((Intent::Wanted, down.status.incarnation)));
}

#[test]
fn a_vm_that_runs_twice_is_for_a_person_to_settle() {
    let mut cloud = Restored::new();
    let vm = cloud.id(0);
    cloud.tell(0, vec![cloud.runs(vm, 1)]);
    cloud.tell(1, vec![cloud.runs(vm, 2)]);
    cloud.tell(2, Vec::new());
    assert_eq!(recovery::accounts(cloud.view()).twice.len(), 2);
    assert_eq!(cloud.end(), Err("RunsTwice"));
    let mut gone = cloud.runs(vm, 1);
    gone.seen.state = GuestState::Absent;
    cloud.take(0, &Part { vms: vec![gone], ..Part::default() });
    assert_eq!(cloud.end(), Ok(()));
    assert_eq!(find(cloud.view(), 0).unwrap().status.node, Some(node_id(1)));
}

/// One step of what a hello does where the store went back; false when nothing is left.
fn ready_some(cloud: &mut Restored) -> bool {
    let Some(what) = went_back::stale(cloud.view()).into_iter().next() else { return false };
    let floor = restore::incarnations(went_back::told(cloud.view()));
    restore::freshen(&mut cloud.draft, cloud.moment.now, floor, &what);
    went_back::set_ready(&mut cloud.draft);
    true
}

#[test]
fn a_store_that_went_back_tells_nothing_and_hears_nobody_before_all_its_records_are_ready() {
    let mut cloud = Restored::running();
    cloud.tell(0, vec![cloud.runs(cloud.id(0), 1)]);
    cloud.open(2);
    assert_eq!(cloud.told(0).vms.len(), 2);
    went_back::go_back(&mut cloud.draft, &mut cloud.moment, node_id(1), 5_000, 7);
    let on = recovery::of(cloud.view()).unwrap();
    assert_eq!(on.cause, Cause::WentBack { node: node_id(1), seen: 5_000, at: 7 });
    assert!(went_back::told(cloud.view()).0 > 5_000 && cloud.view().revision == Revision(7));
    let told: Vec<_> =
        cloud.view().events.iter().map(|event| (event.reason.as_str(), event.message.clone())).collect();
    assert!(
        told.iter().any(|(reason, message)| *reason == "StoreWentBack" && message.contains("5000")),
        "{told:?}"
    );
    // The same again, from the next node's hello, changes nothing.
    let base = went_back::base(cloud.view());
    went_back::go_back(&mut cloud.draft, &mut cloud.moment, node_id(2), 4_000, 7);
    assert_eq!(
        (went_back::base(cloud.view()), &recovery::of(cloud.view()).unwrap().cause),
        (base, &Cause::WentBack { node: node_id(1), seen: 5_000, at: 7 })
    );
    let mut steps = 0;
    loop {
        let opening = Opening {
            session: session(1),
            boot_id: "b".into(),
            address: String::new(),
            host_uuid: Uuid::nil(),
            moves_port: 0,
            carries_files: false,
        };
        let refused = node::open_session(&mut cloud.draft.clone(), &mut cloud.moment, node_id(1), &opening);
        assert_eq!(refused.unwrap_err().code, tonic::Code::Unavailable);
        assert!(recovery::admit(cloud.view(), "NodeService/AttestNodeGone").is_err());
        assert!(cloud.told(0).vms.is_empty());
        steps += 1;
        if !ready_some(&mut cloud) || !went_back::is_unready(cloud.view()) {
            break;
        }
    }
    assert!(steps > 4 && !went_back::is_unready(cloud.view()), "{steps} steps");
    assert!(recovery::admit(cloud.view(), "NodeService/AttestNodeGone").is_ok());
    assert_eq!(recovery::accounts(cloud.view()).awaited, (0..NODES).map(node_id).collect::<Vec<_>>());
    assert!(find(cloud.view(), 0).unwrap().next_incarnation() > 1_000_000);
    // From here on it is as after a restore.
    (0..NODES).for_each(|at| cloud.tell(at, Vec::new()));
    assert_eq!(cloud.end(), Ok(()));
    assert!(find(cloud.view(), 0).unwrap().status.incarnation > 1_000_000);
    assert!(went_back::told(cloud.view()).0 > 5_000, "the base stays");
}

#[test]
fn a_store_that_goes_back_again_counts_from_higher_still() {
    let mut cloud = Restored::running();
    went_back::go_back(&mut cloud.draft, &mut cloud.moment, node_id(0), 5_000, 7);
    while ready_some(&mut cloud) {}
    let (base, given) =
        (went_back::base(cloud.view()), find(cloud.view(), 0).unwrap().status.incarnation_given);
    went_back::go_back(&mut cloud.draft, &mut cloud.moment, node_id(0), base + 9, base + 7);
    assert!(went_back::is_unready(cloud.view()), "what was readied is stale again");
    while ready_some(&mut cloud) {}
    assert!(went_back::base(cloud.view()) > base + 9);
    assert!(find(cloud.view(), 0).unwrap().status.incarnation_given > given);
}

#[test]
fn an_agent_of_another_cluster_is_heard_only_by_one_that_recovers_or_was_it() {
    let mut cloud = Restored::new();
    let ids = [1, 2, 3].map(|id| ClusterId(Uuid::from_u128(id)));
    assert!(ids.iter().all(|id| went_back::admit_cluster(cloud.view(), *id).is_ok()));
    (0..NODES).for_each(|at| cloud.tell(at, Vec::new()));
    assert_eq!(cloud.end(), Ok(()));
    let heard = ids.map(|id| went_back::admit_cluster(cloud.view(), id).map_err(|refusal| refusal.reason));
    assert_eq!(heard, [Ok(()), Ok(()), Err("OtherCluster")]);
}

#[test]
fn only_what_starts_and_stops_nothing_is_decided() {
    let cloud = Restored::new();
    for method in recovery::ADMITTED {
        assert!(role::TABLE.iter().any(|row| row.method == *method), "{method} is no method");
        // What is let through is not asked below whether it changes anything.
        let of = ["Vm", "Volume", "Pool", "Network", "Move", "Image", "Agency", "Flavor", "PlacementGroup"];
        let acts = ["UncordonNode", "DrainNode", "ReturnNode", "UpdateNode", "DeleteNode"];
        assert!(!of.iter().any(|service| method.starts_with(&format!("{service}Service/"))), "{method}");
        assert!(!acts.iter().any(|verb| method.ends_with(verb)), "{method}");
        assert!(recovery::admit(cloud.view(), method).is_ok());
    }
    let verbs = [
        "Create", "Update", "Delete", "Start", "Stop", "Reboot", "Reset", "Pause", "Resume", "Resize",
        "Migrate", "Drain", "Return", "Cancel", "Uncordon", "Open", "Drill", "Record", "Preview", "Rename",
        "HandOver",
    ];
    for row in role::TABLE.iter().filter(|row| !recovery::ADMITTED.contains(&row.method)) {
        let verb = row.method.rsplit('/').next().unwrap();
        let changes = verbs.iter().any(|one| verb.starts_with(one));
        assert_eq!(recovery::admit(cloud.view(), row.method).is_err(), changes, "{}", row.method);
    }
    assert!(recovery::admit(cloud.view(), "").is_err(), "what is not known is refused");
    assert!(recovery::admit(&world(), "VmService/CreateVm").is_ok(), "other clouds go on");
}

/// What the nodes are found to run: for each node, VMs by number (4 and 5 are in no record) and incarnation.
fn findings() -> impl Strategy<Value = Vec<Vec<(u8, u64)>>> {
    let node = proptest::collection::vec((0u8..6, 1u64..2_000_000), 0..5);
    proptest::collection::vec(node, NODES as usize)
}

proptest! {
    /// Whatever runs: once the recovery has ended, no node is told to stop, destroy or start over what it runs.
    #[test]
    fn no_guest_that_runs_is_touched_by_the_end(found in findings(), gone in proptest::option::of(0..NODES)) {
        let mut cloud = Restored::new();
        let id = |cloud: &Restored, at: u8| match at {
            0..4 => cloud.id(at),
            other => VmId(Uuid::from_u128(0xF00 + u128::from(other))),
        };
        for (at, guests) in (0..NODES).zip(&found) {
            let vms: Vec<_> = guests.iter().map(|(vm, incarnation)| cloud.runs(id(&cloud, *vm), *incarnation)).collect();
            match gone == Some(at) {
                true => cloud.attest(at),
                false => cloud.tell(at, vms),
            }
        }
        let Accounts { twice, .. } = recovery::accounts(cloud.view());
        let ended = cloud.end();
        prop_assert_eq!(ended.is_ok(), twice.is_empty());
        let due: Vec<Due> = recovery::due(cloud.view()).into_iter().filter(|due| !matches!(due, Due::Forget(_))).collect();
        prop_assert!(due.is_empty() , "{:?}", due);
        for (at, guests) in (0..NODES).zip(&found).filter(|(at, _)| gone != Some(*at)) {
            let told = cloud.told(at);
            // The last word about a VM counts, as in a report.
            let guests: std::collections::BTreeMap<VmId, u64> =
                guests.iter().map(|(vm, incarnation)| (id(&cloud, *vm), *incarnation)).collect();
            for (vm, incarnation) in guests {
                let entry = told.vms.iter().find(|entry| entry.vm_id == vm.to_string());
                let Some(entry) = entry else { continue };
                prop_assert_eq!(entry.intent(), agent::Intent::Wanted);
                prop_assert_eq!(entry.incarnation, incarnation);
            }
        }
        // And none of them has another place.
        for vm in cloud.view().vms.iter() {
            let places: Vec<NodeId> = (0..NODES).map(node_id)
                .filter(|node| cloud.view().assignment(*node).vms.get(&vm.id()).is_some_and(|entry| entry.intent == Intent::Wanted))
                .collect();
            prop_assert!(places.len() <= 1, "{:?}", places);
        }
    }
}
