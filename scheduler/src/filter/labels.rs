//! Labels that the node must have, and labels that it must not have.

use super::Ask;
use crate::reason::Reason;
use crate::view::Row;

pub(super) fn required(ask: &Ask, row: &Row) -> Option<Reason> {
    let mut missing = ask.vm.labels.iter().filter(|(key, value)| row.shape.labels.get(*key) != Some(value));
    let (key, value) = missing.next()?;
    Some(Reason::LabelMissing { key: key.clone(), value: value.clone() })
}

pub(super) fn forbidden(ask: &Ask, row: &Row) -> Option<Reason> {
    let mut present =
        ask.vm.forbidden_labels.iter().filter(|(key, value)| row.shape.labels.get(*key) == Some(value));
    let (key, value) = present.next()?;
    Some(Reason::LabelForbidden { key: key.clone(), value: value.clone() })
}
