//! Updates: what may change, what may be repeated, and what raises the generation. The node and the VM of the
//! other tests are made here.

use std::collections::{BTreeMap, BTreeSet};

use pbjson_types::FieldMask;
use serde_json::{Value, json};
use tamdao_model::bmc::{CONDITION, Drilled, GOOD};
use tamdao_model::condition::{ConditionStatus, Conditions};
use tamdao_model::convert::{
    Public, RepeatedTemplate, Shown, UpdatedVm, UserDataChange, check_template, vm as requests,
};
use tamdao_model::flavor::Flavor;
use tamdao_model::image::Image;
use tamdao_model::network::Network;
use tamdao_model::node::{Inventory, Node, NodeSpec, NodeStatus};
use tamdao_model::pool::Pool;
use tamdao_model::sealed::{Sealed, Unsealed};
use tamdao_model::vm::{Disk, DiskKind, DiskSource, Interface, OnNodeLoss, Vm};
use tamdao_model::volume::Volume;
use tamdao_model::{Kind, Meta, Name, NetworkId, VolumeId};
use tamdao_proto::v1;

use crate::world::{AGENCY, NOW, cluster, id, own, parse, world};

pub const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@desk";

pub fn node() -> Node {
    let mut meta = Meta::new(id(1), Name::new("n1").unwrap(), NOW);
    meta.labels = BTreeMap::from([("gpu".to_owned(), "no".to_owned())]);
    let spec = NodeSpec {
        failure_domains: BTreeMap::from([("rack".to_owned(), BTreeSet::from(["r2".to_owned()]))]),
        support_ends: "2031-06-30".into(),
        ..NodeSpec::default()
    };
    let mut conditions = Conditions::default();
    conditions.set("Ready", ConditionStatus::True, "Heard", "The agent is heard.", 1, NOW);
    let inventory = Inventory { memory_mib: 8192, cpus: 2, ..Inventory::default() };
    Node { meta, spec, status: NodeStatus { conditions, inventory, ..NodeStatus::default() } }
}

/// A VM as it is after its creation: a disk that was made for it and an empty cdrom.
pub fn vm() -> Vm {
    let proto = parse(json!({
        "metadata": {"name": "web", "labels": {"env": "test"}},
        "spec": {
            "vcpus": 2, "memory_mib": 512,
            "disks": [{"create": {"image": "debian"}}, {"kind": 2}],
            "interfaces": [{"network": "office", "addresses": ["10.0.0.7"]}],
            "ssh_keys": [KEY], "user_data": "#cloud-config\n", "node": "n1",
            "placement_groups": ["pair"], "isolation_class": "health", "priority": 5,
        },
    }));
    let request = requests::read(proto, AGENCY, &world()).unwrap();
    let made = requests::Made {
        flavor_class: None,
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        disks: vec![
            Disk {
                source: DiskSource::Volume { volume: VolumeId(id(52)), created: true },
                kind: DiskKind::Disk,
                boot_order: 0,
            },
            Disk { source: DiskSource::Empty, kind: DiskKind::Cdrom, boot_order: 0 },
        ],
        interfaces: vec![Interface {
            network: NetworkId(id(41)),
            mac: "52:54:00:00:00:07".into(),
            addresses: vec!["10.0.0.7/24".parse().unwrap()],
            wanted: request.interfaces[0].wanted.clone(),
        }],
        user_data: Some(Sealed(vec![1, 2, 3])),
    };
    request.into_vm(id(61), AGENCY, NOW, made)
}

fn mask(paths: &[&str]) -> Option<FieldMask> {
    Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() })
}

/// What is said of one update; empty if it is taken.
fn said<R: Public>(resource: &R, json: Value) -> String {
    resource.update(parse(json), None, &world()).err().map(|e| e.to_string()).unwrap_or_default()
}

fn pool() -> Pool {
    let json = json!({"metadata": {"name": "p"}, "spec": {"kind": 1, "path": "/p", "shared": true, "nodes": ["n1"]}});
    Pool::create(parse(json), cluster(), &world()).unwrap()
}

