//! `tamdao simulate …`, as clap types: which cluster, changed how, and what is asked of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Subcommand};

use super::Format;
use crate::quantity::{parse_duration, parse_mib};

#[derive(Debug, Subcommand)]
pub enum SimulateVerb {
    /// Give every VM that waits a place, and say why there, or why not
    Place(ForkArgs),
    /// Count how many more of a size fit, and say what runs out first
    Fit(FitArgs),
    /// Lose each node, rack or feed in turn: do all its protected VMs have a place?
    Survive(SurviveArgs),
    /// Plan to empty nodes, racks or feeds by moves, or say what stays and why
    Drain(DrainArgs),
    /// For each node, rack or feed: can it be emptied with no VM stopped, and what is missing if not?
    Maintain(MaintainArgs),
    /// Plan to empty as many nodes as possible by moves that copy little
    Consolidate(ConsolidateArgs),
    /// Plan to even out the load of nodes, where that is worth the moves
    Balance(BalanceArgs),
    /// Print what makes a place good, and how much each part weighs
    Weights(ForkArgs),
}

/// Which cluster is worked on. Nothing that is done there happens anywhere else.
#[derive(Debug, Args)]
#[command(arg = form(), after_help = "Changes: 'node NAME down', 'KEY VALUE down' for any failure-domain key (such as 'rack r2 down'), \
                        the same with cordon and uncordon, and 'add COUNT FLAVOR'.\n\
                        Exit codes: 0 all is well, 1 something has no place, 2 usage.")]
pub struct ForkArgs {
    /// Cluster text file ("-" is stdin) [default: the live cluster]
    #[arg(long, value_name = "FILE")]
    pub cluster: Option<PathBuf>,
    /// Change this first, such as 'rack r2 down' or 'add 40 m'; repeat for more
    #[arg(long = "what-if", value_name = "CHANGE")]
    pub what_ifs: Vec<String>,
}

/// The global flag with one value more. It has the same id, so it takes the other's place and is read as it.
fn form() -> Arg {
    let words = PossibleValuesParser::new(["table", "wide", "json", "yaml", "text"]);
    let format = words.map(|word| match word.as_str() {
        "wide" => Format::Wide,
        "json" => Format::Json,
        "yaml" => Format::Yaml,
        "text" => Format::Text,
        _ => Format::Table,
    });
    Arg::new("output")
        .long("output")
        .short('o')
        .value_name("FORM")
        .default_value("table")
        .value_parser(format)
        .help("Form of the answer on stdout; text is the engine's own: a cluster or a plan")
        .help_heading("Global options")
}

#[derive(Debug, Args)]
pub struct FitArgs {
    /// Size to count, of the cluster's flavors; repeat for more [default: all of them]
    #[arg(long = "flavor", value_name = "FLAVOR")]
    pub flavors: Vec<String>,
    /// Count copies of this VM of the cluster instead, with all that it asks for
    #[arg(long, value_name = "VM", conflicts_with = "flavors")]
    pub like: Option<String>,
    /// Room for a disk beside what the size asks for, such as fast=20G; repeat for more
    #[arg(long = "disk", value_name = "POOL=SIZE", value_parser = disk)]
    pub disks: Vec<(String, u32)>,
    /// Count also how many fit while every loss of a value of these is survived
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub guarded: Vec<String>,
    /// Count also for each value of these: how many fit there, and elsewhere once it is lost
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub by: Vec<String>,
    /// Count also for each agency, whose quota may leave less
    #[arg(long, conflicts_with = "like")]
    pub agencies: bool,
    /// Stop counting there
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub at_most: u32,
    #[command(flatten)]
    pub fork: ForkArgs,
}

fn disk(text: &str) -> Result<(String, u32), String> {
    let (pool, size) = text.split_once('=').ok_or("expected POOL=SIZE, such as fast=20G")?;
    Ok((pool.to_owned(), parse_mib(size)?))
}

#[derive(Debug, Args)]
pub struct SurviveArgs {
    /// What may be lost: node, or any failure-domain key, separated by commas
    #[arg(long, value_name = "KEYS", value_delimiter = ',', default_value = "node")]
    pub guarded: Vec<String>,
    #[command(flatten)]
    pub fork: ForkArgs,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// What to empty: nodes by name, or KEY=VALUE for all nodes of a failure domain
    #[arg(required = true, value_name = "NODE|KEY=VALUE")]
    pub what: Vec<String>,
    /// Losses that must be survived at the end as they are now: node, or any failure-domain key
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub guarded: Vec<String>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub fork: ForkArgs,
}

#[derive(Debug, Args)]
pub struct MaintainArgs {
    /// What is maintained, one at a time: each node, and each value of these keys [default: node and all keys]
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub each: Vec<String>,
    /// Losses that must be survived meanwhile: node, or any failure-domain key
    #[arg(long, value_name = "KEYS", value_delimiter = ',', default_value = "node")]
    pub guarded: Vec<String>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub fork: ForkArgs,
}

#[derive(Debug, Args)]
pub struct ConsolidateArgs {
    /// Only empty these: nodes by name, or KEY=VALUE for all nodes of a failure domain [default: any node]
    #[arg(value_name = "NODE|KEY=VALUE")]
    pub among: Vec<String>,
    /// So many nodes are enough [default: as many as possible]
    #[arg(long, value_name = "N")]
    pub count: Option<usize>,
    /// Empty first the nodes whose hardware support ends first, and not those with the least to copy
    #[arg(long)]
    pub oldest_first: bool,
    /// Losses that must be survived at the end as they are now: node, or any failure-domain key
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub guarded: Vec<String>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub fork: ForkArgs,
}

#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// Do nothing while no node's load is further than this from the cluster's, in percent of the node
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=100))]
    pub threshold: u32,
    /// Moves at most [default: as many as are worth it]
    #[arg(long, value_name = "N")]
    pub at_most: Option<usize>,
    /// Losses that must be survived at the end as they are now: node, or any failure-domain key
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    pub guarded: Vec<String>,
    #[command(flatten)]
    pub pace: PaceArgs,
    #[command(flatten)]
    pub fork: ForkArgs,
}

/// How much may go on at once.
#[derive(Debug, Args)]
pub struct PaceArgs {
    /// Moves that one node takes part in at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub per_node: u32,
    /// Moves in the whole cluster at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub at_once: u32,
    /// Moves that enter or leave one value of a failure-domain key at once, such as rack=4; repeat for more
    #[arg(long = "per-link", value_name = "KEY=N", value_parser = link)]
    pub per_link: Vec<(String, u32)>,
    /// VM that stays where it is; repeat for more
    #[arg(long = "keep", value_name = "VM")]
    pub keep: Vec<String>,
    /// Stop looking for something better after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub time_limit: Option<Duration>,
}

fn link(text: &str) -> Result<(String, u32), String> {
    let (key, count) = text.split_once('=').ok_or("expected KEY=N, such as rack=4")?;
    let count = count.parse().ok().filter(|count| *count > 0).ok_or("the number must be 1 or more")?;
    Ok((key.to_owned(), count))
}
