//! A plan as text, to be kept beside the cluster that it was made for. It names VMs and nodes as that cluster does,
//! so it is written and read with the cluster's view at hand; what was written reads back equal. The format is
//! documented in docs/operations/plan-text-format.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use tamdao_model::{NodeId, VmId};
use uuid::Uuid;

use super::parse::{ParseError, Problem, cells as read_cells, number, unexpected};
use super::word::{Line, Word, words};
use crate::cells::Cells;
use crate::plan::{Move, Plan, Round, Way, Why};
use crate::view::View;

/// The first line of every file: the format and its version.
const HEADER: &str = "tamdao-plan 1";

/// The plan as text.
pub fn write_plan(plan: &Plan, view: &View) -> String {
    let names = Names::of(view);
    let mut text = format!("{HEADER}\n");
    for round in &plan.rounds {
        text.push_str("round\n");
        for a_move in &round.moves {
            writeln!(text, "{}", names.line(a_move)).expect("a string takes everything");
        }
    }
    text
}

/// Reads a plan for the cluster of this view. Whether it is a good plan, or can be carried out, is not asked.
pub fn parse_plan(text: &str, view: &View) -> Result<Plan, ParseError> {
    let names = Names::of(view);
    let mut plan = Plan::default();
    let mut has_header = false;
    for (at, line) in text.lines().enumerate() {
        let words = words(at + 1, line)?;
        let Some(first) = words.first() else { continue };
        if !has_header {
            if words.iter().map(Word::show).collect::<Vec<_>>().join(" ") != HEADER {
                return Err(first.error(Problem::PlanHeader));
            }
            has_header = true;
            continue;
        }
        match (first.show().as_str(), plan.rounds.last_mut()) {
            ("round", _) => match words.get(1) {
                None => plan.rounds.push(Round::default()),
                Some(word) => return Err(unexpected(word, "round")),
            },
            ("move", Some(round)) => round.moves.push(names.read(&words)?),
            _ => return Err(first.error(Problem::PlanKind(first.show()))),
        }
    }
    if has_header { Ok(plan) } else { Err(ParseError { line: 1, column: 1, problem: Problem::PlanHeader }) }
}

/// The names of a cluster, both ways.
struct Names {
    nodes: BTreeMap<Arc<str>, NodeId>,
    node_names: BTreeMap<NodeId, Arc<str>>,
    /// None for a name that several VMs have.
    vms: BTreeMap<Arc<str>, Option<VmId>>,
    vm_names: BTreeMap<VmId, Arc<str>>,
}

impl Names {
    fn of(view: &View) -> Self {
        let nodes = view.nodes().map(|node| (node.name.clone(), node.id)).collect();
        let node_names = view.nodes().map(|node| (node.id, node.name.clone())).collect();
        let mut vm_names = BTreeMap::new();
        for vm in view.nodes().flat_map(|node| view.vms_on(node.id)) {
            vm_names.insert(vm.id, vm.name.clone());
        }
        let mut vms: BTreeMap<Arc<str>, Option<VmId>> = BTreeMap::new();
        for (id, name) in &vm_names {
            vms.entry(name.clone()).and_modify(|known| *known = None).or_insert(Some(*id));
        }
        Self { nodes, node_names, vms, vm_names }
    }

    fn is_named(&self, vm: VmId) -> bool {
        self.vm_names.get(&vm).is_some_and(|name| self.vms.get(name) == Some(&Some(vm)))
    }

    fn vm(&self, vm: VmId) -> String {
        let name = self.vm_names.get(&vm).filter(|_| self.is_named(vm));
        name.map_or_else(|| vm.to_string(), ToString::to_string)
    }

    fn node(&self, node: NodeId) -> String {
        let name = self.node_names.get(&node).filter(|name| self.nodes.get(*name) == Some(&node));
        name.map_or_else(|| node.to_string(), ToString::to_string)
    }

