//! Field masks: which fields of a message an update takes. Paths are checked against the descriptors, and merging
//! works on any message by reflection, so that no resource needs code of its own. The merge is made on the binary
//! form rather than on JSON, because JSON cannot carry an enum number that is not known, which must come back as
//! a violation of its field. Which fields may change at all is not decided here.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use pbjson_types::FieldMask;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};

use crate::convert::Violation;
use crate::limits;

/// The compiled contract. The bytes are made by our own build, so decoding them cannot fail at run time only.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(tamdao_proto::DESCRIPTORS).expect("the descriptor set of our own build")
});

/// The descriptor of a message by its full name, such as `tamdao.v1.Vm`.
pub fn descriptor(message: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(message)
}

/// Reads a mask: paths in the proto's own spelling, without repetition; none for an empty mask or "*".
pub fn read(message: &str, mask: Option<&FieldMask>) -> Result<BTreeSet<String>, Vec<Violation>> {
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.len() > limits::MASK_PATHS {
        let (have, may) = (paths.len(), limits::MASK_PATHS);
        return Err(vec![Violation::new("update_mask", format!("has {have} paths, {may} are allowed"))]);
    }
    if paths.iter().any(|path| path == "*") {
        return Ok(BTreeSet::new());
    }
    let mut known = BTreeSet::new();
    let mut violations = Vec::new();
    for path in paths.iter().filter(|path| !path.is_empty()) {
        match resolve(message, path) {
            Ok(fields) => {
                known.insert(fields.iter().map(FieldDescriptor::name).collect::<Vec<_>>().join("."));
            }
            Err(message) => violations.push(Violation::new("update_mask", message)),
        }
    }
    if violations.is_empty() { Ok(known) } else { Err(violations) }
}

/// `current` with the masked fields of `incoming`; a field that is absent there is cleared.
pub fn merge<P: Message + Default>(
    message: &str,
    current: &P,
    incoming: &P,
    paths: impl IntoIterator<Item = impl AsRef<str>>,
) -> P {
    let mut merged = dynamic(message, current);
    let incoming = dynamic(message, incoming);
    for path in paths {
        let fields = resolve(message, path.as_ref()).unwrap_or_default();
        copy(&incoming, &mut merged, &fields);
    }
    P::decode(&*merged.encode_to_vec()).expect("a message of the same descriptor")
}

/// `merged` with those fields of `current` that are unset in `incoming`. A member of a oneof counts as set when
/// any of its siblings is.
pub fn keep_unset<P: Message + Default>(
    message: &str,
    merged: &P,
    current: &P,
    incoming: &P,
    paths: &[&str],
) -> P {
    let incoming = dynamic(message, incoming);
    let unset = paths.iter().filter(|path| {
        let fields = resolve(message, path).unwrap_or_default();
        !has(&incoming, &fields)
    });
    merge(message, merged, current, unset)
}

fn dynamic<P: Message>(message: &str, value: &P) -> DynamicMessage {
    let descriptor = descriptor(message).expect("a message of the contract");
    DynamicMessage::decode(descriptor, &*value.encode_to_vec()).expect("a message of the same descriptor")
}

/// The fields along a path, each in snake_case or camelCase.
fn resolve(message: &str, path: &str) -> Result<Vec<FieldDescriptor>, String> {
    let mut at = descriptor(message);
    let mut fields: Vec<FieldDescriptor> = Vec::new();
    for segment in path.split('.') {
        if let (None, Some(last)) = (&at, fields.last()) {
            let whole: Vec<_> = fields.iter().map(FieldDescriptor::name).collect();
            let what = if last.is_map() {
                "a map"
            } else if last.is_list() {
                "a list"
            } else {
                "a single value"
            };
            let whole = whole.join(".");
            return Err(format!("{path:?} goes into {what}; name the whole field {whole:?}"));
        }
        let field = at
            .as_ref()
            .and_then(|m| m.get_field_by_name(segment).or_else(|| m.get_field_by_name(&snake_case(segment))));
        let Some(field) = field else {
            let hint = closest(message, path).map(|known| format!("; did you mean {known:?}?"));
            return Err(format!("there is no field {path:?}{}", hint.unwrap_or_default()));
        };
        at = below(&field);
        fields.push(field);
    }
    Ok(fields)
}

/// The message of a field, if paths can go into it.
fn below(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(message) if !field.is_list() && !field.is_map() => {
            message.full_name().starts_with("tamdao.").then_some(message)
        }
        _ => None,
    }
}

fn snake_case(segment: &str) -> String {
    let mut out = String::new();
    for c in segment.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn has(message: &DynamicMessage, fields: &[FieldDescriptor]) -> bool {
    let Some((field, rest)) = fields.split_first() else { return false };
    let set = match field.containing_oneof() {
        Some(oneof) => oneof.fields().any(|member| message.has_field(&member)),
        None => message.has_field(field),
    };
    set && (rest.is_empty() || message.get_field(field).as_message().is_some_and(|below| has(below, rest)))
}

fn copy(from: &DynamicMessage, to: &mut DynamicMessage, fields: &[FieldDescriptor]) {
    let Some((field, rest)) = fields.split_first() else { return };
    if rest.is_empty() {
        if from.has_field(field) {
            to.set_field(field, from.get_field(field).into_owned());
        } else {
            to.clear_field(field);
        }
        return;
    }
    // Reading an unset message gives its default, and writing to one would set it: only go where there is
    // something to copy or to clear.
    if from.has_field(field) || to.has_field(field) {
        let source = from.get_field(field);
        if let (Some(from), Some(to)) = (source.as_message(), to.get_field_mut(field).as_message_mut()) {
            copy(from, to, rest);
        }
    }
}

/// The known path that is most like this one, if any is like it at all.
fn closest(message: &str, path: &str) -> Option<String> {
    let mut all = Vec::new();
    if let Some(message) = descriptor(message) {
        collect(&message, "", &mut all);
    }
    let wanted = snake_case(path);
    // A field may be known by its last word to somebody who has forgotten what it lies in.
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let unlikeness = |known: &str| {
        // The beginning of a field is as good as the field.
        let whole = if known.starts_with(&wanted) { 0 } else { distance(&wanted, known) };
        whole.min(distance(&last(&wanted), &last(known)) + 1)
    };
    let (unlike, known) = all.into_iter().map(|known| (unlikeness(&known), known)).min()?;
    (unlike * 2 <= last(&wanted).len() + 1).then_some(known)
}

fn collect(message: &MessageDescriptor, prefix: &str, out: &mut Vec<String>) {
    for field in message.fields() {
        let path = format!("{prefix}{}", field.name());
        // What the controller writes is no help to somebody who wants to change something.
        if path == "status" {
            continue;
        }
        if let Some(below) = below(&field) {
            collect(&below, &format!("{path}."), out);
        }
        out.push(path);
    }
}

/// How many single changes lead from one text to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
