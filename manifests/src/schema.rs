//! What a resource block may say, read from the descriptors of the public contract: a kind is a message that can be made,
//! changed and deleted, and the attributes of its block are what users write in its metadata and spec. No table of fields
//! is kept by hand: a field that the contract gets is a field here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use hcl_edit::structure::{Body, Structure};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind as Field, MessageDescriptor, ServiceDescriptor};
use serde_json::{Map, Value as Json};

use crate::document::{Document, Stands};
use crate::eval::{Evaluator, as_number};
use crate::source::{At, Fault};
use crate::value::{Value, is_whole};

/// What users write in the metadata.
const METADATA: [&str; 4] = ["name", "agency", "display_name", "labels"];
/// What the cloud writes there, and nobody reads in a request.
const SHOWN: [&str; 4] = ["id", "revision", "generation", "create_time"];
/// Attributes and blocks of a resource that are not fields.
const AROUND: [&str; 4] = ["count", "for_each", "depends_on", "lifecycle"];
/// Never shown, whatever it was made from.
const SECRET: &str = "spec.user_data";

/// A kind of resource.
#[derive(Debug)]
pub struct Kind {
    /// As in the contract: `placement_group`.
    pub word: String,
    pub(crate) metadata: MessageDescriptor,
    pub(crate) spec: MessageDescriptor,
    pub owner: Owner,
}

/// Who owns resources of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Agency,
    Cluster,
    /// The cluster, or an agency privately.
    Either,
}

static KINDS: LazyLock<BTreeMap<String, Kind>> = LazyLock::new(|| {
    let vm = tamdao_model::mask::descriptor("tamdao.v1.Vm").expect("the contract has VMs");
    let services = vm.parent_pool().services();
    services.filter_map(|service| kind(&service)).map(|kind| (kind.word.clone(), kind)).collect()
});

/// All kinds that a manifest can have, by their words.
pub fn kinds() -> &'static BTreeMap<String, Kind> {
    &KINDS
}

fn kind(service: &ServiceDescriptor) -> Option<Kind> {
    let name = service.name().strip_suffix("Service")?;
    let method = |verb: &str| service.methods().find(|method| method.name() == format!("{verb}{name}"));
    let create = method("Create")?;
    let message = create.output();
    let both = (method("Update")?.output(), method("Delete")?.output());
    if both != (message.clone(), message.clone()) {
        return None;
    }
    let inner = |field: &str| match message.get_field_by_name(field)?.kind() {
        Field::Message(message) => Some(message),
        _ => None,
    };
    let http = service.parent_pool().get_extension_by_name("google.api.http")?;
    let options = create.options();
    let rule = options.get_extension(&http);
    let path = rule.as_message()?.get_field_by_name("post")?.as_str()?.to_owned();
    let owner = if create.input().get_field_by_name("agency").is_none() || name == "Agency" {
        Owner::Cluster
    } else if path.contains("{agency}") {
        Owner::Agency
    } else {
        Owner::Either
    };
    let mut word = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(c.to_ascii_lowercase());
    }
    Some(Kind { word, metadata: inner("metadata")?, spec: inner("spec")?, owner })
}

/// One resource as its block says it.
#[derive(Debug, Clone, Default)]
pub struct Decoded {
    /// metadata and spec in the contract's JSON form.
    pub json: Map<String, Json>,
    /// Where each path is written, such as `spec.disks[0].create.image`.
    pub spans: BTreeMap<String, At>,
    /// Paths that are known only after apply.
    pub unknown: BTreeSet<String>,
    /// Paths whose values are not shown.
    pub sensitive: BTreeSet<String>,
}

impl Kind {
    /// The fields of the spec.
    pub fn fields(&self) -> impl Iterator<Item = String> {
        self.spec.fields().map(|field| field.name().to_owned()).collect::<Vec<_>>().into_iter()
    }

    fn may_have(&self, name: &str) -> bool {
        METADATA.contains(&name) && (name != "agency" || self.owner != Owner::Cluster)
    }

    /// All words that may stand in a block of this kind.
    fn words(&self) -> Vec<String> {
        let metadata = METADATA.iter().filter(|name| self.may_have(name)).map(|name| (*name).to_owned());
        metadata.chain(self.fields()).chain(AROUND.iter().map(|word| (*word).to_owned())).collect()
    }

