//! VmService: what users ask for and get back. How a VM is made, changed and deleted is decided in `decide`.

use tamdao_model::Scope;
use tamdao_model::convert::{Invalid, UserDataChange, check_template, vm as read};
use tamdao_model::sealed::Sealed;
use tamdao_model::vm::{DiskSource, Vm};
use tamdao_proto::v1;
use tamdao_store::view::View;
use tonic::{Request, Response, Status};

use super::standard::{Standard, based_on, service};
use super::vm_verbs;
use super::{Api, Asked, agency_of, check_revision, find};
use crate::access::Asking;
use crate::decide::{self, fence, quota, vm_create, vm_delete, vm_power::Verb};
use crate::pki::ClusterKey;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// The context that user data is sealed in.
pub const USER_DATA: &str = "vm.user_data";

impl Standard for Vm {
    fn complete(proto: &mut v1::Vm, row: &Self, view: &View, _: &Shared) {
        let status = proto.status.get_or_insert_default();
        let name = |disk: &tamdao_model::vm::Disk| match disk.source {
            DiskSource::Volume { volume, .. } => {
                view.volumes.get(volume).map(|volume| volume.meta.name.to_string()).unwrap_or_default()
            }
            DiskSource::Iso { .. } | DiskSource::Empty => String::new(),
        };
        status.volumes = row.spec.disks.iter().map(name).collect();
        let protection = fence::protection(view, row);
        status.protected = protection.is_ok();
        let (holds, reason, message) = match protection {
            Ok(()) => (
                v1::ConditionStatus::True,
                "Guarded",
                "it is restarted elsewhere when its node is lost".into(),
            ),
            Err(unprotected) => (v1::ConditionStatus::False, unprotected.reason, unprotected.message),
        };
        status.conditions.push(v1::Condition {
            r#type: "Protected".into(),
            status: holds.into(),
            reason: reason.into(),
            message,
            observed_generation: row.meta.generation,
            last_transition_time: None,
        });
    }
}

impl Api {
    fn seal(&self, user_data: &str) -> Result<Option<Sealed>, Refusal> {
        if user_data.is_empty() {
            return Ok(None);
        }
        let sealed = self.shared.key.seal(USER_DATA, user_data.as_bytes());
        sealed.map(Some).map_err(|error| Refusal::internal(error.to_string()))
    }

    async fn create_one(&self, asked: Asked, agency: String, proto: v1::Vm) -> Result<v1::Vm, Refusal> {
        // Sealing needs chance, which decisions have none of: so it comes first.
        let user_data = self.seal(proto.spec.as_ref().map_or("", |spec| &spec.user_data))?;
        self.change(asked.clone(), move |draft, moment| {
            let agency = agency_of(draft.view(), &agency)?;
            let request = read::read(proto.clone(), agency, draft.view())?;
            vm_create::create(draft, moment, request, agency, user_data.clone(), &asked.caller)
        })
        .await
    }

    async fn update_one(&self, asked: Asked, request: v1::UpdateVmRequest) -> Result<v1::Vm, Refusal> {
        let proto = request.vm.unwrap_or_default();
        let sealed = self.seal(proto.spec.as_ref().map_or("", |spec| &spec.user_data))?;
        let revision = based_on(proto.metadata.as_ref());
        let key = self.shared.key.clone();
        self.change(asked.clone(), move |draft, moment| {
            let scope = Scope::Agency(agency_of(draft.view(), &request.agency)?);
            let row = find::<Vm>(draft.view(), scope, &request.name)?.clone();
            check_revision(&row, revision)?;
            let mut updated = row.value.updated(proto.clone(), request.update_mask.as_ref(), draft.view())?;
            for template in &updated.templates {
                let volume = draft.view().volumes.get(template.volume);
                if let Some(violation) = volume.and_then(|volume| check_template(template, volume)) {
                    return Err(Invalid::from(violation).into());
                }
            }
            if let UserDataChange::Set(text) = &updated.user_data
                && row.spec.user_data.as_ref().and_then(|old| open(&key, old)).as_deref()
                    == Some(text.0.as_str())
            {
                updated = updated.keep_user_data(&row.value);
            }
            let mut vm = updated.vm;
            match updated.user_data {
                UserDataChange::Keep => {}
                UserDataChange::Set(_) => vm.spec.user_data.clone_from(&sealed),
                UserDataChange::Clear => vm.spec.user_data = None,
            }
            if vm != *row.value {
                let (before, after) = (row.amounts(), vm.amounts());
                if before != after {
                    quota::count(draft, vm.agency, &before, &after)?;
                }
                if vm.wants_on() && !row.wants_on() {
                    quota::check_may_run(draft.view(), vm.agency)?;
                }
                let severity = tamdao_model::event::Severity::Info;
                decide::event(draft, moment, &vm, severity, "Updated", "updated", &asked.caller);
                decide::put_vm(draft, vm.clone());
            }
            Ok(vm)
        })
        .await
    }

