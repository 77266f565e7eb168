//! A plan as steps, each with those that must be done before it: what is made waits for what it refers to, what is
//! deleted waits for those that used it to be gone or changed. Whoever carries them out may do all at once that waits for
//! nothing.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::plan::{Action, Plan};
use crate::source::Fault;

/// Kinds in the order in which they can refer to one another: to those before them. Agencies have parents besides.
pub const ORDER: [&str; 9] =
    ["agency", "role_binding", "pool", "flavor", "network", "image", "placement_group", "volume", "vm"];

/// What a step does with one change of the plan, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Make(usize),
    Update(usize),
    Delete(usize),
    /// Nothing: all of one block is done.
    Block,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub what: What,
    /// The numbers of the steps before it.
    pub after: Vec<usize>,
}

/// The steps of a plan.
///
/// # Errors
/// When some would have to wait for one another.
pub fn steps(plan: &Plan) -> Result<Vec<Step>, Fault> {
    let mut steps: Vec<Step> = Vec::new();
    let mut push = |what, after| {
        steps.push(Step { what, after });
        steps.len() - 1
    };
    // One step for each block, so that many instances that wait for many need no edge for each pair.
    let mut blocks: BTreeMap<&str, usize> = BTreeMap::new();
    for change in plan.changes.iter().filter(|change| !change.block.is_empty()) {
        blocks.entry(&change.block).or_insert_with(|| push(What::Block, Vec::new()));
    }
    let (mut done, mut deletes, mut updates) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let (mut makes, late) = (BTreeMap::new(), tightened(plan));
    for (number, change) in plan.changes.iter().enumerate() {
        let mut after: Vec<usize> =
            change.waits.iter().filter_map(|block| blocks.get(block.as_str()).copied()).collect();
        let last = match change.action {
            Action::Nothing => None,
            Action::Create => {
                let step = push(What::Make(number), after.clone());
                makes.insert(number, step);
                Some(step)
            }
            Action::Update => {
                let step = push(What::Update(number), after.clone());
                updates.insert(number, step);
                // Who refers to an agency that comes after its children cannot wait for it.
                (!late.contains_key(&number)).then_some(step)
            }
            Action::Replace => {
                let delete = push(What::Delete(number), Vec::new());
                deletes.insert(number, delete);
                after.push(delete);
                Some(push(What::Make(number), after.clone()))
            }
            Action::Destroy => {
                deletes.insert(number, push(What::Delete(number), Vec::new()));
                None
            }
        };
        if let Some(block) = blocks.get(change.block.as_str()) {
            done.push((*block, last, after));
        }
    }
    for (block, last, after) in done {
        match last {
            Some(step) => steps[block].after.push(step),
            None => steps[block].after.extend(after),
        }
    }
    for (parent, children) in tightened(plan) {
        let Some(step) = updates.get(&parent).copied() else { continue };
        let theirs =
            children.iter().flat_map(|child| [deletes.get(child), updates.get(child), makes.get(child)]);
        steps[step].after.extend(theirs.flatten().copied());
    }
    for (deleted, users) in used(plan) {
        let Some(step) = deletes.get(&deleted) else { continue };
        for user in users {
            let gone = deletes.get(&user).copied();
            // What is changed in place while this goes does not use it any more afterwards.
            let changed = updates.get(&user).copied();
            steps[*step].after.extend(gone.or(changed));
        }
    }
    acyclic(&steps).then_some(steps).ok_or_else(|| {
        Fault::nowhere("some of these changes wait for one another")
            .hint("apply them in two parts, one without the other")
    })
}

/// By the number of an agency whose quota is only tightened, the numbers of its children: what is cut out of the quota
/// must be smaller before the quota can be. One that is loosened comes before its children, as all that they refer to.
fn tightened(plan: &Plan) -> BTreeMap<usize, Vec<usize>> {
    let agencies = || plan.changes.iter().enumerate().filter(|(_, change)| change.place.kind == "agency");
    let mut children: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, change) in agencies() {
        for parent in [&change.is, &change.wanted].into_iter().flatten() {
            if let Some(parent) = parent["spec"]["parent"].as_str() {
                children.entry(parent).or_default().push(number);
            }
        }
    }
    let late = agencies().filter(|(_, change)| {
        let (Some(is), Some(wanted)) = (&change.is, &change.wanted) else { return false };
        let measures = |json: &Json| json["spec"]["quota"].as_object().cloned().unwrap_or_default();
        let (before, after) = (measures(is), measures(wanted));
        // What is not named is not limited.
        let limit =
            |measure: Option<&Json>| measure.map_or(u64::MAX, |most| amount(most).unwrap_or(u64::MAX));
        let mut measures =
            before.keys().chain(after.keys()).map(|word| (limit(before.get(word)), limit(after.get(word))));
        let tighter = measures.clone().any(|(before, after)| after < before);
        tighter && !measures.any(|(before, after)| after > before)
    });
    late.map(|(number, change)| (number, children.remove(change.place.name.as_str()).unwrap_or_default()))
        .collect()
}

/// A 64-bit number of the contract's JSON, which may be a string.
fn amount(json: &Json) -> Option<u64> {
    json.as_u64().or_else(|| json.as_str()?.parse().ok())
}

/// By the number of a change that deletes, those that use it as it is now.
fn used(plan: &Plan) -> BTreeMap<usize, Vec<usize>> {
    let mut named: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, change) in plan.changes.iter().enumerate() {
        if matches!(change.action, Action::Destroy | Action::Replace) {
            named.entry(&change.place.name).or_default().push(number);
        }
    }
    let rank = |number: usize| ORDER.iter().position(|kind| *kind == plan.changes[number].place.kind);
    let mut used: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (user, change) in plan.changes.iter().enumerate() {
        let mut words = Vec::new();
        if let Some(is) = &change.is {
            texts(&is["spec"], &mut words);
            texts(&is["metadata"]["agency"], &mut words);
        }
        for thing in words.into_iter().filter_map(|word| named.get(word)).flatten() {
            let agencies = rank(*thing) == Some(0) && rank(user) == Some(0);
            if *thing != user && (rank(*thing) < rank(user) || agencies) {
                used.entry(*thing).or_default().push(user);
            }
        }
    }
    used
}

fn texts<'a>(json: &'a Json, into: &mut Vec<&'a str>) {
    match json {
        Json::String(text) => into.push(text),
        Json::Array(list) => list.iter().for_each(|item| texts(item, into)),
        Json::Object(map) => map.values().for_each(|item| texts(item, into)),
        _ => {}
    }
}

fn acyclic(steps: &[Step]) -> bool {
    let mut missing: Vec<usize> = steps.iter().map(|step| step.after.len()).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
    for (number, step) in steps.iter().enumerate() {
        step.after.iter().for_each(|before| users[*before].push(number));
    }
    let mut ready: Vec<usize> = (0..steps.len()).filter(|number| missing[*number] == 0).collect();
    let mut done = 0;
    while let Some(number) = ready.pop() {
        done += 1;
        for user in &users[number] {
            missing[*user] -= 1;
            if missing[*user] == 0 {
                ready.push(*user);
            }
        }
    }
    done == steps.len()
}
