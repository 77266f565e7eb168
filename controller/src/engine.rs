//! The engine's picture of the cluster, kept in step with the records by their changes.
//!
//! Its invariant: the picture at a revision equals one drawn anew from the view of that revision. Deliberately
//! absent: decisions; the engine makes them on a fork of the picture, and only commits come back here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use tamdao_model::assignment::{Assignment, Reservation};
use tamdao_model::node::Node;
use tamdao_model::pool::Pool;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::vm::Vm;
use tamdao_model::volume::Volume;
use tamdao_model::{NodeId, PoolId, TimeMs, VmId};
use tamdao_scheduler::from_model::{self, ShapeError};
use tamdao_scheduler::plan::Guard;
use tamdao_scheduler::{self as scheduler, VmShape};
use tamdao_store::cache::{Cache, Commit};
use tamdao_store::kv::Revision;
use tamdao_store::view::{Delta, Record, View};

#[cfg(test)]
mod tests;

/// The place in the queue of a VM that waits for a node.
pub type Waiting = (Reverse<u32>, TimeMs, VmId);

/// The cluster as the engine sees it, and who waits for a place.
#[derive(Default)]
pub struct Engine {
    pub at: Revision,
    pub picture: scheduler::View,
    /// Losses after which every protected VM is to have a place.
    pub guard: Guard,
    /// VMs without a node: the highest priority first, then the oldest.
    pub waiting: BTreeSet<Waiting>,
    /// Grows with every change that may make room or lift a rule: what was refused at one number need not be asked
    /// again at the same.
    pub helped: u64,
    /// Virtual size promised in shared pools, MiB.
    shared: HashMap<PoolId, u64>,
}

/// The picture for those who ask questions, such as explain and dump: one for all of them, which follows the cache
/// when somebody asks.
#[derive(Default)]
pub struct Questions(Mutex<Option<Engine>>);

impl Questions {
    /// The newest view and a fork of its picture.
    pub fn newest(&self, cache: &Cache) -> (Arc<View>, scheduler::View) {
        let mut engine = self.0.lock().expect("no holder of the lock panics");
        let (engine, view) = Engine::catch_up(&mut engine, cache);
        (view, engine.picture.clone())
    }
}

