//! Label selectors: `key=value`, `key!=value`, `key` and `!key`, separated by commas, all of which must hold.
//! `key!=value` also holds where there is no such key, so that it is the exact opposite of `key=value`.

use std::collections::BTreeMap;
use std::fmt;

use crate::convert::{Invalid, Violation, label_key, label_value};
use crate::limits;

/// A parsed selector; the empty one selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    Is(String, String),
    IsNot(String, String),
    Has(String),
    HasNot(String),
}

impl Selector {
    /// Parses a selector; `field` is the request's field for violations.
    pub fn parse(field: &str, text: &str) -> Result<Self, Invalid> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let count = text.split(',').count();
        if count > limits::SELECTOR_TERMS {
            let message = format!("has {count} terms, {} are allowed", limits::SELECTOR_TERMS);
            return Err(Violation::new(field, message).into());
        }
        let mut terms = Vec::new();
        let mut violations = Vec::new();
        // Counted in characters from 1, as editors do.
        let mut position = 1;
        for part in text.split(',') {
            let indent = part.chars().take_while(|c| c.is_whitespace()).count();
            match term(part.trim()) {
                Ok(term) => terms.push(term),
                Err(message) => {
                    let at = position + indent;
                    violations.push(Violation::new(field, format!("at character {at}: {message}")));
                }
            }
            position += part.chars().count() + 1;
        }
        if violations.is_empty() { Ok(Self(terms)) } else { Err(Invalid { violations }) }
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| match term {
            Term::Is(key, value) => labels.get(key) == Some(value),
            Term::IsNot(key, value) => labels.get(key) != Some(value),
            Term::Has(key) => labels.contains_key(key),
            Term::HasNot(key) => !labels.contains_key(key),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match term {
                Term::Is(key, value) => write!(f, "{comma}{key}={value}")?,
                Term::IsNot(key, value) => write!(f, "{comma}{key}!={value}")?,
                Term::Has(key) => write!(f, "{comma}{key}")?,
                Term::HasNot(key) => write!(f, "{comma}!{key}")?,
            }
        }
        Ok(())
    }
}

fn term(text: &str) -> Result<Term, String> {
    const FORMS: &str = "\"key=value\", \"key!=value\", \"key\" or \"!key\"";
    if text.is_empty() {
        return Err(format!("a term is missing; write {FORMS}"));
    }
    if let Some(key) = text.strip_prefix('!') {
        return key_of(key).map(Term::HasNot);
    }
    let Some(at) = text.find('=') else { return key_of(text).map(Term::Has) };
    let (left, value) = (&text[..at], text[at + 1..].trim());
    if value.starts_with('=') {
        return Err("\"==\" is not a sign here; write \"=\"".into());
    }
    label_value(value).map_err(|message| format!("the value {message}"))?;
    match left.strip_suffix('!') {
        Some(key) => Ok(Term::IsNot(key_of(key)?, value.to_owned())),
        None => Ok(Term::Is(key_of(left)?, value.to_owned())),
    }
}

fn key_of(text: &str) -> Result<String, String> {
    let key = text.trim();
    label_key(key).map_err(|message| format!("the key {message}"))?;
    Ok(key.to_owned())
}
