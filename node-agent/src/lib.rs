//! The node's agent: hears from the leader what this host must run, makes it so through a hypervisor, and reports.
//!
//! Invariants (design, section 5): guests run on while the agent is stopped; nothing starts without an order of the
//! present session, but again on the same boot under the same incarnation; absence is never a command. Only
//! `hypervisor` knows libvirt. Deliberately absent: the keeper and moves, whose places are marked in `operate`.

pub mod agent;
#[cfg(test)]
mod agent_tests;
pub mod checkpoint;
pub mod cloudinit;
pub mod config;
pub mod desired;
pub mod dial;
pub mod enroll;
pub mod guard;
pub mod guests;
pub mod host;
pub mod hypervisor;
pub mod image;
pub mod keeper;
pub mod ledger;
pub mod metrics;
pub mod moves;
pub mod news;
pub mod node;
pub mod operate;
pub mod pki;
pub mod reconcile;
pub mod session;
pub mod token;
pub mod tunnel;
pub mod volume;
