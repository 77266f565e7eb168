//! The engine's picture of the cluster, kept in step with the records by their changes.
//!
//! Its invariant: the picture at a revision equals one drawn anew from the view of that revision. There is one on each
//! controller, [`Follower`]; whoever decides or asks gets a fork of it, and only commits come back here. Deliberately
//! absent: decisions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use imbl::{OrdMap, OrdSet};
use tamdao_model::assignment::{Assignment, Intent, Reservation, VmEntry};
use tamdao_model::node::Node;
use tamdao_model::pool::Pool;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::vm::{Platform, Vm};
use tamdao_model::volume::Volume;
use tamdao_model::{NodeId, PoolId, TimeMs, VmId};
use tamdao_scheduler::check::plans::check_plans;
use tamdao_scheduler::check::{Step, check};
use tamdao_scheduler::from_model::{self, ShapeError};
use tamdao_scheduler::plan::Guard;
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::{self as scheduler, Cells, NodeShape, PoolShape, VmShape};
use tamdao_store::cache::{Cache, Commit};
use tamdao_store::kv::Revision;
use tamdao_store::view::{Delta, Record, View};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::refusal::Refusal;

pub mod past;
#[cfg(test)]
pub(crate) mod tests;

/// The place in the queue of a VM that waits for a node.
pub type Waiting = (Reverse<u32>, TimeMs, VmId);

/// The cluster as the engine sees it, and who waits for a place. A clone is a fork and costs next to nothing.
#[derive(Default, Clone)]
pub struct Engine {
    pub at: Revision,
    /// The picture, with the plans that keep room for what is guarded; without plans until somebody decides by them.
    pub guarantee: Guarantee,
    /// Losses after which every protected VM is to have a place.
    pub guard: Guard,
    /// Since when the plans have been carried on: what they are follows from the commits since.
    pub planned: Revision,
    /// When plans made anew were no better.
    tried: Revision,
    /// VMs without a node: the highest priority first, then the oldest.
    pub waiting: OrdSet<Waiting>,
    /// Grows with every change that may make room or lift a rule: what was refused at one number need not be asked
    /// again at the same.
    pub helped: u64,
    /// Virtual size promised in shared pools, MiB.
    shared: OrdMap<PoolId, u64>,
    /// The platforms that VMs have, with how many have each. Nodes are asked about these alone.
    platforms: OrdMap<Platform, u64>,
    plans: bool,
}

/// Commits that are followed at once; more take a while, like drawing and planning.
const FEW: u64 = 64;

/// A controller's one engine, which follows the cache when somebody asks. What takes a while in a large cluster, as
/// drawing and the first plan do, lets the runtime's other tasks go on.
#[derive(Default)]
pub struct Follower(Mutex<Option<Engine>>);

impl Follower {
    /// The newest view and a fork of the engine at the same revision, for questions.
    pub fn newest(&self, cache: &Cache) -> (Arc<View>, Engine) {
        self.caught_up(cache, false)
    }

    /// The same with the plans of the guarantee, for decisions.
    pub fn guarded(&self, cache: &Cache) -> (Arc<View>, Engine) {
        self.caught_up(cache, true)
    }

    fn caught_up(&self, cache: &Cache, plans: bool) -> (Arc<View>, Engine) {
        if let Ok(mut engine) = self.0.try_lock()
            && engine.as_ref().is_some_and(|engine| engine.is_near(cache, plans))
        {
            return newest(&mut engine, cache, plans);
        }
        let wait = || newest(&mut self.0.lock().expect("no holder of the lock panics"), cache, plans);
        let runtime = Handle::try_current().map(|runtime| runtime.runtime_flavor());
        match runtime {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            // One thread has nobody to give its other tasks to.
            _ => wait(),
        }
    }
}

fn newest(engine: &mut Option<Engine>, cache: &Cache, plans: bool) -> (Arc<View>, Engine) {
    let (engine, view) = Engine::catch_up(engine, cache);
    if plans {
        engine.plan();
        engine.renew(cache);
    }
    (view, engine.clone())
}

impl Engine {
    /// Whether it is soon in step.
    fn is_near(&self, cache: &Cache, plans: bool) -> bool {
        (self.plans || !plans) && cache.view().revision.0.saturating_sub(self.at.0) <= FEW
    }

    pub fn picture(&self) -> &scheduler::View {
        self.guarantee.view()
    }