#[test]
fn fixed_fields_can_be_left_out_or_repeated_but_not_changed() {
    let pool = pool();
    assert_eq!(said(&pool, json!({"spec": {"nodes": ["n1"]}})), "");
    assert_eq!(said(&pool, json!({"spec": {"path": "/p", "kind": 1, "nodes": ["n2"]}})), "");
    assert_eq!(
        said(&pool, json!({"spec": {"path": "/q"}})),
        "pool.spec.path: cannot change; make another pool with it"
    );
    let cleared = pool.update(v1::Pool::default(), mask(&["spec.path"]).as_ref(), &world()).unwrap_err();
    assert_eq!(cleared.violations.len(), 2, "an explicit mask clears: {cleared}");

    let json = json!({"metadata": {"name": "f"}, "spec": {"vcpus": 1, "memory_mib": 64}});
    let flavor = Flavor::create(parse(json), cluster(), &world()).unwrap();
    assert_eq!(said(&flavor, json!({"metadata": {"display_name": "F"}, "spec": {"vcpus": 1}})), "");
    assert_eq!(
        said(&flavor, json!({"spec": {"vcpus": 2}})),
        "flavor.spec.vcpus: cannot change; make another flavor and resize the VMs to it"
    );

    let json = json!({"metadata": {"name": "i"}, "spec": {"kind": 2, "url": "https://example.org/k"}});
    let image = Image::create(parse(json), own(), &world()).unwrap();
    assert_eq!(said(&image, json!({"spec": {"min_memory_mib": 64}})), "");
    assert_eq!(
        said(&image, json!({"spec": {"kind": 1}})),
        "image.spec.kind: cannot change; make another image with it"
    );
}

#[test]
fn a_volume_only_grows() {
    let json =
        json!({"metadata": {"name": "v"}, "spec": {"size_mib": 1000, "pool": "fast", "image": "debian"}});
    let volume = Volume::create(parse(json), own(), &world()).unwrap();
    let grown = volume.update(parse(json!({"spec": {"size_mib": 2000}})), None, &world()).unwrap();
    assert_eq!((grown.spec.size_mib, grown.meta.generation), (2000, 2));
    assert_eq!(grown.spec.image, volume.spec.image);
    assert_eq!(
        said(&grown, json!({"spec": {"size_mib": 1999}})),
        "volume.spec.size_mib: is 1,999; a volume can only grow, from 2,000 on"
    );
    assert_eq!(
        said(&volume, json!({"spec": {"pool": "default"}})),
        "volume.spec.pool: cannot change; make another volume there"
    );
}

#[test]
fn a_network_keeps_its_provider_and_default_ranges_follow_the_gateway() {
    let json = json!({"metadata": {"name": "n"}, "spec": {
        "bridge": {"bridge": "br0"}, "subnets": [{"cidr": "10.0.0.0/24", "gateway": "10.0.0.1"}]}});
    let network = Network::create(parse(json), cluster(), &world()).unwrap();
    let mut shown = network.show(7, &world());
    shown.spec.as_mut().unwrap().subnets[0].gateway = "10.0.0.254".into();
    let changed = network.update(shown, None, &world()).unwrap();
    assert_eq!(changed.spec.subnets[0].ranges[0].first.to_string(), "10.0.0.1");
    assert_eq!(changed.meta.generation, 2);
    let other = "network.spec.provider: cannot change; make another network with it and attach new VMs there";
    assert_eq!(said(&network, json!({"spec": {"vlan": {"bridge": "br0", "tag": 7}}})), other);
    assert_eq!(said(&network, json!({"spec": {"bridge": {"bridge": "br1"}}})), other);
    let kept = network.update(parse(json!({"spec": {"mtu": 9000}})), None, &world()).unwrap();
    assert_eq!(kept.spec.provider, network.spec.provider);
    assert!(kept.spec.subnets.is_empty());
}

#[test]
fn references_that_have_gone_can_be_put_back() {
    let gone = world().without(Kind::Node, "n1");
    let pool = pool();
    let shown = pool.show(7, &gone);
    assert_eq!(shown.spec.as_ref().unwrap().nodes, [id(1).to_string()]);
    assert_eq!(pool.update(shown, None, &gone).unwrap(), pool);
}

#[test]
fn a_name_that_was_taken_nearer_still_means_the_same() {
    let json = json!({"metadata": {"name": "v"}, "spec": {"image": "debian"}});
    let volume = Volume::create(parse(json), own(), &world()).unwrap();
    let mut shadowed = world();
    let scope = tamdao_model::Scope::Agency(AGENCY);
    shadowed.0.insert(0, (Kind::Image, scope, "debian", id(99)));
    assert_eq!(volume.update(volume.show(7, &shadowed), None, &shadowed).unwrap(), volume);
}

