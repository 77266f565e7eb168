//! `tamdao node …`, as clap types.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::{DeleteArgs, EditArgs, ListArgs, NameArg, WaitArgs};
use crate::quantity::{parse_duration, parse_mib};

#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// List nodes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one node with what it has, its conditions and last events
    Get(NameArg),
    /// Keep new VMs away from a node
    Cordon(NameArg),
    /// Let new VMs onto a node again
    Uncordon(NameArg),
    /// Move all VMs away, for maintenance: shows the plan, asks, and goes on until nothing runs there
    Drain(NodeDrainArgs),
    /// Take a node into use again, and bring back what its drain moved away
    Return(NodeReturnArgs),
    /// Update nodes in turns, no VM stopped: drains the fewest groups that can be down together, and brings all back
    Roll(NodeRollArgs),
    /// Answer for a lost node running nothing any more: its VMs are then restarted elsewhere
    AttestGone(AttestGoneArgs),
    /// Find out, without switching anything, whether a node could be powered off if lost
    FenceDrill(NameArg),
    /// Change labels, failure domains, overcommit or BMCs
    Update(NodeUpdateArgs),
    /// Remove nodes of which nothing is left
    #[command(visible_alias = "rm", alias = "delete")]
    Remove(NodeRemoveArgs),
    /// Permissions for new nodes to join
    #[command(subcommand)]
    JoinToken(JoinTokenVerb),
}

#[derive(Debug, Args)]
pub struct AttestGoneArgs {
    /// Name or id
    pub name: String,
    /// What you know, such as "pulled its power cords"; it is kept beside your name
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Answer yes to the question
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// How far a plan of moves may go, and whether it is only shown.
#[derive(Debug, Args)]
pub struct MovesArgs {
    /// Let VMs move where the failover guarantee is lost by it
    #[arg(long)]
    pub unguarded: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Answer yes to the question
    #[arg(long, short = 'y')]
    pub yes: bool,
}

/// What a drain or return of nodes has in common.
#[derive(Debug, Args)]
pub struct DrainCommonArgs {
    #[command(flatten)]
    pub moves: MovesArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// On which terms nodes are drained.
#[derive(Debug, Args)]
pub struct DrainTermsArgs {
    /// Shut VMs down for their move that cannot move while they run
    #[arg(long)]
    pub allow_cold: bool,
    /// What it is for; it is kept with the drain
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Give it up if it is not done by then, 7 days at most
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = parse_duration)]
    pub deadline: Duration,
    /// End a drain or return that is going on: VMs stay where they are by now, the nodes as cordoned as they are
    #[arg(long, conflicts_with_all = ["dry_run", "allow_cold"])]
    pub cancel: bool,
    #[command(flatten)]
    pub common: DrainCommonArgs,
}

#[derive(Debug, Args)]
pub struct NodeDrainArgs {
    /// Names or ids; several are planned together
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub terms: DrainTermsArgs,
}

#[derive(Debug, Args)]
pub struct NodeReturnArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    pub common: DrainCommonArgs,
}

/// Which nodes take turns, what is done to them, and when one has had its turn.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["names", "labels", "failure_domain", "all"])))]
pub struct NodeRollArgs {
    /// Names or ids
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Nodes with these labels instead: "key=value", "key!=value" or "key", separated by commas
    #[arg(long, short = 'l', visible_alias = "selector", value_name = "SELECTOR")]
    pub labels: Option<String>,
    /// Nodes that stand in this failure domain and in no other of its key, such as rack=r1
    #[arg(long, value_name = "KEY=VALUE")]
    pub failure_domain: Option<String>,
    /// All nodes
    #[arg(long)]
    pub all: bool,
    /// What is done to a drained node: run here by sh, for each node, whose name is in TAMDAO_NODE and whose address is in
    /// TAMDAO_NODE_ADDRESS. Without it, do it by other means: it is seen by a new boot or version
    #[arg(long, value_name = "COMMAND")]
    pub run: Option<String>,
    /// When a node has had its turn: agent=VERSION, libvirt=VERSION or qemu=VERSION (or later), booted=TIME (or later);
    /// repeat for more. Nodes that are so already are left out
    #[arg(long, value_name = "WHAT")]
    pub until: Vec<String>,
    /// Name of this update; it is kept with the drains, and the same command goes on with drains of its name only
    #[arg(long, value_name = "TEXT", default_value = "rolling update")]
    pub reason: String,
    /// Shut VMs down for their move that cannot move while they run
    #[arg(long)]
    pub allow_cold: bool,
    #[command(flatten)]
    pub moves: MovesArgs,
    /// Stop, with exit code 3, when the drain, the work or the return of one group takes longer
    #[arg(long, value_name = "TIME", default_value = "1day", value_parser = parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub enum FailureDomainVerb {
    /// List failure domains with the nodes that stand in each
    #[command(visible_alias = "ls")]
    List,
    /// Drain all nodes that stand in a failure domain and in no other of its key, planned together
    Drain {
        /// Such as rack=r2
        #[arg(value_name = "KEY=VALUE")]
        failure_domain: String,
        #[command(flatten)]
        terms: DrainTermsArgs,
    },
    /// Take these nodes into use again, and bring back what their drain moved away
    Return {
        /// Such as rack=r2
        #[arg(value_name = "KEY=VALUE")]
        failure_domain: String,
        #[command(flatten)]
        common: DrainCommonArgs,
    },
}

#[derive(Debug, Args)]
pub struct NodeRemoveArgs {
    #[command(flatten)]
    pub delete: DeleteArgs,
    /// Answer for a lost node running nothing any more, as attest-gone does, and remove it once its VMs are elsewhere
    #[arg(long, conflicts_with = "dry_run")]
    pub force: bool,
    /// What you know, with --force; it is kept beside your name
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "force")]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct NodeUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// Where it stands: "rack=r2" or "feed=A,B", or "KEY-" to remove; repeat for more
    #[arg(long = "failure-domain", value_name = "KEY=VALUES")]
    pub failure_domains: Vec<String>,
    /// Virtual CPUs that may be promised per real one, in percent (100 to 3200)
    #[arg(long, value_name = "PERCENT")]
    pub cpu_overcommit: Option<u32>,
    /// The same for memory (100 to 300)
    #[arg(long, value_name = "PERCENT")]
    pub memory_overcommit: Option<u32>,
    /// Memory kept for the host
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub reserve_memory: Option<u32>,
    /// Date on which the vendor's support ends
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub support_ends: Option<String>,
    /// How it is powered off when lost: URL,user=NAME,password-file=FILE and ca=FILE, fingerprint=SHA256 or unverified; repeat
    /// for more, in order; replaces all. Without password-file the password stays
    #[arg(long = "bmc", value_name = "URL,...")]
    pub bmcs: Vec<String>,
    /// Take all its BMCs away
    #[arg(long, conflicts_with = "bmcs")]
    pub no_bmcs: bool,
}

#[derive(Debug, Subcommand)]
pub enum JoinTokenVerb {
    /// Make a token and print the command to run on the new node
    Create(JoinTokenCreateArgs),
    /// List the tokens that can still be used, for nodes and controllers
    #[command(visible_alias = "ls")]
    List,
    /// Make a token useless
    Revoke {
        /// Id of the token
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct JoinTokenCreateArgs {
    /// Only a node of this name may join by it
    #[arg(long)]
    pub name: Option<String>,
    /// How long it can be used, 7 days at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub ttl: Duration,
    /// How often it can be used
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub uses: u32,
}
