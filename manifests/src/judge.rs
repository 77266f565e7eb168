//! What the cloud would say: the controller's own code reads a block and decides what an update may change, here before
//! anything is sent. Names stand for ids that are made up, one for each name, since only their equality matters. So there
//! is no second opinion about what is allowed, what a field means when it is left out, and what cannot change.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use tamdao_model::convert::vm::{DiskRequest, Made, VmRequest, WantedDisk, read as read_vm};
use tamdao_model::convert::{Invalid, New, Public, Shown, Violation};
use tamdao_model::lookup::Lookup;
use tamdao_model::vm::{Disk, DiskSource, Interface, Vm};
use tamdao_model::{AgencyId, Kind, Name, Scope, TimeMs};
use tamdao_proto::v1;
use uuid::Uuid;

/// What the controller would make of it, or what it would refuse.
pub type Verdict<T = Json> = Result<T, Vec<Violation>>;

/// What follows a name that means a thing that is replaced; no name has blanks.
const AS_IT_WAS: &str = " as it was";

/// Ids for names.
#[derive(Default)]
pub struct Names {
    ids: RefCell<BTreeMap<(Kind, String), Uuid>>,
    names: RefCell<BTreeMap<Uuid, String>>,
    /// The names of real ids.
    known: BTreeMap<Uuid, String>,
    /// What is replaced: the same name then means another thing than before.
    replaced: RefCell<BTreeSet<(Kind, String)>>,
    before: Cell<bool>,
}

impl Names {
    /// With the names of resources that exist, since a manifest may refer to them by id.
    pub fn new(known: impl IntoIterator<Item = (Uuid, String)>) -> Self {
        Self { known: known.into_iter().collect(), ..Self::default() }
    }

    /// From now on a resource is another one than it was.
    pub fn replace(&self, kind: &str, name: &str) {
        if let Some(kind) = Kind::ALL.into_iter().find(|known| known.word() == kind) {
            self.replaced.borrow_mut().insert((kind, name.to_owned()));
        }
    }

    /// The name of a thing that is replaced, by the id that it had until then.
    pub fn replaced(&self, id: &str) -> Option<String> {
        let id = Uuid::parse_str(id).ok()?;
        let ids = self.ids.borrow();
        let (_, key) = ids.iter().find(|(_, known)| **known == id)?.0;
        key.strip_suffix(AS_IT_WAS).map(str::to_owned)
    }

    fn id_of(&self, kind: Kind, text: &str) -> Option<Uuid> {
        let given = Uuid::parse_str(text).ok();
        let name = match given {
            Some(id) => match self.known.get(&id) {
                Some(name) => name.as_str(),
                None => return Some(id),
            },
            None => Name::new(text).is_ok().then_some(text)?,
        };
        let gone = self.before.get() && self.replaced.borrow().contains(&(kind, name.to_owned()));
        let key = if gone { format!("{name}{AS_IT_WAS}") } else { name.to_owned() };
        let mut ids = self.ids.borrow_mut();
        let next = Uuid::from_u128(1 + ids.len() as u128);
        let id = *ids.entry((kind, key)).or_insert(next);
        if !gone {
            self.names.borrow_mut().insert(id, name.to_owned());
        }
        Some(id)
    }

    /// Reads what is, where replaced things still are what they were.
    fn as_it_was<T>(&self, read: impl FnOnce() -> T) -> T {
        self.before.set(true);
        let read = read();
        self.before.set(false);
        read
    }
}

impl Lookup for Names {
    fn id(&self, kind: Kind, _: Scope, name_or_id: &str) -> Option<Uuid> {
        self.id_of(kind, name_or_id)
    }

    fn name(&self, _: Kind, id: Uuid) -> Option<Name> {
        self.names.borrow().get(&id).and_then(|name| Name::new(name).ok())
    }
}

/// Judges a new resource.
pub fn create(kind: &str, wanted: &Json, names: &Names) -> Verdict {
    judge(kind, None, wanted, names).map(|(_, made)| made)
}

/// Judges a change of what is into what is wanted. What the violations name cannot change; all else is checked before
/// by [`create`]. Gives the resource as it is and as it would be, both as the controller shows them.
pub fn update(kind: &str, is: &Json, wanted: &Json, names: &Names) -> Verdict<(Json, Json)> {
    judge(kind, Some(is), wanted, names)
}

/// Whether what the cloud shows can be read at all. When it cannot, nothing that [`update`] says of it counts: this
/// command line is older than the cloud, say.
pub fn readable(kind: &str, is: &Json, names: &Names) -> Verdict<()> {
    names.as_it_was(|| create(kind, is, names)).map(|_| ())
}

