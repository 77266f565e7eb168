//! Values of expressions. Lists and maps are shared, so that a copy costs nothing; [`Value::Unknown`] stands for what only
//! the cloud can say, once it has made something. No value is nested deeper than the limit, so that walking one by
//! recursion is safe.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::limits;

/// The largest whole number that a double holds exactly, 2^53.
const EXACT: f64 = 9_007_199_254_740_992.0;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(Arc<str>),
    List(Arc<Nested<Vec<Value>>>),
    Map(Arc<Nested<BTreeMap<String, Value>>>),
    /// Known after apply.
    Unknown,
}

/// What is in a list or map, and how deep it goes.
#[derive(Debug, PartialEq)]
pub struct Nested<T> {
    depth: u16,
    pub inner: T,
}

/// A value would be nested deeper than [`limits::VALUE_DEPTH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooDeep;

impl Value {
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::Text(text.into())
    }

    pub fn list(items: Vec<Self>) -> Result<Self, TooDeep> {
        let depth = deeper(items.iter())?;
        Ok(Self::List(Arc::new(Nested { depth, inner: items })))
    }

    pub fn map(items: BTreeMap<String, Self>) -> Result<Self, TooDeep> {
        let depth = deeper(items.values())?;
        Ok(Self::Map(Arc::new(Nested { depth, inner: items })))
    }

    fn depth(&self) -> u16 {
        match self {
            Self::List(list) => list.depth,
            Self::Map(map) => map.depth,
            _ => 0,
        }
    }

    /// Whether anything in it is known only after apply.
    pub fn has_unknown(&self) -> bool {
        match self {
            Self::Unknown => true,
            Self::List(list) => list.inner.iter().any(Self::has_unknown),
            Self::Map(map) => map.inner.values().any(Self::has_unknown),
            _ => false,
        }
    }

    /// What it costs to walk through, in steps, counted no further than `most`.
    pub fn cost(&self, most: u64) -> u64 {
        let add = |sum: u64, more: &Self| if sum >= most { sum } else { sum + more.cost(most - sum) };
        match self {
            Self::Text(text) => text.len() as u64 / limits::STEP_BYTES + 1,
            Self::List(list) => list.inner.iter().fold(1, add),
            Self::Map(map) => map
                .inner
                .iter()
                .fold(1, |sum, (key, value)| add(sum + key.len() as u64 / limits::STEP_BYTES, value)),
            _ => 1,
        }
    }

    /// The word for its type, as Terraform says it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Number(_) => "number",
            Self::Text(_) => "string",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Unknown => "known after apply",
        }
    }

    /// As it stands in a template; lists and maps have no text.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::Null => Some(String::new()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Number(number) => Some(number_text(*number)),
            Self::Text(text) => Some(text.to_string()),
            Self::List(_) | Self::Map(_) | Self::Unknown => None,
        }
    }

    /// As JSON; what is unknown is null.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null | Self::Unknown => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Number(number) if is_whole(*number) => Json::from(*number as i64),
            Self::Number(number) => Json::from(*number),
            Self::Text(text) => Json::from(text.as_ref()),
            Self::List(list) => Json::Array(list.inner.iter().map(Self::to_json).collect()),
            Self::Map(map) => {
                Json::Object(map.inner.iter().map(|(key, value)| (key.clone(), value.to_json())).collect())
            }
        }
    }

    pub fn from_json(json: &Json) -> Result<Self, TooDeep> {
        Ok(match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => Self::Number(number.as_f64().unwrap_or_default()),
            Json::String(text) => Self::text(text.as_str()),
            Json::Array(list) => Self::list(list.iter().map(Self::from_json).collect::<Result<_, _>>()?)?,
            Json::Object(map) => {
                let pairs = map.iter().map(|(key, value)| Ok((key.clone(), Self::from_json(value)?)));
                Self::map(pairs.collect::<Result<_, TooDeep>>()?)?
            }
        })
    }
}

fn deeper<'a>(mut of: impl Iterator<Item = &'a Value>) -> Result<u16, TooDeep> {
    let depth = of.try_fold(0, |depth, value| {
        let below = value.depth();
        (below < limits::VALUE_DEPTH).then_some(depth.max(below))
    });
    Ok(depth.ok_or(TooDeep)? + 1)
}

/// Whether a number is whole and exact.
pub fn is_whole(number: f64) -> bool {
    number.fract() == 0.0 && number.abs() <= EXACT
}

fn number_text(number: f64) -> String {
    if is_whole(number) { format!("{}", number as i64) } else { number.to_string() }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("(known after apply)"),
            value => write!(f, "{}", value.to_json()),
        }
    }
}
