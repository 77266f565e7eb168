//! `tamdao node`: the standard verbs, cordon, and the tokens by which nodes join.

use std::time::Duration;

use anyhow::Result;
use tamdao_proto::v1::{
    AttestNodeGoneRequest, ControllerRole, CordonNodeRequest, CreateJoinTokenRequest,
    CreateJoinTokenResponse, DrillFencingRequest, JoinTokenKind, ListControllersRequest,
    ListJoinTokensRequest, Node, NodePhase, RevokeJoinTokenRequest, UncordonNodeRequest,
};

use super::drain::Nodes;
use super::{drain, roll, standard};
use crate::app::{App, now_s};
use crate::args::{
    AttestGoneArgs, JoinTokenCreateArgs, JoinTokenVerb, NameArg, NodeRemoveArgs, NodeUpdateArgs, NodeVerb,
};
use crate::client::request_id;
use crate::given;
use crate::output::{Cell, Table, Tone};
use crate::problem::{ExitStatus, Problem};
use crate::quantity::{count, duration, until};
use crate::resource::{Editable, Place, Resource, word};

pub async fn run(app: &App, verb: NodeVerb) -> Result<ExitStatus> {
    match verb {
        NodeVerb::List(args) => standard::list::<Node>(app, &args, false).await,
        NodeVerb::Get(args) => standard::get::<Node>(app, &args, false).await,
        NodeVerb::Cordon(args) => cordon(app, &args).await,
        NodeVerb::Uncordon(args) => uncordon(app, &args).await,
        NodeVerb::AttestGone(args) => attest_gone(app, &args).await,
        NodeVerb::FenceDrill(args) => fence_drill(app, &args).await,
        NodeVerb::Update(args) => update(app, &args).await,
        NodeVerb::Drain(args) => drain::drain(app, Nodes::named(app, &args.names)?, &args.terms).await,
        NodeVerb::Return(args) => drain::bring_back(app, Nodes::named(app, &args.names)?, &args.common).await,
        NodeVerb::Roll(args) => roll::run(app, &args).await,
        NodeVerb::Remove(args) if args.force => remove_by_force(app, &args).await,
        NodeVerb::Remove(args) => standard::delete::<Node>(app, &args.delete, false, false).await,
        NodeVerb::JoinToken(JoinTokenVerb::Create(args)) => create_token(app, &args).await,
        NodeVerb::JoinToken(JoinTokenVerb::List) => list_tokens(app).await,
        NodeVerb::JoinToken(JoinTokenVerb::Revoke { id }) => revoke_token(app, &id).await,
    }
}

async fn cordon(app: &App, args: &NameArg) -> Result<ExitStatus> {
    let name = app.place::<Node>(&args.name, false)?.name;
    let request = CordonNodeRequest { name, request_id: request_id() };
    let node = app.client()?.ask(request).await;
    let node = node.map_err(|problem| problem.about(&args.name))?;
    let vms = node.status.as_ref().map_or(0, |status| status.vms);
    standard::done(app, &node, &format!("cordoned; {} stay on it", count(vms as usize, "VM")))
}

async fn uncordon(app: &App, args: &NameArg) -> Result<ExitStatus> {
    let name = app.place::<Node>(&args.name, false)?.name;
    let request = UncordonNodeRequest { name, request_id: request_id() };
    let node = app.client()?.ask(request).await;
    standard::done(app, &node.map_err(|problem| problem.about(&args.name))?, "takes new VMs again")
}

async fn attest_gone(app: &App, args: &AttestGoneArgs) -> Result<ExitStatus> {
    let name = app.place::<Node>(&args.name, false)?.name;
    let question = format!(
        "answer for {name} running nothing any more (if it does, VMs run twice and their disks are lost)"
    );
    app.confirm(args.yes, &question)?;
    let request = AttestNodeGoneRequest { name, reason: args.reason.clone(), request_id: request_id() };
    let node = app.client()?.ask(request).await;
    let node = node.map_err(|problem| problem.about(&args.name))?;
    standard::done(app, &node, "fenced on your word; its VMs are restarted elsewhere")
}

