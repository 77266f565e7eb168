//! No node holds more than it may.

use tamdao_store::view::View;

use super::Breach;

pub fn check(view: &View) -> Option<Breach> {
    for assignment in view.assignments.iter() {
        let Some(node) = view.nodes.get(assignment.node) else { continue };
        let (held, most) = (assignment.reserved(), node.allocatable());
        if held.vcpus > most.vcpus || held.memory_mib > most.memory_mib {
            let what = format!(
                "{} holds {} vCPUs of {} and {} MiB of {}",
                node.meta.name, held.vcpus, most.vcpus, held.memory_mib, most.memory_mib
            );
            return Some(Breach { rule: "capacity", what });
        }
    }
    None
}
