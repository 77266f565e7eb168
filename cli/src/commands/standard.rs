//! The verbs that mean the same for every noun: list, get, create, update, delete. An update reads the resource, changes
//! it as asked and sends it back with its revision, so that nobody's change in between is lost; when there was one, it
//! begins again. A deletion asks first.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};
use similar::TextDiff;
use tamdao_proto::v1::{Event, ListEventsRequest};

use crate::app::{App, now_s};
use crate::args::{DeleteArgs, EditArgs, ListArgs, NameArg, NewArgs};
use crate::given;
use crate::output::yaml;
use crate::problem::{ExitStatus, Problem};
use crate::quantity::count;
use crate::resource::{Editable, Makeable, Owner, Place, Query, Resource};
use crate::view::{self, View};
use crate::wait::{Goal, until};

const PAGE: usize = 1_000;
const EVENTS_SHOWN: u32 = 5;
const EDITS: usize = 3;

/// `list`: all pages, as one table or as one answer of the API.
pub async fn list<R: View>(app: &App, args: &ListArgs, private: bool) -> Result<ExitStatus> {
    let agency = match R::OWNER {
        Owner::Agency => app.agency_unless(args.all_agencies)?,
        Owner::Either if private => app.agency_unless(args.all_agencies)?,
        Owner::Either | Owner::Cluster => String::new(),
    };
    let phase = match &args.phase {
        None => 0,
        Some(word) => R::phase_number(word)
            .ok_or_else(|| Problem::usage(format!("--phase {word}: a {} has no such phase", R::noun())))?,
    };
    let query = Query { agency, labels: args.labels.clone(), phase };
    let limit = args.limit.unwrap_or(usize::MAX);
    let (mut all, mut token, mut cursor) = (Vec::new(), String::new(), String::new());
    while all.len() < limit {
        let size = PAGE.min(limit - all.len());
        let page = R::page(app.client()?, &query, size as u32, token).await?;
        all.extend(page.resources);
        if cursor.is_empty() {
            cursor = page.cursor;
        }
        token = page.next;
        if token.is_empty() {
            break;
        }
    }
    if app.output.is_machine() {
        let mut answer = Map::new();
        answer.insert(R::PLURAL.to_owned(), serde_json::to_value(&all)?);
        if !token.is_empty() {
            answer.insert("next_page_token".to_owned(), Value::from(token));
        }
        if !cursor.is_empty() {
            answer.insert("cursor".to_owned(), Value::from(cursor));
        }
        app.output.value(&answer)?;
    } else {
        let nothing = if query.agency.is_empty() {
            format!("there are no {}", R::PLURAL.replace('_', " "))
        } else {
            format!("there are no {} in agency {}", R::PLURAL.replace('_', " "), query.agency)
        };
        app.output.table(&view::table(&all, now_s(), app.output.is_wide()), &nothing)?;
        if !token.is_empty() {
            app.output.note(&format!("these are the first {}; there are more", all.len()));
        }
    }
    Ok(ExitStatus::Done)
}

/// `get`: a card with conditions and the last events, or the resource itself.
pub async fn get<R: View>(app: &App, args: &NameArg, private: bool) -> Result<ExitStatus> {
    let place = app.place::<R>(&args.name, private)?;
    let resource = R::fetch(app.client()?, &place).await.map_err(|problem| problem.about(&args.name))?;
    if app.output.is_machine() {
        app.output.value(&resource)?;
        return Ok(ExitStatus::Done);
    }
    let now = now_s();
    app.output.card(&view::card(&resource, now))?;
    for (title, table) in resource.sections() {
        app.output.section(title, &table)?;
    }
    app.output.section("Conditions", &view::conditions(resource.conditions(), now))?;
    match last_events(app, &resource).await {
        Ok(events) => app.output.section("Last events", &view::events(&events, now, false))?,
        // The card is worth showing without its story.
        Err(problem) => app.output.warning(&format!("its events cannot be read: {problem}")),
    }
    Ok(ExitStatus::Done)
}