#[test]
fn a_vm_can_be_put_back_as_it_is_shown() {
    let vm = vm();
    let shown = vm.show(7, &world());
    assert_eq!(shown.spec.as_ref().unwrap().user_data, "");
    let same = UpdatedVm { vm: vm.clone(), user_data: UserDataChange::Keep, templates: vec![] };
    assert_eq!(vm.updated(shown, None, &world()).unwrap(), same);
}

#[test]
fn what_decides_the_place_can_be_changed_at_any_time() {
    let vm = vm();
    let change =
        json!({"spec": {"priority": 7, "placement_groups": [], "on_node_loss": "ON_NODE_LOSS_STAY"}});
    let paths = mask(&["spec.priority", "spec.placement_groups", "spec.on_node_loss"]);
    let changed = vm.updated(parse(change), paths.as_ref(), &world()).unwrap().vm;
    assert_eq!((changed.spec.priority, changed.spec.placement_groups.len()), (7, 0));
    assert_eq!(changed.spec.on_node_loss, OnNodeLoss::Stay);
    assert_eq!(changed.spec.isolation_class, vm.spec.isolation_class);
    assert_eq!(changed.meta.generation, vm.meta.generation + 1);
    // A group that has gone since, which no path leads to but damage, does not hold up other changes.
    let gone = world().without(Kind::PlacementGroup, "pair");
    let other = vm.updated(parse(json!({"spec": {"priority": 8}})), mask(&["spec.priority"]).as_ref(), &gone);
    assert_eq!(other.unwrap().vm.spec.placement_groups, vm.spec.placement_groups);
}

#[test]
fn the_manifest_that_made_a_vm_can_be_applied_again() {
    let vm = vm();
    let manifest = json!({
        "metadata": {"name": "web", "agency": "health", "labels": {"env": "test"}},
        "spec": {
            "vcpus": 2, "memory_mib": 512, "disks": [{"create": {"image": "debian"}}, {"kind": 2}],
            "interfaces": [{"network": "office"}], "ssh_keys": [KEY],
            "placement_groups": ["pair"], "isolation_class": "health", "priority": 5,
        },
    });
    // Also when the image that it was made from has gone.
    for world in [world(), world().without(Kind::Image, "debian").without(Kind::Pool, "default")] {
        let templates = vec![RepeatedTemplate { disk: 0, volume: VolumeId(id(52)), size_mib: 0 }];
        let same = UpdatedVm { vm: vm.clone(), user_data: UserDataChange::Keep, templates };
        assert_eq!(vm.updated(parse(manifest.clone()), None, &world).unwrap(), same);
    }
}

#[test]
fn what_can_change_of_a_vm_changes() {
    let vm = vm();
    let json = json!({"metadata": {"display_name": "Web"}, "spec": {
        "run": "RUN_POLICY_ALWAYS", "delete_protection": true, "node_labels": {"gpu": "yes"}}});
    let UpdatedVm { vm: after, user_data, .. } = vm.updated(parse(json), None, &world()).unwrap();
    assert_eq!(user_data, UserDataChange::Keep);
    assert_eq!(after.meta.generation, 2);
    assert!(after.spec.delete_protection && after.spec.ssh_keys.is_empty());
    assert_eq!(after.spec.node_labels.len(), 1);
    assert_eq!(after.spec.disks, vm.spec.disks);
    let labels = mask(&["metadata.labels"]);
    let UpdatedVm { vm: after, .. } = vm.updated(v1::Vm::default(), labels.as_ref(), &world()).unwrap();
    assert_eq!(after.meta.generation, 1);
}

#[test]
fn user_data_is_kept_set_or_cleared() {
    let vm = vm();
    let data =
        |text: &str| parse::<v1::Vm>(json!({"spec": {"user_data": text, "run": "RUN_POLICY_ON_FAILURE"}}));
    let change = |text: &str, paths: Option<FieldMask>| {
        let updated = vm.updated(data(text), paths.as_ref(), &world()).unwrap();
        (updated.user_data, updated.vm.meta.generation)
    };
    let only = || mask(&["spec.user_data"]);
    let set = UserDataChange::Set(Unsealed("#!/bin/sh\n".into()));
    assert_eq!(change("#!/bin/sh\n", None), (set.clone(), 2));
    assert_eq!(change("#!/bin/sh\n", only()), (set.clone(), 2));
    assert_eq!(change("", only()), (UserDataChange::Clear, 2));
    assert_eq!(change("", mask(&["spec.run"])), (UserDataChange::Keep, 1));
    assert_eq!(format!("{set:?}"), "Set(Unsealed(10 bytes))");
}

