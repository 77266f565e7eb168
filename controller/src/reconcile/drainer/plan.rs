//! Plans of drains and returns: what becomes of each VM, from one view and the engine at its revision. The engine's
//! planner says where VMs can go and in which rounds; here is added what it does not know (policies, power, what a guest
//! runs on, moves that failed), and each move is asked of the failover guarantee.
//!
//! Invariant: no move of a plan breaks a rule, nor, unless its node's drain says so, the guarantee, in the order of the
//! plan. Pure; deliberately absent: carrying out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::assignment::{Intent, Reservation};
use tamdao_model::moves::{Move, MovePhase, Way};
use tamdao_model::node::Node;
use tamdao_model::vm::{MaintenancePolicy, Vm, VmPhase};
use tamdao_model::{NodeId, TimeMs, VmId};
use tamdao_scheduler::check::{Step, check};
use tamdao_scheduler::plan::drain::{Blocker, Cause, drain};
use tamdao_scheduler::plan::reach::reach;
use tamdao_scheduler::plan::{self as engine_plan, Budget, Terms, Why};
use tamdao_scheduler::survive::guarantee::{Guarantee, Refusal as Unfit};
use tamdao_scheduler::{Cells, VmShape};
use tamdao_store::view::View;

use crate::decide::drain::{DRAINER, is_off};
use crate::decide::move_start;
use crate::engine::{self, Engine};

/// Steps of one plan: about a second at a thousand nodes.
const STEPS: u64 = 50_000;
/// After a move that failed a VM rests for so long, ms, twice as long after each further one.
const REST_MS: u64 = 30_000;
const REST_MAX_MS: u64 = 30 * 60_000;

/// On which terms one node is drained or returns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leave {
    /// Since when; moves that failed before count no more.
    pub since: TimeMs,
    pub allow_cold: bool,
    pub unguarded: bool,
}

/// What is to be done, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Moves that may run at the same time, round by round.
    pub rounds: Vec<Vec<Go>>,
    /// What does not move.
    pub rest: Vec<Rest>,
    /// Losses that could be survived before and could not at the end, in words.
    pub unguarded: Vec<String>,
}

/// One move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Go {
    pub vm: VmId,
    pub from: NodeId,
    pub to: NodeId,
    pub way: Way,
    pub reservation: Reservation,
    /// NUMA cells that it lies on there, by libvirt's numbers.
    pub cells: Vec<u32>,
    /// Memory, of what moves while it runs, and disks to send, MiB.
    pub copies_mib: u64,
    pub why: Why,
}

/// A VM that does not move now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    pub vm: VmId,
    pub node: NodeId,
    pub what: What,
    pub why: String,
    /// What would help; empty if nothing has to.
    pub lift: String,
}

/// Why it does not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// It runs and cannot go.
    Blocked,
    /// It could not go, and tries again after a pause.
    Rests,
    /// It is to be shut down by its policy.
    ShutDown,
    /// It is on its way, or about to be something else.
    Waits,
    /// It is off, and stays.
    Stays,
}

impl What {
    /// Whether it stands in the way of a drain now.
    pub fn blocks(self) -> bool {
        matches!(self, Self::Blocked | Self::Rests)
    }
}

impl Plan {
    pub fn moves(&self) -> impl Iterator<Item = &Go> + '_ {
        self.rounds.iter().flatten()
    }

    fn rests(&mut self, vm: VmId, node: NodeId, what: What, why: impl Into<String>, lift: impl Into<String>) {
        self.rest.push(Rest { vm, node, what, why: why.into(), lift: lift.into() });
    }
}

/// How these nodes are emptied, all together. They are closed for it, cordoned or not.
pub fn leaving(view: &View, engine: &Engine, nodes: &BTreeMap<NodeId, Leave>, now: TimeMs) -> Plan {
    let mut plan = Plan::default();
    let failures = Failures::of(view, now);
    let mut course = Course::begin(view, engine, nodes, true);
    for (node, leave) in nodes {
        for (id, entry) in view.assignment(*node).vms {
            if let Some((way, vm)) = sort(view, (*node, leave), (id, entry.intent), &failures, &mut plan) {
                course.frees(vm, *node, way);
            }
        }
    }
    let held = course.guarantee.view().clone();
    let set: BTreeSet<NodeId> = nodes.keys().copied().collect();
    let terms = course.terms(&set);
    let answer = drain(&held, &set, &terms, &mut Budget::steps(STEPS));
    course.stuck(&answer.stuck, &mut plan);
    course.carry(&answer.plan, &mut plan);
    course.end(engine, plan)
}

