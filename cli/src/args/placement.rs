//! `tamdao placement-group|scheduling-policy …`, as clap types: what decides where VMs go.

use clap::{Args, Subcommand};

use super::{DeleteArgs, EditArgs, ListArgs, NameArg, NewArgs};

#[derive(Debug, Subcommand)]
pub enum PlacementGroupVerb {
    /// List placement groups
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one placement group with its rules
    Get(NameArg),
    /// Make a placement group; VMs join it by `tamdao vm create --group NAME` or `tamdao vm update --group NAME`
    Create(PlacementGroupCreateArgs),
    /// Change rules or labels; members stay where they are
    Update(PlacementGroupUpdateArgs),
    /// Remove placement groups without members
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub struct PlacementGroupCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// Rule for its members: "apart" or "together", then "[,by=node|KEY][,at-most=N][,preferred]"; repeat for more
    #[arg(long = "rule", value_name = "RULE")]
    pub rules: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PlacementGroupUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// Rules instead of the present ones: "apart|together[,by=node|KEY][,at-most=N][,preferred]"; repeat for more
    #[arg(long = "rule", value_name = "RULE")]
    pub rules: Vec<String>,
    /// Take all rules away
    #[arg(long, conflicts_with = "rules")]
    pub no_rules: bool,
}

#[derive(Debug, Subcommand)]
pub enum SchedulingPolicyVerb {
    /// Show weights, guarded failure domains and the CPU model, with what each part of the score measures
    Get,
    /// Change weights, guarded failure domains or the CPU model; placed VMs stay where they are
    Update(SchedulingPolicyUpdateArgs),
}

#[derive(Debug, Args)]
pub struct SchedulingPolicyUpdateArgs {
    /// Weight of a part of the score, "tight=10", or "tight-" for its default; repeat for more
    #[arg(long = "weight", value_name = "PART=WEIGHT")]
    pub weights: Vec<String>,
    /// Failure domain to guard, node or a key such as rack, or "KEY-" to guard it no longer; repeat for more
    #[arg(long = "guard", value_name = "KEY")]
    pub guards: Vec<String>,
    /// CPU model that VMs get at their first start, such as IvyBridge; "" leaves it to the node
    #[arg(long, value_name = "MODEL")]
    pub cpu_model: Option<String>,
    /// Check everything, change nothing, and show the difference
    #[arg(long)]
    pub dry_run: bool,
}
