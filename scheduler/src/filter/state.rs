//! A node must be ready, and a cordoned one takes nothing new.

use super::Ask;
use crate::reason::Reason;
use crate::traits::Traits;

pub(super) fn ready(_: &Ask, traits: &Traits) -> Option<Reason> {
    (!traits.ready).then_some(Reason::NotReady)
}

pub(super) fn cordoned(_: &Ask, traits: &Traits) -> Option<Reason> {
    traits.cordoned.then_some(Reason::Cordoned)
}
