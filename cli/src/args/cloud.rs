//! `tamdao controller|events|context|debug …`, as clap types: the control plane itself and how to reach it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{ListArgs, NameArg};
use crate::quantity::parse_duration;

#[derive(Debug, Subcommand)]
pub enum ControllerVerb {
    /// List controllers
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one controller
    Get(NameArg),
    /// Make a join token and print the command to run on the new machine
    Add(ControllerAddArgs),
    /// Take a controller out of the group
    Remove(ControllerRemoveArgs),
    /// Make another controller the leader
    TransferLeader(NameArg),
}

#[derive(Debug, Args)]
pub struct ControllerAddArgs {
    /// Name of the new controller
    pub name: String,
    /// Where it will be reached, HOST:PORT [default: its name and the port of the others]
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// How long the token can be used, 7 days at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub ttl: Duration,
}

#[derive(Debug, Args)]
pub struct ControllerRemoveArgs {
    /// Name or id
    pub name: String,
    /// Answer yes to the question
    #[arg(long, short = 'y')]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(long, short = 'w')]
    pub watch: bool,
    /// Only about this VM
    #[arg(long, value_name = "NAME", group = "subject")]
    pub vm: Option<String>,
    /// Only about this node
    #[arg(long, value_name = "NAME", group = "subject")]
    pub node: Option<String>,
    /// Only about this volume
    #[arg(long, value_name = "NAME", group = "subject")]
    pub volume: Option<String>,
    /// Only about this image
    #[arg(long, value_name = "NAME", group = "subject")]
    pub image: Option<String>,
    /// Only about resources of this kind, such as vm
    #[arg(long, group = "subject")]
    pub kind: Option<String>,
    /// All agencies, also when there is a default one
    #[arg(long, short = 'A')]
    pub all_agencies: bool,
    /// Begin with this many of the last events
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}

#[derive(Debug, Args)]
#[command(after_help = "The first time --issuer and --client-id are needed; the context keeps them.")]
pub struct LoginArgs {
    /// URL of the identity provider, exactly as it calls itself
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,
    /// What the cloud is at the identity provider
    #[arg(long, value_name = "ID")]
    pub client_id: Option<String>,
    /// File with a CA (PEM) that the identity provider is known by, beside the public ones
    #[arg(long, value_name = "FILE")]
    pub issuer_ca: Option<PathBuf>,
    /// What to ask the identity provider for, separated by spaces [default: openid offline_access]
    #[arg(long, value_name = "SCOPES")]
    pub scopes: Option<String>,
    /// Print the URL to open instead of opening a browser
    #[arg(long)]
    pub no_browser: bool,
}

#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// List contexts
    #[command(visible_alias = "ls")]
    List,
    /// Make a context the current one
    Use {
        /// Name of the context
        name: String,
    },
    /// Show a context, without its token
    Show {
        /// Name of the context [default: the current one]
        name: Option<String>,
    },
    /// Make or change a context; the first one becomes the current one
    Set(ContextSetArgs),
    /// Forget a context
    Remove {
        /// Name of the context
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "The controllers, the CA and the token's file are given by --endpoint, --ca, --token-file \
                        and --agency, as everywhere."
)]
pub struct ContextSetArgs {
    /// Name of the context
    pub name: String,
    /// Read the token from stdin and keep it in the configuration
    #[arg(long, conflicts_with = "token_file")]
    pub token_stdin: bool,
    /// Keep the CA's certificate itself in the configuration instead of the path
    #[arg(long, requires = "ca")]
    pub embed_ca: bool,
    /// Name that the controllers' certificates must show [default: the endpoint's host]
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// Make it the current one
    #[arg(long = "use")]
    pub make_current: bool,
}

#[derive(Debug, Subcommand)]
pub enum DebugVerb {
    /// Say how the answering controller's loops do
    Loops,
    /// Say what this cluster is and which controller answers
    Cluster,
    /// Write the cluster as the placement engine sees it, for `tamdao simulate` and for bug reports
    Dump {
        /// File to write, which must not exist [default: stdout]
        file: Option<PathBuf>,
        /// Overwrite the file
        #[arg(long, requires = "file")]
        force: bool,
    },
    /// Compute decisions about places again, and say what differs
    Replay {
        /// Only what was decided from this revision or committed in it
        #[arg(long, value_name = "R")]
        revision: Option<u64>,
        /// Only decisions about this VM, by name or id
        #[arg(long, value_name = "NAME")]
        vm: Option<String>,
        /// How many decisions, the newest
        #[arg(long, value_name = "N", default_value_t = 100)]
        last: u32,
    },
}

#[derive(Debug, Subcommand)]
pub enum HaVerb {
    /// Say whether lost nodes are fenced and their VMs restarted, and how the nodes stand
    Status,
    /// Turn it off for a while, such as for work on the network
    Disarm {
        /// For how long, 7 days at most
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// Turn it on again
    Arm,
}
