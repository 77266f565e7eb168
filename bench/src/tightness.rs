//! How few nodes a stream needs, and how much of it a fleet that is too small takes in. Each run writes its plan
//! file, and what it claims of itself stands at the end. Deliberately absent: judging, which is the checker's.

use std::io::Write;

use anyhow::Result;

use crate::policy::{Packer, Policy};
use crate::stream::{Event, NODE, Size, Stream};

/// What a run of one stream on one fleet came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Most nodes in use at once.
    pub peak: usize,
    /// Nodes in use, summed over time.
    pub node_seconds: u64,
    pub accepted: usize,
    pub vms: usize,
    /// Of what was asked for, thousandths of a CPU.
    pub accepted_milli_cpus: u64,
    pub milli_cpus: u64,
    /// The same times how long each VM stays, in thousandths of a CPU and seconds: what the accepted ones make use of.
    pub accepted_milli_cpu_seconds: u64,
    pub milli_cpu_seconds: u64,
}

/// The least that any placement needs, by volume: at each moment, as many nodes as hold all CPU, or all memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    pub peak: usize,
    pub node_seconds: u64,
}

/// A place to count nodes over time.
#[derive(Default)]
struct Meter {
    at_s: u64,
    nodes: usize,
    peak: usize,
    node_seconds: u64,
}

impl Meter {
    fn at(&mut self, at_s: u64) {
        self.node_seconds += self.nodes as u64 * (at_s - self.at_s);
        self.at_s = at_s;
    }

    fn set(&mut self, nodes: usize) {
        self.nodes = nodes;
        self.peak = self.peak.max(nodes);
    }
}

/// Runs the stream on a fleet of `nodes` and writes the plan. Lines of a plan: `nodes COUNT CPU MEMORY`;
/// `+ TIME VM CPU MEMORY NODE` with `-` for none; `- TIME VM`; at the end `claim WHAT VALUE`. CPU in thousandths,
/// memory in MiB, time in seconds.
pub fn run(stream: &Stream, policy: Policy, nodes: usize, plan: &mut impl Write) -> Result<Outcome> {
    let mut fleet: Box<dyn Packer> = policy.fleet(nodes);
    writeln!(plan, "nodes {nodes} {} {}", NODE.milli_cpus, NODE.memory_mib)?;
    let mut held: Vec<Option<(usize, Size)>> = vec![None; stream.vms()];
    let end_s = stream.events.last().map_or(0, Event::at_s);
    let mut sizes = vec![0u32; stream.vms()];
    let mut vms_on = vec![0u32; nodes];
    let mut in_use = 0;
    let mut meter = Meter::default();
    let mut outcome = Outcome { vms: stream.vms(), ..Outcome::default() };
    for event in &stream.events {
        meter.at(event.at_s());
        match *event {
            Event::Come { at_s, vm, size } => {
                let (cpu, memory) = (size.milli_cpus, size.memory_mib);
                // Until it goes, or to the end: what it does not use of that is taken off when it goes.
                let whole = u64::from(cpu) * (end_s - at_s);
                outcome.milli_cpus += u64::from(cpu);
                outcome.milli_cpu_seconds += whole;
                sizes[vm] = cpu;
                let Some(node) = fleet.come(vm, size)? else {
                    writeln!(plan, "+ {at_s} {vm} {cpu} {memory} -")?;
                    continue;
                };
                writeln!(plan, "+ {at_s} {vm} {cpu} {memory} {node}")?;
                held[vm] = Some((node, size));
                in_use += usize::from(vms_on[node] == 0);
                vms_on[node] += 1;
                outcome.accepted += 1;
                outcome.accepted_milli_cpu_seconds += whole;
                outcome.accepted_milli_cpus += u64::from(cpu);
            }
            Event::Go { at_s, vm } => {
                writeln!(plan, "- {at_s} {vm}")?;
                let unused = u64::from(sizes[vm]) * (end_s - at_s);
                outcome.milli_cpu_seconds -= unused;
                let Some((node, size)) = held[vm].take() else { continue };
                outcome.accepted_milli_cpu_seconds -= unused;
                fleet.go(vm, node, size)?;
                vms_on[node] -= 1;
                in_use -= usize::from(vms_on[node] == 0);
            }
        }
        meter.set(in_use);
    }
    (outcome.peak, outcome.node_seconds) = (meter.peak, meter.node_seconds);
    writeln!(plan, "claim peak {}", outcome.peak)?;
    writeln!(plan, "claim node-seconds {}", outcome.node_seconds)?;
    writeln!(plan, "claim accepted {}", outcome.accepted)?;
    writeln!(plan, "claim accepted-cpu {}", outcome.accepted_milli_cpus)?;
    Ok(outcome)
}

/// See [`Bound`].
pub fn bound(stream: &Stream) -> Bound {
    let mut sizes = vec![NODE; stream.vms()];
    let (mut cpu, mut memory) = (0u64, 0u64);
    let mut meter = Meter::default();
    for event in &stream.events {
        meter.at(event.at_s());
        match *event {
            Event::Come { vm, size, .. } => {
                sizes[vm] = size;
                cpu += u64::from(size.milli_cpus);
                memory += size.memory_mib;
            }
            Event::Go { vm, .. } => {
                cpu -= u64::from(sizes[vm].milli_cpus);
                memory -= sizes[vm].memory_mib;
            }
        }
        let by_cpu = cpu.div_ceil(u64::from(NODE.milli_cpus));
        let nodes = by_cpu.max(memory.div_ceil(NODE.memory_mib));
        meter.set(usize::try_from(nodes).unwrap_or(usize::MAX));
    }
    Bound { peak: meter.peak, node_seconds: meter.node_seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Size = Size { milli_cpus: 32_000, memory_mib: 1_024 };
    const QUARTER: Size = Size { milli_cpus: 16_000, memory_mib: 1_024 };

    fn stream() -> Stream {
        Stream::new(
            "made",
            [
                (0, Some(100), HALF),
                (0, Some(20), HALF),
                (10, Some(90), HALF),
                (30, Some(70), QUARTER),
                (40, Some(60), HALF),
            ],
        )
    }

    #[test]
    fn what_a_rule_does_shows() {
        let stream = stream();
        assert_eq!(bound(&stream), Bound { peak: 2, node_seconds: 180 });
        let outcome = |policy, nodes| run(&stream, policy, nodes, &mut std::io::sink()).unwrap();
        let best = outcome(Policy::BestFit, 4);
        // The second node takes the third VM; the first has room again for the fourth and not for the fifth.
        assert_eq!((best.peak, best.node_seconds, best.accepted), (2, 190, 5));
        let small = outcome(Policy::BestFit, 1);
        assert_eq!((small.peak, small.accepted, small.vms), (1, 3, 5));
        // Halves for 100 s and 20 s and a quarter for 70 s, of those and halves for 90 s and 60 s.
        let (used, asked) = (small.accepted_milli_cpu_seconds, small.milli_cpu_seconds);
        assert_eq!((used, asked), (32_000 * 120 + 16_000 * 70, 32_000 * 270 + 16_000 * 70));
    }
}
