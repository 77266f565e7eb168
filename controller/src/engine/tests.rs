//! The picture followed commit by commit against one drawn anew, over what users may change of placed VMs.

use tamdao_model::event::Event;
use tamdao_model::placement_group::{
    PlacedBy, PlacementGroup, PlacementGroupSpec, PlacementRule, PlacementRuleKind,
};
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::{ClusterId, Meta, Name, PlacementGroupId};
use tamdao_scheduler::text::Cluster;
use tamdao_store::typed::Draft;
use tamdao_store::view::Held;
use uuid::Uuid;

use super::*;
use crate::admission::Moment;
use crate::decide::tests::{AGENCY, node_id, request, world};
use crate::decide::{place, vm_create};

const GROUP: PlacementGroupId = PlacementGroupId(Uuid::from_u128(0xE));

fn changed<T: Held>(before: &View, after: &View, deltas: &mut Vec<Delta>) {
    let keys: BTreeSet<String> =
        T::rows(before).iter().chain(T::rows(after).iter()).map(|row| row.key()).collect();
    for key in keys {
        let record = |view: &View| T::rows(view).get(&key).map(|row| T::record(row.value.clone()));
        let same = match (T::rows(before).get(&key), T::rows(after).get(&key)) {
            (Some(before), Some(after)) => before.value == after.value,
            _ => false,
        };
        if !same {
            deltas.push(Delta { before: record(before), after: record(after), revision: after.revision });
        }
    }
}

/// What the engine looks at.
fn records(view: &View) -> String {
    let nodes: Vec<_> = view.nodes.iter().map(|row| row.value.clone()).collect();
    let vms: Vec<_> = view.vms.iter().map(|row| row.value.clone()).collect();
    let volumes: Vec<_> = view.volumes.iter().map(|row| row.value.clone()).collect();
    let assignments: Vec<_> = view.assignments.iter().map(|row| row.value.clone()).collect();
    let pools: Vec<_> = view.pools.iter().map(|row| row.value.clone()).collect();
    let policy = view.scheduling_policy().map(|row| row.value.clone());
    format!("{nodes:?} {vms:?} {volumes:?} {assignments:?} {pools:?} {policy:?}")
}

/// An engine beside the view that it follows, with the commits that it has followed.
pub(crate) struct Followed {
    pub(crate) view: View,
    pub(crate) engine: Engine,
    pub(crate) commits: Vec<Commit>,
}

impl Followed {
    pub(crate) fn new() -> Self {
        let view = world();
        let engine = Engine::draw(&view);
        Self { view, engine, commits: Vec::new() }
    }

    /// Commits a change and holds the picture to its invariant. Says whether refused VMs are to be asked again.
    pub(crate) fn commit(&mut self, change: impl FnOnce(&mut Draft, &mut Moment)) -> bool {
        let mut draft = Draft::new(self.view.clone(), Uuid::from_u128(2));
        change(&mut draft, &mut Moment { now: TimeMs(1_000) });
        let mut after = draft.view().clone();
        after.revision = Revision(self.view.revision.0 + 1);
        let mut deltas = Vec::new();
        changed::<Vm>(&self.view, &after, &mut deltas);
        changed::<PlacementGroup>(&self.view, &after, &mut deltas);
        changed::<SchedulingPolicy>(&self.view, &after, &mut deltas);
        changed::<Node>(&self.view, &after, &mut deltas);
        changed::<Pool>(&self.view, &after, &mut deltas);
        changed::<Volume>(&self.view, &after, &mut deltas);
        changed::<Assignment>(&self.view, &after, &mut deltas);
        changed::<Event>(&self.view, &after, &mut deltas);
        let helped = self.engine.helped;
        let commit = Commit { revision: after.revision, deltas: deltas.into() };
        self.engine.follow(std::slice::from_ref(&commit), &after);
        assert_eq!(
            records(&past::before(&after, &commit)),
            records(&self.view),
            "what is undone is what was before"
        );
        self.commits.push(commit);
        self.view = after;
        let drawn = Engine::draw(&self.view);
        assert_eq!(Cluster::of(self.engine.picture(), &[]), Cluster::of(drawn.picture(), &[]));
        assert_eq!(self.engine.waiting, drawn.waiting);
        assert_eq!(self.engine.guard, drawn.guard);
        self.engine.helped > helped
    }

