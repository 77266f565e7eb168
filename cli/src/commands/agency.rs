//! `tamdao agency`: the tenants.

use anyhow::Result;
use tamdao_proto::v1::{Agency, AgencyState, RenameAgencyRequest};

use super::standard;
use crate::app::App;
use crate::args::{AgencyCreateArgs, AgencyStateArg, AgencyUpdateArgs, AgencyVerb};
use crate::client::request_id;
use crate::given;
use crate::problem::{ExitStatus, Problem};
use crate::resource::{Query, Resource};
use crate::view::usage;

/// Agencies that are asked for at once.
const PAGE: u32 = 1_000;

pub async fn run(app: &App, verb: AgencyVerb) -> Result<ExitStatus> {
    match verb {
        AgencyVerb::List(args) => standard::list::<Agency>(app, &args, false).await,
        AgencyVerb::Get(args) => standard::get::<Agency>(app, &args, false).await,
        AgencyVerb::Create(args) => create(app, &args).await,
        AgencyVerb::Update(args) => update(app, &args).await,
        AgencyVerb::Rename { name, new_name } => rename(app, &name, new_name).await,
        AgencyVerb::Usage { name } => usage(app, name.as_deref()).await,
        AgencyVerb::Delete(args) => standard::delete::<Agency>(app, &args, false, false).await,
    }
}

async fn create(app: &App, args: &AgencyCreateArgs) -> Result<ExitStatus> {
    let (place, mut agency) = standard::begin::<Agency>(app, &args.new, false)?;
    let spec = agency.spec.get_or_insert_default();
    if let Some(text) = &args.description {
        text.clone_into(&mut spec.description);
    }
    if let Some(text) = &args.contact {
        text.clone_into(&mut spec.contact);
    }
    if let Some(parent) = &args.parent {
        parent.clone_into(&mut spec.parent);
    }
    given::change_quota(&mut spec.quota, &args.quota)?;
    match standard::create(app, &place, agency, args.new.dry_run).await? {
        Some(agency) => standard::done(app, &agency, "made"),
        None => Ok(ExitStatus::Done),
    }
}

async fn update(app: &App, args: &AgencyUpdateArgs) -> Result<ExitStatus> {
    standard::update::<Agency>(app, &args.edit, false, |agency, mask| {
        let spec = agency.spec.get_or_insert_default();
        if let Some(text) = &args.description {
            text.clone_into(&mut spec.description);
            mask.push("spec.description".to_owned());
        }
        if let Some(text) = &args.contact {
            text.clone_into(&mut spec.contact);
            mask.push("spec.contact".to_owned());
        }
        if let Some(parent) = &args.parent {
            parent.clone_into(&mut spec.parent);
            mask.push("spec.parent".to_owned());
        }
        if !args.quota.is_empty() {
            given::change_quota(&mut spec.quota, &args.quota)?;
            mask.push("spec.quota".to_owned());
        }
        if let Some(state) = args.state {
            let state = match state {
                AgencyStateArg::Active => AgencyState::Active,
                AgencyStateArg::Frozen => AgencyState::Frozen,
                AgencyStateArg::Archived => AgencyState::Archived,
            };
            spec.set_state(state);
            mask.push("spec.state".to_owned());
        }
        Ok(())
    })
    .await
}

async fn rename(app: &App, name: &str, new_name: String) -> Result<ExitStatus> {
    let place = app.place::<Agency>(name, false)?;
    let request =
        RenameAgencyRequest { name: place.name, new_name, request_id: request_id(), ..Default::default() };
    let agency = app.client()?.ask(request).await.map_err(|problem| problem.about(name))?;
    standard::done(app, &agency, "renamed")
}

/// All agencies, or one with those below it, as a tree with amounts.
async fn usage(app: &App, name: Option<&str>) -> Result<ExitStatus> {
    let (mut agencies, mut token) = (Vec::new(), String::new());
    loop {
        let page = Agency::page(app.client()?, &Query::default(), PAGE, token).await?;
        agencies.extend(page.resources);
        token = page.next;
        if token.is_empty() {
            break;
        }
    }
    let id = |agency: &Agency| agency.metadata.clone().unwrap_or_default().id;
    let top = name.map(|name| {
        let found = agencies.iter().find(|agency| agency.name() == name || id(agency) == name);
        found.map(Resource::name).map(str::to_owned).ok_or_else(|| {
            Problem::failed(format!("there is no agency named {name:?}")).hint("tamdao agency list shows all")
        })
    });
    let lines = usage::tree(&agencies, top.transpose()?.as_deref());
    if app.output.is_machine() {
        let shown: Vec<&Agency> = lines.iter().map(|line| line.agency).collect();
        app.output.value(&serde_json::json!({ "agencies": shown }))?;
    } else {
        app.output.table(&usage::table(&lines, app.output.is_wide()), "there are no agencies")?;
    }
    Ok(ExitStatus::Done)
}
