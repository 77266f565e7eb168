//! A small world of names for the tests: what exists, and tables of requests with what is said to them.

use std::fmt::Write;

use prost::Message;
use serde_json::Value;
use tamdao_model::convert::{Invalid, New};
use tamdao_model::lookup::Lookup;
use tamdao_model::{AgencyId, Kind, Name, Scope, TimeMs, mask};
use uuid::Uuid;

pub const NOW: TimeMs = TimeMs(1_900_000_000_123);
pub const AGENCY: AgencyId = AgencyId(Uuid::from_u128(0xA1));
const OTHER: AgencyId = AgencyId(Uuid::from_u128(0xA2));

pub struct World(pub Vec<(Kind, Scope, &'static str, Uuid)>);

pub fn world() -> World {
    let own = Scope::Agency(AGENCY);
    let all = [
        (Kind::Agency, Scope::Cluster, "health", AGENCY.0),
        (Kind::Agency, Scope::Cluster, "roads", OTHER.0),
        (Kind::Node, Scope::Cluster, "n1", id(1)),
        (Kind::Node, Scope::Cluster, "n2", id(2)),
        (Kind::Pool, Scope::Cluster, "default", id(11)),
        (Kind::Pool, Scope::Cluster, "fast", id(12)),
        (Kind::Flavor, Scope::Cluster, "small", id(21)),
        (Kind::Flavor, Scope::Cluster, "large", id(22)),
        (Kind::Image, Scope::Cluster, "debian", id(31)),
        (Kind::Image, own, "kernel", id(32)),
        (Kind::Image, own, "initrd", id(33)),
        (Kind::Image, own, "setup", id(34)),
        (Kind::Network, Scope::Cluster, "office", id(41)),
        (Kind::Network, own, "lab", id(42)),
        (Kind::Volume, own, "data", id(51)),
        (Kind::Volume, own, "web-0", id(52)),
        (Kind::Volume, Scope::Agency(OTHER), "secret", id(53)),
        (Kind::PlacementGroup, own, "pair", id(55)),
        (Kind::PlacementGroup, Scope::Agency(OTHER), "theirs", id(56)),
        (Kind::Vm, own, "web", id(61)),
        (Kind::Controller, Scope::Cluster, "c1", id(71)),
    ];
    World(all.into())
}

pub fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

impl World {
    pub fn without(mut self, kind: Kind, name: &str) -> Self {
        self.0.retain(|row| row.0 != kind || row.2 != name);
        self
    }
}

impl Lookup for World {
    fn id(&self, kind: Kind, scope: Scope, name_or_id: &str) -> Option<Uuid> {
        let found = |row: &&(Kind, Scope, &str, Uuid)| {
            row.0 == kind && row.1 == scope && (row.2 == name_or_id || row.3.to_string() == name_or_id)
        };
        self.0.iter().find(found).map(|row| row.3)
    }

    fn name(&self, kind: Kind, id: Uuid) -> Option<Name> {
        self.0.iter().find(|row| row.0 == kind && row.3 == id).map(|row| Name::new(row.2).unwrap())
    }
}

pub fn new(scope: Scope) -> New {
    New { id: id(0xF0), scope, now: NOW }
}

pub fn cluster() -> New {
    new(Scope::Cluster)
}

pub fn own() -> New {
    new(Scope::Agency(AGENCY))
}

/// A message of `tamdao.v1`, read by its descriptor: it takes enum numbers that are not known, as the binary form
/// does, while the generated JSON refuses them.
pub fn parse<P: Message + Default>(json: Value) -> P {
    let name = std::any::type_name::<P>().rsplit("::").next().unwrap();
    let descriptor = mask::descriptor(&format!("tamdao.v1.{name}")).unwrap();
    let message = prost_reflect::DynamicMessage::deserialize(descriptor, json).unwrap();
    P::decode(&*message.encode_to_vec()).unwrap()
}

/// One line for each violation of each request.
pub fn table<P: Message + Default, T: std::fmt::Debug>(
    rows: impl IntoIterator<Item = (&'static str, Value)>,
    read: impl Fn(P) -> Result<T, Invalid>,
) -> String {
    let mut out = String::new();
    for (title, json) in rows {
        writeln!(out, "{title}").unwrap();
        match read(parse(json)) {
            Ok(_) => writeln!(out, "    accepted").unwrap(),
            Err(invalid) => {
                for violation in invalid.violations {
                    writeln!(out, "    {violation}").unwrap();
                }
            }
        }
    }
    out
}
