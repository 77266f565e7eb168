//! What the public contract promises of reading and showing: each violation's words, updates that change only what
//! they name, and that whatever is shown can be put back.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod agents;
mod mask;
mod phase;
mod properties;
mod ranges;
mod records;
mod selector;
mod updates;
mod violations;
mod vm_violations;
mod world;
