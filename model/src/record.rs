//! What every stored record has: a kind and a key; and what every resource has beside it: metadata and a scope.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{AgencyId, Name, TimeMs};

/// The kinds of resources that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Agency,
    Node,
    Vm,
    Volume,
    Pool,
    Flavor,
    Image,
    Network,
    PlacementGroup,
    SchedulingPolicy,
    Controller,
    Move,
    Token,
    RoleBinding,
}

impl Kind {
    pub const ALL: [Self; 14] = [
        Self::Agency,
        Self::Node,
        Self::Vm,
        Self::Volume,
        Self::Pool,
        Self::Flavor,
        Self::Image,
        Self::Network,
        Self::PlacementGroup,
        Self::SchedulingPolicy,
        Self::Controller,
        Self::Move,
        Self::Token,
        Self::RoleBinding,
    ];

    /// The word for it in keys, events and error messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Agency => "agency",
            Self::Node => "node",
            Self::Vm => "vm",
            Self::Volume => "volume",
            Self::Pool => "pool",
            Self::Flavor => "flavor",
            Self::Image => "image",
            Self::Network => "network",
            Self::PlacementGroup => "placement_group",
            Self::SchedulingPolicy => "scheduling_policy",
            Self::Controller => "controller",
            Self::Move => "move",
            Self::Token => "token",
            Self::RoleBinding => "role_binding",
        }
    }
}

impl fmt::Display for Kind {
    /// As people read it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PlacementGroup => "placement group",
            Self::SchedulingPolicy => "scheduling policy",
            Self::RoleBinding => "role binding",
            other => other.word(),
        })
    }
}

/// Where a name is unique. Agencies never nest in names, so that they can be re-parented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    Cluster,
    Agency(AgencyId),
}

impl Scope {
    pub fn agency(self) -> Option<AgencyId> {
        match self {
            Self::Cluster => None,
            Self::Agency(id) => Some(id),
        }
    }
}

impl From<Option<AgencyId>> for Scope {
    fn from(agency: Option<AgencyId>) -> Self {
        agency.map_or(Self::Cluster, Self::Agency)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Agency(id) => id.fmt(f),
        }
    }
}

/// The part that every resource has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub id: Uuid,
    pub name: Name,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Grows when the spec changes, from 1.
    pub generation: u64,
    pub create_time: TimeMs,
}

impl Meta {
    /// Metadata of a resource that is being made now.
    pub fn new(id: impl Into<Uuid>, name: Name, now: TimeMs) -> Self {
        let (display_name, labels) = (String::new(), BTreeMap::new());
        Self { id: id.into(), name, display_name, labels, generation: 1, create_time: now }
    }
}

/// Whether a field is left out of a record: one that is absent is read as its default (docs/decisions/0063).
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A record of the store. Its key is /KIND/key(); its form is JSON, whose fields may only be added to.
pub trait Stored:
    Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The first segment of its key.
    const KIND: &'static str;
    /// The rest of its key: a UUID, or what else is unique in the kind.
    fn key(&self) -> String;
    /// Where its name is unique and its name, for a resource.
    fn scoped_name(&self) -> Option<(Scope, &Name)> {
        None
    }
}

/// A record with a name: what the public contract shows.
pub trait Resource: Stored {
    const RESOURCE: Kind;
    fn meta(&self) -> &Meta;
    fn meta_mut(&mut self) -> &mut Meta;
    fn scope(&self) -> Scope;
    /// [`Self::RESOURCE`] of a value.
    fn resource_kind(&self) -> Kind {
        Self::RESOURCE
    }
}

/// Implements [`Stored`] and [`Resource`] for a struct with a field `meta`.
macro_rules! resource {
    ($type:ty, $kind:ident, $scope:expr) => {
        impl $crate::record::Stored for $type {
            const KIND: &'static str = $crate::Kind::$kind.word();
            fn key(&self) -> String {
                self.meta.id.to_string()
            }
            fn scoped_name(&self) -> Option<($crate::Scope, &$crate::Name)> {
                Some(($crate::Resource::scope(self), &self.meta.name))
            }
        }

        impl $crate::record::Resource for $type {
            const RESOURCE: $crate::Kind = $crate::Kind::$kind;
            fn meta(&self) -> &$crate::Meta {
                &self.meta
            }
            fn meta_mut(&mut self) -> &mut $crate::Meta {
                &mut self.meta
            }
            fn scope(&self) -> $crate::Scope {
                let scope: fn(&$type) -> $crate::Scope = $scope;
                scope(self)
            }
        }
    };
}
pub(crate) use resource;
