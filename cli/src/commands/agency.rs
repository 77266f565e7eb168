//! `tamdao agency`: the tenants.

use anyhow::Result;
use tamdao_proto::v1::Agency;

use super::standard;
use crate::app::App;
use crate::args::{AgencyCreateArgs, AgencyUpdateArgs, AgencyVerb};
use crate::problem::ExitStatus;

pub async fn run(app: &App, verb: AgencyVerb) -> Result<ExitStatus> {
    match verb {
        AgencyVerb::List(args) => standard::list::<Agency>(app, &args, false).await,
        AgencyVerb::Get(args) => standard::get::<Agency>(app, &args, false).await,
        AgencyVerb::Create(args) => create(app, &args).await,
        AgencyVerb::Update(args) => update(app, &args).await,
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
        Ok(())
    })
    .await
}