    fn line(&self, a_move: &Move) -> Line {
        let id = a_move.vm.0;
        let name = self.vm_names.get(&a_move.vm).map_or_else(|| id.to_string(), ToString::to_string);
        // The id is written where the name does not say it.
        let said = if self.is_named(a_move.vm) || name == id.to_string() { id } else { Uuid::nil() };
        let mut line = Line::named("move", &name, id, said);
        line.value("from", self.node(a_move.from));
        line.value("to", self.node(a_move.to));
        if !a_move.cells.is_empty() {
            line.value("cells", a_move.cells);
        }
        line.flag("cold", a_move.way == Way::Cold);
        line.some("memory", a_move.memory_mib);
        line.some("disk", a_move.disk_mib);
        match a_move.why {
            Why::Empty => line.value("why", "empty"),
            Why::Even => line.value("why", "even"),
            Why::Join => line.value("why", "join"),
            Why::Wished => line.value("why", "wished"),
            Why::RoomFor(vm) => line.value("room-for", self.vm(vm)),
            Why::With(vm) => line.value("with", self.vm(vm)),
        }
        line.some("gain", a_move.gain);
        line
    }

    fn read(&self, words: &[Word]) -> Result<Move, ParseError> {
        let name = words.get(1).filter(|word| word.value.is_none());
        let name = name.ok_or_else(|| words[0].error(Problem::NameMissing))?;
        let (mut id, mut from, mut to, mut why) = (None, None, None, None);
        let (mut way, mut memory_mib, mut disk_mib, mut gain) = (Way::Live, 0, 0, 0);
        let mut cells = Cells::NONE;
        for word in &words[2..] {
            let Some(value) = &word.value else {
                match word.key.as_str() {
                    "cold" => way = Way::Cold,
                    _ => return Err(unexpected(word, "move")),
                }
                continue;
            };
            match word.key.as_str() {
                "id" => id = Some(VmId(uuid(word, value)?)),
                "from" => from = Some(self.read_node(word, value)?),
                "to" => to = Some(self.read_node(word, value)?),
                "cells" => cells = read_cells(word, value)?,
                "memory" => memory_mib = number(word)?,
                "disk" => disk_mib = number(word)?,
                "gain" => gain = number(word)?,
                "why" => why = Some(reason(word, value)?),
                "room-for" => why = Some(Why::RoomFor(self.read_vm(word, value)?)),
                "with" => why = Some(Why::With(self.read_vm(word, value)?)),
                _ => return Err(unexpected(word, "move")),
            }
        }
        let missing = |what| words[0].error(Problem::Missing(what));
        Ok(Move {
            vm: id.map_or_else(|| self.read_vm(name, &name.key), Ok)?,
            from: from.ok_or_else(|| missing("from"))?,
            to: to.ok_or_else(|| missing("to"))?,
            cells,
            way,
            memory_mib,
            disk_mib,
            why: why.ok_or_else(|| missing("why"))?,
            gain,
        })
    }

    fn read_vm(&self, word: &Word, name: &str) -> Result<VmId, ParseError> {
        let known = self.vms.get(name).copied().flatten();
        let id = known.or_else(|| Uuid::parse_str(name).ok().map(VmId));
        id.ok_or_else(|| word.error(Problem::Unknown("vm", name.to_owned())))
    }

    fn read_node(&self, word: &Word, name: &str) -> Result<NodeId, ParseError> {
        let id = self.nodes.get(name).copied().or_else(|| Uuid::parse_str(name).ok().map(NodeId));
        id.ok_or_else(|| word.error(Problem::Unknown("node", name.to_owned())))
    }
}

fn reason(word: &Word, value: &str) -> Result<Why, ParseError> {
    match value {
        "empty" => Ok(Why::Empty),
        "even" => Ok(Why::Even),
        "join" => Ok(Why::Join),
        "wished" => Ok(Why::Wished),
        _ => Err(word.error(Problem::Value(value.to_owned(), "empty, even, join or wished"))),
    }
}

fn uuid(word: &Word, value: &str) -> Result<Uuid, ParseError> {
    Uuid::parse_str(value).map_err(|_| word.error(Problem::Value(value.to_owned(), "a UUID")))
}
