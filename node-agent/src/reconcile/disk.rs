//! The decision for one volume.
//!
//! Invariants: a volume is made only by a fresh entry that says it has never been made, and only while neither the
//! ledger nor the directory knows it; a missing file is said, never made again; a file goes only by its own
//! entry, and never under a guest. Deliberately absent: the guests' side (`guest`).

use std::collections::BTreeSet;

use tamdao_proto::agent::v1::{Problem, VolumeReport, VolumeState};
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use super::{Decision, Step, Subject, View, attempt, problem};
use crate::desired::{Digest, VolumeIntent, WantedVolume};
use crate::ledger::VolumeRecord;

/// What stands against using a volume now.
pub(super) enum Obstacle {
    /// It is being made ready.
    Wait,
    Problem(Problem),
}

pub(super) fn decide(
    view: &View<'_>,
    id: Uuid,
    wanted: &WantedVolume,
    images: &mut BTreeSet<Digest>,
    decision: &mut Decision,
) -> VolumeReport {
    // What is written of an earlier file says nothing of a later one.
    let own = view.ledger.volumes.get(&id).filter(|record| record.copy >= wanted.copy);
    let record = own.filter(|record| !record.deleted);
    let made = record.is_some_and(|record| record.made);
    let file = view.files.get(&id).copied().unwrap_or_default();
    let made = made && (file.exists || !has(Mutant::MissingDiskMadeAgain));
    let mut report = VolumeReport {
        volume_id: id.to_string(),
        size_mib: record.map_or(0, |record| record.size_mib),
        used_mib: file.used_mib,
        ..Default::default()
    };
    let stamp = (u64::from(wanted.size_mib), wanted.intent as u64);
    let busy = view.busy.contains_key(&Subject::Volume(id));
    let deleted = own.is_some_and(|record| record.deleted);
    let intent = match wanted.intent {
        VolumeIntent::Keep if !file.exists && has(Mutant::MissingDiskMadeAgain) => VolumeIntent::Make,
        intent => intent,
    };
    let state = match (intent, made, file.exists) {
        // Once removed on order it does not come back, whatever an older entry says.
        _ if deleted && !file.exists => VolumeState::Deleted,
        _ if !view.pools.get(&wanted.pool).is_some_and(|pool| pool.ready) => {
            let message = view.pools.get(&wanted.pool).map_or("is not known here", |pool| &pool.message);
            report.problem = Some(problem("PoolAbsent", message, false));
            if made { VolumeState::Made } else { VolumeState::Making }
        }
        (VolumeIntent::Delete, _, _) => {
            // Who uses it is only known while libvirt answers.
            if !busy && wanted.fresh && sees(view) {
                if let Some(vm) = user(view, id) {
                    report.problem = Some(problem("InUse", format!("vm {vm} has it open"), false));
                } else {
                    report.problem = attempt(view, stamp, Step::DeleteVolume { volume: id }, decision);
                }
            }
            VolumeState::Made
        }
        (VolumeIntent::Receive, false, true) => {
            let message = "another file is in its place";
            report.problem = Some(problem("VolumeInTheWay", message, true));
            VolumeState::Failed
        }
        (VolumeIntent::Make | VolumeIntent::Keep | VolumeIntent::Receive, true, false)
        | (VolumeIntent::Keep, false, false) => {
            report.problem = Some(problem("VolumeMissing", "its file was made and is not there", false));
            VolumeState::Missing
        }
        (VolumeIntent::Make | VolumeIntent::Keep, false, true) => {
            if !busy {
                report.problem = attempt(view, stamp, Step::RecogniseVolume { volume: id }, decision);
            }
            VolumeState::Making
        }
        (VolumeIntent::Make | VolumeIntent::Receive, false, false) => {
            making(view, id, wanted, stamp, images, &mut report, decision)
        }
        (VolumeIntent::Receive, true, true) => VolumeState::Made,
        (VolumeIntent::Make | VolumeIntent::Keep, true, true) => {
            // An overlay is of no use without its image, which may have come to this node only by the ledger.
            images.extend(wanted.image.clone().filter(|image| !view.images.contains(image)));
            let small = record.is_some_and(|record| record.size_mib < wanted.size_mib);
            if small && !busy && wanted.fresh && sees(view) && user(view, id).is_none() {
                let step = Step::GrowVolume { volume: id, size_mib: wanted.size_mib };
                report.problem = attempt(view, stamp, step, decision);
            }
            VolumeState::Made
        }
    };
    report.state = state.into();
    if busy && report.problem.is_none() {
        // A try at work does not take back what was said of the last one.
        report.problem = volume_problem(view, id);
    }
    report
}

