//! The decision for one guest: the heart of the agent.
//!
//! Invariants: those of the module above. A guest whose domain has a higher incarnation than its entry is left
//! alone; one with a lower incarnation than a wanted entry is stale, since the VM was given out anew since.
//! Deliberately absent: moves (`moving`).

use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use tamdao_proto::agent::v1::{GuestExit, GuestState, Problem, VmReport};
use tamdao_proto::v1::{Power, RunPolicy};
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use super::disk::{self, Obstacle};
use super::{Decision, Go, Step, Subject, View, attempt, back_off_ms, moving, problem};
use crate::desired::{ActionKind, Digest, Intent, WantedVm};
use crate::hypervisor::{Domain, DomainState, Exit, PauseReason};
use crate::ledger::{End, Life, VmRecord};

/// How often ACPI is asked again: a guest that boots does not hear it yet, ms.
const ASK_AGAIN_MS: u64 = 10_000;
/// Why a guest on a shared pool waits.
const NO_LEASE: &str = "NoStorageLease";
/// How soon it is looked again whether a process is gone that was killed, ms.
const REAP_MS: u64 = 200;
/// How often the leader is heard, ms.
pub(super) const HEARTBEAT_MS: u64 = 1_000;
/// Room in every pool of a guest that was paused for want of it before it goes on, MiB.
const ROOM_MIB: u64 = 32;
/// How long a guest must do well before its earlier failures no longer count, ms.
const WELL_MS: u64 = 60_000;

/// Whether a guest without a domain must have ended without our having written it down.
#[must_use]
pub fn believed_alive(record: &VmRecord) -> bool {
    record.life == Life::Running
}

pub(super) struct Guest<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) id: Uuid,
    pub(super) record: VmRecord,
}

/// Decides for one VM. `None` says that there is nothing to say of it.
pub(super) fn decide(
    view: &View<'_>,
    id: Uuid,
    images: &mut BTreeSet<Digest>,
    decision: &mut Decision,
) -> Option<VmReport> {
    let wanted = view.desired.vms.get(&id);
    let domain = view.domains.get(&id);
    let guest = Guest { view, id, record: view.ledger.vms.get(&id).cloned().unwrap_or_default() };
    let mut report = guest.describe(wanted, domain);
    let spoken_of = wanted.is_some() || domain.is_some();
    if let Some(step) = view.busy.get(&Subject::Vm(id)) {
        match step {
            Step::Start { .. } => report.state = GuestState::Starting.into(),
            Step::Shutdown { .. } | Step::Destroy { .. } => report.state = GuestState::Stopping.into(),
            Step::Send { .. } => moving::sending(view, id, wanted, &mut report, decision),
            _ => {}
        }
        // A try at work does not take back what was said of the last one.
        report.problem = view
            .efforts
            .get(&Subject::Vm(id))
            .filter(|effort| {
                effort.step == step.kind() && wanted.is_some_and(|wanted| effort.stamp == stamp(wanted))
            })
            .map(|effort| effort.problem.clone());
        return spoken_of.then_some(report);
    }
    if view.hypervisor_away.is_some() || !view.observed {
        return spoken_of.then_some(report);
    }
    if moving::is_unsettled(&guest.record) {
        // It starts nothing and stops nothing, so it needs no order.
        let stamp = wanted.map_or((0, 0), stamp);
        report.problem = attempt(view, stamp, Step::Settle { vm: id }, decision);
        return spoken_of.then_some(report);
    }
    if domain.is_none() && view.is_unreaped(id) {
        // libvirt gives up a process that it cannot kill. One that waits for a disk may still write to it, so it counts as
        // there until it is reaped, for whatever comes next: a start, a move, a deletion, or another node.
        report.state = GuestState::Stopping.into();
        decision.wake(view.now_ms + REAP_MS);
        return spoken_of.then_some(report);
    }
    if domain.is_none() && believed_alive(&guest.record) {
        decision.steps.push(Step::RecordEnd { vm: id, end: guest.end() });
        return spoken_of.then_some(report);
    }
    let Some(wanted) = wanted else {
        if let Some(domain) = domain.filter(|_| has(Mutant::AbsenceIsACommand) && view.desired.complete) {
            decision.steps.push(Step::Destroy { vm: id, incarnation: domain.incarnation, stale: true });
        }
        return domain.map(|_| report);
    };
    if let Some(fault) = &wanted.fault {
        report.problem = Some(problem("BadAssignment", fault.to_string(), true));
        return Some(report);
    }
    let known = guest.record.incarnation.max(domain.map_or(0, |domain| domain.incarnation));
    match (wanted.intent, domain) {
        (Intent::Stop | Intent::Stale, None) => guest.left(wanted, &mut report, decision),
        (Intent::Stale, Some(domain)) if domain.incarnation > wanted.incarnation => {
            // What was declared stale is not here; what is here is newer.
            report = VmReport {
                vm_id: report.vm_id,
                incarnation: wanted.incarnation,
                gone: true,
                ..Default::default()
            };
            report.state = GuestState::Absent.into();
        }
        (Intent::Stale, Some(domain)) => {
            if wanted.fresh {
                guest.destroy(wanted, domain, true, &mut report, decision);
            }
        }
        _ if wanted.incarnation < known => {
            let message = format!("incarnation {} is asked for, {known} is known", wanted.incarnation);
            report.problem = Some(problem("StaleAssignment", message, true));
        }
        (Intent::Stop, Some(domain)) => guest.stop(wanted, domain, &mut report, decision),
        (Intent::Wanted | Intent::Incoming, Some(domain)) if domain.incarnation < wanted.incarnation => {
            if wanted.fresh {
                guest.destroy(wanted, domain, true, &mut report, decision);
            }
        }
        (Intent::Wanted, Some(domain)) => guest.present(wanted, domain, &mut report, decision),
        (Intent::Wanted, None) => guest.absent(wanted, &mut report, images, decision),
        (Intent::Outgoing | Intent::Incoming, _) => {
            // An entry without its move has a fault, and ends above.
            let Some(told) = &wanted.moving else { return Some(report) };
            if wanted.intent == Intent::Outgoing {
                guest.outgoing(wanted, told, domain, &mut report, decision);
            } else {
                guest.incoming(wanted, told, domain, &mut report, images, decision);
            }
        }
    }
    Some(report)
}

