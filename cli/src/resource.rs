//! What the resources of the contract have in common, so that the standard verbs are written once: where one is, its
//! parts, and how it is read, listed, watched, made, changed and removed. One line of a macro per resource; nothing of
//! what a resource means is here.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tamdao_proto::v1::*;
use tonic::Status;

use tamdao_proto::v1::agency_service_client::AgencyServiceClient;
use tamdao_proto::v1::controller_service_client::ControllerServiceClient;
use tamdao_proto::v1::flavor_service_client::FlavorServiceClient;
use tamdao_proto::v1::image_service_client::ImageServiceClient;
use tamdao_proto::v1::move_service_client::MoveServiceClient;
use tamdao_proto::v1::network_service_client::NetworkServiceClient;
use tamdao_proto::v1::node_service_client::NodeServiceClient;
use tamdao_proto::v1::placement_group_service_client::PlacementGroupServiceClient;
use tamdao_proto::v1::pool_service_client::PoolServiceClient;
use tamdao_proto::v1::role_binding_service_client::RoleBindingServiceClient;
use tamdao_proto::v1::token_service_client::TokenServiceClient;
use tamdao_proto::v1::vm_service_client::VmServiceClient;
use tamdao_proto::v1::volume_service_client::VolumeServiceClient;

use crate::client::{Client, Wire, message_bytes, request_id};
use crate::problem::Problem;

/// Where a resource is: its agency (empty for the cluster) and its name or id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub agency: String,
    pub name: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.agency.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.agency, self.name)
        }
    }
}

/// Who may own a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Always an agency.
    Agency,
    /// Always the cluster.
    Cluster,
    /// The cluster, or an agency privately.
    Either,
}

/// Which resources are listed.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub agency: String,
    pub labels: String,
    pub phase: i32,
}

/// One page of a list.
pub struct Page<R> {
    pub resources: Vec<R>,
    pub next: String,
    pub cursor: String,
}

/// One message of a watch.
#[derive(Debug, Clone)]
pub struct Change<R> {
    pub event: WatchEvent,
    pub resource: Option<R>,
    pub cursor: String,
}

/// A watch as one connection gives it.
pub type Changes<R> = Pin<Box<dyn Stream<Item = Result<Change<R>, Status>> + Send>>;

/// What every resource can be asked.
pub trait Resource: Clone + Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The word for one, as in the contract.
    const KIND: &'static str;
    /// The word for many, as in the contract.
    const PLURAL: &'static str;
    const OWNER: Owner;

    fn metadata(&self) -> &Option<Metadata>;
    fn metadata_mut(&mut self) -> &mut Metadata;
    /// The phase as people read it, such as "Running"; empty where there is none.
    fn phase(&self) -> String;
    fn conditions(&self) -> &[Condition];
    /// The number of a phase by its word; none when there is no such phase.
    fn phase_number(word: &str) -> Option<i32>;

    fn fetch(client: &Client, place: &Place) -> impl Future<Output = Result<Self, Problem>>;
    fn page(
        client: &Client,
        query: &Query,
        size: u32,
        token: String,
    ) -> impl Future<Output = Result<Page<Self>, Problem>>;
    fn open_watch(
        wire: Wire,
        place: &Place,
        labels: &str,
        cursor: String,
    ) -> impl Future<Output = Result<tonic::Response<Changes<Self>>, Status>> + Send;

    /// The word for one on the command line.
    fn noun() -> String {
        Self::KIND.replace('_', "-")
    }

    fn name(&self) -> &str {
        self.metadata().as_ref().map_or("", |metadata| &metadata.name)
    }

    fn place(&self) -> Place {
        let metadata = self.metadata().clone().unwrap_or_default();
        Place { agency: metadata.agency, name: metadata.name }
    }
}

/// What users can change. A revision of 0 is not compared with the resource's.
pub trait Editable: Resource {
    fn update(
        client: &Client,
        place: &Place,
        value: Self,
        mask: Vec<String>,
        validate_only: bool,
    ) -> impl Future<Output = Result<Self, Problem>>;
    fn delete(
        client: &Client,
        place: &Place,
        force: bool,
        revision: u64,
        validate_only: bool,
    ) -> impl Future<Output = Result<Self, Problem>>;
}

/// What users can make.
pub trait Makeable: Editable {
    fn create(
        client: &Client,
        agency: &str,
        value: Self,
        validate_only: bool,
    ) -> impl Future<Output = Result<Self, Problem>>;
}

/// An enum's name as people read it: VM_PHASE_NOT_READY is "NotReady".
pub fn word(full: &str, prefix: &str) -> String {
    let bare = full.strip_prefix(prefix).unwrap_or(full);
    if bare == "UNSPECIFIED" {
        return String::new();
    }
    let parts = bare.split('_').map(|part| {
        let (first, rest) = part.split_at(part.len().min(1));
        format!("{first}{}", rest.to_ascii_lowercase())
    });
    parts.collect()
}

