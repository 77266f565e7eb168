//! Events in the contract.

use tamdao_proto::v1;

use super::held::show as show_id;
use super::{Twin, metadata};
use crate::Kind;
use crate::event::Event;
use crate::lookup::Lookup;

/// Shows an event; `revision` is that of its own record, and so of the commit that it tells of.
pub fn show(event: &Event, revision: u64, lookup: &dyn Lookup) -> v1::Event {
    v1::Event {
        id: event.id.to_string(),
        time: metadata::timestamp(event.time),
        revision,
        severity: event.severity.number(),
        reason: event.reason.clone(),
        message: event.message.clone(),
        kind: event.kind.word().to_owned(),
        agency: event.agency.map(|id| show_id(lookup, Kind::Agency, id)).unwrap_or_default(),
        name: event.name.to_string(),
        subject_id: event.subject.to_string(),
        node: event.node.map(|id| show_id(lookup, Kind::Node, id)).unwrap_or_default(),
        actor: event.actor.clone(),
    }
}