impl Guest<'_> {
    /// The report before anything is decided.
    fn describe(&self, wanted: Option<&WantedVm>, domain: Option<&Domain>) -> VmReport {
        let record = &self.record;
        let incarnation = match (domain, wanted) {
            (Some(domain), _) => domain.incarnation,
            (None, Some(wanted)) => wanted.incarnation.max(record.incarnation),
            (None, None) => record.incarnation,
        };
        let mut report = VmReport { vm_id: self.id.to_string(), incarnation, ..Default::default() };
        if record.incarnation == incarnation {
            report.generation = record.generation;
            report.exit = exit(record.end).into();
            report.platform.clone_from(&record.platform);
            report.action_id = record.action.map(|id| id.to_string()).unwrap_or_default();
            report.restarts = record.restarts;
        }
        let ended = record.incarnation == incarnation && record.life != Life::New;
        report.state = if ended { GuestState::Stopped } else { GuestState::Absent }.into();
        let Some(domain) = domain else { return report };
        report.unknown = wanted.is_none() && self.view.desired.complete;
        if report.unknown {
            // A leader that does not know it must not give them to another.
            let addresses = record.rules.iter().flat_map(|rule| &rule.addresses);
            report.addresses = addresses.map(ToString::to_string).collect();
        }
        let stopping = record.stop.is_some() && !record.reboot && wanted.is_none_or(goes_down);
        report.state = match domain.state {
            DomainState::Running | DomainState::Crashed if stopping => GuestState::Stopping,
            DomainState::Running | DomainState::Crashed => GuestState::Running,
            DomainState::ShuttingDown => GuestState::Stopping,
            DomainState::Paused(PauseReason::NotYetRun) => GuestState::Starting,
            DomainState::Paused(_) => GuestState::Paused,
        }
        .into();
        if let DomainState::Paused(reason) = domain.state {
            report.pause_reason = reason.as_str().to_owned();
        }
        report.guarded = self.view.keeper.guests.get(&self.id) == Some(&domain.incarnation);
        report.generation = domain.generation;
        report.platform = Some(domain.platform.clone());
        report.vcpus = domain.vcpus;
        report.memory_mib = domain.memory_mib;
        report.guest = self.view.guests.get(&self.id).cloned();
        report.started_time = domain.started.duration_since(UNIX_EPOCH).ok().map(|since| {
            // Whole milliseconds: more would make every look at the clock a change.
            let nanos = i32::try_from(since.subsec_millis() * 1_000_000).unwrap_or(0);
            pbjson_types::Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos }
        });
        report
    }

    /// How a guest ended that ran when we last looked.
    fn end(&self) -> End {
        if self.record.boot_id != self.view.boot_id {
            return End::Failed;
        }
        let ordered = self.record.stop.is_some();
        match self.view.exits.get(&self.id) {
            Some(Exit::Migrated) => End::Migrated,
            _ if ordered => End::OnOrder,
            Some(Exit::Shutdown) => End::ByItself,
            // Destroyed past us, dead, or nobody knows: the run policy may bring it back.
            Some(Exit::Destroyed | Exit::Crashed | Exit::Failed) | None => End::Failed,
        }
    }

    /// An entry to stop, and no domain.
    fn left(&self, wanted: &WantedVm, report: &mut VmReport, decision: &mut Decision) {
        report.incarnation = wanted.incarnation;
        report.state = GuestState::Absent.into();
        if self.record.untidy || (self.record.incarnation < wanted.incarnation) {
            let step = Step::Tidy { vm: self.id, incarnation: wanted.incarnation };
            report.problem = attempt(self.view, stamp(wanted), step, decision);
            return;
        }
        report.generation = wanted.generation;
        report.gone = true;
    }

    fn destroy(
        &self,
        wanted: &WantedVm,
        domain: &Domain,
        stale: bool,
        report: &mut VmReport,
        decision: &mut Decision,
    ) {
        let step = Step::Destroy { vm: self.id, incarnation: domain.incarnation, stale };
        report.problem = attempt(self.view, stamp(wanted), step, decision);
        report.state = GuestState::Stopping.into();
    }

    /// Down by ACPI, and by force when the time is up.
    pub(super) fn stop(
        &self,
        wanted: &WantedVm,
        domain: &Domain,
        report: &mut VmReport,
        decision: &mut Decision,
    ) {
        if !wanted.fresh {
            // Cut off: a stop that was asked for may come to its end by itself, and is not brought to it.
            return;
        }
        let lost = matches!(domain.state, DomainState::Paused(PauseReason::NotYetRun) | DomainState::Crashed);
        if wanted.stop_force || lost {
            return self.destroy(wanted, domain, false, report, decision);
        }
        let ours = self.record.incarnation == domain.incarnation && self.record.boot_id == self.view.boot_id;
        if ours && self.record.paused && domain.state == DomainState::Paused(PauseReason::OnDemand) {
            // A frozen guest cannot hear ACPI; this pause is ours to take back.
            let step = Step::Resume { vm: self.id, why: Go::OnOrder };
            report.problem = attempt(self.view, stamp(wanted), step, decision);
            return;
        }
        let under_way = self.record.stop.filter(|_| ours && !self.record.reboot);
        let deadline_ms = under_way.map_or(self.view.now_ms + wanted.stop_ms, |stop| stop.deadline_ms);
        self.press_on(
            wanted,
            domain,
            deadline_ms,
            false,
            under_way.map(|stop| stop.asked_ms),
            report,
            decision,
        );
        report.state = GuestState::Stopping.into();
    }

    /// Asks by ACPI, again and again, until the deadline; then kills.
    #[allow(clippy::too_many_arguments)]
    fn press_on(
        &self,
        wanted: &WantedVm,
        domain: &Domain,
        deadline_ms: u64,
        reboot: bool,
        asked_ms: Option<u64>,
        report: &mut VmReport,
        decision: &mut Decision,
    ) {
        let now_ms = self.view.now_ms;
        if asked_ms.is_some() && now_ms >= deadline_ms {
            return self.destroy(wanted, domain, false, report, decision);
        }
        let ask_ms = asked_ms.map_or(now_ms, |asked| asked + ASK_AGAIN_MS);
        if now_ms >= ask_ms && domain.state != DomainState::ShuttingDown {
            let step = Step::Shutdown { vm: self.id, deadline_ms, reboot };
            report.problem = attempt(self.view, stamp(wanted), step, decision);
        }
        decision.wake(deadline_ms.min(ask_ms.max(now_ms + 1000)));
    }

    /// Wanted, and its domain is here with the right incarnation.
    fn present(&self, wanted: &WantedVm, domain: &Domain, report: &mut VmReport, decision: &mut Decision) {
        let (record, now_ms) = (&self.record, self.view.now_ms);
        let never_ran = domain.state == DomainState::Paused(PauseReason::NotYetRun);
        let strange = record.incarnation != domain.incarnation
            || record.boot_id != self.view.boot_id
            || matches!(record.life, Life::New | Life::Ended)
            || (record.life == Life::Starting && !never_ran);
        if strange {
            decision.steps.push(Step::Recognise { vm: self.id, paused: never_ran });
            return;
        }
        if wanted.power == Power::Off {
            return self.stop(wanted, domain, report, decision);
        }
        if !never_ran && self.can_be_guarded(wanted) && !report.guarded {
            let steps = decision.steps.len();
            let earlier = attempt(self.view, stamp(wanted), Step::Guard { vm: self.id }, decision);
            if decision.steps.len() > steps {
                report.problem = earlier;
                return;
            }
        }
        if record.reboot {
            if let Some(stop) = record.stop.filter(|_| wanted.fresh) {
                self.press_on(wanted, domain, stop.deadline_ms, true, Some(stop.asked_ms), report, decision);
            }
            return;
        }
        if let Some(stop) = record.stop {
            // The user took the stop back. The guest may still go down for it, and then it is started again;
            // once its time is up, it has outlived the stop.
            if now_ms >= stop.deadline_ms {
                decision.steps.push(Step::Recognise { vm: self.id, paused: false });
                return;
            }
            decision.wake(stop.deadline_ms);
        }
        match domain.state {
            DomainState::Paused(PauseReason::NotYetRun) => {
                if wanted.fresh && !self.may_begin(wanted) {
                    decision.wake(now_ms + HEARTBEAT_MS);
                } else if wanted.fresh {
                    let step = Step::Resume { vm: self.id, why: Go::FirstTime };
                    report.problem = attempt(self.view, stamp(wanted), step, decision);
                }
            }
            DomainState::Paused(PauseReason::OnDemand | PauseReason::Migration | PauseReason::Other)
                if record.outgoing.is_some() && !record.paused =>
            {
                // A move that did not come to its end left it so; the leader says that the move is over.
                if wanted.power == Power::On && wanted.fresh {
                    let step = Step::Resume { vm: self.id, why: Go::Kept };
                    report.problem = attempt(self.view, stamp(wanted), step, decision);
                }
            }
            DomainState::Paused(PauseReason::OnDemand) => {
                if wanted.power == Power::On && record.paused && wanted.fresh {
                    let step = Step::Resume { vm: self.id, why: Go::OnOrder };
                    report.problem = attempt(self.view, stamp(wanted), step, decision);
                } else if wanted.fresh
                    && !self.act(wanted, report, decision)
                    && wanted.power == Power::Paused
                    && domain.generation < wanted.generation
                {
                    // It stands as wanted; only the update says to whoever waits that this was acted on.
                    report.problem =
                        attempt(self.view, stamp(wanted), Step::Update { vm: self.id }, decision);
                }
            }
            DomainState::Paused(PauseReason::IoError) => self.out_of_room(wanted, report, decision),
            DomainState::Paused(PauseReason::Migration | PauseReason::Other) => {}
            DomainState::ShuttingDown | DomainState::Crashed => {}
            DomainState::Running if !wanted.fresh => {}
            DomainState::Running if wanted.power == Power::Paused => {
                report.problem = attempt(self.view, stamp(wanted), Step::Pause { vm: self.id }, decision);
            }
            DomainState::Running => {
                if self.act(wanted, report, decision) {
                    return;
                }
                if domain.generation < wanted.generation {
                    report.problem =
                        attempt(self.view, stamp(wanted), Step::Update { vm: self.id }, decision);
                    return;
                }
                let subject = Subject::Vm(self.id);
                if let Some(effort) = self.view.efforts.get(&subject) {
                    // A failed start that succeeded is forgotten at once by the doer; this is for the others.
                    if now_ms >= effort.not_before_ms.saturating_add(WELL_MS) {
                        decision.well.push(subject);
                    }
                }
            }
        }
    }

    /// Whether its disks ask for the keeper, and the keeper could take it now.
    fn can_be_guarded(&self, wanted: &WantedVm) -> bool {
        let mut pools = wanted.shared_pools(&self.view.desired.pools).peekable();
        pools.peek().is_some() && pools.all(|pool| self.view.keeper.leases.contains_key(&pool))
    }

    /// Whether what the entry of this session asks for may begin under the storage leases as they are: each must have
    /// been held since before a heartbeat that the leader has answered. Whoever concluded from a lease's silence that
    /// this node is lost did so after the session's end, and the lease would have been broken since.
    pub(super) fn may_begin(&self, wanted: &WantedVm) -> bool {
        let stood = |pool| {
            let lease = self.view.keeper.leases.get(&pool);
            lease.is_some_and(|lease| self.view.answered_ms.is_some_and(|sent| lease.held_since_ms < sent))
        };
        wanted.shared_pools(&self.view.desired.pools).all(stood)
    }

    /// Whether no storage lease that the ledger names for the guest has lapsed since, in this boot.
    pub(super) fn is_unbroken(&self, wanted: &WantedVm) -> bool {
        wanted.shared_pools(&self.view.desired.pools).all(|pool| {
            let held = self.view.keeper.leases.get(&pool).map(|lease| lease.held_since_ms);
            let same_boot = self.record.boot_id == self.view.boot_id;
            same_boot && held.is_some() && held == self.record.leases.get(&pool).copied()
        })
    }

    /// Does the entry's action unless it has been done; says whether it was taken up.
    fn act(&self, wanted: &WantedVm, _report: &mut VmReport, decision: &mut Decision) -> bool {
        let Some(action) = wanted.action.filter(|action| self.record.action != Some(action.id)) else {
            return false;
        };
        let deadline_ms = self.view.now_ms + action.deadline_ms;
        // Not an attempt: an action is done or given up the first time.
        decision.steps.push(match action.kind {
            ActionKind::Reboot => Step::Reboot { vm: self.id, action: action.id, deadline_ms },
            ActionKind::Reset => Step::Reset { vm: self.id, action: action.id },
        });
        true
    }

    /// QEMU paused it for an I/O error. It goes on when its pools have room; each such try counts, so that a disk
    /// that is broken rather than full is not hammered.
    fn out_of_room(&self, wanted: &WantedVm, report: &mut VmReport, decision: &mut Decision) {
        let full = wanted.volumes.iter().find_map(|(_, pool)| match self.view.pools.get(pool) {
            Some(fact) if fact.ready && fact.free_mib() >= ROOM_MIB => None,
            Some(fact) if fact.ready => Some(format!("pool {pool} has {} MiB left", fact.free_mib())),
            Some(fact) => Some(format!("pool {pool}: {}", fact.message)),
            None => Some(format!("pool {pool} is not known here")),
        });
        match full {
            Some(message) => report.problem = Some(problem("PoolFull", message, false)),
            None if wanted.power == Power::On => {
                let step = Step::Resume { vm: self.id, why: Go::Room };
                report.problem = attempt(self.view, stamp(wanted), step, decision);
            }
            None => {}
        }
    }

    /// Wanted, and there is no domain.
    fn absent(
        &self,
        wanted: &WantedVm,
        report: &mut VmReport,
        images: &mut BTreeSet<Digest>,
        decision: &mut Decision,
    ) {
        let record = &self.record;
        let same = record.incarnation == wanted.incarnation;
        let life = if same { record.life } else { Life::New };
        report.generation = wanted.generation;
        if wanted.power != Power::On || wanted.run == RunPolicy::Stopped {
            report.state = GuestState::Stopped.into();
            let undecided = life == Life::Ended && matches!(record.end, Some(End::ByItself | End::Failed));
            if undecided && wanted.power == Power::Off && wanted.fresh {
                // From now on it is off because the user wants it, so that switching it on starts it.
                decision.steps.push(Step::RecordEnd { vm: self.id, end: End::OnOrder });
            }
            return;
        }
        let Some((due_ms, again)) = self.due(wanted, life, report) else { return };
        // The start rule: by an entry of this session, or again on the same boot under the same incarnation, with no
        // storage lease lapsed since it began.
        let may_again = same
            && life == Life::Ended
            && (record.boot_id == self.view.boot_id || has(Mutant::StartFromLedger))
            && record.end != Some(End::Migrated)
            && self.is_unbroken(wanted);
        if !may_again && !wanted.fresh {
            return;
        }
        if due_ms > self.view.now_ms {
            decision.wake(due_ms);
            return;
        }
        if let Some(obstacle) = self.obstacle(wanted, images) {
            report.generation = if same { record.generation } else { 0 };
            report.state = GuestState::Preparing.into();
            if let Obstacle::Problem(problem) = obstacle {
                // A lease that was asked for is there in a moment, and nothing tells so.
                if problem.reason == NO_LEASE {
                    decision.wake(self.view.now_ms + HEARTBEAT_MS);
                }
                report.problem = Some(problem);
            }
            return;
        }
        if !may_again && !self.may_begin(wanted) {
            report.state = GuestState::Preparing.into();
            decision.wake(self.view.now_ms + HEARTBEAT_MS);
            return;
        }
        report.problem = attempt(self.view, stamp(wanted), Step::Start { vm: self.id, again }, decision);
        if report.problem.is_none() {
            report.state = GuestState::Starting.into();
        }
    }

    /// When a guest that is off is to be started, and whether as a restart by the run policy; `None` leaves it off.
    fn due(&self, wanted: &WantedVm, life: Life, report: &mut VmReport) -> Option<(u64, bool)> {
        let record = &self.record;
        let now = Some((self.view.now_ms, false));
        if life != Life::Ended || record.reboot {
            return now;
        }
        // A new action, or a new generation, says that the user wants it anew: also after it shut itself down.
        let asked = wanted.action.is_some_and(|action| record.action != Some(action.id))
            || wanted.generation > record.generation;
        if wanted.fresh && asked && record.end != Some(End::Migrated) {
            return now;
        }
        let policy = |restart: bool| {
            let same_boot = record.boot_id == self.view.boot_id;
            let wait_ms = if same_boot { back_off_ms(record.streak + 1) } else { 0 };
            restart.then(|| (if same_boot { record.ended_ms + wait_ms } else { self.view.now_ms }, true))
        };
        match record.end {
            Some(End::OnOrder) | None => now,
            Some(End::ByItself) => policy(wanted.run == RunPolicy::Always),
            Some(End::Failed) => policy(true),
            Some(End::Migrated) => {
                let message =
                    "it was taken to another node past the agent; only a new incarnation may run here";
                report.problem = Some(problem("MigratedAway", message, true));
                None
            }
        }
    }

    pub(super) fn obstacle(&self, wanted: &WantedVm, images: &mut BTreeSet<Digest>) -> Option<Obstacle> {
        let mut found: Option<Obstacle> = None;
        for (volume, _) in &wanted.volumes {
            match disk::obstacle(self.view, *volume) {
                Some(Obstacle::Problem(problem)) => return Some(Obstacle::Problem(problem)),
                Some(Obstacle::Wait) => found = Some(Obstacle::Wait),
                None => {}
            }
        }
        for pool in wanted.shared_pools(&self.view.desired.pools) {
            let keeper = self.view.keeper;
            let told = match &keeper.away {
                Some(message) => ("KeeperAway", message.clone()),
                None if keeper.leases.contains_key(&pool) => continue,
                None => (NO_LEASE, format!("the storage lease on pool {pool} is not held")),
            };
            return Some(Obstacle::Problem(problem(told.0, told.1, false)));
        }
        let mut failed: Option<Problem> = None;
        for image in wanted.images.iter().filter(|image| !self.view.images.contains(image)) {
            images.insert(image.clone());
            failed = failed.or_else(|| disk::image_problem(self.view, image));
            found = Some(Obstacle::Wait);
        }
        failed.map(Obstacle::Problem).or(found)
    }
}

fn goes_down(wanted: &WantedVm) -> bool {
    matches!(wanted.intent, Intent::Stop | Intent::Stale) || wanted.power == Power::Off
}

pub(super) fn stamp(wanted: &WantedVm) -> (u64, u64) {
    (wanted.incarnation, wanted.generation)
}

fn exit(end: Option<End>) -> GuestExit {
    match end {
        None => GuestExit::Unspecified,
        Some(End::ByItself) => GuestExit::ByItself,
        Some(End::OnOrder | End::Migrated) => GuestExit::OnOrder,
        Some(End::Failed) => GuestExit::Failed,
    }
}
