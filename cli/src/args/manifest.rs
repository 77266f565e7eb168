//! `tamdao plan|apply|destroy|export|validate|fmt` and `tamdao stack`, as clap types.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::quantity::parse_duration;

/// Which manifest, and with what.
#[derive(Debug, Clone, Args)]
pub struct ManifestArgs {
    /// Directory of *.tf files, or one *.yaml or *.json
    #[arg(long = "file", short = 'f', value_name = "PATH", default_value = ".")]
    pub dir: PathBuf,
    /// Value of a variable; repeat for more. TAMDAO_VAR_NAME in the environment does the same
    #[arg(long = "var", value_name = "NAME=VALUE")]
    pub vars: Vec<String>,
    /// File of values for variables, NAME = VALUE each; repeat for more
    #[arg(long = "var-file", value_name = "FILE")]
    pub var_files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
    /// Take a resource that exists and belongs to no stack into this one, such as vm.web
    #[arg(long, value_name = "ADDRESS")]
    pub adopt: Vec<String>,
    /// Show what destroy would do
    #[arg(long)]
    pub destroy: bool,
    /// End with 0 for no changes, 1 for an error and 2 for changes
    #[arg(long)]
    pub detailed_exitcode: bool,
}

#[derive(Debug, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
    /// Take a resource that exists and belongs to no stack into this one, such as vm.web
    #[arg(long, value_name = "ADDRESS")]
    pub adopt: Vec<String>,
    #[command(flatten)]
    pub carry: CarryArgs,
}

#[derive(Debug, Args)]
pub struct DestroyArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
    #[command(flatten)]
    pub carry: CarryArgs,
}

/// How a plan is carried out.
#[derive(Debug, Clone, Args)]
pub struct CarryArgs {
    /// Answer yes to the question
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// Let this resource lose its data, such as vm.web or 'vm.web[0]'; repeat for more
    #[arg(long, value_name = "ADDRESS")]
    pub allow_data_loss: Vec<String>,
    /// How many changes run at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallelism: u16,
    /// How long each change may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Stack to write [default: what the agency given by -a owns and no stack has]
    #[arg(value_name = "STACK")]
    pub stack: Option<String>,
    /// What the stack of an agency's manifest is called [default: as the agency]
    #[arg(long = "as", value_name = "STACK", conflicts_with = "stack")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct FmtArgs {
    /// Files, or directories whose *.tf files are meant
    #[arg(value_name = "PATH", default_value = ".")]
    pub paths: Vec<PathBuf>,
    /// Change nothing; end with 1 if a file would change
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Subcommand)]
pub enum StackVerb {
    /// List the stacks, with how many resources of each kind belong to them
    #[command(visible_alias = "ls")]
    List,
}
