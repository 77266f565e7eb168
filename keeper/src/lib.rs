//! The keeper: the small process on a node that guards the guests on shared pools. It renews the node's storage lease
//! on each pool, feeds the watchdog, and kills what it guards before anyone else may believe that the node is silent.
//!
//! It outlives the agent, and shares no fate with it: no network, no TLS, no libvirt, no async runtime. What it
//! decides is pure ([`core`]); the threads that may hang on a dead disk are apart from the one that counts time.
//! Deliberately absent: starting anything, and judging other nodes, which is done by whoever reads [`lease`] records.

pub mod boot;
pub mod client;
pub mod config;
pub mod core;
pub mod daemon;
pub mod lease;
pub mod process;
pub mod protocol;
mod state;
mod storage;
mod watchdog;
