//! Judges a run from its plan file: that no node ever held more than it has, in CPU or memory, that nothing moved to
//! where it does not fit, and that what the run claims of itself is so. It shares no code with the bench or the
//! scheduler; its input is the file alone. Usage: check-run FILE…
//!
//! Lines: `nodes COUNT CPU MEMORY [CELLS]`, where each node has so many equal NUMA cells; `+ TIME VM CPU MEMORY NODE
//! [CELLS]` (`-` for no place), on these cells of the node, such as 0+1, in equal parts; `- TIME VM`; `> TIME VM NODE
//! [CELLS]`, a move, which holds both ends until the next second; `x NODE`, which is empty and stays so until `o NODE`;
//! `claim WHAT VALUE`. CPU in thousandths, memory in MiB, time in seconds.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone)]
struct Vm {
    cpu: u64,
    memory: u64,
    place: Option<Place>,
}

#[derive(Clone)]
struct Place {
    node: usize,
    cells: Vec<usize>,
}

/// What one node holds.
#[derive(Clone, Default)]
struct Node {
    cpu: u64,
    memory: u64,
    vms: u64,
    cells: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Judge {
    capacity: (u64, u64),
    used: Vec<Node>,
    closed: HashSet<usize>,
    vms: HashMap<u128, Vm>,
    /// What those hold that move at this second, where they come from.
    leaving: Vec<(Place, u64, u64)>,
    in_use: u64,
    time: u64,
    claims: usize,
    peak: u64,
    node_seconds: u64,
    accepted: u64,
    accepted_cpu: u64,
    moves: u64,
}

impl Judge {
    fn line(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| -> Result<u64> {
            let word = words.get(at).with_context(|| format!("word {at} is not there"))?;
            word.parse().with_context(|| format!("{word} is not a number"))
        };
        let vm = |at: usize| -> Result<u128> {
            Ok(words.get(at).with_context(|| format!("word {at} is not there"))?.parse()?)
        };
        match words[0] {
            "nodes" => {
                ensure!(self.used.is_empty(), "the fleet is given twice");
                let cells = if words.len() > 4 { usize::try_from(number(4)?)? } else { 0 };
                let node = Node { cells: vec![(0, 0); cells], ..Node::default() };
                self.used = vec![node; usize::try_from(number(1)?)?];
                self.capacity = (number(2)?, number(3)?);
            }
            "+" => {
                self.pass_to(number(1)?)?;
                let place = if words.get(5) == Some(&"-") { None } else { Some(place(&words[5..])?) };
                let new = Vm { cpu: number(3)?, memory: number(4)?, place };
                ensure!(self.vms.insert(vm(2)?, new.clone()).is_none(), "the VM came before");
                if let Some(place) = &new.place {
                    self.hold(place, new.cpu, new.memory)?;
                    self.accepted += 1;
                    self.accepted_cpu += new.cpu;
                }
                self.peak = self.peak.max(self.in_use);
            }
            "-" => {
                self.pass_to(number(1)?)?;
                let gone = self.vms.remove(&vm(2)?).context("the VM is not there")?;
                if let Some(place) = gone.place {
                    self.give_up(&place, gone.cpu, gone.memory)?;
                }
            }
            ">" => {
                self.pass_to(number(1)?)?;
                let to = place(&words[3..])?;
                let moved = self.vms.get(&vm(2)?).context("the VM is not there")?.clone();
                let from = moved.place.context("the VM has no place to move from")?;
                ensure!(from.node != to.node, "the VM moves to where it is");
                ensure!(from.cells.len() == to.cells.len(), "the VM lies on another number of cells");
                self.hold(&to, moved.cpu, moved.memory)?;
                self.leaving.push((from, moved.cpu, moved.memory));
                self.vms.insert(vm(2)?, Vm { place: Some(to), ..moved });
                self.moves += 1;
            }
            "x" => {
                self.settle()?;
                let node = usize::try_from(number(1)?)?;
                let used = self.used.get(node).context("the node is not of the fleet")?;
                ensure!(used.vms == 0, "the node holds {} VMs", used.vms);
                self.closed.insert(node);
            }
            "o" => ensure!(self.closed.remove(&usize::try_from(number(1)?)?), "the node is not closed"),
            "claim" => {
                let is = match words.get(1).copied() {
                    Some("peak") => self.peak,
                    Some("node-seconds") => self.node_seconds,
                    Some("accepted") => self.accepted,
                    Some("accepted-cpu") => self.accepted_cpu,
                    Some("moves") => self.moves,
                    other => bail!("{other:?} is not something that can be claimed"),
                };
                ensure!(is == number(2)?, "it is {is}");
                self.claims += 1;
            }
            _ => bail!("not a line of a plan"),
        }
        Ok(())
    }

    fn pass_to(&mut self, time: u64) -> Result<()> {
        let passed = time.checked_sub(self.time).context("time runs backwards")?;
        if passed > 0 {
            self.settle()?;
        }
        self.node_seconds += self.in_use * passed;
        self.time = time;
        Ok(())
    }

    /// The moves of this second are done.
    fn settle(&mut self) -> Result<()> {
        let leaving = std::mem::take(&mut self.leaving);
        leaving.iter().try_for_each(|(from, cpu, memory)| self.give_up(from, *cpu, *memory))
    }

