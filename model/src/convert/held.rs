//! A lookup that also knows what a record already refers to. What is shown can thus always be put back: a
//! reference to a resource that has gone is shown as its id, and a name that another resource has since taken
//! nearer by still means the one that it was shown for.

use uuid::Uuid;

use crate::lookup::Lookup;
use crate::{Kind, Name, Scope};

pub struct Held<'a> {
    lookup: &'a dyn Lookup,
    ids: Vec<(Kind, Uuid)>,
}

impl<'a> Held<'a> {
    pub fn new(lookup: &'a dyn Lookup, ids: impl IntoIterator<Item = (Kind, Uuid)>) -> Self {
        Self { lookup, ids: ids.into_iter().collect() }
    }
}

impl Lookup for Held<'_> {
    fn id(&self, kind: Kind, scope: Scope, name_or_id: &str) -> Option<Uuid> {
        let means = |id: Uuid| show(self.lookup, kind, id) == name_or_id || id.to_string() == name_or_id;
        let held = self.ids.iter().find(|(k, id)| *k == kind && means(*id)).map(|(_, id)| *id);
        held.or_else(|| self.lookup.id(kind, scope, name_or_id))
    }

    fn name(&self, kind: Kind, id: Uuid) -> Option<Name> {
        self.lookup.name(kind, id)
    }
}

/// The name of a resource, or its id when it has gone.
pub fn show(lookup: &dyn Lookup, kind: Kind, id: impl Into<Uuid>) -> String {
    let id = id.into();
    lookup.name(kind, id).map_or_else(|| id.to_string(), String::from)
}
