//! A VM holds at most one place on a node. A guest that is not yet confirmed gone must go before it may come back.

use super::Ask;
use crate::reason::Reason;
use crate::view::Row;

pub(super) fn absent(ask: &Ask, row: &Row) -> Option<Reason> {
    ask.homes.contains(&row.entry.slot).then_some(Reason::AlreadyHere)
}
