//! Modules to desired resources: variables, locals, `count`, `for_each` and references are evaluated in the order of
//! their dependencies, which are found first, so that a circle is a fault and not an endless loop. Whoever refers to a
//! resource waits for it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json};

use crate::config::{Call, Module, Placed, Resource, Variable};
use crate::eval::{Evaluator, Names};
use crate::graph::{Key, needs, ordered};
use crate::limits;
use crate::manifest::{Given, Inputs, Manifest, joined};
use crate::schema::{self, Decoded, Kind, Owner};
use crate::source::{At, Fault};
use crate::value::{TooDeep, Value};

/// Steps that it costs to carry the name of one block on to whoever waits for it.
const CARRIED: u64 = 8;

/// Where a resource is in the cloud.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub kind: String,
    /// Empty for what the cluster owns.
    pub agency: String,
    pub name: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.replace('_', "-");
        if self.agency.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.agency, self.name)
        }
    }
}

/// One resource that the manifest asks for.
#[derive(Debug, Clone)]
pub struct Desired {
    /// As in Terraform: `vm.web`, `vm.web[0]`, `module.site.vm.web["a"]`.
    pub address: String,
    /// The address of its block.
    pub block: String,
    pub place: Place,
    pub says: Decoded,
    pub at: At,
    /// The blocks that it waits for.
    pub waits: BTreeSet<String>,
    pub prevent_destroy: bool,
    pub ignore_changes: Vec<String>,
}

/// All that a manifest asks for, each after what it waits for.
#[derive(Debug, Default)]
pub struct Expanded {
    pub resources: Vec<Desired>,
    /// With whether they are sensitive.
    pub outputs: BTreeMap<String, (Value, bool)>,
}

type Known = BTreeMap<Key, (Value, bool)>;

/// Evaluates a manifest.
///
/// # Errors
/// All faults that were found.
pub fn expand(manifest: &Manifest, inputs: &Inputs<'_>) -> Result<Expanded, Vec<Fault>> {
    let budget = Cell::new(limits::EFFORT);
    let mut expander = Expander {
        manifest,
        inputs,
        budget: &budget,
        faults: Vec::new(),
        expanded: Expanded::default(),
        places: BTreeMap::new(),
    };
    let root = manifest.root();
    let given = expander.given(root);
    let outputs =
        expander.module(root, &Within { dir: "", prefix: "", depth: 0, waits: BTreeSet::new() }, given);
    expander.expanded.outputs = outputs;
    if expander.faults.is_empty() { Ok(expander.expanded) } else { Err(expander.faults) }
}

struct Expander<'a> {
    manifest: &'a Manifest,
    inputs: &'a Inputs<'a>,
    budget: &'a Cell<u64>,
    faults: Vec<Fault>,
    expanded: Expanded,
    places: BTreeMap<Place, String>,
}

/// Which module is evaluated.
struct Within<'a> {
    dir: &'a str,
    /// What addresses begin with: nothing, or `module.site.`.
    prefix: &'a str,
    depth: usize,
    /// What everything in it waits for.
    waits: BTreeSet<String>,
}

impl<'a> Expander<'a> {
    /// The values that were given for the root's variables.
    fn given(&mut self, module: &Module) -> BTreeMap<String, (Value, bool)> {
        let mut values = BTreeMap::new();
        for (name, given) in &self.inputs.given {
            let Some(variable) = module.variables.get(name) else {
                if given.must_exist {
                    let fault = Fault::nowhere(format!("there is no variable {name:?} ({})", given.origin));
                    self.faults.push(fault.closest(name, module.variables.keys().map(String::as_str)));
                }
                continue;
            };
            match self.read_given(given, variable) {
                Ok(value) => {
                    values.insert(name.clone(), (value, variable.sensitive));
                }
                Err(why) => {
                    self.faults.push(Fault::nowhere(format!("variable {name:?} ({}): {why}", given.origin)))
                }
            }
        }
        values
    }

    fn read_given(&self, given: &Given, variable: &Variable) -> Result<Value, String> {
        match (&given.value, &variable.kind) {
            (Ok(value), _) => Ok(value.clone()),
            (Err(raw), crate::types::Type::String | crate::types::Type::Any) => Ok(Value::text(raw.as_str())),
            (Err(raw), _) => {
                let expression =
                    hcl_edit::parser::parse_expr(raw).map_err(|error| error.message().to_owned())?;
                let mut evaluator = Evaluator::new(&NoNames, 0, self.budget);
                evaluator.eval(&expression).map_err(|fault| fault.message)
            }
        }
    }

