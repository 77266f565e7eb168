//! The public contract: one file per service, each a thin layer that reads the request, lets a decision be made by
//! the one writer, and shows the result.
//!
//! Its invariant: a read sees every change that was acknowledged before it began, on whichever controller it
//! lands; a change is answered from the revision that holds it. Deliberately absent: authentication (done before a
//! request comes here) and the decisions themselves (`decide`).

mod agency;
pub(crate) mod audit;
mod backup;
mod cluster;
mod controller;
mod drain;
mod dump;
mod event;
mod flavor;
mod image;
mod moves;
mod network;
mod node;
pub mod page;
mod placement_group;
mod pool;
mod recovery;
mod replay;
mod role_binding;
mod scheduling_policy;
mod stack;
mod standard;
mod token;
mod transfer;
mod vm;
mod vm_verbs;
mod volume;
mod watch;

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tamdao_model::convert::New;
use tamdao_model::record::Resource;
use tamdao_model::{AgencyId, ClusterId, Kind, Scope};
use tamdao_store::kv::StoreError;
use tamdao_store::view::{Held, View};
use tonic::Request;
use uuid::Uuid;

use crate::access::{Asking, Caller};
use crate::admission::Moment;
use crate::auth;
use crate::refusal::Refusal;
use crate::shared::Shared;

pub use vm::open as open_user_data;
pub use watch::Events;

/// All public services; a clone is another handle.
#[derive(Clone)]
pub struct Api {
    pub(crate) shared: Arc<Shared>,
}

/// What every change carries beside its resource.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Who asks, for events and for the memory of requests.
    caller: String,
    /// What is judged before anything is decided.
    asking: Asking,
    request_id: Option<Uuid>,
    validate_only: bool,
    /// Digest of the whole request: a request_id is for one request only.
    digest: String,
}

impl Asked {
    fn new<M: prost::Message>(
        request: &Request<M>,
        request_id: &str,
        validate_only: bool,
    ) -> Result<Self, Refusal> {
        // First, so that the audit log has the names of what is refused here.
        let asking = Asking::of(request);
        let request_id = match request_id {
            "" => None,
            text => Some(Uuid::parse_str(text).map_err(|_| Refusal::field("request_id", "is not a UUID"))?),
        };
        let mut hash = Sha256::new();
        hash.update(std::any::type_name::<M>());
        hash.update(request.get_ref().encode_to_vec());
        crate::audit::asked(request_id, validate_only);
        let caller = auth::principal(request.metadata()).to_string();
        Ok(Self { caller, asking, request_id, validate_only, digest: hex::encode(hash.finalize()) })
    }
}

impl Api {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A view that holds everything acknowledged before now.
    async fn fresh(&self) -> Result<Arc<View>, StoreError> {
        let revision = self.shared.kv.barrier().await?;
        self.shared.cache.at_least(revision).await
    }

    /// The same, and who asks if he may.
    async fn admitted(&self, asking: &Asking) -> Result<(Arc<View>, Caller), Refusal> {
        let view = self.fresh().await?;
        let caller = asking.judge(&view, self.shared.clock.now())?;
        Ok((view, caller))
    }

    fn cluster_id(&self) -> ClusterId {
        self.shared.cache.view().cluster().map_or(ClusterId(Uuid::nil()), |cluster| cluster.id)
    }
}

/// The agency that a request names, by name or id.
fn agency_of(view: &View, name: &str) -> Result<AgencyId, Refusal> {
    if name.is_empty() {
        return Err(Refusal::field("agency", "must be given"));
    }
    let row =
        view.agencies.find(Scope::Cluster, name).ok_or_else(|| Refusal::not_found(Kind::Agency, name))?;
    Ok(row.id())
}

/// The scope that a request names; an empty agency means the cluster.
fn scope_of(view: &View, agency: &str) -> Result<Scope, Refusal> {
    match agency {
        "" => Ok(Scope::Cluster),
        name => agency_of(view, name).map(Scope::Agency),
    }
}

/// The resource that a request names.
fn find<'a, T: Held + Resource>(
    view: &'a View,
    scope: Scope,
    name: &str,
) -> Result<&'a tamdao_store::view::Row<T>, Refusal> {
    if name.is_empty() {
        return Err(Refusal::field("name", "must be given"));
    }
    T::rows(view).find(scope, name).ok_or_else(|| Refusal::not_found(T::RESOURCE, name))
}

/// Refuses a change that was based on another revision than the present one; 0 skips the check.
fn check_revision<T: Held + Resource>(
    row: &tamdao_store::view::Row<T>,
    based_on: u64,
) -> Result<(), Refusal> {
    if based_on != 0 && based_on != row.revision.0 {
        return Err(Refusal::stale(T::RESOURCE, row.meta().name.as_str(), based_on, row.revision.0));
    }
    Ok(())
}

/// The surroundings of a resource that is being made.
fn new_in(scope: Scope, moment: &mut Moment) -> New {
    New { id: moment.id(), scope, now: moment.now }
}
