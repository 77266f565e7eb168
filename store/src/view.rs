//! The whole state at one revision, typed and indexed: an immutable value that is cheap to clone and to change.
//!
//! Its invariant: a view equals the fold of all batches through its revision, and nothing else. The cache
//! publishes views; a [`Draft`](crate::typed::Draft) is one more view, of a future that is not committed yet.
//! Deliberately absent: queries that belong to one caller only.

use std::io::Write as _;
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use tamdao_model::address::Address;
use tamdao_model::agency::{Agency, Usage};
use tamdao_model::applied::Applied;
use tamdao_model::assignment::Assignment;
use tamdao_model::audit::Audit;
use tamdao_model::cluster::{Cluster, Controller, JoinToken, Request};
use tamdao_model::event::Event;
use tamdao_model::flavor::Flavor;
use tamdao_model::image::Image;
use tamdao_model::lookup::Lookup;
use tamdao_model::moves::Move;
use tamdao_model::network::Network;
use tamdao_model::node::Node;
use tamdao_model::placement_group::PlacementGroup;
use tamdao_model::pool::Pool;
use tamdao_model::recovery::Finding;
use tamdao_model::role_binding::RoleBinding;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::token::Token;
use tamdao_model::vm::Vm;
use tamdao_model::volume::Volume;
use tamdao_model::{Kind, Name, Resource, Scope, Stored};
use uuid::Uuid;

use crate::kv::{Change, Entry, Key, Revision};

/// A value that cannot be read as what its key says.
#[derive(Debug, thiserror::Error)]
#[error("record {key} is not readable: {source}")]
pub struct Unreadable {
    /// The record's key.
    pub key: Key,
    source: serde_json::Error,
}

/// How a record lies in the store: with the transaction that wrote it, so that after a lost reply one can tell
/// whether it was ours. JSON, because records must be readable for ten years, by people too (docs/decisions/0004).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope<T> {
    pub txn: Uuid,
    pub record: T,
}

/// One record of a view.
#[derive(Debug, Clone)]
pub struct Row<T> {
    pub value: Arc<T>,
    /// The commit that wrote it; in a draft, the one that the draft will be.
    pub revision: Revision,
}

impl<T> std::ops::Deref for Row<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// Where a row lies among those of its kind. An id is held and compared as a number, which has the order of its
/// text and needs no look elsewhere: a view answers many questions by id for each request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Id(Uuid),
    Path(Key),
}

impl Place {
    fn of<T: Stored>(key: &Key) -> Self {
        match key.as_str().get(T::KIND.len() + 2..).map(Uuid::try_parse) {
            Some(Ok(id)) => Self::Id(id),
            _ => Self::Path(key.clone()),
        }
    }

    /// None for what is no key.
    fn find<T: Stored>(key: impl std::fmt::Display) -> Option<Self> {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let mut rest = text.as_mut_slice();
        if write!(rest, "{key}").is_ok()
            && rest.is_empty()
            && let Ok(id) = Uuid::try_parse_ascii(&text)
        {
            return Some(Self::Id(id));
        }
        Key::new(format!("/{}/{key}", T::KIND)).ok().map(Self::Path)
    }
}

/// All records of one kind, in the order of their keys, and of their names if they have any.
#[derive(Debug)]
pub struct Rows<T> {
    rows: OrdMap<Place, Row<T>>,
    names: OrdMap<(Scope, Name), Uuid>,
}

impl<T> Clone for Rows<T> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), names: self.names.clone() }
    }
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { rows: OrdMap::new(), names: OrdMap::new() }
    }
}

