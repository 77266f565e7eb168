//! Networks in the contract. Ranges that are the default ones are shown as none, as they were most likely
//! written, so that a changed gateway changes them too. How many addresses are used is another record: the caller
//! fills `status.addresses_used`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use pbjson_types::FieldMask;
use tamdao_proto::v1;
use tamdao_proto::v1::network_spec::Provider as Wire;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, metadata, syntax};
use crate::lookup::Lookup;
use crate::network::{AddressRange, Network, NetworkSpec, Provider, Subnet};
use crate::range::{self, Family};
use crate::{Kind, limits};

/// What an MTU of 0 means, bytes.
const MTU_DEFAULT: u32 = 1_500;

impl Shown for Network {
    type Proto = v1::Network;
    const MESSAGE: &'static str = "tamdao.v1.Network";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Network {
        let provider = match self.spec.provider.clone() {
            Provider::Bridge { bridge } => Wire::Bridge(v1::BridgeProvider { bridge }),
            Provider::Vlan { bridge, tag } => Wire::Vlan(v1::VlanProvider { bridge, tag: u32::from(tag) }),
        };
        let total = range::total(&self.spec).min(u128::from(u16::MAX));
        v1::Network {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::NetworkSpec {
                provider: Some(provider),
                subnets: self.spec.subnets.iter().map(show_subnet).collect(),
                mtu: self.spec.mtu,
                dns_servers: self.spec.dns_servers.iter().map(ToString::to_string).collect(),
            }),
            status: Some(v1::NetworkStatus {
                phase: self.phase_number(),
                observed_generation: self.meta.generation,
                addresses_total: u32::try_from(total).unwrap_or(u32::from(u16::MAX)),
                ..Default::default()
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        v1::NetworkPhase::Active.into()
    }
}

fn show_subnet(subnet: &Subnet) -> v1::Subnet {
    let default = range::default_ranges(&subnet.cidr, subnet.gateway);
    let ranges = if subnet.ranges == default { &[] } else { subnet.ranges.as_slice() };
    let show = |r: &AddressRange| v1::AddressRange { first: r.first.to_string(), last: r.last.to_string() };
    v1::Subnet {
        cidr: subnet.cidr.to_string(),
        gateway: subnet.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
        ranges: ranges.iter().map(show).collect(),
    }
}

impl Public for Network {
    fn create(proto: v1::Network, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::Network, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        checks.finish(Self { meta, agency: new.scope.agency(), spec })
    }

    fn update(
        &self,
        proto: v1::Network,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let fixed = ["spec.bridge", "spec.vlan"];
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &fixed, lookup)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        checks.fixed(
            "spec.provider",
            &self.spec.provider,
            &spec.provider,
            "make another network with it and attach new VMs there",
        );
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, agency: self.agency, spec })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::NetworkSpec) -> NetworkSpec {
    let provider = read_provider(checks, spec.provider);
    let mut subnets: Vec<Subnet> = Vec::new();
    if checks.count("spec.subnets", spec.subnets.len(), 2) {
        for (i, subnet) in spec.subnets.into_iter().enumerate() {
            let at = format!("spec.subnets[{i}]");
            let Some(subnet) = read_subnet(checks, &at, subnet) else { continue };
            let family = Family::of(subnet.cidr.addr());
            if subnets.iter().any(|other| Family::of(other.cidr.addr()) == family) {
                let message = "is a second subnet of its family; one IPv4 and one IPv6 prefix are allowed";
                checks.wrong(&format!("{at}.cidr"), message);
            }
            subnets.push(subnet);
        }
    }
    let mtu = match spec.mtu {
        0 => MTU_DEFAULT,
        mtu => checks.number("spec.mtu", mtu, limits::MTU, "or 0 for 1,500"),
    };
    let mut dns_servers = Vec::new();
    if checks.count("spec.dns_servers", spec.dns_servers.len(), limits::DNS_SERVERS) {
        for (i, text) in spec.dns_servers.iter().enumerate() {
            let server = syntax::address(text).and_then(|address| unicast(address).map(|()| address));
            dns_servers.extend(checks.ok(&format!("spec.dns_servers[{i}]"), server));
        }
    }
    NetworkSpec { provider, subnets, mtu, dns_servers }
}

fn read_provider(checks: &mut Checks<'_>, provider: Option<Wire>) -> Provider {
    match provider {
        Some(Wire::Bridge(v1::BridgeProvider { bridge })) => {
            checks.ok("spec.bridge.bridge", syntax::device(&bridge));
            Provider::Bridge { bridge }
        }
        Some(Wire::Vlan(v1::VlanProvider { bridge, tag })) => {
            checks.ok("spec.vlan.bridge", syntax::device(&bridge));
            let tag = checks.number("spec.vlan.tag", tag, limits::VLAN_TAGS, "");
            Provider::Vlan { bridge, tag: u16::try_from(tag).unwrap_or_default() }
        }
        None => {
            checks.wrong("spec.provider", "must be given: bridge or vlan");
            Provider::Bridge { bridge: String::new() }
        }
    }
}

