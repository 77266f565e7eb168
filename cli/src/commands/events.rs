//! `tamdao events`: what happened, the newest last, so that a watch goes on below. A watch resumes by cursor at another
//! controller, so that no event is missed or told twice.

use anyhow::Result;
use serde_json::json;
use tamdao_proto::v1::event_service_client::EventServiceClient;
use tamdao_proto::v1::{Event, Image, ListEventsRequest, Node, Vm, Volume, WatchEventsRequest};

use crate::app::{App, now_s};
use crate::args::EventsArgs;
use crate::client::passes;
use crate::problem::{ExitStatus, Problem};
use crate::quantity::clock;
use crate::resource::{Place, Resource};
use crate::rpc;
use crate::view::{event_row, events as event_table};
use crate::watch::too_old;

const PAGE: usize = 1_000;

/// Which events are meant.
struct About {
    kind: String,
    place: Place,
}

pub async fn run(app: &App, args: EventsArgs) -> Result<ExitStatus> {
    let about = about(app, &args)?;
    let (events, cursor) = past(app, &about, args.limit).await?;
    let alone = !about.place.name.is_empty();
    if !args.watch {
        if app.output.is_machine() {
            app.output.value(&json!({"events": events, "cursor": cursor}))?;
        } else {
            app.output.table(&event_table(&events, now_s(), !alone), "there are no events")?;
        }
        return Ok(ExitStatus::Done);
    }
    for event in &events {
        tell(app, event, !alone)?;
    }
    follow(app, &about, cursor, !alone).await
}

fn about(app: &App, args: &EventsArgs) -> Result<About> {
    fn of<R: Resource>(app: &App, name: &str) -> Result<About> {
        Ok(About { kind: R::KIND.to_owned(), place: app.place::<R>(name, false)? })
    }
    match (&args.vm, &args.node, &args.volume, &args.image) {
        (Some(name), ..) => of::<Vm>(app, name),
        (_, Some(name), ..) => of::<Node>(app, name),
        (_, _, Some(name), _) => of::<Volume>(app, name),
        (_, _, _, Some(name)) => of::<Image>(app, name),
        _ => Ok(About {
            kind: args.kind.clone().unwrap_or_default(),
            place: Place { agency: app.agency_unless(args.all_agencies)?, name: String::new() },
        }),
    }
}

/// The last events, the newest last, and the cursor from which to go on.
async fn past(app: &App, about: &About, limit: usize) -> Result<(Vec<Event>, String)> {
    let (mut events, mut token, mut cursor) = (Vec::new(), String::new(), String::new());
    // Also with a limit of 0 the cursor is wanted.
    loop {
        let request = ListEventsRequest {
            page_size: (limit - events.len()).clamp(1, PAGE) as u32,
            page_token: token,
            agency: about.place.agency.clone(),
            kind: about.kind.clone(),
            name: about.place.name.clone(),
        };
        let page = app.client()?.ask(request).await?;
        events.extend(page.events);
        events.truncate(limit);
        if cursor.is_empty() {
            cursor = page.cursor;
        }
        token = page.next_page_token;
        if token.is_empty() || events.len() >= limit {
            break;
        }
    }
    events.reverse();
    Ok((events, cursor))
}

async fn follow(app: &App, about: &About, mut cursor: String, subject: bool) -> Result<ExitStatus> {
    let client = app.client()?;
    loop {
        let request = WatchEventsRequest {
            cursor: cursor.clone(),
            agency: about.place.agency.clone(),
            kind: about.kind.clone(),
            name: about.place.name.clone(),
        };
        let opened = rpc!(client, EventServiceClient, watch_events, request);
        let place = client.place();
        let ended = match opened {
            Err(problem) => Some(problem),
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        if !message.cursor.is_empty() {
                            cursor = message.cursor;
                        }
                        if let Some(event) = &message.event {
                            tell(app, event, subject)?;
                        }
                    }
                    Err(status) if !passes(&status) => break Some(Problem::from_status(&status)),
                    _ => break None,
                }
            },
        };
        match ended {
            Some(problem) if too_old(problem.code, &problem.reason) && !cursor.is_empty() => {
                app.output.warning("some events were missed: they are no longer kept");
                cursor.clear();
            }
            Some(problem) => return Err(problem.into()),
            None => {
                client.pass_on(place);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

fn tell(app: &App, event: &Event, subject: bool) -> Result<()> {
    if app.output.is_machine() {
        return app.output.stream_value(event);
    }
    let time = event.time.as_ref().map_or(String::new(), |time| clock(time.seconds));
    app.output.bare(&event_row(event, &time, subject))
}
