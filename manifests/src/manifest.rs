//! A manifest as a whole: the files of a directory and of the modules that it names, read and parsed once, and what is
//! given to it from outside. Files come through the caller's hands: this crate reads nothing by itself.

use std::collections::BTreeMap;

use hcl_edit::structure::Structure;
use serde_json::Value as Json;

use crate::config::{self, Module};
use crate::eval::Evaluator;
use crate::expand::{NoNames, Place};
use crate::limits;
use crate::source::{Fault, File};
use crate::value::Value;

/// What the cloud has, as the contract's JSON, by place.
pub type Live = BTreeMap<Place, Json>;

/// A directory with its modules.
#[derive(Debug)]
pub struct Manifest {
    /// All files, for faults to point into.
    pub files: Vec<File>,
    modules: BTreeMap<String, Module>,
}

/// Faults, and the files that they point into.
#[derive(Debug)]
pub struct Faulty {
    pub files: Vec<File>,
    pub faults: Vec<Fault>,
}

/// A value that was given for a variable.
#[derive(Debug, Clone)]
pub struct Given {
    /// A value, or text whose meaning the variable's type decides.
    pub value: Result<Value, String>,
    /// Where from, for people: `-var`, or a file's name.
    pub origin: String,
    /// Whether it is a fault when there is no such variable.
    pub must_exist: bool,
}

/// What a manifest is evaluated with.
pub struct Inputs<'a> {
    pub given: BTreeMap<String, Given>,
    /// Who owns what names no agency; empty for nobody.
    pub agency: &'a str,
    pub live: &'a Live,
    /// Reads a file beside the manifest, for `file(...)`.
    pub read: &'a dyn Fn(&str) -> Result<String, String>,
}

impl Manifest {
    /// Reads the files of the root, "", and of all modules; `load` gives the files of one directory below it.
    ///
    /// # Errors
    /// Every fault of form, with the files read so far.
    pub fn read(load: &mut dyn FnMut(&str) -> Result<Vec<File>, String>) -> Result<Self, Faulty> {
        let (mut files, mut modules, mut faults) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut wanted = vec![(String::new(), None)];
        while let Some((dir, at)) = wanted.pop() {
            if modules.contains_key(&dir) {
                continue;
            }
            let loaded = match load(&dir) {
                Ok(loaded) => loaded,
                Err(why) => {
                    faults.push(Fault { message: why, at, hints: Vec::new() });
                    continue;
                }
            };
            let first = files.len();
            if first + loaded.len() > limits::FILES {
                faults.push(Fault::nowhere(format!("a manifest has {} files at most", limits::FILES)));
                break;
            }
            let read = config::read(&loaded, first);
            files.extend(loaded);
            match read {
                Ok(module) => {
                    wanted.extend(
                        module.calls.values().map(|call| (joined(&dir, &call.source), Some(call.at))),
                    );
                    modules.insert(dir, module);
                }
                Err(more) => {
                    faults.extend(more);
                    modules.insert(dir, Module::default());
                }
            }
        }
        if faults.is_empty() { Ok(Self { files, modules }) } else { Err(Faulty { files, faults }) }
    }

    pub(crate) fn root(&self) -> &Module {
        self.module("").expect("the root is read first, and a manifest without it is not made")
    }

    pub(crate) fn module(&self, dir: &str) -> Option<&Module> {
        self.modules.get(dir)
    }

    /// The name of the stack.
    ///
    /// # Errors
    /// When there is none, or it cannot be a label's value.
    pub fn stack(&self) -> Result<&str, Fault> {
        let Some((name, at)) = &self.root().stack else {
            return Err(Fault::nowhere("the manifest does not say which stack it is")
                .hint("write tamdao { stack = \"NAME\" } into one of its files"));
        };
        tamdao_model::Name::new(name)
            .map_err(|error| Fault::new(*at, format!("the name of the stack {error}")))?;
        Ok(name)
    }
}

/// A directory as seen from another: no `.`, and `..` only at its beginning.
pub(crate) fn joined(dir: &str, source: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(source.split('/')) {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Reads a file of values for variables, `NAME = VALUE` each.
///
/// # Errors
/// What is wrong with it.
pub fn values(file: &File) -> Result<BTreeMap<String, Value>, Vec<Fault>> {
    let form = |message: &str| vec![Fault::nowhere(format!("{}: {message}", file.name))];
    if file.text.len() > limits::FILE_BYTES {
        return Err(form("is too large"));
    }
    let body = hcl_edit::parser::parse_body(&file.text).map_err(|error| form(&error.to_string()))?;
    let budget = std::cell::Cell::new(limits::EFFORT);
    let mut values = BTreeMap::new();
    for structure in body.iter() {
        let Structure::Attribute(attribute) = structure else {
            return Err(form("holds values only, no blocks"));
        };
        let value =
            Evaluator::new(&NoNames, 0, &budget).eval(&attribute.value).map_err(|fault| vec![fault])?;
        values.insert(attribute.key.to_string(), value);
    }
    Ok(values)
}
