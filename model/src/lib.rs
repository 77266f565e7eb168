//! What the cloud knows, as plain data: typed ids, resources, their lifecycles and limits, and how they are read
//! from and shown in the public contract. Everything here is pure: time, ids and randomness are arguments, and
//! no code waits, stores or sends.

pub mod address;
pub mod agency;
pub mod applied;
pub mod assignment;
pub mod audit;
pub mod bmc;
pub mod cluster;
pub mod condition;
pub mod convert;
pub mod event;
pub mod fence;
pub mod flavor;
pub mod forecast;
pub mod id;
pub mod image;
pub mod limits;
pub mod lookup;
pub mod mask;
pub mod moves;
pub mod name;
pub mod network;
pub mod node;
pub mod placement_group;
pub mod pool;
pub mod quota;
pub mod range;
pub mod record;
pub mod recovery;
pub mod role;
pub mod role_binding;
pub mod scheduling_policy;
pub mod sealed;
pub mod selector;
pub mod time;
pub mod token;
pub mod vm;
pub mod volume;

pub use id::*;
pub use name::{Name, NameError, composed};
pub use record::{Kind, Meta, Resource, Scope, Stored};
pub use time::TimeMs;