impl Engine {
    /// Draws the picture anew.
    pub fn draw(view: &View) -> Self {
        let mut engine = Self { at: view.revision, ..Self::default() };
        for volume in view.volumes.iter() {
            *engine.shared.entry(volume.spec.pool).or_default() += u64::from(volume.spec.size_mib);
        }
        for pool in view.pools.iter() {
            engine.set_pool(view, pool);
        }
        for group in view.placement_groups.iter() {
            engine.picture.set_group(from_model::group(group));
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
            // The history is complete up to the view; commits beyond it are followed next time.
            while let Ok(commits) = cache.after(engine.at) {
                let within = commits.partition_point(|commit| commit.revision <= view.revision);
                if within == 0 {
                    return true;
                }
                engine.follow(&commits[..within], &view);
            }
            false
        });
        if !followed {
            *engine = None;
        }
        (engine.get_or_insert_with(|| Self::draw(&view)), view)
    }

    /// Follows commits that end at this view.
    pub fn follow(&mut self, commits: &[Commit], view: &View) {
        let mut stale = Stale::default();
        for delta in commits.iter().flat_map(|commit| commit.deltas.iter()) {
            self.take(delta, &mut stale);
        }
        for id in stale.pools {
            match view.pools.get(id) {
                Some(pool) => self.set_pool(view, pool),
                None => self.picture.remove_pool(id),
            }
        }
        for id in stale.nodes {
            self.set_node(view, id, &stale.vms);
        }
        self.at = commits.last().map_or(self.at, |commit| commit.revision.max(self.at));
    }

    fn take(&mut self, delta: &Delta, stale: &mut Stale) {
        match delta.after.as_ref().or(delta.before.as_ref()) {
            Some(Record::Node(node)) => {
                self.helped += 1;
                stale.nodes.insert(node.id());
                // A shared pool's size is what its nodes see of it.
                stale.pools.extend(node.status.pools.keys());
            }
            Some(Record::Assignment(assignment)) => {
                stale.nodes.insert(assignment.node);
                self.helped += u64::from(makes_room(delta));
            }
            Some(Record::Pool(pool)) => {
                self.helped += 1;
                stale.pools.insert(pool.id());
                stale.nodes.extend(self.picture.nodes().map(|node| node.id));
            }
            Some(Record::Volume(volume)) => {
                let size = |record: &Option<Record>| match record {
                    Some(Record::Volume(volume)) => u64::from(volume.spec.size_mib),
                    _ => 0,
                };
                let held = self.shared.entry(volume.spec.pool).or_default();
                let (before, after) = (size(&delta.before), size(&delta.after));
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
                let generation = |record| of_vm(record).map(|vm| vm.meta.generation);
                if generation(&delta.before) != generation(&delta.after) && vm.status.node.is_some() {
                    // What it may be near to has changed, for itself and for others.
                    self.helped += 1;
                    stale.nodes.extend(self.picture.homes(vm.id()));
                    stale.vms.insert(vm.id());
                }
            }
            Some(Record::PlacementGroup(group)) => {
                self.helped += 1;
                match &delta.after {
                    Some(_) => self.picture.set_group(from_model::group(group)),
                    None => self.picture.remove_group(scheduler::GroupId(group.id().0)),
                }
            }
            Some(Record::SchedulingPolicy(policy)) => {
                self.helped += 1;
                self.set_policy(policy);
            }
            _ => {}
        }
    }

    fn set_policy(&mut self, policy: &SchedulingPolicy) {
        self.picture.set_weights(from_model::weights(policy));
        self.guard = from_model::guard(policy);
    }

    fn set_pool(&mut self, view: &View, pool: &Pool) {
        let on_nodes = view.nodes.iter().filter_map(|node| node.status.pools.get(&pool.id()));
        let seen = on_nodes.filter(|seen| seen.ready).map(|seen| (seen.capacity_mib, seen.used_mib));
        let held = self.shared.get(&pool.id()).copied().unwrap_or_default();
        self.picture.set_pool(from_model::pool(pool, seen, held));
    }

    /// Brings one node and what it holds in step; of `changed` VMs everything, of others what they hold.
    fn set_node(&mut self, view: &View, id: NodeId, changed: &BTreeSet<VmId>) {
        let Some(node) = view.nodes.get(id) else {
            self.picture.remove_node(id);
            return;
        };
        let assignment = view.assignment(id);
        self.picture.set_node(node_shape(view, node, &assignment));
        let held: BTreeMap<VmId, Reservation> =
            self.picture.vms_on(id).iter().map(|vm| (vm.id, vm.reservation)).collect();
        for vm in held.keys().filter(|vm| !assignment.vms.contains_key(vm)) {
            self.picture.release(id, *vm);
        }
        for (vm, entry) in &assignment.vms {
            match held.get(vm) {
                Some(reservation) if *reservation == entry.reservation && !changed.contains(vm) => continue,
                Some(_) => drop(self.picture.release(id, *vm)),
                None => {}
            }
            let asked = view.vms.get(*vm).and_then(|vm| shape(view, vm).ok());
            let shape = from_model::placed(id, *vm, entry, asked);
            self.picture.assign(id, shape).expect("the node is known and the VM was released");
        }
    }
}

/// What has to be drawn anew after some commits.
#[derive(Default)]
struct Stale {
    nodes: BTreeSet<NodeId>,
    pools: BTreeSet<PoolId>,
    /// Placed VMs of which more may have changed than what they hold.
    vms: BTreeSet<VmId>,
}

fn of_vm(record: &Option<Record>) -> Option<&Vm> {
    match record {
        Some(Record::Vm(vm)) => Some(vm),
        _ => None,
    }
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

fn node_shape(view: &View, node: &Node, assignment: &Assignment) -> scheduler::NodeShape {
    let pools = view.pools.iter().filter(|pool| pool.is_on(node.id())).map(|pool| &*pool.value);
    from_model::node(node, assignment, pools)
}

/// What a VM asks of a node.
///
/// # Errors
/// When a record that it refers to is gone.
pub fn shape(view: &View, vm: &Vm) -> Result<VmShape, ShapeError> {
    let volume = |id| view.volumes.get(id).map(|row: &tamdao_store::view::Row<Volume>| &*row.value);
    let pool = |id| view.pools.get(id).map(|row| &*row.value);
    let network = |id| view.networks.get(id).map(|row| &*row.value);
    from_model::vm(vm, volume, pool, network)
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
