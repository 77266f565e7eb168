//! What becomes of an image's record: pure decisions over a draft.
//!
//! Its invariant: Importing has an owner (the leader's import) and ways out: Available once a majority of the
//! controllers hold the file, Failed when the file is not acceptable, Pending again when it broke off.

use tamdao_model::condition::ConditionStatus::{False, True, Unknown};
use tamdao_model::image::{Image, ImageKind, ImagePhase};
use tamdao_model::{ControllerId, ImageId, TimeMs};
use tamdao_store::typed::Draft;

use super::{Stored, not_found};
use crate::refusal::Refusal;

/// Its file arrived and was checked.
const RECEIVED: &str = "Received";
/// Enough controllers hold it.
const REPLICATED: &str = "Replicated";

/// What the record demands of the file.
#[derive(Debug, Clone)]
pub struct Expected {
    pub kind: ImageKind,
    /// Digest as sent, hex; empty accepts any.
    pub sha256: String,
}

fn take(draft: &Draft, id: ImageId) -> Result<Image, Refusal> {
    draft.view().images.get(id).map(|row| (*row.value).clone()).ok_or_else(|| not_found(id))
}

/// A file begins to arrive.
pub fn begin(draft: &mut Draft, id: ImageId, now: TimeMs) -> Result<Expected, Refusal> {
    let mut image = take(draft, id)?;
    let waits = match image.status.phase {
        ImagePhase::Pending | ImagePhase::Failed => true,
        // An import that an earlier leader has left.
        ImagePhase::Importing => image.status.sha256.is_empty(),
        ImagePhase::Available => false,
    };
    if !waits {
        let message = format!("image {:?} has its file already", image.meta.name.as_str());
        return Err(Refusal::precondition("HasFile", message).hint("create another image for another file"));
    }
    image.status.phase = ImagePhase::Importing;
    let generation = image.meta.generation;
    image.status.conditions.set(RECEIVED, Unknown, "Receiving", "the file is arriving", generation, now);
    let expected = Expected { kind: image.spec.kind, sha256: image.spec.sha256.clone() };
    draft.put(image);
    Ok(expected)
}

/// How far it is, for people.
pub fn progress(draft: &mut Draft, id: ImageId, message: &str, now: TimeMs) -> Result<(), Refusal> {
    let mut image = take(draft, id)?;
    let generation = image.meta.generation;
    if image.status.phase == ImagePhase::Importing
        && image.status.conditions.set(RECEIVED, Unknown, "Receiving", message, generation, now)
    {
        draft.put(image);
    }
    Ok(())
}

/// The file is whole and good, and this controller holds it.
pub fn store(
    draft: &mut Draft,
    id: ImageId,
    stored: &Stored,
    me: ControllerId,
    now: TimeMs,
) -> Result<(), Refusal> {
    let mut image = take(draft, id)?;
    stored.write_to(&mut image.status);
    image.status.controllers = [me].into();
    let message = format!("{} bytes, sha256 {}", stored.size_bytes, stored.sha256);
    image.status.conditions.set(RECEIVED, True, "Stored", &message, image.meta.generation, now);
    settle(draft, &mut image, now);
    draft.put(image);
    Ok(())
}

/// The file is not acceptable.
pub fn fail(draft: &mut Draft, id: ImageId, reason: &str, message: &str, now: TimeMs) -> Result<(), Refusal> {
    let mut image = take(draft, id)?;
    image.status.phase = ImagePhase::Failed;
    image.status.conditions.set(RECEIVED, False, reason, message, image.meta.generation, now);
    draft.put(image);
    Ok(())
}

/// The file broke off: it waits for another attempt.
pub fn wait(draft: &mut Draft, id: ImageId, reason: &str, message: &str, now: TimeMs) -> Result<(), Refusal> {
    let mut image = take(draft, id)?;
    if image.status.phase != ImagePhase::Importing || !image.status.sha256.is_empty() {
        return Ok(());
    }
    // A URL is fetched again by itself; an upload needs its user.
    if image.spec.url.is_empty() {
        image.status.phase = ImagePhase::Pending;
    }
    image.status.conditions.set(RECEIVED, False, reason, message, image.meta.generation, now);
    draft.put(image);
    Ok(())
}

/// A controller holds the file of this digest.
pub fn held(
    draft: &mut Draft,
    id: ImageId,
    sha256: &str,
    controller: ControllerId,
    now: TimeMs,
) -> Result<(), Refusal> {
    let mut image = take(draft, id)?;
    if image.status.sha256 != sha256 {
        return Err(Refusal::precondition("OtherFile", "the image has another file by now"));
    }
    if draft.view().controllers.get(controller).is_none() {
        return Err(Refusal::precondition(
            "UnknownController",
            format!("controller {controller} is not known"),
        ));
    }
    if image.status.controllers.insert(controller) || image.status.phase == ImagePhase::Importing {
        settle(draft, &mut image, now);
        draft.put(image);
    }
    Ok(())
}

/// Makes it Available when a majority of the controllers that there are hold it.
fn settle(draft: &Draft, image: &mut Image, now: TimeMs) {
    let controllers = &draft.view().controllers;
    let all = controllers.len().max(1);
    let holding = image.status.controllers.iter().filter(|id| controllers.get(id).is_some()).count();
    let message = format!("{holding} of {all} controllers hold the file");
    let generation = image.meta.generation;
    match holding * 2 > all || (controllers.is_empty() && !image.status.controllers.is_empty()) {
        true => {
            image.status.phase = ImagePhase::Available;
            image.status.conditions.set(REPLICATED, True, "Majority", &message, generation, now);
        }
        false => drop(image.status.conditions.set(REPLICATED, False, "Copying", &message, generation, now)),
    }
}
