//! `tamdao volume`: the disks that outlive their making.

use anyhow::Result;
use tamdao_proto::v1::Volume;

use super::standard;
use crate::app::App;
use crate::args::{VolumeCreateArgs, VolumeUpdateArgs, VolumeVerb};
use crate::problem::{ExitStatus, Problem};

pub async fn run(app: &App, verb: VolumeVerb) -> Result<ExitStatus> {
    match verb {
        VolumeVerb::List(args) => standard::list::<Volume>(app, &args, false).await,
        VolumeVerb::Get(args) => standard::get::<Volume>(app, &args, false).await,
        VolumeVerb::Create(args) => create(app, &args).await,
        VolumeVerb::Update(args) => update(app, &args).await,
        VolumeVerb::Delete(args) => standard::delete::<Volume>(app, &args, false, false).await,
    }
}

async fn create(app: &App, args: &VolumeCreateArgs) -> Result<ExitStatus> {
    let (place, mut volume) = standard::begin::<Volume>(app, &args.new, false)?;
    let spec = volume.spec.get_or_insert_default();
    spec.size_mib = args.size.unwrap_or(spec.size_mib);
    if let Some(image) = &args.image {
        image.clone_into(&mut spec.image);
    }
    if let Some(pool) = &args.pool {
        pool.clone_into(&mut spec.pool);
    }
    spec.keep_on_delete |= args.keep;
    if spec.size_mib == 0 && spec.image.is_empty() {
        let problem = Problem::usage(format!("volume {} has no size", place.name));
        return Err(problem.hint("give --size 10G, or --image NAME").into());
    }
    match standard::create(app, &place, volume, args.new.dry_run).await? {
        // Its file is made with the first VM that holds it: there is nothing to wait for.
        Some(volume) => standard::done(app, &volume, "made; its file comes with the first VM that holds it"),
        None => Ok(ExitStatus::Done),
    }
}

async fn update(app: &App, args: &VolumeUpdateArgs) -> Result<ExitStatus> {
    standard::update::<Volume>(app, &args.edit, false, |volume, mask| {
        let spec = volume.spec.get_or_insert_default();
        if let Some(size) = args.size {
            spec.size_mib = size;
            mask.push("spec.size_mib".to_owned());
        }
        if let Some(keep) = args.keep {
            spec.keep_on_delete = keep;
            mask.push("spec.keep_on_delete".to_owned());
        }
        Ok(())
    })
    .await
}
