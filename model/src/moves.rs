//! Moves: a VM goes from one node to another. The source's agent decides, once and for ever: it *keeps* the guest or
//! says that it is *gone*. Until one of the two is known the VM may be on either node.
//!
//! Invariants: a VM has one open move at most; each open phase has an owner, a way out and, but for those that wait for
//! a node's word, a deadline; where the source kept the guest, the target never runs it. Deliberately absent: how far
//! the copying is, which is the leader's memory.

use serde::{Deserialize, Serialize};

use crate::forecast::Forecast;
use crate::record::resource;
use crate::vm::Vm;
use crate::{AgencyId, Meta, MoveId, NodeId, Scope, TimeMs, VmId, VolumeId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub meta: Meta,
    pub agency: AgencyId,
    pub spec: MoveSpec,
    pub status: MoveStatus,
}

/// What a move is to do; written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSpec {
    pub vm: VmId,
    pub source: NodeId,
    pub target: NodeId,
    pub way: Way,
    /// The VM's incarnation on the source.
    pub incarnation_from: u64,
    /// The VM's incarnation on the target.
    pub incarnation_to: u64,
    /// Its volumes in local pools, whose files are made anew on the target.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub copies: Vec<VolumeId>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub auto_converge: bool,
    pub asked_by: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Live,
    LiveWithDisks,
    Cold,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveStatus {
    pub phase: MovePhase,
    /// When the phase is given up; none while it waits for a node's word.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub deadline: Option<TimeMs>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub end_time: Option<TimeMs>,
    /// Why it is given up, the first cause only.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cause: Option<Cause>,
    /// The guest has not left the source and never will by this move: the source has said so, or was told of nothing.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub kept: bool,
    /// The target waits for the guest; its turn may still have to come.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub ready: bool,
    /// One sentence for people, such as what an end waits for.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub message: String,
    /// What was expected of it, if it was asked by somebody and the guest could be measured.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub forecast: Option<Forecast>,
    /// When the source was told to send.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub send_time: Option<TimeMs>,
}

/// Why a move is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// One CamelCase word.
    pub reason: String,
    /// One sentence for people.
    pub message: String,
    /// Someone asked for it; nothing has failed.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cancelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MovePhase {
    /// The target makes ready. The source knows of nothing.
    Preparing,
    /// The source has been told to send.
    Sending,
    /// The source has been asked to keep the guest.
    Recalling,
    /// The guest stays the source's; the target clears what it had made ready.
    Clearing,
    Done,
    Failed,
    Cancelled,
}

/// What can become of an open move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveEvent {
    /// The target waits for the guest.
    TargetReady,
    /// The target runs it; it may only after the source's agent has said to it that the guest is gone.
    TargetRuns,
    /// The target has nothing left of it.
    TargetCleared,
    /// The source has kept the guest and never lets go of it under this move.
    SourceKept,
    /// The source has let go of the guest for ever.
    SourceGone,
    /// Someone asked for it to be given up, an end cannot go on, or its time is up.
    GiveUp,
    /// There is a fence proof for the source.
    SourceFenced,
    /// There is a fence proof for the target.
    TargetFenced,
}

/// An event that cannot be in this phase: someone has spoken out of turn, or has lost its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot be while a move is {phase:?}")]
pub struct Impossible {
    pub phase: MovePhase,
    pub event: MoveEvent,
}

impl MovePhase {
    pub fn is_open(self) -> bool {
        match self {
            Self::Preparing | Self::Sending | Self::Recalling | Self::Clearing => true,
            Self::Done | Self::Failed | Self::Cancelled => false,
        }
    }

    /// The phase after an event. `cancelled` says whether a move that is given up was cancelled.
    ///
    /// # Errors
    /// When the event cannot be in this phase.
    pub fn after(self, event: MoveEvent, cancelled: bool) -> Result<Self, Impossible> {
        use MoveEvent as E;
        let impossible = Err(Impossible { phase: self, event });
        let given_up = if cancelled { Self::Cancelled } else { Self::Failed };
        match (self, event) {
            (Self::Preparing, E::TargetReady) => Ok(Self::Sending),
            (Self::Preparing, E::GiveUp | E::SourceFenced | E::TargetFenced) => Ok(Self::Clearing),
            (Self::Preparing, E::TargetRuns | E::TargetCleared | E::SourceKept | E::SourceGone) => impossible,
            (Self::Sending, E::TargetReady) => Ok(Self::Sending),
            (Self::Sending, E::GiveUp | E::TargetFenced) => Ok(Self::Recalling),
            (Self::Recalling, E::TargetReady | E::GiveUp | E::TargetFenced) => Ok(Self::Recalling),
            // The target was never asked to clear anything yet.
            (Self::Sending | Self::Recalling, E::TargetCleared) => impossible,
            // What the source has let go of is the target's, however late a recall came.
            (Self::Sending | Self::Recalling, E::SourceGone | E::TargetRuns) => Ok(Self::Done),
            // A source that is no more may have sent all or nothing: the target clears, and the VM begins anew.
            (Self::Sending | Self::Recalling, E::SourceKept | E::SourceFenced) => Ok(Self::Clearing),
            (Self::Clearing, E::TargetCleared | E::TargetFenced) => Ok(given_up),
            // After a fence proof of the source the target may have begun to run it; it is cleared all the same.
            (
                Self::Clearing,
                E::TargetReady | E::TargetRuns | E::SourceKept | E::GiveUp | E::SourceFenced,
            ) => Ok(Self::Clearing),
            (Self::Clearing, E::SourceGone) => impossible,
            (
                Self::Done | Self::Failed | Self::Cancelled,
                E::TargetReady
                | E::TargetRuns
                | E::TargetCleared
                | E::SourceKept
                | E::SourceGone
                | E::GiveUp
                | E::SourceFenced
                | E::TargetFenced,
            ) => impossible,
        }
    }
}