    fn module(
        &mut self,
        module: &'a Module,
        within: &Within<'_>,
        given: BTreeMap<String, (Value, bool)>,
    ) -> BTreeMap<String, (Value, bool)> {
        let needs = needs(module);
        let order = match ordered(&needs) {
            Ok(order) => order,
            Err(circle) => {
                let circle: Vec<String> =
                    circle.iter().map(|(root, name)| format!("{root}.{name}")).collect();
                self.faults.push(Fault::nowhere(format!(
                    "these refer to one another in a circle: {}",
                    circle.join(", ")
                )));
                return BTreeMap::new();
            }
        };
        let mut known = Known::new();
        let mut waits: BTreeMap<Key, BTreeSet<String>> = BTreeMap::new();
        for key in order {
            let theirs: Vec<_> = needs[&key].iter().filter_map(|need| waits.get(need)).collect();
            // Each name that is carried on costs as much as some steps.
            let cost = theirs.iter().map(|names| names.len() as u64 * CARRIED).sum();
            let Some(left) = self.budget.get().checked_sub(cost) else {
                self.faults.push(Fault::nowhere("this manifest takes too much time or memory to evaluate"));
                return BTreeMap::new();
            };
            self.budget.set(left);
            let mut mine = within.waits.clone();
            theirs.into_iter().for_each(|names| mine.extend(names.iter().cloned()));
            let before = self.expanded.resources.len();
            let value = self.node(module, within, &key, &known, &given, &mine);
            // Whoever needs a resource waits for it, and by that for all that it waits for itself.
            if schema::kinds().contains_key(&key.0) {
                mine = BTreeSet::from([format!("{}{}.{}", within.prefix, key.0, key.1)]);
            } else if key.0 == "module" {
                let made = self.expanded.resources[before..].iter().map(|made| made.block.clone());
                mine.extend(made.collect::<BTreeSet<_>>());
            }
            waits.insert(key.clone(), mine);
            known.insert(key, value);
        }
        known
            .into_iter()
            .filter(|((root, _), _)| root == "output")
            .map(|((_, name), value)| (name, value))
            .collect()
    }

    /// The value of one node. A fault is noted, and its value is not known to those who need it.
    fn node(
        &mut self,
        module: &'a Module,
        within: &Within<'_>,
        key: &Key,
        known: &Known,
        given: &BTreeMap<String, (Value, bool)>,
        waits: &BTreeSet<String>,
    ) -> (Value, bool) {
        let (root, name) = (key.0.as_str(), key.1.as_str());
        let scope = Scope { module, known, dir: within.dir, inputs: self.inputs, count: None, each: None };
        let outcome = match root {
            "var" => self.variable(name, &module.variables[name], &scope, given.get(name)),
            "local" => self.placed(&module.locals[name], &scope),
            "output" => {
                let output = &module.outputs[name];
                self.placed(&output.value, &scope).map(|(value, secret)| (value, secret || output.sensitive))
            }
            "module" => self.call(name, &module.calls[name], &scope, within, waits),
            _ => Ok(self.resource(key, &module.resources[key], &scope, within, waits)),
        };
        outcome.unwrap_or_else(|fault| {
            self.faults.push(fault);
            (Value::Unknown, false)
        })
    }

    fn placed(&self, placed: &Placed, scope: &Scope<'_>) -> Result<(Value, bool), Fault> {
        let mut evaluator = Evaluator::new(scope, placed.file, self.budget);
        let value = evaluator.eval(&placed.expression)?;
        Ok((value, evaluator.sensitive))
    }