/// What is, and what would be; for what is new both are the same.
fn judge(kind: &str, is: Option<&Json>, wanted: &Json, names: &Names) -> Verdict<(Json, Json)> {
    use tamdao_model as model;
    match kind {
        "agency" => plain::<model::agency::Agency>(is, wanted, names),
        "flavor" => plain::<model::flavor::Flavor>(is, wanted, names),
        "image" => plain::<model::image::Image>(is, wanted, names),
        "network" => plain::<model::network::Network>(is, wanted, names),
        "placement_group" => plain::<model::placement_group::PlacementGroup>(is, wanted, names),
        "pool" => plain::<model::pool::Pool>(is, wanted, names),
        "role_binding" => plain::<model::role_binding::RoleBinding>(is, wanted, names),
        "volume" => plain::<model::volume::Volume>(is, wanted, names),
        "vm" => vm(is, wanted, names),
        other => Err(vec![Violation::new("", format!("manifests cannot have a {other} yet"))]),
    }
}

fn message<P: serde::de::DeserializeOwned>(json: &Json) -> Result<P, Vec<Violation>> {
    P::deserialize(json).map_err(|error| vec![Violation::new("", error.to_string())])
}

fn shown(message: &impl serde::Serialize) -> Verdict {
    serde_json::to_value(message).map_err(|error| vec![Violation::new("", error.to_string())])
}

fn scope(json: &Json, names: &Names) -> Scope {
    match json["metadata"]["agency"].as_str().unwrap_or_default() {
        "" => Scope::Cluster,
        agency => names.id_of(Kind::Agency, agency).map_or(Scope::Cluster, |id| Scope::Agency(AgencyId(id))),
    }
}

fn plain<T: Public>(is: Option<&Json>, wanted: &Json, names: &Names) -> Verdict<(Json, Json)> {
    let violations = |invalid: Invalid| invalid.violations;
    let new = New { id: Uuid::nil(), scope: scope(wanted, names), now: TimeMs::default() };
    let wanted = message::<T::Proto>(wanted)?;
    let (before, after) = match is {
        None => {
            let made = T::create(wanted, new, names).map_err(violations)?;
            (made.clone(), made)
        }
        Some(is) => {
            let is = message::<T::Proto>(is)?;
            let is = names.as_it_was(|| T::create(is, new, names)).map_err(violations)?;
            let after = is.update(wanted, None, names).map_err(violations)?;
            (is, after)
        }
    };
    Ok((shown(&before.show(0, names))?, shown(&after.show(0, names))?))
}

fn vm(is: Option<&Json>, wanted: &Json, names: &Names) -> Verdict<(Json, Json)> {
    let violations = |invalid: Invalid| invalid.violations;
    let Scope::Agency(agency) = scope(wanted, names) else {
        return Err(vec![Violation::new(
            "vm.metadata.agency",
            "must be given: every VM belongs to an agency",
        )]);
    };
    let proto = message::<v1::Vm>(wanted)?;
    let Some(is) = is else {
        let request = read_vm(proto, agency, names).map_err(violations)?;
        let sizes = (request.vcpus, request.memory_mib);
        // Its disks and interfaces are made by the transaction only.
        let vm = shown(&made(request, agency, sizes, Vec::new(), Vec::new()).show(0, names))?;
        return Ok((vm.clone(), vm));
    };
    let is = message::<v1::Vm>(is)?;
    let status = is.status.clone().unwrap_or_default();
    let request = names.as_it_was(|| read_vm(is, agency, names)).map_err(violations)?;
    let disks = request.disks.iter().map(disk).collect();
    let interfaces = request.interfaces.iter().enumerate().map(|(at, wanted)| {
        let given = status.interfaces.get(at);
        Interface {
            network: wanted.network,
            wanted: wanted.wanted.clone(),
            mac: wanted.mac.clone().unwrap_or_default(),
            addresses: given.map_or(Vec::new(), |given| {
                given.addresses.iter().filter_map(|address| address.parse().ok()).collect()
            }),
        }
    });
    let interfaces = interfaces.collect();
    let of_flavor = request.flavor.is_some();
    let sizes =
        if of_flavor { (status.vcpus, status.memory_mib) } else { (request.vcpus, request.memory_mib) };
    let vm = made(request, agency, sizes, disks, interfaces);
    let updated = vm.updated(proto, None, names).map_err(violations)?;
    Ok((shown(&vm.show(0, names))?, shown(&updated.vm.show(0, names))?))
}

fn made(
    request: VmRequest,
    agency: AgencyId,
    (vcpus, memory_mib): (u32, u32),
    disks: Vec<Disk>,
    interfaces: Vec<Interface>,
) -> Vm {
    let made = Made { flavor_class: None, vcpus, memory_mib, disks, interfaces, user_data: None };
    request.into_vm(Uuid::nil(), agency, TimeMs::default(), made)
}

fn disk(wanted: &WantedDisk) -> Disk {
    let source = match &wanted.source {
        DiskRequest::Volume(volume) => DiskSource::Volume { volume: *volume, created: false },
        DiskRequest::Iso(image) => DiskSource::Iso { image: *image },
        // What exists is shown as a volume, never as what it was made from.
        DiskRequest::Create { .. } | DiskRequest::Empty => DiskSource::Empty,
    };
    Disk { source, kind: wanted.kind, boot_order: wanted.boot_order }
}
