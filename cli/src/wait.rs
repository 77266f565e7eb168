//! Waiting for a change to have happened, by a watch: phases are narrated on stderr as they come, and the time is limited.
//! A state older than the change (from a controller that lags) is passed over. Nothing is changed here, so the wait may
//! be broken off at any time.

use anyhow::Result;
use tamdao_proto::v1::WatchEvent;

use crate::app::App;
use crate::args::WaitArgs;
use crate::problem::Problem;
use crate::progress::Spinner;
use crate::quantity::duration;
use crate::resource::Place;
use crate::view::{View, tone_of};
use crate::watch::Watch;

/// What a state means for who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not yet.
    Going,
    /// It is so.
    Reached,
    /// It will not come to that by itself.
    Lost,
}

/// What is waited for.
pub enum Goal<'a, R> {
    State(&'a dyn Fn(&R) -> Verdict),
    /// The resource is no more.
    Gone,
}

/// Waits until a resource, as just returned by a change, has come to its goal. Returns its last state.
///
/// # Errors
/// When it will not come to that, or is still going when the time is over.
pub async fn until<R: View>(app: &App, changed: R, wait: &WaitArgs, goal: Goal<'_, R>) -> Result<R> {
    let metadata = changed.metadata().clone().unwrap_or_default();
    // By id: a new resource may take the name of one that goes away.
    let name = if metadata.id.is_empty() { metadata.name.clone() } else { metadata.id.clone() };
    let place = Place { agency: metadata.agency.clone(), name };
    let mut narrator =
        Narrator { app, spinner: Spinner::new(&app.output), name: metadata.name.clone(), last: None };
    let mut last = changed;
    let going = follow(app, place, metadata.revision, &goal, &mut narrator, &mut last);
    match tokio::time::timeout(wait.timeout, going).await {
        Ok(ended) => ended?,
        Err(_) => {
            drop(narrator);
            let subject = last.place();
            let state = match goal {
                Goal::Gone => "not gone yet".to_owned(),
                Goal::State(_) => last.story(),
            };
            let time = duration(wait.timeout);
            let what = format!("still in progress after {time}: {}: {state}", metadata.name);
            let mut problem = Problem::in_progress(what);
            if R::KIND == "vm" {
                problem = problem.hint(format!("see `tamdao vm explain {subject}`"));
            }
            return Err(problem
                .hint(format!("see `tamdao {} get {subject}`, or wait longer with --timeout", R::noun()))
                .into());
        }
    }
    Ok(last)
}

async fn follow<R: View>(
    app: &App,
    place: Place,
    revision: u64,
    goal: &Goal<'_, R>,
    narrator: &mut Narrator<'_>,
    last: &mut R,
) -> Result<()> {
    if matches!(judge(goal, last), Verdict::Reached) {
        narrator.tell(last);
        return Ok(());
    }
    narrator.tell(last);
    let mut watch = Watch::<R>::new(app.client()?, place, "", String::new());
    let mut there = false;
    loop {
        let change = match watch.next().await {
            Err(problem) if problem.code == Some(tonic::Code::NotFound) && matches!(goal, Goal::Gone) => {
                narrator.gone();
                return Ok(());
            }
            change => change?,
        };
        match (change.event, change.resource) {
            (WatchEvent::Put, Some(resource)) => {
                there = true;
                if resource.metadata().as_ref().is_some_and(|metadata| metadata.revision < revision) {
                    continue;
                }
                *last = resource;
                narrator.tell(last);
                match judge(goal, last) {
                    Verdict::Going => {}
                    Verdict::Reached => return Ok(()),
                    Verdict::Lost => return Err(lost(last).into()),
                }
            }
            (WatchEvent::Deleted, _) => return ended(goal, narrator, last),
            // The present state has been told in full, and the resource is not in it.
            (WatchEvent::Bookmark, _) if !there => return ended(goal, narrator, last),
            _ => {}
        }
    }
}

/// The resource is no more.
fn ended<R: View>(goal: &Goal<'_, R>, narrator: &Narrator<'_>, last: &R) -> Result<()> {
    match goal {
        Goal::Gone => {
            narrator.gone();
            Ok(())
        }
        Goal::State(_) => {
            Err(Problem::failed(format!("{} was deleted by somebody else in the meantime", last.name()))
                .into())
        }
    }
}

fn judge<R>(goal: &Goal<'_, R>, resource: &R) -> Verdict {
    match goal {
        Goal::State(judge) => judge(resource),
        Goal::Gone => Verdict::Going,
    }
}

fn lost<R: View>(resource: &R) -> Problem {
    let place = resource.place();
    let mut problem = Problem::failed(format!("{} is {}", resource.name(), resource.story()));
    for condition in resource.conditions() {
        if condition.status() == tamdao_proto::v1::ConditionStatus::False
            && !condition.message.is_empty()
            && !problem.what.contains(&condition.message)
        {
            problem = problem.detail(format!("{}: {}", condition.r#type, condition.message));
        }
    }
    match R::KIND {
        "vm" => problem.hint(format!("see `tamdao vm explain {place}` and `tamdao vm log {place}`")),
        kind => problem.hint(format!("see `tamdao {kind} get {place}`")),
    }
}

/// Says each new state once.
struct Narrator<'a> {
    app: &'a App,
    spinner: Spinner,
    name: String,
    last: Option<String>,
}

impl Narrator<'_> {
    fn tell<R: View>(&mut self, resource: &R) {
        let story = resource.story();
        if story.is_empty() || self.last.as_ref() == Some(&story) {
            return;
        }
        let phase = resource.phase();
        let coloured = match story.strip_prefix(&phase) {
            Some(rest) => format!("{}{rest}", self.app.output.toned(&phase, tone_of(&phase))),
            None => story.clone(),
        };
        self.spinner.line(&format!("{}: {coloured}", self.name));
        self.spinner.waiting(format!("{}: {story}", self.name));
        self.last = Some(story);
    }

    fn gone(&self) {
        self.spinner.line(&format!("{}: gone", self.name));
    }
}
