//! The decision for a guest that moves, on either end.
//!
//! Invariants: the source's word (*kept* or *gone*) is written down before it is said, and never changes; a guest that
//! arrives runs only after the source's agent has said that it is gone, under storage leases that have not lapsed since
//! this node made ready for it, or after the leader has given the VM to this node; a source whose guest stands still
//! after a broken move lets it go on only when the move is over, which is when the target has cleared; a guest whose
//! disks only this node has is never let go of without them. Deliberately absent: the sending (`moves`).

use std::collections::BTreeSet;

use tamdao_proto::agent::v1::{GuestState, MoveReport, MoveState, Problem, VmReport};
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use super::disk::{self, Obstacle};
use super::guest::{Guest, HEARTBEAT_MS, stamp};
use super::{Decision, Go, Step, Subject, View, attempt, problem};
use crate::desired::{Digest, WantedMove, WantedVm, Way};
use crate::hypervisor::{Domain, DomainState, PauseReason};
use crate::ledger::{Life, VmRecord, Word};

/// Whether the target's agent may let a guest run that has arrived: the source has said that it is gone there.
#[must_use]
pub fn may_run_arrived(record: &VmRecord, incarnation: u64, id: Uuid) -> bool {
    record.incarnation == incarnation
        && record.incoming.is_some_and(|incoming| incoming.id == id && incoming.go)
}

/// Whether a move out of this node has begun, and nobody knows yet how it ended.
#[must_use]
pub fn is_unsettled(record: &VmRecord) -> bool {
    record.outgoing.as_ref().is_some_and(|outgoing| outgoing.word == Word::Sending)
}

fn say(report: &mut VmReport, id: Uuid, state: MoveState, problem: Option<Problem>) {
    report.r#move = Some(MoveReport { move_id: id.to_string(), state: state.into(), problem });
}

/// What is done and said while the guest is being sent.
pub(super) fn sending(
    view: &View<'_>,
    id: Uuid,
    wanted: Option<&WantedVm>,
    report: &mut VmReport,
    decision: &mut Decision,
) {
    let Some(moving) = wanted.and_then(|wanted| wanted.moving.as_ref()) else { return };
    say(report, moving.id, MoveState::Sending, None);
    if moving.recall && !view.busy.contains_key(&Subject::Move(id)) {
        let problem =
            wanted.and_then(|wanted| attempt(view, stamp(wanted), Step::Recall { vm: id }, decision));
        say(report, moving.id, MoveState::Sending, problem);
    }
}

