//! The store: a key-value contract with revisions, guarded transactions and watch, and the typed
//! resources above it.
//!
//! Business code holds an `Arc<dyn kv::Kv>` and never learns which backend serves it. The suite in
//! `contract` (feature `contract`) proves every backend by the same cases.

pub mod backend;
pub mod cache;
#[cfg(feature = "contract")]
pub mod contract;
mod files;
mod hub;
pub mod journal;
pub mod kv;
pub mod mvcc;
pub mod typed;
pub mod view;
