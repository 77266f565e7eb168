//! `tamdao image …`, as clap types.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{DeleteArgs, EditArgs, ListArgs, WaitArgs};
use crate::quantity::parse_mib;

#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// List images
    #[command(visible_alias = "ls")]
    List(ImageListArgs),
    /// Show one image with its conditions and last events
    Get(ScopedNameArg),
    /// Bring an image in from a file or a URL, and wait until it can be used
    Import(ImageImportArgs),
    /// Change labels or the least memory
    Update(ImageUpdateArgs),
    /// Remove images that no volume or VM needs
    #[command(visible_alias = "rm")]
    Delete(ScopedDeleteArgs),
}

/// Something that belongs to the cluster, or privately to an agency.
#[derive(Debug, Args)]
pub struct ScopedNameArg {
    /// Name or id, or AGENCY/NAME for a private one
    pub name: String,
    /// It is private to the agency given by -a
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Args)]
pub struct ScopedDeleteArgs {
    #[command(flatten)]
    pub delete: DeleteArgs,
    /// They are private to the agency given by -a
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Args)]
pub struct ImageListArgs {
    #[command(flatten)]
    pub list: ListArgs,
    /// Only those private to the agency given by -a
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Args)]
pub struct ImageImportArgs {
    /// Name, or AGENCY/NAME for a private one
    pub name: String,
    /// File to send: qcow2 or raw, also compressed by gzip; a kernel, a ram disk or an ISO with --kind
    #[arg(long, short = 'f', value_name = "FILE", required_unless_present = "url")]
    pub file: Option<PathBuf>,
    /// Address from which a controller fetches it
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    pub url: Option<String>,
    /// What it is for
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ImageKindArg::Disk)]
    pub kind: ImageKindArg,
    /// Expected SHA-256 of the file as sent, in hex
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    /// Least memory for a VM with it
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub min_memory: Option<u32>,
    /// Make it private to the agency given by -a
    #[arg(long)]
    pub private: bool,
    /// Name for people
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// Label; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Check everything, change nothing, and show what would be made
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct ImageUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// Least memory for a VM with it
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub min_memory: Option<u32>,
    /// It is private to the agency given by -a
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ImageKindArg {
    Disk,
    Kernel,
    Initrd,
    Iso,
}
