//! `tamdao role-binding …`, as clap types.

use clap::{Args, Subcommand};

use super::{DeleteArgs, ListArgs, NewArgs, RoleArg};

#[derive(Debug, Subcommand)]
pub enum RoleBindingVerb {
    /// List role bindings, those of the cloud too
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Give a user or a group of the identity provider, or a token, a role
    Create(RoleBindingCreateArgs),
    /// Take roles away, at once
    #[command(visible_alias = "rm")]
    Delete {
        #[command(flatten)]
        delete: DeleteArgs,
        /// They are of the cloud, not of an agency
        #[arg(long)]
        cloud: bool,
    },
}

#[derive(Debug, Args)]
pub struct RoleBindingCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// What the subject may do
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
    /// A person, as the identity provider names him
    #[arg(long, value_name = "NAME", conflicts_with_all = ["group", "token"])]
    pub user: Option<String>,
    /// Everybody in a group of the identity provider
    #[arg(long, value_name = "NAME", conflicts_with = "token")]
    pub group: Option<String>,
    /// A token, by its UUID
    #[arg(long, value_name = "UUID")]
    pub token: Option<String>,
    /// The role is held at the cloud, and so everywhere, instead of at an agency and all below it
    #[arg(long)]
    pub cloud: bool,
}
