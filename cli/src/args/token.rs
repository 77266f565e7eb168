//! `tamdao token …`, as clap types.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::ListArgs;
use crate::quantity::parse_duration;

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// List tokens, those of the cloud too; secrets are never shown again
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Make a token and print its secret, once
    Create(TokenCreateArgs),
    /// Revoke tokens: they are refused from then on
    Revoke {
        /// Names or ids, or AGENCY/NAME
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// They are of the cloud, not of an agency
        #[arg(long)]
        cloud: bool,
    },
}

#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// Name, or AGENCY/NAME
    pub name: String,
    /// What its holder may do
    #[arg(long, value_enum)]
    pub role: RoleArg,
    /// The role is held at the cloud, and so everywhere, instead of at an agency and all below it
    #[arg(long)]
    pub cloud: bool,
    /// How long it can be used, a year at most
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = parse_duration)]
    pub ttl: Duration,
}

/// The roles, as `role` in the contract has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    CloudAdmin,
    Operator,
    Auditor,
    AgencyAdmin,
    Member,
    Viewer,
}

impl From<RoleArg> for tamdao_proto::v1::Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::CloudAdmin => Self::CloudAdmin,
            RoleArg::Operator => Self::Operator,
            RoleArg::Auditor => Self::Auditor,
            RoleArg::AgencyAdmin => Self::AgencyAdmin,
            RoleArg::Member => Self::Member,
            RoleArg::Viewer => Self::Viewer,
        }
    }
}
