//! What has to be done so that the cloud is as the manifest says: a pure function of the manifest and of what was seen of
//! the cloud. A change carries the revision that it was decided on. What only the status says, such as the node that a VM
//! runs on, is never a difference.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value as Json;
use tamdao_model::convert::metadata::STACK;
use uuid::Uuid;

use crate::compare::{
    Compared, Difference, VolumeChange, below, compare, is_sensitive, is_unknown, leaves, revision,
};
use crate::effects;
use crate::expand::{Desired, Expanded, Place, expand};
use crate::judge::{self, Names};
use crate::manifest::{Inputs, Live, Manifest};
use crate::source::{At, Fault};
use crate::value::Value;

/// What is done with one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Update,
    Replace,
    Destroy,
    Nothing,
}

/// One resource of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    pub address: String,
    #[serde(flatten)]
    pub place: Where,
    pub action: Action,
    /// Why, in words; empty where the action says it all.
    pub reason: String,
    pub fields: Vec<Difference>,
    /// How long it is expected to be away, in words; empty for not at all.
    pub downtime: String,
    /// What is lost for good, in words; empty for nothing.
    pub data_loss: String,
    /// The revision that the plan saw; 0 for what is new.
    pub revision: u64,
    /// What is sent: metadata and spec. None for what is destroyed.
    #[serde(skip)]
    pub wanted: Option<Json>,
    /// As it was seen.
    #[serde(skip)]
    pub is: Option<Json>,
    #[serde(skip)]
    pub resize: bool,
    #[serde(skip)]
    pub volumes: Vec<VolumeChange>,
    /// Some of it is known only when what it waits for is made.
    #[serde(skip)]
    pub unknown: bool,
    #[serde(skip)]
    pub block: String,
    #[serde(skip)]
    pub waits: BTreeSet<String>,
    /// Fields whose differences are left alone.
    #[serde(skip)]
    pub ignored: Vec<String>,
}

/// A place, as fields of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Where {
    pub kind: String,
    pub agency: String,
    pub name: String,
}

impl Change {
    pub fn place(&self) -> Place {
        let Where { kind, agency, name } = self.place.clone();
        Place { kind, agency, name }
    }
}

/// What a plan comes to.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub stack: String,
    /// In the order of their dependencies, what is destroyed last.
    pub changes: Vec<Change>,
    /// Those that are not sensitive; null for what is known after apply.
    pub outputs: BTreeMap<String, Json>,
    pub summary: Summary,
    /// Whether it would fit, as far as the cloud was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
}

/// What the cloud says would become of a plan now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// VMs that are made or get another size and were looked at.
    pub vms: usize,
    /// Losses after which every protected VM is to have a place, such as node or rack.
    pub guarded: Vec<String>,
    /// What would be refused, and VMs that would wait for a place.
    pub unfit: Vec<Unfit>,
    /// What cannot be said before apply, by address.
    pub unknown: Vec<String>,
}

/// One resource that would not come to be as the plan says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfit {
    pub address: String,
    /// Whether it would be refused; else it would wait.
    pub refused: bool,
    /// One word for programs.
    pub reason: String,
    pub message: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub add: usize,
    pub change: usize,
    pub destroy: usize,
}

/// What is asked of a plan.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Addresses of resources that exist and belong to no stack, and shall belong to this one.
    pub adopt: BTreeSet<String>,
    /// Everything shall go.
    pub destroy: bool,
    /// VMs whose user data is another one than the manifest's, as the cloud says: it is never shown.
    pub user_data_differs: BTreeSet<Place>,
}

/// Makes the plan.
///
/// # Errors
/// All faults that were found.
pub fn plan(manifest: &Manifest, inputs: &Inputs<'_>, wish: &Wish) -> Result<Plan, Vec<Fault>> {
    let stack = manifest.stack().map_err(|fault| vec![fault])?;
    // What is replaced will say other things than it does now, which those who refer to it cannot know yet.
    let mut live = inputs.live.clone();
    loop {
        let seen = Inputs { live: &live, given: inputs.given.clone(), ..*inputs };
        let expanded = expand(manifest, &seen)?;
        let plan = Planner::new(stack, inputs.live, wish).run(expanded)?;
        let replaced = plan.changes.iter().filter(|change| change.action == Action::Replace);
        let gone: Vec<Place> = replaced.map(Change::place).filter(|place| live.contains_key(place)).collect();
        if gone.is_empty() {
            return Ok(plan);
        }
        gone.iter().for_each(|place| {
            live.remove(place);
        });
    }
}

