//! Whatever was created can be shown, put back as it was shown, and is the same.

use std::fmt::Debug;

use proptest::prelude::*;
use serde_json::{Value, json};
use tamdao_model::VolumeId;
use tamdao_model::agency::Agency;
use tamdao_model::convert::{New, Public, Shown, UserDataChange, vm};
use tamdao_model::flavor::Flavor;
use tamdao_model::image::Image;
use tamdao_model::network::Network;
use tamdao_model::pool::Pool;
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{Disk, DiskSource, Interface};
use tamdao_model::volume::Volume;

use crate::world::{AGENCY, NOW, cluster, id, own, parse, world};

/// A quarter of the usual cases, however many these are. Much of what is made up cannot be created.
fn quarter() -> ProptestConfig {
    let cases = ProptestConfig::default().cases.div_ceil(4);
    ProptestConfig { cases, max_global_rejects: cases * 20 + 1_024, ..ProptestConfig::default() }
}

/// As [`stable`]; what cannot be created is not counted as a case, so that enough are.
fn always_stable<R: Public>(json: Value, new: New) -> Result<(), TestCaseError>
where
    R::Proto: Debug,
{
    prop_assume!(R::create(parse(json.clone()), new, &world()).is_ok());
    stable::<R>(json, new)
}

/// Creates, shows, and puts back both with and without a mask; also through both forms on the wire.
fn stable<R: Public>(json: Value, new: New) -> Result<(), TestCaseError>
where
    R::Proto: Debug,
{
    let world = world();
    let Ok(made) = R::create(parse(json), new, &world) else { return Ok(()) };
    let shown = made.show(9, &world);
    let whole = made.update(shown.clone(), None, &world);
    prop_assert_eq!(whole.as_ref(), Ok(&made));
    let paths = ["spec", "metadata.labels", "metadata.display_name"].map(str::to_owned).to_vec();
    let mask = pbjson_types::FieldMask { paths };
    let masked = made.update(shown.clone(), Some(&mask), &world);
    prop_assert_eq!(masked.as_ref(), Ok(&made));
    let text = serde_json::to_value(&shown).unwrap();
    prop_assert_eq!(serde_json::from_value::<R::Proto>(text).unwrap(), shown);
    let stored: R = serde_json::from_str(&serde_json::to_string(&made).unwrap()).unwrap();
    prop_assert_eq!(stored.key(), made.key());
    prop_assert_eq!(stored, made);
    Ok(())
}

fn metadata() -> impl Strategy<Value = Value> {
    let labels = proptest::collection::btree_map("[a-z][a-z0-9./_-]{0,6}[a-z]", "[a-zé]{0,5}", 0..4);
    ("[a-z][a-z0-9-]{0,8}[a-z0-9]", "[A-Za-zế ]{0,12}", labels)
        .prop_map(|(name, display, labels)| json!({"name": name, "display_name": display, "labels": labels}))
}

fn with(metadata: Value, spec: Value) -> Value {
    json!({"metadata": metadata, "spec": spec})
}

prop_compose! {
    fn subnet_v4()(base in 1u8..200, prefix in 20u8..=31, gateway in proptest::option::of(0u8..16), ranges in proptest::collection::vec((0u8..16, 0u8..16), 0..3)) -> Value {
        let at = |n: u8| format!("10.{base}.0.{n}");
        let ranges: Vec<_> = ranges.iter().map(|(a, b)| json!({"first": at(*a.min(b)), "last": at(*a.max(b))})).collect();
        json!({"cidr": format!("10.{base}.0.0/{prefix}"), "gateway": gateway.map(at).unwrap_or_default(), "ranges": ranges})
    }
}

prop_compose! {
    fn subnet_v6()(prefix in 16u8..=128, gateway in proptest::option::of(0u16..8)) -> Value {
        let gateway = gateway.map(|n| format!("fd00::{n:x}")).unwrap_or_default();
        json!({"cidr": format!("fd00::/{prefix}"), "gateway": gateway})
    }
}

