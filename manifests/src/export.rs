//! What the cloud has, as the manifest that a user would have written for it, in the normal form: planned against the
//! same cloud it changes nothing, and applied to an empty one it makes the same again. References are written as such,
//! so that everything is made after what it needs. Deliberately absent: user data, which is sealed and never shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use prost_reflect::{FieldDescriptor, Kind as Field, MessageDescriptor};
use serde_json::Value as Json;
use tamdao_model::convert::metadata::STACK;
use tamdao_model::name::NAME_MAX;

use crate::expand::Place;
use crate::fmt;
use crate::judge::{self, Names};
use crate::manifest::Live;
use crate::schema::{self, Owner};
use crate::source::{Fault, File};
use crate::steps::ORDER;

/// Fields that name another resource, by message, and of which kind that is.
const REFERENCES: [(&str, &str, &str); 12] = [
    ("AgencySpec", "parent", "agency"),
    ("DirectBoot", "initrd", "image"),
    ("DirectBoot", "kernel", "image"),
    ("Disk", "iso", "image"),
    ("Disk", "volume", "volume"),
    ("DiskTemplate", "image", "image"),
    ("DiskTemplate", "pool", "pool"),
    ("Interface", "network", "network"),
    ("VmSpec", "flavor", "flavor"),
    ("VmSpec", "placement_groups", "placement_group"),
    ("VolumeSpec", "image", "image"),
    ("VolumeSpec", "pool", "pool"),
];

/// The kind of the resource that a field names, if it names one.
pub fn reference_of(field: &FieldDescriptor) -> Option<&'static str> {
    let of = field.parent_message();
    let named = |one: &&(&str, &str, &'static str)| (of.name(), field.name()) == (one.0, one.1);
    REFERENCES.iter().find(named).map(|(_, _, kind)| *kind)
}

/// Writes resources of the cloud as one file of the stack; those of `which` that the cloud does not have are left out.
/// A volume that was made with its VM is written as that VM's disk, also when `which` has it.
///
/// # Errors
/// When what was written cannot be read again, which is a fault of this code.
pub fn export(stack: &str, which: &BTreeSet<Place>, live: &Live) -> Result<String, Fault> {
    let made: BTreeSet<Place> = which.iter().flat_map(|place| made_with(place, live)).collect();
    let which: Vec<&Place> =
        which.iter().filter(|place| live.contains_key(*place) && !made.contains(*place)).collect();
    let mut alike: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    which.iter().for_each(|place| *alike.entry((place.kind.as_str(), place.name.as_str())).or_default() += 1);
    let label = |place: &Place| match alike[&(place.kind.as_str(), place.name.as_str())] {
        several if several > 1 && !place.agency.is_empty() => {
            // Names have no underscore, so this is nobody else's.
            format!("{}_{}", place.name, place.agency)
        }
        _ => place.name.clone(),
    };
    let labels = which.iter().map(|place| (*place, label(place))).collect();
    let mut writer = Writer { labels, live, text: String::new(), agency: "" };
    let _ = write!(writer.text, "tamdao {{\n  stack = {}\n}}\n", quoted(stack));
    for kind in ORDER {
        for place in which.iter().filter(|place| place.kind == kind) {
            writer.resource(place);
        }
    }
    fmt::format(&File { name: "export.tf".to_owned(), text: writer.text })
}

/// The volumes that were made with a VM: named after it and the disk's place, and nobody's by themselves.
fn made_with(place: &Place, live: &Live) -> Vec<Place> {
    let Some(vm) = live.get(place).filter(|_| place.kind == "vm") else { return Vec::new() };
    let disks = vm["spec"]["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names = disks.iter().enumerate().filter_map(|(at, disk)| {
        let name = disk["volume"].as_str()?;
        let suffix = format!("-{at}");
        let head: String = place.name.chars().take(NAME_MAX - suffix.len()).collect();
        let rest = name.strip_prefix(head.trim_end_matches('-'))?.strip_prefix(&suffix)?;
        let numbered = rest.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok());
        (rest.is_empty() || numbered).then(|| name.to_owned())
    });
    let volume = |name| Place { kind: "volume".to_owned(), agency: place.agency.clone(), name };
    let own = |volume: &Place| live.get(volume).is_some_and(|one| one["metadata"]["labels"][STACK].is_null());
    names.map(volume).filter(own).collect()
}

struct Writer<'a> {
    /// What each exported resource is called in the file.
    labels: BTreeMap<&'a Place, String>,
    live: &'a Live,
    text: String,
    /// Of the resource that is written.
    agency: &'a str,
}

impl<'a> Writer<'a> {
    fn resource(&mut self, place: &'a Place) {
        let Some(kind) = schema::kinds().get(&place.kind) else { return };
        let (label, mut is) = (self.labels[place].clone(), self.live[place].clone());
        self.agency = &place.agency;
        let _ = write!(self.text, "\nresource {} {} {{\n", quoted(&place.kind), quoted(&label));
        if label != place.name {
            let _ = writeln!(self.text, "name = {}", quoted(&place.name));
        }
        if kind.owner != Owner::Cluster && !place.agency.is_empty() {
            let owner = self.reference("agency", &place.agency);
            let _ = writeln!(self.text, "agency = {owner}");
        }
        if let Some(labels) = is["metadata"]["labels"].as_object_mut() {
            labels.remove(STACK);
        }
        self.templates(place, &mut is["spec"]);
        without_defaults(place, &mut is);
        for field in kind.metadata.fields().filter(|field| ["display_name", "labels"].contains(&field.name()))
        {
            self.field(&field, &is["metadata"]);
        }
        let spec = kind.spec.clone();
        self.message(&spec, &is["spec"]);
        self.text.push_str("}\n");
    }

