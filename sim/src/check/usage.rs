//! An agency's usage is at every revision the sum over what it has.

use tamdao_model::agency::Usage;
use tamdao_store::view::View;

use super::Breach;

pub fn check(view: &View) -> Option<Breach> {
    for agency in view.agencies.iter() {
        let id = agency.id();
        let mut sum = Usage::none(id);
        for vm in view.vms.iter().filter(|vm| vm.agency == id) {
            sum.vms += 1;
            sum.vcpus += vm.spec.vcpus;
            sum.memory_mib += u64::from(vm.spec.memory_mib);
            sum.addresses += vm
                .spec
                .interfaces
                .iter()
                .map(|one| u32::try_from(one.addresses.len()).unwrap_or(0))
                .sum::<u32>();
        }
        for volume in view.volumes.iter().filter(|volume| volume.agency == id) {
            sum.volumes += 1;
            sum.disk_mib += u64::from(volume.spec.size_mib);
        }
        let kept = view.usages.get(id).map_or_else(|| Usage::none(id), |row| (*row.value).clone());
        if kept != sum {
            return Some(Breach { rule: "usage", what: format!("{kept:?} is kept, and the sum is {sum:?}") });
        }
    }
    None
}