    /// Plans for every guarded loss from now on.
    pub fn plan(&mut self) {
        if !self.plans {
            (self.plans, self.planned) = (true, self.at);
            self.guarantee = self.planned_anew();
        }
    }

    fn planned_anew(&self) -> Guarantee {
        Guarantee::new(self.picture().clone(), &self.guard.guarded())
    }

    /// Makes the plans anew where the history behind them is gone, since no decision by them could be computed again;
    /// unless they would leave more VMs out.
    fn renew(&mut self, cache: &Cache) {
        let since = self.planned.max(self.tried);
        if self.guard.is_empty() || cache.after(since).is_ok() {
            return;
        }
        let anew = self.planned_anew();
        if anew.broken().count() <= self.guarantee.broken().count() {
            (self.guarantee, self.planned) = (anew, self.at);
        }
        self.tried = self.at;
    }

    /// Draws the picture anew, without plans.
    pub fn draw(view: &View) -> Self {
        let mut engine = Self { at: view.revision, ..Self::default() };
        for volume in view.volumes.iter() {
            *engine.shared.entry(volume.spec.pool).or_default() += u64::from(volume.spec.size_mib);
        }
        let first = view.scheduling_policy().and_then(|policy| policy.first_platform());
        for platform in view.vms.iter().filter_map(|vm| vm.status.platform.clone()).chain(first) {
            *engine.platforms.entry(platform).or_default() += 1;
        }
        for pool in view.pools.iter() {
            engine.set_pool(view, pool);
        }
        for group in view.placement_groups.iter() {
            engine.guarantee.set_group(from_model::group(group));
        }
        if let Some(policy) = view.scheduling_policy() {
            engine.set_policy(policy);
        }
        for node in view.nodes.iter() {
            engine.set_node(view, node.id(), &BTreeSet::new());
        }
        engine.waiting.extend(view.vms.iter().filter_map(|vm| waiting(vm)));
        engine
    }

