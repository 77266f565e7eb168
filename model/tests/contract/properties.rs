//! Whatever was created can be shown, put back as it was shown, and is the same.

use std::fmt::Debug;

use proptest::prelude::*;
use serde_json::{Value, json};
use tamdao_model::agency::Agency;
use tamdao_model::convert::{New, Public};
use tamdao_model::flavor::Flavor;
use tamdao_model::image::Image;
use tamdao_model::network::Network;
use tamdao_model::pool::Pool;
use tamdao_model::volume::Volume;

use crate::world::{cluster, own, parse, world};

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
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn agencies(m in metadata(), description in "[a-z\n]{0,20}", contact in "[a-z@]{0,9}") {
        stable::<Agency>(with(m, json!({"description": description, "contact": contact})), cluster())?;
    }

    #[test]
    fn flavors(m in metadata(), vcpus in 0u32..300, memory in 0u32..5_000_000) {
        stable::<Flavor>(with(m, json!({"vcpus": vcpus, "memory_mib": memory})), cluster())?;
    }

    #[test]
    fn images(m in metadata(), kind in 0..5, url in "(https://[a-z]{1,5}/[a-z]{0,5})?", digest in "([0-9A-F]{64})?", memory in 0u32..100) {
        let spec = json!({"kind": kind, "url": url, "sha256": digest, "min_memory_mib": memory});
        stable::<Image>(with(m, spec), own())?;
    }

    #[test]
    fn pools(m in metadata(), shared: bool, path in "(/[a-z]{1,3}){1,3}", nodes in proptest::sample::subsequence(vec!["n1", "n2"], 0..=2), overcommit in prop_oneof![Just(0u32), 99u32..1001], reserve: u32) {
        let spec = json!({"kind": 1, "shared": shared, "path": path, "nodes": nodes, "overcommit_percent": overcommit, "reserve_mib": reserve});
        stable::<Pool>(with(m, spec), cluster())?;
    }

    #[test]
    fn volumes(m in metadata(), pool in "(default|fast)?", size in prop_oneof![Just(0u32), 1u32..70_000_000], image in "(debian|setup)?", keep: bool) {
        let spec = json!({"pool": pool, "size_mib": size, "image": image, "keep_on_delete": keep});
        stable::<Volume>(with(m, spec), own())?;
    }

    #[test]
    fn networks(m in metadata(), v4 in proptest::option::of(subnet_v4()), v6 in proptest::option::of(subnet_v6()), tag in proptest::option::of(0u32..5000), mtu in prop_oneof![Just(0u32), 500u32..9300], dns in proptest::collection::vec("10\\.0\\.0\\.[1-9]", 0..5)) {
        let subnets: Vec<_> = v4.into_iter().chain(v6).collect();
        let mut spec = json!({"subnets": subnets, "mtu": mtu, "dns_servers": dns});
        match tag {
            Some(tag) => spec["vlan"] = json!({"bridge": "br0", "tag": tag}),
            None => spec["bridge"] = json!({"bridge": "br0"}),
        }
        stable::<Network>(with(m, spec), cluster())?;
    }

    #[test]
    fn nothing_panics(name in ".{0,70}", path in ".{0,30}", cidr in "[0-9a-f:./]{0,20}", mac in ".{0,18}", key in ".{0,60}", url in ".{0,30}", date in ".{0,10}") {
        let m = json!({"name": name, "display_name": path, "labels": {name.clone(): path.clone()}});
        let subnets = json!([{"cidr": cidr, "gateway": cidr, "ranges": [{"first": cidr, "last": mac}]}]);
        stable::<Network>(with(m.clone(), json!({"bridge": {"bridge": path}, "subnets": subnets})), cluster())?;
        stable::<Pool>(with(m.clone(), json!({"kind": 1, "path": path})), cluster())?;
        stable::<Image>(with(m.clone(), json!({"url": url, "sha256": key})), own())?;
        let spec = json!({"ssh_keys": [key], "user_data": key, "interfaces": [{"mac": mac, "addresses": [cidr]}]});
        let _ = tamdao_model::convert::vm::read(parse(with(m, spec)), crate::world::AGENCY, &world());
        let _ = crate::updates::node().update(parse(json!({"spec": {"support_ends": date}})), None, &world());
    }
}