impl<T: Stored> Rows<T> {
    /// The record with this key, which is an id for most kinds.
    pub fn get(&self, key: impl std::fmt::Display) -> Option<&Row<T>> {
        self.rows.get(&Place::find::<T>(key)?)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All, in the order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Row<T>> {
        self.rows.values()
    }

    /// Those whose key begins with `start`, in order; for kinds whose keys are not ids.
    pub fn starting_with(&self, start: &str) -> impl Iterator<Item = &Row<T>> {
        let start = Key::beginning(&format!("/{}/{start}", T::KIND));
        self.rows.range(Place::Path(start.clone())..).map_while(move |(place, row)| match place {
            Place::Path(key) if key.as_str().starts_with(start.as_str()) => Some(row),
            _ => None,
        })
    }

    /// The id behind a name.
    pub fn id_of(&self, scope: Scope, name: &Name) -> Option<Uuid> {
        self.names.get(&(scope, name.clone())).copied()
    }

    /// The record of this name or id, if it lies in this scope.
    pub fn find(&self, scope: Scope, name_or_id: &str) -> Option<&Row<T>> {
        let row = match Uuid::parse_str(name_or_id) {
            Ok(id) => self.get(id),
            Err(_) => self.id_of(scope, &Name::new(name_or_id).ok()?).and_then(|id| self.get(id)),
        }?;
        (row.scoped_name()?.0 == scope).then_some(row)
    }

    /// Scopes, names and ids in their order: of one scope or of all, after `after` or from the first.
    pub fn names(
        &self,
        scope: Option<Scope>,
        after: Option<(Scope, Name)>,
    ) -> impl Iterator<Item = (&(Scope, Name), Uuid)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let begin = match (after, scope) {
            (Some(after), _) => Excluded(after),
            (None, Some(scope)) => Included((scope, Name::lowest())),
            (None, None) => Unbounded,
        };
        let within = move |name: &(Scope, Name)| scope.is_none_or(|scope| name.0 == scope);
        self.names
            .range::<_, (Scope, Name)>((begin, Unbounded))
            .take_while(move |(name, _)| within(name))
            .map(|(name, id)| (name, *id))
    }

    pub(crate) fn put(&mut self, key: &Key, value: Arc<T>, revision: Revision) -> Option<Row<T>> {
        let place = Place::of::<T>(key);
        let old = self.rows.insert(place.clone(), Row { value: value.clone(), revision });
        let (before, after) = (old.as_ref().and_then(|old| old.scoped_name()), value.scoped_name());
        if before != after {
            if let Some((scope, name)) = before {
                self.names.remove(&(scope, name.clone()));
            }
            if let (Some((scope, name)), Place::Id(id)) = (after, place) {
                self.names.insert((scope, name.clone()), id);
            }
        }
        old
    }