    async fn delete_one(&self, asked: Asked, request: v1::DeleteVmRequest) -> Result<v1::Vm, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = Scope::Agency(agency_of(draft.view(), &request.agency)?);
            let row = find::<Vm>(draft.view(), scope, &request.name)?.clone();
            check_revision(&row, request.revision)?;
            vm_delete::want(draft, moment, &row.value, request.force, &asked.caller)
        })
        .await
    }
}

/// Opens a VM's user data; none if it is not sealed with this key.
pub fn open(key: &ClusterKey, sealed: &Sealed) -> Option<String> {
    key.open(USER_DATA, sealed).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

service! {
    vm_service_server::VmService, Vm, vm, vms, agency, phase,
    get get_vm(GetVmRequest) list list_vms(ListVmsRequest -> ListVmsResponse)
    watch watch_vms(WatchVmsRequest -> WatchVmsResponse as WatchVmsStream)
    extra {
        async fn create_vm(&self, request: Request<v1::CreateVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            let vm = self.create_one(asked, request.agency, request.vm.unwrap_or_default()).await?;
            Ok(Response::new(vm))
        }

        async fn update_vm(&self, request: Request<v1::UpdateVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.update_one(asked, request.into_inner()).await?))
        }

        async fn delete_vm(&self, request: Request<v1::DeleteVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.delete_one(asked, request.into_inner()).await?))
        }

        async fn start_vm(&self, request: Request<v1::StartVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            Ok(Response::new(self.act(asked, request.agency, request.name, Verb::Start).await?))
        }

        async fn stop_vm(&self, request: Request<v1::StopVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            let verb = vm_verbs::stop(request.force, request.deadline_s)?;
            Ok(Response::new(self.act(asked, request.agency, request.name, verb).await?))
        }

        async fn reboot_vm(&self, request: Request<v1::RebootVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            let verb = vm_verbs::reboot(request.deadline_s)?;
            Ok(Response::new(self.act(asked, request.agency, request.name, verb).await?))
        }

        async fn reset_vm(&self, request: Request<v1::ResetVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            Ok(Response::new(self.act(asked, request.agency, request.name, Verb::Reset).await?))
        }

        async fn pause_vm(&self, request: Request<v1::PauseVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            Ok(Response::new(self.act(asked, request.agency, request.name, Verb::Pause).await?))
        }

        async fn resume_vm(&self, request: Request<v1::ResumeVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            let request = request.into_inner();
            Ok(Response::new(self.act(asked, request.agency, request.name, Verb::Resume).await?))
        }

        async fn resize_vm(&self, request: Request<v1::ResizeVmRequest>) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.resize(asked, request.into_inner()).await?))
        }

        async fn hand_over_vm(
            &self,
            request: Request<v1::HandOverVmRequest>,
        ) -> Result<Response<v1::Vm>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.hand_over(asked, request.into_inner()).await?))
        }

        async fn migrate_vm(
            &self,
            request: Request<v1::MigrateVmRequest>,
        ) -> Result<Response<v1::Move>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.migrate(asked, request.into_inner()).await?))
        }

        async fn explain_vm(
            &self,
            request: Request<v1::ExplainVmRequest>,
        ) -> Result<Response<v1::ExplainVmResponse>, Status> {
            let asking = Asking::of(&request);
            Ok(Response::new(self.explain(&asking, request.into_inner()).await?))
        }
    }
}
