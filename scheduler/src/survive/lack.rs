//! What is lacking where a loss could not be borne, for people. All but [`Lack::NotProven`] is a proof that there is no
//! plan: restarts only add to what a node holds, so what is too little, or forbidden, before any restart stays so.

use std::fmt;
use std::sync::Arc;

use tamdao_model::NodeId;

use super::guarantee::Guarantee;
use super::reserve::Lost;
use crate::filter::Ask;
use crate::index::{Amounts, MEMORY, VCPUS};
use crate::place::{Rejection, tally};
use crate::reason::ReasonKind;
use crate::shape::VmShape;
use crate::view::View;

/// What is lacking for a loss to be borne.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// Counted together, what is lost needs more than is free on all that remains.
    Vcpus {
        need: u64,
        free: u64,
    },
    Memory {
        need_mib: u64,
        free_mib: u64,
    },
    /// The VM, or another of its groups, may run on no node that remains.
    Rules(Box<Rejection>),
    /// No plan was found; there may be one.
    NotProven,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpus { need, free } => write!(f, "{need} vCPUs are needed, {free} are free"),
            Self::Memory { need_mib, free_mib } => {
                write!(f, "{need_mib} MiB of memory are needed, {free_mib} MiB are free")
            }
            Self::Rules(rejection) => write!(f, "after it there is {rejection}"),
            Self::NotProven => f.write_str("no plan was found"),
        }
    }
}

impl Guarantee {
    /// What a loss lacks, with one more VM on a node if one is given.
    pub(super) fn lack(&self, number: u32, more: Option<(NodeId, &VmShape)>) -> Lack {
        let lost = self.lost(number);
        let mut free = Amounts::default();
        for (slot, row) in self.view().rows() {
            if !lost.nodes.contains(&slot) {
                free = std::array::from_fn(|d| free[d].saturating_add(row.entry.free[d]));
            }
        }
        let mut need = Amounts::default();
        for vm in planned(lost).chain(more.map(|(_, vm)| vm)) {
            let held = vm.reservation_on(false);
            need[VCPUS] += u64::from(held.vcpus);
            need[MEMORY] = need[MEMORY].saturating_add(held.memory_mib);
        }
        if need[VCPUS] > free[VCPUS] {
            Lack::Vcpus { need: need[VCPUS], free: free[VCPUS] }
        } else if need[MEMORY] > free[MEMORY] {
            Lack::Memory { need_mib: need[MEMORY], free_mib: free[MEMORY] }
        } else {
            self.barred(lost, more).map_or(Lack::NotProven, |rejection| Lack::Rules(Box::new(rejection)))
        }
    }

    /// Why a VM has no place after the loss, whatever is done with others: with one more VM on a node that one, or
    /// another of its groups; without, one that is left out now.
    fn barred(&self, lost: &Lost, more: Option<(NodeId, &VmShape)>) -> Option<Rejection> {
        let Some((node, vm)) = more else {
            return lost.left_out.values().find_map(|victim| barred(self.view(), lost, victim));
        };
        let mut view = self.view().clone();
        view.assign(node, Arc::new(vm.clone())).ok()?;
        let own = view.slot(node).filter(|slot| lost.nodes.contains(slot)).map(|_| vm);
        let kin = planned(lost).filter(|other| !other.groups.is_disjoint(&vm.groups));
        own.into_iter().chain(kin).find_map(|victim| barred(&view, lost, victim))
    }
}

/// Those that are to be restarted after a loss.
fn planned(lost: &Lost) -> impl Iterator<Item = &VmShape> {
    let planned = lost.stocks().iter().flat_map(|stock| stock.held.vms.iter().map(|(vm, _)| &**vm));
    planned.chain(lost.left_out.values().map(|vm| &**vm))
}

fn barred(view: &View, lost: &Lost, victim: &VmShape) -> Option<Rejection> {
    let ask = Ask::after_loss(view, victim, &|_, slot| (!lost.nodes.contains(&slot)).then_some(slot));
    let remain = view.rows_by_id().filter(|row| !lost.nodes.contains(&row.entry.slot));
    // Whom it must stand beside may be restarted too, wherever that is.
    let lasting = |kind| kind != ReasonKind::NotTogether;
    let reasons: Option<Vec<_>> = remain
        .map(|row| Some((row, Some(ask.reasons(row).find(|reason| lasting(reason.kind()))?))))
        .collect();
    reasons.map(tally)
}
