//! What users are told of requests that cannot be taken.

use insta::assert_snapshot;
use serde_json::{Value, json};
use tamdao_model::agency::Agency;
use tamdao_model::cluster::JoinKind;
use tamdao_model::convert::{Public, Twin, cluster as cluster_requests};
use tamdao_model::flavor::Flavor;
use tamdao_model::image::Image;
use tamdao_model::network::Network;
use tamdao_model::node::Node;
use tamdao_model::placement_group::PlacementGroup;
use tamdao_model::pool::Pool;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_model::volume::Volume;
use tamdao_model::{ClusterId, TimeMs};
use tamdao_proto::v1;

use crate::updates::node;
use crate::world::{cluster, own, parse, table, world};

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

#[test]
fn metadata() {
    let labelled = |labels: Value| json!({"metadata": {"name": "a", "labels": labels}});
    let many: serde_json::Map<String, Value> = (0..33).map(|i| (format!("k{i}"), json!("v"))).collect();
    let rows = [
        (
            "good",
            json!({"metadata": {"name": "a", "display_name": "Sở Y tế – 🏥", "labels": {"a/b.c": "é è"}}}),
        ),
        ("no metadata", json!({})),
        ("upper case", named("Web Server")),
        ("slash", named("a/b")),
        ("too long", named(&"a".repeat(64))),
        ("uuid", named("a0000000-0000-0000-0000-000000000001")),
        ("hyphen", named("web-")),
        ("control", json!({"metadata": {"name": "a", "display_name": "a\u{1b}[2J"}})),
        ("long display", json!({"metadata": {"name": "a", "display_name": "ế".repeat(201)}})),
        ("empty key", labelled(json!({"": "v"}))),
        ("bad key", labelled(json!({"a b": "v", "-a": "v"}))),
        ("long key", labelled(json!({"k".repeat(64): "v"}))),
        ("bad value", labelled(json!({"a": "x,y", "b": " x", "c": "=x", "d": "x\ny", "e": "v".repeat(64)}))),
        ("many labels", labelled(Value::Object(many))),
        ("agency on cluster", json!({"metadata": {"name": "a", "agency": "health"}})),
        ("description", json!({"metadata": {"name": "a"}, "spec": {"description": "x".repeat(1001)}})),
        ("broken lines", json!({"metadata": {"name": "a"}, "spec": {"description": "a\nb"}})),
        ("contact", json!({"metadata": {"name": "a"}, "spec": {"contact": "x".repeat(201)}})),
    ];
    assert_snapshot!(table(rows, |p: v1::Agency| Agency::create(p, cluster(), &world())));
}

#[test]
fn flavor() {
    let spec = |vcpus: u32, memory: u32| json!({"metadata": {"name": "f"}, "spec": {"vcpus": vcpus, "memory_mib": memory}});
    let rows = [
        ("good", spec(1, 64)),
        ("nothing", json!({"metadata": {"name": "f"}})),
        ("much", spec(257, 4_194_305)),
    ];
    assert_snapshot!(table(rows, |p: v1::Flavor| Flavor::create(p, cluster(), &world())));
}

#[test]
fn image() {
    let spec = |spec: Value| json!({"metadata": {"name": "i"}, "spec": spec});
    let rows = [
        ("good", spec(json!({"url": "https://example.org/a.qcow2?x=1", "sha256": "AB".repeat(32)}))),
        ("nothing is an upload", spec(json!({}))),
        ("kind", spec(json!({"kind": 9}))),
        ("ftp", spec(json!({"url": "ftp://example.org/a"}))),
        ("file", spec(json!({"url": "file:///etc/shadow"}))),
        ("password", spec(json!({"url": "https://me:hunter2@example.org/a"}))),
        ("no host", spec(json!({"url": "https:///a"}))),
        ("not a url", spec(json!({"url": "https://exa mple.org"}))),
        ("long url", spec(json!({"url": format!("https://example.org/{}", "a".repeat(2048))}))),
        ("digest", spec(json!({"sha256": "abc"}))),
        ("digest not hex", spec(json!({"sha256": "g".repeat(64)}))),
        ("memory", spec(json!({"min_memory_mib": 63}))),
    ];
    assert_snapshot!(table(rows, |p: v1::Image| Image::create(p, own(), &world())));
}

