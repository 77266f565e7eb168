//! Reading the text format. Every error says where it is, by line and column, and what was expected. Lines may come
//! in any order: names are resolved once all lines are read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tamdao_model::quota::{Measure, Quota};
use tamdao_model::{NodeId, PoolId, VmId};
use uuid::Uuid;

use super::word::{Word, words};
use super::{Cluster, HEADER, Home, ordinal};
use crate::capacity::{Agency, Flavor};
use crate::cells::Cells;
use crate::score::TABLE;
use crate::shape::{
    AMOUNT_MAX, By, Cell, Day, DiskNeed, Group, GroupId, NodePool, NodeShape, PoolShape, Rule, RuleKind,
    SharedRoom, VmShape,
};

/// Begins the words that say what a flavor counts as.
const COUNTS: &str = "counts.";

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("the first line must be \"{HEADER}\"")]
    Header,
    #[error("the first line must be \"tamdao-plan 1\"")]
    PlanHeader,
    #[error("\"{0}\" begins no line of a plan; expected round, or move after a round")]
    PlanKind(String),
    #[error("\"{0}\" begins no line; expected weights, pool, group, agency, flavor, node, vm or want")]
    Kind(String),
    #[error("a name must follow")]
    NameMissing,
    #[error("another {0} has this name or id")]
    Twice(&'static str),
    #[error("\"{word}\" has no meaning for a {kind}")]
    Word { word: String, kind: &'static str },
    #[error("{0}= is missing")]
    Missing(&'static str),
    #[error("\"{0}\" is not {1}")]
    Value(String, &'static str),
    #[error("no {0} is named \"{1}\"")]
    Unknown(&'static str, String),
    #[error("the VM is on this node by another line")]
    AlreadyThere,
    #[error("the quote is not closed")]
    QuoteOpen,
}

pub(super) fn parse(text: &str) -> Result<Cluster, ParseError> {
    let mut lines: BTreeMap<&'static str, Vec<Vec<Word>>> = BTreeMap::new();
    let mut has_header = false;
    for (at, line) in text.lines().enumerate() {
        let words = words(at + 1, line)?;
        let Some(first) = words.first() else { continue };
        if !has_header {
            if line.split_whitespace().take(2).collect::<Vec<_>>().join(" ") != HEADER {
                return Err(first.error(Problem::Header));
            }
            has_header = true;
            continue;
        }
        let kinds = ["weights", "pool", "group", "agency", "flavor", "node", "vm", "want"];
        let Some(kind) = kinds.into_iter().find(|kind| first.show() == *kind) else {
            return Err(first.error(Problem::Kind(first.show())));
        };
        lines.entry(kind).or_default().push(words);
    }
    if !has_header {
        return Err(ParseError { line: 1, column: 1, problem: Problem::Header });
    }
    let mut reader = Reader::default();
    for kind in ["pool", "group", "agency", "flavor", "node"] {
        for (n, words) in lines.get(kind).into_iter().flatten().enumerate() {
            reader.name(kind, n, words)?;
        }
    }
    for (kind, read) in [
        ("weights", Reader::weights as fn(&mut Reader, usize, &[Word]) -> Result<(), ParseError>),
        ("pool", Reader::pool),
        ("group", Reader::group),
        ("agency", Reader::agency),
        ("node", Reader::node),
        ("vm", Reader::vm),
        ("want", Reader::want),
        ("flavor", Reader::flavor),
    ] {
        for (n, words) in lines.get(kind).into_iter().flatten().enumerate() {
            read(&mut reader, n, words)?;
        }
    }
    Ok(reader.cluster)
}

#[derive(Default)]
struct Reader {
    cluster: Cluster,
    /// Kind and name to id, of what other lines name.
    names: BTreeMap<(&'static str, String), Uuid>,
    ids: BTreeSet<(&'static str, Uuid)>,
    places: BTreeSet<(VmId, NodeId)>,
}

impl Reader {
    fn name(&mut self, kind: &'static str, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (name, id) = name_and_id(n + 1, words)?;
        let twice = self.names.insert((kind, name), id).is_some() || !self.ids.insert((kind, id));
        if twice { Err(words[0].error(Problem::Twice(kind))) } else { Ok(()) }
    }

    /// The id of a name; an id may stand for itself.
    fn id(&self, kind: &'static str, word: &Word, name: &str) -> Result<Uuid, ParseError> {
        let known = self.names.get(&(kind, name.to_owned())).copied();
        let id = known.or_else(|| Uuid::parse_str(name).ok());
        id.ok_or_else(|| word.error(Problem::Unknown(kind, name.to_owned())))
    }

    fn weights(&mut self, _: usize, words: &[Word]) -> Result<(), ParseError> {
        for word in &words[1..] {
            let at = TABLE.iter().position(|part| part.name == word.key);
            let at = at.ok_or_else(|| unexpected(word, "weights line"))?;
            self.cluster.weights.0[at] = number(word)?;
        }
        Ok(())
    }

    fn pool(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (name, id) = name_and_id(n + 1, words)?;
        let (mut local, mut shared) = (false, false);
        let (mut capacity, mut held_mib) = (None, 0);
        for word in rest(words) {
            match (word.key.as_str(), &word.value) {
                ("local", None) => local = true,
                ("shared", None) => shared = true,
                ("capacity", Some(_)) => capacity = Some(number(word)?),
                ("held", Some(_)) => held_mib = number(word)?,
                _ => return Err(unexpected(word, "pool")),
            }
        }
        let shared = match (local, shared, capacity) {
            (true, false, None) => None,
            (false, true, Some(capacity_mib)) => Some(SharedRoom { capacity_mib, held_mib }),
            (false, true, None) => return Err(words[0].error(Problem::Missing("capacity"))),
            _ => {
                let found = words[1].show();
                return Err(words[1].error(Problem::Value(found, "either local, or shared with a capacity")));
            }
        };
        self.cluster.pools.push(PoolShape { id: PoolId(id), name: name.into(), shared });
        Ok(())
    }

    fn group(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (name, id) = name_and_id(n + 1, words)?;
        let rules = rest(words).map(rule).collect::<Result<_, _>>()?;
        self.cluster.groups.push(Group { id: GroupId(id), name: name.into(), rules });
        Ok(())
    }

    fn node(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (name, id) = name_and_id(n + 1, words)?;
        let mut node = NodeShape::bare(NodeId(id), &name);
        for word in rest(words) {
            let Some(value) = &word.value else {
                match word.key.as_str() {
                    "not-ready" => node.ready = false,
                    "cordoned" => node.cordoned = true,
                    "emulation" => node.emulation = true,
                    "tpm" => node.tpm = true,
                    _ => return Err(unexpected(word, "node")),
                }
                continue;
            };
            let owned = || value.clone();
            match word.key.as_str() {
                "vcpus" => node.vcpus = number(word)?,
                "memory" => node.memory_mib = number(word)?,
                "platform" => drop(node.platforms.insert(value.as_str().into())),
                "bridge" => drop(node.bridges.insert(owned())),
                "firmware" => drop(node.firmware.insert(owned())),
                "support-ends" => node.support_ends = Some(Day(number(word)?)),
                "cell" => {
                    let (vcpus, rest) = value.split_once('/').ok_or_else(|| wrong(word, "VCPUS/MIB"))?;
                    let (memory, huge) = rest.split_once('/').unwrap_or((rest, "0"));
                    let (memory_mib, huge_mib) = (amount(word, memory)?, amount(word, huge)?);
                    node.cells.push(Cell { vcpus: amount(word, vcpus)?, memory_mib, huge_mib });
                }
                key => match key.split_once('.') {
                    Some(("label", key)) => drop(node.labels.insert(key.to_owned(), owned())),
                    Some(("domain", key)) => {
                        node.domains.entry(key.to_owned()).or_default().insert(owned());
                    }
                    Some((kind @ ("pool" | "pool-not-ready"), pool)) => {
                        let (capacity, held) = value.split_once('/').unwrap_or((value, "0"));
                        let (capacity_mib, held_mib) = (amount(word, capacity)?, amount(word, held)?);
                        let pool = PoolId(self.id("pool", word, pool)?);
                        node.pools.insert(pool, NodePool { ready: kind == "pool", capacity_mib, held_mib });
                    }
                    _ => return Err(unexpected(word, "node")),
                },
            }
        }
        self.cluster.nodes.push(node);
        Ok(())
    }

    fn vm(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (vm, on) = self.vm_shape(n + 1, words)?;
        for (word, (node, _)) in &on {
            if !self.places.insert((vm.id, *node)) {
                return Err(word.error(Problem::AlreadyThere));
            }
        }
        if on.is_empty() {
            return Err(words[0].error(Problem::Missing("on")));
        }
        self.cluster.vms.push((vm, on.into_iter().map(|(_, place)| place).collect()));
        Ok(())
    }

    fn want(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (vm, on) = self.vm_shape(self.cluster.vms.len() + n + 1, words)?;
        if let Some((word, _)) = on.first() {
            return Err(unexpected(word, "want"));
        }
        self.cluster.wants.push(vm);
        Ok(())
    }

    fn agency(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (name, id) = name_and_id(n + 1, words)?;
        let mut agency = Agency { id: id.into(), name: name.into(), closed: false, free: Quota::new() };
        for word in rest(words) {
            match (word.key.as_str(), &word.value) {
                ("closed", None) => agency.closed = true,
                _ => {
                    let measure =
                        measure(word, "free.")?.ok_or_else(|| unexpected(word, "line of an agency"))?;
                    agency.free.insert(measure, number(word)?);
                }
            }
        }
        self.cluster.agencies.push(agency);
        Ok(())
    }

    fn flavor(&mut self, n: usize, words: &[Word]) -> Result<(), ParseError> {
        let (counting, words): (Vec<Word>, Vec<Word>) =
            words.iter().cloned().partition(|word| word.value.is_some() && word.key.starts_with(COUNTS));
        let (shape, on) = self.vm_shape(n + 1, &words)?;
        if let Some((word, _)) = on.first() {
            return Err(unexpected(word, "flavor"));
        }
        let mut flavor = Flavor::new(shape);
        if !counting.is_empty() {
            let count = |word: &Word| {
                let measure = measure(word, COUNTS)?.ok_or_else(|| unexpected(word, "flavor"))?;
                Ok((measure, number(word)?))
            };
            flavor.counts = counting.iter().map(count).collect::<Result<_, ParseError>>()?;
        }
        self.cluster.flavors.push(flavor);
        Ok(())
    }

    fn vm_shape<'a>(&self, n: usize, words: &'a [Word]) -> Result<(Arc<VmShape>, Places<'a>), ParseError> {
        let (name, id) = name_and_id(n, words)?;
        let mut vm = VmShape::bare(VmId(id), &name, 0, 0);
        let mut on = Vec::new();
        let node = |word: &Word, name: &str| self.id("node", word, name).map(NodeId);
        for word in rest(words) {
            let Some(value) = &word.value else {
                match word.key.as_str() {
                    "tpm" => vm.tpm = true,
                    "protected" => vm.protected = true,
                    _ => return Err(unexpected(word, "vm")),
                }
                continue;
            };
            let owned = || value.clone();
            match word.key.as_str() {
                "on" => on.push((word, (self.home(word, value)?, Cells::NONE))),
                "cells" => vm.cells = number(word)?,
                "huge" => vm.huge_mib = number(word)?,
                "vcpus" => vm.reservation.vcpus = number(word)?,
                "memory" => vm.reservation.memory_mib = number(word)?,
                "emulation-extra" => vm.emulation_extra_mib = number(word)?,
                "pin" => vm.pin = Some(node(word, value)?),
                "bridge" => drop(vm.bridges.insert(owned())),
                "firmware" => drop(vm.firmware.insert(owned())),
                "platform" => vm.platform = Some(value.as_str().into()),
                "agency" => vm.agency = Some(self.id("agency", word, value)?.into()),
                "isolation" => vm.isolation = Some(value.as_str().into()),
                "priority" => vm.priority = number(word)?,
                "group" => drop(vm.groups.insert(GroupId(self.id("group", word, value)?))),
                key => match key.split_once('.') {
                    Some(("label", key)) => drop(vm.labels.insert(key.to_owned(), owned())),
                    Some(("not-label", key)) => drop(vm.forbidden_labels.insert(key.to_owned(), owned())),
                    Some(("on", node)) => on.push((word, (self.home(word, node)?, cells(word, value)?))),
                    Some(("disk", pool)) => {
                        let pool = PoolId(self.id("pool", word, pool)?);
                        let (size, on) = match value.split_once('@') {
                            Some((size, on)) => (size, Some(node(word, on)?)),
                            None => (value.as_str(), None),
                        };
                        vm.disks.push(DiskNeed { pool, size_mib: amount(word, size)?, on });
                    }
                    _ => return Err(unexpected(word, "vm")),
                },
            }
        }
        if vm.huge_mib > 0 && vm.cells == 0 {
            return Err(words[0].error(Problem::Missing("cells")));
        }
        Ok((Arc::new(vm), on))
    }

    /// A node of this file.
    fn home(&self, word: &Word, name: &str) -> Result<NodeId, ParseError> {
        let known = self.names.get(&("node", name.to_owned()));
        known.map(|id| NodeId(*id)).ok_or_else(|| word.error(Problem::Unknown("node", name.to_owned())))
    }
}

/// The places of a VM, each with the word that says so.
type Places<'a> = Vec<(&'a Word, Home)>;

/// The words after kind and name, without the id.
fn rest(words: &[Word]) -> impl Iterator<Item = &Word> {
    words.iter().skip(2).filter(|word| word.key != "id" || word.value.is_none())
}

fn name_and_id(n: usize, words: &[Word]) -> Result<(String, Uuid), ParseError> {
    let name = words.get(1).filter(|word| word.value.is_none());
    let name = name.ok_or_else(|| words[0].error(Problem::NameMissing))?.key.clone();
    match words.iter().skip(2).find(|word| word.key == "id") {
        None => Ok((name, ordinal(n))),
        Some(word) => {
            let id = word.value.as_ref().and_then(|id| Uuid::parse_str(id).ok());
            Ok((name, id.ok_or_else(|| wrong(word, "a UUID"))?))
        }
    }
}

fn rule(word: &Word) -> Result<Rule, ParseError> {
    let (key, required) = match word.key.strip_prefix("prefer-") {
        Some(key) => (key, false),
        None => (word.key.as_str(), true),
    };
    let value = word.value.as_deref().ok_or_else(|| unexpected(word, "group"))?;
    let (by, kind) = match key {
        "apart" => {
            let (by, at_most) = value.rsplit_once(':').unwrap_or((value, "1"));
            (by, RuleKind::Apart { at_most: amount(word, at_most)? })
        }
        "together" => (value, RuleKind::Together),
        _ => return Err(unexpected(word, "group")),
    };
    let by = match by.split_once('.') {
        None if by == "node" => By::Node,
        Some(("domain", key)) => By::Domain(key.to_owned()),
        _ => return Err(wrong(word, "node or domain.KEY, with :NUMBER after it for apart")),
    };
    Ok(Rule { kind, by, required })
}

/// What a word measures whose key begins so; none if it does not begin so, or has no value.
fn measure(word: &Word, prefix: &str) -> Result<Option<Measure>, ParseError> {
    let Some(measure) = word.key.strip_prefix(prefix).filter(|_| word.value.is_some()) else {
        return Ok(None);
    };
    let measure = measure.parse();
    measure.map(Some).map_err(|_| word.error(Problem::Unknown("measure", word.key.clone())))
}

pub(super) fn cells(word: &Word, text: &str) -> Result<Cells, ParseError> {
    let expected = || wrong(word, "positions of NUMA cells, such as 0+1");
    let cells = text.split('+').map(|at| at.parse::<usize>().map_err(|_| expected()));
    let cells: Vec<usize> = cells.collect::<Result<_, _>>()?;
    Cells::of(cells).ok_or_else(expected)
}

pub(super) fn number<T: TryFrom<u64>>(word: &Word) -> Result<T, ParseError> {
    amount(word, word.value.as_deref().unwrap_or_default())
}

pub(super) fn amount<T: TryFrom<u64>>(word: &Word, text: &str) -> Result<T, ParseError> {
    let amount = text.parse::<u64>().ok().filter(|amount| *amount <= AMOUNT_MAX);
    let amount = amount.and_then(|amount| T::try_from(amount).ok());
    amount.ok_or_else(|| word.error(Problem::Value(text.to_owned(), "a whole number that fits")))
}

pub(super) fn wrong(word: &Word, expected: &'static str) -> ParseError {
    word.error(Problem::Value(word.value.clone().unwrap_or_default(), expected))
}

pub(super) fn unexpected(word: &Word, kind: &'static str) -> ParseError {
    word.error(Problem::Word { word: word.show(), kind })
}
