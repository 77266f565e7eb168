//! The addresses of a subnet that may be given to guests. The gateway, and the addresses that mean the network
//! itself, are never among them, whatever the ranges say. A range of IPv6 is larger than can be walked, so nothing
//! here takes longer than there are addresses in use. Who holds which address is not known here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::network::{AddressRange, NetworkSpec, Subnet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// The first address that may be given out and is not `used`: from the hint upwards, then from the beginning.
pub fn next_free(subnet: &Subnet, used: impl Fn(IpAddr) -> bool, hint: Option<IpAddr>) -> Option<IpAddr> {
    let family = Family::of(subnet.cidr.addr());
    let start = hint.filter(|hint| Family::of(*hint) == family).map_or(0, number);
    let after = subnet.ranges.iter().map(|r| number(r.first).max(start)..=number(r.last));
    let before = subnet.ranges.iter().filter(|r| number(r.first) < start).map(|r| {
        // The range begins below the start, so the start is not 0.
        number(r.first)..=number(r.last).min(start - 1)
    });
    let mut all = after.chain(before).flatten().map(|n| address(family, n));
    all.find(|address| !is_reserved(&subnet.cidr, subnet.gateway, *address) && !used(*address))
}

/// All addresses of one family that may be given out, lowest first. It may be too long to be walked to its end.
pub fn candidates(network: &NetworkSpec, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
    let subnets = network.subnets.iter().filter(move |s| Family::of(s.cidr.addr()) == family);
    subnets.flat_map(move |subnet| {
        let all = subnet.ranges.iter().flat_map(span).map(move |n| address(family, n));
        all.filter(|address| !is_reserved(&subnet.cidr, subnet.gateway, *address))
    })
}

/// The subnet of an address, if the network has one.
pub fn subnet_of(network: &NetworkSpec, address: IpAddr) -> Option<&Subnet> {
    network.subnets.iter().find(|subnet| subnet.cidr.contains(&address))
}

/// Whether the address may be given out at all.
pub fn may_give(subnet: &Subnet, address: IpAddr) -> bool {
    let family = Family::of(subnet.cidr.addr());
    Family::of(address) == family
        && subnet.ranges.iter().any(|range| span(range).contains(&number(address)))
        && !is_reserved(&subnet.cidr, subnet.gateway, address)
}

/// How many addresses of all ranges may be given out.
pub fn total(network: &NetworkSpec) -> u128 {
    network.subnets.iter().map(subnet_total).fold(0, u128::saturating_add)
}

fn subnet_total(subnet: &Subnet) -> u128 {
    let in_ranges = subnet.ranges.iter().map(|range| {
        let span = span(range);
        if span.is_empty() { 0 } else { (span.end() - span.start()).saturating_add(1) }
    });
    let reserved = [Some(subnet.cidr.network()), Some(subnet.cidr.broadcast()), subnet.gateway];
    let mut reserved: Vec<u128> = reserved
        .into_iter()
        .flatten()
        .filter(|a| is_reserved(&subnet.cidr, subnet.gateway, *a))
        .map(number)
        .filter(|n| subnet.ranges.iter().any(|range| span(range).contains(n)))
        .collect();
    reserved.sort_unstable();
    reserved.dedup();
    in_ranges.fold(0, u128::saturating_add) - reserved.len() as u128
}

/// The whole prefix but what is never given out: one range, or two around the gateway. Empty if nothing is left.
pub fn default_ranges(cidr: &IpNet, gateway: Option<IpAddr>) -> Vec<AddressRange> {
    let family = Family::of(cidr.addr());
    let (mut first, mut last) = (number(cidr.network()), number(cidr.broadcast()));
    if is_reserved(cidr, None, cidr.network()) {
        first += 1;
    }
    if is_reserved(cidr, None, cidr.broadcast()) {
        last -= 1;
    }
    let parts = match gateway.filter(|gateway| cidr.contains(gateway)).map(number) {
        // A part below 0 or above the last number would be empty: such a gateway is the first or last address.
        Some(gateway) => [
            gateway.checked_sub(1).map(|end| first..=end),
            gateway.checked_add(1).map(|start| start.max(first)..=last),
        ],
        None => [Some(first..=last), None],
    };
    let range = |part: RangeInclusive<u128>| AddressRange {
        first: address(family, *part.start()),
        last: address(family, *part.end()),
    };
    parts.into_iter().flatten().filter(|part| !part.is_empty()).map(range).collect()
}

/// Network and broadcast address (but not in the tiny prefixes of point-to-point links, RFC 3021), IPv6's
/// subnet-router anycast address (RFC 4291, but not with /127, RFC 6164), and the gateway.
fn is_reserved(cidr: &IpNet, gateway: Option<IpAddr>, address: IpAddr) -> bool {
    let edge = match cidr {
        IpNet::V4(net) => net.prefix_len() <= 30 && (address == net.network() || address == net.broadcast()),
        IpNet::V6(net) => net.prefix_len() <= 126 && address == net.network(),
    };
    edge || gateway == Some(address)
}

/// The numbers of a range.
fn span(range: &AddressRange) -> RangeInclusive<u128> {
    number(range.first)..=number(range.last)
}

/// An address as a number; addresses of one family sort by it.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

pub fn address(family: Family, number: u128) -> IpAddr {
    match family {
        // Numbers of this family come from 32 bits.
        Family::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}
