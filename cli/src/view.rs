//! How resources are shown to people: a short table of what operators want first, more columns when wide, and a card.
//! Pure functions of the message and the present time; nothing is asked or written here.

mod cloud;
mod machine;
mod moves;
mod placement;
mod storage;
pub mod usage;

pub use moves::{forecast, progress, way};
use tamdao_proto::v1::{Condition, ConditionStatus, Event, EventSeverity};

use crate::output::{Cell, Table, Tone};
use crate::quantity::age;
use crate::resource::{Owner, Resource};

/// A resource that can be shown.
pub trait View: Resource {
    fn headers(wide: bool) -> Vec<&'static str>;
    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell>;
    /// What a card says between name and age.
    fn fields(&self, now_s: i64) -> Vec<(&'static str, Cell)>;
    /// Tables below the card.
    fn sections(&self) -> Vec<(&'static str, Table)> {
        Vec::new()
    }
    /// What it does now or waits for, in half a line.
    fn story(&self) -> String {
        told(&self.phase(), self.trouble())
    }
    /// The message of the condition that holds it up; none when nothing does.
    fn trouble(&self) -> Option<&str> {
        trouble_of(self.conditions(), &[])
    }
}

/// A phase with what holds it up.
pub fn told(phase: &str, trouble: Option<&str>) -> String {
    match trouble {
        Some(trouble) if phase.is_empty() => trouble.to_owned(),
        Some(trouble) => format!("{phase}: {trouble}"),
        None => phase.to_owned(),
    }
}

/// The message of the last condition to become false, those that say nothing about progress left out.
pub fn trouble_of<'a>(conditions: &'a [Condition], besides: &[&str]) -> Option<&'a str> {
    let standing = conditions.iter().filter(|condition| {
        condition.status() == ConditionStatus::False
            && !besides.contains(&condition.r#type.as_str())
            && !(condition.message.is_empty() && condition.reason.is_empty())
    });
    let last = standing
        .max_by_key(|condition| condition.last_transition_time.as_ref().map(|t| (t.seconds, t.nanos)))?;
    Some(if last.message.is_empty() { &last.reason } else { &last.message })
}

/// A whole list as a table.
pub fn table<R: View>(resources: &[R], now_s: i64, wide: bool) -> Table {
    let rows = resources.iter().map(|resource| resource.row(now_s, wide)).collect();
    Table { headers: R::headers(wide), rows }
}

/// One resource as a card.
pub fn card<R: View>(resource: &R, now_s: i64) -> Vec<(&'static str, Cell)> {
    let metadata = resource.metadata().clone().unwrap_or_default();
    let mut fields = vec![("Name", Cell::from(&metadata.name))];
    match R::OWNER {
        Owner::Cluster => {}
        Owner::Either if metadata.agency.is_empty() => {}
        Owner::Agency | Owner::Either => fields.push(("Agency", Cell::from(&metadata.agency))),
    }
    fields.push(("Display name", Cell::from(&metadata.display_name)));
    fields.push(("Phase", phase(&resource.phase())));
    fields.extend(resource.fields(now_s));
    fields.push(("Labels", Cell::from(pairs(&metadata.labels))));
    fields.push(("Age", Cell::from(age_of(resource, now_s))));
    fields.push(("Id", Cell::toned(&metadata.id, Tone::Faint)));
    fields.push(("Revision", Cell::toned(metadata.revision.to_string(), Tone::Faint)));
    fields
}

/// Conditions as a table.
pub fn conditions(conditions: &[Condition], now_s: i64) -> Table {
    let rows = conditions.iter().map(|condition| {
        let (status, tone) = match condition.status() {
            ConditionStatus::True => ("True", Tone::Good),
            ConditionStatus::False => ("False", Tone::Bad),
            ConditionStatus::Unknown | ConditionStatus::Unspecified => ("Unknown", Tone::Busy),
        };
        vec![
            Cell::from(&condition.r#type),
            Cell::toned(status, tone),
            Cell::from(&condition.reason),
            Cell::from(since(&condition.last_transition_time, now_s)),
            Cell::from(&condition.message),
        ]
    });
    Table { headers: vec!["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], rows: rows.collect() }
}

/// Events as a table; with their subject where they are not all about the same.
pub fn events(events: &[Event], now_s: i64, subject: bool) -> Table {
    let mut headers = vec!["AGE", "REASON", "MESSAGE"];
    if subject {
        headers.insert(1, "SUBJECT");
    }
    let rows = events.iter().map(|event| event_row(event, &since(&event.time, now_s), subject));
    Table { headers, rows: rows.collect() }
}

/// One event after its time.
pub fn event_row(event: &Event, time: &str, subject: bool) -> Vec<Cell> {
    let tone = if event.severity() == EventSeverity::Warning { Tone::Busy } else { Tone::Plain };
    let mut row = vec![Cell::toned(time, Tone::Faint)];
    if subject {
        row.push(Cell::from(subject_of(event)));
    }
    row.push(Cell::toned(&event.reason, tone));
    row.push(Cell::from(&event.message));
    row
}

/// "vm health/web" or "node n1".
pub fn subject_of(event: &Event) -> String {
    match event.agency.as_str() {
        "" => format!("{} {}", event.kind, event.name),
        agency => format!("{} {agency}/{}", event.kind, event.name),
    }
}

/// A phase in its colour.
pub fn phase(word: &str) -> Cell {
    Cell::toned(word, tone_of(word))
}

/// The colour of a phase.
pub fn tone_of(word: &str) -> Tone {
    match word {
        "Running" | "Ready" | "Active" | "Available" | "Leader" | "Follower" => Tone::Good,
        "Failed" | "Unreachable" | "NotReady" | "Degraded" => Tone::Bad,
        "Stopped" | "Paused" => Tone::Faint,
        "" => Tone::Plain,
        _ => Tone::Busy,
    }
}

/// How long ago; empty when never.
pub fn since(time: &Option<pbjson_types::Timestamp>, now_s: i64) -> String {
    time.as_ref().map_or(String::new(), |time| age(now_s, time.seconds))
}

fn age_of<R: Resource>(resource: &R, now_s: i64) -> String {
    resource.metadata().as_ref().map_or(String::new(), |metadata| since(&metadata.create_time, now_s))
}

/// The first cells of every table: the name, and the agency where there may be one.
fn head<R: Resource>(resource: &R) -> Vec<Cell> {
    let metadata = resource.metadata().clone().unwrap_or_default();
    match R::OWNER {
        Owner::Cluster => vec![Cell::from(metadata.name)],
        Owner::Agency | Owner::Either => vec![Cell::from(metadata.name), Cell::from(metadata.agency)],
    }
}

/// The last cells of every table: the age, and the id when wide.
fn tail<R: Resource>(resource: &R, now_s: i64, wide: bool) -> Vec<Cell> {
    let mut cells = vec![Cell::from(age_of(resource, now_s))];
    if wide {
        let id = resource.metadata().as_ref().map_or("", |metadata| &metadata.id);
        cells.push(Cell::toned(id, Tone::Faint));
    }
    cells
}

/// Headers with the usual first and last ones.
fn headers<R: Resource>(middle: &[&'static str], more: &[&'static str], wide: bool) -> Vec<&'static str> {
    let mut headers = vec!["NAME"];
    if R::OWNER != Owner::Cluster {
        headers.push("AGENCY");
    }
    headers.extend(middle);
    if wide {
        headers.extend(more);
    }
    headers.push("AGE");
    if wide {
        headers.push("ID");
    }
    headers
}

/// Labels as "a=1,b=2", sorted.
pub fn pairs<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<String> = map.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    pairs.join(",")
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}
