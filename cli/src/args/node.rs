//! `tamdao node …`, as clap types.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{DeleteArgs, EditArgs, ListArgs, NameArg};
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
    /// Answer for a lost node running nothing any more: its VMs are then restarted elsewhere
    AttestGone(AttestGoneArgs),
    /// Change labels, failure domains or overcommit
    Update(NodeUpdateArgs),
    /// Remove nodes on which nothing runs
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
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
