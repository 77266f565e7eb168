//! `tamdao move …` and `tamdao vm migrate`, as clap types.

use clap::{Args, Subcommand};

use super::{ListArgs, NameArg, WaitArgs};

#[derive(Debug, Subcommand)]
pub enum MoveVerb {
    /// List moves, also those that were over within the last day
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one move and how far it is
    Get(NameArg),
    /// Give a move up; the VM stays where it is
    Cancel(MoveCancelArgs),
    /// Follow one move to its end
    Watch(MoveWatchArgs),
}

#[derive(Debug, Args)]
pub struct MoveCancelArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct MoveWatchArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct VmMigrateArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Node to go to; the cloud chooses when left out
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Shut the VM down for it if it cannot move while it runs
    #[arg(long)]
    pub allow_cold: bool,
    /// Never slow the guest down, even if it then does not arrive
    #[arg(long)]
    pub no_auto_converge: bool,
    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Check everything and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}