    /// Gives a row another revision, for who shows a draft that will not be committed.
    pub fn stamp(&mut self, key: impl std::fmt::Display, revision: Revision) {
        if let Some(row) = Place::find::<T>(key).and_then(|place| self.rows.get_mut(&place)) {
            row.revision = revision;
        }
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Row<T>> {
        let old = self.rows.remove(&Place::of::<T>(key))?;
        if let Some((scope, name)) = old.scoped_name() {
            self.names.remove(&(scope, name.clone()));
        }
        Some(old)
    }
}

/// A kind of record that views hold.
pub trait Held: Stored {
    fn rows(view: &View) -> &Rows<Self>;
    fn rows_mut(view: &mut View) -> &mut Rows<Self>;
    fn record(value: Arc<Self>) -> Record;
    /// The value back out of a record, if it is of this kind.
    fn from_record(record: &Record) -> Option<&Arc<Self>>;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $field:ident: $type:ident),* $(,)?) => {
        /// Everything at one revision. A clone costs a few reference counts.
        #[derive(Debug, Clone, Default)]
        pub struct View {
            /// The newest commit in it.
            pub revision: Revision,
            $($(#[$doc])* pub $field: Rows<$type>,)*
        }

        /// A record of any kind.
        #[derive(Debug, Clone)]
        pub enum Record {
            $($type(Arc<$type>),)*
        }

        /// The kinds of records that views hold.
        pub const KINDS: &[&str] = &[$(<$type as Stored>::KIND),*];

        $(impl Held for $type {
            fn rows(view: &View) -> &Rows<Self> {
                &view.$field
            }
            fn rows_mut(view: &mut View) -> &mut Rows<Self> {
                &mut view.$field
            }
            fn record(value: Arc<Self>) -> Record {
                Record::$type(value)
            }
            fn from_record(record: &Record) -> Option<&Arc<Self>> {
                match record {
                    Record::$type(value) => Some(value),
                    _ => None,
                }
            }
        })*

        impl Record {
            /// The first segment of its key.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$type(_) => <$type as Stored>::KIND,)*
                }
            }

            /// The rest of its key.
            pub fn key(&self) -> String {
                match self {
                    $(Self::$type(value) => value.key(),)*
                }
            }

            /// Where its name is unique and its name, for a resource.
            pub fn scoped_name(&self) -> Option<(Scope, &Name)> {
                match self {
                    $(Self::$type(value) => value.scoped_name(),)*
                }
            }

            /// As it lies in the store, without the envelope.
            pub fn json(&self) -> Vec<u8> {
                match self {
                    $(Self::$type(value) => serde_json::to_vec(value).expect("records are plain data"),)*
                }
            }
        }

        impl View {
            /// The record with this key of the store, if it is of a kind that this version knows.
            pub fn at(&self, key: &Key) -> Option<Record> {
                match key.as_str().split('/').nth(1).unwrap_or_default() {
                    $(<$type as Stored>::KIND => {
                        self.$field.rows.get(&Place::of::<$type>(key)).map(|row| $type::record(row.value.clone()))
                    })*
                    _ => None,
                }
            }

            /// Folds one change in. A kind that this version does not know changes nothing.
            pub(crate) fn fold(&mut self, change: &Change) -> Result<Option<Delta>, Unreadable> {
                let kind = change.key().as_str().split('/').nth(1).unwrap_or_default();
                match kind {
                    $(<$type as Stored>::KIND => fold_row::<$type>(self, change),)*
                    _ => Ok(None),
                }
            }
        }
    };
}

kinds! {
    agencies: Agency,
    nodes: Node,
    vms: Vm,
    volumes: Volume,
    pools: Pool,
    flavors: Flavor,
    images: Image,
    networks: Network,
    placement_groups: PlacementGroup,
    /// One in all.
    scheduling_policies: SchedulingPolicy,
    controllers: Controller,
    moves: Move,
    /// One per node.
    assignments: Assignment,
    /// One per agency.
    usages: Usage,
    addresses: Address,
    events: Event,
    /// Until the journals have them.
    audits: Audit,
    join_tokens: JoinToken,
    requests: Request,
    tokens: Token,
    role_bindings: RoleBinding,
    /// What stacks have applied.
    applied: Applied,
    /// One in all.
    cluster: Cluster,
    /// One per node, in recovery and where something is left that no record knows.
    findings: Finding,
}

/// What a commit did to one record, both sides at hand.
#[derive(Debug, Clone)]
pub struct Delta {
    pub before: Option<Record>,
    /// None after a deletion.
    pub after: Option<Record>,
    /// The commit that wrote `after`, or that deleted.
    pub revision: Revision,
}

fn fold_row<T: Held>(view: &mut View, change: &Change) -> Result<Option<Delta>, Unreadable> {
    let rows = T::rows_mut(view);
    Ok(match change {
        Change::Put(entry) => {
            let value = Arc::new(decode::<T>(entry)?);
            let before =
                rows.put(&entry.key, value.clone(), entry.mod_revision).map(|row| T::record(row.value));
            Some(Delta { before, after: Some(T::record(value)), revision: entry.mod_revision })
        }
        Change::Delete(key) => rows.remove(key).map(|row| {
            let revision = row.revision;
            Delta { before: Some(T::record(row.value)), after: None, revision }
        }),
    })
}

pub(crate) fn decode<T: Held>(entry: &Entry) -> Result<T, Unreadable> {
    let envelope: Envelope<T> = serde_json::from_slice(&entry.value)
        .map_err(|source| Unreadable { key: entry.key.clone(), source })?;
    // A clone takes what it needs. What was read has room for growth in each list, and is held for long.
    Ok(envelope.record.clone())
}