    /// Puts templates in the place of the volumes that were made of them.
    fn templates(&self, place: &Place, spec: &mut Json) {
        let made = made_with(place, self.live);
        for disk in spec["disks"].as_array_mut().into_iter().flatten().filter_map(Json::as_object_mut) {
            let named = |volume: &&Place| disk.get("volume").is_some_and(|name| *name == *volume.name);
            let Some(volume) = made.iter().find(named) else { continue };
            let mut template = self.live[volume]["spec"].clone();
            // The image and pool of a template that have gone are shown as ids, by which nothing can be made.
            if let Some(template) = template.as_object_mut() {
                template.retain(|_, value| {
                    value.as_str().is_none_or(|text| uuid::Uuid::parse_str(text).is_err())
                });
            }
            disk.remove("volume");
            disk.retain(|field, value| field != "kind" || value != "DISK_KIND_DISK");
            disk.insert("create".to_owned(), template);
        }
    }

    fn message(&mut self, message: &MessageDescriptor, is: &Json) {
        for field in message.fields() {
            self.field(&field, is);
        }
    }

    /// One field of a message; nothing when it is unset.
    fn field(&mut self, field: &FieldDescriptor, message: &Json) {
        let (name, value) = (field.name(), &message[field.name()]);
        let kind = field.kind();
        if is_unset(&kind, value) {
            return;
        }
        match (&kind, value) {
            (Field::Message(entry), Json::Object(map)) if field.is_map() => {
                if map.is_empty() {
                    return;
                }
                let inner = entry.map_entry_value_field();
                let _ = writeln!(self.text, "{name} = {{");
                for (key, value) in map {
                    let value = self.value(&inner, value);
                    let _ = writeln!(self.text, "{} = {value}", quoted(key));
                }
                self.text.push_str("}\n");
            }
            (Field::Message(inner), Json::Array(list)) => {
                list.iter().for_each(|item| self.block(name, inner, item));
            }
            (Field::Message(inner), value) => self.block(name, inner, value),
            (_, Json::Array(list)) => {
                let items: Vec<String> = list.iter().map(|item| self.value(field, item)).collect();
                let _ = writeln!(self.text, "{name} = [{}]", items.join(", "));
            }
            (_, value) => {
                let value = self.value(field, value);
                let _ = writeln!(self.text, "{name} = {value}");
            }
        }
    }

    fn block(&mut self, name: &str, message: &MessageDescriptor, is: &Json) {
        let _ = writeln!(self.text, "{name} {{");
        self.message(message, is);
        self.text.push_str("}\n");
    }

    /// A single value as an expression.
    fn value(&self, field: &FieldDescriptor, value: &Json) -> String {
        match (field.kind(), value) {
            (Field::String, Json::String(text)) => {
                reference_of(field).map_or_else(|| quoted(text), |kind| self.reference(kind, text))
            }
            (Field::Enum(choices), Json::String(text)) => quoted(&schema::short(&choices, text)),
            // 64-bit numbers are strings in the contract's JSON.
            (_, Json::String(number)) => number.clone(),
            (_, other) => other.to_string(),
        }
    }

    /// A name as a reference to what the file has, else as it is.
    fn reference(&self, kind: &str, name: &str) -> String {
        let at =
            |agency: &str| Place { kind: kind.to_owned(), agency: agency.to_owned(), name: name.to_owned() };
        let found = self.labels.get(&at(self.agency)).or_else(|| self.labels.get(&at("")));
        found.map_or_else(|| quoted(name), |label| format!("{kind}.{label}.name"))
    }
}

/// Takes out what the controller would say anyway. What has parts stays as it is.
fn without_defaults(place: &Place, is: &mut Json) {
    let names = Names::default();
    let Ok(all) = judge::create(&place.kind, is, &names) else { return };
    let fields = is["spec"].as_object().into_iter().flatten();
    let plain = fields.filter(|(_, value)| !value.is_object() && !value.is_array());
    for field in plain.map(|(field, _)| field.clone()).collect::<Vec<_>>() {
        let mut less = is.clone();
        less["spec"].as_object_mut().and_then(|spec| spec.remove(&field));
        if judge::create(&place.kind, &less, &names).is_ok_and(|made| made == all) {
            *is = less;
        }
    }
}

/// What is left out and what is zero are the same in the contract, but for a message that is there.
fn is_unset(kind: &Field, value: &Json) -> bool {
    match (kind, value) {
        (_, Json::Null | Json::Bool(false)) => true,
        (Field::String, Json::String(text)) => text.is_empty(),
        (_, Json::String(text)) => text == "0" || text.ends_with("_UNSPECIFIED"),
        (_, Json::Number(number)) => number.as_u64() == Some(0),
        (_, Json::Array(list)) => list.is_empty(),
        (_, Json::Bool(true) | Json::Object(_)) => false,
    }
}

/// A string as an expression that means just it.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut before = '"';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // A template begins here, unless the sign is doubled; after another such sign that would be read otherwise.
            '$' | '%' if chars.peek() == Some(&'{') => match before {
                '$' | '%' => {
                    let _ = write!(out, "\\u{:04x}", u32::from(c));
                }
                _ => out.extend([c, c]),
            },
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
        before = c;
    }
    out.push('"');
    out
}
