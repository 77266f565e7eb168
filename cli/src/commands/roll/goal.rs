//! When a node has had its turn, read from its own record: the versions that its agent reports, and when its host has
//! booted. Pure. What is not known is not reached.

use tamdao_proto::v1::Node;

use crate::problem::Problem;
use crate::quantity::{moment, parse_moment};

/// What an update is for, such as `qemu=9.2` or `booted=2026-11-22T20:00:00Z`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// This version or a later one.
    Version { of: Software, at_least: String },
    /// A boot of the host that was first heard of at this time or later, seconds since 1970.
    Booted { since_s: i64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Software {
    Agent,
    Libvirt,
    Qemu,
}

impl Goal {
    /// # Errors
    /// When the text is none.
    pub fn read(text: &str) -> Result<Self, Problem> {
        let (what, value) = text.split_once('=').unwrap_or((text, ""));
        let of = match what {
            "agent" => Software::Agent,
            "libvirt" => Software::Libvirt,
            "qemu" => Software::Qemu,
            "booted" => {
                let since_s = parse_moment(value);
                let since_s = since_s.map_err(|error| Problem::usage(format!("--until {text}: {error}")))?;
                return Ok(Self::Booted { since_s });
            }
            _ => {
                let known = "agent=VERSION, libvirt=VERSION, qemu=VERSION or booted=TIME";
                return Err(Problem::usage(format!("--until {text}: expected {known}")));
            }
        };
        if numbers(value).is_empty() {
            return Err(Problem::usage(format!("--until {text}: expected a version such as {what}=9.2")));
        }
        Ok(Self::Version { of, at_least: value.to_owned() })
    }

    /// What the node still lacks, as half a sentence; none when it is there.
    pub fn lacks(&self, node: &Node) -> Option<String> {
        match self {
            Self::Version { of, at_least } => {
                let (is, wanted) = (version(node, *of), numbers(at_least));
                // By as many numbers as were asked for: 9.2 is 9.2.4 too.
                let mut has = numbers(&is);
                has.resize(has.len().max(wanted.len()), 0);
                let reached = !is.is_empty() && has[..wanted.len()] >= wanted[..];
                let is = if is.is_empty() { "not known" } else { &is };
                (!reached).then(|| format!("its {} is {is}", of.name()))
            }
            Self::Booted { since_s } => {
                let booted = node.status.as_ref().and_then(|status| status.boot_time.as_ref());
                let reached = booted.is_some_and(|time| time.seconds >= *since_s);
                (!reached).then(|| format!("its host has not booted since {}", moment(*since_s)))
            }
        }
    }
}

impl Software {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Libvirt => "libvirt",
            Self::Qemu => "QEMU",
        }
    }
}

/// What a node says of itself that an update changes: its boot and its versions.
pub fn said(node: &Node) -> [String; 4] {
    let boot = node.status.as_ref().map(|status| status.boot_id.clone()).unwrap_or_default();
    let [agent, libvirt, qemu] =
        [Software::Agent, Software::Libvirt, Software::Qemu].map(|of| version(node, of));
    [boot, agent, libvirt, qemu]
}

fn version(node: &Node, of: Software) -> String {
    let inventory = node.status.as_ref().and_then(|status| status.inventory.clone()).unwrap_or_default();
    match of {
        Software::Agent => inventory.agent_version,
        Software::Libvirt => inventory.libvirt_version,
        Software::Qemu => inventory.qemu_version,
    }
}

/// The numbers that a version begins with: 9.2.1 of "9.2.1-3+deb12".
fn numbers(version: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    for part in version.split('.') {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let Ok(number) = part[..digits].parse() else { break };
        numbers.push(number);
        if digits < part.len() {
            break;
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use tamdao_proto::v1::{Inventory, NodeStatus};

    use super::*;

    fn node(qemu: &str, boot_s: Option<i64>) -> Node {
        let boot_time = boot_s.map(|seconds| pbjson_types::Timestamp { seconds, nanos: 0 });
        let inventory = Some(Inventory { qemu_version: qemu.into(), ..Inventory::default() });
        Node { status: Some(NodeStatus { inventory, boot_time, ..NodeStatus::default() }), ..Node::default() }
    }

    #[test]
    fn a_version_is_reached_by_itself_and_by_later_ones() {
        let goal = Goal::read("qemu=9.2").unwrap();
        for (version, reached) in [
            ("9.2.0", true),
            ("9.2", true),
            ("9.2.4-1+deb13", true),
            ("9.10.0", true),
            ("10.0.0", true),
            ("9.1.9", false),
            ("9", false),
            ("", false),
        ] {
            assert_eq!(goal.lacks(&node(version, None)).is_none(), reached, "{version}");
        }
        assert_eq!(goal.lacks(&node("9.1.9", None)).unwrap(), "its QEMU is 9.1.9");
    }

    #[test]
    fn a_boot_counts_from_its_time_and_never_when_it_is_not_known() {
        let goal = Goal::read("booted=2026-11-22T20:00:00Z").unwrap();
        let at = 1_795_377_600;
        assert_eq!(goal, Goal::Booted { since_s: at });
        assert!(goal.lacks(&node("", Some(at))).is_none());
        assert!(goal.lacks(&node("", Some(at - 1))).is_some());
        assert!(goal.lacks(&node("", None)).is_some());
    }

    #[test]
    fn what_is_no_goal_is_refused() {
        for text in ["qemu", "qemu=new", "kernel=6", "booted=yesterday", ""] {
            assert!(Goal::read(text).is_err(), "{text}");
        }
    }
}
