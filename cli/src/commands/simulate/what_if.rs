//! What-ifs: the few changes that a fork can be given before a question, as words. Reading is apart from doing, and every
//! error names the word that is wrong and those that would be right.
//!
//! ```text
//! CHANGE  = SUBJECT ("down" | "cordon" | "uncordon") | "add" COUNT FLAVOR
//! SUBJECT = "node" NAME | KEY VALUE        KEY is any failure-domain key of the cluster
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::NodeId;
use tamdao_scheduler::VmShape;
use tamdao_scheduler::survive::Loss;

use super::fork::Fork;

/// More is a slip of the finger.
const ADD_MAX: u32 = 1_000_000;
/// Known words that an error lists.
const LISTED: usize = 12;

/// One change, its names found in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhatIf {
    /// What is lost: its VMs are restarted elsewhere as far as they are protected.
    Down(Loss),
    /// Nodes that take nothing new, or do again.
    Cordon { nodes: Vec<NodeId>, cordoned: bool },
    /// So many VMs of a flavor ask for places.
    Add { count: u32, flavor: Arc<VmShape> },
}

/// Why a change means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhatIfError {
    #[error("expected SUBJECT NAME CHANGE, such as \"node n7 down\", or \"add COUNT FLAVOR\"")]
    Form,
    #[error("\"{word}\" is no subject; known: {known}")]
    Subject { word: String, known: String },
    #[error("\"{word}\" is no change; known: down, cordon, uncordon")]
    Change { word: String },
    #[error("\"{word}\" is no count; expected a whole number from 1 to {ADD_MAX}")]
    Count { word: String },
    #[error("no {kind} is named \"{name}\"; known: {known}")]
    Unknown { kind: String, name: String, known: String },
}

impl WhatIf {
    /// Reads one change for a cluster.
    pub fn read(text: &str, fork: &Fork) -> Result<Self, WhatIfError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["add", count, flavor] => {
                let number = count.parse().ok().filter(|number| (1..=ADD_MAX).contains(number));
                let count = number.ok_or_else(|| WhatIfError::Count { word: count.to_owned() })?;
                Ok(Self::Add { count, flavor: fork.flavor(flavor)?.shape.clone() })
            }
            [subject, name, change] => {
                let loss = subject_of(subject, name, fork)?;
                let cordoned = match change {
                    "down" => return Ok(Self::Down(loss)),
                    "cordon" => true,
                    "uncordon" => false,
                    word => return Err(WhatIfError::Change { word: word.to_owned() }),
                };
                let is_meant = |node: &NodeId| match &loss {
                    Loss::Node(id) => id == node,
                    Loss::Domain { key, value } => fork.has_value(*node, key, value),
                };
                let nodes = fork.view.nodes().map(|node| node.id).filter(is_meant).collect();
                Ok(Self::Cordon { nodes, cordoned })
            }
            _ => Err(WhatIfError::Form),
        }
    }
}

pub fn subject_of(subject: &str, name: &str, fork: &Fork) -> Result<Loss, WhatIfError> {
    if subject == "node" {
        let node = fork.view.nodes().find(|node| &*node.name == name || node.id.to_string() == name);
        let known = fork.view.nodes().map(|node| &*node.name);
        return node.map(|node| Loss::Node(node.id)).ok_or_else(|| unknown(subject, name, known));
    }
    let values = values_of(subject, fork)?;
    if !values.contains(name) {
        return Err(unknown(subject, name, values.iter().copied()));
    }
    Ok(Loss::Domain { key: subject.to_owned(), value: name.to_owned() })
}

/// The values of a failure-domain key; an error that lists the keys when no node has any.
pub fn values_of<'a>(key: &str, fork: &'a Fork) -> Result<BTreeSet<&'a str>, WhatIfError> {
    let values: BTreeSet<&str> =
        fork.view.nodes().filter_map(|node| node.domains.get(key)).flatten().map(String::as_str).collect();
    if values.is_empty() {
        let keys: BTreeSet<&str> =
            fork.view.nodes().flat_map(|node| node.domains.keys()).map(String::as_str).collect();
        let known = list(std::iter::once("node").chain(keys));
        return Err(WhatIfError::Subject { word: key.to_owned(), known });
    }
    Ok(values)
}

/// An error that lists what there is.
pub fn unknown<'a>(kind: &str, name: &str, known: impl Iterator<Item = &'a str>) -> WhatIfError {
    WhatIfError::Unknown { kind: kind.to_owned(), name: name.to_owned(), known: list(known) }
}

/// The failure-domain keys of the cluster.
pub fn keys(fork: &Fork) -> BTreeSet<String> {
    fork.view.nodes().flat_map(|node| node.domains.keys()).cloned().collect()
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.take(LISTED + 1).collect();
    match words.len() {
        0 => "none".to_owned(),
        n if n > LISTED => format!("{}, ...", words[..LISTED].join(", ")),
        _ => words.join(", "),
    }
}