    /// Reads a block.
    pub fn decode(&self, body: &Body, evaluator: &mut Evaluator<'_>) -> (Decoded, Vec<Fault>) {
        let mut reader = Reader::new(evaluator);
        let (mut metadata, mut spec) = (Map::new(), Map::new());
        for structure in body.iter() {
            let word = word_of(structure);
            if AROUND.contains(&word) {
                continue;
            }
            let (message, under, into) = if self.may_have(word) {
                (&self.metadata, "metadata", &mut metadata)
            } else {
                (&self.spec, "spec", &mut spec)
            };
            let Some(field) = message.get_field_by_name(word) else {
                let at = reader.evaluator.at(structure_key(structure));
                let fault = Fault::new(at, format!("a {} has no {word:?}", self.word));
                let words = self.words();
                reader.faults.push(fault.closest(word, words.iter().map(String::as_str)));
                continue;
            };
            reader.structure(&field, structure, under, into);
        }
        if spec.contains_key("user_data") {
            reader.decoded.sensitive.insert(SECRET.to_owned());
        }
        reader.decoded.json.insert("metadata".to_owned(), Json::Object(metadata));
        reader.decoded.json.insert("spec".to_owned(), Json::Object(spec));
        (reader.decoded, reader.faults)
    }
}

impl Kind {
    /// Reads a resource in the API's own form, as it is shown and requested: what the cloud writes is not read.
    pub fn read(&self, document: &Document, evaluator: &mut Evaluator<'_>) -> (Decoded, Vec<Fault>) {
        let mut reader = Reader { places: Some(&document.places), ..Reader::new(evaluator) };
        let Value::Map(whole) = &document.value else { return (reader.decoded, reader.faults) };
        for (part, message) in [("metadata", &self.metadata), ("spec", &self.spec)] {
            let mut into = Map::new();
            match whole.inner.get(part) {
                Some(Value::Map(map)) => {
                    for (name, value) in &map.inner {
                        let path = format!("{part}.{name}");
                        let known = part == "spec" || self.may_have(name);
                        if part == "metadata" && SHOWN.contains(&name.as_str()) {
                            continue;
                        }
                        match message.get_field_by_name(name).filter(|_| known) {
                            Some(field) => {
                                if let Some(json) = reader.field(&field, value, &path, At::default()) {
                                    into.insert(name.clone(), json);
                                }
                            }
                            None => {
                                let fault = Fault::new(
                                    reader.key(&path),
                                    format!("the {part} of a {} has no {name:?}", self.word),
                                );
                                let words: Vec<String> = match part {
                                    "spec" => self.fields().collect(),
                                    _ => METADATA.iter().map(|word| (*word).to_owned()).collect(),
                                };
                                reader.faults.push(fault.closest(name, words.iter().map(String::as_str)));
                            }
                        }
                    }
                }
                None | Some(Value::Null) => {}
                Some(_) => {
                    let fault = Fault::new(reader.at(part, At::default()), format!("the {part} is a map"));
                    reader.faults.push(fault);
                }
            }
            reader.decoded.json.insert(part.to_owned(), Json::Object(into));
        }
        if reader.decoded.json["spec"].get("user_data").is_some() {
            reader.decoded.sensitive.insert(SECRET.to_owned());
        }
        let places = document.places.iter().map(|(path, stands)| (path.clone(), stands.value));
        reader.decoded.spans.extend(places);
        (reader.decoded, reader.faults)
    }
}

fn word_of(structure: &Structure) -> &str {
    structure_key(structure).as_str()
}

fn structure_key(structure: &Structure) -> &hcl_edit::Decorated<hcl_edit::Ident> {
    match structure {
        Structure::Attribute(attribute) => &attribute.key,
        Structure::Block(block) => &block.ident,
    }
}

struct Reader<'e, 'a> {
    evaluator: &'e mut Evaluator<'a>,
    decoded: Decoded,
    faults: Vec<Fault>,
    /// Where each path stands, where that is known.
    places: Option<&'e BTreeMap<String, Stands>>,
}

impl<'e, 'a> Reader<'e, 'a> {
    fn new(evaluator: &'e mut Evaluator<'a>) -> Self {
        Self { evaluator, decoded: Decoded::default(), faults: Vec::new(), places: None }
    }