    fn variable(
        &mut self,
        name: &str,
        variable: &Variable,
        scope: &Scope<'_>,
        given: Option<&(Value, bool)>,
    ) -> Result<(Value, bool), Fault> {
        let value = match (given, &variable.default) {
            (Some((value, _)), _) => value.clone(),
            (None, Some(default)) => self.placed(default, scope)?.0,
            (None, None) => {
                let fault = Fault::new(variable.at, format!("variable {name:?} has no value"));
                return Err(
                    fault.hint(format!("give it: -var {name}=VALUE, -var-file FILE or TAMDAO_VAR_{name}"))
                );
            }
        };
        let taken = variable.kind.take(value);
        let value = taken.map_err(|why| Fault::new(variable.at, format!("variable {name:?}: {why}")))?;
        let sensitive = variable.sensitive || given.is_some_and(|(_, sensitive)| *sensitive);
        // Its conditions see the variable itself.
        let itself = Known::from([(("var".to_owned(), name.to_owned()), (value.clone(), sensitive))]);
        let scope = Scope {
            known: &itself,
            module: scope.module,
            dir: scope.dir,
            inputs: scope.inputs,
            count: None,
            each: None,
        };
        for (condition, message) in &variable.validations {
            let mut evaluator = Evaluator::new(&scope, condition.file, self.budget);
            if evaluator.truth(&condition.expression)? == Some(false) {
                let said = self.placed(message, &scope)?.0.to_text().unwrap_or_default();
                return Err(Fault::new(variable.at, format!("variable {name:?}: {said}")));
            }
        }
        Ok((value, sensitive))
    }

    fn call(
        &mut self,
        name: &str,
        call: &Call,
        scope: &Scope<'_>,
        within: &Within<'_>,
        waits: &BTreeSet<String>,
    ) -> Result<(Value, bool), Fault> {
        let dir = joined(within.dir, &call.source);
        let Some(module) = self.manifest.module(&dir) else {
            return Err(Fault::new(call.at, format!("the directory {dir} of this module was not read")));
        };
        if within.depth == limits::MODULE_DEPTH {
            let most = limits::MODULE_DEPTH;
            return Err(Fault::new(call.at, format!("modules lie in one another {most} deep at most")));
        }
        let mut given = BTreeMap::new();
        for (argument, (expression, at)) in &call.arguments {
            if !module.variables.contains_key(argument) {
                let fault = Fault::new(*at, format!("module {name:?} has no variable {argument:?}"));
                return Err(fault.closest(argument, module.variables.keys().map(String::as_str)));
            }
            let mut evaluator = Evaluator::new(scope, call.file, self.budget);
            let value = evaluator.eval(expression)?;
            given.insert(argument.clone(), (value, evaluator.sensitive));
        }
        let prefix = format!("{}module.{name}.", within.prefix);
        let inner = Within { dir: &dir, prefix: &prefix, depth: within.depth + 1, waits: waits.clone() };
        let outputs = self.module(module, &inner, given);
        let sensitive = outputs.values().any(|(_, sensitive)| *sensitive);
        let outputs = outputs.into_iter().map(|(name, (value, _))| (name, value)).collect();
        let value =
            Value::map(outputs).map_err(|TooDeep| Fault::new(call.at, "its outputs are nested too deep"))?;
        Ok((value, sensitive))
    }

    /// All instances of a resource block; the value is what references see.
    fn resource(
        &mut self,
        key: &Key,
        block: &'a Resource,
        scope: &Scope<'_>,
        within: &Within<'_>,
        waits: &BTreeSet<String>,
    ) -> (Value, bool) {
        let instances = match self.instances(block, scope) {
            Ok(instances) => instances,
            Err(fault) => {
                self.faults.push(fault);
                return (Value::Unknown, false);
            }
        };
        let kind = &schema::kinds()[&key.0];
        let name = format!("{}{}.{}", within.prefix, key.0, key.1);
        let (mut list, mut map) = (Vec::new(), BTreeMap::new());
        let numbered = block.count.is_some();
        let single = !numbered && block.for_each.is_none();
        for (at, instance) in instances.into_iter().enumerate() {
            let address = match &instance {
                _ if single => name.clone(),
                Instance::Number => format!("{name}[{at}]"),
                Instance::Key(key, _) => format!("{name}[{key:?}]"),
            };
            let scope = Scope {
                count: numbered.then_some(at),
                each: match &instance {
                    Instance::Key(key, value) => Some((key.clone(), value.clone())),
                    Instance::Number => None,
                },
                ..*scope
            };
            let mut evaluator = Evaluator::new(&scope, block.file, self.budget);
            let (mut says, faults) = match &block.document {
                Some(document) => kind.read(document, &mut evaluator),
                None => kind.decode(&block.body, &mut evaluator),
            };
            let failed = !faults.is_empty();
            self.faults.extend(faults);
            let place = self.place(kind, &mut says, &key.1, block.at);
            let value = self.seen(kind, &place, &says);
            match instance {
                Instance::Key(key, _) => {
                    map.insert(key, value);
                }
                Instance::Number => list.push(value),
            }
            if failed {
                continue;
            }
            if let Some(other) = self.places.insert(place.clone(), address.clone()) {
                let fault = Fault::new(block.at, format!("{address} is the {place} that {other} is already"));
                self.faults.push(fault.hint("give each its own name, such as name = \"web-${count.index}\""));
            }
            self.expanded.resources.push(Desired {
                address,
                block: name.clone(),
                place,
                says,
                at: block.at,
                waits: waits.clone(),
                prevent_destroy: block.prevent_destroy,
                ignore_changes: block.ignore_changes.clone(),
            });
        }
        let value = if single {
            list.pop().ok_or(TooDeep)
        } else if numbered {
            Value::list(list)
        } else {
            Value::map(map)
        };
        (value.unwrap_or(Value::Unknown), false)
    }

