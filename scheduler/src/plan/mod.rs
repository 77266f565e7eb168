//! Plans: ordered rounds of moves that lead from the cluster as it is to a better one. The moves of one round may
//! run at the same time, in any order; a round begins when the one before is done. While a move runs its VM holds
//! both ends, and with all ends of a round held no rule is broken, so a plan may be stopped at any moment.
//!
//! One planner per file: [`drain`] empties nodes, [`consolidate`] as many as possible, [`balance`] evens load,
//! [`defragment`] joins free room, [`maintain`] and [`rolling`] ask whether and how all can be maintained, [`reach`]
//! brings VMs to wished nodes. What cannot be done is data with counted reasons. [`crate::judge`] judges any plan
//! and shares no code with what is here. Deliberately absent: what carries a move out, how long it takes, and the
//! clock: a [`Budget`] counts steps.

pub mod balance;
pub(crate) mod bundle;
pub(crate) mod chain;
pub mod consolidate;
pub(crate) mod course;
pub mod defragment;
pub mod drain;
pub(crate) mod empty;
pub mod guard;
pub mod maintain;
pub mod reach;
pub mod rolling;
pub(crate) mod rounds;
pub(crate) mod squeeze;

use std::collections::{BTreeMap, BTreeSet};

use tamdao_model::{NodeId, VmId};

pub use guard::Guard;

use crate::cells::Cells;
use crate::survive::guarantee::Guarantee;
use crate::view::View;

/// One move of one VM. It holds its place on `from` until it is done and its place on `to` from its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub vm: VmId,
    pub from: NodeId,
    pub to: NodeId,
    /// The NUMA cells that it gets on `to`.
    pub cells: Cells,
    pub way: Way,
    /// Memory to copy, MiB: what the VM holds on `from`; 0 if it moves cold.
    pub memory_mib: u64,
    /// Disks of local pools to copy, MiB.
    pub disk_mib: u64,
    pub why: Why,
    /// What it gains in the measure of its planner, which says there what that is; 0 where moves gain together.
    pub gain: u64,
}

impl Move {
    /// All that is copied, MiB.
    pub fn copied_mib(&self) -> u64 {
        self.memory_mib.saturating_add(self.disk_mib)
    }
}

/// How a VM moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The guest runs on; its memory is copied, and the disks that lie in local pools.
    Live,
    /// The guest is stopped first.
    Cold,
}

/// What a move is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its node is to be empty.
    Empty,
    /// It makes room for another VM.
    RoomFor(VmId),
    /// Its group must be together, and another member leaves.
    With(VmId),
    /// It evens out load.
    Even,
    /// It joins free room that is too small to be of use.
    Join,
    /// It goes to the node that was wished for it.
    Wished,
}

/// Moves that may run at the same time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Round {
    pub moves: Vec<Move>,
}

/// Rounds in their order. No round is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub rounds: Vec<Round>,
}

impl Plan {
    pub fn moves(&self) -> impl Iterator<Item = &Move> + '_ {
        self.rounds.iter().flat_map(|round| &round.moves)
    }

    pub fn is_empty(&self) -> bool {
        self.rounds.is_empty()
    }

    pub fn move_count(&self) -> usize {
        self.rounds.iter().map(|round| round.moves.len()).sum()
    }

    /// All that is copied, MiB.
    pub fn copied_mib(&self) -> u64 {
        self.moves().map(Move::copied_mib).fold(0, u64::saturating_add)
    }
}

/// How much may go on at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Moves that one node takes part in at once, as either end.
    pub per_node: u32,
    /// Moves in the whole cluster at once.
    pub at_once: u32,
    /// By failure-domain key: moves that enter or leave one value of it at once, such as all over the uplink of one
    /// rack. A move crosses a value if exactly one of its ends has it. Keys that are not here are not limited.
    pub per_link: BTreeMap<String, u32>,
}

impl Default for Limits {
    /// Two moves per node, as two streams fill a link, and 32 in the cluster.
    fn default() -> Self {
        Self { per_node: 2, at_once: 32, per_link: BTreeMap::new() }
    }
}

impl Limits {
    /// No limit at all, for questions about where VMs can go, not when.
    pub fn none() -> Self {
        Self { per_node: u32::MAX, at_once: u32::MAX, per_link: BTreeMap::new() }
    }
}

/// What every planner must keep to beside the rules of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    pub limits: Limits,
    /// The losses that must still be bearable at the end; none asks nothing.
    pub guard: Option<Guard>,
    /// The guarantee as it is kept for the cluster that is planned for, with the losses of `guard`; where nobody keeps
    /// one, it is planned first.
    pub kept: Option<Guarantee>,
    /// VMs that stay where they are, whatever for.
    pub still: BTreeSet<VmId>,
    /// VMs that could only move while stopped. They stay, unless `may_stop`.
    pub cold: BTreeSet<VmId>,
    /// Whether VMs in `cold` may be stopped in order to move.
    pub may_stop: bool,
}

impl Terms {
    /// The same terms with the guarantee at hand, so that several plans for this cluster share it.
    pub fn kept_for(&self, view: &View) -> Self {
        let planned = || Some(Guarantee::new(view.clone(), &self.guard.as_ref()?.guarded()));
        Self { kept: self.kept.clone().or_else(planned), ..self.clone() }
    }
}

/// How much work a planner may do. When it is spent, the planner gives the best plan that it has. A step is one
/// search for a place or a look at one node's VMs: about 10 to 30 µs at a thousand nodes.
pub struct Budget<'a> {
    left: u64,
    spent: u64,
    stop: Option<&'a dyn Fn() -> bool>,
}

impl Default for Budget<'_> {
    /// A hundred thousand steps: one to three seconds.
    fn default() -> Self {
        Self::steps(100_000)
    }
}

impl<'a> Budget<'a> {
    /// A count of steps: equal input gives an equal plan.
    pub fn steps(steps: u64) -> Self {
        Self { left: steps, spent: 0, stop: None }
    }

    /// Also ends when the closure says so, which is asked before every step. With a clock in it the plan depends on
    /// the machine.
    pub fn until(steps: u64, stop: &'a dyn Fn() -> bool) -> Self {
        Self { left: steps, spent: 0, stop: Some(stop) }
    }

    /// Steps that were taken.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    pub fn is_spent(&self) -> bool {
        self.left == 0
    }

    /// Takes a step if there is one left.
    pub(crate) fn step(&mut self) -> bool {
        if self.left > 0 && self.stop.is_some_and(|stop| stop()) {
            self.left = 0;
        }
        if self.left == 0 {
            return false;
        }
        (self.left, self.spent) = (self.left - 1, self.spent + 1);
        true
    }
}
