//! The one port: TLS, HTTP/1.1 and HTTP/2, and behind it every face of the controller.
//!
//! Its invariant: nothing reaches a service without having passed the gate, and everything is bounded: connections,
//! headers, bodies, handshakes and silence. The REST face calls the very services that gRPC calls; the young crate
//! that makes it is named in `serve/rest.rs` only. Deliberately absent: what the services do.

mod listen;
mod local;
mod openapi;
mod rest;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use http::header::{CONTENT_TYPE, HeaderValue};
use tamdao_model::limits::BODY_BYTES;
use tamdao_proto::agent::v1 as agent;
use tamdao_proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::admission::Writer;
use crate::auth::{self, Gate};
use crate::forward::{self, Forward};
use crate::images::Images;
use crate::journals::Journals;
use crate::metrics::{self, Readiness};

pub use listen::{Listener, ServeError, plain};
pub use local::Local;

/// A chunk of an image is at most 1 MiB; the rest is its frame.
const CHUNK_MESSAGE_BYTES: usize = (1 << 20) + 64 * 1024;
/// What an agent reports at once is bounded by the VMs of a node.
const AGENT_MESSAGE_BYTES: usize = 8 << 20;
/// How often readiness is looked at for the standard health service.
const HEALTH_CHECK: Duration = Duration::from_secs(1);

/// Everything that is served, and what stands in front of it.
pub struct Faces<A, S, E> {
    /// The public services, all on one value.
    pub api: A,
    pub agents: S,
    pub enroll: E,
    /// What the store's backend wants served for the other controllers; empty for none.
    pub store: Routes,
    pub images: Arc<Images>,
    pub journals: Arc<Journals>,
    pub writer: Writer,
    pub gate: Gate,
    pub forward: Forward,
    pub readiness: Readiness,
}

/// What implements every public service.
pub trait PublicApi:
    v1::agency_service_server::AgencyService
    + v1::audit_service_server::AuditService
    + v1::backup_service_server::BackupService
    + v1::cluster_service_server::ClusterService
    + v1::controller_service_server::ControllerService
    + v1::event_service_server::EventService
    + v1::flavor_service_server::FlavorService
    + v1::image_service_server::ImageService
    + v1::move_service_server::MoveService
    + v1::network_service_server::NetworkService
    + v1::node_service_server::NodeService
    + v1::placement_group_service_server::PlacementGroupService
    + v1::pool_service_server::PoolService
    + v1::recovery_service_server::RecoveryService
    + v1::role_binding_service_server::RoleBindingService
    + v1::scheduling_policy_service_server::SchedulingPolicyService
    + v1::stack_service_server::StackService
    + v1::token_service_server::TokenService
    + v1::transfer_service_server::TransferService
    + v1::vm_service_server::VmService
    + v1::volume_service_server::VolumeService
    + Clone
{
}

impl<T> PublicApi for T where
    T: v1::agency_service_server::AgencyService
        + v1::audit_service_server::AuditService
        + v1::backup_service_server::BackupService
        + v1::cluster_service_server::ClusterService
        + v1::controller_service_server::ControllerService
        + v1::event_service_server::EventService
        + v1::flavor_service_server::FlavorService
        + v1::image_service_server::ImageService
        + v1::move_service_server::MoveService
        + v1::network_service_server::NetworkService
        + v1::node_service_server::NodeService
        + v1::placement_group_service_server::PlacementGroupService
        + v1::pool_service_server::PoolService
        + v1::recovery_service_server::RecoveryService
        + v1::role_binding_service_server::RoleBindingService
        + v1::scheduling_policy_service_server::SchedulingPolicyService
        + v1::stack_service_server::StackService
        + v1::token_service_server::TokenService
        + v1::transfer_service_server::TransferService
        + v1::vm_service_server::VmService
        + v1::volume_service_server::VolumeService
        + Clone
{
}

