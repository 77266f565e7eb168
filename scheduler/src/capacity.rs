//! How many more of one shape fit, and what stops the next: the same placements that real requests would get, one
//! after the other, in a fork. Deliberately absent: an upper bound from totals, which fragmentation makes a lie.

use std::sync::Arc;

use tamdao_model::VmId;
use uuid::Uuid;

use crate::place::{Rejection, assign, place};
use crate::shape::VmShape;
use crate::view::View;

/// How many more fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    pub count: u32,
    /// Why the next does not fit; none if `at_most` was reached.
    pub stopped_by: Option<Rejection>,
}

/// Counts up to `at_most` more VMs of this shape.
pub fn fit(view: &View, shape: &VmShape, at_most: u32) -> Fit {
    let mut fork = view.clone();
    let mut vm = shape.clone();
    let mut next = shape.id.0.as_u128();
    for count in 0..at_most {
        // Each copy is a VM of its own, under an id that the cluster does not have.
        while fork.homes(vm.id).next().is_some() {
            next = next.wrapping_add(1);
            vm.id = VmId(Uuid::from_u128(next));
        }
        match place(&fork, &vm) {
            Ok(placement) => assign(&mut fork, &placement, &Arc::new(vm.clone())),
            Err(rejection) => return Fit { count, stopped_by: Some(rejection) },
        }
    }
    Fit { count: at_most, stopped_by: None }
}
