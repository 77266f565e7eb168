//! The drainer: carries out drains and returns. At each look it plans anew, opens the moves of the first round as far as
//! nodes have their hands free, shuts down what its policy says, and tells how far it is. What it does is in the records,
//! so the next leader's drainer goes on with it. Deliberately absent: how a move runs (the mover and the agents).

pub mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::moves::{Move, MovePhase, Way};
use tamdao_model::node::{Drain, DrainPhase, NodePhase};
use tamdao_model::{NodeId, TimeMs, VmId};
use tamdao_store::view::View;

use super::Loop;
use crate::decide::drain::{self, Due};
use crate::decide::move_start::Wish;
use crate::engine::Engine;
use crate::refusal::Refusal;
use crate::shared::Shared;
use plan::{Go, Leave, Plan, What};

/// Open moves of one node, and of all drains: two streams fill a link.
const PER_NODE: usize = 2;
const AT_ONCE: usize = 32;
/// Records of one decision at most.
const PER_DECISION: usize = 30;
/// Blockers that a condition names.
const NAMED: usize = 3;

/// See the module.
#[derive(Default)]
pub struct Drainer {
    busy: bool,
}

#[async_trait]
impl Loop for Drainer {
    fn name(&self) -> &'static str {
        "drainer"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// While there is nothing to do, changes are none of its business.
    fn wakes_on_change(&self) -> bool {
        self.busy
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let view = shared.cache.view();
        let due = drain::due(&view, shared.clock.now());
        self.busy = !due.is_empty() || !draining(&view, DrainPhase::Draining).is_empty();
        self.busy |= !draining(&view, DrainPhase::Returning).is_empty();
        if !self.busy {
            return Ok(0);
        }
        settle(shared, due).await?;
        let (view, engine) = shared.engine.guarded(&shared.cache);
        let left = empty(shared, &view, &engine).await? + bring_back(shared).await?;
        Ok(left)
    }
}

/// The nodes whose drain is in this phase, with its terms.
pub fn draining(view: &View, phase: DrainPhase) -> BTreeMap<NodeId, Leave> {
    let nodes = view.nodes.iter().filter_map(|node| Some((node.id(), node.status.drain.as_ref()?)));
    nodes.filter(|(_, drain)| drain.phase == phase).map(|(id, drain)| (id, leave(drain))).collect()
}

fn leave(drain: &Drain) -> Leave {
    Leave { since: drain.since, allow_cold: drain.allow_cold, unguarded: drain.unguarded }
}

async fn settle(shared: &Shared, due: Vec<Due>) -> Result<(), Refusal> {
    for chunk in due.chunks(PER_DECISION) {
        let chunk = chunk.to_vec();
        let decided = shared.writer.submit(move |draft, moment| {
            chunk.iter().for_each(|one| drain::settle(draft, moment, one));
            Ok(())
        });
        decided.await?;
    }
    Ok(())
}

/// Goes on with all drains together. Says how many VMs are left.
async fn empty(shared: &Shared, view: &View, engine: &Engine) -> Result<u64, Refusal> {
    let nodes = draining(view, DrainPhase::Draining);
    if nodes.is_empty() {
        return Ok(0);
    }
    // Those that are drained by now stay closed, and what is off there stays.
    let plan = plan::leaving(view, engine, &nodes, shared.clock.now());
    for rest in plan.rest.iter().filter(|rest| rest.what == What::ShutDown) {
        let id = rest.vm;
        let decided = shared.writer.submit(move |draft, moment| {
            drain::shut_down(draft, moment, id);
            Ok(())
        });
        decided.await?;
    }
    open(shared, view, &plan, DrainPhase::Draining).await?;
    let mut left = 0;
    for id in nodes.keys() {
        left += tell(shared, view, &plan, *id).await?;
    }
    Ok(left)
}

