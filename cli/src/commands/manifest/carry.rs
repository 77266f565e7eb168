//! Carrying a plan out: each step as soon as those before it are done, so many at once. The first error or Ctrl-C begins
//! nothing more, lets what has begun come to its end, and says what was done; the same command goes on from there. Every
//! change is made of what the plan saw: it carries a revision, and where only what the cloud itself writes has moved on
//! since (a status, often by an earlier step of the same plan), the newer one.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tamdao_manifests::{Change, Live, Place, Plan, STACK, Step, What};
use tamdao_proto::v1::{ResizeVmRequest, Vm, Volume, WatchEvent};
use tokio::sync::Mutex;
use tonic::Code;

use super::Work;
use super::live::{at, each_kind};
use super::note;
use crate::app::App;
use crate::args::CarryArgs;
use crate::client::request_id;
use crate::problem::{Problem, problem_of};
use crate::progress::Spinner;
use crate::quantity::duration;
use crate::resource::{Editable, Makeable, Place as At, Resource};
use crate::watch::Watch;

/// How often a change is tried while the cloud writes of the same resource.
const TRIES: usize = 8;

/// Carries a plan out; the cloud as it is then.
pub async fn out(
    app: &App,
    work: &Work,
    plan: &Plan,
    steps: Vec<Step>,
    live: Live,
    args: &CarryArgs,
) -> Result<Live> {
    let carrier = Carrier { app, work, plan, args, live: Mutex::new(live) };
    let mut outcomes = note::Outcomes::default();
    let mut spinner = Spinner::new(&app.output);
    let (mut missing, mut users): (Vec<usize>, Vec<Vec<usize>>) =
        (steps.iter().map(|step| step.after.len()).collect(), vec![Vec::new(); steps.len()]);
    for (number, step) in steps.iter().enumerate() {
        step.after.iter().for_each(|before| users[*before].push(number));
    }
    let mut ready: BTreeSet<usize> = (0..steps.len()).filter(|number| missing[*number] == 0).collect();
    let (mut running, mut failed, mut stopped, mut told) = (FuturesUnordered::new(), None, false, 0);
    let all = steps.iter().filter(|step| step.what != What::Block).count();
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        while running.len() < usize::from(args.parallelism) && failed.is_none() && !stopped {
            let Some(number) = ready.pop_first() else { break };
            running.push(carrier.step(number, steps[number].what));
        }
        spinner.waiting(format!("{told} of {all} done, {} under way", running.len()));
        tokio::select! {
            ended = running.next() => match ended {
                None => break,
                Some((number, Ok(line))) => {
                    outcomes.done(steps[number].what);
                    if let Some(line) = line {
                        told += 1;
                        spinner.line(&line);
                    }
                    for user in &users[number] {
                        missing[*user] -= 1;
                        if missing[*user] == 0 {
                            ready.insert(*user);
                        }
                    }
                }
                // The first one is told as the command's error, further ones as they come.
                Some((number, Err(problem))) => {
                    outcomes.failed(steps[number].what, &problem);
                    match &failed {
                        None => failed = Some(problem),
                        Some(_) => app.output.problem(&problem),
                    }
                }
            },
            _ = &mut interrupt, if !stopped => {
                stopped = true;
                spinner.line("stopping: nothing more is begun, what has begun comes to its end");
            }
        }
    }
    drop(spinner);
    drop(running);
    let failed =
        failed.or_else(|| (stopped && told < all).then(|| Problem::failed("stopped before the end")));
    let live = carrier.live.into_inner();
    note::note(app, plan, &live, &outcomes, failed.is_none()).await;
    match failed {
        Some(problem) => {
            let problem =
                problem.detail(format!("{told} of {all} steps are done; the others were not begun"));
            Err(problem.hint("run the same command again to go on from there").into())
        }
        None => Ok(live),
    }
}

struct Carrier<'a> {
    app: &'a App,
    work: &'a Work,
    plan: &'a Plan,
    args: &'a CarryArgs,
    live: Mutex<Live>,
}

