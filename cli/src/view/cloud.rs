//! How agencies, networks and controllers are shown.

use tamdao_proto::v1::{Agency, Controller, ControllerRole, Network, RoleBinding, Token, network_spec};

use super::{View, head, headers, phase, tail, usage};
use crate::output::{Cell, Table, Tone};
use crate::quantity::{mib, share, until};
use crate::resource::{Resource, word};

impl View for Agency {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(
            &["PARENT", "PHASE", "VMS", "VCPUS", "MEMORY", "DISK"],
            &["VOLUMES", "ADDRESSES", "CONTACT"],
            wide,
        )
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let usage = self.status.clone().unwrap_or_default().usage.unwrap_or_default();
        let mut cells = head(self);
        cells.push(Cell::from(self.spec.clone().unwrap_or_default().parent));
        cells.push(phase(&self.phase()));
        cells.extend([Cell::from(usage.vms), Cell::from(usage.vcpus)]);
        cells.extend([Cell::from(mib(usage.memory_mib)), Cell::from(mib(usage.disk_mib))]);
        if wide {
            let spec = self.spec.clone().unwrap_or_default();
            cells.extend([Cell::from(usage.volumes), Cell::from(usage.addresses), Cell::from(spec.contact)]);
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        let usage = self.status.clone().unwrap_or_default().usage.unwrap_or_default();
        vec![
            ("Description", Cell::from(spec.description)),
            ("Contact", Cell::from(spec.contact)),
            ("Parent", Cell::from(spec.parent)),
            ("VMs", Cell::from(usage.vms)),
            ("vCPUs", Cell::from(usage.vcpus)),
            ("Memory", Cell::from(mib(usage.memory_mib))),
            ("Disk", Cell::from(mib(usage.disk_mib))),
            ("Volumes", Cell::from(usage.volumes)),
            ("Addresses", Cell::from(usage.addresses)),
        ]
    }

    fn sections(&self) -> Vec<(&'static str, Table)> {
        let quota = self.spec.clone().unwrap_or_default().quota;
        let status = self.status.clone().unwrap_or_default();
        let used = usage::amounts(self);
        let mut measures: Vec<_> = quota.into_iter().collect();
        measures.sort();
        let rows = measures.into_iter().map(|(measure, most)| {
            let of = |amounts: &std::collections::BTreeMap<String, u64>| {
                Cell::from(usage::amount(&measure, amounts.get(&measure).copied().unwrap_or(0)))
            };
            let most = Cell::from(usage::amount(&measure, most));
            vec![Cell::from(&measure), most, of(&used), of(&status.given), of(&status.free)]
        });
        let headers = vec!["MEASURE", "LIMIT", "USED", "GIVEN", "FREE"];
        vec![("Quota", Table { headers, rows: rows.collect() })]
    }
}

impl View for Token {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["ROLE", "EXPIRES", "CREATED-BY"], &[], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let status = self.status.clone().unwrap_or_default();
        let expires = status.expire_time.as_ref().map_or(String::new(), |time| until(now_s, time.seconds));
        let mut cells = head(self);
        let role = self.spec.unwrap_or_default().role();
        cells.push(Cell::from(word(role.as_str_name(), "ROLE_")));
        cells.push(Cell::toned(&expires, if expires == "now" { Tone::Bad } else { Tone::Plain }));
        cells.push(Cell::from(status.created_by));
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        Vec::new()
    }
}

impl View for RoleBinding {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["ROLE", "SUBJECT"], &[], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let spec = self.spec.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.push(Cell::from(word(spec.role().as_str_name(), "ROLE_")));
        let named = [("user", spec.user), ("group", spec.group), ("token", spec.token)];
        let subject = named.into_iter().find(|(_, name)| !name.is_empty());
        cells.push(Cell::from(subject.map_or(String::new(), |(sort, name)| format!("{sort} {name}"))));
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        Vec::new()
    }
}