    fn instances(&self, block: &Resource, scope: &Scope<'_>) -> Result<Vec<Instance>, Fault> {
        let Some(expression) = block.count.as_ref().or(block.for_each.as_ref()) else {
            return Ok(vec![Instance::Number]);
        };
        let mut evaluator = Evaluator::new(scope, block.file, self.budget);
        let (value, at) = (evaluator.eval(expression)?, At::of(block.file, expression));
        let room = limits::RESOURCES.saturating_sub(self.expanded.resources.len());
        let many = || Fault::new(at, format!("a manifest has {} resources at most", limits::RESOURCES));
        if value == Value::Unknown {
            return Err(Fault::new(at, "how many there are must be known before apply")
                .hint("let it depend on variables and names only, not on what the cloud says"));
        }
        if block.count.is_some() {
            let number =
                crate::eval::as_number(&value).filter(|number| number.fract() == 0.0 && *number >= 0.0);
            let number =
                number.ok_or_else(|| Fault::new(at, format!("count is a whole number, not {value}")))?;
            if number > room as f64 {
                return Err(many());
            }
            return Ok((0..number as usize).map(|_| Instance::Number).collect());
        }
        let pairs: Vec<Instance> = match value {
            Value::Map(map) => {
                map.inner.iter().map(|(key, value)| Instance::Key(key.clone(), value.clone())).collect()
            }
            Value::List(list) => {
                let keys = list.inner.iter().map(|item| match item {
                    Value::Text(key) => Ok(Instance::Key(key.to_string(), item.clone())),
                    other => Err(Fault::new(
                        at,
                        format!("for_each takes a map or a set of strings, not of {}s", other.kind()),
                    )),
                });
                keys.collect::<Result<_, _>>()?
            }
            other => {
                return Err(Fault::new(at, format!("for_each takes a map or a set, not a {}", other.kind())));
            }
        };
        if pairs.len() > room { Err(many()) } else { Ok(pairs) }
    }

    /// Where the resource is; what the block leaves out is put into what it says.
    fn place(&mut self, kind: &Kind, says: &mut Decoded, label: &str, at: At) -> Place {
        for path in ["metadata.name", "metadata.agency"] {
            if says.unknown.contains(path) {
                let at = says.spans.get(path).copied().unwrap_or(at);
                self.faults.push(Fault::new(at, "a name must be known before apply"));
            }
        }
        let metadata = says.json.entry("metadata").or_insert_with(|| Json::Object(Map::new()));
        let mut take = |field: &str, default: &str| {
            let metadata = metadata.as_object_mut();
            let text = metadata.map(|metadata| {
                let text = metadata.entry(field).or_insert_with(|| Json::from(default));
                text.as_str().unwrap_or_default().to_owned()
            });
            text.unwrap_or_default()
        };
        let name = take("name", label);
        let agency = match kind.owner {
            Owner::Cluster => String::new(),
            Owner::Agency => take("agency", self.inputs.agency),
            Owner::Either => take("agency", ""),
        };
        if agency.is_empty() && kind.owner == Owner::Agency {
            let fault = Fault::new(at, format!("which agency owns this {}?", kind.word));
            self.faults.push(fault.hint("write agency = \"NAME\", or give -a NAME for all"));
        }
        Place { kind: kind.word.clone(), agency, name }
    }