    /// The engine in step with the newest view, which is given too; drawn anew where the history between is gone.
    pub fn catch_up<'a>(engine: &'a mut Option<Self>, cache: &Cache) -> (&'a mut Self, Arc<View>) {
        let view = cache.view();
        let followed = engine.as_mut().is_some_and(|engine| {
            let commits = past::commits(cache, engine.at, view.revision);
            commits.is_some_and(|commits| {
                engine.follow_all(&commits, &view);
                true
            })
        });
        if !followed {
            *engine = Some(Self::drawn_anew(engine.as_ref(), &view));
        }
        (engine.get_or_insert_default(), view)
    }

    /// The engine where the one before it, if any, could not follow. Who was refused by that one is asked again.
    fn drawn_anew(before: Option<&Self>, view: &View) -> Self {
        let (helped, plans) = before.map_or((0, false), |before| (before.helped + 1, before.plans));
        let mut engine = Self { helped, ..Self::draw(view) };
        if plans {
            engine.plan();
        }
        engine
    }

    /// Follows commits that end at this view. A picture is what the records are, however one comes to it; plans are
    /// what came of one commit after the other.
    pub fn follow_all(&mut self, commits: &[Commit], view: &View) {
        if !self.plans || self.guard.is_empty() || commits.len() < 2 {
            return self.follow(commits, view);
        }
        for (commit, view) in commits.iter().zip(past::views(view, commits)) {
            self.follow(std::slice::from_ref(commit), &view);
        }
    }

    /// Follows commits that end at this view.
    pub fn follow(&mut self, commits: &[Commit], view: &View) {
        let helped = self.helped;
        let mut stale = Stale::default();
        for delta in commits.iter().flat_map(|commit| commit.deltas.iter()) {
            self.take(delta, &mut stale);
        }
        if stale.all {
            *self = Self::drawn_anew(Some(self), view);
            return;
        }
        for id in std::mem::take(&mut stale.pools) {
            match view.pools.get(id) {
                Some(pool) => self.set_pool(view, pool),
                None => self.guarantee.remove_pool(id),
            }
        }
        for id in std::mem::take(&mut stale.nodes) {
            self.set_node(view, id, &stale.vms);
        }
        self.at = commits.last().map_or(self.at, |commit| commit.revision.max(self.at));
        if stale.guard {
            (self.guarantee, self.planned) = (self.planned_anew(), self.at);
        } else if self.helped != helped {
            self.guarantee.mend();
        }
    }

    fn take(&mut self, delta: &Delta, stale: &mut Stale) {
        match delta.after.as_ref().or(delta.before.as_ref()) {
            Some(Record::Node(node)) => {
                stale.nodes.insert(node.id());
                // A shared pool's size is what its nodes see of it.
                stale.pools.extend(node.status.pools.keys());
            }
            Some(Record::Assignment(assignment)) => {
                stale.nodes.insert(assignment.node);
                self.helped += u64::from(makes_room(delta));
            }
            Some(Record::Pool(pool)) => {
                stale.pools.insert(pool.id());
                stale.nodes.extend(self.picture().nodes().map(|node| node.id));
            }
            Some(Record::Volume(volume)) => {
                let size = |record: &Option<Record>| match record {
                    Some(Record::Volume(volume)) => u64::from(volume.spec.size_mib),
                    _ => 0,
                };
                let held = self.shared.entry(volume.spec.pool).or_default();
                let (before, after) = (size(&delta.before), size(&delta.after));
                // Whose file lies on a node goes nowhere else.
                let (lay, lies) = (lies_on(&delta.before), lies_on(&delta.after));
                self.helped += u64::from(lay.is_some() && lay != lies);
                if before != after {
                    self.helped += u64::from(after < before);
                    *held = (*held + after).saturating_sub(before);
                    stale.pools.insert(volume.spec.pool);
                }
            }
            Some(Record::Vm(vm)) => {
                let waited = of_vm(&delta.before).and_then(waiting);
                let waits = of_vm(&delta.after).and_then(waiting);
                if waited != waits {
                    waited.map(|waited| self.waiting.remove(&waited));
                    self.waiting.extend(waits);
                }
                let (had, has) = (platform_of(&delta.before), platform_of(&delta.after));
                let other = had != has;
                if other && self.count_platforms(had, has) {
                    stale.nodes.extend(self.picture().nodes().map(|node| node.id));
                }
                let generation = |record| of_vm(record).map(|vm| vm.meta.generation);
                let wish = generation(&delta.before) != generation(&delta.after);
                if (wish || other) && vm.status.node.is_some() {
                    // What it may be near to has changed, for itself and for others.
                    self.helped += u64::from(wish);
                    stale.nodes.extend(self.guarantee.view().homes(vm.id()));
                    stale.vms.insert(vm.id());
                }
            }
            Some(Record::PlacementGroup(group)) => {
                let id = scheduler::GroupId(group.id().0);
                let shape = delta.after.is_some().then(|| from_model::group(group));
                if self.picture().group(id) != shape.as_ref() {
                    self.helped += 1;
                    match shape {
                        Some(shape) => self.guarantee.set_group(shape),
                        None => self.guarantee.remove_group(id),
                    }
                }
            }
            Some(Record::SchedulingPolicy(policy)) => {
                stale.guard |= self.set_policy(policy) && self.plans;
                let first = |record: &Option<Record>| match record {
                    Some(Record::SchedulingPolicy(policy)) => policy.first_platform(),
                    _ => None,
                };
                stale.all |= first(&delta.before) != first(&delta.after);
            }
            // A VM that waits may have an interface in it.
            Some(Record::Network(_)) => self.helped += 1,
            _ => {}
        }
    }

    /// Whether other platforms are in use now.
    fn count_platforms(&mut self, had: Option<&Platform>, has: Option<&Platform>) -> bool {
        let before = self.platforms.len();
        let mut gone = false;
        if let Some(had) = had {
            let left = self.platforms.get(had).copied().unwrap_or_default().saturating_sub(1);
            gone = left == 0;
            match gone {
                true => self.platforms.remove(had),
                false => self.platforms.insert(had.clone(), left),
            };
        }
        if let Some(has) = has {
            *self.platforms.entry(has.clone()).or_default() += 1;
        }
        gone || self.platforms.len() != before
    }

    /// Whether other losses are guarded now.
    fn set_policy(&mut self, policy: &SchedulingPolicy) -> bool {
        self.guarantee.set_weights(from_model::weights(policy));
        let guard = from_model::guard(policy);
        let is_other = guard != self.guard;
        self.helped += u64::from(is_other);
        self.guard = guard;
        is_other
    }

    fn set_pool(&mut self, view: &View, pool: &Pool) {
        let on_nodes = view.nodes.iter().filter_map(|node| node.status.pools.get(&pool.id()));
        let seen = on_nodes.filter(|seen| seen.ready).map(|seen| (seen.capacity_mib, seen.used_mib));
        let held = self.shared.get(&pool.id()).copied().unwrap_or_default();
        let shape = from_model::pool(pool, seen, held);
        self.helped += u64::from(self.picture().pool(pool.id()).is_none_or(|old| widens(old, &shape)));
        self.guarantee.set_pool(shape);
    }

    fn node_shape(&self, view: &View, node: &Node, assignment: &Assignment) -> NodeShape {
        let pools = view.pools.iter().filter(|pool| pool.is_on(node.id())).map(|pool| &*pool.value);
        from_model::node(node, assignment, pools, self.platforms.keys())
    }

    /// Brings one node and what it holds in step; of `changed` VMs everything, of others what they hold.
    fn set_node(&mut self, view: &View, id: NodeId, changed: &BTreeSet<VmId>) {
        let Some(node) = view.nodes.get(id) else {
            self.guarantee.remove_node(id);
            return;
        };
        let assignment = view.assignment(id);
        let shape = self.node_shape(view, node, &assignment);
        self.helped += u64::from(self.picture().node(id).is_none_or(|old| lifts(old, &shape)));
        self.guarantee.set_node(shape);
        let held: BTreeMap<VmId, Reservation> =
            self.picture().vms_on(id).iter().map(|vm| (vm.id, vm.reservation)).collect();
        // What was evacuated holds nothing on the node that was lost.
        let nothing =
            |entry: &VmEntry| entry.intent == Intent::Stale && entry.reservation == Reservation::default();
        let holds = |vm: &VmId| assignment.vms.get(vm).is_some_and(|entry| !nothing(entry));
        for vm in held.keys().filter(|vm| !holds(vm)) {
            self.guarantee.release(id, *vm);
        }
        for (vm, entry) in assignment.vms.iter().filter(|(vm, _)| holds(vm)) {
            match held.get(vm) {
                Some(reservation) if *reservation == entry.reservation && !changed.contains(vm) => continue,
                Some(_) => drop(self.guarantee.release(id, *vm)),
                None => {}
            }
            let shape = placed_as(view, id, *vm, entry);
            let cells = from_model::cells(node, &entry.cells);
            self.guarantee.assign_to(id, cells, shape).expect("the node is known and the VM was released");
        }
    }
}