/// How what drains of these nodes have moved away comes back to them.
pub fn returning(view: &View, engine: &Engine, nodes: &BTreeMap<NodeId, Leave>, now: TimeMs) -> Plan {
    let mut plan = Plan::default();
    let failures = Failures::of(view, now);
    let mut course = Course::begin(view, engine, nodes, false);
    let mut wished: BTreeMap<VmId, NodeId> = BTreeMap::new();
    for row in view.vms.iter() {
        let Some(home) = row.status.drained.map(|drained| drained.from) else { continue };
        let Some((leave, at)) = nodes.get(&home).zip(row.status.node).filter(|(_, at)| *at != home) else {
            continue;
        };
        let sorted = sort(view, (at, leave), (row.id(), Intent::Wanted), &failures, &mut plan);
        if let Some((way, vm)) = sorted {
            wished.insert(vm.id(), home);
            course.leaves.insert(vm.id(), *leave);
            course.frees(vm, at, way);
        }
    }
    let held = course.guarantee.view().clone();
    let terms = course.terms(&BTreeSet::new());
    let answer = reach(&held, &wished, &terms, &mut Budget::steps(STEPS));
    course.stuck(&answer.stuck, &mut plan);
    course.carry(&answer.plan, &mut plan);
    course.end(engine, plan)
}

/// Whether and how a VM would move, or an entry of the plan that says why it does not.
fn sort<'a>(
    view: &'a View,
    (node, leave): (NodeId, &Leave),
    (id, intent): (VmId, Intent),
    failures: &Failures,
    plan: &mut Plan,
) -> Option<(Way, &'a Vm)> {
    let Some(vm) = view.vms.get(id).filter(|vm| vm.status.node == Some(node)) else {
        let why = match intent {
            Intent::Incoming => "it is about to arrive",
            _ => "the node clears what is left of it",
        };
        plan.rests(id, node, What::Waits, why, "");
        return None;
    };
    let name = vm.meta.name.as_str();
    if let Some(open) = vm.status.moving.and_then(|id| view.moves.get(id)) {
        let to = view.nodes.get(open.spec.target).map_or("", |node| node.meta.name.as_str());
        plan.rests(id, node, What::Waits, format!("on its way to {to}, {:?}", open.status.phase), "");
        return None;
    }
    let off = is_off(vm);
    match vm.spec.maintenance {
        MaintenancePolicy::Block if !off => {
            let lift = format!("stop it, or tamdao vm update {name} --maintenance migrate");
            plan.rests(id, node, What::Blocked, "its maintenance policy is to block", lift);
            return None;
        }
        MaintenancePolicy::ShutDown if !off => {
            plan.rests(id, node, What::ShutDown, "its maintenance policy is to be shut down", "");
            return None;
        }
        MaintenancePolicy::ShutDown if vm.status.drained.is_some_and(|drained| drained.shut_down) => {
            plan.rests(id, node, What::Stays, "shut down until its node returns", "");
            return None;
        }
        MaintenancePolicy::Block | MaintenancePolicy::ShutDown | MaintenancePolicy::Migrate => {}
    }
    if let Some(why) = failures.rests(id, leave.since) {
        plan.rests(id, node, What::Rests, why, "it is tried again by itself");
        return None;
    }
    if off && !leave.allow_cold && !move_start::local_volumes(view, vm).is_empty() {
        // Nobody waits for it, and its disks take the links and the pools of others.
        let why = "it is off, and its local disks go along only if the drain allows cold moves";
        plan.rests(id, node, What::Stays, why, "drain with --allow-cold");
        return None;
    }
    match move_start::way(view, vm, leave.allow_cold) {
        Ok(way) => Some((way, vm)),
        Err(refusal) if off => {
            plan.rests(id, node, What::Stays, format!("it is off, and {}", refusal.message), "");
            None
        }
        Err(refusal) => {
            let (what, lift) = match (refusal.reason, vm.status.phase) {
                ("NotRunning", VmPhase::Paused) => (What::Blocked, "resume or stop it".to_owned()),
                ("NotRunning" | "Deleting", _) => (What::Waits, String::new()),
                ("LiveImpossible", _) => (What::Blocked, "drain with --allow-cold, or stop it".to_owned()),
                _ => {
                    let lift = format!("stop it, or tamdao vm update {name} --maintenance shut-down");
                    (What::Blocked, lift)
                }
            };
            plan.rests(id, node, what, refusal.message, lift);
            None
        }
    }
}