/// Checks all that can be checked without a cloud.
///
/// # Errors
/// All faults that were found.
pub fn validate(manifest: &Manifest, inputs: &Inputs<'_>) -> Result<Expanded, Vec<Fault>> {
    manifest.stack().map_err(|fault| vec![fault])?;
    let expanded = expand(manifest, inputs)?;
    let names = Names::default();
    let mut faults: Vec<Fault> = Vec::new();
    for desired in &expanded.resources {
        faults.extend(refused(desired, &Json::Object(desired.says.json.clone()), &names));
    }
    if faults.is_empty() { Ok(expanded) } else { Err(faults) }
}

/// What the controller would refuse in a block, where it stands.
fn refused(desired: &Desired, wanted: &Json, names: &Names) -> Vec<Fault> {
    let Err(violations) = judge::create(&desired.place.kind, wanted, names) else { return Vec::new() };
    let mut faults = Vec::new();
    for violation in violations {
        let path = violation.field.split_once('.').map_or("", |(_, path)| path);
        if is_unknown(desired, path) {
            continue;
        }
        let message = format!("{}: {} {}", desired.address, below(path), violation.message);
        faults.push(Fault::new(written(desired, path), message));
    }
    faults
}

/// Where a path is written, or what it lies in.
fn written(desired: &Desired, path: &str) -> At {
    let mut path = path;
    loop {
        if let Some(at) = desired.says.spans.get(path) {
            return *at;
        }
        match path.rfind(['.', '[']) {
            Some(end) => path = &path[..end],
            None => return desired.at,
        }
    }
}

struct Planner<'a> {
    stack: &'a str,
    live: &'a Live,
    wish: &'a Wish,
    names: Names,
    faults: Vec<Fault>,
}

impl<'a> Planner<'a> {
    fn new(stack: &'a str, live: &'a Live, wish: &'a Wish) -> Self {
        let known = live.iter().filter_map(|(place, resource)| {
            Some((Uuid::parse_str(resource["metadata"]["id"].as_str()?).ok()?, place.name.clone()))
        });
        Self { stack, live, wish, names: Names::new(known), faults: Vec::new() }
    }

    fn run(mut self, expanded: Expanded) -> Result<Plan, Vec<Fault>> {
        let (mut changes, mut places) = (Vec::new(), BTreeMap::new());
        for desired in &expanded.resources {
            places.insert(desired.place.clone(), desired);
            if self.wish.destroy {
                continue;
            }
            if let Some(change) = self.change(desired) {
                if change.action == Action::Replace {
                    self.names.replace(&desired.place.kind, &desired.place.name);
                }
                changes.push(change);
            }
        }
        let live = self.live;
        let own = live.iter().filter(|(_, resource)| resource["metadata"]["labels"][STACK] == self.stack);
        let own: Vec<_> = own.collect();
        let mut alike: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        own.iter().for_each(|(place, _)| {
            *alike.entry((place.kind.as_str(), place.name.as_str())).or_default() += 1
        });
        for (place, resource) in own {
            let desired = places.get(place).copied();
            if desired.is_some() && !self.wish.destroy {
                continue;
            }
            let alone = alike[&(place.kind.as_str(), place.name.as_str())] == 1;
            changes.extend(self.destroy(place, resource, desired, alone));
        }
        let outputs = expanded.outputs.into_iter().map(|(name, (value, sensitive))| {
            let json = if sensitive { Json::from("(sensitive)") } else { output(&value) };
            (name, json)
        });
        let outputs = if self.wish.destroy { BTreeMap::new() } else { outputs.collect() };
        if !self.faults.is_empty() {
            return Err(self.faults);
        }
        Ok(Plan { stack: self.stack.to_owned(), summary: summary(&changes), changes, outputs, preview: None })
    }