async fn last_events<R: Resource>(app: &App, resource: &R) -> Result<Vec<Event>> {
    let metadata = resource.metadata().clone().unwrap_or_default();
    let request = ListEventsRequest {
        page_size: EVENTS_SHOWN,
        agency: metadata.agency,
        kind: R::KIND.to_owned(),
        name: metadata.id,
        ..Default::default()
    };
    let mut events = app.client()?.ask(request).await?.events;
    events.truncate(EVENTS_SHOWN as usize);
    events.reverse();
    Ok(events)
}

/// The resource that a `create` begins with: from the file if one is given, with name, labels and name for people.
pub fn begin<R: Makeable>(app: &App, new: &NewArgs, private: bool) -> Result<(Place, R)> {
    let mut resource = match &new.file {
        Some(file) => given::resource::<R>(file)?,
        None => R::default(),
    };
    let metadata = resource.metadata_mut();
    let in_file = if metadata.agency.is_empty() || metadata.name.contains('/') {
        metadata.name.clone()
    } else {
        format!("{}/{}", metadata.agency, metadata.name)
    };
    let name = new.name.clone().unwrap_or(in_file);
    if name.is_empty() {
        let problem = Problem::usage(format!("the {} has no name", R::noun()));
        return Err(problem.hint(format!("tamdao {} create NAME …", R::noun())).into());
    }
    metadata.labels.extend(given::pairs("label", &new.labels)?);
    if let Some(text) = &new.display_name {
        text.clone_into(&mut metadata.display_name);
    }
    let place = app.place::<R>(&name, private)?;
    metadata.name.clone_from(&place.name);
    metadata.agency.clone_from(&place.agency);
    Ok((place, resource))
}

/// Sends a new resource. With a dry run it is shown, and nothing is returned.
pub async fn create<R: Makeable>(app: &App, place: &Place, resource: R, dry_run: bool) -> Result<Option<R>> {
    let made = R::create(app.client()?, &place.agency, resource, dry_run).await;
    let made = made.map_err(|problem| problem.about(&place.name))?;
    if !dry_run {
        return Ok(Some(made));
    }
    app.output.note(&format!("dry run: {} {place} would be made so; nothing was changed", R::noun()));
    show_planned(app, None::<&R>, &made)?;
    Ok(None)
}

/// Ends a change: the resource as data for programs, a word for people.
pub fn done<R: Resource>(app: &App, resource: &R, word: &str) -> Result<ExitStatus> {
    if app.output.is_machine() {
        app.output.value(resource)?;
    } else if !word.is_empty() {
        app.output.note(&format!("{}: {word}", resource.name()));
    }
    Ok(ExitStatus::Done)
}

/// `update`: `change` alters the resource and says which fields it altered.
pub async fn update<R: Editable>(
    app: &App,
    edit: &EditArgs,
    private: bool,
    change: impl Fn(&mut R, &mut Vec<String>) -> Result<()>,
) -> Result<ExitStatus> {
    match changed(app, edit, private, change).await? {
        Some(after) => done(app, &after, "updated"),
        None => Ok(ExitStatus::Done),
    }
}

/// The resource after `change`; none after a dry run, which has been told.
pub async fn changed<R: Editable>(
    app: &App,
    edit: &EditArgs,
    private: bool,
    change: impl Fn(&mut R, &mut Vec<String>) -> Result<()>,
) -> Result<Option<R>> {
    let place = app.place::<R>(&edit.name, private)?;
    let client = app.client()?;
    for left in (0..EDITS).rev() {
        let before = R::fetch(client, &place).await.map_err(|problem| problem.about(&edit.name))?;
        let (mut after, mut mask) = (before.clone(), Vec::new());
        if let Some(text) = &edit.display_name {
            text.clone_into(&mut after.metadata_mut().display_name);
            mask.push("metadata.display_name".to_owned());
        }
        if !edit.labels.is_empty() {
            given::change_pairs("label", &mut after.metadata_mut().labels, &edit.labels)?;
            mask.push("metadata.labels".to_owned());
        }
        change(&mut after, &mut mask)?;
        if mask.is_empty() {
            let problem = Problem::usage("nothing to change was given");
            return Err(problem.hint(format!("see `tamdao {} update --help`", R::noun())).into());
        }
        match R::update(client, &place, after, mask, edit.dry_run).await {
            Ok(after) if edit.dry_run => {
                app.output
                    .note(&format!("dry run: {} {place} would become so; nothing was changed", R::noun()));
                show_planned(app, Some(&before), &after)?;
                return Ok(None);
            }
            Ok(after) => return Ok(Some(after)),
            Err(problem) if problem.code == Some(tonic::Code::Aborted) && left > 0 => {}
            Err(problem) => return Err(problem.about(&edit.name).into()),
        }
    }
    unreachable!("the last round returns")
}