/// Moves of drains that failed: a VM whose move has just failed rests for a while.
struct Failures {
    now: TimeMs,
    /// End, and what it said; the newest last.
    of: BTreeMap<VmId, Vec<(TimeMs, String)>>,
}

impl Failures {
    fn of(view: &View, now: TimeMs) -> Self {
        let mut of: BTreeMap<VmId, Vec<(TimeMs, String)>> = BTreeMap::new();
        let failed = |one: &&Move| one.spec.asked_by == DRAINER && one.status.phase == MovePhase::Failed;
        for one in view.moves.iter().map(|row| &*row.value).filter(failed) {
            let why = one.status.cause.as_ref().map(|cause| cause.message.clone()).unwrap_or_default();
            of.entry(one.spec.vm).or_default().push((one.status.end_time.unwrap_or(now), why));
        }
        of.values_mut().for_each(|ends| ends.sort());
        Self { now, of }
    }

    fn rests(&self, vm: VmId, since: TimeMs) -> Option<String> {
        let ends: Vec<_> = self.of.get(&vm)?.iter().filter(|(end, _)| *end >= since).collect();
        let (last, why) = ends.last()?;
        let rest = (REST_MS << (ends.len() - 1).min(10)).min(REST_MAX_MS);
        (self.now.since(*last) < rest).then(|| format!("its move failed: {why}"))
    }
}

/// The guarantee's picture on its way from the cluster as it is to the end of the plan.
struct Course<'a> {
    view: &'a View,
    guarantee: Guarantee,
    /// VMs that may move, by which way.
    ways: BTreeMap<VmId, Way>,
    /// On which terms a node is emptied.
    nodes: BTreeMap<NodeId, Leave>,
    /// On which terms a VM comes back.
    leaves: BTreeMap<VmId, Leave>,
    /// VMs that lost their place in the plan, and with them who goes with them or makes room for them.
    dropped: BTreeSet<VmId>,
    /// A move was left out or goes elsewhere, so what follows is looked at anew.
    disturbed: bool,
}

impl<'a> Course<'a> {
    fn begin(view: &'a View, engine: &Engine, nodes: &BTreeMap<NodeId, Leave>, closed: bool) -> Self {
        let mut guarantee = engine.guarantee.clone();
        for id in nodes.keys() {
            if let Some(mut shape) = guarantee.view().node(*id).cloned() {
                shape.cordoned = closed;
                guarantee.set_node(shape);
            }
        }
        let (nodes, leaves) = (if closed { nodes.clone() } else { BTreeMap::new() }, BTreeMap::new());
        Self {
            view,
            guarantee,
            ways: BTreeMap::new(),
            nodes,
            leaves,
            dropped: BTreeSet::new(),
            disturbed: false,
        }
    }

    /// Lets a VM go: its local files are copied along, so they hold it no more; and nodes that cannot run on what it
    /// runs on are closed to it.
    fn frees(&mut self, vm: &Vm, at: NodeId, way: Way) {
        self.ways.insert(vm.id(), way);
        let Some(shape) = shape_on(&self.guarantee, at, vm.id()) else { return };
        let mut new = (*shape).clone();
        new.pin = vm.spec.pin;
        let source = self.view.nodes.get(at);
        let unfit: Vec<NodeId> = source.map_or_else(Vec::new, |source| {
            let unfit = |node: &Node| {
                node.id() != at && move_start::unfit(self.view, vm, way, source, node).is_some()
            };
            self.view.nodes.iter().filter(|node| unfit(node)).map(|node| node.id()).collect()
        });
        if !unfit.is_empty() {
            // A label that no user can write, on the nodes that it forbids.
            let agency = self.view.agencies.get(vm.agency).map(|agency| agency.meta.name.clone());
            let agency = agency.map_or_else(|| vm.agency.to_string(), |name| name.to_string());
            let how = if way == Way::Cold { "with its disks" } else { "while it runs" };
            let label = format!("cannot take {agency}/{} {how}", vm.meta.name);
            new.forbidden_labels.insert(label.clone(), String::new());
            for id in unfit {
                if let Some(mut node) = self.guarantee.view().node(id).cloned() {
                    node.labels.insert(label.clone(), String::new());
                    self.guarantee.set_node(node);
                }
            }
        }
        if new != *shape {
            let cells = self.guarantee.view().cells_of(at, vm.id());
            self.guarantee.release(at, vm.id());
            self.guarantee.assign_to(at, cells, Arc::new(new)).expect("it stood there");
        }
    }

