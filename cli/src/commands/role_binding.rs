//! `tamdao role-binding`: who has which role where.

use anyhow::Result;
use tamdao_proto::v1::RoleBinding;

use super::standard;
use crate::app::App;
use crate::args::{RoleBindingCreateArgs, RoleBindingVerb};
use crate::problem::ExitStatus;

pub async fn run(app: &App, verb: RoleBindingVerb) -> Result<ExitStatus> {
    match verb {
        RoleBindingVerb::List(args) => standard::list::<RoleBinding>(app, &args, true).await,
        RoleBindingVerb::Create(args) => create(app, &args).await,
        RoleBindingVerb::Delete { delete, cloud } => {
            standard::delete::<RoleBinding>(app, &delete, !cloud, false).await
        }
    }
}

async fn create(app: &App, args: &RoleBindingCreateArgs) -> Result<ExitStatus> {
    let (place, mut binding) = standard::begin::<RoleBinding>(app, &args.new, !args.cloud)?;
    let spec = binding.spec.get_or_insert_default();
    if let Some(role) = args.role {
        spec.set_role(role.into());
    }
    for (given, field) in
        [(&args.user, &mut spec.user), (&args.group, &mut spec.group), (&args.token, &mut spec.token)]
    {
        if let Some(given) = given {
            field.clone_from(given);
        }
    }
    match standard::create(app, &place, binding, args.new.dry_run).await? {
        Some(binding) => standard::done(app, &binding, "made"),
        None => Ok(ExitStatus::Done),
    }
}
