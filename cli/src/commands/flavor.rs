//! `tamdao flavor`: the sizes.

use anyhow::Result;
use tamdao_proto::v1::Flavor;

use super::standard;
use crate::app::App;
use crate::args::{FlavorCreateArgs, FlavorVerb};
use crate::problem::ExitStatus;

pub async fn run(app: &App, verb: FlavorVerb) -> Result<ExitStatus> {
    match verb {
        FlavorVerb::List(args) => standard::list::<Flavor>(app, &args, false).await,
        FlavorVerb::Get(args) => standard::get::<Flavor>(app, &args, false).await,
        FlavorVerb::Create(args) => create(app, &args).await,
        FlavorVerb::Update(args) => standard::update::<Flavor>(app, &args.edit, false, |_, _| Ok(())).await,
        FlavorVerb::Delete(args) => standard::delete::<Flavor>(app, &args, false, false).await,
    }
}

async fn create(app: &App, args: &FlavorCreateArgs) -> Result<ExitStatus> {
    let (place, mut flavor) = standard::begin::<Flavor>(app, &args.new, false)?;
    let spec = flavor.spec.get_or_insert_default();
    spec.vcpus = args.vcpus.unwrap_or(spec.vcpus);
    if let Some(class) = &args.class {
        class.clone_into(&mut spec.class);
    }
    spec.memory_mib = args.memory.unwrap_or(spec.memory_mib);
    match standard::create(app, &place, flavor, args.new.dry_run).await? {
        Some(flavor) => standard::done(app, &flavor, "made"),
        None => Ok(ExitStatus::Done),
    }
}
