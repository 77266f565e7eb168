//! `tamdao placement-group`: VMs that are placed with regard to one another.

use anyhow::Result;
use tamdao_proto::v1::{PlacementGroup, PlacementRule};

use super::standard;
use crate::app::App;
use crate::args::{PlacementGroupCreateArgs, PlacementGroupUpdateArgs, PlacementGroupVerb};
use crate::given;
use crate::problem::ExitStatus;

pub async fn run(app: &App, verb: PlacementGroupVerb) -> Result<ExitStatus> {
    match verb {
        PlacementGroupVerb::List(args) => standard::list::<PlacementGroup>(app, &args, false).await,
        PlacementGroupVerb::Get(args) => standard::get::<PlacementGroup>(app, &args, false).await,
        PlacementGroupVerb::Create(args) => create(app, &args).await,
        PlacementGroupVerb::Update(args) => update(app, &args).await,
        PlacementGroupVerb::Delete(args) => {
            standard::delete::<PlacementGroup>(app, &args, false, false).await
        }
    }
}

async fn create(app: &App, args: &PlacementGroupCreateArgs) -> Result<ExitStatus> {
    let (place, mut group) = standard::begin::<PlacementGroup>(app, &args.new, false)?;
    if !args.rules.is_empty() {
        group.spec.get_or_insert_default().rules = rules(&args.rules)?;
    }
    match standard::create(app, &place, group, args.new.dry_run).await? {
        Some(group) => standard::done(app, &group, "made"),
        None => Ok(ExitStatus::Done),
    }
}

async fn update(app: &App, args: &PlacementGroupUpdateArgs) -> Result<ExitStatus> {
    let rules = rules(&args.rules)?;
    standard::update::<PlacementGroup>(app, &args.edit, false, |group, mask| {
        if args.no_rules || !rules.is_empty() {
            group.spec.get_or_insert_default().rules.clone_from(&rules);
            mask.push("spec.rules".to_owned());
        }
        Ok(())
    })
    .await
}

fn rules(given: &[String]) -> Result<Vec<PlacementRule>> {
    given.iter().map(|rule| given::rule(rule)).collect()
}