    fn hold(&mut self, place: &Place, cpu: u64, memory: u64) -> Result<()> {
        let at = place.node;
        ensure!(!self.closed.contains(&at), "node {at} has to stay empty");
        let node = self.used.get_mut(at).context("the node is not of the fleet")?;
        self.in_use += u64::from(node.vms == 0);
        (node.cpu, node.memory, node.vms) = (node.cpu + cpu, node.memory + memory, node.vms + 1);
        let whole = self.capacity;
        ensure!(node.cpu <= whole.0, "node {at} holds {} CPU of {}", node.cpu, whole.0);
        ensure!(node.memory <= whole.1, "node {at} holds {} memory of {}", node.memory, whole.1);
        let (n, parts) = (node.cells.len() as u64, place.cells.len() as u64);
        for of in &place.cells {
            let cell = node.cells.get_mut(*of).context("the node has no such cell")?;
            *cell = (cell.0 + cpu.div_ceil(parts), cell.1 + memory.div_ceil(parts));
            ensure!(cell.0 * n <= whole.0 && cell.1 * n <= whole.1, "cell {of} of node {at} holds {cell:?}");
        }
        Ok(())
    }

    fn give_up(&mut self, place: &Place, cpu: u64, memory: u64) -> Result<()> {
        let node = self.used.get_mut(place.node).context("the node is not of the fleet")?;
        (node.cpu, node.memory, node.vms) = (node.cpu - cpu, node.memory - memory, node.vms - 1);
        let parts = place.cells.len() as u64;
        for of in &place.cells {
            let cell = node.cells.get_mut(*of).context("the node has no such cell")?;
            *cell = (cell.0 - cpu.div_ceil(parts), cell.1 - memory.div_ceil(parts));
        }
        self.in_use -= u64::from(node.vms == 0);
        Ok(())
    }
}

/// Of the words NODE and CELLS.
fn place(words: &[&str]) -> Result<Place> {
    let node = words.first().context("the node is not there")?.parse()?;
    let cells = words.get(1).map_or(Ok(Vec::new()), |word| word.split('+').map(str::parse).collect())?;
    ensure!(cells.iter().collect::<HashSet<_>>().len() == cells.len(), "a cell is there twice");
    Ok(Place { node, cells })
}

fn judge(path: &str) -> Result<()> {
    let mut judge = Judge::default();
    let file = File::open(path).with_context(|| format!("{path} cannot be read"))?;
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line = line?;
        judge.line(&line).with_context(|| format!("{path}, line {}: {line}", number + 1))?;
    }
    ensure!(judge.claims > 0, "{path} claims nothing, so it was not written to its end");
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a program's own word")]
fn main() -> ExitCode {
    for path in std::env::args().skip(1) {
        if let Err(error) = judge(&path) {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(lines: &[&str]) -> Result<Judge> {
        let mut judge = Judge::default();
        lines.iter().try_for_each(|line| judge.line(line))?;
        Ok(judge)
    }

    #[test]
    fn a_true_run_passes() {
        let lines = [
            "nodes 2 4 8",
            "+ 0 1 3 4 0",
            "+ 5 2 2 4 1",
            "- 10 1",
            "> 10 2 0",
            "+ 20 3 4 4 -",
            "claim peak 2",
            "claim node-seconds 25",
            "claim accepted 2",
            "claim accepted-cpu 5",
            "claim moves 1",
            "x 1",
            "o 1",
            "+ 30 4 1 1 1",
        ];
        judged(&lines).unwrap();
        let cells = ["nodes 2 4 8 2", "+ 0 1 2 4 0 0", "+ 0 2 3 4 1 0+1", "> 1 1 1"];
        assert!(judged(&cells).is_err(), "a VM that lies in a cell has to get one");
        judged(&["nodes 2 4 8 2", "+ 0 1 2 4 0 0", "+ 0 2 2 4 0 1", "> 1 1 1 1", "> 2 2 1 0"]).unwrap();
    }

    #[test]
    fn a_false_one_does_not() {
        let fleet = "nodes 2 4 8";
        let cells = "nodes 2 4 8 2";
        let wrong: [&[&str]; 15] = [
            &[cells, "+ 0 1 2 2 0 0", "+ 0 2 1 1 0 0"],
            &[cells, "+ 0 1 1 5 0 0"],
            &[cells, "+ 0 1 1 1 0 2"],
            &[cells, "+ 0 1 2 2 0 1+1"],
            &[fleet, "o 1"],
            // The place that one leaves in a round is held until the round is done.
            &[fleet, "+ 0 1 3 4 0", "+ 0 2 1 1 0", "+ 0 3 1 1 1", "> 1 1 1", "> 1 3 0"],
            &[fleet, "+ 0 1 1 1 0", "x 0"],
            &[fleet, "x 0", "+ 0 1 1 1 0"],
            &[fleet, "+ 0 1 3 4 0", "+ 0 2 2 1 0"],
            &[fleet, "+ 0 1 1 9 0"],
            &[fleet, "+ 0 1 1 1 2"],
            &[fleet, "- 0 1"],
            &[fleet, "+ 0 1 3 4 0", "+ 0 2 3 1 1", "> 0 1 1"],
            &[fleet, "+ 5 1 3 4 0", "- 4 1"],
            &[fleet, "+ 0 1 3 4 0", "claim peak 2"],
        ];
        for lines in wrong {
            assert!(judged(lines).is_err(), "{lines:?}");
        }
    }
}
