//! The collector of violations. Reading goes on after a violation with a placeholder, so that one answer lists
//! all that is wrong; [`Checks::finish`] is the only way out, and gives nothing if anything was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use uuid::Uuid;

use super::{Invalid, Twin, Violation, syntax};
use crate::lookup::Lookup;
use crate::{Kind, Name, Scope, limits};

pub struct Checks<'a> {
    root: &'static str,
    lookup: &'a dyn Lookup,
    violations: Vec<Violation>,
    omitted: usize,
}

impl<'a> Checks<'a> {
    /// Fields are named below the word of this kind.
    pub fn new(kind: Kind, lookup: &'a dyn Lookup) -> Self {
        Self { root: kind.word(), lookup, violations: Vec::new(), omitted: 0 }
    }

    /// Notes what is wrong with a field, named below the resource.
    pub fn wrong(&mut self, field: &str, message: impl Into<String>) {
        if self.violations.len() < limits::VIOLATIONS {
            self.violations.push(Violation::new(format!("{}.{field}", self.root), message));
        } else {
            self.omitted += 1;
        }
    }

    /// Notes what is wrong if anything is, and gives the value otherwise.
    pub fn ok<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.wrong(field, message)).ok()
    }

    /// The value, if nothing was wrong.
    pub fn finish<T>(mut self, value: T) -> Result<T, Invalid> {
        if self.violations.is_empty() {
            return Ok(value);
        }
        if self.omitted > 0 {
            self.violations.push(Violation::new(self.root, format!("and {} more", self.omitted)));
        }
        Err(Invalid { violations: self.violations })
    }

    /// A name, or a placeholder.
    pub fn name(&mut self, field: &str, text: &str) -> Name {
        match Name::new(text) {
            Ok(name) => name,
            Err(error) => {
                self.wrong(field, syntax::name_error(&error, text));
                Name::new("x").expect("a letter is a name")
            }
        }
    }

    /// Text for people, of limited length and without control characters.
    pub fn text(&mut self, field: &str, text: String, limit: usize) -> String {
        let checked = syntax::text(&text, limit);
        self.ok(field, checked);
        text
    }

    /// A number within a range; `extra` says what else is allowed, such as "or 0 for the default".
    pub fn number(&mut self, field: &str, number: u32, range: RangeInclusive<u32>, extra: &str) -> u32 {
        if !range.contains(&number) {
            let extra = if extra.is_empty() { String::new() } else { format!(", {extra}") };
            let (from, to) = range.into_inner();
            let allowed = format!("{} to {} are allowed{extra}", grouped(from), grouped(to));
            self.wrong(field, format!("is {}; {allowed}", grouped(number)));
        }
        number
    }

    /// Whether a list is short enough to be looked at.
    pub fn count(&mut self, field: &str, count: usize, limit: usize) -> bool {
        if count > limit {
            self.wrong(field, format!("has {count} entries, {limit} are allowed"));
        }
        count <= limit
    }

    /// An enum; `zero` is what 0 means, if it means anything.
    pub fn choice<T: Twin>(&mut self, field: &str, number: i32, zero: Option<T>) -> T {
        let words = T::words();
        let found = if number == 0 { zero } else { T::from_number(number) };
        found.unwrap_or_else(|| {
            let allowed: Vec<_> = words.iter().map(|(_, word)| *word).collect();
            let allowed = allowed.join(", ");
            match number {
                0 => self.wrong(field, format!("must be set; allowed: {allowed}")),
                _ => self.wrong(field, format!("has the unknown number {number}; allowed: {allowed}")),
            }
            words[0].0
        })
    }

    /// Labels, or the labels that a node must have.
    pub fn labels(
        &mut self,
        field: &str,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> BTreeMap<String, String> {
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        if self.count(field, labels.len(), limits::LABELS) {
            for (key, value) in &labels {
                let at = format!("{field}[{}]", syntax::quote(key));
                let key = syntax::label_key(key).map_err(|m| format!("the key {m}"));
                self.ok(&at, key);
                let value = syntax::label_value(value).map_err(|m| format!("the value {m}"));
                self.ok(&at, value);
            }
        }
        labels
    }

    /// The id of what is referred to, or a placeholder. The scopes are asked in turn.
    pub fn id<I: From<Uuid>>(&mut self, field: &str, kind: Kind, scopes: &[Scope], text: &str) -> I {
        if text.is_empty() {
            self.wrong(field, format!("must be given: the name or UUID of {} {kind}", article(kind)));
            return Uuid::nil().into();
        }
        match scopes.iter().find_map(|scope| self.lookup.id(kind, *scope, text)) {
            Some(id) => id.into(),
            None => {
                let called = if Uuid::parse_str(text).is_ok() { "with the id" } else { "named" };
                let place = match scopes {
                    [Scope::Cluster] => "",
                    [Scope::Agency(_)] => " in this agency",
                    _ => " in this agency or in the cluster",
                };
                self.wrong(field, format!("no {kind} {called} {}{place}", syntax::quote(text)));
                Uuid::nil().into()
            }
        }
    }

    /// The same for a reference that may be empty.
    pub fn id_if_given<I: From<Uuid>>(
        &mut self,
        field: &str,
        kind: Kind,
        scopes: &[Scope],
        text: &str,
    ) -> Option<I> {
        (!text.is_empty()).then(|| self.id(field, kind, scopes, text))
    }

    /// The ids of a list of references, without repetition.
    pub fn ids<I: From<Uuid> + Ord>(&mut self, field: &str, kind: Kind, texts: &[String]) -> BTreeSet<I> {
        texts
            .iter()
            .enumerate()
            .map(|(i, text)| self.id(&format!("{field}[{i}]"), kind, &[Scope::Cluster], text))
            .collect()
    }

    /// A field that is fixed at creation; `instead` says what to do to have it otherwise.
    pub fn fixed<T: PartialEq>(&mut self, field: &str, old: &T, new: &T, instead: &str) {
        if old != new {
            self.wrong(field, format!("cannot change; {instead}"));
        }
    }

    pub fn lookup(&self) -> &'a dyn Lookup {
        self.lookup
    }
}

fn article(kind: Kind) -> &'static str {
    match kind {
        Kind::Agency | Kind::Image => "an",
        Kind::Node
        | Kind::Vm
        | Kind::Volume
        | Kind::Pool
        | Kind::Flavor
        | Kind::Network
        | Kind::PlacementGroup
        | Kind::SchedulingPolicy
        | Kind::Controller
        | Kind::Move
        | Kind::Token
        | Kind::RoleBinding => "a",
    }
}

/// A number with commas between its thousands.
pub fn grouped(number: impl Into<u64>) -> String {
    let digits = number.into().to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