fn read_subnet(checks: &mut Checks<'_>, at: &str, subnet: v1::Subnet) -> Option<Subnet> {
    let cidr = checks.ok(&format!("{at}.cidr"), read_cidr(&subnet.cidr))?;
    let gateway = match subnet.gateway.as_str() {
        "" => None,
        text => checks.ok(&format!("{at}.gateway"), read_gateway(&cidr, text)),
    };
    let ranges_at = format!("{at}.ranges");
    let mut ranges = Vec::new();
    if checks.count(&ranges_at, subnet.ranges.len(), limits::RANGES) {
        for (i, range) in subnet.ranges.iter().enumerate() {
            ranges.extend(read_range(checks, &format!("{ranges_at}[{i}]"), &cidr, range));
        }
    }
    check_overlap(checks, &ranges_at, &ranges);
    // Where a part was wrong, what is left says nothing about what was meant.
    let whole = ranges.len() == subnet.ranges.len() && gateway.is_some() != subnet.gateway.is_empty();
    ranges.sort_by_key(|r| range::number(r.first));
    if subnet.ranges.is_empty() {
        ranges = range::default_ranges(&cidr, gateway);
    }
    let subnet = Subnet { cidr, gateway, ranges };
    if whole && range::next_free(&subnet, |_| false, None).is_none() {
        checks.wrong(
            &ranges_at,
            "leaves no address for guests; gateway, network and broadcast address are never given to one",
        );
    }
    Some(subnet)
}

fn read_cidr(text: &str) -> Result<IpNet, String> {
    let quoted = syntax::quote(text);
    let cidr: IpNet = text
        .parse()
        .map_err(|_| format!("is {quoted}; a prefix such as 10.20.0.0/24 or fd00:20::/64 is needed"))?;
    if cidr.prefix_len() == 0 {
        return Err(format!("is {quoted}, every address there is; give the prefix of this network"));
    }
    if cidr != cidr.trunc() {
        return Err(format!("is {quoted}, which has bits set behind the prefix; write {}", cidr.trunc()));
    }
    unicast(cidr.addr()).map(|()| cidr)
}

/// Refuses addresses that no guest and no server can have.
fn unicast(address: IpAddr) -> Result<(), String> {
    let kind = if address.is_multicast() {
        "a multicast"
    } else if address.is_loopback() {
        "a loopback"
    } else if address.is_unspecified() {
        "the unspecified"
    } else {
        return Ok(());
    };
    Err(format!("is {kind} address; a unicast address is needed"))
}

fn read_gateway(cidr: &IpNet, text: &str) -> Result<IpAddr, String> {
    let gateway = syntax::address(text)?;
    if !cidr.contains(&gateway) {
        return Err(format!("is {gateway}, which is not in {cidr}"));
    }
    if let IpNet::V4(net) = cidr
        && net.prefix_len() <= 30
        && (gateway == net.network() || gateway == net.broadcast())
    {
        return Err(format!("is {gateway}, the network or broadcast address of {cidr}"));
    }
    Ok(gateway)
}

fn read_range(
    checks: &mut Checks<'_>,
    at: &str,
    cidr: &IpNet,
    range: &v1::AddressRange,
) -> Option<AddressRange> {
    let mut end = |name: &str, text: &str| {
        let address = syntax::address(text).and_then(|address| {
            if cidr.contains(&address) {
                Ok(address)
            } else {
                Err(format!("is {address}, which is not in {cidr}"))
            }
        });
        checks.ok(&format!("{at}.{name}"), address)
    };
    let (first, last) = (end("first", &range.first), end("last", &range.last));
    let (first, last) = first.zip(last)?;
    if range::number(last) < range::number(first) {
        checks.wrong(&format!("{at}.last"), format!("is {last}, below the first address {first}"));
        return None;
    }
    Some(AddressRange { first, last })
}

fn check_overlap(checks: &mut Checks<'_>, at: &str, ranges: &[AddressRange]) {
    let mut told = BTreeSet::new();
    for (i, a) in ranges.iter().enumerate() {
        for b in &ranges[..i] {
            let apart = range::number(a.last) < range::number(b.first)
                || range::number(b.last) < range::number(a.first);
            if !apart && told.insert(i) {
                let message = format!("{}-{} and {}-{} overlap", b.first, b.last, a.first, a.last);
                checks.wrong(at, message);
            }
        }
    }
}
