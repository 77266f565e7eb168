//! The store's integration tests: one binary, since each would link everything anew.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by #[test] and not their fixtures")]

mod cluster;
mod etcd;
mod faults;
mod linear;
mod members;
mod memory;
mod raft;
mod remains;
mod room;
mod seed;