#[test]
fn a_vm_of_a_flavor_shows_it_and_says_how_to_resize() {
    let mut vm = vm();
    vm.spec.flavor = Some(tamdao_model::FlavorId(id(21)));
    let shown = vm.show(7, &world());
    let spec = shown.spec.as_ref().unwrap();
    assert_eq!((spec.flavor.as_str(), spec.vcpus), ("small", 0));
    assert_eq!(shown.status.as_ref().unwrap().vcpus, 2);
    assert_eq!(vm.updated(shown, None, &world()).unwrap().vm, vm);
    let gone = world().without(Kind::Flavor, "small");
    assert_eq!(vm.updated(vm.show(7, &gone), None, &gone).unwrap().vm, vm);
    let same = parse(json!({"spec": {
        "vcpus": 2, "memory_mib": 512, "ssh_keys": [KEY],
        "placement_groups": ["pair"], "isolation_class": "health", "priority": 5,
    }}));
    assert_eq!(vm.updated(same, None, &world()).unwrap().vm, vm);
    for json in [json!({"spec": {"flavor": "large"}}), json!({"spec": {"vcpus": 3}})] {
        let invalid = vm.updated(parse(json), None, &world()).unwrap_err();
        assert!(invalid.to_string().ends_with("is not changed by an update; ResizeVm changes the size"));
    }
    let cleared = vm.updated(v1::Vm::default(), mask(&["spec.flavor"]).as_ref(), &world()).unwrap_err();
    assert_eq!(cleared.violations.len(), 1);
}

#[test]
fn a_repeated_template_does_not_grow_its_volume_silently() {
    let json = json!({"metadata": {"name": "web-0"}, "spec": {"size_mib": 1000}});
    let volume = Volume::create(parse(json), own(), &world()).unwrap();
    let said = |size_mib| {
        let template = RepeatedTemplate { disk: 1, volume: volume.id(), size_mib };
        check_template(&template, &volume).map(|v| v.to_string())
    };
    assert_eq!((said(0), said(1000)), (None, None));
    let expected = "vm.spec.disks[1].create.size_mib: is 2,000, the volume web-0 has 1,000; update the volume to make it larger";
    assert_eq!(said(2000).as_deref(), Some(expected));
}

#[test]
fn a_bmc_keeps_its_password_and_what_was_found_out_while_it_is_the_same() {
    let bmc = |user: &str| json!({"url": "https://a", "username": user, "unverified": true});
    let first = json!({"spec": {"bmcs": [{"url": "https://a", "username": "u", "password": "AAEC", "unverified": true}]}});
    let paths = mask(&["spec.bmcs"]);
    let mut node = node().update(parse(first), paths.as_ref(), &world()).unwrap();
    assert_eq!(node.spec.bmcs[0].password, Sealed(vec![0, 1, 2]));
    let drilled = Drilled {
        url: "https://a".into(),
        time: NOW,
        reason: GOOD.into(),
        message: "is so".into(),
        said_on: Some(NOW),
    };
    node.status.fence_drill = vec![drilled];
    node.status.conditions.set(CONDITION, ConditionStatus::True, GOOD, "is so", 2, NOW);
    let shown = node.show(7, &world());
    assert_eq!(shown.spec.as_ref().unwrap().bmcs[0].password, "");
    assert_eq!(node.update(shown, None, &world()).unwrap(), node, "it can be put back as it is shown");
    let same = node.update(parse(json!({"spec": {"bmcs": [bmc("u")]}})), paths.as_ref(), &world()).unwrap();
    assert_eq!(same, node);
    let other = node.update(parse(json!({"spec": {"bmcs": [bmc("v")]}})), paths.as_ref(), &world());
    assert!(other.unwrap_err().to_string().contains("bmcs[0].password: must be given"));
    let mut other = bmc("v");
    other["password"] = json!("AAEC");
    let other = node.update(parse(json!({"spec": {"bmcs": [other]}})), paths.as_ref(), &world()).unwrap();
    assert_eq!((other.status.fence_drill.len(), other.status.conditions.get(CONDITION)), (0, None));
}