/// Lets the independent judge look at steps before they are committed.
///
/// # Errors
/// When a step breaks a rule, which is a fault of the engine.
pub fn judged(before: &scheduler::View, steps: &[Step]) -> Result<(), Refusal> {
    check(before, steps).map_err(|breaches| fault(breaches.first()))
}

/// The same for the plans for failures that the steps came near to.
///
/// # Errors
/// When a plan breaks a rule, which is a fault of the engine.
pub fn judged_plans(before: &Guarantee, after: &Guarantee, steps: &[Step]) -> Result<(), Refusal> {
    check_plans(before, after, steps).map_err(|faults| fault(faults.first()))
}

fn fault(first: Option<&impl ToString>) -> Refusal {
    let error = first.map(ToString::to_string).unwrap_or_default();
    tracing::error!(error, "the engine's plan breaks its own rules; nothing of it is committed");
    Refusal::internal(format!("the engine's plan breaks its own rules: {error}"))
}

/// What has to be drawn anew after some commits.
#[derive(Default)]
struct Stale {
    nodes: BTreeSet<NodeId>,
    pools: BTreeSet<PoolId>,
    /// Other losses are guarded.
    guard: bool,
    /// VMs that have not started get another platform.
    all: bool,
    /// Placed VMs of which more may have changed than what they hold.
    vms: BTreeSet<VmId>,
}

fn of_vm(record: &Option<Record>) -> Option<&Vm> {
    match record {
        Some(Record::Vm(vm)) => Some(vm),
        _ => None,
    }
}

fn platform_of(record: &Option<Record>) -> Option<&Platform> {
    of_vm(record)?.status.platform.as_ref()
}

/// Its place in the queue, if it waits for a node.
pub fn waiting(vm: &Vm) -> Option<Waiting> {
    let waits = vm.status.node.is_none() && !vm.spec.deleting;
    waits.then(|| (Reverse(vm.spec.priority), vm.meta.create_time, vm.id()))
}

