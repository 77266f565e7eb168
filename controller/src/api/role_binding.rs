//! RoleBindingService. Only making one needs more than the standard methods: nobody gives a role beyond his own.

use tamdao_model::convert::Public;
use tamdao_model::limits;
use tamdao_model::role_binding::{RoleBinding, Subject};
use tamdao_proto::v1;
use tamdao_store::view::View;
use tonic::{Code, Request, Response, Status};

use super::standard::{Standard, Writable, insert, service};
use super::{Api, Asked, new_in, scope_of};
use crate::refusal::Refusal;

impl Standard for RoleBinding {}

impl Writable for RoleBinding {
    fn check_new(&self, view: &View) -> Result<(), Refusal> {
        if view.role_bindings.len() >= limits::ROLE_BINDINGS {
            let message = format!("there are {} role bindings, and no more can be", limits::ROLE_BINDINGS);
            return Err(Refusal::new(Code::ResourceExhausted, "TooMany", message)
                .hint("bind groups instead of users"));
        }
        match self.subject {
            Subject::Token(id) if view.tokens.get(id).is_none() => {
                Err(Refusal::field("role_binding.spec.token", "there is no such token"))
            }
            _ => Ok(()),
        }
    }
}

impl Api {
    async fn give_role(
        &self,
        asked: Asked,
        request: v1::CreateRoleBindingRequest,
    ) -> Result<v1::RoleBinding, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = scope_of(draft.view(), &request.agency)?;
            let proto = request.role_binding.clone().unwrap_or_default();
            let binding = RoleBinding::create(proto, new_in(scope, moment), draft.view())?;
            let caller = asked.asking.judge(draft.view(), moment.now)?;
            caller.check_gift(draft.view(), binding.grant(), &asked.caller)?;
            insert(draft, moment, binding, &asked.caller)
        })
        .await
    }
}

service! {
    role_binding_service_server::RoleBindingService, RoleBinding, role_binding, role_bindings, agency, none,
    get get_role_binding(GetRoleBindingRequest)
    list list_role_bindings(ListRoleBindingsRequest -> ListRoleBindingsResponse)
    watch watch_role_bindings(WatchRoleBindingsRequest -> WatchRoleBindingsResponse as WatchRoleBindingsStream)
    update update_role_binding(UpdateRoleBindingRequest)
    delete delete_role_binding(DeleteRoleBindingRequest)
    extra {
        async fn create_role_binding(
            &self,
            request: Request<v1::CreateRoleBindingRequest>,
        ) -> Result<Response<v1::RoleBinding>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.give_role(asked, request.into_inner()).await?))
        }
    }
}
