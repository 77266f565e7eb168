//! The places where a store can live; each keeps the contract of [`crate::kv`] and is proved by
//! the same suite. Code outside a backend's own directory names only its public type.

pub mod etcd;
pub mod memory;
pub mod raft;
