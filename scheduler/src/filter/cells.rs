//! A VM that asks for NUMA cells needs that many of one node, each with room for its share.

use super::Ask;
use crate::reason::Reason;
use crate::shape::Cell;
use crate::view::Row;

pub(super) fn room(ask: &Ask, row: &Row) -> Option<Reason> {
    let asked = ask.vm.cell_ask(row.shape.emulation)?;
    let fitting = row.cells_free().filter(|free| asked.fits(free)).count();
    let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
    if fitting >= asked.cells {
        return None;
    }
    let need = Cell::of(asked.share);
    let without = row.cells_free().filter(|free| !asked.fits(free)).map(Cell::of);
    let nearest = without.min_by_key(|free| free.lacks(&need));
    Some(Reason::NotEnoughCells { cells: asked.cells, need, fitting, nearest })
}