impl View for Network {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["PHASE", "BRIDGE", "SUBNETS", "ADDRESSES"], &["MTU", "DNS"], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let spec = self.spec.clone().unwrap_or_default();
        let subnets: Vec<&str> = spec.subnets.iter().map(|subnet| subnet.cidr.as_str()).collect();
        let mut cells = head(self);
        cells.push(phase(&self.phase()));
        cells.push(Cell::from(provider(self)));
        cells.push(Cell::from(subnets.join(",")));
        cells.push(Cell::from(addresses(self)));
        if wide {
            cells.push(Cell::from(if spec.mtu == 0 { 1_500 } else { spec.mtu }));
            cells.push(Cell::from(spec.dns_servers.join(",")));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            ("Bridge", Cell::from(provider(self))),
            ("Addresses", Cell::from(format!("{} used", addresses(self)))),
            ("MTU", Cell::from(if spec.mtu == 0 { 1_500 } else { spec.mtu })),
            ("Name servers", Cell::from(spec.dns_servers.join(", "))),
        ]
    }

    fn sections(&self) -> Vec<(&'static str, Table)> {
        let subnets = self.spec.clone().unwrap_or_default().subnets;
        let rows = subnets.iter().map(|subnet| {
            let ranges: Vec<String> =
                subnet.ranges.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
            vec![Cell::from(&subnet.cidr), Cell::from(&subnet.gateway), Cell::from(ranges.join(", "))]
        });
        vec![("Subnets", Table { headers: vec!["CIDR", "GATEWAY", "RANGES"], rows: rows.collect() })]
    }
}

fn provider(network: &Network) -> String {
    match network.spec.as_ref().and_then(|spec| spec.provider.as_ref()) {
        Some(network_spec::Provider::Bridge(bridge)) => bridge.bridge.clone(),
        Some(network_spec::Provider::Vlan(vlan)) => format!("{} vlan {}", vlan.bridge, vlan.tag),
        None => String::new(),
    }
}

fn addresses(network: &Network) -> String {
    let status = network.status.clone().unwrap_or_default();
    let total = match status.addresses_total {
        65_535.. => "65535+".to_owned(),
        total => total.to_string(),
    };
    share(status.addresses_used, total)
}

impl View for Controller {
    fn headers(wide: bool) -> Vec<&'static str> {
        headers::<Self>(&["ROLE", "REACHABLE", "ADDRESS", "LAG", "VERSION"], &["MEMBER"], wide)
    }

    fn row(&self, now_s: i64, wide: bool) -> Vec<Cell> {
        let status = self.status.clone().unwrap_or_default();
        let mut cells = head(self);
        cells.push(role(self));
        cells.push(reachable(status.reachable));
        cells.push(Cell::from(&status.address));
        cells.push(Cell::from(status.lag));
        cells.push(Cell::from(&status.version));
        if wide {
            cells.push(Cell::from(status.member));
        }
        cells.extend(tail(self, now_s, wide));
        cells
    }

    fn fields(&self, _: i64) -> Vec<(&'static str, Cell)> {
        let status = self.status.clone().unwrap_or_default();
        vec![
            ("Role", role(self)),
            ("Reachable", reachable(status.reachable)),
            ("Address", Cell::from(&status.address)),
            ("Lag", Cell::from(format!("{} log entries", status.lag))),
            ("Version", Cell::from(&status.version)),
            ("Member", Cell::from(status.member)),
        ]
    }

    fn story(&self) -> String {
        role(self).text
    }
}

fn role(controller: &Controller) -> Cell {
    let role = controller.status.as_ref().map_or(ControllerRole::Unspecified, |status| status.role());
    phase(&word(role.as_str_name(), "CONTROLLER_ROLE_"))
}

fn reachable(reachable: bool) -> Cell {
    if reachable { Cell::toned("yes", Tone::Good) } else { Cell::toned("no", Tone::Bad) }
}
