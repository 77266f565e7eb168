//! Manifests as users write them, against a cloud that is a map: what a plan asks for is done to the map as the
//! controller would do it.

mod documents;
mod examples;
mod exports;
mod faults;
mod forms;
mod fuzz;
mod plans;
mod properties;

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use uuid::Uuid;

use crate::compare::leaves;
use crate::judge::{self, Names};
use crate::plan::{Action, Change};
use crate::{File, Inputs, Live, Manifest, Place, Plan, STACK, Wish};

/// A manifest of one file, or of several as `name: text`.
pub fn manifest(text: &str) -> Manifest {
    read(&[("main.tf", text)]).unwrap_or_else(|told| panic!("{told}"))
}

/// Reads files; those of modules have names with a directory.
pub fn read(files: &[(&str, &str)]) -> Result<Manifest, String> {
    let mut load = |dir: &str| {
        let inside = files.iter().filter(|(name, _)| name.rsplit_once('/').map_or("", |(dir, _)| dir) == dir);
        let found: Vec<File> =
            inside.map(|(name, text)| File { name: (*name).to_owned(), text: (*text).to_owned() }).collect();
        if found.is_empty() { Err(format!("there is no directory {dir}")) } else { Ok(found) }
    };
    Manifest::read(&mut load).map_err(|faulty| crate::tell(&faulty.files, &faulty.faults))
}

pub fn inputs(live: &Live) -> Inputs<'_> {
    Inputs {
        given: BTreeMap::new(),
        agency: "health",
        live,
        read: &|path| Err(format!("there is no file {path}")),
    }
}

/// The plan, or the faults as they are told.
pub fn planned(manifest: &Manifest, live: &Live, wish: &Wish) -> Result<Plan, String> {
    crate::plan(manifest, &inputs(live), wish).map_err(|faults| crate::tell(&manifest.files, &faults))
}

pub fn plan(text: &str, live: &Live) -> Plan {
    planned(&manifest(text), live, &Wish::default()).unwrap_or_else(|told| panic!("{told}"))
}

/// What was made of a text: the faults of its files, of its evaluation or of its plan.
pub fn faults(text: &str) -> String {
    match read(&[("main.tf", text)]) {
        Err(told) => told,
        Ok(manifest) => match crate::validate(&manifest, &inputs(&Live::new())) {
            Err(faults) => crate::tell(&manifest.files, &faults),
            Ok(_) => "nothing is wrong\n".to_owned(),
        },
    }
}

/// Applies a plan to a map in the order of its steps.
pub fn apply(plan: &Plan, live: &mut Live) {
    let steps = crate::steps(plan).expect("the steps have an order");
    let mut done = vec![false; steps.len()];
    while let Some(next) = (0..steps.len()).find(|at| !done[*at] && steps[*at].after.iter().all(|b| done[*b]))
    {
        done[next] = true;
        match steps[next].what {
            crate::What::Block => {}
            crate::What::Delete(number) => delete(&plan.changes[number], live),
            crate::What::Make(number) => make(&plan.changes[number], live),
            crate::What::Update(number) => update(&plan.changes[number], live),
        }
    }
    assert!(done.iter().all(|done| *done), "some step was never ready");
}

fn delete(change: &Change, live: &mut Live) {
    let place = change.place();
    // Nobody may use it any more.
    for (other, resource) in live.iter() {
        let kind_refers = ["vm", "volume"].contains(&other.kind.as_str()) && other.kind != place.kind;
        let uses = leaves(resource).into_iter().any(|(path, value)| {
            path.split(['.', '[']).any(|part| part == place.kind || part == format!("{}s", place.kind))
                && value == place.name.as_str()
        });
        assert!(!(kind_refers && uses), "{place} is deleted while {other} uses it");
    }
    live.remove(&place).expect("it was there");
    if place.kind == "vm" {
        let own =
            |volume: &Place| volume.kind == "volume" && volume.name.starts_with(&format!("{}-", place.name));
        live.retain(|other, volume| !own(other) || volume["spec"]["keep_on_delete"] == true);
    }
}

