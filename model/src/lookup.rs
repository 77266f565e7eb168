//! How names in requests become ids in records, and back: the one question that conversions ask of the world.

use uuid::Uuid;

use crate::{Kind, Name, Scope};

/// Finds resources by name or id. A view of the store answers it; tests use a table.
pub trait Lookup {
    /// The id of the resource of this name or id in this scope, if it exists.
    fn id(&self, kind: Kind, scope: Scope, name_or_id: &str) -> Option<Uuid>;

    /// The name of the resource with this id, if it exists.
    fn name(&self, kind: Kind, id: Uuid) -> Option<Name>;
}