async fn fence_drill(app: &App, args: &NameArg) -> Result<ExitStatus> {
    let name = app.place::<Node>(&args.name, false)?.name;
    let node = app.client()?.ask(DrillFencingRequest { name }).await;
    let node = node.map_err(|problem| problem.about(&args.name))?;
    let drills = node.status.iter().flat_map(|status| &status.fence_drill);
    let good = drills.clone().any(|drill| drill.good);
    let status = if good { ExitStatus::Done } else { ExitStatus::Failed };
    if app.output.is_machine() {
        app.output.value(&node)?;
        return Ok(status);
    }
    let rows = drills.map(|drill| {
        let tone = if drill.good { Tone::Good } else { Tone::Bad };
        vec![Cell::from(&drill.url), Cell::toned(&drill.reason, tone), Cell::from(&drill.message)]
    });
    let table = Table { headers: vec!["BMC", "DRILL", "WHAT IT IS"], rows: rows.collect() };
    app.output.table(&table, "it has no BMC")?;
    app.output.note(match good {
        true => "it could be powered off today",
        false => "it could not be powered off today; a loss is left to its storage leases and to people",
    });
    Ok(status)
}

/// Removes lost nodes on somebody's word: fences them by it, and asks until nothing of them is left.
async fn remove_by_force(app: &App, args: &NodeRemoveArgs) -> Result<ExitStatus> {
    let names: Vec<String> = args
        .delete
        .names
        .iter()
        .map(|name| Ok(app.place::<Node>(name, false)?.name))
        .collect::<Result<_>>()?;
    let all = names.join(", ");
    let question = format!(
        "answer for {all} running nothing any more, and remove it for ever (if it does, VMs run twice and their disks \
         are lost)"
    );
    app.confirm(args.delete.yes, &question)?;
    for name in names {
        let place = Place { agency: String::new(), name: name.clone() };
        let node = Node::fetch(app.client()?, &place).await.map_err(|problem| problem.about(&name))?;
        if node.status.as_ref().map(|status| status.phase()) != Some(NodePhase::Fenced) {
            let reason = args.reason.clone();
            let request = AttestNodeGoneRequest { name: name.clone(), reason, request_id: request_id() };
            let fenced = app.client()?.ask(request).await;
            fenced.map_err(|problem| problem.about(&name))?;
            app.output.note(&format!("{name}: fenced on your word; its VMs are restarted elsewhere"));
        }
        let wait = &args.delete.wait;
        let until = tokio::time::Instant::now() + if wait.no_wait { Duration::ZERO } else { wait.timeout };
        let removed = loop {
            let removed = Node::delete(app.client()?, &place, false, 0, false).await;
            let left =
                matches!(&removed, Err(problem) if problem.code == Some(tonic::Code::FailedPrecondition));
            if !left || tokio::time::Instant::now() >= until {
                break removed.map_err(|problem| problem.about(&name))?;
            }
            // Its VMs are being restarted elsewhere.
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        standard::done(app, &removed, "removed")?;
    }
    Ok(ExitStatus::Done)
}

async fn update(app: &App, args: &NodeUpdateArgs) -> Result<ExitStatus> {
    standard::update::<Node>(app, &args.edit, false, |node, mask| {
        let spec = node.spec.get_or_insert_default();
        let mut masked = |field: &str| mask.push(format!("spec.{field}"));
        if !args.failure_domains.is_empty() {
            given::change_domains(&mut spec.failure_domains, &args.failure_domains)?;
            masked("failure_domains");
        }
        if let Some(percent) = args.cpu_overcommit {
            spec.cpu_overcommit_percent = percent;
            masked("cpu_overcommit_percent");
        }
        if let Some(percent) = args.memory_overcommit {
            spec.memory_overcommit_percent = percent;
            masked("memory_overcommit_percent");
        }
        if let Some(memory) = args.reserve_memory {
            spec.reserve_memory_mib = memory;
            masked("reserve_memory_mib");
        }
        if let Some(date) = &args.support_ends {
            date.clone_into(&mut spec.support_ends);
            masked("support_ends");
        }
        if args.no_bmcs || !args.bmcs.is_empty() {
            spec.bmcs = args.bmcs.iter().map(|text| given::bmc(text)).collect::<Result<_>>()?;
            masked("bmcs");
        }
        Ok(())
    })
    .await
}

async fn create_token(app: &App, args: &JoinTokenCreateArgs) -> Result<ExitStatus> {
    let name = args.name.clone().unwrap_or_default();
    let token = join_token(app, JoinTokenKind::Node, args.ttl, args.uses, &name).await?;
    if app.output.is_machine() {
        app.output.value(&token)?;
        return Ok(ExitStatus::Done);
    }
    let name = if name.is_empty() { String::new() } else { format!(" --name {name}") };
    let uses = if args.uses == 1 { "once".to_owned() } else { format!("{} times", args.uses) };
    app.output
        .note(&format!("Run this on the new node, within {}; it can be used {uses}:\n", duration(args.ttl)));
    app.output.line(&format!(
        "tamdao-agent join --token {} --controller {}{name}",
        token.secret,
        meeting_point(app).await?
    ))?;
    app.output.note("\nThe secret is shown only here. Then see `tamdao node list`");
    Ok(ExitStatus::Done)
}

/// Makes a join token.
pub async fn join_token(
    app: &App,
    kind: JoinTokenKind,
    ttl: std::time::Duration,
    uses: u32,
    name: &str,
) -> Result<CreateJoinTokenResponse> {
    let ttl_s = u32::try_from(ttl.as_secs()).ok().filter(|seconds| *seconds > 0);
    let ttl_s = ttl_s.ok_or_else(|| Problem::usage("--ttl must be between 1s and 7days"))?;
    if uses == 0 {
        return Err(Problem::usage("--uses must be 1 at least").into());
    }
    let request = CreateJoinTokenRequest { kind: kind.into(), ttl_s, uses, name: name.to_owned() };
    Ok(app.client()?.ask(request).await?)
}

/// HOST:PORT of the controller that a newcomer should speak to: the leader's, as the controllers know it. The endpoint
/// that this command line uses may be of use here only.
pub async fn meeting_point(app: &App) -> Result<String> {
    let client = app.client()?;
    let controllers = client.ask(ListControllersRequest::default()).await;
    let controllers = controllers.map(|answer| answer.controllers).unwrap_or_default();
    let mut known: Vec<_> = controllers.iter().filter_map(|controller| controller.status.as_ref()).collect();
    known.retain(|status| !status.address.is_empty());
    known.sort_by_key(|status| (status.role() != ControllerRole::Leader, !status.reachable));
    Ok(known.first().map_or_else(|| client.address().to_owned(), |status| status.address.clone()))
}

async fn list_tokens(app: &App) -> Result<ExitStatus> {
    let answer = app.client()?.ask(ListJoinTokensRequest {}).await?;
    if app.output.is_machine() {
        app.output.value(&answer)?;
        return Ok(ExitStatus::Done);
    }
    let now = now_s();
    let rows = answer.join_tokens.iter().map(|token| {
        let expires = token.expire_time.as_ref().map_or(String::new(), |time| until(now, time.seconds));
        let kind = word(token.kind().as_str_name(), "JOIN_TOKEN_KIND_").to_lowercase();
        let cells = [&token.id, &kind, &token.name, &token.uses_left.to_string(), &expires];
        cells.into_iter().map(Cell::from).collect()
    });
    let table = Table { headers: vec!["ID", "FOR", "NAME", "USES-LEFT", "EXPIRES-IN"], rows: rows.collect() };
    app.output.table(&table, "there are no join tokens that can still be used")?;
    Ok(ExitStatus::Done)
}

async fn revoke_token(app: &App, id: &str) -> Result<ExitStatus> {
    let request = RevokeJoinTokenRequest { id: id.to_owned() };
    let token = app.client()?.ask(request).await;
    let token = token.map_err(|problem| problem.about(id))?;
    if app.output.is_machine() {
        app.output.value(&token)?;
    } else {
        app.output.note(&format!("{id}: revoked"));
    }
    Ok(ExitStatus::Done)
}
