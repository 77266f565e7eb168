//! How good a node is for a VM, among the nodes on which it fits: one table of (weight, name, what it measures).
//! A part is 0 to 10,000 points, higher is better; the score is the sum of points times weights. All of it is
//! whole numbers, so that every machine finds the same node.
//!
//! Each part comes with a bound: the most that any entry of an index block can reach. It is never less than the
//! part of a member (a property test holds that), so a search may pass over blocks without changing its answer.
//! Tight packing by what remains follows best fit for vectors (Panigrahy et al., "Heuristics for Vector Bin
//! Packing", 2011). Deliberately absent: rules; a node that breaks one has no score.

use crate::index::{Amounts, Bounds, DIMENSIONS, DISK, Entry, MEMORY, VCPUS};

/// The points of a part that could not be better.
pub const POINTS: i64 = 10_000;

/// How many parts the table has.
pub const PARTS: usize = 6;

/// Points of each part, in the order of [`TABLE`].
pub type Points = [i64; PARTS];

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub name: &'static str,
    /// Unless the cluster sets another.
    pub weight: u32,
    pub measures: &'static str,
    of: fn(&Facts) -> i64,
    bound: fn(&Limits) -> i64,
}

/// The table.
pub const TABLE: [Part; PARTS] = [
    Part {
        name: "tight",
        weight: 10,
        measures: "how little stays free on the node, over CPU, memory and local disk",
        of: |facts| POINTS - mean(&facts.rest, facts.has_disk),
        bound: |limits| POINTS - limits.least_mean,
    },
    Part {
        name: "even",
        weight: 2,
        measures: "how alike the free parts of CPU, memory and local disk are, so that none is stranded",
        of: |facts| POINTS - width(&facts.rest, facts.has_disk),
        bound: |limits| POINTS - limits.least_width,
    },
    Part {
        name: "in-use",
        weight: 8,
        measures: "whether the node has VMs already, so that empty nodes stay empty",
        of: |facts| if facts.in_use { POINTS } else { 0 },
        bound: |limits| if limits.in_use { POINTS } else { 0 },
    },
    Part {
        name: "support",
        weight: 3,
        measures: "how late the node's hardware support ends among the cluster's, so that old hardware stays free",
        of: |facts| facts.support,
        bound: |limits| limits.support,
    },
    Part {
        name: "apart",
        weight: 20,
        measures: "how few members of its groups that spread are in the same node or domain",
        of: |facts| facts.apart,
        bound: |limits| limits.apart,
    },
    Part {
        name: "together",
        weight: 20,
        measures: "whether preferred companions are in the same node or domain",
        of: |facts| facts.together,
        bound: |limits| limits.together,
    },
];

/// The weights of a cluster, in the order of [`TABLE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights(pub [u32; PARTS]);

impl Default for Weights {
    fn default() -> Self {
        Self(TABLE.map(|part| part.weight))
    }
}

impl Weights {
    /// The score of these points.
    pub fn total(&self, points: &Points) -> i64 {
        points.iter().zip(self.0).map(|(points, weight)| points * i64::from(weight)).sum()
    }
}

/// What is measured of one node, as it would be with the VM on it.
pub(crate) struct Facts {
    /// What would stay free of each dimension, in 1/10,000 of the capacity.
    rest: [i64; DIMENSIONS],
    has_disk: bool,
    in_use: bool,
    pub(crate) support: i64,
    pub(crate) apart: i64,
    pub(crate) together: i64,
}

impl Facts {
    /// Of an entry that has room for the need. Groups are not known here.
    pub(crate) fn new(entry: &Entry, need: &Amounts, support: i64) -> Self {
        let rest = std::array::from_fn(|d| part(entry.free[d].saturating_sub(need[d]), entry.capacity[d]));
        Self {
            rest,
            has_disk: entry.capacity[DISK] > 0,
            in_use: entry.vms > 0,
            support,
            apart: POINTS,
            together: POINTS,
        }
    }

    pub(crate) fn points(&self) -> Points {
        TABLE.map(|part| (part.of)(self))
    }
}

/// The best that is possible within a block.
pub(crate) struct Limits {
    least_mean: i64,
    least_width: i64,
    in_use: bool,
    pub(crate) support: i64,
    pub(crate) apart: i64,
    pub(crate) together: i64,
}

impl Limits {
    /// `least` and `most` bound what the VM needs on any node of the block.
    pub(crate) fn new(bounds: &Bounds, least: &Amounts, most: &Amounts, support: i64) -> Self {
        let low: [i64; DIMENSIONS] =
            std::array::from_fn(|d| part(bounds.free_min[d].saturating_sub(most[d]), bounds.capacity_max[d]));
        let high: [i64; DIMENSIONS] = std::array::from_fn(|d| {
            part(bounds.free_max[d].saturating_sub(least[d]), bounds.capacity_min[d]).min(POINTS)
        });
        let with_disk = bounds.capacity_max[DISK] > 0;
        let without_disk = bounds.capacity_min[DISK] == 0;
        // With a node of zero capacity in the block the largest free part is not bounded by the division.
        let high = std::array::from_fn(|d| if bounds.capacity_min[d] == 0 { POINTS } else { high[d] });
        let mut limits = Self {
            least_mean: POINTS,
            least_width: POINTS,
            in_use: bounds.any_with_vms,
            support,
            apart: POINTS,
            together: POINTS,
        };
        for has_disk in [with_disk.then_some(true), without_disk.then_some(false)].into_iter().flatten() {
            limits.least_mean = limits.least_mean.min(mean(&low, has_disk));
            limits.least_width = limits.least_width.min(gap(&low, &high, has_disk));
        }
        limits
    }

    pub(crate) fn points(&self) -> Points {
        TABLE.map(|part| (part.bound)(self))
    }
}

/// An amount in 1/10,000 of a capacity; nothing of nothing is 0.
fn part(amount: u64, capacity: u64) -> i64 {
    if capacity == 0 {
        return 0;
    }
    // Amounts are below 2^50 MiB by the limits of the model; a wrong larger one saturates.
    let part = amount.saturating_mul(10_000) / capacity;
    i64::try_from(part).unwrap_or(POINTS)
}

fn mean(rest: &[i64; DIMENSIONS], has_disk: bool) -> i64 {
    if has_disk { (rest[VCPUS] + rest[MEMORY] + rest[DISK]) / 3 } else { (rest[VCPUS] + rest[MEMORY]) / 2 }
}

/// The distance between the largest and the smallest free part.
fn width(rest: &[i64; DIMENSIONS], has_disk: bool) -> i64 {
    gap(rest, rest, has_disk)
}

/// The least distance that values between `low` and `high` can have.
fn gap(low: &[i64; DIMENSIONS], high: &[i64; DIMENSIONS], has_disk: bool) -> i64 {
    let dims = if has_disk { DIMENSIONS } else { DISK };
    let top = low[..dims].iter().copied().max().unwrap_or(0);
    let bottom = high[..dims].iter().copied().min().unwrap_or(0);
    (top - bottom).max(0)
}
