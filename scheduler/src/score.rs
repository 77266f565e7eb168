//! How good a node is for a VM, among the nodes on which it fits: one table of (weight, name, what it measures).
//! A part is 0 to 10,000 points, higher is better; the score is the sum of points times weights. All of it is
//! whole numbers, so that every machine finds the same node.
//!
//! Each part comes with a bound: the most that any entry of an index block can reach. It is never less than the
//! part of a member (a property test holds that), so a search may pass over blocks without changing its answer.
//! Tight packing by what remains follows best fit for vectors (Panigrahy et al., "Heuristics for Vector Bin
//! Packing", 2011), each dimension weighed by how scarce it is in the cluster (decision 0090). Deliberately absent:
//! rules; a node that breaks one has no score.

use crate::index::{Amounts, Bounds, DIMENSIONS, DISK, Entry, MEMORY, Sums, VCPUS};

/// The points of a part that could not be better.
pub const POINTS: i64 = 10_000;

/// How many parts the table has.
pub const PARTS: usize = 7;

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
        weight: 5,
        measures: "how little stays free on the node of CPU, memory and local disk, most of what is scarce",
        of: |facts| POINTS - mean(&facts.rest, &facts.scarcity, facts.has_disk),
        bound: |limits| POINTS - limits.least_mean,
    },
    Part {
        name: "even",
        weight: 20,
        measures: "how much more alike the VM makes what stays free of CPU and of memory, so that neither is stranded",
        of: |facts| (POINTS + evened(facts.lean, facts.skew, facts.skew)) / 2,
        bound: |limits| (POINTS + limits.most_evened) / 2,
    },
    Part {
        name: "in-use",
        weight: 4,
        measures: "whether the node has VMs already, so that empty nodes stay empty",
        of: |facts| if facts.vms > 0 { POINTS } else { 0 },
        bound: |limits| if limits.vms > 0 { POINTS } else { 0 },
    },
    Part {
        name: "held",
        weight: 2,
        measures: "how many VMs hold the node, so that one with few is left to empty by itself",
        of: |facts| held(facts.vms),
        bound: |limits| held(limits.vms),
    },
    Part {
        name: "support",
        weight: 2,
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

/// How much each dimension counts in the mean of what stays free.
pub(crate) type Scarcity = [i64; DIMENSIONS];

/// The fourth power of the used part of each dimension, over the cluster, in 1/10,000. What runs out first decides
/// how many nodes it takes, so that has to be packed tightly; what there is plenty of may be left anywhere.
pub(crate) fn scarcity(sums: &Sums) -> Scarcity {
    std::array::from_fn(|d| {
        let used = sums.capacity[d].saturating_sub(sums.free[d]).saturating_mul(10_000);
        let part = used.checked_div(sums.capacity[d]).unwrap_or(0).min(10_000);
        let square = part * part / 10_000;
        1 + i64::try_from(square * square / 10_000).unwrap_or(0)
    })
}

/// What is measured of one node, as it would be with the VM on it.
pub(crate) struct Facts {
    /// What would stay free of each dimension, in 1/10,000 of the capacity.
    rest: [i64; DIMENSIONS],
    scarcity: Scarcity,
    has_disk: bool,
    /// By how much more of the CPU than of the memory is free before, in 1/10,000.
    lean: i64,
    /// By how much more of the CPU than of the memory the VM takes, in 1/10,000.
    skew: i64,
    vms: u32,
    pub(crate) support: i64,
    pub(crate) apart: i64,
    pub(crate) together: i64,
}

impl Facts {
    /// Of an entry that has room for the need. Groups are not known here.
    pub(crate) fn new(entry: &Entry, need: &Amounts, scarcity: Scarcity, support: i64) -> Self {
        let rest = std::array::from_fn(|d| part(entry.free[d].saturating_sub(need[d]), entry.capacity[d]));
        let of = |amounts: &Amounts, d: usize| part(amounts[d], entry.capacity[d]);
        Self {
            rest,
            scarcity,
            has_disk: entry.capacity[DISK] > 0,
            lean: of(&entry.free, VCPUS) - of(&entry.free, MEMORY),
            skew: of(need, VCPUS) - of(need, MEMORY),
            vms: entry.vms,
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
    most_evened: i64,
    vms: u32,
    pub(crate) support: i64,
    pub(crate) apart: i64,
    pub(crate) together: i64,
}

impl Limits {
    /// `least` and `most` bound what the VM needs on any node of the block.
    pub(crate) fn new(
        bounds: &Bounds,
        least: &Amounts,
        most: &Amounts,
        scarcity: &Scarcity,
        support: i64,
    ) -> Self {
        let low: [i64; DIMENSIONS] =
            std::array::from_fn(|d| part(bounds.free_min[d].saturating_sub(most[d]), bounds.capacity_max[d]));
        let with_disk = bounds.capacity_max[DISK] > 0;
        let without_disk = bounds.capacity_min[DISK] == 0;
        let mut limits = Self {
            least_mean: POINTS,
            most_evened: most_evened(bounds, least, most),
            vms: bounds.vms_max,
            support,
            apart: POINTS,
            together: POINTS,
        };
        for has_disk in [with_disk.then_some(true), without_disk.then_some(false)].into_iter().flatten() {
            limits.least_mean = limits.least_mean.min(mean(&low, scarcity, has_disk));
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

/// The mean of what stays free, each dimension by its scarcity.
fn mean(rest: &[i64; DIMENSIONS], scarcity: &Scarcity, has_disk: bool) -> i64 {
    let dims = if has_disk { DIMENSIONS } else { DISK };
    let sum: i64 = rest[..dims].iter().zip(scarcity).map(|(rest, scarcity)| rest * scarcity).sum();
    sum / scarcity[..dims].iter().sum::<i64>().max(1)
}

/// How much nearer `lean` comes to 0 by a VM whose skew is anywhere between `from` and `to`, whichever is best.
fn evened(lean: i64, from: i64, to: i64) -> i64 {
    lean.abs() - (from - lean).max(lean - to).max(0)
}

/// The most that [`evened`] is for any node of a block. It is linear between the ends of the lean and of the skew,
/// and 0 can only be a lowest point, so one of these is the highest.
fn most_evened(bounds: &Bounds, least: &Amounts, most: &Amounts) -> i64 {
    // A node that has none of something has no part of it, which no division bounds from above.
    let high = |amounts: &Amounts, d: usize| match bounds.capacity_min[d] {
        0 => POINTS,
        capacity => part(amounts[d], capacity).min(POINTS),
    };
    let low = |amounts: &Amounts, d: usize| match bounds.capacity_min[d] {
        0 => 0,
        _ => part(amounts[d], bounds.capacity_max[d]),
    };
    let (free_min, free_max) = (&bounds.free_min, &bounds.free_max);
    let lean = (low(free_min, VCPUS) - high(free_max, MEMORY), high(free_max, VCPUS) - low(free_min, MEMORY));
    let skew = (low(least, VCPUS) - high(most, MEMORY), high(most, VCPUS) - low(least, MEMORY));
    let ends = [lean.0, lean.1, skew.0.clamp(lean.0, lean.1), skew.1.clamp(lean.0, lean.1)];
    ends.map(|at| evened(at, skew.0, skew.1)).into_iter().max().unwrap_or(POINTS)
}

/// Six VMs make half of the points: the more there are, the less one more changes.
fn held(vms: u32) -> i64 {
    let vms = i64::from(vms);
    POINTS * vms / (vms + 6)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_place_within_the_bounds_is_evened_more(
            (lean0, lean1) in (-10_000i64..=10_000, -10_000i64..=10_000),
            (skew0, skew1) in (-10_000i64..=10_000, -10_000i64..=10_000),
            (a, b) in (0i64..=1_000, 0i64..=1_000),
        ) {
            let (lean, skew) = ((lean0.min(lean1), lean0.max(lean1)), (skew0.min(skew1), skew0.max(skew1)));
            let ends = [lean.0, lean.1, skew.0.clamp(lean.0, lean.1), skew.1.clamp(lean.0, lean.1)];
            let most = ends.map(|at| evened(at, skew.0, skew.1)).into_iter().max();
            let within = |(from, to): (i64, i64), at: i64| from + (to - from) * at / 1_000;
            let (x, n) = (within(lean, a), within(skew, b));
            prop_assert_eq!(evened(x, n, n), x.abs() - (x - n).abs());
            prop_assert!(Some(evened(x, n, n)) <= most);
        }
    }
}
