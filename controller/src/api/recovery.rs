//! RecoveryService: how far a cloud that recovers has found out what runs, and the operator's word that it is enough.

use tamdao_model::convert::metadata::timestamp;
use tamdao_model::recovery::{Cause, Found};
use tamdao_model::{NodeId, VmId};
use tamdao_proto::v1;
use tamdao_proto::v1::recovery_service_server::RecoveryService;
use tamdao_store::view::View;
use tonic::{Request, Response, Status};

use super::Api;
use crate::access::Asking;
use crate::decide::recovery::{self, Accounts};
use crate::refusal::Refusal;

/// What one decision has the records follow: each thing takes some records, and all must fit a transaction.
const BATCH: usize = 4;

impl Api {
    fn recovery(&self, view: &View) -> v1::Recovery {
        let Some(on) = recovery::of(view) else { return v1::Recovery::default() };
        let accounts = recovery::accounts(view);
        let nodes = |ids: &[NodeId]| ids.iter().map(|id| node_name(view, *id)).collect();
        let guests = |all: &[(NodeId, VmId, Found)]| {
            all.iter().map(|(node, vm, found)| guest(view, Some(*node), *vm, Some(found))).collect()
        };
        let down = |id: &VmId| guest(view, view.vms.get(*id).and_then(|vm| vm.status.node), *id, None);
        let Accounts { awaited, reported, gone, unknown, moved, twice, down: idle } = &accounts;
        let (cause, witness, witness_revision) = match &on.cause {
            Cause::Restored => (v1::RecoveryCause::Restored, String::new(), 0),
            Cause::Survivor => (v1::RecoveryCause::Survivor, String::new(), 0),
            Cause::WentBack { node, seen, .. } => {
                (v1::RecoveryCause::WentBack, node_name(view, *node), *seen)
            }
        };
        v1::Recovery {
            active: true,
            cause: cause.into(),
            witness,
            witness_revision,
            since: timestamp(on.since),
            backup_time: timestamp(on.backup_time),
            backup_revision: on.revision,
            backup_cluster_id: on.cluster.to_string(),
            awaited: nodes(awaited),
            reported: nodes(reported),
            gone: nodes(gone),
            unknown: guests(unknown),
            moved: guests(moved),
            twice: guests(twice),
            down: idle.iter().map(down).collect(),
            strangers: self.strangers(view).iter().map(ToString::to_string).collect(),
        }
    }

    /// Nodes that were heard and are in no record.
    fn strangers(&self, view: &View) -> Vec<NodeId> {
        self.shared.strangers.all().into_iter().filter(|id| view.nodes.get(*id).is_none()).collect()
    }

    /// Has the records follow what was found, little by little; each part may be the last that is done.
    async fn catch_up(&self, asking: &Asking) -> Result<(), Refusal> {
        let due = recovery::due(&*self.fresh().await?);
        for part in due.chunks(BATCH) {
            let (asking, part) = (asking.clone(), part.to_vec());
            let decided = self.shared.writer.submit(move |draft, moment| {
                asking.judge(draft.view(), moment.now)?;
                // What was found since may be something else.
                let still = recovery::due(draft.view());
                for what in part.iter().filter(|what| still.contains(what)) {
                    recovery::settle(draft, moment, what);
                }
                Ok(())
            });
            decided.await?;
        }
        Ok(())
    }

    async fn end(&self, asking: Asking, leave_strangers: bool) -> Result<v1::Recovery, Refusal> {
        let (view, _) = self.admitted(&asking).await?;
        let strangers = self.strangers(&view);
        if let Some(first) = strangers.first().filter(|_| !leave_strangers && recovery::is_on(&view)) {
            let message = format!(
                "{} nodes are heard that no record knows, such as {first}; what they run may be started twice",
                strangers.len()
            );
            return Err(Refusal::precondition("Strangers", message).hint(
                "shut their guests down, or end it with --leave-strangers; they join anew afterwards",
            ));
        }
        self.catch_up(&asking).await?;
        let (by, judged) = (asking.principal.to_string(), asking.clone());
        let decided = self.shared.writer.submit(move |draft, moment| {
            judged.judge(draft.view(), moment.now)?;
            recovery::end(draft)
        });
        decided.await?;
        tracing::warn!(by, "the recovery has ended");
        self.catch_up(&asking).await?;
        Ok(self.recovery(&*self.fresh().await?))
    }
}

fn node_name(view: &View, id: NodeId) -> String {
    view.nodes.get(id).map_or_else(|| id.to_string(), |node| node.meta.name.to_string())
}

fn guest(view: &View, node: Option<NodeId>, id: VmId, found: Option<&Found>) -> v1::FoundGuest {
    let vm = view.vms.get(id);
    let agency = vm.and_then(|vm| view.agencies.get(vm.agency)).map(|agency| agency.meta.name.to_string());
    let addresses = found.into_iter().flat_map(|found| &found.addresses);
    v1::FoundGuest {
        vm_id: id.to_string(),
        vm: vm.map(|vm| vm.meta.name.to_string()).unwrap_or_default(),
        agency: agency.unwrap_or_default(),
        node: node.map(|node| node_name(view, node)).unwrap_or_default(),
        incarnation: found
            .map_or_else(|| vm.map_or(0, |vm| vm.status.incarnation), |found| found.incarnation),
        addresses: addresses.map(ToString::to_string).collect(),
        vcpus: found.map_or(0, |found| found.vcpus),
        memory_mib: found.map_or(0, |found| found.memory_mib),
    }
}

#[tonic::async_trait]
impl RecoveryService for Api {
    async fn get_recovery(
        &self,
        request: Request<v1::GetRecoveryRequest>,
    ) -> Result<Response<v1::Recovery>, Status> {
        let (view, _) = self.admitted(&Asking::of(&request)).await?;
        Ok(Response::new(self.recovery(&view)))
    }

    async fn end_recovery(
        &self,
        request: Request<v1::EndRecoveryRequest>,
    ) -> Result<Response<v1::Recovery>, Status> {
        let asking = Asking::of(&request);
        Ok(Response::new(self.end(asking, request.get_ref().leave_strangers).await?))
    }
}
