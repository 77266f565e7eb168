//! The index by free capacity: all nodes in one order in which nodes with similar room stand together, cut into
//! blocks that know the bounds of their members. A search looks at the bounds first and opens only blocks that can
//! still hold the best node, so it answers exactly what looking at every node would, at a fraction of the visits.
//!
//! The order is traits, then size class, then the Z-order curve of the free fractions (Morton 1966), then id; the
//! blocks are the leaves of a packed R-tree (Kamel and Faloutsos 1993) with one level. A wrong order could only
//! cost time: which node is found depends on the entries alone. Deliberately absent: rules and scores.

use std::sync::Arc;

use tamdao_model::NodeId;

use crate::cells::{Largest, each};

/// Entries of one block at most; a full block is cut in halves.
const BLOCK_MAX: usize = 48;
/// A block with fewer is joined with a neighbour if both fit in half a block.
const BLOCK_MIN: usize = 12;

/// Dimensions of capacity: virtual CPUs, memory MiB, and MiB of all local pools together.
pub(crate) const DIMENSIONS: usize = 3;
/// One amount per dimension.
pub(crate) type Amounts = [u64; DIMENSIONS];

pub(crate) const VCPUS: usize = 0;
pub(crate) const MEMORY: usize = 1;
pub(crate) const DISK: usize = 2;

/// What a search needs of a node at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) order: u64,
    pub(crate) id: NodeId,
    pub(crate) slot: u32,
    pub(crate) traits: u32,
    pub(crate) vms: u32,
    /// The day its support ends; the largest number if it is not known.
    pub(crate) support: u32,
    pub(crate) capacity: Amounts,
    pub(crate) free: Amounts,
    /// The largest free amounts of its NUMA cells.
    pub(crate) cells: Largest,
}

impl Entry {
    fn key(&self) -> (u64, NodeId) {
        (self.order, self.id)
    }

    /// Sets `order` from the rest.
    pub(crate) fn ordered(mut self) -> Self {
        let size = |d: usize| u64::from(64 - self.capacity[d].leading_zeros()) & 0x7f;
        let mut curve = 0;
        for d in 0..DIMENSIONS {
            let fraction = if self.capacity[d] == 0 {
                0
            } else {
                u128::from(self.free[d]) * 1023 / u128::from(self.capacity[d])
            };
            curve |= spread_bits(u64::try_from(fraction).unwrap_or(1023).min(1023)) << d;
        }
        self.order = u64::from(self.traits & 0xffff) << 48 | size(VCPUS) << 41 | size(MEMORY) << 34 | curve;
        self
    }
}

/// Ten bits, two places between each and the next.
fn spread_bits(value: u64) -> u64 {
    (0..10).fold(0, |bits, i| bits | (value >> i & 1) << (3 * i))
}

/// What is true of every entry of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) free_min: Amounts,
    pub(crate) free_max: Amounts,
    pub(crate) capacity_min: Amounts,
    pub(crate) capacity_max: Amounts,
    pub(crate) cells_max: Largest,
    pub(crate) support_max: u32,
    pub(crate) vms_max: u32,
    /// The traits that all share, if they do.
    pub(crate) traits: Option<u32>,
    pub(crate) id_min: NodeId,
}

impl Bounds {
    fn of(entries: &[Entry]) -> Option<Self> {
        let (first, rest) = entries.split_first()?;
        let mut bounds = Self {
            free_min: first.free,
            free_max: first.free,
            capacity_min: first.capacity,
            capacity_max: first.capacity,
            cells_max: first.cells,
            support_max: first.support,
            vms_max: first.vms,
            traits: Some(first.traits),
            id_min: first.id,
        };
        for entry in rest {
            for d in 0..DIMENSIONS {
                bounds.free_min[d] = bounds.free_min[d].min(entry.free[d]);
                bounds.free_max[d] = bounds.free_max[d].max(entry.free[d]);
                bounds.capacity_min[d] = bounds.capacity_min[d].min(entry.capacity[d]);
                bounds.capacity_max[d] = bounds.capacity_max[d].max(entry.capacity[d]);
            }
            for (most, cells) in bounds.cells_max.iter_mut().zip(entry.cells) {
                *most = each(most, &cells, u64::max);
            }
            bounds.support_max = bounds.support_max.max(entry.support);
            bounds.vms_max = bounds.vms_max.max(entry.vms);
            if bounds.traits != Some(entry.traits) {
                bounds.traits = None;
            }
            bounds.id_min = bounds.id_min.min(entry.id);
        }
        Some(bounds)
    }
}

/// A block with its bounds beside it, so that a search passes over it without touching it.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    first: (u64, NodeId),
    pub(crate) bounds: Bounds,
    pub(crate) entries: Arc<Vec<Entry>>,
}

/// Of all nodes together. Wide enough that no sum of amounts overflows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) capacity: [u128; DIMENSIONS],
    pub(crate) free: [u128; DIMENSIONS],
}