macro_rules! resource {
    (
        $type:ident, $kind:literal, $plural:literal, $owner:ident, $client:ident,
        get $get_request:ident, list $list_request:ident $many:ident,
        watch $watch:ident $watch_request:ident $one:ident
        $(, agency $agency:ident)? $(, phase $phase:ident $prefix:literal $phase_field:ident)? $(, conditions $conditions:ident)?
    ) => {
        impl Resource for $type {
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const OWNER: Owner = Owner::$owner;

            fn metadata(&self) -> &Option<Metadata> {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Metadata {
                self.metadata.get_or_insert_default()
            }

            fn phase(&self) -> String {
                $(
                    let number = self.status.as_ref().map_or(0, |status| status.$phase_field);
                    return $phase::try_from(number).map_or(number.to_string(), |phase| word(phase.as_str_name(), $prefix));
                )?
                #[allow(unreachable_code)]
                String::new()
            }

            fn conditions(&self) -> &[Condition] {
                $( return self.status.as_ref().map_or(&[], |status| &status.$conditions); )?
                #[allow(unreachable_code)]
                &[]
            }

            #[allow(unused_variables)]
            fn phase_number(text: &str) -> Option<i32> {
                $(
                    let bare = text.to_ascii_uppercase().replace('-', "_");
                    let named = $phase::from_str_name(&format!("{}{bare}", $prefix));
                    return named.or_else(|| $phase::from_str_name(&bare)).map(|phase| phase as i32).filter(|n| *n != 0);
                )?
                #[allow(unreachable_code)]
                None
            }

            async fn fetch(client: &Client, place: &Place) -> Result<Self, Problem> {
                let request = $get_request { name: place.name.clone(), $( $agency: place.agency.clone(), )? };
                client.ask(request).await
            }

            #[allow(clippy::needless_update)]
            async fn page(client: &Client, query: &Query, size: u32, token: String) -> Result<Page<Self>, Problem> {
                let request = $list_request {
                    page_size: size,
                    page_token: token,
                    labels: query.labels.clone(),
                    $( $agency: query.agency.clone(), )?
                    $( $phase_field: query.phase, )?
                    ..Default::default()
                };
                let answer = client.ask(request).await?;
                Ok(Page { resources: answer.$many, next: answer.next_page_token, cursor: answer.cursor })
            }

            #[allow(clippy::needless_update)]
            async fn open_watch(
                wire: Wire, place: &Place, labels: &str, cursor: String,
            ) -> Result<tonic::Response<Changes<Self>>, Status> {
                let request = $watch_request {
                    name: place.name.clone(),
                    labels: labels.to_owned(),
                    cursor,
                    $( $agency: place.agency.clone(), )?
                    ..Default::default()
                };
                let mut service = $client::new(wire).max_decoding_message_size(message_bytes());
                let answer = service.$watch(request).await?;
                Ok(answer.map(|stream| {
                    let changes = stream.map(|message| {
                        let message = message?;
                        Ok(Change { event: message.event(), resource: message.$one, cursor: message.cursor })
                    });
                    Box::pin(changes) as Changes<Self>
                }))
            }
        }
    };
}

macro_rules! editable {
    ($type:ident, $update_request:ident, $delete_request:ident, $one:ident
     $(, agency $agency:ident)? $(, force $force:ident)?) => {
        impl Editable for $type {
            async fn update(
                client: &Client, place: &Place, value: Self, mask: Vec<String>, validate_only: bool,
            ) -> Result<Self, Problem> {
                let request = $update_request {
                    name: place.name.clone(),
                    $one: Some(value),
                    update_mask: Some(pbjson_types::FieldMask { paths: mask }),
                    request_id: request_id(),
                    validate_only,
                    $( $agency: place.agency.clone(), )?
                };
                client.ask(request).await
            }

            #[allow(unused_variables, clippy::needless_update)]
            async fn delete(
                client: &Client, place: &Place, force: bool, revision: u64, validate_only: bool,
            ) -> Result<Self, Problem> {
                let request = $delete_request {
                    name: place.name.clone(),
                    revision,
                    request_id: request_id(),
                    validate_only,
                    $( $agency: place.agency.clone(), )?
                    $( $force: force, )?
                    ..Default::default()
                };
                client.ask(request).await
            }
        }
    };
}

macro_rules! makeable {
    ($type:ident, $create_request:ident, $one:ident $(, agency $agency:ident)?) => {
        impl Makeable for $type {
            #[allow(unused_variables)]
            async fn create(client: &Client, agency: &str, value: Self, validate_only: bool) -> Result<Self, Problem> {
                let request = $create_request {
                    $one: Some(value),
                    request_id: request_id(),
                    validate_only,
                    $( $agency: agency.to_owned(), )?
                };
                client.ask(request).await
            }
        }
    };
}

resource!(Agency, "agency", "agencies", Cluster, AgencyServiceClient, get GetAgencyRequest,
    list ListAgenciesRequest agencies, watch watch_agencies WatchAgenciesRequest agency,
    phase AgencyPhase "AGENCY_PHASE_" phase, conditions conditions);
editable!(Agency, UpdateAgencyRequest, DeleteAgencyRequest, agency);
makeable!(Agency, CreateAgencyRequest, agency);

resource!(Controller, "controller", "controllers", Cluster, ControllerServiceClient,
    get GetControllerRequest, list ListControllersRequest controllers,
    watch watch_controllers WatchControllersRequest controller, conditions conditions);

resource!(Flavor, "flavor", "flavors", Cluster, FlavorServiceClient, get GetFlavorRequest,
    list ListFlavorsRequest flavors, watch watch_flavors WatchFlavorsRequest flavor);
editable!(Flavor, UpdateFlavorRequest, DeleteFlavorRequest, flavor);
makeable!(Flavor, CreateFlavorRequest, flavor);

resource!(Image, "image", "images", Either, ImageServiceClient, get GetImageRequest,
    list ListImagesRequest images, watch watch_images WatchImagesRequest image, agency agency,
    phase ImagePhase "IMAGE_PHASE_" phase, conditions conditions);
editable!(Image, UpdateImageRequest, DeleteImageRequest, image,
    agency agency);
makeable!(Image, CreateImageRequest, image, agency agency);

resource!(Move, "move", "moves", Agency, MoveServiceClient, get GetMoveRequest, list ListMovesRequest moves,
    watch watch_moves WatchMovesRequest r#move, agency agency, phase MovePhase "MOVE_PHASE_" phase, conditions conditions);

resource!(Network, "network", "networks", Either, NetworkServiceClient, get GetNetworkRequest,
    list ListNetworksRequest networks, watch watch_networks WatchNetworksRequest network, agency agency,
    phase NetworkPhase "NETWORK_PHASE_" phase, conditions conditions);
editable!(Network, UpdateNetworkRequest, DeleteNetworkRequest,
    network, agency agency);
makeable!(Network, CreateNetworkRequest, network, agency agency);

resource!(Node, "node", "nodes", Cluster, NodeServiceClient, get GetNodeRequest,
    list ListNodesRequest nodes, watch watch_nodes WatchNodesRequest node,
    phase NodePhase "NODE_PHASE_" phase, conditions conditions);
editable!(Node, UpdateNodeRequest, DeleteNodeRequest, node);

resource!(PlacementGroup, "placement_group", "placement_groups", Agency, PlacementGroupServiceClient,
    get GetPlacementGroupRequest, list ListPlacementGroupsRequest placement_groups,
    watch watch_placement_groups WatchPlacementGroupsRequest placement_group, agency agency, conditions conditions);
editable!(PlacementGroup, UpdatePlacementGroupRequest, DeletePlacementGroupRequest, placement_group, agency agency);
makeable!(PlacementGroup, CreatePlacementGroupRequest, placement_group, agency agency);

resource!(Pool, "pool", "pools", Cluster, PoolServiceClient, get GetPoolRequest,
    list ListPoolsRequest pools, watch watch_pools WatchPoolsRequest pool,
    phase PoolPhase "POOL_PHASE_" phase, conditions conditions);
editable!(Pool, UpdatePoolRequest, DeletePoolRequest, pool);
makeable!(Pool, CreatePoolRequest, pool);

resource!(RoleBinding, "role_binding", "role_bindings", Either, RoleBindingServiceClient,
    get GetRoleBindingRequest, list ListRoleBindingsRequest role_bindings,
    watch watch_role_bindings WatchRoleBindingsRequest role_binding, agency agency);
editable!(RoleBinding, UpdateRoleBindingRequest, DeleteRoleBindingRequest, role_binding, agency agency);
makeable!(RoleBinding, CreateRoleBindingRequest, role_binding, agency agency);

resource!(Token, "token", "tokens", Either, TokenServiceClient, get GetTokenRequest, list ListTokensRequest tokens,
    watch watch_tokens WatchTokensRequest token, agency agency);

resource!(Vm, "vm", "vms", Agency, VmServiceClient, get GetVmRequest, list ListVmsRequest vms,
    watch watch_vms WatchVmsRequest vm, agency agency, phase VmPhase "VM_PHASE_" phase, conditions conditions);
editable!(Vm, UpdateVmRequest, DeleteVmRequest, vm, agency agency, force force);
makeable!(Vm, CreateVmRequest, vm, agency agency);

resource!(Volume, "volume", "volumes", Agency, VolumeServiceClient, get GetVolumeRequest,
    list ListVolumesRequest volumes, watch watch_volumes WatchVolumesRequest volume, agency agency,
    phase VolumePhase "VOLUME_PHASE_" phase, conditions conditions);
editable!(Volume, UpdateVolumeRequest, DeleteVolumeRequest, volume,
    agency agency);
makeable!(Volume, CreateVolumeRequest, volume, agency agency);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enum_names_become_words() {
        assert_eq!(word("NODE_PHASE_NOT_READY", "NODE_PHASE_"), "NotReady");
        assert_eq!(word("VM_PHASE_UNSPECIFIED", "VM_PHASE_"), "");
        assert_eq!(Vm::phase_number("running"), Some(VmPhase::Running as i32));
        assert_eq!(Node::phase_number("not-ready"), Some(NodePhase::NotReady as i32));
        assert_eq!(Node::phase_number("NODE_PHASE_READY"), Some(NodePhase::Ready as i32));
        assert_eq!(Node::phase_number("running"), None);
    }
}
