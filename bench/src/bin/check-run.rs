//! Judges a run from its plan file: that no node ever held more than it has, in CPU or memory, that nothing moved to
//! where it does not fit, and that what the run claims of itself is so. It shares no code with the bench or the
//! scheduler; its input is the file alone. Usage: check-run FILE…
//!
//! Lines: `nodes COUNT CPU MEMORY`; `+ TIME VM CPU MEMORY NODE` (`-` for no place); `- TIME VM`; `> TIME VM NODE`, a
//! move during which both ends are held; `x NODE`, which is empty and stays so; `claim WHAT VALUE`. CPU in thousandths, memory in MiB, time in seconds.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone, Copy)]
struct Vm {
    cpu: u64,
    memory: u64,
    node: Option<usize>,
}

#[derive(Default)]
struct Judge {
    capacity: (u64, u64),
    used: Vec<(u64, u64, u64)>,
    closed: HashSet<usize>,
    vms: HashMap<u128, Vm>,
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
                self.used = vec![(0, 0, 0); usize::try_from(number(1)?)?];
                self.capacity = (number(2)?, number(3)?);
            }
            "+" => {
                self.pass_to(number(1)?)?;
                let node = if words.get(5) == Some(&"-") { None } else { Some(usize::try_from(number(5)?)?) };
                let new = Vm { cpu: number(3)?, memory: number(4)?, node };
                ensure!(self.vms.insert(vm(2)?, new).is_none(), "the VM came before");
                if let Some(node) = node {
                    self.hold(node, new)?;
                    self.accepted += 1;
                    self.accepted_cpu += new.cpu;
                }
                self.peak = self.peak.max(self.in_use);
            }
            "-" => {
                self.pass_to(number(1)?)?;
                let gone = self.vms.remove(&vm(2)?).context("the VM is not there")?;
                if let Some(node) = gone.node {
                    self.give_up(node, gone)?;
                }
            }
            ">" => {
                self.pass_to(number(1)?)?;
                let to = usize::try_from(number(3)?)?;
                let moved = *self.vms.get(&vm(2)?).context("the VM is not there")?;
                let from = moved.node.context("the VM has no place to move from")?;
                ensure!(from != to, "the VM moves to where it is");
                self.hold(to, moved)?;
                self.give_up(from, moved)?;
                self.vms.insert(vm(2)?, Vm { node: Some(to), ..moved });
                self.moves += 1;
            }
            "x" => {
                let node = usize::try_from(number(1)?)?;
                let used = self.used.get(node).context("the node is not of the fleet")?;
                ensure!(used.2 == 0, "the node holds {} VMs", used.2);
                self.closed.insert(node);
            }
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
        self.node_seconds += self.in_use * passed;
        self.time = time;
        Ok(())
    }

    fn hold(&mut self, node: usize, vm: Vm) -> Result<()> {
        ensure!(!self.closed.contains(&node), "node {node} has to stay empty");
        let used = self.used.get_mut(node).context("the node is not of the fleet")?;
        self.in_use += u64::from(used.2 == 0);
        *used = (used.0 + vm.cpu, used.1 + vm.memory, used.2 + 1);
        let (cpu, memory, _) = *used;
        ensure!(cpu <= self.capacity.0, "node {node} holds {cpu} CPU of {}", self.capacity.0);
        ensure!(memory <= self.capacity.1, "node {node} holds {memory} memory of {}", self.capacity.1);
        Ok(())
    }

    fn give_up(&mut self, node: usize, vm: Vm) -> Result<()> {
        let used = self.used.get_mut(node).context("the node is not of the fleet")?;
        *used = (used.0 - vm.cpu, used.1 - vm.memory, used.2 - 1);
        self.in_use -= u64::from(used.2 == 0);
        Ok(())
    }
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
        ];
        judged(&lines).unwrap();
    }

    #[test]
    fn a_false_one_does_not() {
        let fleet = "nodes 2 4 8";
        let wrong: [&[&str]; 9] = [
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
