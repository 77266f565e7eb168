//! AgencyService.

use tamdao_model::Scope;
use tamdao_model::agency::{Agency, Usage};
use tamdao_model::event::Severity;
use tamdao_proto::v1;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::standard::{Standard, Writable, service};
use crate::admission::Moment;
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for Agency {
    fn complete(proto: &mut v1::Agency, row: &Self, view: &View, _: &Shared) {
        let usage = view.usage(row.id());
        proto.status.get_or_insert_default().usage = Some(v1::Usage {
            vms: usage.vms,
            vcpus: usage.vcpus,
            memory_mib: usage.memory_mib,
            disk_mib: usage.disk_mib,
            volumes: usage.volumes,
            addresses: usage.addresses,
        });
    }
}

impl Writable for Agency {
    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let scope = Some(Scope::Agency(self.id()));
        let owned = [
            ("VMs", view.vms.names(scope, None).count()),
            ("volumes", view.volumes.names(scope, None).count()),
            ("images", view.images.names(scope, None).count()),
            ("networks", view.networks.names(scope, None).count()),
            ("placement groups", view.placement_groups.names(scope, None).count()),
        ];
        let owned: Vec<String> = owned
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        if owned.is_empty() {
            return Ok(());
        }
        let message = format!("agency {:?} still owns {}", self.meta.name.as_str(), owned.join(", "));
        Err(Refusal::precondition("NotEmpty", message).hint("delete what it owns first"))
    }

    fn drop_from(&self, draft: &mut Draft, moment: &mut Moment, caller: &str) -> Result<Self, Refusal> {
        self.check_unused(draft.view())?;
        decide::event(draft, moment, self, Severity::Info, "Deleted", "deleted", caller);
        draft.delete::<Usage>(self.id());
        draft.remove::<Self>(self.meta.id);
        Ok(self.clone())
    }
}

service! {
    agency_service_server::AgencyService, Agency, agency, agencies, cluster, none,
    get get_agency(GetAgencyRequest) list list_agencies(ListAgenciesRequest -> ListAgenciesResponse)
    watch watch_agencies(WatchAgenciesRequest -> WatchAgenciesResponse as WatchAgenciesStream)
    create create_agency(CreateAgencyRequest)
    update update_agency(UpdateAgencyRequest)
    delete delete_agency(DeleteAgencyRequest)
    extra {}
}
