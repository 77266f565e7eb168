//! What may be typed: the grammar `tamdao <noun> <verb> [NAME]` as clap types. Nothing is done here, and nothing is
//! read but the command line and the environment; a value that parses here is of the right form, not yet right.

mod audit;
mod backup;
mod cloud;
mod image;
mod manifest;
mod moves;
mod node;
mod placement;
mod plain;
mod role_binding;
mod simulate;
mod token;
mod vm;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use audit::*;
pub use backup::*;
pub use cloud::*;
pub use image::*;
pub use manifest::*;
pub use moves::*;
pub use node::*;
pub use placement::*;
pub use plain::*;
pub use role_binding::*;
pub use simulate::*;
pub use token::*;
pub use vm::*;

use crate::quantity::parse_duration;

/// Work with a Tam Đảo private cloud.
#[derive(Debug, Parser)]
#[command(
    name = "tamdao",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "Start with `tamdao context set` to say where your cloud is, then `tamdao vm list`.\n\
                  Exit codes: 0 done, 1 failed, 2 usage or unexpected, 3 still in progress at the timeout."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub noun: Noun,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Agency that owns what is named; NAME may also be AGENCY/NAME
    #[arg(long, short = 'a', global = true, env = "TAMDAO_AGENCY", hide_env_values = true)]
    pub agency: Option<String>,
    /// Form of the data on stdout; json and yaml are the API's own
    #[arg(long, short = 'o', global = true, value_name = "FORM", value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Say nothing on stderr but errors
    #[arg(long, short = 'q', global = true)]
    pub quiet: bool,
    /// Context to use instead of the current one
    #[arg(long, global = true, env = "TAMDAO_CONTEXT", hide_env_values = true)]
    pub context: Option<String>,
    /// Controller to speak to, HOST:PORT; repeat for more; replaces the context's
    #[arg(long = "endpoint", global = true, value_name = "HOST:PORT")]
    pub endpoints: Vec<String>,
    /// Socket of this host's controller, when nothing else lets you in
    #[arg(long, global = true, value_name = "PATH", conflicts_with_all = ["endpoints", "ca", "token_file"])]
    pub socket: Option<PathBuf>,
    /// File with the CA's certificate (PEM); replaces the context's
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File with the token; replaces the context's
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// How long to go on trying while no controller answers
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub retry_for: Duration,
}

/// The form of data on stdout. The values have no help of their own: it would double the length of every help page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
    Yaml,
    /// The engine's own text, of which only `simulate` knows.
    #[value(skip)]
    Text,
}

/// What the command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Virtual machines
    #[command(subcommand)]
    Vm(Box<VmVerb>),
    /// Disks of VMs
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// What disks start from, kernels, ISO files
    #[command(subcommand)]
    Image(ImageVerb),
    /// Named sizes of VMs
    #[command(subcommand)]
    Flavor(FlavorVerb),
    /// Networks that VMs are attached to
    #[command(subcommand)]
    Network(NetworkVerb),
    /// VMs that are placed apart from one another, or together
    #[command(subcommand, visible_alias = "pg")]
    PlacementGroup(PlacementGroupVerb),
    /// Agencies, the tenants of the cloud
    #[command(subcommand)]
    Agency(AgencyVerb),
    /// Ways in for programs and people, each with one role at one place
    #[command(subcommand)]
    Token(TokenVerb),
    /// Who has which role where
    #[command(subcommand, visible_alias = "rb")]
    RoleBinding(RoleBindingVerb),
    /// Moves of VMs from node to node
    #[command(subcommand)]
    Move(MoveVerb),
    /// Hypervisor hosts
    #[command(subcommand)]
    Node(NodeVerb),
    /// Racks, power feeds and the like, whose nodes are maintained together
    #[command(subcommand)]
    FailureDomain(FailureDomainVerb),
    /// Places for disks on nodes
    #[command(subcommand)]
    Pool(PoolVerb),
    /// How VMs are placed: what a good node is, and which failures must find room
    #[command(subcommand)]
    SchedulingPolicy(SchedulingPolicyVerb),
    /// Restarts elsewhere after the loss of a node
    #[command(subcommand)]
    Ha(HaVerb),
    /// Processes of the control plane
    #[command(subcommand)]
    Controller(ControllerVerb),
    /// The cloud's records in a file, for a restore
    #[command(subcommand)]
    Backup(BackupVerb),
    /// What a cloud that was restored has to find out before it acts
    #[command(subcommand)]
    Recovery(RecoveryVerb),
    /// Show what it takes that the cloud is as a manifest says
    Plan(PlanArgs),
    /// Make the cloud so as a manifest says
    Apply(ApplyArgs),
    /// Remove all that a manifest's stack has
    Destroy(DestroyArgs),
    /// Write what a stack has, or what an agency owns, as a manifest
    Export(ExportArgs),
    /// Check a manifest without a cloud
    Validate(ManifestArgs),
    /// Write manifests in their normal form
    Fmt(FmtArgs),
    /// What belongs to stacks of manifests
    #[command(subcommand)]
    Stack(StackVerb),
    /// What happened, the newest last
    Events(EventsArgs),
    /// Who changed what, and who was refused
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Ask the placement engine: what would you do
    #[command(subcommand)]
    Simulate(SimulateVerb),
    /// Come in by the identity provider, in a browser
    Login(LoginArgs),
    /// Forget what the identity provider gave
    Logout,
    /// Clouds that this command line knows
    #[command(subcommand)]
    Context(ContextVerb),
    /// Look inside the control plane
    #[command(subcommand)]
    Debug(DebugVerb),
    /// Print a completion script for a shell
    Completion {
        /// Shell to complete in
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Which resource.
#[derive(Debug, Clone, Args)]
pub struct NameArg {
    /// Name or id, or AGENCY/NAME
    pub name: String,
}

/// Which resources.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only those with these labels: "key=value", "key!=value" or "key", separated by commas
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub labels: String,
    /// Only those in this phase, such as running or pending
    #[arg(long)]
    pub phase: Option<String>,
    /// All agencies, also when there is a default one
    #[arg(long, short = 'A')]
    pub all_agencies: bool,
    /// Show this many at most
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// How long a change is watched.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// Return as soon as the change is accepted
    #[arg(long)]
    pub no_wait: bool,
    /// Stop waiting after this time, with exit code 3; the change goes on
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// What a removal takes.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
    /// Names or ids, or AGENCY/NAME
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Answer yes to the question
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Check everything and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What names and labels a new resource gets.
#[derive(Debug, Clone, Args)]
pub struct NewArgs {
    /// Name, or AGENCY/NAME; may stand in the file instead
    pub name: Option<String>,
    /// Read the resource from a YAML or JSON file in the API's own form ("-" is stdin); flags override it
    #[arg(long, short = 'f', value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name for people
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// Label; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Check everything, change nothing, and show what would be made
    #[arg(long)]
    pub dry_run: bool,
}

/// What every update takes.
#[derive(Debug, Clone, Args)]
pub struct EditArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Name for people
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// Label to set, or to remove when written "KEY-"; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Check everything, change nothing, and show the difference
    #[arg(long)]
    pub dry_run: bool,
}
