//! Which addresses are given out, and how the next one is found.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use tamdao_model::network::{AddressRange, NetworkSpec, Provider, Subnet};
use tamdao_model::range::{Family, candidates, default_ranges, may_give, next_free, total};

fn subnet(cidr: &str, gateway: Option<&str>) -> Subnet {
    let cidr = cidr.parse().unwrap();
    let gateway = gateway.map(|g| g.parse().unwrap());
    Subnet { cidr, gateway, ranges: default_ranges(&cidr, gateway) }
}

fn network(subnets: Vec<Subnet>) -> NetworkSpec {
    NetworkSpec {
        provider: Provider::Bridge { bridge: "br0".into() },
        subnets,
        mtu: 1500,
        dns_servers: Vec::new(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn default_ranges_leave_out_what_is_nobodys() {
    for (cidr, gateway, expected) in [
        ("10.0.0.0/24", None, "10.0.0.1-10.0.0.254"),
        ("10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2-10.0.0.254"),
        ("10.0.0.0/24", Some("10.0.0.254"), "10.0.0.1-10.0.0.253"),
        ("10.0.0.0/24", Some("10.0.0.9"), "10.0.0.1-10.0.0.8 10.0.0.10-10.0.0.254"),
        ("10.0.0.0/31", None, "10.0.0.0-10.0.0.1"),
        ("10.0.0.0/31", Some("10.0.0.0"), "10.0.0.1-10.0.0.1"),
        ("10.0.0.5/32", None, "10.0.0.5-10.0.0.5"),
        ("10.0.0.5/32", Some("10.0.0.5"), ""),
        ("10.0.0.0/30", Some("10.0.0.1"), "10.0.0.2-10.0.0.2"),
        ("fd00::/64", Some("fd00::1"), "fd00::2-fd00::ffff:ffff:ffff:ffff"),
        ("fd00::/127", None, "fd00::-fd00::1"),
        ("fd00::/128", None, "fd00::-fd00::"),
        ("255.255.255.254/31", Some("255.255.255.255"), "255.255.255.254-255.255.255.254"),
    ] {
        let subnet = subnet(cidr, gateway);
        let shown: Vec<_> = subnet.ranges.iter().map(|r| format!("{}-{}", r.first, r.last)).collect();
        assert_eq!(shown.join(" "), expected, "{cidr} {gateway:?}");
        let all: u128 = subnet.ranges.iter().map(|_| 0).sum::<u128>() + total(&network(vec![subnet.clone()]));
        if all < 1_000 {
            assert_eq!(
                all,
                candidates(&network(vec![subnet]), Family::of(ip(cidr.split('/').next().unwrap()))).count()
                    as u128
            );
        }
    }
}

#[test]
fn edges_in_explicit_ranges_are_not_given_out() {
    let mut subnet = subnet("10.0.0.0/29", Some("10.0.0.3"));
    subnet.ranges = vec![AddressRange { first: ip("10.0.0.0"), last: ip("10.0.0.7") }];
    let network = network(vec![subnet.clone()]);
    let given: Vec<_> = candidates(&network, Family::V4).map(|a| a.to_string()).collect();
    assert_eq!(given, ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(total(&network), 5);
    assert_eq!(candidates(&network, Family::V6).count(), 0);
    assert!(!may_give(&subnet, ip("10.0.0.0")) && !may_give(&subnet, ip("10.0.0.3")));
    assert!(!may_give(&subnet, ip("fd00::1")) && may_give(&subnet, ip("10.0.0.6")));
}

#[test]
fn the_next_one_starts_at_the_hint_and_comes_round() {
    let subnet = subnet("10.0.0.0/29", Some("10.0.0.1"));
    let from = |hint: &str, used: &[&str]| {
        next_free(&subnet, |a| used.contains(&a.to_string().as_str()), Some(ip(hint))).map(|a| a.to_string())
    };
    assert_eq!(from("10.0.0.4", &[]).as_deref(), Some("10.0.0.4"));
    assert_eq!(from("10.0.0.4", &["10.0.0.4"]).as_deref(), Some("10.0.0.5"));
    assert_eq!(from("10.0.0.6", &["10.0.0.6"]).as_deref(), Some("10.0.0.2"));
    assert_eq!(from("192.168.0.1", &[]).as_deref(), Some("10.0.0.2"), "a hint above all ranges");
    assert_eq!(from("fd00::1", &[]).as_deref(), Some("10.0.0.2"), "a hint of the other family");
    assert_eq!(from("10.0.0.2", &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]), None);
}

#[test]
fn a_large_range_is_not_walked() {
    let subnet = subnet("fd00::/8", None);
    let hint = ip("fd12:3456::1");
    assert_eq!(next_free(&subnet, |a| a == hint, Some(hint)), Some(ip("fd12:3456::2")));
    assert_eq!(total(&network(vec![subnet])), (1 << 120) - 1);
}

proptest! {
    #[test]
    fn next_free_is_free_and_in_range(
        prefix in 24u8..=32,
        gateway in proptest::option::of(0u32..256),
        parts in proptest::collection::vec((0u32..256, 0u32..256), 0..4),
        used in proptest::collection::btree_set(0u32..256, 0..256),
        hint in proptest::option::of(0u32..300),
    ) {
        let at = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
        let cidr: ipnet::IpNet = format!("10.0.0.0/{prefix}").parse().unwrap();
        let gateway = gateway.map(at).filter(|g| cidr.contains(g));
        let mut ranges: Vec<_> = parts
            .iter()
            .map(|(a, b)| AddressRange { first: at(*a.min(b)), last: at(*a.max(b)) })
            .filter(|r| cidr.contains(&r.first) && cidr.contains(&r.last))
            .collect();
        if ranges.is_empty() {
            ranges = default_ranges(&cidr, gateway);
        }
        let subnet = Subnet { cidr, gateway, ranges };
        let used: BTreeSet<_> = used.into_iter().map(at).collect();
        let found = next_free(&subnet, |a| used.contains(&a), hint.map(at));
        let free: BTreeSet<_> = (0..256).map(at).filter(|a| may_give(&subnet, *a) && !used.contains(a)).collect();
        match found {
            Some(address) => prop_assert!(free.contains(&address)),
            None => prop_assert!(free.is_empty()),
        }
    }
}
