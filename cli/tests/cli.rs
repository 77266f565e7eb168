//! The real binary against a fake cloud in this process: stdout, stderr and status are frozen together. The fake says
//! what each test tells it to; there is no logic of a cloud here, and no sleep.

#![allow(clippy::unwrap_used)]

#[path = "cli/fake.rs"]
mod fake;
#[path = "cli/plain.rs"]
mod plain;
#[path = "cli/run.rs"]
mod run;

#[path = "cli/console.rs"]
mod console;
#[path = "cli/contexts.rs"]
mod contexts;
#[path = "cli/failover.rs"]
mod failover;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/manifests.rs"]
mod manifests;
#[path = "cli/nodes.rs"]
mod nodes;
#[path = "cli/placement.rs"]
mod placement;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/simulate.rs"]
mod simulate;
#[path = "cli/vms.rs"]
mod vms;
