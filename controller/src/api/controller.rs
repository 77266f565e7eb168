//! ControllerService. Controllers come by enrolment; their part in the group is the group's to say.

use tamdao_model::Scope;
use tamdao_model::cluster::Controller;
use tamdao_model::convert::Shown;
use tamdao_model::event::Severity;
use tamdao_proto::v1;
use tamdao_store::kv::Membership;
use tamdao_store::view::View;
use tonic::{Code, Request, Response, Status};

use super::standard::{Standard, service};
use super::{Api, find};
use crate::access::Asking;
use crate::decide;
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for Controller {
    fn complete(proto: &mut v1::Controller, row: &Self, _: &View, shared: &Shared) {
        let group = shared.kv.status();
        let leads = group.leader.as_ref().is_some_and(|leader| leader.id == row.member);
        let voter = group.members.iter().find(|member| member.id == row.member).map(|member| member.voter);
        let role = match (leads, voter) {
            (true, _) => v1::ControllerRole::Leader,
            (false, Some(true)) => v1::ControllerRole::Follower,
            (false, Some(false)) => v1::ControllerRole::Learner,
            (false, None) => v1::ControllerRole::Unspecified,
        };
        let status = proto.status.get_or_insert_default();
        status.role = role as i32;
        let peer = group.peers.iter().find(|peer| peer.id == row.member);
        // The leader shows itself several times a second; three seconds without an answer is silence.
        let heard = peer.and_then(|peer| peer.heard_ms).is_some_and(|ms| ms < 3_000);
        status.reachable = row.member == shared.me.member || heard;
        status.lag = peer.map_or(0, |peer| group.last_log.saturating_sub(peer.matched));
    }
}

impl Api {
    fn membership(&self) -> Result<&dyn Membership, Refusal> {
        self.shared.membership.as_deref().ok_or_else(|| {
            Refusal::new(Code::FailedPrecondition, "NoGroup", "this cloud's store is not made of controllers")
        })
    }

    async fn remove(&self, asking: Asking, name: &str) -> Result<v1::Controller, Refusal> {
        let (view, _) = self.admitted(&asking).await?;
        let membership = self.membership()?;
        let caller = asking.principal.to_string();
        let row = find::<Controller>(&view, Scope::Cluster, name)?.clone();
        let voters = self.shared.kv.status().members.iter().filter(|member| member.voter).count();
        if voters <= 1 {
            let message = format!("controller {name:?} is the last one");
            return Err(Refusal::precondition("LastController", message).hint("add another controller first"));
        }
        if row.member == self.shared.me.member {
            let message = format!("controller {name:?} leads and cannot remove itself");
            return Err(Refusal::precondition("Leads", message)
                .hint("hand leadership over first: tamdao controller transfer-leader OTHER"));
        }
        membership.remove_member(row.member).await?;
        let gone = (*row.value).clone();
        self.shared
            .writer
            .submit(move |draft, moment| {
                decide::event(
                    draft,
                    moment,
                    &gone,
                    Severity::Warning,
                    "Removed",
                    "removed from the group",
                    &caller,
                );
                draft.remove::<Controller>(gone.meta.id);
                Ok(())
            })
            .await?;
        Ok(row.value.show(row.revision.0, &*view))
    }

    async fn transfer(&self, asking: &Asking, name: &str) -> Result<v1::Controller, Refusal> {
        let (view, _) = self.admitted(asking).await?;
        let row = find::<Controller>(&view, Scope::Cluster, name)?;
        self.membership()?.transfer_leadership(row.member).await?;
        Ok(self.show(row, &view))
    }
}

service! {
    controller_service_server::ControllerService, Controller, controller, controllers, cluster, none,
    get get_controller(GetControllerRequest)
    list list_controllers(ListControllersRequest -> ListControllersResponse)
    watch watch_controllers(WatchControllersRequest -> WatchControllersResponse as WatchControllersStream)
    extra {
        async fn remove_controller(
            &self,
            request: Request<v1::RemoveControllerRequest>,
        ) -> Result<Response<v1::Controller>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.remove(asking, &request.into_inner().name).await?))
        }

        async fn transfer_leadership(
            &self,
            request: Request<v1::TransferLeadershipRequest>,
        ) -> Result<Response<v1::Controller>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.transfer(&asking, &request.into_inner().name).await?))
        }
    }
}