    /// Where a value stands; by itself, or with what it lies in.
    fn at(&self, path: &str, within: At) -> At {
        self.places.and_then(|places| places.get(path)).map_or(within, |stands| stands.value)
    }

    /// Where the word of a value stands.
    fn key(&self, path: &str) -> At {
        self.places.and_then(|places| places.get(path)).map_or_else(At::default, |stands| stands.key)
    }
}

impl Reader<'_, '_> {
    /// One attribute or block of a message.
    fn structure(
        &mut self,
        field: &FieldDescriptor,
        structure: &Structure,
        under: &str,
        into: &mut Map<String, Json>,
    ) {
        let (path, name) = (format!("{under}.{}", field.name()), field.name().to_owned());
        let at = self.evaluator.at(structure_key(structure));
        match structure {
            Structure::Attribute(attribute) => {
                self.evaluator.sensitive = false;
                let at = self.evaluator.at(&attribute.value);
                let value = match self.evaluator.eval(&attribute.value) {
                    Ok(value) => value,
                    Err(fault) => return self.faults.push(fault),
                };
                if self.evaluator.sensitive {
                    self.decoded.sensitive.insert(path.clone());
                }
                self.decoded.spans.insert(path.clone(), at);
                if into.contains_key(&name) {
                    return self.faults.push(Fault::new(at, format!("{name} is given twice")));
                }
                if let Some(json) = self.field(field, &value, &path, at) {
                    into.insert(name, json);
                }
            }
            Structure::Block(block) => {
                let Field::Message(message) = field.kind() else {
                    return self.faults.push(
                        Fault::new(at, format!("{name} is an attribute")).hint(format!("write {name} = ...")),
                    );
                };
                if field.is_map() {
                    return self.faults.push(
                        Fault::new(at, format!("{name} is a map"))
                            .hint(format!("write {name} = {{ KEY = VALUE }}")),
                    );
                }
                if !field.is_list() {
                    if into.contains_key(&name) {
                        return self.faults.push(Fault::new(at, format!("{name} is given twice")));
                    }
                    self.decoded.spans.insert(path.clone(), at);
                    let inner = self.body(&message, &block.body, &path);
                    into.insert(name, inner);
                    return;
                }
                let list = into.entry(name).or_insert_with(|| Json::Array(Vec::new()));
                let number = list.as_array().map_or(0, Vec::len);
                let path = format!("{path}[{number}]");
                self.decoded.spans.insert(path.clone(), at);
                let inner = self.body(&message, &block.body, &path);
                if let Some(list) = list.as_array_mut() {
                    list.push(inner);
                }
            }
        }
    }

    fn body(&mut self, message: &MessageDescriptor, body: &Body, path: &str) -> Json {
        let mut into = Map::new();
        for structure in body.iter() {
            let word = word_of(structure);
            match message.get_field_by_name(word) {
                Some(field) => self.structure(&field, structure, path, &mut into),
                None => {
                    let at = self.evaluator.at(structure_key(structure));
                    self.faults.push(no_field(message, word, at, path));
                }
            }
        }
        Json::Object(into)
    }

    /// A value for a field; none when it is unset or not known yet.
    fn field(&mut self, field: &FieldDescriptor, value: &Value, path: &str, at: At) -> Option<Json> {
        let at = self.at(path, at);
        if *value == Value::Unknown {
            self.decoded.unknown.insert(path.to_owned());
            return None;
        }
        if *value == Value::Null {
            return None;
        }
        if field.is_map() {
            let Field::Message(entry) = field.kind() else { return None };
            let inner = entry.map_entry_value_field();
            let Value::Map(map) = value else { return self.wrong("a map", value, path, at) };
            let pairs = map.inner.iter().filter_map(|(key, value)| {
                let json = self.single(&inner.kind(), value, &format!("{path}.{key}"), at)?;
                Some((key.clone(), json))
            });
            return Some(Json::Object(pairs.collect()));
        }
        if field.is_list() {
            let Value::List(list) = value else { return self.wrong("a list", value, path, at) };
            let items = list.inner.iter().enumerate();
            let items = items.filter_map(|(number, item)| {
                self.single(&field.kind(), item, &format!("{path}[{number}]"), at)
            });
            return Some(Json::Array(items.collect()));
        }
        self.single(&field.kind(), value, path, at)
    }

