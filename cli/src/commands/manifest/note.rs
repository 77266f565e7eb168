//! Tells the cloud what an apply has come to, so that it can say later what has become of it: what each resource is like
//! now, which ones failed and why, which are gone. What cannot be noted is a warning; what was applied stays applied.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use tamdao_manifests::{Action, Change, Live, Place, Plan, What};
use tamdao_model::{applied, limits};
use tamdao_proto::v1::{
    AppliedResource, ListStackResourcesRequest, ListStackResourcesResponse, RecordApplyRequest,
    RecordApplyResponse, StackResource, StackState,
};
use tonic::Code;

use crate::app::App;
use crate::problem::Problem;

/// Notes of one request, bytes: well below what a controller takes.
const BATCH_BYTES: usize = 128 * 1024;
const PAGE: u32 = 1_000;

/// What was carried out, by the numbers of the changes.
#[derive(Default)]
pub struct Outcomes {
    done: BTreeSet<usize>,
    failed: BTreeMap<usize, String>,
}

impl Outcomes {
    /// A step came to its end. What is made anew is done when it is made again.
    pub fn done(&mut self, what: What) {
        match what {
            What::Make(change) | What::Update(change) | What::Delete(change) => {
                self.done.insert(change);
            }
            What::Block => {}
        }
    }

    pub fn failed(&mut self, what: What, problem: &Problem) {
        match what {
            What::Make(change) | What::Update(change) | What::Delete(change) => {
                self.failed.insert(change, problem.what.clone());
            }
            What::Block => {}
        }
    }
}

/// Notes what was done, and what is as it should be and was not noted yet; `whole` when the plan came to its end.
pub async fn note(app: &App, plan: &Plan, live: &Live, outcomes: &Outcomes, whole: bool) {
    if let Err(problem) = noted(app, plan, live, outcomes, whole).await {
        let hint = "`tamdao stack list` does not know of it before the next apply";
        app.output.warning(&format!("what was applied could not be noted: {}; {hint}", problem.what));
    }
}

async fn noted(app: &App, plan: &Plan, live: &Live, outcomes: &Outcomes, whole: bool) -> Result<(), Problem> {
    let known = match listed(app, &plan.stack).await {
        // A cloud that is older than this, or one whose stacks are not for the caller to see.
        Err(problem) if matches!(problem.code, Some(Code::Unimplemented | Code::PermissionDenied)) => {
            return Ok(());
        }
        known => known?,
    };
    let known: BTreeMap<Place, StackResource> = known.into_iter().map(|one| (place_of(&one), one)).collect();
    let mut notes = Vec::new();
    for (number, change) in plan.changes.iter().enumerate() {
        notes.extend(of_change(change, number, live.get(&change.place()), outcomes, &known));
    }
    if whole {
        let wanted = plan.changes.iter().filter(|change| change.action != Action::Destroy);
        let wanted: BTreeSet<Place> = wanted.map(Change::place).collect();
        notes.extend(known.keys().filter(|place| !wanted.contains(*place)).map(forget));
    }
    for batch in batches(notes) {
        let request = RecordApplyRequest { name: plan.stack.clone(), resources: batch };
        let _: RecordApplyResponse = app.client().map_err(crate::problem::problem_of)?.ask(request).await?;
    }
    Ok(())
}

/// What is to be noted of one change; nothing where that is known, or nothing was done.
fn of_change(
    change: &Change,
    number: usize,
    is: Option<&Json>,
    outcomes: &Outcomes,
    known: &BTreeMap<Place, StackResource>,
) -> Option<AppliedResource> {
    let place = change.place();
    if let Some(error) = outcomes.failed.get(&number) {
        return Some(AppliedResource { error: error.clone(), ..named(&place) });
    }
    let done = outcomes.done.contains(&number);
    match (change.action, is) {
        (Action::Destroy, _) => done.then(|| forget(&place)),
        (Action::Create | Action::Update | Action::Replace, Some(is)) if done => {
            Some(as_it_is(change, &place, is))
        }
        (Action::Nothing, Some(is)) => {
            let same = known.get(&place).is_some_and(|one| {
                let ignored: BTreeSet<&String> = one.ignored.iter().collect();
                one.state() == StackState::InSync && ignored == change.ignored.iter().collect()
            });
            (!same).then(|| as_it_is(change, &place, is))
        }
        _ => None,
    }
}

fn as_it_is(change: &Change, place: &Place, is: &Json) -> AppliedResource {
    let metadata = &is["metadata"];
    let revision = &metadata["revision"];
    AppliedResource {
        id: metadata["id"].as_str().unwrap_or_default().to_owned(),
        revision: revision.as_u64().or_else(|| revision.as_str()?.parse().ok()).unwrap_or(0),
        fields: applied::fields(is, &change.ignored.iter().cloned().collect()),
        ignored: change.ignored.clone(),
        ..named(place)
    }
}

fn forget(place: &Place) -> AppliedResource {
    AppliedResource { forget: true, ..named(place) }
}

fn named(place: &Place) -> AppliedResource {
    let Place { kind, agency, name } = place.clone();
    AppliedResource { kind, agency, name, ..Default::default() }
}

pub fn place_of(one: &StackResource) -> Place {
    Place { kind: one.kind.clone(), agency: one.agency.clone(), name: one.name.clone() }
}

/// As many at once as one request takes.
fn batches(notes: Vec<AppliedResource>) -> Vec<Vec<AppliedResource>> {
    let (mut batches, mut bytes): (Vec<Vec<AppliedResource>>, usize) = (Vec::new(), 0);
    for note in notes {
        let size = note.fields.iter().map(|(path, value)| path.len() + value.len() + 8).sum::<usize>() + 256;
        bytes += size;
        match batches.last_mut() {
            Some(last) if last.len() < limits::APPLIED_AT_ONCE && bytes <= BATCH_BYTES => last.push(note),
            _ => {
                bytes = size;
                batches.push(vec![note]);
            }
        }
    }
    batches
}

/// What stacks have applied, of one or of all for an empty name.
pub async fn listed(app: &App, stack: &str) -> Result<Vec<StackResource>, Problem> {
    let client = app.client().map_err(crate::problem::problem_of)?;
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListStackResourcesRequest {
            stack: stack.to_owned(),
            page_size: PAGE,
            page_token: token,
            ..Default::default()
        };
        let page: ListStackResourcesResponse = client.ask(request).await?;
        all.extend(page.stack_resources);
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_fits_the_requests() {
        let note = |bytes: usize| AppliedResource {
            fields: [("a".to_owned(), "x".repeat(bytes))].into(),
            ..Default::default()
        };
        let sizes = |notes| batches(notes).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![note(10); 130]), [60, 60, 10]);
        assert_eq!(sizes(vec![note(60 * 1024); 5]), [2, 2, 1]);
        assert_eq!(sizes(Vec::new()), Vec::<usize>::new());
    }
}
