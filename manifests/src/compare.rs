//! One resource as it is against what a block says: which fields differ, which of them force a new one, and for a VM
//! what has to be done beside its update: another size, and volumes that were made with it.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value as Json};
pub use tamdao_model::applied::{below, leaves};
use uuid::Uuid;

use crate::expand::{Desired, Place};
use crate::judge::{self, Names};
use crate::manifest::Live;

/// The pool of volumes that name none, as the controller has it.
const DEFAULT_POOL: &str = "default";
const SIZE: [&str; 3] = ["flavor", "vcpus", "memory_mib"];

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// As it is written in a block, such as `disks[0].create.image`.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Json>,
    pub known_after_apply: bool,
    /// Neither value is shown.
    pub sensitive: bool,
    pub forces_replacement: bool,
}

/// A volume that changes with its VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumeChange {
    pub agency: String,
    pub name: String,
    pub revision: u64,
    /// The fields of the spec that change.
    pub spec: Map<String, Json>,
}

/// What the comparison found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compared {
    pub differences: Vec<Difference>,
    /// Why nothing can be said; empty when it can.
    pub unreadable: Vec<String>,
    /// Why a new one is needed; empty when it is not.
    pub reasons: Vec<String>,
    pub resize: bool,
    pub volumes: Vec<VolumeChange>,
}

/// Compares.
pub fn compare(desired: &Desired, wanted: &Json, is: &Json, live: &Live, names: &Names) -> Compared {
    let kind = desired.place.kind.as_str();
    let mut found = Compared::default();
    let (mut wanted, mut is_now) = (wanted.clone(), is.clone());
    if let Some(spec) = wanted["spec"].as_object_mut() {
        // It is never shown, so that it cannot be compared here.
        spec.remove("user_data");
    }
    if kind == "vm" {
        templates(desired, &mut wanted, is, live, &mut found);
    }
    if let Err(violations) = judge::readable(kind, is, names) {
        found.unreadable = violations.iter().map(ToString::to_string).collect();
        return found;
    }
    let mut verdict = judge::update(kind, &is_now, &wanted, names);
    let sized = |field: &str| SIZE.iter().any(|size| field == format!("vm.spec.{size}"));
    if kind == "vm" && verdict.as_ref().is_err_and(|wrong| wrong.iter().any(|one| sized(&one.field))) {
        found.resize = is["spec"]["numa_cells"].as_u64().unwrap_or(0) == 0;
        if found.resize {
            SIZE.iter().for_each(|size| copy(&wanted, &mut is_now, size));
            verdict = judge::update(kind, &is_now, &wanted, names);
        }
    }
    let mut before = is.clone();
    let after = match verdict {
        Ok((shown, after)) => {
            // As the controller shows it now, which may be newer than the one that was asked; but with the present size.
            before = shown;
            if found.resize {
                SIZE.iter().for_each(|size| copy(is, &mut before, size));
            }
            held(&after, names, &mut found);
            if found.reasons.is_empty() { after } else { Json::Null }
        }
        Err(violations) => {
            for violation in violations {
                let path = violation.field.split_once('.').map_or("", |(_, path)| path);
                if is_unknown(desired, path) {
                    continue;
                }
                // Only a field of the spec is a reason to make a resource anew.
                let of_spec = path.starts_with("spec.");
                let into = if of_spec { &mut found.reasons } else { &mut found.unreadable };
                into.push(format!("{} {}", below(path), violation.message).trim().to_owned());
            }
            if found.reasons.is_empty() { before.clone() } else { Json::Null }
        }
    };
    if after.is_null() {
        differ(is, &wanted, Some(&wanted), desired, &mut found);
    } else {
        differ(&before, &after, None, desired, &mut found);
    }
    for path in &desired.says.unknown {
        found.differences.push(Difference {
            path: below(path).to_owned(),
            before: None,
            after: None,
            known_after_apply: true,
            sensitive: false,
            forces_replacement: false,
        });
    }
    found
}

/// What the block does not speak of stays as it is; but not when it is replaced itself.
fn held(after: &Json, names: &Names, found: &mut Compared) {
    for (path, value) in leaves(after) {
        if let Some(name) = value.as_str().and_then(|value| names.replaced(value)) {
            found.reasons.push(format!("{} is {name}, which is replaced", below(&path)));
        }
    }
}

fn copy(from: &Json, into: &mut Json, field: &str) {
    let Some(spec) = into["spec"].as_object_mut() else { return };
    match from["spec"].get(field) {
        Some(value) => spec.insert(field.to_owned(), value.clone()),
        None => spec.remove(field),
    };
}

