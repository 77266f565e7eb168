//! VMs of different isolation classes never share a node. Having none is a class of its own.

use super::Ask;
use crate::reason::Reason;
use crate::view::Row;

pub(super) fn alone(ask: &Ask, row: &Row) -> Option<Reason> {
    if ask.vm.isolation.is_none() && !ask.view.has_isolation() {
        return None;
    }
    let mut others = row.vms.iter().filter(|vm| vm.id != ask.vm.id && vm.isolation != ask.vm.isolation);
    others.next().map(|_| Reason::IsolationShared)
}
