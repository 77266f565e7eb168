//! One module per noun, one async function per command; each returns how the command ends. What the standard verbs have
//! in common is in `standard`.

mod agency;
mod audit;
mod backup;
mod backup_drill;
mod completion;
mod console;
mod context;
mod controller;
mod debug;
mod drain;
mod events;
mod flavor;
mod ha;
mod image;
mod login;
mod manifest;
mod moves;
mod network;
mod node;
mod placement_group;
mod pool;
mod recovery;
mod role_binding;
mod roll;
mod scheduling_policy;
mod simulate;
mod stack;
mod standard;
mod token;
mod vm;
mod vm_create;
mod vm_history;
mod vm_log;
mod vm_power;
mod volume;

use anyhow::Result;

use crate::app::App;
use crate::args::Noun;
use crate::problem::ExitStatus;

/// Runs one command.
pub async fn run(app: &App, noun: Noun) -> Result<ExitStatus> {
    login::freshen(app, &noun).await?;
    match noun {
        Noun::Login(args) => login::come_in(app, &args).await,
        Noun::Logout => login::leave(app),
        Noun::Vm(verb) => vm::run(app, *verb).await,
        Noun::Volume(verb) => volume::run(app, verb).await,
        Noun::Image(verb) => image::run(app, verb).await,
        Noun::Flavor(verb) => flavor::run(app, verb).await,
        Noun::Network(verb) => network::run(app, verb).await,
        Noun::PlacementGroup(verb) => placement_group::run(app, verb).await,
        Noun::Agency(verb) => agency::run(app, verb).await,
        Noun::Token(verb) => token::run(app, verb).await,
        Noun::RoleBinding(verb) => role_binding::run(app, verb).await,
        Noun::Move(verb) => moves::run(app, verb).await,
        Noun::Node(verb) => node::run(app, verb).await,
        Noun::FailureDomain(verb) => drain::run(app, verb).await,
        Noun::Pool(verb) => pool::run(app, verb).await,
        Noun::SchedulingPolicy(verb) => scheduling_policy::run(app, verb).await,
        Noun::Ha(verb) => ha::run(app, verb).await,
        Noun::Controller(verb) => controller::run(app, verb).await,
        Noun::Backup(verb) => backup::run(app, verb).await,
        Noun::Recovery(verb) => recovery::run(app, verb).await,
        Noun::Plan(args) => manifest::plan(app, &args).await,
        Noun::Apply(args) => manifest::apply(app, &args).await,
        Noun::Destroy(args) => manifest::destroy(app, &args).await,
        Noun::Export(args) => manifest::export(app, &args).await,
        Noun::Validate(args) => manifest::validate(app, &args),
        Noun::Fmt(args) => manifest::fmt(app, &args),
        Noun::Stack(verb) => stack::run(app, verb).await,
        Noun::Events(args) => events::run(app, args).await,
        Noun::Audit(verb) => audit::run(app, verb).await,
        Noun::Simulate(verb) => simulate::run(app, verb).await,
        Noun::Context(verb) => context::run(app, verb),
        Noun::Debug(verb) => debug::run(app, verb).await,
        Noun::Completion { shell } => completion::run(app, shell),
    }
}
