//! NetworkService.

use tamdao_model::address::{Address, Holder};
use tamdao_model::event::Severity;
use tamdao_model::network::Network;
use tamdao_model::{Stored, range};
use tamdao_proto::v1;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;

use super::standard::{Standard, Writable, service};
use crate::admission::Moment;
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for Network {
    fn complete(proto: &mut v1::Network, row: &Self, view: &View, _: &Shared) {
        let used = view.addresses.starting_with(&format!("{}/", row.id())).count();
        let status = proto.status.get_or_insert_default();
        status.addresses_total = u32::try_from(range::total(&row.spec)).unwrap_or(u32::MAX).min(65_535);
        status.addresses_used = u32::try_from(used).unwrap_or(u32::MAX);
    }
}

impl Writable for Network {
    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let uses = |vm: &&_| {
            let vm: &tamdao_store::view::Row<tamdao_model::vm::Vm> = vm;
            vm.spec.interfaces.iter().any(|interface| interface.network == self.id())
        };
        match view.vms.iter().find(uses) {
            Some(vm) => {
                let (name, vm) = (self.meta.name.as_str(), vm.meta.name.as_str());
                let message = format!("network {name:?} is used by vm {vm:?}");
                Err(Refusal::precondition("InUse", message).hint("delete that first"))
            }
            None => Ok(()),
        }
    }

    fn check_changed(&self, _: &Self, view: &View) -> Result<(), Refusal> {
        // Addresses in use must stay addresses of the network.
        for row in view.addresses.starting_with(&format!("{}/", self.id())) {
            let held = matches!(row.holder, Holder::Vm { .. });
            if held && range::subnet_of(&self.spec, row.address).is_none() {
                let message = format!("leaves out {}, which a VM holds", row.address);
                return Err(Refusal::field("network.spec.subnets", message));
            }
        }
        Ok(())
    }

    fn drop_from(&self, draft: &mut Draft, moment: &mut Moment, caller: &str) -> Result<Self, Refusal> {
        self.check_unused(draft.view())?;
        // Resting addresses go in the reaper's own time: there may be more than one transaction holds.
        let resting: Vec<String> = draft
            .view()
            .addresses
            .starting_with(&format!("{}/", self.id()))
            .take(64)
            .map(|row| row.key())
            .collect();
        for key in resting {
            draft.delete::<Address>(key);
        }
        decide::event(draft, moment, self, Severity::Info, "Deleted", "deleted", caller);
        draft.remove::<Self>(self.meta.id);
        Ok(self.clone())
    }
}

service! {
    network_service_server::NetworkService, Network, network, networks, agency, phase,
    get get_network(GetNetworkRequest) list list_networks(ListNetworksRequest -> ListNetworksResponse)
    watch watch_networks(WatchNetworksRequest -> WatchNetworksResponse as WatchNetworksStream)
    create create_network(CreateNetworkRequest)
    update update_network(UpdateNetworkRequest)
    delete delete_network(DeleteNetworkRequest)
    extra {}
}
