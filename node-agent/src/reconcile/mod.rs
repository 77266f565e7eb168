//! The decision: from what is wanted and what is, the steps to take now, and the report. Pure: no I/O, no clock,
//! no randomness; equal input gives equal output.
//!
//! Invariants: a guest is stopped, reset or destroyed only by an entry received in the present session that names
//! its incarnation or a higher one; a guest begins only so, or again on the same boot under the same incarnation and
//! under storage leases that never lapsed; on a shared pool it begins only while the keeper holds the lease there;
//! only what we paused, and what QEMU paused for want of room, goes on; a volume that was made is never made
//! again. Deliberately absent: doing (`operate`), and the memory of failures between calls (`Efforts`).

mod disk;
mod effort;
mod guest;
mod moving;
#[cfg(test)]
mod tests;
pub mod turns;

use std::collections::{BTreeMap, BTreeSet};

use tamdao_proto::agent::v1 as wire;
use tamdao_proto::v1::GuestStatus;
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

pub use effort::{Effort, Efforts, Subject, back_off_ms};
pub use guest::believed_alive;
pub use moving::may_run_arrived;

use crate::desired::{Desired, Digest};
use crate::hypervisor::{Domain, Exit};
use crate::keeper::KeeperFact;
use crate::ledger::{End, State, VmRecord};

/// What a pool's directory was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolFact {
    pub ready: bool,
    pub capacity_mib: u64,
    pub used_mib: u64,
    /// Why it is not ready, or that it is almost full.
    pub message: String,
}

impl PoolFact {
    /// Room left, MiB.
    #[must_use]
    pub fn free_mib(&self) -> u64 {
        self.capacity_mib.saturating_sub(self.used_mib)
    }
}

/// What a volume's path was found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileFact {
    pub exists: bool,
    /// What it takes on disk, MiB.
    pub used_mib: u64,
}

/// All that a decision is made of.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// ms of CLOCK_BOOTTIME.
    pub now_ms: u64,
    pub boot_id: &'a str,
    pub desired: &'a Desired,
    /// As last seen; `hypervisor_away` says whether that is now.
    pub domains: &'a BTreeMap<Uuid, Domain>,
    pub foreign: u32,
    /// Why the hypervisor does not answer; nothing is done to guests then.
    pub hypervisor_away: Option<&'a str>,
    /// Domains were seen at least once, so that a report may be complete.
    pub observed: bool,
    /// How domains that are gone have ended, where that is known.
    pub exits: &'a BTreeMap<Uuid, Exit>,
    pub ledger: &'a State,
    pub pools: &'a BTreeMap<Uuid, PoolFact>,
    pub files: &'a BTreeMap<Uuid, FileFact>,
    /// Images in the cache.
    pub images: &'a BTreeSet<Digest>,
    pub guests: &'a BTreeMap<Uuid, GuestStatus>,
    pub keeper: &'a KeeperFact,
    /// When the last heartbeat was sent that the present session's leader has answered, ms of CLOCK_BOOTTIME.
    pub answered_ms: Option<u64>,
    pub efforts: &'a Efforts,
    /// Subjects on which a step is at work.
    pub busy: &'a BTreeMap<Subject, Step>,
}

impl View<'_> {
    /// Whether a guest's process may be there although libvirt lists it no more. Of a keeper that has not answered this
    /// agent yet, whatever ran under its guard in this boot is taken to be.
    fn is_unreaped(&self, vm: Uuid) -> bool {
        if has(Mutant::GoneBeforeReaped) {
            return false;
        }
        if let Some(unreaped) = &self.keeper.unreaped {
            return unreaped.contains(&vm);
        }
        let ran = |record: &VmRecord| record.boot_id == self.boot_id && !record.leases.is_empty();
        self.keeper.away.is_some() && self.ledger.vms.get(&vm).is_some_and(ran)
    }
}