proptest! {
    #![proptest_config(quarter())]

    #[test]
    fn agencies(m in metadata(), description in "[a-z\n]{0,20}", contact in "[a-z@]{0,9}") {
        always_stable::<Agency>(with(m, json!({"description": description, "contact": contact})), cluster())?;
    }

    #[test]
    fn flavors(m in metadata(), vcpus in 0u32..300, memory in 0u32..5_000_000) {
        always_stable::<Flavor>(with(m, json!({"vcpus": vcpus, "memory_mib": memory})), cluster())?;
    }

    #[test]
    fn images(m in metadata(), kind in 0..5, url in "(https://[a-z]{1,5}/[a-z]{0,5})?", digest in "([0-9A-F]{64})?", memory in 0u32..100) {
        let spec = json!({"kind": kind, "url": url, "sha256": digest, "min_memory_mib": memory});
        always_stable::<Image>(with(m, spec), own())?;
    }

    #[test]
    fn pools(m in metadata(), shared: bool, path in "(/[a-z]{1,3}){1,3}", nodes in proptest::sample::subsequence(vec!["n1", "n2"], 0..=2), overcommit in prop_oneof![Just(0u32), 99u32..1001], reserve: u32) {
        let spec = json!({"kind": 1, "shared": shared, "path": path, "nodes": nodes, "overcommit_percent": overcommit, "reserve_mib": reserve});
        always_stable::<Pool>(with(m, spec), cluster())?;
    }

    #[test]
    fn volumes(m in metadata(), pool in "(default|fast)?", size in prop_oneof![Just(0u32), 1u32..70_000_000], image in "(debian|setup)?", keep: bool) {
        let spec = json!({"pool": pool, "size_mib": size, "image": image, "keep_on_delete": keep});
        always_stable::<Volume>(with(m, spec), own())?;
    }

    #[test]
    fn networks(m in metadata(), v4 in proptest::option::of(subnet_v4()), v6 in proptest::option::of(subnet_v6()), tag in proptest::option::of(0u32..5000), mtu in prop_oneof![Just(0u32), 500u32..9300], dns in proptest::collection::vec("10\\.0\\.0\\.[1-9]", 0..5)) {
        let subnets: Vec<_> = v4.into_iter().chain(v6).collect();
        let mut spec = json!({"subnets": subnets, "mtu": mtu, "dns_servers": dns});
        match tag {
            Some(tag) => spec["vlan"] = json!({"bridge": "br0", "tag": tag}),
            None => spec["bridge"] = json!({"bridge": "br0"}),
        }
        always_stable::<Network>(with(m, spec), cluster())?;
    }

    #[test]
    fn vms(
        m in metadata(),
        size in prop_oneof![Just(("small", 0u32, 0u32)), (1u32..257, 64u32..5000).prop_map(|(c, m)| ("", c, m))],
        disks in proptest::sample::subsequence(vec![
            json!({"create": {"image": "debian"}}),
            json!({"volume": "data", "boot_order": 2}),
            json!({"iso": "setup", "kind": 2, "boot_order": 1}),
            json!({"kind": 2}),
        ], 0..=4),
        interfaces in proptest::sample::subsequence(vec![
            json!({"network": "office", "mac": "52:54:00:00:00:0A"}),
            json!({"network": "lab", "addresses": ["fd00::7", "10.0.0.7"]}),
        ], 0..=2),
        enums in (0..3, 0..3, 0..3, 0..4),
        flags: (bool, bool),
        boot in proptest::option::of("(initrd)?"),
        texts in ("(web-1)?", "(n2)?", "(#!x)?"),
    ) {
        let (flavor, vcpus, memory) = size;
        let (hostname, node, data) = texts;
        let boot = boot.map(|initrd| json!({"kernel": "kernel", "initrd": initrd}));
        let mut spec = json!({
            "flavor": flavor, "vcpus": vcpus, "memory_mib": memory, "disks": disks, "interfaces": interfaces,
            "firmware": enums.0, "os_type": enums.1, "graphics": enums.2, "run": enums.3,
            "secure_boot": flags.0 && enums.0 == 2, "tpm": flags.1, "delete_protection": flags.1,
            "hostname": hostname, "node": node, "user_data": data, "node_labels": {"a": "b"},
        });
        if let Some(boot) = boot {
            spec["direct_boot"] = boot;
        }
        let manifest = parse::<tamdao_proto::v1::Vm>(with(m, spec));
        let request = vm::read(manifest.clone(), AGENCY, &world()).unwrap();
        let made = make(&request);
        let vm = request.into_vm(id(61), AGENCY, NOW, made);
        let shown = vm.show(9, &world());
        let text = serde_json::to_value(&shown).unwrap();
        prop_assert_eq!(&serde_json::from_value::<tamdao_proto::v1::Vm>(text).unwrap(), &shown);
        let back = vm.updated(shown, None, &world()).unwrap();
        prop_assert_eq!((&back.vm, &back.user_data), (&vm, &UserDataChange::Keep));
        // The manifest too: user data counts as changed, for it cannot be compared with what is sealed.
        let again = vm.updated(manifest, None, &world()).unwrap();
        let raised = u64::from(again.user_data != UserDataChange::Keep);
        prop_assert_eq!(again.vm.meta.generation, 1 + raised);
        prop_assert_eq!(again.keep_user_data(&vm).vm, vm);
    }

    #[test]
    fn nothing_panics(name in ".{0,70}", path in ".{0,30}", cidr in "[0-9a-f:./]{0,20}", mac in ".{0,18}", key in ".{0,60}", url in ".{0,30}", date in ".{0,10}") {
        let m = json!({"name": name, "display_name": path, "labels": {name.clone(): path.clone()}});
        let subnets = json!([{"cidr": cidr, "gateway": cidr, "ranges": [{"first": cidr, "last": mac}]}]);
        stable::<Network>(with(m.clone(), json!({"bridge": {"bridge": path}, "subnets": subnets})), cluster())?;
        stable::<Pool>(with(m.clone(), json!({"kind": 1, "path": path})), cluster())?;
        stable::<Image>(with(m.clone(), json!({"url": url, "sha256": key})), own())?;
        let spec = json!({"ssh_keys": [key], "user_data": key, "interfaces": [{"mac": mac, "addresses": [cidr]}]});
        let _ = tamdao_model::convert::vm::read(parse(with(m, spec)), AGENCY, &world());
        let _ = crate::updates::node().update(parse(json!({"spec": {"support_ends": date}})), None, &world());
    }
}

