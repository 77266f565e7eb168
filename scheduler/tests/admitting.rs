//! What becomes of VMs that are admitted to a cluster under the guarantee, told of small clusters in the text format.

#![allow(clippy::unwrap_used)]

use tamdao_scheduler::survive::guarantee::Guarantee;
use tamdao_scheduler::text::Cluster;
use tamdao_scheduler::{By, NodeShape};

/// What becomes of each wanted VM.
fn told(guarded: &[By], cluster: &str) -> Vec<String> {
    let cluster = Cluster::parse(&format!("tamdao-cluster 1\n{cluster}")).unwrap();
    let mut guarantee = Guarantee::new(cluster.view().unwrap(), guarded);
    let answers = guarantee.admit_each(&cluster.wants);
    let told = cluster.wants.iter().zip(answers).map(|(vm, answer)| {
        let what = match answer {
            Ok(placement) => guarantee.view().node(placement.node).unwrap().name.to_string(),
            Err(refusal) => refusal.to_string(),
        };
        format!("{}: {what}", vm.name)
    });
    told.collect()
}

fn rack() -> By {
    By::Domain("rack".into())
}

#[test]
fn what_fits_beside_the_guarantee_is_placed_by_priority_and_the_rest_is_told_why() {
    // Two nodes of 8 GiB hold half of it under the guarantee, and four VMs of 3 GiB without.
    let pair = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
        want a vcpus=1 memory=3072 protected\nwant b vcpus=1 memory=3072 protected\n\
        want c vcpus=1 memory=3072 protected priority=9\nwant d vcpus=1 memory=3072 protected\n";
    let open = told(&[], pair);
    assert!(open.iter().all(|line| line.ends_with(": n1") || line.ends_with(": n2")), "{open:?}");
    let lacks = "9216 MiB of memory are needed, 8192 MiB are free";
    let refused = |vm| format!("{vm}: the loss of node n1 would leave a VM without a place: {lacks}");
    assert_eq!(told(&[By::Node], pair), ["a: n1".into(), refused("b"), "c: n1".into(), refused("d")]);
}

#[test]
fn a_vm_that_is_not_protected_takes_no_held_room() {
    let full = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
        vm x on=n1 vcpus=1 memory=6144 protected\nwant a vcpus=1 memory=6144\nwant b vcpus=1 memory=1024\n";
    let told = told(&[By::Node], full);
    assert!(told[0].starts_with("a: the loss of node n1 would leave a VM without a place"), "{told:?}");
    assert_eq!(told[1], "b: n1");
}

#[test]
fn another_node_is_tried_when_the_best_would_break_it() {
    // Of the two empty nodes n1 is the first, and the only one that could take x after the loss of n2.
    let labelled = "node n1 vcpus=16 memory=8192 label.disk=ssd\nnode n2 vcpus=16 memory=8192 label.disk=ssd\n\
        node n3 vcpus=16 memory=8192\nvm x on=n2 vcpus=1 memory=6144 label.disk=ssd protected\n\
        want a vcpus=1 memory=4096\n";
    assert_eq!(told(&[], labelled), ["a: n1"]);
    assert_eq!(told(&[By::Node], labelled), ["a: n3"]);
}

#[test]
fn a_rack_is_guarded_as_a_whole() {
    let racks = "node n1 vcpus=16 memory=4096 domain.rack=r1\nnode n2 vcpus=16 memory=4096 domain.rack=r1\n\
        node n3 vcpus=16 memory=4096 domain.rack=r2\n\
        vm x on=n1 vcpus=1 memory=3072 protected\nwant a vcpus=1 memory=2048 protected\n";
    // n2 is where x would be restarted.
    assert_eq!(told(&[By::Node], racks), ["a: n3"]);
    let told = told(&[rack()], racks);
    assert!(
        told[0].starts_with("a: the loss of rack r1 would leave a VM without a place: 5120 MiB"),
        "{told:?}"
    );
}

#[test]
fn what_is_broken_already_holds_nobody_up_who_does_not_worsen_it() {
    let broken = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
        vm x on=n1 vcpus=1 memory=8192 protected\nvm y on=n2 vcpus=1 memory=1024\n\
        want a vcpus=1 memory=1024\nwant b vcpus=1 memory=1024 protected\n";
    let told = told(&[By::Node], broken);
    assert_eq!(told[0], "a: n2");
    assert!(told[1].starts_with("b: the loss of node n2"), "{told:?}");
}

#[test]
fn a_lost_nodes_vm_takes_its_planned_restart_though_nothing_is_left_for_the_next_loss() {
    let pair = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=8192\n\
        vm x on=n1 vcpus=1 memory=6144 protected\nwant a vcpus=1 memory=6144 protected\n";
    let cluster = Cluster::parse(&format!("tamdao-cluster 1\n{pair}")).unwrap();
    let mut guarantee = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
    assert!(guarantee.holds() && guarantee.clone().admit(&cluster.wants[0]).is_err());
    let [n1, n2] = [cluster.nodes[0].id, cluster.nodes[1].id];
    let mut lost = cluster.nodes[0].clone();
    lost.ready = false;
    guarantee.set_node(lost);
    let x = guarantee.view().vms_on(n1)[0].clone();
    let restarted = guarantee.restart(&[(n1, x)]);
    assert_eq!(restarted[0].as_ref().map(|placement| placement.node), Ok(n2));
}

#[test]
fn restarts_that_fit_only_as_planned_go_where_they_were_planned() {
    // Alone each VM of the lost node goes to the fuller n3 first, where only the large one has room in the end.
    let text = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=2048\nnode n3 vcpus=16 memory=6144\n\
        vm small on=n1 vcpus=1 memory=2048 protected\nvm large on=n1 vcpus=1 memory=6144 protected\n";
    let cluster = Cluster::parse(&format!("tamdao-cluster 1\n{text}")).unwrap();
    let guarantee = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
    assert!(guarantee.holds());
    let [n1, n2, n3] = [0, 1, 2].map(|at: usize| cluster.nodes[at].id);
    let mut due: Vec<_> = guarantee.view().vms_on(n1).iter().map(|vm| (n1, vm.clone())).collect();
    due.sort_by_key(|(_, vm)| vm.reservation.memory_mib);
    let mut down = guarantee.clone();
    down.set_node(NodeShape { ready: false, ..cluster.nodes[0].clone() });
    let nodes = down.restart(&due).into_iter().map(|answer| answer.unwrap().node).collect::<Vec<_>>();
    assert_eq!(nodes, [n2, n3]);
}

#[test]
fn a_vm_grows_only_as_far_as_its_restart_has_room() {
    let pair = "node n1 vcpus=16 memory=8192\nnode n2 vcpus=16 memory=6144\n\
        vm x on=n1 vcpus=1 memory=4096 protected\n";
    let cluster = Cluster::parse(&format!("tamdao-cluster 1\n{pair}")).unwrap();
    let mut guarantee = Guarantee::new(cluster.view().unwrap(), &[By::Node]);
    let x = guarantee.view().vms_on(cluster.nodes[0].id)[0].clone();
    let of = |memory_mib| {
        let mut shape = (*x).clone();
        shape.reservation.memory_mib = memory_mib;
        std::sync::Arc::new(shape)
    };
    assert_eq!(guarantee.propose_shape(&of(6_144)), Ok(()));
    let broken = guarantee.propose_shape(&of(7_000)).unwrap_err();
    assert_eq!(broken.name, "node n1");
    assert_eq!(guarantee.view().vms_on(cluster.nodes[0].id)[0].reservation.memory_mib, 6_144);
}