    /// What references see of a resource: what its block says, and for the rest what the cloud says.
    fn seen(&self, kind: &Kind, place: &Place, says: &Decoded) -> Value {
        let live = self.inputs.live.get(place);
        let mut fields = BTreeMap::new();
        let from = |json: &Json| Value::from_json(json).unwrap_or(Value::Unknown);
        let part = |whole: Option<&Json>, name: &str| whole.and_then(|live| live.get(name)).cloned();
        let (spec, metadata) = (part(live, "spec"), part(live, "metadata"));
        for field in kind.fields() {
            let shown = spec.as_ref().map(|spec| spec.get(&field).map_or(Value::Null, from));
            fields.insert(field, shown.unwrap_or(Value::Unknown));
        }
        for field in ["id", "display_name", "labels", "create_time"] {
            let shown = metadata.as_ref().map(|metadata| metadata.get(field).map_or(Value::Null, from));
            fields.insert(field.to_owned(), shown.unwrap_or(Value::Unknown));
        }
        fields.insert("agency".to_owned(), Value::text(place.agency.as_str()));
        fields
            .insert("status".to_owned(), part(live, "status").map_or(Value::Unknown, |status| from(&status)));
        for (under, part) in &says.json {
            for (field, json) in part.as_object().into_iter().flatten() {
                let path = format!("{under}.{field}");
                let partly = says.unknown.iter().any(|unknown| unknown.starts_with(&path));
                fields.insert(field.clone(), if partly { Value::Unknown } else { from(json) });
            }
        }
        for path in &says.unknown {
            if let Some((_, field)) = path.split_once('.').filter(|(_, field)| !field.contains(['.', '['])) {
                fields.insert(field.to_owned(), Value::Unknown);
            }
        }
        // What is secret is not passed on by the resource that holds it.
        for path in &says.sensitive {
            if let Some(field) = path.split(['.', '[']).nth(1) {
                fields.remove(field);
            }
        }
        Value::map(fields).unwrap_or(Value::Unknown)
    }
}

enum Instance {
    Number,
    Key(String, Value),
}

/// What names mean in one module.
struct Scope<'a> {
    module: &'a Module,
    known: &'a Known,
    dir: &'a str,
    inputs: &'a Inputs<'a>,
    count: Option<usize>,
    each: Option<(String, Value)>,
}

impl Names for Scope<'_> {
    fn find(&self, root: &str, name: &str) -> Result<(Value, bool), Fault> {
        let plain = |value: Value| Ok((value, false));
        match (root, name) {
            ("count", "index") => match self.count {
                Some(index) => plain(Value::Number(index as f64)),
                None => Err(Fault::nowhere("count.index is known only in a resource with count")),
            },
            ("each", "key" | "value") => match &self.each {
                Some((key, _)) if name == "key" => plain(Value::text(key.as_str())),
                Some((_, value)) => plain(value.clone()),
                None => Err(Fault::nowhere(format!("each.{name} is known only in a resource with for_each"))),
            },
            ("path", "module") => plain(Value::text(if self.dir.is_empty() { "." } else { self.dir })),
            ("path", "root") => plain(Value::text(".")),
            _ => match self.known.get(&(root.to_owned(), name.to_owned())) {
                Some(value) => Ok(value.clone()),
                None => Err(self.missing(root, name)),
            },
        }
    }

    fn read(&self, path: &str) -> Result<String, String> {
        (self.inputs.read)(path)
    }
}

impl Scope<'_> {
    fn missing(&self, root: &str, name: &str) -> Fault {
        let names: Vec<&str> = match root {
            "var" => self.module.variables.keys().map(String::as_str).collect(),
            "local" => self.module.locals.keys().map(String::as_str).collect(),
            "module" => self.module.calls.keys().map(String::as_str).collect(),
            kind if schema::kinds().contains_key(kind) => {
                let of_kind = self.module.resources.keys().filter(|(of, _)| of == kind);
                of_kind.map(|(_, name)| name.as_str()).collect()
            }
            other => {
                let roots = ["var", "local", "module", "each", "count", "path"];
                let known = roots.into_iter().chain(schema::kinds().keys().map(String::as_str));
                return Fault::nowhere(format!("there is nothing called {other:?}")).closest(other, known);
            }
        };
        Fault::nowhere(format!("there is no {root} {name:?}")).closest(name, names)
    }
}

/// Nothing has a name.
pub(crate) struct NoNames;

impl Names for NoNames {
    fn find(&self, root: &str, name: &str) -> Result<(Value, bool), Fault> {
        Err(Fault::nowhere(format!("{root}.{name} is not known here; only plain values are")))
    }

    fn read(&self, _: &str) -> Result<String, String> {
        Err("no file is read here".to_owned())
    }
}
