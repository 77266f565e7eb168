//! A loss inside one value of a guarded failure domain is never braked, nor are few nodes. Counted here anew, from the
//! records that the decision was made of.

use std::collections::BTreeSet;

use tamdao_model::node::NodePhase;
use tamdao_model::vm::Vm;
use tamdao_store::view::View;

use super::Breach;
use crate::short;

pub fn check(before: &Vm, after: &Vm, view: &View) -> Option<Breach> {
    let braked = |vm: &Vm| vm.status.conditions.get("Evacuated").is_some_and(|told| told.reason == "Braked");
    if braked(before) || !braked(after) {
        return None;
    }
    let silent: Vec<_> = view
        .nodes
        .iter()
        .filter(|node| matches!(node.status.phase, NodePhase::Unreachable | NodePhase::Fencing))
        .collect();
    let racks: BTreeSet<_> = silent.iter().map(|node| node.spec.failure_domains.get("rack")).collect();
    let guarded = view.scheduling_policy()?.spec.guarded_failure_domains.contains("rack");
    // What has happened since it was decided may have changed the picture; one rack alone has not.
    let planned_for = guarded && racks.len() == 1 && silent.len() > 2;
    planned_for.then(|| {
        let what = format!("vm {} waits though only one rack is lost", short(after.id().0));
        Breach { rule: "brake", what }
    })
}
