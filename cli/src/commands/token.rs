//! `tamdao token`: ways in, each with one role at one place.

use anyhow::Result;
use tamdao_proto::v1::{CreateTokenRequest, DeleteTokenRequest, Role, Token, TokenSpec};

use super::standard;
use crate::app::App;
use crate::args::{TokenCreateArgs, TokenVerb};
use crate::client::request_id;
use crate::problem::ExitStatus;
use crate::resource::Resource;

pub async fn run(app: &App, verb: TokenVerb) -> Result<ExitStatus> {
    match verb {
        TokenVerb::List(args) => standard::list::<Token>(app, &args, true).await,
        TokenVerb::Create(args) => create(app, &args).await,
        TokenVerb::Revoke { names, cloud } => revoke(app, &names, cloud).await,
    }
}

async fn create(app: &App, args: &TokenCreateArgs) -> Result<ExitStatus> {
    let place = app.place::<Token>(&args.name, !args.cloud)?;
    let role = Role::from(args.role);
    let ttl_s = u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX);
    let mut token = Token { spec: Some(TokenSpec { role: role.into(), ttl_s }), ..Default::default() };
    token.metadata_mut().name.clone_from(&place.name);
    let request = CreateTokenRequest { agency: place.agency, token: Some(token), validate_only: false };
    let made = app.client()?.ask(request).await.map_err(|problem| problem.about(&args.name))?;
    if app.output.is_machine() {
        app.output.value(&made)?;
    } else {
        app.output.note("this is shown once; keep it where only its holder reads:");
        app.output.line(&made.secret)?;
    }
    Ok(ExitStatus::Done)
}

async fn revoke(app: &App, names: &[String], cloud: bool) -> Result<ExitStatus> {
    for name in names {
        let place = app.place::<Token>(name, !cloud)?;
        let request = DeleteTokenRequest {
            agency: place.agency,
            name: place.name,
            request_id: request_id(),
            ..Default::default()
        };
        let token = app.client()?.ask(request).await.map_err(|problem| problem.about(name))?;
        standard::done(app, &token, "revoked")?;
    }
    Ok(ExitStatus::Done)
}
