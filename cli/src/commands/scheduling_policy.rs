//! `tamdao scheduling-policy`: how the cluster places VMs. There is one, so it has no name here and no list.

use anyhow::Result;
use tamdao_proto::v1::{
    GetSchedulingPolicyRequest, SchedulingPolicy, SchedulingPolicySpec, UpdateSchedulingPolicyRequest,
};

use super::standard;
use crate::app::App;
use crate::args::{SchedulingPolicyUpdateArgs, SchedulingPolicyVerb};
use crate::client::request_id;
use crate::given;
use crate::output::{Cell, Table};
use crate::problem::{ExitStatus, Problem};

pub async fn run(app: &App, verb: SchedulingPolicyVerb) -> Result<ExitStatus> {
    match verb {
        SchedulingPolicyVerb::Get => get(app).await,
        SchedulingPolicyVerb::Update(args) => update(app, &args).await,
    }
}

async fn fetch(app: &App) -> Result<SchedulingPolicy> {
    Ok(app.client()?.ask(GetSchedulingPolicyRequest {}).await?)
}

async fn get(app: &App) -> Result<ExitStatus> {
    let policy = fetch(app).await?;
    if app.output.is_machine() {
        app.output.value(&policy)?;
        return Ok(ExitStatus::Done);
    }
    let guarded =
        policy.spec.as_ref().map(|spec| spec.guarded_failure_domains.join(", ")).unwrap_or_default();
    let guarded = if guarded.is_empty() { "none".to_owned() } else { guarded };
    let cpu_model = policy.spec.as_ref().map(|spec| spec.cpu_model.clone()).unwrap_or_default();
    let cpu_model = if cpu_model.is_empty() { "the node's own".to_owned() } else { cpu_model };
    app.output.card(&[
        ("Guarded failure domains", Cell::from(guarded)),
        ("CPU model at a first start", Cell::from(cpu_model)),
    ])?;
    let parts = policy.status.unwrap_or_default().score_parts;
    let rows = parts.iter().map(|part| {
        let default =
            if part.weight == part.default_weight { String::new() } else { part.default_weight.to_string() };
        vec![Cell::from(&part.name), Cell::from(part.weight), Cell::from(default), Cell::from(&part.measures)]
    });
    let headers = vec!["PART", "WEIGHT", "DEFAULT", "MEASURES"];
    app.output.section("A node's score", &Table { headers, rows: rows.collect() })?;
    Ok(ExitStatus::Done)
}

async fn update(app: &App, args: &SchedulingPolicyUpdateArgs) -> Result<ExitStatus> {
    if args.weights.is_empty() && args.guards.is_empty() && args.cpu_model.is_none() {
        let problem = Problem::usage("nothing to change was given");
        return Err(problem.hint("see `tamdao scheduling-policy update --help`").into());
    }
    let before = fetch(app).await?;
    let mut after = before.clone();
    let mask = change(after.spec.get_or_insert_default(), args)?;
    let request = UpdateSchedulingPolicyRequest {
        scheduling_policy: Some(after),
        update_mask: Some(pbjson_types::FieldMask { paths: mask }),
        request_id: request_id(),
        validate_only: args.dry_run,
    };
    let after = app.client()?.ask(request).await?;
    if args.dry_run {
        app.output.note("dry run: the scheduling policy would become so; nothing was changed");
        standard::show_planned(app, Some(&before), &after)?;
    } else if app.output.is_machine() {
        app.output.value(&after)?;
    } else {
        app.output.note("scheduling policy: updated");
    }
    Ok(ExitStatus::Done)
}

/// Changes what the flags say, and names the fields that they change.
fn change(spec: &mut SchedulingPolicySpec, args: &SchedulingPolicyUpdateArgs) -> Result<Vec<String>> {
    for text in &args.weights {
        let wrong = || {
            Problem::usage(format!("--weight {text}: expected PART=WEIGHT, or PART- for its default"))
                .hint("`tamdao scheduling-policy get` shows the parts")
        };
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((part, weight)), _) => {
                spec.weights.insert(part.to_owned(), weight.parse().map_err(|_| wrong())?);
            }
            (None, Some(part)) => drop(spec.weights.remove(part)),
            (None, None) => return Err(wrong().into()),
        }
    }
    given::change_names(&mut spec.guarded_failure_domains, &args.guards);
    let mut mask = Vec::new();
    if !args.weights.is_empty() {
        mask.push("spec.weights".to_owned());
    }
    if !args.guards.is_empty() {
        mask.push("spec.guarded_failure_domains".to_owned());
    }
    if let Some(model) = &args.cpu_model {
        model.clone_into(&mut spec.cpu_model);
        mask.push("spec.cpu_model".to_owned());
    }
    Ok(mask)
}
