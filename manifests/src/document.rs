//! YAML and JSON in the API's own form: resources as the contract shows them, with a word for their kind, and the name of
//! their stack. What is read here is a value with the place of each of its parts, so that what is wrong is told where it
//! stands; what a field may be is `schema`'s to say. Scalars are text until a field says what they are, so that a label
//! of `1.10` or `no` is just that. Deliberately absent: anchors, aliases, tags and merge keys, by which a few lines can
//! mean millions; and expressions, which files in Terraform's form have.

use std::collections::{BTreeMap, BTreeSet};

use prost_reflect::{FieldDescriptor, Kind as Field, MessageDescriptor};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use crate::config::{Module, Resource};
use crate::export::reference_of;
use crate::limits;
use crate::schema::{self, Owner};
use crate::source::{At, Fault, File};
use crate::value::Value;

/// What the names of such files end in; JSON is YAML too.
const ENDINGS: [&str; 3] = [".yaml", ".yml", ".json"];
/// What a document says that is a resource.
const RESOURCE: [&str; 5] = ["kind", "metadata", "spec", "status", "lifecycle"];
/// What one says that is none.
const HEAD: [&str; 2] = ["stack", "resources"];

/// One resource as a document says it.
#[derive(Debug, Clone)]
pub struct Document {
    pub value: Value,
    /// Where each part stands, by its path such as `spec.disks[0].volume`.
    pub places: BTreeMap<String, Stands>,
}

/// Where a part of a document stands.
#[derive(Debug, Clone, Copy)]
pub struct Stands {
    /// The word that names it, or itself in a list.
    pub key: At,
    pub value: At,
}