/// Goes on with all returns. Says how many VMs are still away.
async fn bring_back(shared: &Shared) -> Result<u64, Refusal> {
    let (view, engine) = shared.engine.guarded(&shared.cache);
    let nodes = draining(&view, DrainPhase::Returning);
    if nodes.is_empty() {
        return Ok(0);
    }
    let plan = plan::returning(&view, &engine, &nodes, shared.clock.now());
    open(shared, &view, &plan, DrainPhase::Returning).await?;
    let mut left = 0;
    for id in nodes.keys() {
        left += tell_return(shared, &view, &plan, *id).await?;
    }
    Ok(left)
}

/// Opens the moves whose turn it is.
async fn open(shared: &Shared, view: &View, plan: &Plan, phase: DrainPhase) -> Result<(), Refusal> {
    for go in next(view, plan) {
        begin(shared, view, go, phase).await?;
    }
    Ok(())
}

/// The moves of the first round as far as nodes have their hands free. A later round may begin only when those before it
/// are done, which the next plan sees.
fn next<'a>(view: &View, plan: &'a Plan) -> Vec<&'a Go> {
    let open = view.moves.iter().filter(|row| row.status.phase.is_open());
    let mut under_way: Vec<[NodeId; 2]> = open.map(|row| [row.spec.source, row.spec.target]).collect();
    let mut next = Vec::new();
    for go in plan.rounds.first().into_iter().flatten() {
        let busy = |node| under_way.iter().filter(|ends| ends.contains(&node)).count() >= PER_NODE;
        if under_way.len() < AT_ONCE && !busy(go.from) && !busy(go.to) {
            under_way.push([go.from, go.to]);
            next.push(go);
        }
    }
    next
}

