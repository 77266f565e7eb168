//! What every resource shows: metadata, conditions, times. Of the metadata, users write the name (once), the
//! display name and the labels; all else in a request is the controller's own and is not read.

use std::collections::BTreeMap;

use pbjson_types::Timestamp;
use tamdao_proto::v1;

use super::held::show as show_id;
use super::{Checks, New, Twin};
use crate::condition::{Condition, Conditions};
use crate::lookup::Lookup;
use crate::{AgencyId, Kind, Meta, Resource, Scope, TimeMs, composed, limits};

/// Reads the metadata of a new resource.
pub(super) fn read(checks: &mut Checks<'_>, metadata: Option<v1::Metadata>, new: &New) -> Meta {
    let metadata = metadata.unwrap_or_default();
    let mut meta = Meta::new(new.id, checks.name("metadata.name", &metadata.name), new.now);
    check_agency(checks, &metadata.agency, new.scope);
    write(checks, &mut meta, metadata);
    meta
}

/// Takes what users may change at any time.
pub(super) fn write(checks: &mut Checks<'_>, meta: &mut Meta, metadata: v1::Metadata) {
    meta.display_name =
        checks.text("metadata.display_name", composed(&metadata.display_name), limits::DISPLAY_NAME_CHARS);
    let labels = checks.labels("metadata.labels", metadata.labels);
    meta.labels = keep_stack(checks, &meta.labels, labels);
}

/// The label that names the stack of manifests which owns a resource (decision 0190).
pub const STACK: &str = "tamdao.vn/stack";

/// A stack's resource stays its own: labels that do not speak of it leave it, an empty value releases it, and another
/// stack can have it only after that.
fn keep_stack(
    checks: &mut Checks<'_>,
    before: &BTreeMap<String, String>,
    mut labels: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    match (before.get(STACK), labels.get(STACK).map(String::as_str)) {
        (_, Some("")) => {
            labels.remove(STACK);
        }
        (Some(owner), None) => {
            labels.insert(STACK.to_owned(), owner.clone());
        }
        (Some(owner), Some(other)) if owner != other => {
            let message =
                format!("the resource belongs to stack {owner:?}; release it first with the label {STACK}=");
            checks.wrong("metadata.labels", message);
        }
        _ => {}
    }
    labels
}

/// A resource may repeat the agency that the request names, but not name another one.
pub(super) fn check_agency(checks: &mut Checks<'_>, agency: &str, scope: Scope) {
    if agency.is_empty() {
        return;
    }
    match scope {
        Scope::Cluster => {
            checks.wrong("metadata.agency", "must be empty: this resource belongs to the cluster");
        }
        Scope::Agency(id) => {
            let named: AgencyId = checks.id("metadata.agency", Kind::Agency, &[Scope::Cluster], agency);
            if named != id && named != AgencyId(uuid::Uuid::nil()) {
                checks.wrong("metadata.agency", "is another agency than the request's; leave it empty");
            }
        }
    }
}

/// Shows the metadata of a resource.
pub fn show<R: Resource>(resource: &R, revision: u64, lookup: &dyn Lookup) -> Option<v1::Metadata> {
    let meta = resource.meta();
    Some(v1::Metadata {
        id: meta.id.to_string(),
        name: meta.name.to_string(),
        agency: resource.scope().agency().map(|id| show_id(lookup, Kind::Agency, id)).unwrap_or_default(),
        display_name: meta.display_name.clone(),
        labels: meta.labels.clone().into_iter().collect(),
        revision,
        generation: meta.generation,
        create_time: timestamp(meta.create_time),
    })
}

/// Shows a point in time; the beginning of 1970 stands for never.
pub fn timestamp(time: TimeMs) -> Option<Timestamp> {
    (time != TimeMs::default()).then(|| Timestamp {
        seconds: i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX),
        // Below 10^9, so that it always fits.
        nanos: i32::try_from(time.0 % 1_000 * 1_000_000).unwrap_or_default(),
    })
}

/// Reads a point in time; what lies before 1970 counts as its beginning.
pub fn time_ms(timestamp: &Timestamp) -> TimeMs {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or_default();
    let ms = u64::try_from(timestamp.nanos).unwrap_or_default() / 1_000_000;
    TimeMs(seconds.saturating_mul(1_000).saturating_add(ms))
}

/// Shows conditions, in the order of their types.
pub fn conditions(conditions: &Conditions) -> Vec<v1::Condition> {
    conditions.0.iter().map(condition).collect()
}

fn condition(condition: &Condition) -> v1::Condition {
    v1::Condition {
        r#type: condition.kind.clone(),
        status: condition.status.number(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        observed_generation: condition.observed_generation,
        last_transition_time: timestamp(condition.last_transition_time),
    }
}
