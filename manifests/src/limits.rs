//! How much a manifest may ask for. Manifests are written by many hands and checked in pipelines: each limit here bounds
//! time or memory, and going over one is a fault like any other.

/// One file, bytes.
pub const FILE_BYTES: usize = 1 << 20;
/// Files of one manifest with its modules.
pub const FILES: usize = 500;
/// Blocks and locals of one module.
pub const NODES: usize = 20_000;
/// Resources of one manifest, counted after `count` and `for_each`.
pub const RESOURCES: usize = 20_000;
/// Modules within modules.
pub const MODULE_DEPTH: usize = 8;
/// Values within values.
pub const VALUE_DEPTH: u16 = 64;
/// Steps of evaluation for the whole manifest; making or walking through so many bytes of text is one too.
pub const EFFORT: u64 = 20_000_000;
pub const STEP_BYTES: u64 = 16;
/// Numbers that one `range` makes, as in Terraform.
pub const RANGE: usize = 1_024;
/// Faults that are told at once.
pub const FAULTS: usize = 20;