/// Copy on write at two levels: a clone copies one pointer; the first change after it copies the list of blocks
/// (about 200 bytes for each 32 nodes) and the one block that changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    blocks: Arc<Vec<Block>>,
    sums: Sums,
}

impl Index {
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn sums(&self) -> &Sums {
        &self.sums
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        for d in 0..DIMENSIONS {
            self.sums.capacity[d] += u128::from(entry.capacity[d]);
            self.sums.free[d] += u128::from(entry.free[d]);
        }
        let blocks = Arc::make_mut(&mut self.blocks);
        let at = position(blocks, entry.key());
        let Some(block) = blocks.get_mut(at) else {
            blocks.extend(block(vec![entry]));
            return;
        };
        let entries = Arc::make_mut(&mut block.entries);
        let place = entries.partition_point(|e| e.key() < entry.key());
        entries.insert(place, entry);
        if entries.len() > BLOCK_MAX {
            let upper = entries.split_off(entries.len() / 2);
            blocks.splice(at + 1..at + 1, self::block(upper));
        }
        refresh(blocks, at);
    }

    /// Takes out the entry with this order and id, which must be in.
    pub(crate) fn remove(&mut self, order: u64, id: NodeId) {
        let blocks = Arc::make_mut(&mut self.blocks);
        let at = position(blocks, (order, id));
        let Some(block) = blocks.get_mut(at) else { return };
        let entries = Arc::make_mut(&mut block.entries);
        if let Ok(place) = entries.binary_search_by_key(&(order, id), Entry::key) {
            let entry = entries.remove(place);
            for d in 0..DIMENSIONS {
                self.sums.capacity[d] -= u128::from(entry.capacity[d]);
                self.sums.free[d] -= u128::from(entry.free[d]);
            }
        }
        if entries.len() < BLOCK_MIN {
            join(blocks, at);
        } else {
            refresh(blocks, at);
        }
    }
}

/// The block that holds this key or should.
fn position(blocks: &[Block], key: (u64, NodeId)) -> usize {
    blocks.partition_point(|b| b.first <= key).saturating_sub(1)
}

fn block(entries: Vec<Entry>) -> Option<Block> {
    let bounds = Bounds::of(&entries)?;
    Some(Block { first: entries[0].key(), bounds, entries: Arc::new(entries) })
}

/// Makes a block's bounds true again, or takes it out if it is empty.
fn refresh(blocks: &mut Vec<Block>, at: usize) {
    let block = &mut blocks[at];
    match Bounds::of(&block.entries) {
        Some(bounds) => {
            block.bounds = bounds;
            block.first = block.entries[0].key();
        }
        None => {
            blocks.remove(at);
        }
    }
}

/// Joins a small block with the next or the one before, if both are small.
fn join(blocks: &mut Vec<Block>, at: usize) {
    let small =
        |i: usize| blocks.get(i).is_some_and(|b| b.entries.len() + blocks[at].entries.len() <= BLOCK_MAX / 2);
    let lower = if small(at + 1) {
        at
    } else if at > 0 && small(at - 1) {
        at - 1
    } else {
        refresh(blocks, at);
        return;
    };
    let upper = blocks.remove(lower + 1);
    Arc::make_mut(&mut blocks[lower].entries).extend(upper.entries.iter().copied());
    refresh(blocks, lower);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn entry(id: u128, free: u64) -> Entry {
        Entry {
            order: 0,
            id: NodeId(Uuid::from_u128(id)),
            slot: 0,
            traits: 0,
            vms: 0,
            support: u32::MAX,
            capacity: [1_000; DIMENSIONS],
            free: [free; DIMENSIONS],
            cells: [[free, 2 * free, free], [free / 2, free, 0]],
        }
        .ordered()
    }

    proptest! {
        #[test]
        fn it_holds_what_was_put_in_with_true_bounds(steps in prop::collection::vec((0u128..200, 0u64..=1_000), 1..600)) {
            let mut index = Index::default();
            let mut model = std::collections::BTreeMap::new();
            for (id, free) in steps {
                let new = entry(id, free);
                if let Some(old) = model.insert(id, new) {
                    index.remove(old.order, old.id);
                    // Every third change takes the node out.
                    if free % 3 == 0 {
                        model.remove(&id);
                        continue;
                    }
                }
                index.insert(new);
            }
            let mut expected: Vec<_> = model.into_values().collect();
            expected.sort_by_key(Entry::key);
            let held: Vec<_> = index.blocks().iter().flat_map(|b| b.entries.iter().copied()).collect();
            let sum = |of: fn(&Entry) -> u64| expected.iter().map(|entry| u128::from(of(entry))).sum::<u128>();
            prop_assert_eq!(index.sums().free[DISK], sum(|entry| entry.free[DISK]));
            prop_assert_eq!(index.sums().capacity[VCPUS], sum(|entry| entry.capacity[VCPUS]));
            prop_assert_eq!(held, expected);
            for block in index.blocks() {
                prop_assert_eq!(Some(block.bounds), Bounds::of(&block.entries));
                prop_assert!(block.entries.len() <= BLOCK_MAX);
            }
        }
    }
}
