//! NodeService. Nodes come by enrolment, so there is no create.

use tamdao_model::assignment::{Assignment, Hold, Intent, VmEntry};
use tamdao_model::bmc::Bmc;
use tamdao_model::convert::Public;
use tamdao_model::convert::agent::show_inventory;
use tamdao_model::event::Severity;
use tamdao_model::fence::Evidence;
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::{Kind, Scope, convert::metadata::timestamp, limits};
use tamdao_proto::v1;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::{Request, Response, Status};

use super::standard::{Standard, Writable, based_on, replace, service};
use super::{Api, Asked, check_revision, find};
use crate::access::Asking;
use crate::admission::Moment;
use crate::bmc::{self, Access};
use crate::decide::{self, fence};
use crate::pki::ClusterKey;
use crate::reconcile::driller;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// What an operator may say about a node that is gone, characters.
const REASON_CHARS: usize = 200;

/// VMs that a refusal names.
const NAMED: usize = 5;

impl Standard for Node {
    fn complete(proto: &mut v1::Node, row: &Self, view: &View, shared: &Shared) {
        let assignment = view.assignment(row.id());
        let (allocatable, reserved) = (row.allocatable(), assignment.reserved());
        let local = |pool: &&_| {
            let pool: &tamdao_store::view::Row<tamdao_model::pool::Pool> = pool;
            !pool.spec.shared
        };
        let disk = view.pools.iter().filter(local).map(|pool| row.pool_allocatable_mib(pool)).sum();
        let promised = assignment.volumes.values().map(|volume| u64::from(volume.size_mib)).sum();
        let status = proto.status.get_or_insert_default();
        status.inventory = Some(show_inventory(&row.status.inventory));
        status.allocatable = Some(v1::Capacity {
            vcpus: allocatable.vcpus,
            memory_mib: allocatable.memory_mib,
            disk_mib: disk,
        });
        status.allocated =
            Some(v1::Capacity { vcpus: reserved.vcpus, memory_mib: reserved.memory_mib, disk_mib: promised });
        status.vms = u32::try_from(assignment.vms.len()).unwrap_or(u32::MAX);
        if let Some(drain) = &mut status.drain {
            drain.vms_away = crate::decide::drain::away(view, row.id());
        }
        status.last_seen = shared.sessions.last_heard(row.id()).and_then(timestamp);
    }
}

impl Writable for Node {
    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let assignment = view.assignment(self.id());
        // Of a fenced node it is proven that what is only to be confirmed gone is gone, and nobody waits for what it has
        // only to remove.
        let fenced = self.status.phase == NodePhase::Fenced;
        let left = |entry: &VmEntry| !(fenced && entry.intent == Intent::Stale);
        let files =
            assignment.volumes.values().filter(|entry| !(fenced && entry.hold == Hold::Leaving)).count();
        if !assignment.vms.values().any(left) && files == 0 {
            return Ok(());
        }
        let names: Vec<&str> = assignment
            .vms
            .iter()
            .filter(|(_, entry)| left(entry))
            .take(NAMED)
            .filter_map(|(vm, _)| Some(view.vms.get(*vm)?.value.meta.name.as_str()))
            .collect();
        let mut message = format!(
            "node {:?} still holds {} VMs and {} volumes",
            self.meta.name.as_str(),
            assignment.vms.values().filter(|entry| left(entry)).count(),
            files
        );
        if !names.is_empty() {
            message += &format!(": {}", names.join(", "));
        }
        Err(Refusal::precondition("NotEmpty", message)
            .hint("`tamdao node drain NAME` moves what runs there away; delete what stays, and volumes without a VM"))
    }

    fn drop_from(&self, draft: &mut Draft, moment: &mut Moment, caller: &str) -> Result<Self, Refusal> {
        self.check_unused(draft.view())?;
        decide::event(draft, moment, self, Severity::Info, "Removed", "removed from the cluster", caller);
        draft.delete::<Assignment>(self.id());
        draft.remove::<Self>(self.meta.id);
        Ok(self.clone())
    }
}

/// What takes the place of a password: its sealed form, or nothing where it is the one that is known.
fn sealed(key: &ClusterKey, known: &[Bmc], new: &v1::Bmc, field: &str) -> Result<String, Refusal> {
    if new.password.is_empty() {
        return Ok(String::new());
    }
    if new.password.len() > limits::BMC_PASSWORD_BYTES {
        return Err(Refusal::field(field, format!("takes {} bytes at most", limits::BMC_PASSWORD_BYTES)));
    }
    let before = known.iter().find(|old| (&old.url, &old.username) == (&new.url, &new.username));
    let same = |old: &Bmc| Access::open(key, old).is_ok_and(|access| access.password.0 == new.password);
    if before.is_some_and(same) {
        return Ok(String::new());
    }
    let sealed = bmc::seal(key, &new.password).map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(sealed.to_text())
}

