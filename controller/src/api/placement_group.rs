//! PlacementGroupService.

use std::collections::BTreeSet;
use std::sync::Arc;

use tamdao_model::PlacementGroupId;
use tamdao_model::placement_group::PlacementGroup;
use tamdao_model::vm::Vm;
use tamdao_proto::v1;
use tamdao_store::view::{Delta, Held, Record, Row, View};

use super::standard::{Standard, Writable, service};
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for PlacementGroup {
    fn complete(proto: &mut v1::PlacementGroup, row: &Self, view: &View, _: &Shared) {
        let status = proto.status.get_or_insert_default();
        for vm in members(view, row.id()) {
            status.vms += 1;
            status.vms_placed += u32::from(vm.status.node.is_some());
        }
    }

    fn shows(delta: &Delta, newest: &View) -> Vec<Row<Self>> {
        let vm = |record: &Option<Record>| record.as_ref().and_then(Vm::from_record).cloned();
        let counted = |vm: &Option<Arc<Vm>>| {
            vm.as_ref().map(|vm| (vm.spec.placement_groups.clone(), vm.status.node.is_some()))
        };
        let (before, after) = (vm(&delta.before), vm(&delta.after));
        if counted(&before) == counted(&after) {
            return Vec::new();
        }
        let groups: BTreeSet<PlacementGroupId> =
            before.iter().chain(&after).flat_map(|vm| vm.spec.placement_groups.iter().copied()).collect();
        groups.into_iter().filter_map(|id| newest.placement_groups.get(id).cloned()).collect()
    }
}

fn members(view: &View, group: PlacementGroupId) -> impl Iterator<Item = &Row<Vm>> {
    view.vms.iter().filter(move |vm| vm.spec.placement_groups.contains(&group))
}

impl Writable for PlacementGroup {
    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let mut members = members(view, self.id());
        let Some(first) = members.next() else { return Ok(()) };
        let (name, vm) = (self.meta.name.as_str(), first.meta.name.as_str());
        let more = match members.count() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!("placement group {name:?} has the member {vm:?}{more}");
        Err(Refusal::precondition("InUse", message)
            .hint("take its VMs out first: tamdao vm update NAME --group GROUP-"))
    }
}

service! {
    placement_group_service_server::PlacementGroupService, PlacementGroup, placement_group, placement_groups,
    agency, none,
    get get_placement_group(GetPlacementGroupRequest)
    list list_placement_groups(ListPlacementGroupsRequest -> ListPlacementGroupsResponse)
    watch watch_placement_groups(
        WatchPlacementGroupsRequest -> WatchPlacementGroupsResponse as WatchPlacementGroupsStream
    )
    create create_placement_group(CreatePlacementGroupRequest)
    update update_placement_group(UpdatePlacementGroupRequest)
    delete delete_placement_group(DeletePlacementGroupRequest)
    extra {}
}
