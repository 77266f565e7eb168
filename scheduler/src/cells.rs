//! NUMA cells. A VM that asks for N cells lies on N distinct cells of its node, its CPUs, memory and huge pages split
//! evenly over them and rounded up, and holds room there as well as on the node; all other VMs hold only the node's.
//! Huge pages are set aside by the host in each cell, so they are an amount of cells and of nothing else. Which cells a VM
//! gets follows from the node's state alone: those that stay fullest. Deliberately absent: which of a cell's processors
//! a guest's threads run on, and VMs that move between the cells of a node.

use std::fmt;

/// Cells of one node that the engine knows; further ones are never placed on.
pub const CELLS_MAX: usize = 64;

/// A set of cells of one node, by their positions in its list.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cells(u64);

impl Cells {
    pub const NONE: Self = Self(0);

    /// None if a position is not below [`CELLS_MAX`].
    pub fn of(positions: impl IntoIterator<Item = usize>) -> Option<Self> {
        positions
            .into_iter()
            .try_fold(Self::NONE, |cells, at| (at < CELLS_MAX).then(|| Self(cells.0 | 1 << at)))
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    pub fn contains(self, at: usize) -> bool {
        at < CELLS_MAX && self.0 >> at & 1 == 1
    }

    /// The positions, lowest first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..CELLS_MAX).filter(move |at| self.contains(*at))
    }
}

/// As the text format has it: 0+1.
impl fmt::Display for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, at) in self.iter().enumerate() {
            write!(f, "{}{at}", if n > 0 { "+" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Cells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cells({self})")
    }
}

/// What lies within one cell: virtual CPUs, memory in MiB, and huge pages in MiB.
pub(crate) type Share = [u64; 3];

/// Two shares, amount by amount.
pub(crate) fn each(a: &Share, b: &Share, apply: impl Fn(u64, u64) -> u64) -> Share {
    std::array::from_fn(|d| apply(a[d], b[d]))
}

/// What one VM asks of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CellAsk {
    pub(crate) cells: u32,
    /// On each of them.
    pub(crate) share: Share,
}

impl CellAsk {
    /// Of a VM that holds this much in all; none if it does not ask for cells.
    pub(crate) fn new(cells: u32, whole: Share) -> Option<Self> {
        (cells > 0).then(|| Self { cells, share: whole.map(|amount| amount.div_ceil(cells.into())) })
    }

    pub(crate) fn fits(&self, free: &Share) -> bool {
        self.share.iter().zip(free).all(|(need, free)| need <= free)
    }

    /// The cells that would have the least left, the lowest positions among equals; none if too few have room.
    /// CPUs and memory weigh by their part of `whole`, the node's capacity, so that cells of unequal size compare
    /// by what is left and not by how full they are; among equals huge pages decide. As the VM needs the same of each
    /// cell, taking the tightest ones one by one is as tight as any other choice.
    pub(crate) fn choose(&self, free: impl Iterator<Item = Share>, whole: &[u64; 2]) -> Option<Cells> {
        // Both parts times both capacities: exact, without fractions.
        let part = |left: u64, other: u64| u128::from(left) * u128::from(other.max(1));
        let left =
            |free: &Share| part(free[0] - self.share[0], whole[1]) + part(free[1] - self.share[1], whole[0]);
        let fitting = free.enumerate().filter(|(_, free)| self.fits(free));
        let mut fitting: Vec<_> = fitting.map(|(at, free)| (left(&free), free[2], at)).collect();
        fitting.sort_unstable();
        let chosen = fitting.get(..self.cells as usize)?;
        Cells::of(chosen.iter().map(|(.., at)| *at))
    }
}

/// The largest and the second largest of each amount over all cells: what one cell, and each of two, may have.
pub(crate) type Largest = [Share; 2];

pub(crate) fn largest(free: impl Iterator<Item = Share>) -> Largest {
    let mut largest = Largest::default();
    for cell in free {
        for (d, amount) in cell.into_iter().enumerate() {
            if amount > largest[0][d] {
                (largest[1][d], largest[0][d]) = (largest[0][d], amount);
            } else if amount > largest[1][d] {
                largest[1][d] = amount;
            }
        }
    }
    largest
}

impl CellAsk {
    /// Whether cells with these largest amounts may have room; never false where some have.
    pub(crate) fn may_fit(&self, largest: &Largest) -> bool {
        self.fits(&largest[usize::from(self.cells > 1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(cells: u32, share: [u64; 2], free: &[[u64; 2]]) -> Option<String> {
        let in_cells = |[vcpus, memory]: [u64; 2]| [vcpus, memory, 0];
        let free = free.iter().map(|free| in_cells(*free));
        let chosen = CellAsk { cells, share: in_cells(share) }.choose(free, &[32, 32])?;
        Some(chosen.to_string())
    }

    #[test]
    fn huge_pages_are_needed_and_then_spared() {
        let ask = |huge| CellAsk { cells: 1, share: [4, 4, huge] };
        let free = [[8, 8, 16], [8, 8, 8], [8, 8, 2]];
        let chosen = |huge| Some(ask(huge).choose(free.into_iter(), &[32, 32])?.to_string());
        assert_eq!(chosen(0).as_deref(), Some("2"));
        assert_eq!(chosen(4).as_deref(), Some("1"));
        assert_eq!(chosen(17), None);
    }

    #[test]
    fn the_tightest_cells_are_taken() {
        assert_eq!(choose(1, [4, 4], &[[16, 16], [8, 8], [3, 16], [8, 8]]).as_deref(), Some("1"));
        assert_eq!(choose(2, [4, 4], &[[16, 16], [8, 8], [3, 16], [16, 16]]).as_deref(), Some("0+1"));
        assert_eq!(choose(2, [4, 4], &[[16, 16], [3, 8], [16, 3]]), None);
        assert_eq!(choose(1, [0, 0], &[]), None);
        // Memory counts as much as CPUs.
        assert_eq!(choose(1, [4, 4], &[[4, 16], [6, 6]]).as_deref(), Some("1"));
    }

    #[test]
    fn a_set_holds_what_was_put_in() {
        let cells = Cells::of([63, 0]).unwrap();
        assert_eq!((cells.to_string().as_str(), cells.len(), cells.contains(63)), ("0+63", 2, true));
        assert_eq!((Cells::of([64]), Cells::of([]).unwrap().is_empty()), (None, true));
    }

    #[test]
    fn the_largest_two_are_of_distinct_cells() {
        assert_eq!(largest([[3, 9, 0], [5, 1, 2], [5, 4, 7]].into_iter()), [[5, 9, 7], [5, 4, 2]]);
    }
}