/// Opens one move, unless it is overtaken by now.
async fn begin(shared: &Shared, view: &View, go: &Go, phase: DrainPhase) -> Result<(), Refusal> {
    let wish = wish(view, go, phase);
    let from = go.from;
    let opened = shared.writer.submit(move |draft, moment| drain::open(draft, moment, &wish, from));
    match opened.await {
        Err(refusal) if !refusal.is_overtaken() => Err(refusal),
        Err(refusal) => {
            let error = refusal.message;
            tracing::debug!(vm = %go.vm, node = %go.to, error, "a move of a drain is overtaken");
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

fn wish(view: &View, go: &Go, phase: DrainPhase) -> Wish {
    let name = |id: NodeId| view.nodes.get(id).map_or("", |node| node.meta.name.as_str());
    let reason = match phase {
        DrainPhase::Returning => format!("node {} returns", name(go.to)),
        DrainPhase::Draining | DrainPhase::Drained => format!("node {} is drained", name(go.from)),
    };
    Wish {
        vm: go.vm,
        target: go.to,
        reservation: go.reservation,
        cells: go.cells.clone(),
        allow_cold: go.way == Way::Cold,
        auto_converge: true,
        reason,
    }
}

/// Writes how far the drain of one node is. Says how many VMs are left.
async fn tell(shared: &Shared, view: &View, plan: &Plan, id: NodeId) -> Result<u64, Refusal> {
    let moves = plan.moves().filter(|go| go.from == id).count();
    let here = || plan.rest.iter().filter(|rest| rest.node == id && rest.what != What::Stays);
    let left = moves + here().count();
    let (reason, message) = told(view, plan, id, left, moves, "left");
    write(shared, id, left, reason, message).await
}

async fn tell_return(shared: &Shared, view: &View, plan: &Plan, id: NodeId) -> Result<u64, Refusal> {
    let of_home = |vm| view.vms.get(vm).and_then(|vm| vm.status.drained).is_some_and(|d| d.from == id);
    let moves = plan.moves().filter(|go| of_home(go.vm)).count();
    let rest: Vec<_> = plan.rest.iter().filter(|rest| of_home(rest.vm)).collect();
    let waits = rest.iter().filter(|rest| rest.what == What::Waits).count();
    // A node that is not heard gets nothing yet.
    let ready = view.nodes.get(id).is_some_and(|n| n.status.phase == NodePhase::Ready);
    let retried = rest.iter().filter(|rest| rest.what == What::Rests).count();
    if moves + waits + retried == 0 && ready {
        let stay = rest.iter().map(|rest| format!("{} stays away: {}", name(view, rest.vm), rest.why));
        let stay: Vec<String> = stay.take(NAMED).collect();
        let message = match rest.len() {
            0 => "all that it had is back".to_owned(),
            count => format!("{count} stay where they are; {}", stay.join("; ")),
        };
        let decided = shared.writer.submit(move |draft, moment| {
            drain::finish_return(draft, moment, id, &message);
            Ok(())
        });
        decided.await?;
        return Ok(0);
    }
    let left = moves + rest.len();
    let mut only = plan.clone();
    only.rest.retain(|rest| of_home(rest.vm));
    only.rest.iter_mut().for_each(|rest| rest.node = id);
    let (reason, message) = told(view, &only, id, left, moves, "still away");
    write(shared, id, left, reason, message).await
}

/// What the condition says.
fn told(
    view: &View,
    plan: &Plan,
    id: NodeId,
    left: usize,
    moves: usize,
    word: &str,
) -> (&'static str, String) {
    let here = || plan.rest.iter().filter(|rest| rest.node == id);
    let under_way = here().filter(|rest| matches!(rest.what, What::Waits | What::ShutDown)).count();
    let blocked: Vec<_> = here().filter(|rest| rest.what.blocks()).collect();
    let mut message = format!("{left} {word}, {under_way} under way");
    let copies = drain::copies(&view.assignment(id));
    if left == 0 && copies > 0 {
        message += &format!("; {copies} disks of VMs that have gone are being removed");
    }
    for rest in blocked.iter().take(NAMED) {
        message += &format!("; {}: {}", name(view, rest.vm), rest.why);
    }
    if blocked.len() > NAMED {
        message += &format!("; and {} more", blocked.len() - NAMED);
    }
    let ready = view.nodes.get(id).is_some_and(|n| n.status.phase == NodePhase::Ready);
    if !ready {
        message += "; its agent is not heard or not well";
    }
    let reason = match blocked.is_empty() && ready || moves + under_way > 0 {
        true => "UnderWay",
        false => "Blocked",
    };
    (reason, message)
}

fn name(view: &View, vm: VmId) -> String {
    view.vms.get(vm).map_or_else(|| vm.to_string(), |vm| vm.meta.name.to_string())
}

async fn write(
    shared: &Shared,
    id: NodeId,
    left: usize,
    reason: &'static str,
    message: String,
) -> Result<u64, Refusal> {
    let count = u32::try_from(left).unwrap_or(u32::MAX);
    // Nothing is handed in that would write nothing.
    let view = shared.cache.view();
    let known = view.nodes.get(id).is_some_and(|node| {
        let told = node.status.conditions.get(drain::CONDITION);
        told.is_some_and(|told| told.reason == reason && told.message == message)
            && node.status.drain.as_ref().is_some_and(|drain| drain.left == count)
    });
    if !known {
        let decided = shared.writer.submit(move |draft, moment| {
            drain::tell(draft, moment, id, count, reason, &message);
            Ok(())
        });
        decided.await?;
    }
    Ok(left as u64)
}

/// How fast moves go: the median of those that are over, MiB/s, memory and disks over the whole time from asking.
pub fn speed(view: &View) -> Option<u64> {
    let speed = |one: &Move| {
        let vm = view.vms.get(one.spec.vm)?;
        let live = one.spec.way != Way::Cold;
        let done = one.status.phase == MovePhase::Done && live;
        let end: TimeMs = one.status.end_time.filter(|_| done)?;
        let disks = one.spec.copies.iter().filter_map(|id| view.volumes.get(*id));
        let mib = u64::from(vm.spec.memory_mib) + disks.map(|v| v.status.used_mib).sum::<u64>();
        Some(mib * 1_000 / end.since(one.meta.create_time).max(1))
    };
    let mut speeds: Vec<u64> = view.moves.iter().filter_map(|row| speed(row)).filter(|it| *it > 0).collect();
    speeds.sort_unstable();
    speeds.get(speeds.len() / 2).copied()
}
