//! Between the public contract and the model: reading checks everything and names the field that is wrong;
//! showing turns ids back into names. Nothing that was read here breaks a limit of [`crate::limits`]. What needs
//! another record than the one at hand (an image's kind, a subnet's free addresses, quota) is not checked here:
//! [`Lookup`] answers with ids and names only.

pub mod agency;
pub mod agent;
pub mod audit;
mod check;
pub mod cluster;
pub mod controller;
pub mod event;
pub mod flavor;
mod held;
pub mod image;
pub mod metadata;
pub mod moves;
pub mod network;
pub mod node;
pub mod placement_group;
pub mod pool;
mod role_binding;
pub mod scheduling_policy;
mod syntax;
pub mod token;
mod twin;
mod update;
pub mod vm;
mod vm_show;
mod vm_update;
pub mod volume;

use std::fmt;

use pbjson_types::FieldMask;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use check::Checks;
pub use syntax::{label_key, label_value};
pub use twin::Twin;
pub use vm_update::{
    RepeatedTemplate, Resize, UpdatedVm, UserDataChange, check_template, read_deadline, read_resize,
};
pub use volume::default_pool;

use crate::lookup::Lookup;
use crate::{Resource, Scope, TimeMs};

/// A resource as the public contract shows it.
pub trait Shown: Resource {
    type Proto: prost::Message + Default + Clone + PartialEq + Serialize + DeserializeOwned;

    /// The full name of its message, for the descriptors.
    const MESSAGE: &'static str;

    /// Shows it. Derived status that lies in other records is left unset for the caller to fill.
    fn show(&self, revision: u64, lookup: &dyn Lookup) -> Self::Proto;

    /// The number of its phase in the contract, for list filters; 0 where it has none.
    fn phase_number(&self) -> i32 {
        0
    }
}

/// A resource that requests write.
pub trait Public: Shown {
    /// Reads a create request's resource. A reference that does not exist is a violation.
    fn create(proto: Self::Proto, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid>;

    /// This resource with the masked fields of the request; a mask of none takes display_name, labels and the
    /// spec. The generation grows if and only if the spec changes. metadata.revision is the caller's to compare.
    fn update(
        &self,
        proto: Self::Proto,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid>;
}

/// What the surroundings give to a new resource.
#[derive(Debug, Clone, Copy)]
pub struct New {
    pub id: Uuid,
    pub scope: Scope,
    pub now: TimeMs,
}

/// One thing wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The proto path, such as `vm.spec.disks[0].create.size_mib`.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl Violation {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// All that is wrong with a request, in the order of its fields.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Invalid {
    pub violations: Vec<Violation>,
}

impl From<Violation> for Invalid {
    fn from(violation: Violation) -> Self {
        Self { violations: vec![violation] }
    }
}