/// Whether a file is in the API's own form, by its name.
pub fn is(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// A part of a document, with what lies in it.
#[derive(Debug)]
struct Node {
    at: At,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Null,
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, each word with where it stands.
    Map(Vec<(String, At, Node)>),
}

/// Adds what a file says to a module.
pub fn take(module: &mut Module, file: &File, number: usize) -> Result<(), Vec<Fault>> {
    let documents = Reader::new(&file.text, number).documents().map_err(|fault| vec![fault])?;
    let mut faults = Vec::new();
    for document in documents {
        let Part::Map(pairs) = &document.part else {
            let what = "a document is a map: a resource with its kind, or the stack";
            faults.push(Fault::new(start(document.at), what));
            continue;
        };
        if pairs.iter().any(|(word, _, _)| HEAD.contains(&word.as_str())) {
            head(module, document, &mut faults);
        } else {
            resource(module, document).unwrap_or_else(|fault| faults.push(fault));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn head(module: &mut Module, document: Node, faults: &mut Vec<Fault>) {
    let Part::Map(pairs) = document.part else { return };
    for (word, at, node) in pairs {
        match (word.as_str(), node.part) {
            ("stack", Part::Text(_)) if module.stack.is_some() => {
                faults.push(Fault::new(node.at, "the stack is named twice"));
            }
            ("stack", Part::Text(name)) => module.stack = Some((name, node.at)),
            ("stack", _) => faults.push(Fault::new(node.at, "the stack is a name")),
            ("resources", Part::List(items)) => {
                for item in items {
                    resource(module, item).unwrap_or_else(|fault| faults.push(fault));
                }
            }
            ("resources", _) => faults.push(Fault::new(node.at, "resources are a list")),
            (word, _) => {
                let fault = Fault::new(at, format!("beside the stack there is no {word:?}"));
                faults.push(fault.closest(word, HEAD));
            }
        }
    }
}

fn resource(module: &mut Module, document: Node) -> Result<(), Fault> {
    let whole = document.at;
    let Part::Map(pairs) = &document.part else {
        return Err(Fault::new(whole, "a resource is a map with kind, metadata and spec"));
    };
    if let Some((word, at, _)) = pairs.iter().find(|(word, _, _)| !RESOURCE.contains(&word.as_str())) {
        return Err(Fault::new(*at, format!("a resource has no {word:?} here")).closest(word, RESOURCE));
    }
    let found = |name: &str| pairs.iter().find(|(word, _, _)| word == name).map(|(_, _, node)| node);
    let kind = match found("kind") {
        Some(Node { part: Part::Text(word), at }) => {
            let unknown = || Fault::new(*at, format!("there is no kind of resource {word:?}"));
            let kind = schema::kinds().get(word);
            kind.ok_or_else(|| unknown().closest(word, schema::kinds().keys().map(String::as_str)))?
        }
        Some(other) => return Err(Fault::new(other.at, "a kind is one word, such as vm")),
        None => return Err(Fault::new(start(whole), "a resource says its kind").hint("write kind: vm")),
    };
    let text = |name: &str| match found("metadata").map(|node| &node.part) {
        Some(Part::Map(pairs)) => pairs.iter().find_map(|(word, _, node)| match &node.part {
            Part::Text(text) if word == name => Some(text.clone()),
            _ => None,
        }),
        _ => None,
    };
    let Some(name) = text("name") else {
        return Err(Fault::new(start(whole), "a resource has a name").hint("write metadata: { name: NAME }"));
    };
    let mut made = Resource { at: start(whole), file: whole.file, ..Resource::default() };
    if let Some(node) = found("lifecycle") {
        lifecycle(&mut made, node)?;
    }
    // Agencies may call theirs alike.
    let mut label = name.clone();
    if module.resources.contains_key(&(kind.word.clone(), label.clone()))
        && let Some(agency) = text("agency")
    {
        label = format!("{agency}/{name}");
    }
    let mut places = BTreeMap::new();
    let value = value(&document, "", &mut places)?;
    made.document = Some(Document { value, places });
    match module.resources.insert((kind.word.clone(), label), made) {
        Some(_) => Err(Fault::new(start(whole), format!("{} {name:?} is declared twice", kind.word))),
        None => Ok(()),
    }
}

/// The beginning of a part: an excerpt of many lines says nothing.
fn start(at: At) -> At {
    At { end: at.start, ..at }
}

fn lifecycle(made: &mut Resource, node: &Node) -> Result<(), Fault> {
    let Part::Map(pairs) = &node.part else { return Err(Fault::new(node.at, "lifecycle is a map")) };
    for (word, at, node) in pairs {
        match (word.as_str(), &node.part) {
            ("prevent_destroy", Part::Text(text)) if ["true", "false"].contains(&text.as_str()) => {
                made.prevent_destroy = text == "true";
            }
            ("prevent_destroy", _) => return Err(Fault::new(node.at, "prevent_destroy is true or false")),
            ("ignore_changes", Part::Text(all)) if all == "all" => made.ignore_changes = vec![all.clone()],
            ("ignore_changes", Part::List(items)) => {
                for item in items {
                    let Part::Text(field) = &item.part else {
                        return Err(Fault::new(item.at, "ignore_changes lists fields, such as [labels]"));
                    };
                    made.ignore_changes.push(field.clone());
                }
            }
            ("ignore_changes", _) => {
                return Err(Fault::new(node.at, "ignore_changes is a list of fields, or all"));
            }
            (word, _) => {
                let fault = Fault::new(*at, format!("lifecycle has no {word:?}"));
                return Err(fault.closest(word, ["prevent_destroy", "ignore_changes"]));
            }
        }
    }
    Ok(())
}

/// The value of a part, and where all that lies in it stands.
fn value(node: &Node, path: &str, places: &mut BTreeMap<String, Stands>) -> Result<Value, Fault> {
    let deep = |_| Fault::new(node.at, "this is nested too deep");
    Ok(match &node.part {
        Part::Null => Value::Null,
        Part::Text(text) => Value::text(text.as_str()),
        Part::List(items) => {
            let mut list = Vec::with_capacity(items.len());
            for (number, item) in items.iter().enumerate() {
                let path = format!("{path}[{number}]");
                places.insert(path.clone(), Stands { key: item.at, value: item.at });
                list.push(value(item, &path, places)?);
            }
            Value::list(list).map_err(deep)?
        }
        Part::Map(pairs) => {
            let mut map = BTreeMap::new();
            for (word, at, item) in pairs {
                let path = if path.is_empty() { word.clone() } else { format!("{path}.{word}") };
                places.insert(path.clone(), Stands { key: *at, value: item.at });
                map.insert(word.clone(), value(item, &path, places)?);
            }
            Value::map(map).map_err(deep)?
        }
    })
}

/// Lets each resource of the documents wait for those that it names, as references do in Terraform's form. Whose one is
/// that names no agency is known later, so then one of any agency is meant.
pub fn link(module: &mut Module) {
    let names: BTreeMap<(String, String, String), String> = module
        .resources
        .iter()
        .filter_map(|((kind, label), resource)| {
            let metadata = attribute(&resource.document.as_ref()?.value, "metadata")?;
            let text = |name| attribute(metadata, name).and_then(Value::to_text).unwrap_or_default();
            Some(((kind.clone(), text("agency"), text("name")), label.clone()))
        })
        .collect();
    let any: BTreeMap<(String, String), String> =
        names.iter().map(|((kind, _, name), label)| ((kind.clone(), name.clone()), label.clone())).collect();
    for ((word, label), resource) in &mut module.resources {
        let (Some(document), Some(kind)) = (&resource.document, schema::kinds().get(word)) else { continue };
        let metadata = attribute(&document.value, "metadata");
        let agency = metadata.and_then(|metadata| attribute(metadata, "agency"));
        let agency = agency.and_then(Value::to_text).unwrap_or_default();
        let mut named: Vec<(&str, String)> = Vec::new();
        if kind.owner != Owner::Cluster && !agency.is_empty() {
            named.push(("agency", agency.clone()));
        }
        if let Some(spec) = attribute(&document.value, "spec") {
            references(&kind.spec, spec, &mut named);
        }
        for (kind, name) in named {
            let at = |agency: &str| names.get(&(kind.to_owned(), agency.to_owned(), name.clone()));
            let of_any = || any.get(&(kind.to_owned(), name.clone())).filter(|_| agency.is_empty());
            let other = at(&agency).or_else(|| at("")).or_else(of_any);
            if let Some(other) = other.filter(|other| kind != word || *other != label) {
                resource.depends_on.push((kind.to_owned(), other.clone(), resource.at));
            }
        }
    }
}

fn attribute<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Map(map) => map.inner.get(name),
        _ => None,
    }
}

/// The names of other resources in a message, with their kinds.
fn references(message: &MessageDescriptor, value: &Value, into: &mut Vec<(&'static str, String)>) {
    let Value::Map(map) = value else { return };
    for (name, value) in &map.inner {
        let Some(field) = message.get_field_by_name(name).filter(|field| !field.is_map()) else { continue };
        match value {
            Value::List(list) => list.inner.iter().for_each(|item| reference(&field, item, into)),
            value => reference(&field, value, into),
        }
    }
}

fn reference(field: &FieldDescriptor, value: &Value, into: &mut Vec<(&'static str, String)>) {
    match (field.kind(), reference_of(field), value) {
        (Field::Message(inner), _, value) => references(&inner, value, into),
        (_, Some(kind), Value::Text(name)) => into.push((kind, name.to_string())),
        _ => {}
    }
}

/// Makes parts of the parser's events, with a stack of its own: no file is nested so deep that it matters.
struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// The byte at which each character begins, and the end.
    bytes: Vec<usize>,
    file: usize,
    open: Vec<Open>,
}

/// What was begun and not ended.
struct Open {
    from: At,
    list: Vec<Node>,
    map: Option<Pairs>,
}

/// What is known of a map: its words, its pairs, and the word whose value comes next.
#[derive(Default)]
struct Pairs {
    words: BTreeSet<String>,
    pairs: Vec<(String, At, Node)>,
    word: Option<(String, At)>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, file: usize) -> Self {
        let bytes = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        Self { parser: Parser::new_from_str(text), bytes, file, open: Vec::new() }
    }

    fn at(&self, span: Span) -> At {
        let byte = |index: usize| self.bytes.get(index).or(self.bytes.last()).copied().unwrap_or_default();
        let (start, end) = (byte(span.start.index()), byte(span.end.index()));
        At { file: self.file, start, end: end.max(start) }
    }

    fn documents(mut self) -> Result<Vec<Node>, Fault> {
        let mut documents = Vec::new();
        while let Some(event) = self.parser.next_event() {
            let (event, span) = event.map_err(|error| {
                let mark = *error.marker();
                Fault::new(self.at(Span::empty(mark)), error.info().to_owned())
            })?;
            let at = self.at(span);
            let node = match event {
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {
                    continue;
                }
                Event::StreamEnd => break,
                Event::Alias(_) => {
                    return Err(Fault::new(at, "there are no aliases here").hint("write it again"));
                }
                Event::Scalar(_, _, _, Some(_))
                | Event::SequenceStart(_, Some(_))
                | Event::MappingStart(_, Some(_)) => return Err(Fault::new(at, "there are no tags here")),
                Event::Scalar(_, _, 1.., _) | Event::SequenceStart(1.., _) | Event::MappingStart(1.., _) => {
                    return Err(
                        Fault::new(at, "there are no anchors here").hint("write it where it is meant")
                    );
                }
                Event::Scalar(text, style, _, _) => Node { at, part: scalar(&text, style) },
                Event::SequenceStart(..) => {
                    self.begin(Open { from: at, list: Vec::new(), map: None })?;
                    continue;
                }
                Event::MappingStart(..) => {
                    self.begin(Open { from: at, list: Vec::new(), map: Some(Pairs::default()) })?;
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(open) = self.open.pop() else { continue };
                    let at = At { end: at.end.max(open.from.start), ..open.from };
                    let part = match open.map {
                        Some(map) => Part::Map(map.pairs),
                        None => Part::List(open.list),
                    };
                    Node { at, part }
                }
            };
            match self.open.last_mut() {
                None if matches!(node.part, Part::Null) => {}
                None => documents.push(node),
                Some(open) => open.add(node)?,
            }
        }
        Ok(documents)
    }

    fn begin(&mut self, open: Open) -> Result<(), Fault> {
        if self.open.len() >= usize::from(limits::VALUE_DEPTH) {
            return Err(Fault::new(open.from, "this is nested too deep"));
        }
        self.open.push(open);
        Ok(())
    }
}

impl Open {
    fn add(&mut self, node: Node) -> Result<(), Fault> {
        let Some(map) = &mut self.map else {
            self.list.push(node);
            return Ok(());
        };
        let Node { at, part } = node;
        match (map.word.take(), part) {
            (Some((word, key)), _) if !map.words.insert(word.clone()) => {
                return Err(Fault::new(key, format!("{word} is given twice")));
            }
            (Some((word, key)), part) => map.pairs.push((word, key, Node { at, part })),
            (None, Part::Text(text)) => map.word = Some((text, at)),
            (None, _) => return Err(Fault::new(at, "a word stands here, and a colon behind it")),
        }
        Ok(())
    }
}

/// Text, whatever it looks like; unless it is nothing.
fn scalar(text: &str, style: ScalarStyle) -> Part {
    match (style, text) {
        (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Part::Null,
        _ => Part::Text(text.to_owned()),
    }
}