    fn vm(&self, name: &str) -> Vm {
        let scope = tamdao_model::Scope::Agency(AGENCY);
        (*self.view.vms.find(scope, name).unwrap().value).clone()
    }

    fn change_vm(&mut self, name: &str, change: impl FnOnce(&mut Vm)) -> bool {
        let mut vm = self.vm(name);
        vm.meta.generation += 1;
        change(&mut vm);
        self.commit(|draft, _| draft.put(vm))
    }

    fn create(&mut self, at: u8) -> Vm {
        self.commit(|draft, moment| {
            vm_create::create(draft, moment, request(at, 1, 128, 64), AGENCY, None, "test").unwrap();
        });
        self.vm(&format!("vm-{at}"))
    }
}

fn group(at_most: u32) -> PlacementGroup {
    let rule =
        PlacementRule { kind: PlacementRuleKind::Apart, by: PlacedBy::Node, at_most, preferred: false };
    let meta = Meta::new(GROUP.0, Name::new("pair").unwrap(), TimeMs(1));
    PlacementGroup { meta, agency: AGENCY, spec: PlacementGroupSpec { rules: vec![rule] } }
}

#[test]
fn what_users_change_of_a_placed_vm_reaches_the_picture() {
    let mut followed = Followed::new();
    followed.commit(|draft, _| draft.create(group(1)));
    let vm = followed.create(1);
    let reservation = shape(&followed.view, &vm).unwrap().reservation_on(false);
    followed.commit(|draft, moment| {
        place::place(draft, moment, node_id(0), &[(vm.id(), reservation).into()])[0].clone().unwrap();
    });
    let group_of = |followed: &Followed| {
        followed.engine.picture().members(scheduler::GroupId(GROUP.0)).map(|(vm, _)| vm).collect::<Vec<_>>()
    };
    assert_eq!(group_of(&followed), []);
    assert!(followed.change_vm("vm-1", |vm| vm.spec.placement_groups = vec![GROUP]), "others may now fit");
    assert_eq!(group_of(&followed), [vm.id()]);
    followed.change_vm("vm-1", |vm| vm.spec.isolation_class = Some(Name::new("health").unwrap()));
    assert_eq!(followed.engine.picture().vms_on(node_id(0))[0].isolation.as_deref(), Some("health"));
    assert!(followed.commit(|draft, _| draft.put(group(2))), "a rule that allows more may help");
    followed.commit(|draft, _| {
        let mut policy = SchedulingPolicy::of(ClusterId(Uuid::from_u128(9)), TimeMs(1));
        policy.spec.weights.insert("tight".into(), 77);
        draft.create(policy);
    });
    assert_eq!(followed.engine.picture().weights().0[0], 77);
}

#[test]
fn the_queue_is_by_priority_and_then_by_age() {
    let mut followed = Followed::new();
    let names = |followed: &Followed| -> Vec<String> {
        let of = |(_, _, id): &Waiting| followed.view.vms.get(*id).unwrap().meta.name.to_string();
        followed.engine.waiting.iter().map(of).collect()
    };
    for at in 1..=3 {
        let mut vm = followed.create(at);
        // The test's clock stands still, so the ages are written.
        vm.meta.create_time = TimeMs(u64::from(at));
        followed.commit(|draft, _| draft.put(vm));
    }
    assert_eq!(names(&followed), ["vm-1", "vm-2", "vm-3"]);
    followed.change_vm("vm-3", |vm| vm.spec.priority = 9);
    assert_eq!(names(&followed), ["vm-3", "vm-1", "vm-2"]);
    followed.change_vm("vm-3", |vm| vm.spec.priority = 0);
    assert_eq!(names(&followed), ["vm-1", "vm-2", "vm-3"]);
}

