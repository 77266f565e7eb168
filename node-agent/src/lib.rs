//! The node's agent: hears from the leader what this host must run, makes it so through a hypervisor, and reports.
//!
//! Invariants (design, section 5): guests run on while the agent is stopped; nothing starts without an order of the
//! present session, but again on the same boot under the same incarnation; absence is never a command. Only
//! `hypervisor` knows libvirt. Deliberately absent: the keeper and moves, whose places are marked in `operate`.

pub mod cloudinit;
pub mod config;
pub mod desired;
pub mod guard;
pub mod hypervisor;
pub mod ledger;
pub mod reconcile;