/// Shows what a dry run would make of a resource: the result for programs, the difference for people.
pub fn show_planned<R: Serialize>(app: &App, before: Option<&R>, after: &R) -> Result<()> {
    if app.output.is_machine() {
        return app.output.value(after);
    }
    let text = |resource: &R| written(resource);
    let old = before.map(text).transpose()?.unwrap_or_default();
    let new = text(after)?;
    if old == new {
        app.output.note("there is no difference");
        return Ok(());
    }
    app.output.raw(TextDiff::from_lines(&old, &new).unified_diff().context_radius(2).to_string().as_bytes())
}

/// A resource as YAML, without what the controller writes by itself.
fn written(resource: &impl Serialize) -> Result<String> {
    let mut value = serde_json::to_value(resource)?;
    if let Some(whole) = value.as_object_mut() {
        whole.remove("status");
        if let Some(metadata) = whole.get_mut("metadata").and_then(Value::as_object_mut) {
            for key in ["id", "revision", "generation", "create_time"] {
                metadata.remove(key);
            }
        }
    }
    yaml(&value)
}

/// `delete`: asks, removes one after the other, and waits until they are gone. One that cannot be removed does not
/// keep the others.
pub async fn delete<R: Editable + View>(
    app: &App,
    args: &DeleteArgs,
    private: bool,
    force: bool,
) -> Result<ExitStatus> {
    let places: Vec<Place> =
        args.names.iter().map(|name| app.place::<R>(name, private)).collect::<Result<_>>()?;
    if !args.dry_run {
        let what = match places.as_slice() {
            [place] => format!("{} {place}", R::noun()),
            many => {
                let names: Vec<String> = many.iter().map(ToString::to_string).collect();
                format!("{} ({})", count(many.len(), &R::noun()), names.join(", "))
            }
        };
        app.confirm(args.yes, &format!("delete {what}{}", loss::<R>()))?;
    }
    let mut status = ExitStatus::Done;
    for place in &places {
        match delete_one::<R>(app, args, place, force).await {
            Ok(()) => {}
            Err(error) if places.len() == 1 => return Err(error),
            Err(error) => {
                let problem = crate::problem::problem_of(error);
                app.output.problem(&problem);
                if status != ExitStatus::Failed {
                    status = problem.exit;
                }
            }
        }
    }
    Ok(status)
}

async fn delete_one<R: Editable + View>(
    app: &App,
    args: &DeleteArgs,
    place: &Place,
    force: bool,
) -> Result<()> {
    let last = R::delete(app.client()?, place, force, 0, args.dry_run).await;
    let last = last.map_err(|problem| problem.about(&place.name))?;
    if args.dry_run {
        app.output.note(&format!("dry run: {} {place} would be deleted; nothing was changed", R::noun()));
        return Ok(());
    }
    // What has no way to go is gone with the answer.
    let last = if last.phase() == "Deleting" && !args.wait.no_wait {
        until(app, last, &args.wait, Goal::Gone).await?
    } else {
        let word = if last.phase() == "Deleting" { "deleting" } else { "deleted" };
        app.output.note(&format!("{}: {word}", place.name));
        last
    };
    if app.output.is_machine() { app.output.value(&last) } else { Ok(()) }
}

fn loss<R: Resource>() -> &'static str {
    match R::KIND {
        "vm" => " with its disks",
        "volume" => " with its data",
        _ => "",
    }
}
