//! A pinned VM runs on its one node or nowhere.

use super::Ask;
use crate::reason::Reason;
use crate::view::Row;

pub(super) fn pin(ask: &Ask, row: &Row) -> Option<Reason> {
    ask.vm.pin.is_some_and(|pin| pin != row.shape.id).then_some(Reason::PinnedElsewhere)
}

/// The pinned node must be known at all.
pub(super) fn known(ask: &Ask) -> Option<Reason> {
    ask.vm.pin.is_some_and(|pin| ask.view.node(pin).is_none()).then_some(Reason::PinUnknown)
}