    /// Everybody stays who was not let go, on the nodes that are emptied; of others the planner may move who can.
    fn terms(&self, emptied: &BTreeSet<NodeId>) -> Terms {
        let mut terms = Terms { may_stop: true, ..Terms::default() };
        for row in self.view.vms.iter() {
            let id = row.id();
            let Some(node) = row.status.node else { continue };
            match self.ways.get(&id) {
                Some(Way::Cold) => drop(terms.cold.insert(id)),
                Some(Way::Live | Way::LiveWithDisks) => {}
                // To make room, only what moves as if nothing were: it runs, and its policy says nothing else.
                None => {
                    let free = !emptied.contains(&node)
                        && row.spec.maintenance == MaintenancePolicy::Migrate
                        && move_start::way(self.view, row, false) == Ok(Way::Live);
                    if !free {
                        terms.still.insert(id);
                    }
                }
            }
        }
        terms
    }

    fn stuck(&self, blockers: &[Blocker], plan: &mut Plan) {
        for Blocker { vm, node, cause, .. } in blockers.iter().filter(|one| self.ways.contains_key(&one.vm)) {
            let (why, lift) = match cause {
                Cause::NoPlace { rejection, fixes } => {
                    let lift = fixes.first().map(ToString::to_string);
                    let why = match rejection.nodes {
                        0 => "no place for it before others have moved".to_owned(),
                        _ => rejection.summary(true),
                    };
                    (why, lift.unwrap_or_else(|| "room on another node".to_owned()))
                }
                Cause::Held(_) | Cause::BudgetSpent => (cause.to_string(), String::new()),
            };
            self.blocked(plan, *vm, *node, why, lift);
        }
    }

    /// A VM that has no way to go blocks while it runs, and stays where it is off.
    fn blocked(&self, plan: &mut Plan, vm: VmId, node: NodeId, why: String, lift: String) {
        match self.view.vms.get(vm).is_some_and(|vm| is_off(vm)) {
            true => plan.rests(vm, node, What::Stays, format!("it is off, and there is {why}"), ""),
            false => plan.rests(vm, node, What::Blocked, why, lift),
        }
    }

    /// Takes the engine's moves into the plan, each asked of the guarantee.
    fn carry(&mut self, moves: &engine_plan::Plan, plan: &mut Plan) {
        let mut late = Vec::new();
        for round in &moves.rounds {
            let mut now = Vec::new();
            for one in &round.moves {
                match self.take(one) {
                    Ok((go, planned)) => if planned { &mut now } else { &mut late }.push(go),
                    Err((why, lift)) => {
                        self.disturbed = true;
                        self.dropped.insert(one.vm);
                        if let Why::RoomFor(other) | Why::With(other) = one.why {
                            self.dropped.insert(other);
                        }
                        self.blocked(plan, one.vm, one.from, why, lift);
                    }
                }
            }
            plan.rounds.extend((!now.is_empty()).then_some(now));
        }
        plan.rounds.extend((!late.is_empty()).then_some(late));
    }

