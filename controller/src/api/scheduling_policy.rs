//! SchedulingPolicyService: the one policy of the cluster. It is made with the cluster, so there is nothing to create,
//! list or delete.

use std::collections::BTreeSet;

use tamdao_model::Scope;
use tamdao_model::scheduling_policy::SchedulingPolicy;
use tamdao_proto::v1;
use tamdao_proto::v1::scheduling_policy_service_server::SchedulingPolicyService;
use tamdao_scheduler::from_model;
use tamdao_scheduler::score::TABLE;
use tamdao_store::view::View;
use tonic::{Request, Response, Status};

use super::standard::{Standard, based_on};
use super::{Api, Asked, Events, check_revision, find};
use crate::access::Asking;
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for SchedulingPolicy {
    fn complete(proto: &mut v1::SchedulingPolicy, row: &Self, _: &View, _: &Shared) {
        let weights = from_model::weights(row).0;
        let part = |(part, weight): (&tamdao_scheduler::score::Part, u32)| v1::ScorePart {
            name: part.name.to_owned(),
            weight,
            default_weight: part.weight,
            measures: part.measures.to_owned(),
        };
        proto.status.get_or_insert_default().score_parts = TABLE.iter().zip(weights).map(part).collect();
    }
}

/// Refuses weights of parts that the score does not have.
fn check_weights(policy: &SchedulingPolicy) -> Result<(), Refusal> {
    let known = |name: &String| TABLE.iter().any(|part| part.name == name);
    let Some(name) = policy.spec.weights.keys().find(|name| !known(name)) else { return Ok(()) };
    let parts: Vec<_> = TABLE.iter().map(|part| part.name).collect();
    Err(Refusal::field(
        format!("scheduling_policy.spec.weights[{name:?}]"),
        format!("is no part of the score; the parts are {}", parts.join(", ")),
    ))
}

/// Refuses a CPU model that no node can give.
fn check_cpu_model(view: &View, policy: &SchedulingPolicy) -> Result<(), Refusal> {
    let Some(platform) = policy.first_platform() else { return Ok(()) };
    if view.nodes.is_empty() || view.nodes.iter().any(|node| node.cannot_be(&platform).is_none()) {
        return Ok(());
    }
    let mut models = view.nodes.iter().map(|node| node.status.inventory.cpu_models.iter().collect());
    let first: BTreeSet<&String> = models.next().unwrap_or_default();
    let common = models.fold(first, |all, here: BTreeSet<&String>| &all & &here);
    let common: Vec<&str> = common.into_iter().map(String::as_str).collect();
    let wrong = format!("no node can give a {}", platform.cpu_model);
    let refusal = Refusal::field("scheduling_policy.spec.cpu_model", wrong);
    Err(match common.is_empty() {
        true => refusal,
        false => refusal.hint(format!("every node can give {}", common.join(", "))),
    })
}

impl Api {
    async fn update_policy(
        &self,
        asked: Asked,
        request: v1::UpdateSchedulingPolicyRequest,
    ) -> Result<v1::SchedulingPolicy, Refusal> {
        let proto = request.scheduling_policy.unwrap_or_default();
        let revision = based_on(proto.metadata.as_ref());
        self.change(asked.clone(), move |draft, moment| {
            let row = find::<SchedulingPolicy>(draft.view(), Scope::Cluster, SchedulingPolicy::NAME)?.clone();
            check_revision(&row, revision)?;
            let policy = row.value.updated(proto.clone(), request.update_mask.as_ref(), draft.view())?;
            check_weights(&policy)?;
            check_cpu_model(draft.view(), &policy)?;
            if policy != *row.value {
                let severity = tamdao_model::event::Severity::Info;
                decide::event(draft, moment, &policy, severity, "Updated", "updated", &asked.caller);
                draft.put(policy.clone());
            }
            Ok(policy)
        })
        .await
    }
}

#[tonic::async_trait]
impl SchedulingPolicyService for Api {
    async fn get_scheduling_policy(
        &self,
        request: Request<v1::GetSchedulingPolicyRequest>,
    ) -> Result<Response<v1::SchedulingPolicy>, Status> {
        let asking = Asking::of(&request);
        Ok(Response::new(self.get::<SchedulingPolicy>(&asking, "", SchedulingPolicy::NAME).await?))
    }

    async fn update_scheduling_policy(
        &self,
        request: Request<v1::UpdateSchedulingPolicyRequest>,
    ) -> Result<Response<v1::SchedulingPolicy>, Status> {
        let body = request.get_ref();
        let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
        Ok(Response::new(self.update_policy(asked, request.into_inner()).await?))
    }

    type WatchSchedulingPolicyStream = Events<v1::WatchSchedulingPolicyResponse>;

    async fn watch_scheduling_policy(
        &self,
        request: Request<v1::WatchSchedulingPolicyRequest>,
    ) -> Result<Response<Self::WatchSchedulingPolicyStream>, Status> {
        let asking = Asking::of(&request);
        let cursor = request.into_inner().cursor;
        let stream = self
            .watch::<SchedulingPolicy, _>(asking, "", "", "", &cursor, |event, resource, cursor| {
                v1::WatchSchedulingPolicyResponse { event: event as i32, scheduling_policy: resource, cursor }
            })
            .await?;
        Ok(Response::new(stream))
    }
}
