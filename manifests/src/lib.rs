//! Manifests: files in Terraform's form, or in the API's own, that say what a cloud shall have. From bytes to faults that point into the files,
//! to desired resources, to a plan against what the cloud has, to steps in the order of their dependencies. Everything
//! here is pure: files and resources come through the caller's hands, and nothing is sent. What a block may say is read
//! from the contract's descriptors (`schema`), and what the cloud would answer is asked of the controller's own
//! conversions (`judge`), so that neither is written twice.

mod compare;
mod config;
mod document;
mod effects;
mod eval;
mod expand;
mod export;
mod fmt;
mod functions;
mod graph;
mod judge;
pub mod limits;
mod manifest;
mod plan;
mod schema;
mod show;
mod source;
mod steps;
mod types;
mod value;

pub use compare::{Difference, VolumeChange, revision};
pub use document::is as is_document;
pub use expand::{Desired, Expanded, Place, expand};
pub use export::export;
pub use fmt::format;
pub use manifest::{Faulty, Given, Inputs, Live, Manifest, values};
pub use plan::{Action, Change, Plan, Preview, Summary, Unfit, Where, Wish, plan, validate};
pub use schema::{Owner, kinds};
pub use show::{outputs, show};
pub use source::{At, Fault, File, in_order, place, tell};
pub use steps::{Step, What, steps};
pub use tamdao_model::convert::metadata::STACK;
pub use value::Value;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
