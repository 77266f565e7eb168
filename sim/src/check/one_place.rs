//! A VM never runs on two nodes, not for an instant. Judged by the guests themselves, without the image lock that is the
//! second barrier in the product. A process that was killed and waits for its disk may still write to it, so it counts.

use std::collections::BTreeMap;

use tamdao_node_agent::hypervisor::DomainState;

use super::Breach;
use crate::host::Host;
use crate::short;

pub fn check(nodes: &[Host]) -> Option<Breach> {
    let mut running = BTreeMap::new();
    for host in nodes.iter().filter(|host| host.up) {
        let domains = host.domains.values().filter(|domain| domain.state == DomainState::Running);
        for vm in domains.map(|domain| domain.vm).chain(host.given_up.iter().copied()) {
            if let Some(other) = running.insert(vm, &host.name) {
                let what = format!("vm {} runs on {other} and on {}", short(vm), host.name);
                return Some(Breach { rule: "one-place", what });
            }
        }
    }
    None
}
