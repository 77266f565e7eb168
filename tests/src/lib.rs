//! A cloud of real processes for tests: controllers on free ports, agents in the namespaced hosts of deploy/testbed,
//! real TLS between all of them, and the clients that a user has.
//!
//! Invariants: what a test makes carries its own prefix and goes when the [`Cloud`] does, also after a panic; what a
//! killed run left is swept by the next. Waiting is polling with a deadline and asserts the outcome only. Deliberately
//! absent: skipping; what is missing is installed, or the test fails and says what is missing.

pub mod agent;
pub mod api;
pub mod binaries;
pub mod bmc;
pub mod cli;
pub mod cloud;
pub mod controller;
pub mod etcd;
pub mod figures;
pub mod fleet;
pub mod guarded;
pub mod guest;
pub mod island;
pub mod lookout;
pub mod process;
pub mod provider;
pub mod province;
pub mod rest;
pub mod slot;
pub mod testbed;
pub mod wait;
pub mod watcher;

pub use cloud::{Builder, Cloud};
pub use wait::{Hopeless, eventually, not_yet};

/// What may go wrong in a test.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;
