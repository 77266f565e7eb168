//! Types of variables: what `type = list(string)` means, and how a value becomes one of it. As in Terraform a number is
//! taken for a string and the other way round where that loses nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, ObjectKey};

use crate::eval::as_number;
use crate::value::Value;

#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    Any,
    String,
    Number,
    Bool,
    List(Box<Type>),
    Set(Box<Type>),
    Map(Box<Type>),
    /// By name; whether the attribute may be left out.
    Object(BTreeMap<String, (Type, bool)>),
}

type Wrong = (Option<Range<usize>>, String);

impl Type {
    /// Reads a type as it is written.
    ///
    /// # Errors
    /// Where it stands, and what is wrong.
    pub fn read(expression: &Expression) -> Result<Self, Wrong> {
        let unknown = |word: &str| {
            let known = "string, number, bool, any, list(...), set(...), map(...) and object({...})";
            (expression.span(), format!("{word} is no type; the types are {known}"))
        };
        match expression {
            Expression::Variable(word) => match word.as_str() {
                "any" => Ok(Self::Any),
                "string" => Ok(Self::String),
                "number" => Ok(Self::Number),
                "bool" => Ok(Self::Bool),
                other => Err(unknown(other)),
            },
            Expression::FuncCall(call) => {
                let inner = call.args.get(0).ok_or_else(|| unknown(call.name.name.as_str()))?;
                match call.name.name.as_str() {
                    "list" => Ok(Self::List(Box::new(Self::read(inner)?))),
                    "set" => Ok(Self::Set(Box::new(Self::read(inner)?))),
                    "map" => Ok(Self::Map(Box::new(Self::read(inner)?))),
                    "object" => Self::object(inner),
                    other => Err(unknown(other)),
                }
            }
            _ => Err(unknown("this")),
        }
    }

    fn object(expression: &Expression) -> Result<Self, Wrong> {
        let fields = expression.as_object();
        let fields =
            fields.ok_or_else(|| (expression.span(), "object takes {NAME = TYPE, ...}".to_owned()))?;
        let mut read = BTreeMap::new();
        for (key, value) in fields.iter() {
            let name = match key {
                ObjectKey::Ident(name) => name.to_string(),
                ObjectKey::Expression(Expression::Variable(name)) => name.to_string(),
                ObjectKey::Expression(other) => {
                    return Err((other.span(), "a name stands here".to_owned()));
                }
            };
            let kind = match value.expr() {
                Expression::FuncCall(call) if call.name.name.as_str() == "optional" => {
                    let inner =
                        call.args.get(0).ok_or((value.expr().span(), "optional takes a type".to_owned()))?;
                    (Self::read(inner)?, true)
                }
                other => (Self::read(other)?, false),
            };
            read.insert(name, kind);
        }
        Ok(Self::Object(read))
    }

    /// The value as one of this type.
    ///
    /// # Errors
    /// What was expected, as the end of a sentence.
    pub fn take(&self, value: Value) -> Result<Value, String> {
        let wrong = |value: &Value| format!("{} is expected, not a {}", self.word(), value.kind());
        let deep = |_| "the value is nested too deep".to_owned();
        match (self, value) {
            (_, value @ (Value::Null | Value::Unknown)) | (Self::Any, value) => Ok(value),
            (Self::String, value) => value.to_text().map(Value::text).ok_or_else(|| wrong(&value)),
            (Self::Number, value) => as_number(&value).map(Value::Number).ok_or_else(|| wrong(&value)),
            (Self::Bool, Value::Bool(value)) => Ok(Value::Bool(value)),
            (Self::Bool, Value::Text(text)) if matches!(&*text, "true" | "false") => {
                Ok(Value::Bool(&*text == "true"))
            }
            (Self::List(of) | Self::Set(of), Value::List(list)) => {
                let items = list.inner.iter().map(|item| of.take(item.clone()));
                Value::list(items.collect::<Result<_, _>>()?).map_err(deep)
            }
            (Self::Map(of), Value::Map(map)) => {
                let pairs = map.inner.iter().map(|(key, value)| Ok((key.clone(), of.take(value.clone())?)));
                Value::map(pairs.collect::<Result<_, String>>()?).map_err(deep)
            }
            (Self::Object(fields), Value::Map(map)) => {
                let mut taken = BTreeMap::new();
                for (name, (kind, optional)) in fields {
                    let value = match map.inner.get(name) {
                        Some(value) => kind.take(value.clone()).map_err(|why| format!("{name}: {why}"))?,
                        None if *optional => Value::Null,
                        None => return Err(format!("the attribute {name:?} is missing")),
                    };
                    taken.insert(name.clone(), value);
                }
                Value::map(taken).map_err(deep)
            }
            (_, value) => Err(wrong(&value)),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Any => "any value",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "a bool",
            Self::List(_) => "a list",
            Self::Set(_) => "a set",
            Self::Map(_) => "a map",
            Self::Object(_) => "an object",
        }
    }
}
