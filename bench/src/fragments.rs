//! Fragmentation with few moves: two snapshots of hosts with two NUMA nodes (VMR2L; Ding et al., EuroSys 2025), and
//! how much of their free CPU no further VM of 16 CPUs can use, before and after a plan. Deliberately absent: that
//! paper's own solvers.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tamdao_model::assignment::Reservation;
use tamdao_model::{NodeId, VmId};
use tamdao_scheduler::plan::defragment::{Fragments, defragment};
use tamdao_scheduler::plan::{Budget, Terms};
use tamdao_scheduler::{Cell, Cells, NodeShape, View, VmShape};
use uuid::Uuid;

use crate::plan_file::PlanFile;
use crate::speed::now;
use crate::stream::data;

/// FR16 counts CPUs alone.
pub const SIZE: Reservation = Reservation { vcpus: 16, memory_mib: 0 };
/// The wall's time that a plan may take.
pub const AT_MOST: Duration = Duration::from_secs(5);

/// What one plan came to.
#[derive(Debug, Clone, Copy)]
pub struct Joined {
    pub before: Fragments,
    pub after: Fragments,
    pub moves: usize,
    pub rounds: usize,
    pub took: Duration,
}

/// The clusters of the snapshot, by name.
pub fn clusters() -> Result<Vec<(String, View)>> {
    let snapshot: Value = serde_json::from_str(&data("vmr2l/reset_vm_pm_id_clear2.json.gz")?)?;
    let clusters = snapshot["cluster_list"].as_array().context("the snapshot has no clusters")?;
    clusters.iter().map(|cluster| Ok((text(&cluster["cluster_name"])?.to_owned(), view(cluster)?))).collect()
}

fn view(cluster: &Value) -> Result<View> {
    let mut view = View::new();
    let mut ids: HashMap<&str, NodeId> = HashMap::new();
    for (n, host) in list(&cluster["host_info"])?.iter().enumerate() {
        let name = text(&host["node_id"])?;
        let mut node = NodeShape::bare(NodeId(Uuid::from_u128(n as u128 + 1)), name);
        node.domains.insert("rack".into(), [host["rack_id"].to_string()].into());
        for cell in list(&host["numa"])? {
            let vcpus = u32::try_from(whole(&cell["total_cpu"])?)?;
            node.cells.push(Cell { vcpus, memory_mib: whole(&cell["memory_huge_total_mb"])?, huge_mib: 0 });
        }
        node.vcpus = node.cells.iter().map(|cell| cell.vcpus).sum();
        node.memory_mib = node.cells.iter().map(|cell| cell.memory_mib).sum();
        ids.insert(name, node.id);
        view.set_node(node);
    }
    for (n, of) in list(&cluster["vm_instance"])?.iter().enumerate() {
        let parts = list(&of["numa"])?;
        let (mut vcpus, mut memory_mib, mut at) = (0, 0, Vec::new());
        for part in parts {
            vcpus += u32::try_from(whole(&part["cpu"])?)?;
            memory_mib += whole(&part["mem_mb"])?;
            at.push(usize::try_from(whole(&part["node"])?)?);
        }
        let name = text(&of["instance_id"])?;
        let mut vm = VmShape::bare(VmId(Uuid::from_u128(n as u128 + 1)), name, vcpus, memory_mib);
        vm.cells = u32::try_from(parts.len())?;
        let node = *ids.get(text(&of["host_id"])?).context("a VM is on a host that is not there")?;
        view.assign_to(node, Cells::of(at).context("a host has too many cells")?, Arc::new(vm))?;
    }
    Ok(view)
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("the snapshot lacks a list")
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("the snapshot lacks a name")
}

/// Amounts are written with a point and a zero.
fn whole(value: &Value) -> Result<u64> {
    let amount = value.as_f64().context("the snapshot lacks an amount")?;
    ensure!(amount >= 0.0 && amount.fract() == 0.0, "{amount} is not a whole amount");
    Ok(amount as u64)
}

/// The least that FR16 can be, whatever moves: a cell has room for so many parts of 16 CPUs, of which each VM takes
/// as many as its own part there holds, and what is free makes no more places than it holds.
pub fn least(view: &View) -> Fragments {
    let size = u64::from(SIZE.vcpus);
    let now = Fragments::of(view, SIZE);
    let all = |node: &NodeShape| node.cells.iter().map(|cell| u64::from(cell.vcpus) / size).sum::<u64>();
    let taken = |vm: &VmShape| {
        let parts = u64::from(vm.cells.max(1));
        parts * (u64::from(vm.reservation.vcpus) / parts / size)
    };
    let on = |node: &NodeShape| view.vms_on(node.id).iter().map(|vm| taken(vm)).sum::<u64>();
    let places: u64 = view.nodes().map(|node| all(node) - on(node)).sum();
    let places = places.min(now.free_vcpus / size);
    Fragments { places, stranded_vcpus: now.free_vcpus - places * size, ..now }
}

/// Joins with at most so many moves and writes the plan.
pub fn measure(view: &View, moves: usize, plan: &mut impl Write) -> Result<Joined> {
    let (begin, wall) = (now(), Instant::now());
    let is_late = || wall.elapsed() > AT_MOST;
    let terms = Terms::default();
    let answer = defragment(view, SIZE, moves, &terms, &mut Budget::until(u64::MAX, &is_late));
    let took = now() - begin;
    let mut file = PlanFile::begin(plan, view)?;
    file.rounds(1, &answer.plan)?;
    let moves = answer.plan.move_count();
    file.claim("moves", moves as u64)?;
    let rounds = answer.plan.rounds.len();
    Ok(Joined { before: answer.before, after: answer.after, moves, rounds, took })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_is_what_its_source_says() {
        let clusters = clusters().unwrap();
        let counts: Vec<_> = clusters
            .iter()
            .map(|(_, view)| {
                let now = Fragments::of(view, SIZE);
                (view.node_count(), view.vm_count(), now.free_vcpus, now.rate())
            })
            .collect();
        assert_eq!(counts, [(236, 1_934, 754, 10_000), (43, 155, 640, 9_500)]);
        // Of the second one's cells, one holds 16 CPUs in VMs that are smaller: one place more is all there is.
        let now = Fragments::of(&clusters[1].1, SIZE);
        assert_eq!(least(&clusters[1].1), Fragments { places: now.places + 1, stranded_vcpus: 592, ..now });
    }
}