#[test]
fn pool() {
    let spec = |more: Value| {
        let mut spec = json!({"kind": "POOL_KIND_DIR", "path": "/var/lib/tamdao"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"metadata": {"name": "p"}, "spec": spec})
    };
    let rows = [
        ("good", spec(json!({"nodes": ["n1", "00000000-0000-0000-0000-000000000002"]}))),
        ("nothing", json!({"metadata": {"name": "p"}})),
        ("kind", spec(json!({"kind": 7}))),
        ("relative", spec(json!({"path": "var/lib"}))),
        ("root", spec(json!({"path": "/"}))),
        ("dots", spec(json!({"path": "/var/../etc"}))),
        ("dot", spec(json!({"path": "/var/./etc"}))),
        ("double slash", spec(json!({"path": "/var//lib"}))),
        ("trailing slash", spec(json!({"path": "/var/lib/"}))),
        ("newline", spec(json!({"path": "/var/\n"}))),
        ("long", spec(json!({"path": format!("/{}", "a".repeat(1024))}))),
        ("unknown node", spec(json!({"nodes": ["n1", "n9", "", "00000000-0000-0000-0000-000000000009"]}))),
        ("overcommit", spec(json!({"overcommit_percent": 99}))),
        ("overcommit much", spec(json!({"overcommit_percent": 1001}))),
    ];
    assert_snapshot!(table(rows, |p: v1::Pool| Pool::create(p, cluster(), &world())));
}

#[test]
fn volume() {
    let spec = |spec: Value| json!({"metadata": {"name": "v"}, "spec": spec});
    let rows = [
        ("good", spec(json!({"pool": "fast", "size_mib": 1}))),
        ("default pool, image's size", spec(json!({"image": "debian"}))),
        ("no size", spec(json!({}))),
        ("too large", spec(json!({"size_mib": 67_108_865, "image": "debian"}))),
        ("unknown", spec(json!({"pool": "slow", "image": "windows", "size_mib": 1}))),
        ("other agency", json!({"metadata": {"name": "v", "agency": "roads"}, "spec": {"size_mib": 1}})),
        ("unknown agency", json!({"metadata": {"name": "v", "agency": "rails"}, "spec": {"size_mib": 1}})),
        ("same agency", json!({"metadata": {"name": "v", "agency": "health"}, "spec": {"size_mib": 1}})),
    ];
    assert_snapshot!(table(rows, |p: v1::Volume| Volume::create(p, own(), &world())));
    let bare = world().without(tamdao_model::Kind::Pool, "default");
    let rows = [("no default pool", spec(json!({"size_mib": 1})))];
    assert_snapshot!("volume_elsewhere", table(rows, |p: v1::Volume| Volume::create(p, cluster(), &bare)));
}

