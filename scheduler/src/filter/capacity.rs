//! Virtual CPUs and memory: what is promised never exceeds what may be. A node that already holds too much has
//! nothing free, so nothing that needs more makes it worse.

use super::Ask;
use crate::index::{Amounts, Entry, MEMORY, VCPUS};
use crate::reason::Reason;
use crate::view::Row;

pub(super) fn vcpus(ask: &Ask, row: &Row) -> Option<Reason> {
    vcpus_of(&row.entry, &ask.need(&row.entry, row.shape.emulation))
}

pub(super) fn memory(ask: &Ask, row: &Row) -> Option<Reason> {
    memory_of(&row.entry, &ask.need(&row.entry, row.shape.emulation))
}

pub(super) fn vcpus_of(entry: &Entry, need: &Amounts) -> Option<Reason> {
    let (need, free) = (need[VCPUS], entry.free[VCPUS]);
    (need > free).then_some(Reason::NotEnoughVcpus { need, free })
}

pub(super) fn memory_of(entry: &Entry, need: &Amounts) -> Option<Reason> {
    let (need_mib, free_mib) = (need[MEMORY], entry.free[MEMORY]);
    (need_mib > free_mib).then_some(Reason::NotEnoughMemory { need_mib, free_mib })
}
