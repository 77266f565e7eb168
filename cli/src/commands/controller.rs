//! `tamdao controller`: the seats of the control plane.

use anyhow::Result;
use tamdao_proto::v1::{Controller, JoinTokenKind, RemoveControllerRequest, TransferLeadershipRequest};

use super::{node, standard};
use crate::app::App;
use crate::args::{ControllerAddArgs, ControllerRemoveArgs, ControllerVerb, NameArg};
use crate::problem::ExitStatus;
use crate::quantity::duration;

pub async fn run(app: &App, verb: ControllerVerb) -> Result<ExitStatus> {
    match verb {
        ControllerVerb::List(args) => standard::list::<Controller>(app, &args, false).await,
        ControllerVerb::Get(args) => standard::get::<Controller>(app, &args, false).await,
        ControllerVerb::Add(args) => add(app, &args).await,
        ControllerVerb::Remove(args) => remove(app, &args).await,
        ControllerVerb::TransferLeader(args) => transfer_leader(app, &args).await,
    }
}

async fn add(app: &App, args: &ControllerAddArgs) -> Result<ExitStatus> {
    let name = app.place::<Controller>(&args.name, false)?.name;
    let token = node::join_token(app, JoinTokenKind::Controller, args.ttl, 1, &name).await?;
    if app.output.is_machine() {
        app.output.value(&token)?;
        return Ok(ExitStatus::Done);
    }
    let meet = node::meeting_point(app).await?;
    let address = match &args.address {
        Some(address) => address.clone(),
        None => {
            let port = meet.rsplit_once(':').map_or("", |(_, port)| port);
            app.output.note(&format!(
                "It is taken to be reachable as {name}:{port}; say otherwise with --address\n"
            ));
            format!("{name}:{port}")
        }
    };
    app.output.note(&format!(
        "Give /etc/tamdao/controller.toml on the new machine name = \"{name}\" and address = \"{address}\";\n\
         then run this there, within {}:\n",
        duration(args.ttl)
    ));
    let secret = &token.secret;
    app.output.line(&format!("tamdao-controller join --token {secret} --controller {meet}"))?;
    app.output
        .note("\nThe secret is shown only here. Start the controller, then see `tamdao controller list`");
    Ok(ExitStatus::Done)
}

async fn remove(app: &App, args: &ControllerRemoveArgs) -> Result<ExitStatus> {
    let name = app.place::<Controller>(&args.name, false)?.name;
    app.confirm(args.yes, &format!("remove controller {name} from the group"))?;
    let request = RemoveControllerRequest { name };
    let controller = app.client()?.ask(request).await;
    let controller = controller.map_err(|problem| problem.about(&args.name))?;
    standard::done(app, &controller, "removed; its process may be stopped and its data directory deleted")
}

async fn transfer_leader(app: &App, args: &NameArg) -> Result<ExitStatus> {
    let name = app.place::<Controller>(&args.name, false)?.name;
    let request = TransferLeadershipRequest { name };
    let controller = app.client()?.ask(request).await;
    standard::done(app, &controller.map_err(|problem| problem.about(&args.name))?, "leads")
}
