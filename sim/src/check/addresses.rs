//! An address is its VM's from the creation until the guest is gone.

use tamdao_model::address::Holder;
use tamdao_model::vm::Vm;
use tamdao_store::view::View;

use super::Breach;
use crate::host::Host;
use crate::short;

/// Each address of each VM is held by it.
pub fn check(view: &View) -> Option<Breach> {
    for vm in view.vms.iter() {
        for interface in &vm.spec.interfaces {
            for address in &interface.addresses {
                let address = address.addr();
                let record = view
                    .addresses
                    .iter()
                    .find(|one| (one.network, one.address) == (interface.network, address));
                let held = record.is_some_and(
                    |record| matches!(record.holder, Holder::Vm { vm: holder, .. } if holder == vm.id()),
                );
                if !held {
                    let what = format!("{address} of vm {} is not held by it", short(vm.id().0));
                    return Some(Breach { rule: "addresses", what });
                }
            }
        }
    }
    None
}

/// A VM whose record goes runs nowhere.
pub fn freed(vm: &Vm, nodes: &[Host]) -> Option<Breach> {
    let host = nodes.iter().find(|host| host.runs(vm.id().0))?;
    let what = format!("vm {} is deleted and runs on {}", short(vm.id().0), host.name);
    Some(Breach { rule: "addresses", what })
}