fn make(change: &Change, live: &mut Live) {
    let (place, wanted) = (change.place(), change.wanted.clone().expect("what is made is wanted"));
    assert!(!live.contains_key(&place), "{place} is made twice");
    let mut made = judge::create(&place.kind, &wanted, &Names::default()).expect("the controller takes it");
    made["metadata"]["labels"] = wanted["metadata"]["labels"].clone();
    stamp(&mut made, live.len());
    if place.kind == "vm" {
        made["spec"]["disks"] = json!([]);
        for (at, disk) in wanted["spec"]["disks"].as_array().into_iter().flatten().enumerate() {
            let mut shown = disk.clone();
            if let Some(template) = shown.as_object_mut().and_then(|disk| disk.remove("create")) {
                let volume = format!("{}-{at}", place.name);
                shown["volume"] = json!(volume);
                let pool = template["pool"].as_str().unwrap_or("default").to_owned();
                let mut spec = template;
                spec["pool"] = json!(pool);
                let mut volume_of =
                    json!({"metadata": {"name": volume, "agency": place.agency}, "spec": spec});
                stamp(&mut volume_of, live.len() + 1_000);
                live.insert(
                    Place { kind: "volume".into(), agency: place.agency.clone(), name: volume },
                    volume_of,
                );
            }
            if shown.get("kind").is_none() {
                shown["kind"] = json!("DISK_KIND_DISK");
            }
            made["spec"]["disks"].as_array_mut().expect("a list").push(shown);
        }
        made["spec"]["interfaces"] = wanted["spec"].get("interfaces").cloned().unwrap_or(json!([]));
        for (at, interface) in
            made["spec"].get_mut("interfaces").and_then(Json::as_array_mut).into_iter().flatten().enumerate()
        {
            if interface.get("mac").is_none() {
                interface["mac"] = json!(format!("52:54:00:00:00:{at:02x}"));
            }
        }
        made["status"] = json!({"phase": "VM_PHASE_RUNNING", "node": "n1", "vcpus": 1, "memory_mib": 512});
    }
    live.insert(place, made);
}

fn update(change: &Change, live: &mut Live) {
    let (place, wanted) = (change.place(), change.wanted.clone().expect("what is changed is wanted"));
    for volume in &change.volumes {
        let at = Place { kind: "volume".into(), agency: volume.agency.clone(), name: volume.name.clone() };
        let is = live.get_mut(&at).expect("the volume is there");
        for (field, value) in &volume.spec {
            is["spec"][field] = value.clone();
        }
    }
    let mut is = live[&place].clone();
    if change.resize {
        for field in ["flavor", "vcpus", "memory_mib"] {
            is["spec"][field] = wanted["spec"].get(field).cloned().unwrap_or(Json::Null);
        }
        is["spec"].as_object_mut().expect("a spec").retain(|_, value| !value.is_null());
    }
    let mut asked = wanted.clone();
    let shown = is["spec"]["disks"].clone();
    for (at, disk) in
        asked["spec"].get_mut("disks").and_then(Json::as_array_mut).into_iter().flatten().enumerate()
    {
        if disk.get("create").is_some() {
            *disk = shown[at].clone();
        }
    }
    let mut after =
        judge::update(&place.kind, &is, &asked, &Names::default()).expect("the controller takes it").1;
    if let Some(status) = is.get("status") {
        after["status"] = status.clone();
    }
    stamp(&mut after, live.len() + 5_000);
    after["metadata"]["id"] = is["metadata"]["id"].clone();
    live.insert(place, after);
}

fn stamp(resource: &mut Json, number: usize) {
    resource["metadata"]["id"] = json!(Uuid::from_u128(0xabc0_0000 + number as u128).to_string());
    resource["metadata"]["revision"] = json!(number.to_string());
}

/// A resource that nobody's stack has made.
pub fn stray(live: &mut Live, kind: &str, name: &str, stack: Option<&str>) {
    for resource in
        live.iter_mut().filter(|(place, _)| place.kind == kind && place.name == name).map(|(_, r)| r)
    {
        let labels = resource["metadata"]["labels"].as_object_mut().expect("labels");
        labels.remove(STACK);
        labels.extend(stack.map(|stack| (STACK.to_owned(), json!(stack))));
    }
}

/// What is done with each address.
pub fn actions(plan: &Plan) -> Vec<(String, Action)> {
    plan.changes.iter().map(|change| (change.address.clone(), change.action)).collect()
}