#[test]
fn network() {
    let spec = |spec: Value| json!({"metadata": {"name": "n"}, "spec": spec});
    let with = |subnets: Value| spec(json!({"bridge": {"bridge": "br0"}, "subnets": subnets}));
    let ranged = |cidr: &str, gateway: &str, ranges: Value| {
        with(json!([{"cidr": cidr, "gateway": gateway, "ranges": ranges}]))
    };
    let v4 = |ranges: Value| ranged("10.0.0.0/24", "10.0.0.1", ranges);
    let rows = [
        ("good", v4(json!([{"first": "10.0.0.10", "last": "10.0.0.20"}]))),
        (
            "both families",
            with(json!([{"cidr": "10.0.0.0/24"}, {"cidr": "fd00::/64", "gateway": "fd00::1"}])),
        ),
        ("no subnets", spec(json!({"vlan": {"bridge": "br-lan.7", "tag": 4094}}))),
        ("nothing", json!({"metadata": {"name": "n"}})),
        ("no device", spec(json!({"bridge": {}}))),
        ("device", spec(json!({"bridge": {"bridge": "br/0"}}))),
        ("dots", spec(json!({"bridge": {"bridge": ".."}}))),
        ("long device", spec(json!({"vlan": {"bridge": "b".repeat(16), "tag": 0}}))),
        ("tag", spec(json!({"vlan": {"bridge": "br0", "tag": 4095}}))),
        ("mtu", spec(json!({"bridge": {"bridge": "br0"}, "mtu": 68}))),
        (
            "dns",
            spec(json!({"bridge": {"bridge": "br0"}, "dns_servers": ["10.0.0.1/8", "127.0.0.1", "ff02::1"]})),
        ),
        (
            "many dns",
            spec(
                json!({"bridge": {"bridge": "br0"}, "dns_servers": ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.1"]}),
            ),
        ),
        ("three subnets", with(json!([{}, {}, {}]))),
        ("two of a family", with(json!([{"cidr": "10.0.0.0/24"}, {"cidr": "10.0.1.0/24"}]))),
        ("not a prefix", with(json!([{"cidr": "10.0.0.0"}, {"cidr": "net"}]))),
        ("host bits", with(json!([{"cidr": "10.0.0.7/24"}]))),
        ("all", with(json!([{"cidr": "0.0.0.0/0"}]))),
        ("multicast", with(json!([{"cidr": "224.0.0.0/24"}, {"cidr": "::1/128"}]))),
        ("gateway outside", ranged("10.0.0.0/24", "10.0.1.1", json!([]))),
        ("gateway of the other family", ranged("10.0.0.0/24", "fd00::1", json!([]))),
        ("gateway is the network", ranged("10.0.0.0/24", "10.0.0.0", json!([]))),
        ("range outside", v4(json!([{"first": "10.0.0.10", "last": "10.0.1.20"}]))),
        ("range of the other family", v4(json!([{"first": "10.0.0.10", "last": "fd00::1"}]))),
        ("range not given", v4(json!([{}]))),
        ("range backwards", v4(json!([{"first": "10.0.0.20", "last": "10.0.0.10"}]))),
        (
            "overlap",
            v4(
                json!([{"first": "10.0.0.10", "last": "10.0.0.20"}, {"first": "10.0.0.20", "last": "10.0.0.30"}]),
            ),
        ),
        ("only the gateway", v4(json!([{"first": "10.0.0.1", "last": "10.0.0.1"}]))),
        ("only the broadcast address", v4(json!([{"first": "10.0.0.255", "last": "10.0.0.255"}]))),
        ("gateway takes all", ranged("10.0.0.5/32", "10.0.0.5", json!([]))),
    ];
    assert_snapshot!(table(rows, |p: v1::Network| Network::create(p, cluster(), &world())));
}

#[test]
fn node_updates() {
    let spec = |spec: Value| json!({"spec": spec});
    let domains = |domains: Value| spec(json!({"failure_domains": domains}));
    let many: serde_json::Map<String, Value> =
        (0..17).map(|i| (format!("k{i}"), json!({"values": ["v"]}))).collect();
    let values: Vec<_> = (0..17).map(|i| i.to_string()).collect();
    let rows = [
        ("good", domains(json!({"rack": {"values": ["r2"]}, "feed": {"values": ["A", "B"]}}))),
        ("no value", domains(json!({"rack": {}, "feed": {"values": [""]}}))),
        ("bad key", domains(json!({"ra=ck": {"values": ["r2"]}}))),
        ("bad value", domains(json!({"rack": {"values": ["a,b"]}}))),
        ("many keys", domains(Value::Object(many))),
        ("many values", domains(json!({"rack": {"values": values}}))),
        ("overcommit", spec(json!({"cpu_overcommit_percent": 99, "memory_overcommit_percent": 301}))),
        ("reserve", spec(json!({"reserve_memory_mib": 8192}))),
        ("date", spec(json!({"support_ends": "2031-02-29"}))),
        ("not a date", spec(json!({"support_ends": "30.6.2031"}))),
        ("rename", json!({"metadata": {"name": "n2", "id": "00000000-0000-0000-0000-000000000002"}})),
        ("repeats itself", json!({"metadata": {"name": "n1", "id": "00000000-0000-0000-0000-000000000001"}})),
    ];
    assert_snapshot!(table(rows, |p: v1::Node| node().update(p, None, &world())));
    let bmc = |bmc: Value| {
        let mut whole =
            json!({"url": "https://10.0.9.11", "username": "u", "password": "AAAA", "unverified": true});
        whole.as_object_mut().unwrap().extend(bmc.as_object().unwrap().clone());
        spec(json!({"bmcs": [whole]}))
    };
    let ca = "-----BEGIN CERTIFICATE-----";
    let rows = [
        ("good", bmc(json!({}))),
        ("CA", bmc(json!({"unverified": false, "ca_certificates": ca}))),
        ("fingerprint", bmc(json!({"unverified": false, "fingerprint": "AA:".repeat(31) + "AA"}))),
        ("no trust", bmc(json!({"unverified": false}))),
        ("two trusts", bmc(json!({"ca_certificates": ca}))),
        ("no CA", bmc(json!({"unverified": false, "ca_certificates": "CA"}))),
        ("long CA", bmc(json!({"unverified": false, "ca_certificates": ca.repeat(2000)}))),
        ("no fingerprint", bmc(json!({"unverified": false, "fingerprint": "AA"}))),
        ("plain", bmc(json!({"url": "http://10.0.9.11", "unverified": false, "ca_certificates": ca}))),
        ("no url", bmc(json!({"url": "10.0.9.11"}))),
        ("password in the url", bmc(json!({"url": "https://u:secret@10.0.9.11"}))),
        ("query", bmc(json!({"url": "https://10.0.9.11/?a=b"}))),
        ("no user", bmc(json!({"username": ""}))),
        ("colon", bmc(json!({"username": "a:b"}))),
        ("no password", bmc(json!({"password": ""}))),
        ("unsealed", bmc(json!({"password": "a word"}))),
        ("many", spec(json!({"bmcs": [{}, {}, {}, {}, {}]}))),
        (
            "twice",
            spec(json!({"bmcs": [
            {"url": "https://a", "username": "u", "password": "AAAA", "unverified": true},
            {"url": "https://a", "username": "v", "password": "AAAA", "unverified": true}]})),
        ),
    ];
    assert_snapshot!("node_bmcs", table(rows, |p: v1::Node| node().update(p, None, &world())));
    let create = [("create", json!({"metadata": {"name": "n3"}}))];
    assert_snapshot!("node_create", table(create, |p: v1::Node| Node::create(p, cluster(), &world())));
}

#[test]
fn placement_groups() {
    let rules = |rules: Value| json!({"metadata": {"name": "pair"}, "spec": {"rules": rules}});
    let many: Vec<_> = (0..9).map(|_| json!({"kind": 1})).collect();
    let rows = [
        ("good", rules(json!([{"kind": 1}, {"kind": 2, "by": "rack", "preferred": true}]))),
        ("none", named("pair")),
        ("kind", rules(json!([{}, {"kind": 9}]))),
        ("by", rules(json!([{"kind": 1, "by": "a b"}]))),
        ("at most", rules(json!([{"kind": 1, "at_most": 1001}, {"kind": 2, "at_most": 1}]))),
        ("many", rules(json!(many))),
    ];
    let read = |p: v1::PlacementGroup| PlacementGroup::create(p, own(), &world());
    assert_snapshot!(table(rows, read));
    let of_cluster =
        PlacementGroup::create(parse(named("pair")), cluster(), &world()).unwrap_err().to_string();
    assert_eq!(
        of_cluster,
        "placement_group.metadata.agency: must be given: a placement group belongs to an agency"
    );
}

#[test]
fn scheduling_policies() {
    let many: serde_json::Map<String, Value> = (0..33).map(|i| (format!("p{i}"), json!(1))).collect();
    let policy = SchedulingPolicy::of(ClusterId(crate::world::id(9)), TimeMs(1));
    let rows = [
        ("good", json!({"spec": {"weights": {"tight": 0}, "guarded_failure_domains": ["node", "rack"]}})),
        ("weight", json!({"spec": {"weights": {"tight": 1001}}})),
        ("many weights", json!({"spec": {"weights": many}})),
        ("guarded", json!({"spec": {"guarded_failure_domains": ["", "rack", "rack"]}})),
        ("CPU model", json!({"spec": {"cpu_model": "Skylake-Client,-hle,-rtm"}})),
        ("no CPU model", json!({"spec": {"cpu_model": "Skylake,hle"}})),
        ("another name", json!({"metadata": {"name": "other"}})),
    ];
    let read = |p: v1::SchedulingPolicy| policy.updated(p, None, &world());
    assert_snapshot!(table(rows, read));
    let changed = policy.updated(parse(json!({"spec": {"weights": {"tight": 3}}})), None, &world()).unwrap();
    assert_eq!((changed.meta.generation, changed.spec.weights["tight"]), (2, 3));
    let cleared = changed.updated(parse(json!({"spec": {}})), None, &world()).unwrap();
    assert_eq!(cleared.spec, policy.spec, "a whole spec replaces the present one");
}

#[test]
fn join_tokens() {
    let rows = [
        ("good", json!({"kind": "JOIN_TOKEN_KIND_NODE"})),
        ("all wrong", json!({"kind": 3, "ttl_s": 604_801, "uses": 1001, "name": "N 1"})),
    ];
    let read = |p: v1::CreateJoinTokenRequest| cluster_requests::read_join_token(&p);
    assert_snapshot!(table(rows, read));
    let request = parse(json!({"kind": "JOIN_TOKEN_KIND_CONTROLLER"}));
    let token = cluster_requests::read_join_token(&request).unwrap();
    assert_eq!((token.kind, token.ttl_ms, token.uses), (JoinKind::Controller, 3_600_000, 1));
}

#[test]
fn enums_have_the_same_numbers_both_ways() {
    for (kind, _) in JoinKind::words() {
        assert_eq!(JoinKind::from_number(kind.number()), Some(kind));
    }
    assert_eq!(JoinKind::from_number(0), None);
}

#[test]
fn what_is_listed_has_an_end() {
    let keys: Vec<String> = (0..100).map(|_| "n9".to_owned()).collect();
    let pool = json!({"metadata": {"name": "p"}, "spec": {"kind": 1, "path": "/p", "nodes": keys}});
    let invalid = Pool::create(parse(pool), cluster(), &world()).unwrap_err();
    assert_eq!(invalid.violations.len(), 51);
    assert_eq!(invalid.violations[50].to_string(), "pool: and 50 more");
}