resource!(Move, Move, |one| Scope::Agency(one.agency));

impl Move {
    pub fn id(&self) -> MoveId {
        MoveId(self.meta.id)
    }

    /// The nodes on which the guest may be running now, as far as the records tell. Who wants to start it anew
    /// elsewhere needs each one's report that it is gone, or a fence proof for it.
    pub fn may_run_on(&self) -> Vec<NodeId> {
        let (source, target) = (self.spec.source, self.spec.target);
        match self.status.phase {
            MovePhase::Preparing => vec![source],
            MovePhase::Sending | MovePhase::Recalling => vec![source, target],
            MovePhase::Clearing if self.status.kept => vec![source],
            // Given up before the source knew of it, or after it was lost: then the target may have it.
            MovePhase::Clearing => vec![source, target],
            MovePhase::Done => vec![target],
            MovePhase::Failed | MovePhase::Cancelled => vec![source],
        }
    }
}

/// The nodes on which a VM may be running now, as far as the records tell; `open` is its open move, if it has one.
/// Evacuation needs for each of them the report that it is gone, or a fence proof.
pub fn may_run_on(vm: &Vm, open: Option<&Move>) -> Vec<NodeId> {
    match open {
        Some(open) => open.may_run_on(),
        None => vm.status.node.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use MoveEvent as E;
    use MovePhase as P;

    use super::*;

    const PHASES: [P; 7] =
        [P::Preparing, P::Sending, P::Recalling, P::Clearing, P::Done, P::Failed, P::Cancelled];
    const EVENTS: [E; 8] = [
        E::TargetReady,
        E::TargetRuns,
        E::TargetCleared,
        E::SourceKept,
        E::SourceGone,
        E::GiveUp,
        E::SourceFenced,
        E::TargetFenced,
    ];

    #[test]
    fn every_open_phase_can_be_left_and_no_closed_one() {
        for phase in PHASES {
            let left =
                EVENTS.into_iter().any(|event| phase.after(event, false).is_ok_and(|new| new != phase));
            assert_eq!(left, phase.is_open(), "{phase:?}");
        }
    }

    /// Plays all orders of events up to a length: a source that kept the guest and a target that has it never both
    /// come true, and whoever gives up comes to an end by the two nodes' words, or by proofs in their place.
    #[test]
    fn kept_and_done_exclude_each_other() {
        let mut open = vec![(P::Preparing, false)];
        for _ in 0..6 {
            let mut next = Vec::new();
            for (phase, kept) in open {
                for event in EVENTS {
                    // The source says one of the two for ever.
                    if kept && matches!(event, E::SourceGone) {
                        continue;
                    }
                    // The target runs it only after the source has said that it is gone.
                    if kept && matches!(event, E::TargetRuns) {
                        continue;
                    }
                    let Ok(new) = phase.after(event, true) else { continue };
                    let kept = kept || event == E::SourceKept;
                    assert!(!(kept && new == P::Done), "{phase:?} {event:?}");
                    next.push((new, kept));
                }
            }
            next.sort_unstable_by_key(|(phase, kept)| (*phase, *kept));
            next.dedup();
            open = next;
        }
        for phase in PHASES.into_iter().filter(|phase| phase.is_open()) {
            let recalled = phase.after(E::GiveUp, true).unwrap();
            let kept = if recalled == P::Recalling {
                recalled.after(E::SourceKept, true).unwrap()
            } else {
                recalled
            };
            assert_eq!(kept.after(E::TargetCleared, true), Ok(P::Cancelled), "{phase:?}");
            assert_eq!(kept.after(E::TargetFenced, false), Ok(P::Failed), "{phase:?}");
        }
    }

    #[test]
    fn a_recall_that_comes_too_late_changes_nothing() {
        assert_eq!(P::Recalling.after(E::SourceGone, true), Ok(P::Done));
        assert_eq!(
            P::Clearing.after(E::SourceGone, true),
            Err(Impossible { phase: P::Clearing, event: E::SourceGone })
        );
    }
}