/// Why a paused guest may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// It was created by a start of ours that did not come to its end.
    FirstTime,
    /// The user takes back the pause.
    OnOrder,
    /// QEMU paused it for want of room, and there is room.
    Room,
    /// A broken move left it paused, and the move is over.
    Kept,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write down how a guest ended.
    RecordEnd {
        vm: Uuid,
        end: End,
    },
    /// Write down that a guest of ours runs, or waits for its first resume: recognised after the ledger missed it.
    Recognise {
        vm: Uuid,
        paused: bool,
    },
    /// Clear what is left of a VM that has no business here any more, and write down its highest incarnation.
    Tidy {
        vm: Uuid,
        incarnation: u64,
    },
    /// Seed, filter, domain, run. `again` counts as a restart by the run policy.
    Start {
        vm: Uuid,
        again: bool,
    },
    Resume {
        vm: Uuid,
        why: Go,
    },
    Pause {
        vm: Uuid,
    },
    /// Register a guest that runs and that the keeper does not have.
    Guard {
        vm: Uuid,
    },
    /// Ask by ACPI; the time to destroy is set when it is asked first.
    Shutdown {
        vm: Uuid,
        deadline_ms: u64,
        reboot: bool,
    },
    /// Kill every domain of the VM up to this incarnation.
    Destroy {
        vm: Uuid,
        incarnation: u64,
        stale: bool,
    },
    Reboot {
        vm: Uuid,
        action: Uuid,
        deadline_ms: u64,
    },
    Reset {
        vm: Uuid,
        action: Uuid,
    },
    /// Bring a running guest to the entry's generation.
    Update {
        vm: Uuid,
    },
    /// Send a running guest, or the files of one that is off, to another node, and write down and say what came of it.
    Send {
        vm: Uuid,
    },
    /// Have the sending given up, if it still can be.
    Recall {
        vm: Uuid,
    },
    /// Find out and write down what came of a sending that was cut off.
    Settle {
        vm: Uuid,
    },
    /// Write down that the guest is not sent by this move.
    Keep {
        vm: Uuid,
        reason: &'static str,
    },
    /// Write down that a guest that is off never starts here again under its incarnation.
    LetGo {
        vm: Uuid,
    },
    /// Make seed and filter ready for a guest that comes, and let its source in.
    Receive {
        vm: Uuid,
    },
    FetchImage {
        digest: Digest,
    },
    /// Write down a file that is there and not in the ledger.
    RecogniseVolume {
        volume: Uuid,
    },
    MakeVolume {
        volume: Uuid,
    },
    GrowVolume {
        volume: Uuid,
        size_mib: u32,
    },
    DeleteVolume {
        volume: Uuid,
    },
}

impl Step {
    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Self::RecordEnd { vm, .. }
            | Self::Recognise { vm, .. }
            | Self::Tidy { vm, .. }
            | Self::Start { vm, .. }
            | Self::Resume { vm, .. }
            | Self::Pause { vm }
            | Self::Guard { vm }
            | Self::Shutdown { vm, .. }
            | Self::Destroy { vm, .. }
            | Self::Reboot { vm, .. }
            | Self::Reset { vm, .. }
            | Self::Update { vm }
            | Self::Send { vm }
            | Self::Settle { vm }
            | Self::Keep { vm, .. }
            | Self::LetGo { vm }
            | Self::Receive { vm } => Subject::Vm(*vm),
            Self::Recall { vm } => Subject::Move(*vm),
            Self::FetchImage { digest } => Subject::Image(digest.clone()),
            Self::RecogniseVolume { volume }
            | Self::MakeVolume { volume }
            | Self::GrowVolume { volume, .. }
            | Self::DeleteVolume { volume } => Subject::Volume(*volume),
        }
    }

    /// Whether it only writes down, and is taken at once.
    #[must_use]
    pub fn is_note(&self) -> bool {
        matches!(
            self,
            Self::RecordEnd { .. }
                | Self::Recognise { .. }
                | Self::Tidy { .. }
                | Self::Keep { .. }
                | Self::LetGo { .. }
        )
    }

    /// The kind, for back-off and logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RecordEnd { .. } => "record-end",
            Self::Recognise { .. } => "recognise",
            Self::Tidy { .. } => "tidy",
            Self::Start { .. } => "start",
            Self::Resume { .. } => "resume",
            Self::Pause { .. } => "pause",
            Self::Guard { .. } => "guard",
            Self::Shutdown { .. } => "shutdown",
            Self::Destroy { .. } => "destroy",
            Self::Reboot { .. } => "reboot",
            Self::Reset { .. } => "reset",
            Self::Update { .. } => "update",
            Self::Send { .. } => "send",
            Self::Recall { .. } => "recall",
            Self::Settle { .. } => "settle",
            Self::Keep { .. } => "keep",
            Self::LetGo { .. } => "let-go",
            Self::Receive { .. } => "receive",
            Self::FetchImage { .. } => "fetch-image",
            Self::RecogniseVolume { .. } => "recognise-volume",
            Self::MakeVolume { .. } => "make-volume",
            Self::GrowVolume { .. } => "grow-volume",
            Self::DeleteVolume { .. } => "delete-volume",
        }
    }
}

