//! TokenService. A secret is made before the decision, which has no chance, and shown once.

use tamdao_model::event::Severity;
use tamdao_model::role::Grant;
use tamdao_model::role_binding::{RoleBinding, Subject};
use tamdao_model::token::Token;
use tamdao_model::{Resource, TokenId, convert::token as read};
use tamdao_proto::v1;
use tamdao_store::view::Row;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::standard::{Standard, name_is_free, service};
use super::{Api, Asked, check_revision, find, scope_of};
use crate::access;
use crate::decide;
use crate::pki::TokenSecret;
use crate::refusal::Refusal;

impl Standard for Token {}

impl Api {
    async fn make_token(
        &self,
        asked: Asked,
        request: v1::CreateTokenRequest,
    ) -> Result<v1::CreateTokenResponse, Refusal> {
        let id = TokenId(Uuid::new_v4());
        let secret = TokenSecret::generate(id).map_err(|error| Refusal::internal(error.to_string()))?;
        let (digest, validate_only) = (secret.digest(), request.validate_only);
        let decided = self.change(asked.clone(), move |draft, moment| {
            let scope = scope_of(draft.view(), &request.agency)?;
            let new = tamdao_model::convert::New { id: id.0, scope, now: moment.now };
            let proto = request.token.clone().unwrap_or_default();
            let token = read::read(proto, new, draft.view(), digest.clone(), asked.caller.clone())?;
            let caller = asked.asking.judge(draft.view(), moment.now)?;
            let grant = Grant { role: token.role, at: token.agency };
            caller.check_gift(draft.view(), grant, &asked.caller)?;
            name_is_free(draft.view(), &token)?;
            let message = format!("made with the role {}", access::word(token.role));
            decide::event(draft, moment, &token, Severity::Info, "Created", message, &asked.caller);
            draft.create(token.clone());
            Ok(token)
        });
        let token = decided.await?;
        let secret = if validate_only { String::new() } else { secret.expose() };
        Ok(v1::CreateTokenResponse { token: Some(token), secret })
    }

    async fn revoke_token(
        &self,
        asked: Asked,
        request: v1::DeleteTokenRequest,
    ) -> Result<v1::Token, Refusal> {
        self.change(asked.clone(), move |draft, moment| {
            let scope = scope_of(draft.view(), &request.agency)?;
            let row = find::<Token>(draft.view(), scope, &request.name)?.clone();
            check_revision(&row, request.revision)?;
            decide::event(draft, moment, &*row.value, Severity::Info, "Deleted", "revoked", &asked.caller);
            draft.remove::<Token>(row.meta().id);
            // What was given to it goes with it.
            let of_it = |binding: &&Row<RoleBinding>| binding.subject == Subject::Token(row.id());
            let bindings: Vec<RoleBinding> =
                draft.view().role_bindings.iter().filter(of_it).map(|row| (*row.value).clone()).collect();
            for binding in bindings {
                decide::event(
                    draft,
                    moment,
                    &binding,
                    Severity::Info,
                    "Deleted",
                    "with its token",
                    &asked.caller,
                );
                draft.remove::<RoleBinding>(binding.meta.id);
            }
            Ok((*row.value).clone())
        })
        .await
    }
}

service! {
    token_service_server::TokenService, Token, token, tokens, agency, none,
    get get_token(GetTokenRequest) list list_tokens(ListTokensRequest -> ListTokensResponse)
    watch watch_tokens(WatchTokensRequest -> WatchTokensResponse as WatchTokensStream)
    extra {
        async fn create_token(
            &self,
            request: Request<v1::CreateTokenRequest>,
        ) -> Result<Response<v1::CreateTokenResponse>, Status> {
            // No request_id: a repeated answer could not show the secret again.
            let asked = Asked::new(&request, "", request.get_ref().validate_only)?;
            Ok(Response::new(self.make_token(asked, request.into_inner()).await?))
        }

        async fn delete_token(
            &self,
            request: Request<v1::DeleteTokenRequest>,
        ) -> Result<Response<v1::Token>, Status> {
            let body = request.get_ref();
            let asked = Asked::new(&request, &body.request_id, body.validate_only)?;
            Ok(Response::new(self.revoke_token(asked, request.into_inner()).await?))
        }
    }
}