impl Carrier<'_> {
    /// Does one step; what is told about it.
    async fn step(&self, number: usize, what: What) -> (usize, Result<Option<String>, Problem>) {
        let began = Instant::now();
        let (change, word) = match what {
            What::Block => return (number, Ok(None)),
            What::Make(change) => (change, "made"),
            What::Update(change) => (change, "changed"),
            What::Delete(change) => (change, "destroyed"),
        };
        let change = &self.plan.changes[change];
        let done = async {
            match what {
                What::Make(_) => each_kind!(change.place.kind.as_str(), R => self.make::<R>(change).await),
                What::Update(_) => {
                    each_kind!(change.place.kind.as_str(), R => self.update::<R>(change).await)
                }
                What::Delete(_) => {
                    each_kind!(change.place.kind.as_str(), R => self.delete::<R>(change).await)
                }
                What::Block => Ok(()),
            }
        };
        let done: Result<()> = match tokio::time::timeout(self.args.timeout, done).await {
            Ok(done) => done,
            Err(_) => {
                let time = duration(self.args.timeout);
                let mut problem =
                    Problem::in_progress(format!("{}: not {word} after {time}", change.address));
                if change.place.kind == "vm" {
                    problem = problem.hint(format!("see `tamdao vm explain {}`", at(&change.place())));
                }
                Err(problem.into())
            }
        };
        let told = |()| Some(format!("{}: {word} ({})", change.address, duration(began.elapsed())));
        (number, done.map(told).map_err(|error| self.problem(change, error)))
    }

    fn problem(&self, change: &Change, error: anyhow::Error) -> Problem {
        let problem = problem_of(error).about(&change.address);
        match problem.code {
            Some(Code::Aborted) => {
                let mut problem = problem.detail("it was changed by somebody else after the plan was made");
                problem.hints.clear();
                problem.hint("run the command again: the plan is then made for the cloud as it is")
            }
            _ => problem,
        }
    }

    /// What is sent: with what was not known when the plan was made, and is now.
    async fn wanted(&self, change: &Change) -> Result<Json> {
        if !change.unknown {
            return Ok(change.wanted.clone().unwrap_or_default());
        }
        let live = self.live.lock().await.clone();
        let expanded =
            self.work.with(&live, |inputs| tamdao_manifests::expand(&self.work.manifest, inputs))?;
        let found = expanded.resources.into_iter().find(|desired| desired.address == change.address);
        let desired = found.ok_or_else(|| Problem::failed("the manifest does not have it any more"))?;
        if let Some(path) = desired.says.unknown.first() {
            return Err(Problem::failed(format!("{path} is still not known")).into());
        }
        let mut wanted = Json::Object(desired.says.json);
        wanted["metadata"]["labels"][STACK] = Json::from(self.plan.stack.as_str());
        Ok(wanted)
    }

    async fn make<R: Makeable>(&self, change: &Change) -> Result<()> {
        let value: R = message(self.wanted(change).await?)?;
        let made = R::create(self.app.client()?, &change.place.agency, value, false).await?;
        let made = self.settled(made).await?;
        self.note(change.place(), &made).await
    }

    async fn update<R: Editable>(&self, change: &Change) -> Result<()> {
        let wanted = self.wanted(change).await?;
        for volume in &change.volumes {
            let place = At { agency: volume.agency.clone(), name: volume.name.clone() };
            let paths = volume.spec.keys().map(|key| format!("spec.{key}")).collect();
            let (client, paths): (_, Vec<String>) = (self.app.client()?, paths);
            let seen = self
                .seen(&Place {
                    kind: "volume".into(),
                    agency: place.agency.clone(),
                    name: place.name.clone(),
                })
                .await;
            self.bound::<Volume, _>(&place, seen, volume.revision, async |revision| {
                let value = message(json!({"metadata": {"revision": revision}, "spec": volume.spec}))?;
                Ok(Volume::update(client, &place, value, paths.clone(), false).await?)
            })
            .await?;
        }
        let mut revision = change.revision;
        if change.resize {
            let resized = self.resize(change, &wanted).await?;
            revision = resized.metadata.as_ref().map_or(0, |metadata| metadata.revision);
            self.note(change.place(), &resized).await?;
        }
        let (client, place) = (self.app.client()?, at(&change.place()));
        let seen = self.seen(&change.place()).await;
        let changed = self.bound::<R, _>(&place, seen, revision, async |revision| {
            let mut wanted = wanted.clone();
            wanted["metadata"]["revision"] = Json::from(revision);
            Ok(R::update(client, &place, message::<R>(wanted)?, Vec::new(), false).await?)
        });
        let changed = changed.await?;
        self.note(change.place(), &changed).await
    }

    /// What people have written of a resource, as the plan or an earlier step saw it.
    async fn seen(&self, place: &Place) -> Option<Written> {
        self.live.lock().await.get(place).map(written)
    }

    /// Does something of a resource at a revision, and again at a newer one while nobody has written anything else.
    async fn bound<R: Resource, T>(
        &self,
        place: &At,
        seen: Option<Written>,
        mut revision: u64,
        act: impl AsyncFn(u64) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..TRIES {
            let problem = match act(revision).await {
                Err(error) => problem_of(error),
                done => return done,
            };
            if problem.code != Some(Code::Aborted) || seen.is_none() {
                return Err(problem.into());
            }
            let now = R::fetch(self.app.client()?, place).await?;
            if Some(written(&serde_json::to_value(&now)?)) != seen {
                return Err(problem.into());
            }
            revision = now.metadata().as_ref().map_or(0, |metadata| metadata.revision);
        }
        act(revision).await
    }

    async fn resize(&self, change: &Change, wanted: &Json) -> Result<Vm> {
        let spec = &wanted["spec"];
        let number = |field: &str| u32::try_from(spec[field].as_u64().unwrap_or(0)).unwrap_or(u32::MAX);
        let request = |revision| ResizeVmRequest {
            agency: change.place.agency.clone(),
            name: change.place.name.clone(),
            request_id: request_id(),
            validate_only: false,
            flavor: spec["flavor"].as_str().unwrap_or_default().to_owned(),
            vcpus: number("vcpus"),
            memory_mib: number("memory_mib"),
            revision,
        };
        let (client, place) = (self.app.client()?, at(&change.place()));
        let seen = self.seen(&change.place()).await;
        let ask = async |revision| Ok(client.ask(request(revision)).await?);
        self.bound::<Vm, _>(&place, seen, change.revision, ask).await
    }

    async fn delete<R: Editable>(&self, change: &Change) -> Result<()> {
        let (client, place) = (self.app.client()?, at(&change.place()));
        let seen = self.seen(&change.place()).await;
        let delete = async |revision| Ok(R::delete(client, &place, false, revision, false).await?);
        let last = match self.bound::<R, _>(&place, seen, change.revision, delete).await.map_err(problem_of) {
            // Somebody else was faster, or an earlier run has done it.
            Err(problem) if problem.code == Some(Code::NotFound) => return self.forget(change).await,
            last => last?,
        };
        if last.phase() == "Deleting" {
            self.gone::<R>(&last).await?;
        }
        self.forget(change).await
    }

    async fn forget(&self, change: &Change) -> Result<()> {
        self.live.lock().await.remove(&change.place());
        Ok(())
    }

    async fn note<R: Resource>(&self, place: Place, resource: &R) -> Result<()> {
        self.live.lock().await.insert(place, serde_json::to_value(resource)?);
        Ok(())
    }

    /// Waits until what was made can be used by those that wait for it.
    async fn settled<R: Resource>(&self, made: R) -> Result<R> {
        let goals: &[&str] = match R::KIND {
            "vm" => &["Running", "Stopped"],
            "image" if !fetches(&made)? => return Ok(made),
            "image" => &["Available"],
            _ => return Ok(made),
        };
        let mut watch = Watch::<R>::new(self.app.client()?, by_id(&made), "", String::new());
        loop {
            let change = watch.next().await?;
            let Some(resource) = change.resource else { continue };
            let phase = resource.phase();
            if change.event == WatchEvent::Deleted {
                return Err(Problem::failed("it was deleted by somebody else in the meantime").into());
            }
            if goals.contains(&phase.as_str()) {
                return Ok(resource);
            }
            if phase == "Failed" {
                let said = resource
                    .conditions()
                    .iter()
                    .map(|one| one.message.clone())
                    .filter(|text| !text.is_empty());
                return Err(said.fold(Problem::failed("it has failed"), Problem::detail).into());
            }
        }
    }

    async fn gone<R: Resource>(&self, last: &R) -> Result<()> {
        let mut watch = Watch::<R>::new(self.app.client()?, by_id(last), "", String::new());
        let mut there = false;
        loop {
            let change = match watch.next().await {
                Err(problem) if problem.code == Some(Code::NotFound) => return Ok(()),
                change => change?,
            };
            match change.event {
                WatchEvent::Put => there = true,
                WatchEvent::Deleted => return Ok(()),
                // The present state has been told in full, and it is not in it.
                WatchEvent::Bookmark if !there => return Ok(()),
                WatchEvent::Bookmark | WatchEvent::Unspecified => {}
            }
        }
    }
}