    fn single(&mut self, kind: &Field, value: &Value, path: &str, at: At) -> Option<Json> {
        let at = self.at(path, at);
        match (kind, value) {
            (_, Value::Unknown) => {
                self.decoded.unknown.insert(path.to_owned());
                None
            }
            (_, Value::Null) => None,
            (Field::String, value) => match value.to_text() {
                Some(text) => Some(Json::from(text)),
                None => self.wrong("a string", value, path, at),
            },
            (Field::Bool, value) => match value.to_text().as_deref() {
                Some("true") => Some(Json::Bool(true)),
                Some("false") => Some(Json::Bool(false)),
                _ => self.wrong("true or false", value, path, at),
            },
            (Field::Uint32 | Field::Uint64, value) => {
                let most = if *kind == Field::Uint32 { f64::from(u32::MAX) } else { f64::MAX };
                let number =
                    as_number(value).filter(|number| is_whole(*number) && (0.0..=most).contains(number));
                match number {
                    Some(number) => Some(Json::from(number as u64)),
                    None => self.wrong("a whole number of 0 or more", value, path, at),
                }
            }
            (Field::Enum(choices), value) => match value.to_text().and_then(|text| choice(choices, &text)) {
                Some(name) => Some(Json::from(name)),
                None => {
                    let given = value.to_text().unwrap_or_default();
                    let words = words(choices);
                    let field = path.split_once('.').map_or(path, |(_, below)| below);
                    let what = format!("{field} knows no {given:?}");
                    self.faults.push(Fault::new(at, what).closest(&given, words.iter().map(String::as_str)));
                    None
                }
            },
            (Field::Message(message), Value::Map(map)) => {
                let mut into = Map::new();
                for (name, value) in &map.inner {
                    let Some(field) = message.get_field_by_name(name) else {
                        let inner = self.places.and_then(|places| places.get(&format!("{path}.{name}")));
                        let at = inner.map_or(at, |stands| stands.key);
                        self.faults.push(no_field(message, name, at, path));
                        continue;
                    };
                    if let Some(json) = self.field(&field, value, &format!("{path}.{name}"), at) {
                        into.insert(name.clone(), json);
                    }
                }
                Some(Json::Object(into))
            }
            (Field::Message(_), value) => self.wrong("a map", value, path, at),
            (_, value) => self.wrong("something that manifests cannot say", value, path, at),
        }
    }

    fn wrong(&mut self, expected: &str, value: &Value, path: &str, at: At) -> Option<Json> {
        let path = path.split_once('.').map_or(path, |(_, below)| below);
        let what = format!("{path}: expected {expected}, not a {}", value.kind());
        self.faults.push(Fault::new(at, what));
        None
    }
}

fn no_field(message: &MessageDescriptor, word: &str, at: At, path: &str) -> Fault {
    let path = path.split_once('.').map_or(path, |(_, below)| below);
    let names: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
    Fault::new(at, format!("{path} has no {word:?}")).closest(word, names.iter().map(String::as_str))
}

/// What all values of an enum begin with, such as `RUN_POLICY_`.
fn prefix(choices: &EnumDescriptor) -> String {
    choices
        .get_value(0)
        .map(|zero| zero.name().trim_end_matches("UNSPECIFIED").to_owned())
        .unwrap_or_default()
}

/// The short words of an enum, such as `always`.
fn words(choices: &EnumDescriptor) -> Vec<String> {
    let set = choices.values().filter(|value| value.number() != 0);
    set.map(|value| short(choices, value.name())).collect()
}

/// The short word of an enum's value.
pub fn short(choices: &EnumDescriptor, name: &str) -> String {
    name.trim_start_matches(&prefix(choices)).to_ascii_lowercase()
}

/// An enum's value by its full name or its short word.
fn choice(choices: &EnumDescriptor, given: &str) -> Option<String> {
    let upper = given.to_ascii_uppercase().replace('-', "_");
    let whole = format!("{}{upper}", prefix(choices));
    let found = choices.get_value_by_name(&upper).or_else(|| choices.get_value_by_name(&whole));
    found.map(|value| value.name().to_owned())
}