/// What to do now, what to say, and when to look again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// In order; at most one for each subject.
    pub steps: Vec<Step>,
    /// Everything; what changed is found by comparing with the last one.
    pub report: wire::Report,
    /// ms of CLOCK_BOOTTIME.
    pub wake_ms: Option<u64>,
    /// Subjects that do well again: their failures no longer count.
    pub well: Vec<Subject>,
}

impl Decision {
    fn wake(&mut self, at_ms: u64) {
        if at_ms != u64::MAX {
            self.wake_ms = Some(self.wake_ms.map_or(at_ms, |earlier| earlier.min(at_ms)));
        }
    }
}

/// Decides for the whole node.
#[must_use]
pub fn decide(view: &View<'_>) -> Decision {
    let mut decision = Decision::default();
    // Volumes and images come first: a guest starts in the pass in which the last of them is seen to be ready.
    let mut wanted_now = BTreeSet::new();
    for (id, wanted) in &view.desired.volumes {
        let report = disk::decide(view, *id, wanted, &mut wanted_now, &mut decision);
        decision.report.volumes.push(report);
    }
    let mut vms: BTreeSet<Uuid> = view.desired.vms.keys().copied().collect();
    vms.extend(view.domains.keys());
    vms.extend(view.ledger.vms.iter().filter(|(_, record)| guest::believed_alive(record)).map(|(id, _)| *id));
    for id in vms {
        if let Some(report) = guest::decide(view, id, &mut wanted_now, &mut decision) {
            decision.report.vms.push(report);
        }
    }
    for digest in wanted_now {
        fetch(view, digest, &mut decision);
    }
    let report = &mut decision.report;
    report.complete = view.observed;
    report.foreign = view.foreign;
    report.health = view.hypervisor_away.unwrap_or_default().to_owned();
    report.keeper =
        view.keeper.away.is_none().then(|| wire::KeeperReport { version: view.keeper.version.clone() });
    report.cached_images = view.images.iter().map(ToString::to_string).collect();
    for id in view.desired.pools.keys() {
        let fact = view.pools.get(id).cloned().unwrap_or_default();
        report.pools.push(wire::PoolReport {
            pool_id: id.to_string(),
            ready: fact.ready,
            capacity_mib: fact.capacity_mib,
            used_mib: fact.used_mib,
            message: fact.message,
            lease: view.keeper.report_of(*id),
        });
    }
    decision
}

/// Has an image fetched unless it is being fetched, or failed a moment ago.
fn fetch(view: &View<'_>, digest: Digest, decision: &mut Decision) {
    let subject = Subject::Image(digest.clone());
    if view.images.contains(&digest) || view.busy.contains_key(&subject) {
        return;
    }
    match view.efforts.wait(&subject, "fetch-image", (0, 0), view.now_ms) {
        Some(at_ms) => decision.wake(at_ms),
        None => decision.steps.push(Step::FetchImage { digest }),
    }
}

/// A problem that is not a failed try.
fn problem(reason: &str, message: impl Into<String>, permanent: bool) -> wire::Problem {
    wire::Problem { reason: reason.to_owned(), message: message.into(), permanent, attempts: 0 }
}

/// Takes a step unless an earlier failure of the same kind makes it wait; returns that failure's problem.
fn attempt(view: &View<'_>, stamp: (u64, u64), step: Step, decision: &mut Decision) -> Option<wire::Problem> {
    let subject = step.subject();
    let earlier = view
        .efforts
        .get(&subject)
        .filter(|effort| effort.step == step.kind() && effort.stamp == stamp)
        .map(|effort| effort.problem.clone());
    match view.efforts.wait(&subject, step.kind(), stamp, view.now_ms) {
        Some(at_ms) => decision.wake(at_ms),
        None => decision.steps.push(step),
    }
    earlier
}
