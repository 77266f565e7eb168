//! A node kept for a VM that has waited long. Small VMs fill each gap as it opens, so that a large one could wait for
//! ever; when it has waited for [`PATIENCE`], the node that lacks least for it takes nobody who stands behind it in the
//! queue, and what leaves that node makes room for it. Its invariant: at most one node is kept at a time, for the first
//! in the queue that needs it, and only one that could hold it if it were empty. Deliberately absent: moving VMs away.

use std::sync::Arc;

use tamdao_model::{NodeId, TimeMs, VmId};
use tamdao_scheduler::reason::ReasonKind;
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::{Rejection, View, VmShape};

/// How long a VM waits before a node is kept for it, ms.
const PATIENCE_MS: u64 = 10 * 60 * 1_000;

/// The label of a kept node, which VMs behind the one that it is kept for must not have. It is on forks only.
pub const KEPT: &str = "tamdao/kept";

/// Which node is kept for which VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub vm: VmId,
    node: NodeId,
}

impl Hold {
    /// The node to keep for a VM that was refused, if it has waited long and lacks nothing but room somewhere.
    pub fn of(
        picture: &View,
        vm: &VmShape,
        since: TimeMs,
        now: TimeMs,
        rejection: &Rejection,
    ) -> Option<Self> {
        if now.0.saturating_sub(since.0) < PATIENCE_MS {
            return None;
        }
        // The later a reason stands in the order, the more is right about the node that it is the first of.
        let room = [ReasonKind::NotEnoughMemory, ReasonKind::NotEnoughVcpus, ReasonKind::NotEnoughDisk];
        let tallies = room.iter().filter_map(|kind| rejection.by_reason.get(kind));
        let mut nearest = tallies.map(|tally| tally.nearest);
        let node = nearest.find(|node| holds_when_empty(picture, *node, vm))?;
        Some(Self { vm: vm.id, node })
    }

    /// Keeps the node in a fork from those who stand behind.
    pub fn keep(&self, fork: &mut Guarantee, behind: &mut [Arc<VmShape>]) {
        let Some(mut node) = fork.view().node(self.node).cloned() else { return };
        node.labels.insert(KEPT.to_owned(), String::new());
        fork.set_node(node);
        for vm in behind {
            Arc::make_mut(vm).forbidden_labels.insert(KEPT.to_owned(), String::new());
        }
    }
}

fn holds_when_empty(picture: &View, node: NodeId, vm: &VmShape) -> bool {
    let Some((shape, held)) = picture.node(node).zip(picture.node_use(node)) else { return false };
    let needs = vm.reservation_on(shape.emulation);
    held.vcpus >= u64::from(needs.vcpus) && held.memory_mib >= needs.memory_mib
}

#[cfg(test)]
mod tests {
    use tamdao_scheduler::place::{place, place_each};
    use tamdao_scheduler::text::Cluster;

    use super::*;

    const FULL: &str = "tamdao-cluster 1\nnode n1 vcpus=8 memory=8192\nnode n2 vcpus=8 memory=4096\n\
        vm x on=n1 vcpus=1 memory=6144\nvm y on=n2 vcpus=1 memory=1024\n\
        want early vcpus=1 memory=512 priority=1\nwant big vcpus=1 memory=4096\nwant small vcpus=1 memory=2048\n";
    const LONG: TimeMs = TimeMs(PATIENCE_MS);

    fn hold(cluster: &Cluster, now: TimeMs) -> Option<Hold> {
        let (view, big) = (cluster.view().unwrap(), &cluster.wants[1]);
        Hold::of(&view, big, TimeMs(0), now, &place(&view, big).unwrap_err())
    }

    #[test]
    fn only_who_has_waited_long_is_waited_for() {
        let cluster = Cluster::parse(FULL).unwrap();
        assert_eq!(hold(&cluster, TimeMs(PATIENCE_MS - 1)), None);
        // n2 lacks less, 1,024 MiB against 2,048, and can hold it when y has gone.
        assert_eq!(hold(&cluster, LONG).unwrap().node, cluster.nodes[1].id);
    }

    #[test]
    fn a_vm_larger_than_every_node_keeps_none() {
        let cluster =
            Cluster::parse(&FULL.replace("memory=4096\nwant small", "memory=9000\nwant small")).unwrap();
        assert_eq!(hold(&cluster, LONG), None);
    }

    #[test]
    fn who_stands_before_may_still_go_there_and_who_stands_behind_may_not() {
        let cluster = Cluster::parse(FULL).unwrap();
        let hold = hold(&cluster, LONG).unwrap();
        let mut fork = Guarantee::new(cluster.view().unwrap(), &[]);
        let mut batch = cluster.wants.clone();
        hold.keep(&mut fork, &mut batch[2..]);
        let places: Vec<_> =
            fork.admit_each(&batch).into_iter().map(|answer| answer.map(|p| p.node)).collect();
        assert!(places[0].is_ok() && places[1].is_err());
        assert_eq!(places[2].as_ref().ok(), None, "n1 has no room for small, and n2 is kept: {places:?}");
        let mut open = cluster.view().unwrap();
        assert!(place_each(&mut open, &cluster.wants)[2].is_ok(), "without the hold it goes to n2");
    }
}
