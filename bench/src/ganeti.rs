//! Ganeti's allocator and balancer beside ours, where they are installed (Debian: ganeti-htools): the same cluster in
//! its text format and the same question. `hail` and `hbal` are processes that read the whole cluster, so what they
//! take holds the reading too; their processor time is told, not the wall's, since this machine has other work.
//! Deliberately absent: its disks' mirroring, which has no like here; instances that `hail` places are on plain disks,
//! those that `hbal` moves on shared ones.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tamdao_model::NodeId;
use tamdao_scheduler::View;

/// Where Debian puts it.
const HAIL: &str = "/usr/lib/ganeti/3.0/usr/lib/ganeti/iallocators/hail";
/// Of the same package.
const HBAL: &str = "/usr/bin/hbal";
/// What each instance and node has of disk, MiB; more than enough.
const DISK: u64 = 1_024;
const NODE_DISK: u64 = 10_240_000;
const LIMITS: &str =
    "128,1,1024,1,1,1|128,1,1024,1,1,1;1048576,64,10485760,16,8,12|diskless,plain,ext|1.0|32.0";

pub fn is_installed() -> bool {
    Path::new(HAIL).exists() && Path::new(HBAL).exists()
}

/// The cluster in the text format of htools 3.0, with instances on disks of this template.
pub fn cluster(view: &View, template: &str) -> String {
    let mut nodes = String::new();
    let mut instances = String::new();
    for node in view.nodes() {
        let vms = view.vms_on(node.id);
        let used: u64 = vms.iter().map(|vm| vm.reservation.memory_mib).sum();
        let (name, memory, cpus) = (&node.name, node.memory_mib, node.vcpus);
        let (free, disk) = (memory - used, NODE_DISK - DISK * vms.len() as u64);
        let _ = writeln!(nodes, "{name}|{memory}|0|{free}|{NODE_DISK}|{disk}|{cpus}|N|group|1|");
        for vm in vms {
            let (cpus, memory) = (vm.reservation.vcpus, vm.reservation.memory_mib);
            let _ = writeln!(
                instances,
                "i{}|{memory}|{DISK}|{cpus}|running|Y|{name}||{template}||1",
                vm.id.0.simple()
            );
        }
    }
    format!("all|group|preferred||\n\n{nodes}\n{instances}\n\n|{LIMITS}\nall|{LIMITS}\n")
}

/// The processor time of one allocation; the cluster lies in `folder`. With `capacity_checks` it also asks whether
/// every node's instances could still go elsewhere.
pub fn allocate(folder: &Path, cluster: &str, capacity_checks: bool) -> Result<Duration> {
    let (data, request) = (folder.join("hail.data"), folder.join("hail.json"));
    std::fs::write(&data, cluster)?;
    let wish = json!({
        "cluster_tags": [], "instances": {}, "nodegroups": {}, "nodes": {}, "enabled_hypervisors": ["kvm"],
        "request": {
            "type": "allocate", "name": "new", "required_nodes": 1, "memory": 8_192, "vcpus": 4,
            "disk_template": "plain", "disks": [{ "size": DISK }], "disk_space_total": DISK,
            "hypervisor": "kvm", "nics": [], "os": "any", "spindle_use": 1, "tags": [],
        },
    });
    std::fs::write(&request, wish.to_string())?;
    let before = children()?;
    let mut hail = Command::new(HAIL);
    hail.arg("-t").arg(&data).stderr(Stdio::inherit());
    if !capacity_checks {
        hail.arg("--no-capacity-checks");
    }
    let answer = hail.arg(&request).output().with_context(|| format!("{HAIL} cannot be started"))?;
    let answer = String::from_utf8(answer.stdout)?;
    ensure!(answer.contains("\"success\":true"), "hail found no place: {answer}");
    Ok(children()? - before)
}

/// The processor time of one run of `hbal`, and where it puts each instance, in at most so many moves.
pub fn balance(folder: &Path, view: &View, at_most: usize) -> Result<(Duration, HashMap<u128, NodeId>)> {
    let (data, state) = (folder.join("hbal.data"), folder.join("hbal"));
    std::fs::write(&data, cluster(view, "ext"))?;
    let before = children()?;
    let mut hbal = Command::new(HBAL);
    hbal.arg("-t").arg(&data).arg("-S").arg(&state).args(["-q", "-l", &at_most.to_string()]);
    let answer = hbal.output().with_context(|| format!("{HBAL} cannot be started"))?;
    let took = children()? - before;
    ensure!(answer.status.success(), "hbal: {}", String::from_utf8_lossy(&answer.stderr));
    let nodes: HashMap<&str, NodeId> = view.nodes().map(|node| (&*node.name, node.id)).collect();
    let end = std::fs::read_to_string(state.with_extension("balanced"))?;
    let mut places = HashMap::new();
    for line in end.lines().filter(|line| line.starts_with('i')) {
        let words: Vec<&str> = line.split('|').collect();
        let vm = u128::from_str_radix(words[0].trim_start_matches('i'), 16)?;
        let node = words.get(6).and_then(|name| nodes.get(name)).context("hbal names an unknown node")?;
        places.insert(vm, *node);
    }
    Ok((took, places))
}

/// Processor time of all children that have ended.
fn children() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The fields after the name, which stands in brackets: user and system time of children are the 14th and 15th,
    // in hundredths of a second.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/self/stat has no name")?;
    let ticks = rest.split(' ').skip(13).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Fleet, Kind};

    #[test]
    fn a_cluster_is_told_whole() {
        let fleet = Fleet::new(Kind::Plain, 3, 60).unwrap();
        let text = cluster(&fleet.view, "plain");
        assert_eq!(text.lines().filter(|line| line.starts_with("i0")).count(), fleet.placed.len());
        let free: Vec<&str> = text.lines().filter(|line| line.starts_with('n')).collect();
        assert_eq!(free.len(), 3, "{text}");
        for (line, node) in free.iter().zip(fleet.view.nodes()) {
            let left = fleet.view.node_use(node.id).map(|used| used.memory_mib - used.memory_used_mib);
            assert_eq!(line.split('|').nth(3).and_then(|word| word.parse().ok()), left);
        }
    }
}