/// Puts the volumes that were made in place of their templates, and compares these with them.
fn templates(desired: &Desired, wanted: &mut Json, is: &Json, live: &Live, found: &mut Compared) {
    let shown = is["spec"]["disks"].as_array().cloned().unwrap_or_default();
    for (number, disk) in
        wanted["spec"].get_mut("disks").and_then(Json::as_array_mut).into_iter().flatten().enumerate()
    {
        let Some(template) = disk.as_object_mut().and_then(|disk| disk.remove("create")) else { continue };
        let made = shown.get(number).and_then(|disk| disk["volume"].as_str());
        let Some(name) = made else {
            // The count or form of the disks differs, which the controller finds too.
            disk["create"] = template;
            continue;
        };
        disk["volume"] = Json::from(name);
        let place =
            Place { kind: "volume".to_owned(), agency: desired.place.agency.clone(), name: name.to_owned() };
        if let Some(volume) = live.get(&place) {
            template_of(number, &template, volume, &place, found);
        }
    }
}

fn template_of(number: usize, template: &Json, volume: &Json, place: &Place, found: &mut Compared) {
    let (path, spec) = (format!("disks[{number}].create"), &volume["spec"]);
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    // What is shown as an id has gone, and nothing can be said about it.
    let same = |wanted: &str, is: &str| {
        wanted == is || Uuid::parse_str(is).is_ok() || Uuid::parse_str(wanted).is_ok()
    };
    let mut differs = |field: &str, before: &Json, after: &Json, forces: bool| {
        found.differences.push(Difference {
            path: format!("{path}.{field}"),
            before: Some(before.clone()),
            after: Some(after.clone()),
            known_after_apply: false,
            sensitive: false,
            forces_replacement: forces,
        });
    };
    let mut reasons = Vec::new();
    if !same(&text(&template["image"]), &text(&spec["image"])) {
        differs("image", &spec["image"], &template["image"], true);
        reasons.push(format!("{path}.image is another one"));
    }
    let pool = template["pool"].as_str().unwrap_or(DEFAULT_POOL);
    if !same(pool, &text(&spec["pool"])) {
        differs("pool", &spec["pool"], &Json::from(pool), true);
        reasons.push(format!("{path}.pool is another one"));
    }
    let number_of = |json: &Json| json.as_u64().unwrap_or(0);
    let (size, has) = (number_of(&template["size_mib"]), number_of(&spec["size_mib"]));
    let mut change = Map::new();
    if size != 0 && size != has {
        differs("size_mib", &spec["size_mib"], &template["size_mib"], size < has);
        if size < has {
            reasons.push(format!("{path}.size_mib is smaller, and a volume can only grow"));
        } else {
            change.insert("size_mib".to_owned(), Json::from(size));
        }
    }
    let keep = |json: &Json| Json::from(json["keep_on_delete"].as_bool().unwrap_or(false));
    if keep(template) != keep(spec) {
        differs("keep_on_delete", &keep(spec), &keep(template), false);
        change.insert("keep_on_delete".to_owned(), keep(template));
    }
    found.reasons.extend(reasons);
    if !change.is_empty() {
        found.volumes.push(VolumeChange {
            agency: place.agency.clone(),
            name: place.name.clone(),
            revision: revision(volume),
            spec: change,
        });
    }
}

/// The fields that differ; with `only`, no others than those that it says.
fn differ(is: &Json, after: &Json, only: Option<&Json>, desired: &Desired, found: &mut Compared) {
    let (before, after) = (leaves(is), leaves(after));
    let only = only.map(leaves);
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for path in paths {
        let (old, new) = (before.get(path), after.get(path));
        if old == new || only.as_ref().is_some_and(|only| !only.contains_key(path)) {
            continue;
        }
        let shown = below(path);
        let sensitive = is_sensitive(desired, path);
        found.differences.push(Difference {
            path: shown.to_owned(),
            before: old.filter(|_| !sensitive).cloned(),
            after: new.filter(|_| !sensitive).cloned(),
            known_after_apply: false,
            sensitive,
            forces_replacement: found.reasons.iter().any(|reason| {
                let field = reason.split(' ').next().unwrap_or_default();
                !field.is_empty() && shown.starts_with(field)
            }),
        });
    }
}

/// Whether a path lies in something sensitive.
pub fn is_sensitive(desired: &Desired, path: &str) -> bool {
    desired.says.sensitive.iter().any(|secret| path.starts_with(secret.as_str()))
}

/// Whether a path is known only after apply, or something in it or around it.
pub fn is_unknown(desired: &Desired, path: &str) -> bool {
    let touches = |unknown: &String| path.starts_with(unknown.as_str()) || unknown.starts_with(path);
    !path.is_empty() && desired.says.unknown.iter().any(touches)
}

/// The revision that a resource was seen at.
pub fn revision(resource: &Json) -> u64 {
    let revision = &resource["metadata"]["revision"];
    revision.as_u64().or_else(|| revision.as_str()?.parse().ok()).unwrap_or(0)
}