/// What a transaction would make for a request.
fn make(request: &vm::VmRequest) -> vm::Made {
    let disk = |wanted: &vm::WantedDisk| Disk {
        source: match wanted.source {
            vm::DiskRequest::Volume(volume) => DiskSource::Volume { volume, created: false },
            vm::DiskRequest::Create { .. } => DiskSource::Volume { volume: VolumeId(id(52)), created: true },
            vm::DiskRequest::Iso(image) => DiskSource::Iso { image },
            vm::DiskRequest::Empty => DiskSource::Empty,
        },
        kind: wanted.kind,
        boot_order: wanted.boot_order,
    };
    let interface = |wanted: &vm::InterfaceRequest| Interface {
        network: wanted.network,
        mac: wanted.mac.clone().unwrap_or_else(|| "52:54:00:00:00:07".into()),
        addresses: wanted.wanted.iter().map(|a| (*a).into()).collect(),
        wanted: wanted.wanted.clone(),
    };
    vm::Made {
        flavor_class: None,
        vcpus: request.vcpus.max(1),
        memory_mib: request.memory_mib.max(64),
        disks: request.disks.iter().map(disk).collect(),
        interfaces: request.interfaces.iter().map(interface).collect(),
        user_data: request.user_data.as_ref().map(|_| Sealed(vec![1])),
    }
}