impl Guest<'_> {
    /// An entry that sends the guest away.
    pub(super) fn outgoing(
        &self,
        wanted: &WantedVm,
        moving: &WantedMove,
        domain: Option<&Domain>,
        report: &mut VmReport,
        decision: &mut Decision,
    ) {
        let said = self.record.outgoing.as_ref().filter(|outgoing| outgoing.id == moving.id);
        match said.map(|outgoing| (outgoing.word, &outgoing.reason)) {
            None => {
                say(report, moving.id, MoveState::Sending, None);
                if !wanted.fresh {
                    return;
                }
                let keep = |reason| Some(Step::Keep { vm: self.id, reason });
                let state = domain.map(|domain| domain.state);
                let step = match (moving.recall, moving.way, state) {
                    (true, _, _) => keep("Recalled"),
                    (false, Way::Cold | Way::ColdWithDisks, _) => {
                        self.outgoing_off(wanted, moving, domain, report, decision)
                    }
                    (false, Way::Live, Some(DomainState::Running)) => Some(Step::Send { vm: self.id }),
                    (false, Way::Live, Some(_)) => keep("NotRunning"),
                    (false, Way::Live, None) => keep("NotThere"),
                };
                let Some(step) = step else { return };
                let failed = attempt(self.view, stamp(wanted), step, decision);
                say(report, moving.id, MoveState::Sending, failed);
            }
            Some((Word::Sending, _)) => {
                say(report, moving.id, MoveState::Sending, None);
            }
            Some((Word::Kept, reason)) => {
                if let Some(DomainState::Paused(_)) = domain.map(|here| here.state)
                    && has(Mutant::ResumeOnLostReply)
                {
                    decision.steps.push(Step::Resume { vm: self.id, why: Go::Kept });
                }
                let message = format!("its node has kept it: {reason}");
                say(report, moving.id, MoveState::Kept, Some(problem("Kept", message, true)));
            }
            Some((Word::Gone, _)) => say(report, moving.id, MoveState::Gone, None),
        }
    }

    /// What is done now for a guest that is to leave while it is off, if anything but to wait.
    fn outgoing_off(
        &self,
        wanted: &WantedVm,
        moving: &WantedMove,
        domain: Option<&Domain>,
        report: &mut VmReport,
        decision: &mut Decision,
    ) -> Option<Step> {
        let local = wanted.local_volumes(&self.view.desired.pools);
        if moving.way == Way::Cold && !local.is_empty() {
            // Whoever says so knows nothing of carrying: over there it would start with disks that were made empty.
            return Some(Step::Keep { vm: self.id, reason: "DisksNotCarried" });
        }
        if let Some(domain) = domain {
            // It is shut down first; when it is off, it goes.
            self.stop(wanted, domain, report, decision);
            return None;
        }
        if local.is_empty() || has(Mutant::DisksLeftBehind) {
            return Some(Step::LetGo { vm: self.id });
        }
        match local.iter().find_map(|volume| disk::obstacle(self.view, *volume)) {
            Some(Obstacle::Problem(problem)) => {
                say(report, moving.id, MoveState::Sending, Some(problem));
                None
            }
            Some(Obstacle::Wait) => None,
            None => Some(Step::Send { vm: self.id }),
        }
    }

    /// An entry for a guest that comes.
    pub(super) fn incoming(
        &self,
        wanted: &WantedVm,
        moving: &WantedMove,
        domain: Option<&Domain>,
        report: &mut VmReport,
        images: &mut BTreeSet<Digest>,
        decision: &mut Decision,
    ) {
        let record = &self.record;
        let ready = record.incarnation == wanted.incarnation
            && record.incoming.is_some_and(|incoming| incoming.id == moving.id);
        if !ready {
            return self.make_ready(wanted, moving, domain, report, images, decision);
        }
        let go = may_run_arrived(record, wanted.incarnation, moving.id);
        match (go, domain.map(|domain| domain.state)) {
            (false, Some(DomainState::Running)) if wanted.fresh => {
                // Whoever let it run, it was not the source's word.
                let failed = attempt(self.view, stamp(wanted), Step::Pause { vm: self.id }, decision);
                say(report, moving.id, MoveState::Ready, failed);
            }
            (false, _) => say(report, moving.id, MoveState::Ready, None),
            // After a lapse this node may have been fenced, and the VM runs elsewhere: then the leader has to say so.
            (true, Some(DomainState::Paused(PauseReason::NotYetRun)))
                if self.is_unbroken(wanted) || has(Mutant::BrokenHoldingTaken) =>
            {
                let step = Step::Resume { vm: self.id, why: Go::FirstTime };
                let failed = attempt(self.view, stamp(wanted), step, decision);
                say(report, moving.id, MoveState::Runs, failed);
            }
            (true, Some(DomainState::Running)) if record.life == Life::Starting => {
                decision.steps.push(Step::Recognise { vm: self.id, paused: false });
                say(report, moving.id, MoveState::Runs, None);
            }
            // Also when it is not here: the source has let go of it, so it is this node's to start.
            (true, _) => say(report, moving.id, MoveState::Runs, None),
        }
    }

    fn make_ready(
        &self,
        wanted: &WantedVm,
        moving: &WantedMove,
        domain: Option<&Domain>,
        report: &mut VmReport,
        images: &mut BTreeSet<Digest>,
        decision: &mut Decision,
    ) {
        report.state = GuestState::Absent.into();
        let why_not = match self.obstacle(wanted, images) {
            Some(Obstacle::Problem(problem)) => Some(problem),
            Some(Obstacle::Wait) => None,
            None if domain.is_some() => {
                let message = "a domain of this incarnation is here that was never let in";
                Some(problem("DomainExists", message, true))
            }
            None if wanted.fresh && !self.may_begin(wanted) => {
                decision.wake(self.view.now_ms + HEARTBEAT_MS);
                None
            }
            None if wanted.fresh => {
                attempt(self.view, stamp(wanted), Step::Receive { vm: self.id }, decision)
            }
            None => None,
        };
        say(report, moving.id, MoveState::Preparing, why_not);
    }
}
