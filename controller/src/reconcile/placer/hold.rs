//! Nodes kept for a VM that has waited long. Small VMs fill each gap as it opens, so that a large one could wait for
//! ever; when it has waited for [`PATIENCE_MS`], the node that lacks least for it takes nobody who stands behind it in
//! the queue, neither to run nor to be restarted, and what leaves that node makes room for it. Where the failover
//! guarantee is what it waits for, a second node is kept, on which it would be restarted. Its invariant: nodes are kept
//! for one VM at a time, the first in the queue that needs some, and only such as could hold it if they were empty.
//! Deliberately absent: moving VMs away.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::{NodeId, TimeMs, VmId};
use tamdao_scheduler::reason::ReasonKind;
use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::{Rejection, View, VmShape};
use tamdao_store::view::View as Records;

use super::turn;

/// How long a VM waits before a node is kept for it, ms.
const PATIENCE_MS: u64 = 10 * 60 * 1_000;

/// The label of a kept node, which VMs behind the one that it is kept for must not have. It is on forks only.
pub const KEPT: &str = "tamdao/kept";

/// Which nodes are kept for which VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub vm: VmId,
    nodes: Vec<NodeId>,
}

impl From<(VmId, Vec<NodeId>)> for Hold {
    fn from((vm, nodes): (VmId, Vec<NodeId>)) -> Self {
        Self { vm, nodes }
    }
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
        Some(Self { vm: vm.id, nodes: vec![node] })
    }

    /// The nodes to keep for a VM that the guarantee refused, with its best node, if it has waited long: that one, and
    /// of those that no guarded failure takes with it the one with most room.
    pub fn beside(
        guarantee: &Guarantee,
        vm: &VmShape,
        since: TimeMs,
        now: TimeMs,
        node: NodeId,
    ) -> Option<Self> {
        if now.0.saturating_sub(since.0) < PATIENCE_MS {
            return None;
        }
        let picture = guarantee.view();
        let with =
            guarantee.losses().map(|loss| guarantee.nodes_of(loss)).filter(|lost| lost.contains(&node));
        let with: BTreeSet<NodeId> = with.flatten().collect();
        let others = picture.nodes().filter(|other| {
            other.id != node
                && !with.contains(&other.id)
                && (other.ready && !other.cordoned)
                && holds_when_empty(picture, other.id, vm)
        });
        let free = |id| {
            let held = picture.node_use(id).unwrap_or_default();
            (held.memory_mib.saturating_sub(held.memory_used_mib), held.vcpus.saturating_sub(held.vcpus_used))
        };
        let restart = others.map(|other| other.id).max_by_key(|id| (free(*id), Reverse(*id)));
        Some(Self { vm: vm.id, nodes: [node].into_iter().chain(restart).collect() })
    }

    pub fn parts(&self) -> (VmId, Vec<NodeId>) {
        (self.vm, self.nodes.clone())
    }

    /// Keeps the nodes in a fork from those who stand behind; the shapes are in the order of the queue.
    pub fn keep(&self, fork: &mut Guarantee, view: &Records, shapes: &mut [Arc<VmShape>]) {
        let ahead = shapes.partition_point(|shape| turn(view, shape.id) <= turn(view, self.vm));
        self.keep_from(fork, &mut shapes[ahead..]);
    }

    fn keep_from(&self, fork: &mut Guarantee, behind: &mut [Arc<VmShape>]) {
        for node in &self.nodes {
            let Some(mut node) = fork.view().node(*node).cloned() else { continue };
            node.labels.insert(KEPT.to_owned(), String::new());
            fork.set_node(node);
        }
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
    use tamdao_scheduler::By;
    use tamdao_scheduler::place::{place, place_each};
    use tamdao_scheduler::survive::guarantee::Refusal;
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
        assert_eq!(hold(&cluster, LONG).unwrap().nodes, [cluster.nodes[1].id]);
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
        hold.keep_from(&mut fork, &mut batch[2..]);
        let places: Vec<_> =
            fork.admit_each(&batch).into_iter().map(|answer| answer.map(|p| p.node)).collect();
        assert!(places[0].is_ok() && places[1].is_err());
        assert_eq!(places[2].as_ref().ok(), None, "n1 has no room for small, and n2 is kept: {places:?}");
        let mut open = cluster.view().unwrap();
        assert!(place_each(&mut open, &cluster.wants)[2].is_ok(), "without the hold it goes to n2");
    }

    #[test]
    fn who_waits_for_the_guarantee_has_a_node_kept_for_its_restart_too() {
        let pair = "tamdao-cluster 1\nnode n1 vcpus=8 memory=8192\nnode n2 vcpus=8 memory=8192\n\
            vm x on=n1 vcpus=1 memory=3072 protected\nwant big vcpus=1 memory=6144 protected\n\
            want small vcpus=1 memory=1024 protected\n";
        let cluster = Cluster::parse(pair).unwrap();
        let [n1, n2] = [cluster.nodes[0].id, cluster.nodes[1].id];
        let mut guarantee = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
        let x = guarantee.view().vms_on(n1)[0].id;
        let Err(Refusal::Unguarded { node, .. }) = guarantee.admit(&cluster.wants[0]) else { panic!() };
        let beside = |now| Hold::beside(&guarantee, &cluster.wants[0], TimeMs(0), now, node);
        assert_eq!(beside(TimeMs(PATIENCE_MS - 1)), None);
        let hold = beside(LONG).unwrap();
        assert_eq!(hold.nodes, [n2, n1]);
        let (mut fork, mut batch) = (guarantee.clone(), cluster.wants.clone());
        hold.keep_from(&mut fork, &mut batch[1..]);
        assert!(fork.admit_each(&batch).iter().all(Result::is_err), "small takes neither node");
        assert!(guarantee.clone().admit(&cluster.wants[1]).is_ok(), "and would without the hold");
        guarantee.release(n1, x);
        let (mut fork, mut batch) = (guarantee, cluster.wants.clone());
        hold.keep_from(&mut fork, &mut batch[1..]);
        assert!(fork.admit_each(&batch)[0].is_ok(), "what leaves makes room");
    }
}
