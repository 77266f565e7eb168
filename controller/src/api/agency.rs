//! AgencyService.

use tamdao_model::agency::{Agency, AgencyState, Usage};
use tamdao_model::convert::Public;
use tamdao_model::convert::agency as shown;
use tamdao_model::convert::metadata::STACK;
use tamdao_model::event::Severity;
use tamdao_model::{AgencyId, Kind, Name, Scope};
use tamdao_proto::v1;
use tamdao_store::typed::Draft;
use tamdao_store::view::View;
use tonic::{Request, Response, Status};

use super::standard::{Standard, Writable, based_on, replace, service};
use super::{Api, Asked, check_revision, find};
use crate::access;
use crate::admission::Moment;
use crate::decide::{self, quota};
use crate::refusal::Refusal;
use crate::shared::Shared;

impl Standard for Agency {
    fn owners(&self, view: &View) -> Vec<AgencyId> {
        // One that is deleted still has its place.
        let above = self.spec.parent.map(|parent| access::owners(view, parent)).unwrap_or_default();
        std::iter::once(self.id()).chain(above).collect()
    }

    fn complete(proto: &mut v1::Agency, row: &Self, view: &View, _: &Shared) {
        let status = proto.status.get_or_insert_default();
        status.usage = Some(shown::show_usage(&view.usage(row.id()).amounts));
        status.given = shown::show_amounts(&quota::given(view, row.id()));
        let free = quota::free(view, row).into_iter();
        status.free = free.map(|(measure, amount)| (measure.to_string(), amount)).collect();
        if let Some(above) =
            quota::line(view, row.id()).skip(1).find(|row| row.spec.state > AgencyState::Active)
        {
            status.conditions.push(v1::Condition {
                r#type: "Open".into(),
                status: v1::ConditionStatus::False.into(),
                reason: "AgencyAbove".into(),
                message: format!("agency {:?} above is frozen or archived", above.meta.name.as_str()),
                observed_generation: row.meta.generation,
                last_transition_time: None,
            });
        }
    }
}

impl Writable for Agency {
    fn check_new(&self, view: &View) -> Result<(), Refusal> {
        if let Some(parent) = self.spec.parent {
            quota::check_open(view, parent)?;
        }
        quota::check_agency(view, self)
    }

    fn check_changed(&self, before: &Self, view: &View) -> Result<(), Refusal> {
        if self.spec.parent != before.spec.parent
            && let Some(parent) = self.spec.parent
        {
            quota::check_open(view, parent)?;
        }
        if self.spec.parent != before.spec.parent || self.spec.quota != before.spec.quota {
            quota::check_agency(view, self)?;
        }
        if self.spec.state == AgencyState::Archived && before.spec.state != AgencyState::Archived {
            check_nothing_runs(view, self)?;
        }
        Ok(())
    }

    fn check_unused(&self, view: &View) -> Result<(), Refusal> {
        let scope = Some(Scope::Agency(self.id()));
        let owned = [
            ("agencies below it", quota::children(view, self.id()).count()),
            ("VMs", view.vms.names(scope, None).count()),
            ("volumes", view.volumes.names(scope, None).count()),
            ("images", view.images.names(scope, None).count()),
            ("networks", view.networks.names(scope, None).count()),
            ("tokens", view.tokens.names(scope, None).count()),
            ("role bindings", view.role_bindings.names(scope, None).count()),
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

/// An agency is archived once all its VMs, and those of the agencies below it, are off.
fn check_nothing_runs(view: &View, agency: &Agency) -> Result<(), Refusal> {
    let within = |vm: &&_| {
        let vm: &tamdao_store::view::Row<tamdao_model::vm::Vm> = vm;
        vm.wants_on() && quota::line(view, vm.agency).any(|row| row.id() == agency.id())
    };
    let on = view.vms.iter().filter(within).count();
    if on == 0 {
        return Ok(());
    }
    let message =
        format!("{on} VMs of agency {:?}, or of agencies below it, are on", agency.meta.name.as_str());
    Err(Refusal::precondition("NotOff", message).hint("stop them first: tamdao vm stop"))
}

impl Api {
    /// What refers to it does so by its UUID; only people and manifests use the name.
    async fn rename_one_agency(
        &self,
        asked: Asked,
        request: v1::RenameAgencyRequest,
    ) -> Result<v1::Agency, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let row = find::<Agency>(draft.view(), Scope::Cluster, &request.name)?.clone();
            check_revision(&row, request.revision)?;
            let wrong = |why: String| Refusal::field("new_name", why);
            let name = Name::new(&request.new_name).map_err(|why| wrong(why.to_string()))?;
            if let Some(stack) = row.meta.labels.get(STACK) {
                let message =
                    format!("the agency belongs to stack {stack:?}, whose manifests know it by its name");
                return Err(Refusal::precondition("OwnedByStack", message)
                    .hint(format!("release it with the label {STACK}=, and adopt it under its new name")));
            }
            if draft.view().agencies.id_of(Scope::Cluster, &name).is_some_and(|id| id != row.meta.id) {
                return Err(Refusal::exists(Kind::Agency, name.as_str()));
            }
            let mut agency = (*row.value).clone();
            if agency.meta.name != name {
                let message = format!("was {:?}", agency.meta.name.as_str());
                agency.meta.name = name;
                decide::event(draft, moment, &agency, Severity::Info, "Renamed", message, &asked.caller);
                draft.rename(agency.clone());
            }
            Ok(agency)
        })
        .await
    }

    /// Moving an agency under another one needs what making one there needs.
    async fn update_one_agency(
        &self,
        asked: Asked,
        request: v1::UpdateAgencyRequest,
    ) -> Result<v1::Agency, Refusal> {
        let proto = request.agency.unwrap_or_default();
        let revision = based_on(proto.metadata.as_ref());
        self.change(asked.clone(), move |draft, moment| {
            let row = find::<Agency>(draft.view(), Scope::Cluster, &request.name)?.clone();
            check_revision(&row, revision)?;
            let new = row.value.update(proto.clone(), request.update_mask.as_ref(), draft.view())?;
            if new.spec.parent != row.spec.parent {
                let parent = new.spec.parent.map(|id| id.to_string()).unwrap_or_default();
                asked.asking.to_place_under(&parent).judge(draft.view(), moment.now)?;
            }
            replace::<Agency>(draft, moment, &row.value, new, &asked.caller)
        })
        .await
    }
}

service! {
    agency_service_server::AgencyService, Agency, agency, agencies, cluster, phase,
    get get_agency(GetAgencyRequest) list list_agencies(ListAgenciesRequest -> ListAgenciesResponse)
    watch watch_agencies(WatchAgenciesRequest -> WatchAgenciesResponse as WatchAgenciesStream)
    create create_agency(CreateAgencyRequest)
    delete delete_agency(DeleteAgencyRequest)
    extra {
        async fn update_agency(
            &self,
            request: Request<v1::UpdateAgencyRequest>,
        ) -> Result<Response<v1::Agency>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.update_one_agency(asked, request.into_inner()).await?))
        }

        async fn rename_agency(
            &self,
            request: Request<v1::RenameAgencyRequest>,
        ) -> Result<Response<v1::Agency>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.rename_one_agency(asked, request.into_inner()).await?))
        }
    }
}