#[test]
fn a_vm_with_a_local_disk_is_not_protected() {
    let mut followed = Followed::new();
    let vm = followed.create(1);
    let protected = |followed: &Followed, vm: &Vm| shape(&followed.view, vm).unwrap().protected;
    assert!(!protected(&followed, &vm));
    followed.commit(|draft, _| {
        let mut pool = (*draft.view().pools.iter().next().unwrap().value).clone();
        pool.spec.shared = true;
        draft.put(pool);
    });
    assert!(protected(&followed, &vm));
    let mut other = vm.clone();
    other.spec.on_node_loss = tamdao_model::vm::OnNodeLoss::Stay;
    assert!(!protected(&followed, &other));
    let mut other = vm;
    other.spec.pin = Some(node_id(0));
    assert!(!protected(&followed, &other));
}

#[test]
fn a_guest_goes_only_where_it_sees_the_same_machine() {
    let mut followed = Followed::new();
    let vm = followed.create(1);
    let reservation = shape(&followed.view, &vm).unwrap().reservation_on(false);
    followed.commit(|draft, moment| {
        place::place(draft, moment, node_id(0), &[(vm.id(), reservation).into()])[0].clone().unwrap();
        for row in draft.view().nodes.iter().map(|row| row.value.clone()).collect::<Vec<_>>() {
            let mut node = (*row).clone();
            node.status.inventory.cpu_models = vec!["IvyBridge".into()];
            if node.id() == node_id(0) {
                node.status.inventory.cpu_models.push("Genoa,-x".into());
            }
            draft.put(node);
        }
    });
    let seen = |followed: &mut Followed, cpu_model: Option<&str>| {
        let mut vm = followed.vm("vm-1");
        vm.status.platform =
            cpu_model.map(|model| Platform { machine_type: "q35".into(), cpu_model: model.into() });
        followed.commit(|draft, _| draft.put(vm));
        let picture = followed.engine.picture();
        let asked = picture.vms_on(node_id(0))[0].platform.clone();
        let nodes = picture.nodes().filter(|node| asked.iter().all(|one| node.platforms.contains(one)));
        nodes.map(|node| node.id).collect::<Vec<_>>()
    };
    let all: Vec<NodeId> = followed.view.nodes.iter().map(|node| node.id()).collect();
    assert!(all.len() > 1);
    assert_eq!(seen(&mut followed, None), all);
    assert_eq!(seen(&mut followed, Some("IvyBridge")), all);
    assert_eq!(seen(&mut followed, Some("Genoa,-x,-y")), [node_id(0)]);
    assert_eq!(seen(&mut followed, Some("Genoa")), []);
    assert_eq!(seen(&mut followed, None), all);
}

#[test]
fn a_vm_that_never_started_gets_the_clusters_cpu_model() {
    let mut followed = Followed::new();
    let vm = followed.create(1);
    assert_eq!(platform(&followed.view, &vm), None);
    followed.commit(|draft, _| {
        let mut policy = SchedulingPolicy::of(ClusterId(Uuid::from_u128(9)), TimeMs(1));
        policy.spec.cpu_model = "IvyBridge".into();
        draft.create(policy);
        let mut node = (*draft.view().nodes.get(node_id(0)).unwrap().value).clone();
        node.status.inventory.cpu_models = vec!["Westmere".into()];
        draft.put(node);
    });
    let asked = shape(&followed.view, &vm).unwrap();
    assert_eq!(asked.platform.as_deref(), Some("IvyBridge"));
    let placed = scheduler::place::place(followed.engine.picture(), &asked).unwrap();
    assert_ne!(placed.node, node_id(0));
    let mut vm = vm;
    vm.status.platform = Some(Platform { machine_type: "q35".into(), cpu_model: "Westmere".into() });
    followed.commit(|draft, _| draft.put(vm.clone()));
    let asked = shape(&followed.view, &vm).unwrap();
    assert_eq!(asked.platform.as_deref(), Some("q35/Westmere"));
}

/// Changes a node's record.
fn node(followed: &mut Followed, change: impl FnOnce(&mut Node)) -> bool {
    followed.commit(|draft, _| {
        let mut node = (*draft.view().nodes.get(node_id(0)).unwrap().value).clone();
        change(&mut node);
        draft.put(node);
    })
}