impl Api {
    async fn cordon(&self, asked: Asked, name: String, cordoned: bool) -> Result<v1::Node, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let row = find::<Node>(draft.view(), Scope::Cluster, &name)?.clone();
            let mut node = (*row.value).clone();
            if node.spec.cordoned != cordoned {
                node.spec.cordoned = cordoned;
                node.meta.generation += 1;
            }
            replace::<Node>(draft, moment, &row.value, node, &asked.caller)
        })
        .await
    }

    async fn change_node(&self, asked: Asked, request: v1::UpdateNodeRequest) -> Result<v1::Node, Refusal> {
        let v1::UpdateNodeRequest { name, node, update_mask, .. } = request;
        let mut node = node.unwrap_or_default();
        let revision = based_on(node.metadata.as_ref());
        // Sealing needs chance, which decisions have none of: so it comes first, and what is known already is kept.
        let view = self.fresh().await?;
        let known =
            find::<Node>(&view, Scope::Cluster, &name).map(|row| row.spec.bmcs.clone()).unwrap_or_default();
        for (i, bmc) in node.spec.iter_mut().flat_map(|spec| &mut spec.bmcs).enumerate() {
            let field = format!("node.spec.bmcs[{i}].password");
            bmc.password = sealed(&self.shared.key, &known, bmc, &field)?;
        }
        self.change(asked.clone(), move |draft, moment| {
            let row = find::<Node>(draft.view(), Scope::Cluster, &name)?.clone();
            check_revision(&row, revision)?;
            let new = row.value.update(node.clone(), update_mask.as_ref(), draft.view())?;
            replace::<Node>(draft, moment, &row.value, new, &asked.caller)
        })
        .await
    }

    /// Asks a node's BMCs now.
    async fn drill_fencing_of(&self, asking: Asking, name: &str) -> Result<v1::Node, Refusal> {
        let (view, _) = self.admitted(&asking).await?;
        let row = find::<Node>(&view, Scope::Cluster, name)?;
        if row.spec.bmcs.is_empty() {
            let message = format!("node {:?} has no BMC", row.meta.name.as_str());
            return Err(Refusal::precondition("NoBmc", message)
                .hint("tamdao node update NAME --bmc https://ADDRESS,user=NAME,password-file=FILE,ca=FILE"));
        }
        let id = row.id();
        driller::drill(&self.shared, id).await?;
        let view = self.fresh().await?;
        let row = view.nodes.get(id).ok_or_else(|| Refusal::not_found(Kind::Node, name))?;
        Ok(self.show(row, &view))
    }

    /// Takes a person's word that a lost node runs nothing.
    async fn attest_gone(
        &self,
        asked: Asked,
        request: v1::AttestNodeGoneRequest,
    ) -> Result<v1::Node, Refusal> {
        let v1::AttestNodeGoneRequest { name, reason, .. } = request;
        if reason.chars().count() > REASON_CHARS || reason.chars().any(char::is_control) {
            return Err(Refusal::field(
                "reason",
                format!("takes {REASON_CHARS} characters at most, and one line"),
            ));
        }
        self.change(asked.clone(), move |draft, moment| {
            let node = find::<Node>(draft.view(), Scope::Cluster, &name)?.value.clone();
            let evidence = Evidence::Attestation { reason: reason.clone() };
            let proof = fence::proof_of(&node, evidence, asked.caller.clone(), moment.now);
            fence::prove(draft, moment, proof).map_err(|refusal| {
                refusal.hint("stop its agent and cut its power first, or delete its VMs one by one")
            })
        })
        .await
    }
}

service! {
    node_service_server::NodeService, Node, node, nodes, cluster, phase,
    get get_node(GetNodeRequest) list list_nodes(ListNodesRequest -> ListNodesResponse)
    watch watch_nodes(WatchNodesRequest -> WatchNodesResponse as WatchNodesStream)
    delete delete_node(DeleteNodeRequest)
    extra {
        async fn cordon_node(
            &self,
            request: Request<v1::CordonNodeRequest>,
        ) -> Result<Response<v1::Node>, Status> {
            let asked = Asked::new(&request, &request.get_ref().request_id, false)?;
            Ok(Response::new(self.cordon(asked, request.into_inner().name, true).await?))
        }

        async fn uncordon_node(
            &self,
            request: Request<v1::UncordonNodeRequest>,
        ) -> Result<Response<v1::Node>, Status> {
            let asked = Asked::new(&request, &request.get_ref().request_id, false)?;
            Ok(Response::new(self.cordon(asked, request.into_inner().name, false).await?))
        }

        async fn attest_node_gone(
            &self,
            request: Request<v1::AttestNodeGoneRequest>,
        ) -> Result<Response<v1::Node>, Status> {
            let asked = Asked::new(&request, &request.get_ref().request_id, false)?;
            Ok(Response::new(self.attest_gone(asked, request.into_inner()).await?))
        }

        async fn update_node(
            &self,
            request: Request<v1::UpdateNodeRequest>,
        ) -> Result<Response<v1::Node>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.change_node(asked, request.into_inner()).await?))
        }

        async fn drill_fencing(
            &self,
            request: Request<v1::DrillFencingRequest>,
        ) -> Result<Response<v1::Node>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.drill_fencing_of(asking, &request.into_inner().name).await?))
        }

        async fn drain_nodes(
            &self,
            request: Request<v1::DrainNodesRequest>,
        ) -> Result<Response<v1::DrainNodesResponse>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.drain(asking, request.into_inner()).await?))
        }

        async fn cancel_drain(
            &self,
            request: Request<v1::CancelDrainRequest>,
        ) -> Result<Response<v1::CancelDrainResponse>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.cancel_drains(asking, &request.into_inner()).await?))
        }

        async fn return_nodes(
            &self,
            request: Request<v1::ReturnNodesRequest>,
        ) -> Result<Response<v1::ReturnNodesResponse>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.bring_back(asking, request.into_inner()).await?))
        }
    }
}