impl View {
    /// The view of these records at this revision.
    ///
    /// # Errors
    /// When one cannot be read as what its key says.
    pub fn of(revision: Revision, entries: impl IntoIterator<Item = Entry>) -> Result<Self, Unreadable> {
        let mut view = Self { revision, ..Self::default() };
        for entry in entries {
            view.fold(&Change::Put(entry))?;
        }
        Ok(view)
    }

    /// The record of this kind and key.
    pub fn get<T: Held>(&self, key: impl std::fmt::Display) -> Option<&Row<T>> {
        T::rows(self).get(key)
    }

    /// What the cluster is; absent only before its first controller has written it.
    pub fn cluster(&self) -> Option<&Row<Cluster>> {
        self.cluster.get("self")
    }

    /// How VMs are placed; absent only before the first leader of this cluster has written it.
    pub fn scheduling_policy(&self) -> Option<&Row<SchedulingPolicy>> {
        self.scheduling_policies.iter().next()
    }

    /// What this agency holds.
    pub fn usage(&self, agency: tamdao_model::AgencyId) -> Usage {
        self.usages.get(agency).map_or_else(|| Usage::none(agency), |row| (*row.value).clone())
    }

    /// What this node has to do.
    pub fn assignment(&self, node: tamdao_model::NodeId) -> Assignment {
        self.assignments.get(node).map_or_else(|| Assignment::empty(node), |row| (*row.value).clone())
    }
}

impl Lookup for View {
    fn id(&self, kind: Kind, scope: Scope, name_or_id: &str) -> Option<Uuid> {
        fn find<T: Held + Resource>(view: &View, scope: Scope, name_or_id: &str) -> Option<Uuid> {
            T::rows(view).find(scope, name_or_id).map(|row| row.meta().id)
        }
        match kind {
            Kind::Agency => find::<Agency>(self, scope, name_or_id),
            Kind::Node => find::<Node>(self, scope, name_or_id),
            Kind::Vm => find::<Vm>(self, scope, name_or_id),
            Kind::Volume => find::<Volume>(self, scope, name_or_id),
            Kind::Pool => find::<Pool>(self, scope, name_or_id),
            Kind::Flavor => find::<Flavor>(self, scope, name_or_id),
            Kind::Image => find::<Image>(self, scope, name_or_id),
            Kind::Network => find::<Network>(self, scope, name_or_id),
            Kind::PlacementGroup => find::<PlacementGroup>(self, scope, name_or_id),
            Kind::SchedulingPolicy => find::<SchedulingPolicy>(self, scope, name_or_id),
            Kind::Controller => find::<Controller>(self, scope, name_or_id),
            Kind::Move => find::<Move>(self, scope, name_or_id),
            Kind::Token => find::<Token>(self, scope, name_or_id),
            Kind::RoleBinding => find::<RoleBinding>(self, scope, name_or_id),
        }
    }

    fn name(&self, kind: Kind, id: Uuid) -> Option<Name> {
        fn name<T: Held + Resource>(view: &View, id: Uuid) -> Option<Name> {
            T::rows(view).get(id).map(|row| row.meta().name.clone())
        }
        match kind {
            Kind::Agency => name::<Agency>(self, id),
            Kind::Node => name::<Node>(self, id),
            Kind::Vm => name::<Vm>(self, id),
            Kind::Volume => name::<Volume>(self, id),
            Kind::Pool => name::<Pool>(self, id),
            Kind::Flavor => name::<Flavor>(self, id),
            Kind::Image => name::<Image>(self, id),
            Kind::Network => name::<Network>(self, id),
            Kind::PlacementGroup => name::<PlacementGroup>(self, id),
            Kind::SchedulingPolicy => name::<SchedulingPolicy>(self, id),
            Kind::Controller => name::<Controller>(self, id),
            Kind::Move => name::<Move>(self, id),
            Kind::Token => name::<Token>(self, id),
            Kind::RoleBinding => name::<RoleBinding>(self, id),
        }
    }
}