#[test]
fn who_was_refused_is_asked_again_exactly_when_something_may_help() {
    let mut followed = Followed::new();
    assert!(!node(&mut followed, |node| node.spec.cordoned = true), "a cordon helps nobody");
    assert!(node(&mut followed, |node| node.spec.cordoned = false), "an uncordoned node may help");
    assert!(!node(&mut followed, |node| node.status.inventory.memory_mib /= 2), "less memory");
    assert!(node(&mut followed, |node| node.status.inventory.memory_mib *= 2), "more memory");
    assert!(!node(&mut followed, |node| node.status.inventory.hostname = "x".into()), "a mere report");
    assert!(
        node(&mut followed, |node| drop(node.meta.labels.insert("disk".into(), "ssd".into()))),
        "a label"
    );
    let another = followed.commit(|draft, _| {
        let mut node = (*draft.view().nodes.get(node_id(0)).unwrap().value).clone();
        node.meta.id = Uuid::from_u128(0xF0);
        node.meta.name = Name::new("another").unwrap();
        draft.put(node);
    });
    assert!(another, "a new node");

    let waits = followed.create(1);
    let vm = followed.create(2);
    let reservation = shape(&followed.view, &vm).unwrap().reservation_on(false);
    let placed = followed.commit(|draft, moment| {
        place::place(draft, moment, node_id(0), &[(vm.id(), reservation).into()])[0].clone().unwrap();
    });
    assert!(!placed, "who is placed takes room");
    assert!(!followed.change_vm("vm-1", |vm| vm.meta.display_name = "still waits".into()));
    let gone = followed.commit(|draft, _| {
        let mut assignment = draft.view().assignment(node_id(0));
        assignment.vms.remove(&vm.id());
        draft.put(assignment);
    });
    assert!(gone, "a VM that has gone leaves its room");
    assert!(followed.engine.waiting.iter().any(|(_, _, id)| *id == waits.id()));

    let policy = |followed: &mut Followed, change: &dyn Fn(&mut SchedulingPolicy)| {
        followed.commit(|draft, _| {
            let old = draft.view().scheduling_policy().map(|row| (*row.value).clone());
            let mut policy =
                old.unwrap_or_else(|| SchedulingPolicy::of(ClusterId(Uuid::from_u128(9)), TimeMs(1)));
            change(&mut policy);
            draft.put(policy);
        })
    };
    let weigh: &dyn Fn(&mut SchedulingPolicy) = &|policy| policy.spec.weights.extend([("tight".into(), 9)]);
    policy(&mut followed, weigh);
    assert!(!policy(&mut followed, &|policy| policy.spec.weights.clear()), "weights rule nothing out");
    assert!(policy(&mut followed, &|policy| policy.spec.guarded_failure_domains = ["node".into()].into()));
    assert!(policy(&mut followed, &|policy| policy.spec.guarded_failure_domains.clear()), "less is guarded");
}

#[test]
fn an_engine_drawn_anew_asks_all_again() {
    let followed = Followed::new();
    let before = Engine { helped: 7, ..followed.engine };
    assert_eq!(Engine::drawn_anew(Some(&before), &followed.view).helped, 8);
}

#[test]
fn who_waits_for_the_engine_leaves_the_runtime_to_others() {
    let (cache, _feed) = Cache::new(Arc::new(tamdao_store::backend::memory::MemoryStore::new("c1")));
    let follower = Arc::new(Follower::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let busy = follower.0.lock().unwrap();
    let (waits, begun) = (follower.clone(), tell.clone());
    let waiting = runtime.spawn(async move {
        begun.send(()).unwrap();
        waits.guarded(&cache).1.at
    });
    told.recv().unwrap();
    runtime.spawn(async move { tell.send(()) });
    told.recv_timeout(std::time::Duration::from_secs(30)).expect("the one worker serves others meanwhile");
    drop(busy);
    assert_eq!(runtime.block_on(waiting).unwrap(), Revision::default());
}
