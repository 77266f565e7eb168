//! Rescue: a VM is off because its node, which is heard, has lost the pool of its disks. It moves, off as it is, to a node
//! that has the pool.
//!
//! Invariants: it is an ordinary cold move (decision 0245), so what lets the VM go is its node's own word, under the present
//! session, that the guest is gone: killed by the keeper and reaped; nothing is rescued that runs, stands paused, or stays
//! where it is by its policy, its pin or a local disk. Deliberately absent: choosing nodes, which the engine does, and nodes
//! that are not heard (`fence`, `evacuate`).

use tamdao_model::moves::{Cause, Move, MoveEvent, MovePhase, Way};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::pool::Pool;
use tamdao_model::vm::{GuestState, Vm, VmPhase};
use tamdao_model::{MoveId, NodeId, PoolId, TimeMs, VmId};
use tamdao_store::typed::Draft;
use tamdao_store::view::{Row, View};

use super::move_start::{self, Wish};
use super::{fence, move_step};
use crate::admission::Moment;
use crate::refusal::Refusal;

/// Who asks for these moves.
pub const RESCUER: &str = "rescuer";

/// How long a pool may be away before VMs go elsewhere for it: a host that has just booted is mounting it, ms.
const PATIENCE_MS: u64 = 30_000;
/// How long a VM rests after a rescue that failed, ms.
const REST_MS: u64 = 60_000;

/// A VM that waits on its node for a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranded {
    pub node: NodeId,
    pub vm: VmId,
    pub pool: PoolId,
}

/// All VMs that are to be rescued now: the most important first, then the largest.
pub fn due(view: &View, now: TimeMs) -> Vec<Stranded> {
    let mut due = Vec::new();
    for node in view.nodes.iter().filter(|node| node.status.phase == NodePhase::Ready) {
        // Most nodes have all their pools.
        if node.status.pools.values().all(|pool| pool.ready) {
            continue;
        }
        let vms = fence::taken_over(view, node.id()).filter(|vm| !rests(view, vm.id(), now));
        due.extend(vms.filter_map(|vm| {
            let size = std::cmp::Reverse((vm.spec.priority, vm.spec.memory_mib, vm.spec.vcpus));
            let pool = lost_pool(view, node, vm, now).filter(|_| vm.status.moving.is_none() && is_off(vm))?;
            Some((size, Stranded { node: node.id(), vm: vm.id(), pool }))
        }));
    }
    due.sort_by_key(|(size, stranded)| (*size, stranded.vm));
    due.into_iter().map(|(_, stranded)| stranded).collect()
}

/// A shared pool of the VM that its node has lost, and not just now.
fn lost_pool(view: &View, node: &Node, vm: &Vm, now: TimeMs) -> Option<PoolId> {
    let lost = |pool: &PoolId| {
        let since = node.status.pools.get(pool).and_then(|pool| pool.lost_time);
        since.is_some_and(|since| now.since(since) >= PATIENCE_MS)
    };
    fence::shared_pools(view, vm).into_iter().find(lost)
}

/// Whether the node says that the guest is off, and would start it if it could.
fn is_off(vm: &Vm) -> bool {
    let seen = vm.status.seen.as_ref();
    let off = seen.is_some_and(|seen| {
        matches!(seen.state, GuestState::Absent | GuestState::Preparing | GuestState::Stopped)
    });
    off && vm.wants_on() && matches!(vm.status.phase, VmPhase::Scheduled | VmPhase::Starting)
}

fn rests(view: &View, vm: VmId, now: TimeMs) -> bool {
    let failed = |one: &&Row<Move>| {
        one.spec.vm == vm && one.spec.asked_by == RESCUER && one.status.phase == MovePhase::Failed
    };
    let ends = view.moves.iter().filter(failed).filter_map(|one| one.status.end_time);
    ends.max().is_some_and(|end| now.since(end) < REST_MS)
}

/// Opens the move of one VM, unless it is overtaken by now.
///
/// # Errors
/// When the target cannot have it any more.
pub fn open(
    draft: &mut Draft,
    moment: &mut Moment,
    stranded: Stranded,
    wish: &Wish,
) -> Result<bool, Refusal> {
    if !due(draft.view(), moment.now).contains(&stranded) {
        return Ok(false);
    }
    move_start::begin(draft, moment, wish, Way::Cold, RESCUER).map(|_| true)
}

/// Why it moves, for people.
pub fn reason(view: &View, stranded: Stranded) -> String {
    let node = view.nodes.get(stranded.node).map_or("", |node| node.meta.name.as_str());
    let pool = view.pools.get(stranded.pool).map(|row| &*row.value);
    format!("node {node} has lost pool {}", pool.map_or("", |pool: &Pool| pool.meta.name.as_str()))
}

/// Rescues that are not needed any more: the node has not been told of them yet, and the VM does without.
pub fn needless(view: &View) -> Vec<MoveId> {
    let open = view.moves.iter().filter(|one| {
        one.spec.asked_by == RESCUER
            && one.status.phase == MovePhase::Preparing
            && view.vms.get(one.spec.vm).is_some_and(|vm| !is_off(vm))
    });
    open.map(|one| one.id()).collect()
}

/// Gives up a rescue that is not needed any more.
pub fn give_up(draft: &mut Draft, moment: &mut Moment, id: MoveId) {
    if needless(draft.view()).contains(&id) {
        let message = "its node does without it".to_owned();
        let cause = Cause { reason: "NotNeeded".into(), message, cancelled: true };
        move_step::happens(draft, moment, id, MoveEvent::GiveUp, Some(cause));
    }
}
