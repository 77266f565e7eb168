//! The bridge of each of the VM's networks must be on the node.

use super::Ask;
use crate::reason::Reason;
use crate::traits::Traits;

pub(super) fn bridges(ask: &Ask, traits: &Traits) -> Option<Reason> {
    let bridge = ask.vm.bridges.difference(&traits.bridges).next()?.clone();
    Some(Reason::BridgeMissing { bridge })
}
