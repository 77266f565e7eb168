//! The placement engine: a cluster as data in, decisions as data out. Equal input gives an equal answer on every
//! machine, so any decision can be computed again; infeasible is an answer with counted reasons, never an error.
//!
//! [`View`] is the cluster, [`VmShape`] what is asked for. [`place`](place::place) answers where, [`explain`] why
//! and what would help, [`check`] judges a plan by its own arithmetic before it is committed. Deliberately absent:
//! clocks, randomness, I/O and records of the store.

pub mod capacity;
pub mod cells;
pub mod check;
pub mod explain;
mod filter;
pub mod from_model;
mod index;
pub mod judge;
pub mod overhead;
pub mod place;
pub mod plan;
pub mod reason;
pub mod score;
pub mod shape;
pub mod survive;
pub mod text;
mod traits;
pub mod view;

pub use cells::Cells;
pub use overhead::overhead_mib;
pub use place::{Placement, Rejection};
pub use reason::Reason;
pub use shape::{
    By, Cell, Day, DiskNeed, Group, GroupId, NodePool, NodeShape, PoolShape, Rule, RuleKind, SharedRoom,
    VmShape,
};
pub use view::{View, ViewError};
