//! FlavorService.

use tamdao_model::flavor::Flavor;

use super::standard::{Standard, Writable, service};

impl Standard for Flavor {}

// VMs keep the size that they took, so a flavor can go while VMs of it exist.
impl Writable for Flavor {}

service! {
    flavor_service_server::FlavorService, Flavor, flavor, flavors, cluster, none,
    get get_flavor(GetFlavorRequest) list list_flavors(ListFlavorsRequest -> ListFlavorsResponse)
    watch watch_flavors(WatchFlavorsRequest -> WatchFlavorsResponse as WatchFlavorsStream)
    create create_flavor(CreateFlavorRequest)
    update update_flavor(UpdateFlavorRequest)
    delete delete_flavor(DeleteFlavorRequest)
    extra {}
}
