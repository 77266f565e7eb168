//! An agency's usage is at every revision the sum over what it has.

use tamdao_model::quota::Measure;
use tamdao_store::view::View;

use super::Breach;

pub fn check(view: &View) -> Option<Breach> {
    for agency in view.agencies.iter() {
        let id = agency.id();
        let vms = || view.vms.iter().filter(|vm| vm.agency == id);
        let volumes = || view.volumes.iter().filter(|volume| volume.agency == id);
        let addresses = vms().flat_map(|vm| vm.spec.interfaces.iter()).map(|one| one.addresses.len() as u64);
        let sums = [
            (Measure::Vms, vms().count() as u64),
            (Measure::Vcpus, vms().map(|vm| u64::from(vm.spec.vcpus)).sum()),
            (Measure::MemoryMib, vms().map(|vm| u64::from(vm.spec.memory_mib)).sum()),
            (Measure::Volumes, volumes().count() as u64),
            (Measure::DiskMib, volumes().map(|volume| u64::from(volume.spec.size_mib)).sum()),
            (Measure::Addresses, addresses.sum()),
        ];
        let usage = view.usage(id);
        for (measure, sum) in sums {
            let kept = usage.amounts.of(&measure);
            if kept != sum {
                return Some(Breach {
                    rule: "usage",
                    what: format!("{measure}: {kept} is kept, {sum} is there"),
                });
            }
        }
    }
    None
}