    fn change(&mut self, desired: &Desired) -> Option<Change> {
        let mut wanted = Json::Object(desired.says.json.clone());
        wanted["metadata"]["labels"][STACK] = Json::from(self.stack);
        let Some(is) = self.live.get(&desired.place) else {
            let faults = refused(desired, &wanted, &self.names);
            let fine = faults.is_empty();
            self.faults.extend(faults);
            return fine.then(|| create(desired, wanted));
        };
        self.may_have(desired, is)?;
        ignore(desired, &mut wanted, is);
        let faults = refused(desired, &wanted, &self.names);
        if !faults.is_empty() {
            self.faults.extend(faults);
            return None;
        }
        let mut compared = compare(desired, &wanted, is, self.live, &self.names);
        if !compared.unreadable.is_empty() {
            let what = format!("{} cannot be compared: {}", desired.place, compared.unreadable.join("; "));
            self.faults
                .push(Fault::new(desired.at, what).hint("is this command line older than the controllers?"));
            return None;
        }
        let user_data = self.wish.user_data_differs.contains(&desired.place);
        let ignored = |field: &str| desired.ignore_changes.iter().any(|one| one == field || one == "all");
        if user_data && !ignored("user_data") {
            compared.differences.push(secret("user_data"));
        }
        if !compared.reasons.is_empty() {
            return self.replace(desired, wanted, is, compared);
        }
        let nothing = compared.differences.is_empty();
        let mut change = changed(desired, if nothing { Action::Nothing } else { Action::Update });
        change.downtime = effects::of_update(&desired.place.kind, &compared);
        change.revision = revision(is);
        change.unknown = !desired.says.unknown.is_empty();
        change.resize = compared.resize;
        change.volumes = compared.volumes;
        change.fields = compared.differences;
        change.wanted = Some(wanted);
        change.is = Some(is.clone());
        Some(change)
    }

    /// Whether the resource may be this stack's.
    fn may_have(&mut self, desired: &Desired, is: &Json) -> Option<()> {
        let owner = is["metadata"]["labels"][STACK].as_str();
        let fault = |message: String| Fault::new(desired.at, message);
        if is["status"]["phase"].as_str().is_some_and(|phase| phase.ends_with("_DELETING")) {
            self.faults
                .push(fault(format!("{} is being deleted", desired.place)).hint("wait until it is gone"));
            return None;
        }
        match owner {
            Some(owner) if owner == self.stack => Some(()),
            Some(owner) => {
                self.faults.push(
                    fault(format!("{} belongs to stack {owner:?}", desired.place))
                        .hint(format!("release it there first: its label {STACK}=")),
                );
                None
            }
            None if self.wish.adopt.contains(&desired.address) => Some(()),
            None => {
                self.faults.push(
                    fault(format!("{} exists, and belongs to no stack", desired.place))
                        .hint(format!("take it into this one with --adopt '{}'", desired.address)),
                );
                None
            }
        }
    }

    fn replace(&mut self, desired: &Desired, wanted: Json, is: &Json, compared: Compared) -> Option<Change> {
        self.may_destroy(&desired.address, is, Some(desired))?;
        let mut change = changed(desired, Action::Replace);
        change.reason = compared.reasons.join("; ");
        change.fields = compared.differences;
        change.downtime = effects::of_replace(&desired.place.kind).to_owned();
        change.data_loss = effects::loss(&desired.place, is, self.live);
        change.revision = revision(is);
        change.unknown = !desired.says.unknown.is_empty();
        change.wanted = Some(wanted);
        change.is = Some(is.clone());
        Some(change)
    }

    /// What the manifest does not have any more is called by its name, and where agencies of this stack share that by
    /// its agency's too: consent to lose one is no consent to lose another.
    fn destroy(
        &mut self,
        place: &Place,
        is: &Json,
        desired: Option<&Desired>,
        alone: bool,
    ) -> Option<Change> {
        let address = match desired {
            Some(desired) => desired.address.clone(),
            None if alone => format!("{}.{}", place.kind, place.name),
            None => format!("{}.{}/{}", place.kind, place.agency, place.name),
        };
        self.may_destroy(&address, is, desired)?;
        let Place { kind, agency, name } = place.clone();
        Some(Change {
            address,
            action: Action::Destroy,
            reason: if desired.is_some() {
                String::new()
            } else {
                "the manifest does not have it any more".to_owned()
            },
            fields: Vec::new(),
            downtime: effects::of_destroy(&kind).to_owned(),
            data_loss: effects::loss(place, is, self.live),
            revision: revision(is),
            wanted: None,
            is: Some(is.clone()),
            resize: false,
            volumes: Vec::new(),
            unknown: false,
            block: String::new(),
            waits: BTreeSet::new(),
            ignored: Vec::new(),
            place: Where { kind, agency, name },
        })
    }