/// The router of the public port. The tasks that it needs end with `stop`.
///
/// # Errors
/// When the descriptors of the protos cannot be served.
pub fn router<A, S, E>(faces: Faces<A, S, E>, stop: &CancellationToken) -> Result<Router, ServeError>
where
    A: PublicApi,
    S: agent::agent_service_server::AgentService,
    E: agent::enroll_service_server::EnrollService,
{
    let Faces { api, agents, enroll, store, images, journals, writer, gate, forward, readiness } = faces;
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(reporter, readiness.clone(), stop.clone()));
    let agents = agent::agent_service_server::AgentServiceServer::new(agents)
        .max_decoding_message_size(AGENT_MESSAGE_BYTES);
    let enroll =
        agent::enroll_service_server::EnrollServiceServer::new(enroll).max_decoding_message_size(BODY_BYTES);
    let grpc = public(store, &api).add_service(agents).add_service(enroll).add_service(health);
    let grpc = with_reflection(grpc)?;
    let openapi = axum::body::Bytes::from(openapi::document());
    Ok(grpc
        .into_axum_router()
        .merge(crate::images::routes(images))
        .merge(crate::journals::routes(journals))
        .merge(crate::receiver::routes(writer))
        .merge(metrics::probes(readiness))
        .route("/openapi.json", get(|| async move { json(openapi) }))
        .fallback_service(rest::service(api))
        .layer(from_fn_with_state(forward, forward::carry))
        .layer(from_fn_with_state(gate, auth::guard))
        .layer(from_fn(metrics::measure)))
}

/// The public services over gRPC.
fn public<A: PublicApi>(routes: Routes, api: &A) -> Routes {
    macro_rules! services {
        ($($module:ident :: $server:ident = $limit:expr;)*) => {
            routes$(.add_service(v1::$module::$server::new(api.clone()).max_decoding_message_size($limit)))*
        };
    }
    services! {
        agency_service_server::AgencyServiceServer = BODY_BYTES;
        audit_service_server::AuditServiceServer = BODY_BYTES;
        backup_service_server::BackupServiceServer = BODY_BYTES;
        cluster_service_server::ClusterServiceServer = BODY_BYTES;
        controller_service_server::ControllerServiceServer = BODY_BYTES;
        event_service_server::EventServiceServer = BODY_BYTES;
        flavor_service_server::FlavorServiceServer = BODY_BYTES;
        image_service_server::ImageServiceServer = BODY_BYTES;
        move_service_server::MoveServiceServer = BODY_BYTES;
        network_service_server::NetworkServiceServer = BODY_BYTES;
        node_service_server::NodeServiceServer = BODY_BYTES;
        placement_group_service_server::PlacementGroupServiceServer = BODY_BYTES;
        pool_service_server::PoolServiceServer = BODY_BYTES;
        recovery_service_server::RecoveryServiceServer = BODY_BYTES;
        role_binding_service_server::RoleBindingServiceServer = BODY_BYTES;
        scheduling_policy_service_server::SchedulingPolicyServiceServer = BODY_BYTES;
        stack_service_server::StackServiceServer = BODY_BYTES;
        token_service_server::TokenServiceServer = BODY_BYTES;
        transfer_service_server::TransferServiceServer = CHUNK_MESSAGE_BYTES;
        vm_service_server::VmServiceServer = BODY_BYTES;
        volume_service_server::VolumeServiceServer = BODY_BYTES;
    }
}

/// Reflection in both versions, because widespread clients still ask for the old one.
fn with_reflection(routes: Routes) -> Result<Routes, ServeError> {
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tamdao_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| ServeError::Reflection(error.to_string());
    let (new, old) =
        (descriptors().build_v1().map_err(failed)?, descriptors().build_v1alpha().map_err(failed)?);
    Ok(routes.add_service(new).add_service(old))
}

/// Lets the standard health service say what /readyz says.
async fn report_health(reporter: HealthReporter, readiness: Readiness, stop: CancellationToken) {
    let mut tick = tokio::time::interval(HEALTH_CHECK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let status = match readiness.check().await {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        reporter.set_service_status("", status).await;
    }
}

fn json(bytes: axum::body::Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