/// Who a resource is, and what people have written of it: its generation stands for the spec.
#[derive(PartialEq)]
struct Written([Json; 4]);

fn written(resource: &Json) -> Written {
    Written(["id", "generation", "display_name", "labels"].map(|key| resource["metadata"][key].clone()))
}

/// By id: a new resource may take the name of one that goes away.
fn by_id<R: Resource>(resource: &R) -> At {
    let At { agency, name } = resource.place();
    let id = resource.metadata().as_ref().map(|metadata| metadata.id.clone()).filter(|id| !id.is_empty());
    At { agency, name: id.unwrap_or(name) }
}

/// Whether an image is fetched by the cloud; one that is uploaded waits for its bytes.
fn fetches<R: Resource>(image: &R) -> Result<bool> {
    Ok(serde_json::to_value(image)?["spec"]["url"].as_str().is_some_and(|url| !url.is_empty()))
}

fn message<R: DeserializeOwned>(json: Json) -> Result<R> {
    serde_json::from_value(json)
        .map_err(|error| Problem::usage(format!("the contract does not take this: {error}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cloud_writes_is_no_change_and_what_people_write_is() {
        let seen = json!({"metadata": {"id": "1", "revision": "7", "generation": "2", "labels": {"a": "b"}}});
        let mut now = seen.clone();
        now["metadata"]["revision"] = json!("9");
        now["status"] = json!({"phase": "VM_PHASE_RUNNING"});
        assert!(written(&seen) == written(&now));
        for (key, value) in [
            ("id", json!("2")),
            ("generation", json!("3")),
            ("labels", json!({})),
            ("display_name", json!("x")),
        ] {
            let mut other = now.clone();
            other["metadata"][key] = value;
            assert!(written(&seen) != written(&other), "{key}");
        }
    }
}