fn making(
    view: &View<'_>,
    id: Uuid,
    wanted: &WantedVolume,
    stamp: (u64, u64),
    images: &mut BTreeSet<Digest>,
    report: &mut VolumeReport,
    decision: &mut Decision,
) -> VolumeState {
    if view.busy.contains_key(&Subject::Volume(id)) {
        return VolumeState::Making;
    }
    if let Some(image) = wanted.image.as_ref().filter(|image| !view.images.contains(image)) {
        images.insert(image.clone());
        report.problem = image_problem(view, image);
        return VolumeState::Making;
    }
    if wanted.fresh {
        report.problem = attempt(view, stamp, Step::MakeVolume { volume: id }, decision);
    }
    match &report.problem {
        Some(problem) if problem.permanent => VolumeState::Failed,
        _ => VolumeState::Making,
    }
}

/// Why an image could not be fetched so far.
pub(super) fn image_problem(view: &View<'_>, image: &Digest) -> Option<Problem> {
    let effort = view.efforts.get(&Subject::Image(image.clone()))?;
    Some(effort.problem.clone())
}

fn sees(view: &View<'_>) -> bool {
    view.observed && view.hypervisor_away.is_none()
}

/// A VM that has the volume open, or may have in a moment.
fn user(view: &View<'_>, volume: Uuid) -> Option<Uuid> {
    let alive = |vm: &Uuid| {
        let there = view.domains.contains_key(vm) || view.is_unreaped(*vm);
        there || view.busy.contains_key(&Subject::Vm(*vm))
    };
    let by_entry = view
        .desired
        .vms
        .iter()
        .filter(|(_, wanted)| wanted.volumes.iter().any(|(id, _)| *id == volume))
        .map(|(vm, _)| *vm);
    let by_record =
        view.ledger.vms.iter().filter(|(_, record)| record.volumes.contains(&volume)).map(|(vm, _)| *vm);
    by_entry.chain(by_record).find(|vm| alive(vm))
}

/// Whether a guest may open the volume now.
pub(super) fn obstacle(view: &View<'_>, id: Uuid) -> Option<Obstacle> {
    if view.busy.contains_key(&Subject::Volume(id)) {
        return Some(Obstacle::Wait);
    }
    let absent = |reason, message: String| Some(Obstacle::Problem(problem(reason, message, false)));
    let Some(wanted) = view.desired.volumes.get(&id) else {
        return absent("VolumeUnknown", format!("the assignment does not name volume {id}"));
    };
    if wanted.intent == VolumeIntent::Delete {
        return absent("VolumeDeleted", format!("volume {id} is being deleted"));
    }
    let pool = view.pools.get(&wanted.pool);
    if !pool.is_some_and(|pool| pool.ready) {
        let why = pool.map_or("is not known here", |pool| &pool.message);
        return absent("PoolAbsent", format!("pool {}: {why}", wanted.pool));
    }
    let written = |record: &&VolumeRecord| record.made && !record.deleted && record.copy >= wanted.copy;
    let record = view.ledger.volumes.get(&id).filter(written);
    let exists = view.files.get(&id).is_some_and(|file| file.exists);
    match record {
        Some(_) if !exists => {
            absent("VolumeMissing", format!("volume {id}: its file was made and is not there"))
        }
        Some(record) => match &wanted.image {
            Some(image) if !view.images.contains(image) => Some(waiting(image_problem(view, image))),
            _ if record.size_mib < wanted.size_mib && wanted.fresh => Some(waiting(volume_problem(view, id))),
            _ => None,
        },
        // It was made for a move and never written down; what it holds nobody knows.
        None if wanted.intent == VolumeIntent::Receive && exists => {
            Some(Obstacle::Problem(problem("VolumeInTheWay", "another file is in its place", true)))
        }
        None if wanted.intent == VolumeIntent::Keep && !exists => {
            absent("VolumeMissing", format!("volume {id}: its file was made and is not there"))
        }
        None => match wanted.image.as_ref().filter(|image| !view.images.contains(image)) {
            Some(image) => Some(waiting(image_problem(view, image))),
            None => Some(waiting(volume_problem(view, id))),
        },
    }
}

fn waiting(problem: Option<Problem>) -> Obstacle {
    problem.map_or(Obstacle::Wait, Obstacle::Problem)
}

fn volume_problem(view: &View<'_>, id: Uuid) -> Option<Problem> {
    view.efforts.get(&Subject::Volume(id)).map(|effort| effort.problem.clone())
}