    fn may_destroy(&mut self, address: &str, is: &Json, desired: Option<&Desired>) -> Option<()> {
        let fault = |message: String| match desired {
            Some(desired) => Fault::new(desired.at, message),
            None => Fault::nowhere(message),
        };
        if desired.is_some_and(|desired| desired.prevent_destroy) {
            let what = format!("{address} would be destroyed, which its lifecycle prevents");
            self.faults.push(fault(what).hint("take prevent_destroy away if it shall really go"));
            return None;
        }
        if is["spec"]["delete_protection"] == true {
            let what = format!("{address} is protected from deletion");
            self.faults.push(fault(what).hint("apply delete_protection = false first"));
            return None;
        }
        Some(())
    }
}

/// Takes what the cloud has for the fields that are to be left alone.
fn ignore(desired: &Desired, wanted: &mut Json, is: &Json) {
    let stack = wanted["metadata"]["labels"][STACK].clone();
    for field in &desired.ignore_changes {
        if field == "all" {
            wanted["spec"] = is["spec"].clone();
            for field in ["display_name", "labels"] {
                wanted["metadata"][field] = is["metadata"][field].clone();
            }
            continue;
        }
        let under = if ["display_name", "labels"].contains(&field.as_str()) { "metadata" } else { "spec" };
        match is[under].get(field) {
            Some(value) => wanted[under][field] = value.clone(),
            None => {
                wanted[under].as_object_mut().map(|part| part.remove(field));
            }
        }
    }
    if let Some(metadata) = wanted["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    wanted["metadata"]["labels"][STACK] = stack;
}

fn secret(path: &str) -> Difference {
    Difference {
        path: path.to_owned(),
        before: None,
        after: None,
        known_after_apply: false,
        sensitive: true,
        forces_replacement: false,
    }
}

fn changed(desired: &Desired, action: Action) -> Change {
    let Place { kind, agency, name } = desired.place.clone();
    Change {
        address: desired.address.clone(),
        place: Where { kind, agency, name },
        action,
        reason: String::new(),
        fields: Vec::new(),
        downtime: String::new(),
        data_loss: String::new(),
        revision: 0,
        wanted: None,
        is: None,
        resize: false,
        volumes: Vec::new(),
        unknown: false,
        block: desired.block.clone(),
        waits: desired.waits.clone(),
        ignored: desired.ignore_changes.clone(),
    }
}

fn create(desired: &Desired, wanted: Json) -> Change {
    let mut change = changed(desired, Action::Create);
    // Whose it is does not have to be said of each.
    let owner = format!("metadata.labels.{STACK}");
    let known = leaves(&wanted).into_iter().filter(|(path, _)| *path != owner).map(|(path, value)| {
        let sensitive = is_sensitive(desired, &path);
        Difference {
            path: below(&path).to_owned(),
            before: None,
            after: (!sensitive).then_some(value),
            known_after_apply: false,
            sensitive,
            forces_replacement: false,
        }
    });
    change.fields = known.collect();
    let unknown = desired.says.unknown.iter().map(|path| below(path).to_owned()).chain(["id".to_owned()]);
    change.fields.extend(unknown.map(|path| Difference {
        path,
        before: None,
        after: None,
        known_after_apply: true,
        sensitive: false,
        forces_replacement: false,
    }));
    change.unknown = !desired.says.unknown.is_empty();
    change.wanted = Some(wanted);
    change
}

fn output(value: &Value) -> Json {
    if value.has_unknown() { Json::from("(known after apply)") } else { value.to_json() }
}

fn summary(changes: &[Change]) -> Summary {
    let count = |actions: &[Action]| changes.iter().filter(|change| actions.contains(&change.action)).count();
    Summary {
        add: count(&[Action::Create, Action::Replace]),
        change: count(&[Action::Update]),
        destroy: count(&[Action::Destroy, Action::Replace]),
    }
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.summary == Summary::default()
    }

    /// What loses data and was not allowed to.
    pub fn withheld<'a>(&'a self, allowed: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Change> {
        self.changes
            .iter()
            .filter(|change| !change.data_loss.is_empty() && !allowed.contains(&change.address))
    }
}
