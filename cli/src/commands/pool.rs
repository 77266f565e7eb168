//! `tamdao pool`: the places for disks.

use anyhow::Result;
use tamdao_proto::v1::{Pool, PoolKind, PoolPhase};

use super::standard;
use crate::app::App;
use crate::args::{PoolCreateArgs, PoolUpdateArgs, PoolVerb};
use crate::problem::ExitStatus;
use crate::wait::{Goal, Verdict, until};

pub async fn run(app: &App, verb: PoolVerb) -> Result<ExitStatus> {
    match verb {
        PoolVerb::List(args) => standard::list::<Pool>(app, &args, false).await,
        PoolVerb::Get(args) => standard::get::<Pool>(app, &args, false).await,
        PoolVerb::Create(args) => create(app, &args).await,
        PoolVerb::Update(args) => update(app, &args).await,
        PoolVerb::Delete(args) => standard::delete::<Pool>(app, &args, false, false).await,
    }
}

async fn create(app: &App, args: &PoolCreateArgs) -> Result<ExitStatus> {
    let (place, mut pool) = standard::begin::<Pool>(app, &args.new, false)?;
    let spec = pool.spec.get_or_insert_default();
    if spec.kind() == PoolKind::Unspecified {
        spec.set_kind(PoolKind::Dir);
    }
    if let Some(path) = &args.path {
        path.clone_into(&mut spec.path);
    }
    spec.shared |= args.shared;
    if !args.nodes.is_empty() {
        spec.nodes.clone_from(&args.nodes);
    }
    spec.overcommit_percent = args.overcommit.unwrap_or(spec.overcommit_percent);
    spec.reserve_mib = args.reserve.unwrap_or(spec.reserve_mib);
    let Some(pool) = standard::create(app, &place, pool, args.new.dry_run).await? else {
        return Ok(ExitStatus::Done);
    };
    if args.wait.no_wait {
        return standard::done(app, &pool, "made; nodes that hold it report it by themselves");
    }
    let pool = until(app, pool, &args.wait, Goal::State(&judge)).await?;
    standard::done(app, &pool, "")
}

fn judge(pool: &Pool) -> Verdict {
    match pool.status.as_ref().map_or(PoolPhase::Unspecified, |status| status.phase()) {
        // Degraded is usable on some nodes, and the narration has said so.
        PoolPhase::Ready | PoolPhase::Degraded => Verdict::Reached,
        PoolPhase::Unspecified | PoolPhase::Pending => Verdict::Going,
    }
}

async fn update(app: &App, args: &PoolUpdateArgs) -> Result<ExitStatus> {
    standard::update::<Pool>(app, &args.edit, false, |pool, mask| {
        let spec = pool.spec.get_or_insert_default();
        if !args.nodes.is_empty() {
            spec.nodes.clone_from(&args.nodes);
            mask.push("spec.nodes".to_owned());
        }
        if let Some(percent) = args.overcommit {
            spec.overcommit_percent = percent;
            mask.push("spec.overcommit_percent".to_owned());
        }
        if let Some(reserve) = args.reserve {
            spec.reserve_mib = reserve;
            mask.push("spec.reserve_mib".to_owned());
        }
        Ok(())
    })
    .await
}
