//! How much more fits: how many of one shape, in all and by failure domain, and what an agency's quota leaves of them.
//! Fits are counted by the same placements that real requests would get, one after the other, in a fork. Deliberately
//! absent: an upper bound from totals, which fragmentation makes a lie.

use std::sync::Arc;

use tamdao_model::quota::{Amounts, Measure, Quota};
use tamdao_model::{AgencyId, VmId};
use uuid::Uuid;

use crate::place::{Placement, Rejection, assign, place, place_among};
use crate::shape::{By, VmShape};
use crate::survive::{Loss, lose};
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
    count(view, shape, at_most, place)
}

/// What one node, or one value of a failure-domain key, means for what fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headroom {
    pub loss: Loss,
    /// On the nodes that stand in it, perhaps in other values of its key too.
    pub within: Fit,
    /// On what remains once it is lost and its protected VMs are restarted there.
    pub without: Fit,
    /// The protected VMs that then have no place.
    pub left_out: usize,
}

/// Counts up to `at_most` within and without each node, or each value of a key, in the order of ids or values.
pub fn headroom(view: &View, shape: &VmShape, by: &By, at_most: u32) -> Vec<Headroom> {
    let of = |loss: Loss, slots: Vec<u32>| {
        let within = count(view, shape, at_most, |view, vm| place_among(view, vm, &slots));
        let mut rest = view.clone();
        let left_out = lose(&mut rest, loss.clone()).left_out.len();
        Headroom { loss, within, without: fit(&rest, shape, at_most), left_out }
    };
    match by {
        By::Node => {
            let each = view.rows_by_id().map(|row| (Loss::Node(row.shape.id), vec![row.entry.slot]));
            each.map(|(loss, slots)| of(loss, slots)).collect()
        }
        By::Domain(key) => {
            let loss = |value: &str| Loss::Domain { key: key.clone(), value: value.to_owned() };
            let each = view.domain_values(key);
            each.map(|(value, slots)| of(loss(value), slots.iter().copied().collect())).collect()
        }
    }
}

fn count(
    view: &View,
    shape: &VmShape,
    at_most: u32,
    place: impl Fn(&View, &VmShape) -> Result<Placement, Rejection>,
) -> Fit {
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

/// A size by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flavor {
    /// Its id means nothing.
    pub shape: Arc<VmShape>,
    /// What one VM of it takes of its agency's quota.
    pub counts: Amounts,
}

impl Flavor {
    /// A size that counts as one VM with all that it reserves.
    pub fn new(shape: Arc<VmShape>) -> Self {
        let (vcpus, memory) = (u64::from(shape.reservation.vcpus), shape.reservation.memory_mib);
        let counts = [
            (Measure::Vms, 1),
            (Measure::Vcpus, vcpus),
            (Measure::MemoryMib, memory),
            (Measure::ProtectedMemoryMib, memory),
        ];
        Self { shape, counts: counts.into_iter().collect() }
    }
}

/// An agency, as far as it limits what may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agency {
    pub id: AgencyId,
    pub name: Arc<str>,
    /// Nothing new may be made in it.
    pub closed: bool,
    /// What its quota leaves for itself; a measure that is absent is not limited.
    pub free: Quota,
}

/// Why an agency may make no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    Closed,
    /// Of this measure less is left than the next would take.
    Quota {
        measure: Measure,
        need: u64,
        left: u64,
    },
}

impl Agency {
    /// How many more of what counts so it may make, and what stops the next; none if nothing does.
    pub fn leaves(&self, counts: &Amounts) -> Option<(u64, Stop)> {
        if self.closed {
            return Some((0, Stop::Closed));
        }
        let limited = counts.iter().filter_map(|(measure, need)| {
            let free = *self.free.get(measure)?;
            Some((free / need, Stop::Quota { measure: measure.clone(), need, left: free % need }))
        });
        limited.min_by_key(|(count, _)| *count)
    }
}
