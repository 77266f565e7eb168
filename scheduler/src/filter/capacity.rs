//! Virtual CPUs and memory: what is promised never exceeds what may be. A node that already holds too much has
//! nothing free, so nothing that needs more makes it worse.

use tamdao_model::limits;

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

/// A node's assignment is one record, and a record has a limit.
pub(super) fn count(_: &Ask, row: &Row) -> Option<Reason> {
    count_of(&row.entry)
}

pub(super) fn count_of(entry: &Entry) -> Option<Reason> {
    let (vms, at_most) = (entry.vms, limits::VMS_PER_NODE as u32);
    (vms >= at_most).then_some(Reason::TooManyVms { vms, at_most })
}

pub(super) fn vcpus_of(entry: &Entry, need: &Amounts) -> Option<Reason> {
    let (need, free) = (need[VCPUS], entry.free[VCPUS]);
    (need > free).then_some(Reason::NotEnoughVcpus { need, free })
}

pub(super) fn memory_of(entry: &Entry, need: &Amounts) -> Option<Reason> {
    let (need_mib, free_mib) = (need[MEMORY], entry.free[MEMORY]);
    (need_mib > free_mib).then_some(Reason::NotEnoughMemory { need_mib, free_mib })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tamdao_model::{NodeId, VmId};
    use uuid::Uuid;

    use super::*;
    use crate::place::place;
    use crate::reason::ReasonKind;
    use crate::shape::{NodeShape, VmShape};
    use crate::view::View;

    #[test]
    fn a_node_full_by_number_takes_no_more() {
        let mut view = View::new();
        let node = NodeId(Uuid::from_u128(1));
        let mut shape = NodeShape::bare(node, "n1");
        (shape.ready, shape.vcpus, shape.memory_mib) = (true, u32::MAX, u64::MAX / 2);
        view.set_node(shape);
        for at in 0..limits::VMS_PER_NODE as u128 {
            let vm = VmShape::bare(VmId(Uuid::from_u128(at + 10)), "small", 1, 1);
            view.assign(node, Arc::new(vm)).unwrap();
        }
        let one_more = VmShape::bare(VmId(Uuid::from_u128(2)), "one-more", 1, 1);
        let rejection = place(&view, &one_more).unwrap_err();
        assert!(rejection.by_reason.contains_key(&ReasonKind::TooManyVms), "{rejection}");
    }
}
