//! `tamdao audit …`, as clap types.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::quantity::parse_duration;

#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// Show what was changed, by whom, and what was refused, the newest last
    #[command(visible_alias = "ls")]
    List(AuditListArgs),
    /// Check that no entry of any controller's journal is missing, changed or moved
    Verify,
    /// Print records as lines of JSON, each controller's in the order of its journal
    Export(AuditArgs),
}

/// Which records.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Only by this one: a token's name or id, or all that WHO shows
    #[arg(long, value_name = "NAME")]
    pub who: Option<String>,
    /// Only by this method, such as CreateVm
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Only of the last time, such as 2h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Only what was refused
    #[arg(long)]
    pub refused: bool,
    /// Go on with what happens from now on
    #[arg(long, short = 'w')]
    pub watch: bool,
    /// All agencies, also when there is a default one
    #[arg(long, short = 'A')]
    pub all_agencies: bool,
}

#[derive(Debug, Args)]
pub struct AuditListArgs {
    #[command(flatten)]
    pub which: AuditArgs,
    /// Begin with this many of the last records
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
}
