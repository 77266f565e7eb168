//! A pinned VM runs on its one node or nowhere. One that is held there by a disk in a local pool is told so, since
//! another pin would not help it.

use super::Ask;
use crate::reason::Reason;
use crate::view::Row;

pub(super) fn pin(ask: &Ask, row: &Row) -> Option<Reason> {
    let pin = ask.vm.pin.filter(|pin| *pin != row.shape.id)?;
    let disk = ask.vm.disks.iter().find(|disk| disk.on == Some(pin));
    let held =
        disk.map(|disk| Reason::DiskElsewhere { pool: disk.pool, name: super::pools::name(ask, disk.pool) });
    Some(held.unwrap_or(Reason::PinnedElsewhere))
}

/// The pinned node must be known at all.
pub(super) fn known(ask: &Ask) -> Option<Reason> {
    ask.vm.pin.is_some_and(|pin| ask.view.node(pin).is_none()).then_some(Reason::PinUnknown)
}