/// Whether an assignment holds less than before of anything.
fn makes_room(delta: &Delta) -> bool {
    let (Some(Record::Assignment(before)), after) = (&delta.before, &delta.after) else { return false };
    let Some(Record::Assignment(after)) = after else { return true };
    let less_vm = before.vms.iter().any(|(vm, old)| {
        after.vms.get(vm).is_none_or(|new| {
            new.reservation.vcpus < old.reservation.vcpus
                || new.reservation.memory_mib < old.reservation.memory_mib
        })
    });
    less_vm || before.volumes.keys().any(|volume| !after.volumes.contains_key(volume))
}

/// The node that a volume's file lies on.
fn lies_on(record: &Option<Record>) -> Option<NodeId> {
    match record {
        Some(Record::Volume(volume)) => volume.status.node,
        _ => None,
    }
}

/// Whether a node may now take what it refused. What its volumes hold is its assignment's to say.
fn lifts(before: &NodeShape, after: &NodeShape) -> bool {
    let wider = after.vcpus > before.vcpus || after.memory_mib > before.memory_mib;
    let pool = |(id, after): (&PoolId, &scheduler::NodePool)| match before.pools.get(id) {
        Some(before) => (after.ready && !before.ready) || after.capacity_mib > before.capacity_mib,
        None => true,
    };
    wider
        || (after.ready && !before.ready)
        || (before.cordoned && !after.cordoned)
        || (after.tpm && !before.tpm)
        || after.pools.iter().any(pool)
        || !after.bridges.is_subset(&before.bridges)
        || !after.firmware.is_subset(&before.firmware)
        || !after.platforms.is_subset(&before.platforms)
        || (&after.labels, &after.domains, &after.cells, after.emulation)
            != (&before.labels, &before.domains, &before.cells, before.emulation)
}

/// Whether a pool may now take what it refused.
fn widens(before: &PoolShape, after: &PoolShape) -> bool {
    match (before.shared, after.shared) {
        (Some(before), Some(after)) => {
            after.capacity_mib > before.capacity_mib || after.held_mib < before.held_mib
        }
        (before, after) => before.is_some() != after.is_some(),
    }
}

/// What a VM asks of a node.
///
/// # Errors
/// When a record that it refers to is gone.
pub fn shape(view: &View, vm: &Vm) -> Result<VmShape, ShapeError> {
    let volume = |id| view.volumes.get(id).map(|row: &tamdao_store::view::Row<Volume>| &*row.value);
    let pool = |id| view.pools.get(id).map(|row| &*row.value);
    let network = |id| view.networks.get(id).map(|row| &*row.value);
    from_model::vm(vm, platform(view, vm).as_ref(), volume, pool, network)
}

/// What the guest of a VM sees, or is to see as far as that is said before its first start.
pub fn platform(view: &View, vm: &Vm) -> Option<Platform> {
    let first = || view.scheduling_policy().and_then(|policy| policy.first_platform());
    vm.status.platform.clone().or_else(first)
}

/// A VM as it stands on a node, if it does.
pub fn placed(view: &View, node: NodeId, vm: VmId) -> Option<Arc<VmShape>> {
    Some(placed_as(view, node, vm, view.assignments.get(node)?.vms.get(&vm)?))
}

fn placed_as(view: &View, node: NodeId, vm: VmId, entry: &VmEntry) -> Arc<VmShape> {
    let asked = view.vms.get(vm).and_then(|vm| shape(view, vm).ok());
    from_model::placed(node, vm, entry, asked)
}

/// Libvirt's numbers of cells of a node.
pub fn cell_numbers(view: &View, node: NodeId, cells: Cells) -> Vec<u32> {
    view.nodes.get(node).map(|node| from_model::cell_numbers(node, cells)).unwrap_or_default()
}

/// What a VM holds on its node; the default of an unknown node is the one without emulation.
///
/// # Errors
/// As [`shape`].
pub fn reservation(view: &View, vm: &Vm) -> Result<Reservation, ShapeError> {
    let node = vm.status.node.and_then(|node| view.nodes.get(node));
    let emulation = node.is_some_and(|node| node.status.inventory.acceleration == "qemu");
    Ok(shape(view, vm)?.reservation_on(emulation))
}