    /// One move, and whether it goes where the planner said; or why not, and what would help.
    fn take(&mut self, one: &engine_plan::Move) -> Result<(Go, bool), (String, String)> {
        let Some(shape) = shape_on(&self.guarantee, one.from, one.vm) else {
            return Err(("it is not where the plan says".to_owned(), String::new()));
        };
        if self.dropped.contains(&one.vm) {
            return Err((
                "another VM that has to move first cannot".to_owned(),
                "its blocker first".to_owned(),
            ));
        }
        let leave =
            self.leaves.get(&one.vm).or_else(|| self.nodes.get(&one.from)).copied().unwrap_or_default();
        if self.fits(&shape, one) {
            let moved = match leave.unguarded {
                true => {
                    self.put(one.vm, one.from, one.to, one.cells);
                    Ok(())
                }
                false => self.guarantee.propose_move(one.vm, one.from, one.to, one.cells),
            };
            match moved {
                Ok(()) => return Ok((self.go(one, (one.to, one.cells), &shape), true)),
                // Elsewhere the guarantee may be kept; but a return is to one node.
                Err(broken) if self.nodes.is_empty() => return Err(guard(broken.to_string())),
                Err(_) => {}
            }
        }
        if self.nodes.is_empty() {
            return Err((
                "what it waits for has not left its node".to_owned(),
                "its blocker first".to_owned(),
            ));
        }
        self.disturbed = true;
        let mut fork = self.guarantee.clone();
        fork.release(one.from, one.vm);
        match fork.admit(&shape) {
            Ok(placement) => {
                self.guarantee = fork;
                Ok((self.go(one, (placement.node, placement.cells), &shape), false))
            }
            Err(refusal @ Unfit::NoPlace(_)) => Err((refusal.to_string(), "room on another node".to_owned())),
            Err(refusal @ Unfit::Unguarded { .. }) => Err(guard(refusal.to_string())),
        }
    }

    /// Whether the place is still there, if anything went otherwise than planned.
    fn fits(&self, shape: &Arc<VmShape>, one: &engine_plan::Move) -> bool {
        let steps = [
            Step::Assign { vm: shape.clone(), node: one.to, cells: one.cells },
            Step::Release { vm: one.vm, node: one.from },
        ];
        !self.disturbed || check(self.guarantee.view(), &steps).is_ok()
    }

    fn put(&mut self, vm: VmId, from: NodeId, to: NodeId, cells: Cells) {
        if let Some(shape) = shape_on(&self.guarantee, from, vm)
            && self.guarantee.assign_to(to, cells, shape).is_ok()
        {
            self.guarantee.release(from, vm);
        }
    }

    fn go(&self, one: &engine_plan::Move, (to, cells): (NodeId, Cells), shape: &VmShape) -> Go {
        let way = self.ways.get(&one.vm).copied().unwrap_or(Way::Live);
        let emulation = self.view.nodes.get(to).is_some_and(|n| n.status.inventory.acceleration == "qemu");
        let asked = self.view.vms.get(one.vm).and_then(|vm| engine::shape(self.view, vm).ok());
        let reservation = asked.map_or(shape.reservation, |asked| asked.reservation_on(emulation));
        Go {
            vm: one.vm,
            from: one.from,
            to,
            way,
            reservation,
            cells: engine::cell_numbers(self.view, to, cells),
            copies_mib: one.copied_mib(),
            why: one.why,
        }
    }

    fn end(&self, before: &Engine, mut plan: Plan) -> Plan {
        let lost = |guarantee: &Guarantee| {
            let mut lost: BTreeMap<String, usize> = BTreeMap::new();
            for (loss, _) in guarantee.broken() {
                let name = match loss {
                    tamdao_scheduler::survive::Loss::Node(id) => {
                        let name = guarantee.view().node(*id).map(|node| node.name.clone());
                        format!("node {}", name.unwrap_or_default())
                    }
                    tamdao_scheduler::survive::Loss::Domain { .. } => loss.to_string(),
                };
                *lost.entry(name).or_default() += 1;
            }
            lost
        };
        let known = lost(&before.guarantee);
        let new = lost(&self.guarantee)
            .into_iter()
            .filter(|(loss, count)| known.get(loss).is_none_or(|before| before < count));
        let told = new.map(|(loss, count)| {
            let vms = if count == 1 { "1 VM".to_owned() } else { format!("{count} VMs") };
            format!("the loss of {loss} would leave {vms} without a place")
        });
        plan.unguarded = told.collect();
        plan.rest.sort_by_key(|rest| (rest.what, rest.node, rest.vm));
        plan
    }
}

fn guard(why: String) -> (String, String) {
    (why, "more room, or --unguarded".to_owned())
}

fn shape_on(guarantee: &Guarantee, node: NodeId, vm: VmId) -> Option<Arc<VmShape>> {
    guarantee.view().vms_on(node).iter().find(|shape| shape.id == vm).cloned()
}
