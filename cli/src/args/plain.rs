//! `tamdao agency|flavor|network|pool|volume …`, as clap types: the nouns with standard verbs only.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    DeleteArgs, EditArgs, ImageListArgs, ListArgs, NameArg, NewArgs, ScopedDeleteArgs, ScopedNameArg,
    WaitArgs,
};
use crate::quantity::parse_mib;

#[derive(Debug, Subcommand)]
pub enum AgencyVerb {
    /// List agencies
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one agency with what it holds
    Get(NameArg),
    /// Make an agency
    Create(AgencyCreateArgs),
    /// Change what it is, its place in the tree, its quota or its state
    Update(AgencyUpdateArgs),
    /// Give an agency another name; what it owns stays as it is
    Rename {
        /// Name or id
        name: String,
        /// What it shall be called
        new_name: String,
    },
    /// Show what agencies hold of what they may hold, each with those below it
    Usage {
        /// Name or id [default: all]
        name: Option<String>,
    },
    /// Remove agencies that own nothing
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub struct AgencyCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// What it is
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Whom to reach
    #[arg(long, value_name = "TEXT")]
    pub contact: Option<String>,
    /// Agency above it, whose quota its own is cut out of
    #[arg(long, value_name = "NAME")]
    pub parent: Option<String>,
    /// Limits: vcpus=64,memory=256G; also vms, disk, volumes, addresses, protected_memory, flavor_class/NAME
    #[arg(long, value_name = "MEASURE=AMOUNT", value_delimiter = ',')]
    pub quota: Vec<String>,
}

#[derive(Debug, Args)]
pub struct AgencyUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// What it is
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Whom to reach
    #[arg(long, value_name = "TEXT")]
    pub contact: Option<String>,
    /// Agency above it; "" for none
    #[arg(long, value_name = "NAME")]
    pub parent: Option<String>,
    /// Limits to set, or to remove when written "MEASURE-", as for create
    #[arg(long, value_name = "MEASURE=AMOUNT", value_delimiter = ',')]
    pub quota: Vec<String>,
    /// frozen: nothing new; archived: and nothing runs
    #[arg(long, value_enum)]
    pub state: Option<AgencyStateArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AgencyStateArg {
    Active,
    Frozen,
    Archived,
}

#[derive(Debug, Subcommand)]
pub enum FlavorVerb {
    /// List flavors
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one flavor
    Get(NameArg),
    /// Make a flavor; its size cannot change later
    Create(FlavorCreateArgs),
    /// Change labels or the name for people
    Update(FlavorUpdateArgs),
    /// Remove flavors; VMs made from them keep their size
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub struct FlavorCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u32>,
    /// Class by which quotas count VMs of it
    #[arg(long, value_name = "NAME")]
    pub class: Option<String>,
}

#[derive(Debug, Args)]
pub struct FlavorUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
}

#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    /// List networks
    #[command(visible_alias = "ls")]
    List(ImageListArgs),
    /// Show one network
    Get(ScopedNameArg),
    /// Make a network
    Create(NetworkCreateArgs),
    /// Change subnets, MTU, name servers or labels
    Update(NetworkUpdateArgs),
    /// Remove networks to which nothing is attached
    #[command(visible_alias = "rm")]
    Delete(ScopedDeleteArgs),
}

#[derive(Debug, Args)]
pub struct NetworkCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// Bridge device on the nodes
    #[arg(long, value_name = "DEVICE")]
    pub bridge: Option<String>,
    /// Tag of a VLAN on that bridge
    #[arg(long, value_name = "TAG", requires = "bridge")]
    pub vlan: Option<u32>,
    /// Addresses: "CIDR[,gateway=ADDRESS][,range=FIRST-LAST]"; repeat for IPv6
    #[arg(long = "subnet", value_name = "SUBNET")]
    pub subnets: Vec<String>,
    /// MTU, bytes
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Name server for the guests; repeat for more
    #[arg(long = "dns", value_name = "ADDRESS")]
    pub dns_servers: Vec<String>,
    /// Make it private to the agency given by -a
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Args)]
pub struct NetworkUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// Subnets instead of the present ones: "CIDR[,gateway=ADDRESS][,range=FIRST-LAST]"; repeat for IPv6
    #[arg(long = "subnet", value_name = "SUBNET")]
    pub subnets: Vec<String>,
    /// MTU, bytes
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Name servers instead of the present ones; repeat for more
    #[arg(long = "dns", value_name = "ADDRESS")]
    pub dns_servers: Vec<String>,
    /// It is private to the agency given by -a
    #[arg(long)]
    pub private: bool,
}

#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// List pools
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one pool as each node sees it
    Get(NameArg),
    /// Make a pool and wait until a node can use it
    Create(PoolCreateArgs),
    /// Change nodes, overcommit, reserve or labels
    Update(PoolUpdateArgs),
    /// Remove pools without volumes
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub struct PoolCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// Absolute directory on the nodes, the same on each
    #[arg(long, value_name = "DIRECTORY")]
    pub path: Option<String>,
    /// All its nodes see the same files
    #[arg(long)]
    pub shared: bool,
    /// Node that holds it; repeat for more; every node when left out
    #[arg(long = "node", value_name = "NAME")]
    pub nodes: Vec<String>,
    /// Virtual size that may be promised per real size, in percent (100 to 1000)
    #[arg(long, value_name = "PERCENT")]
    pub overcommit: Option<u32>,
    /// Kept free on each node
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub reserve: Option<u32>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct PoolUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// Nodes instead of the present ones; repeat for more
    #[arg(long = "node", value_name = "NAME")]
    pub nodes: Vec<String>,
    /// Virtual size that may be promised per real size, in percent (100 to 1000)
    #[arg(long, value_name = "PERCENT")]
    pub overcommit: Option<u32>,
    /// Kept free on each node
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub reserve: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// List volumes
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one volume with its conditions and last events
    Get(NameArg),
    /// Make a volume; its file is made when a VM with it is placed
    Create(VolumeCreateArgs),
    /// Grow a volume, or change labels
    Update(VolumeUpdateArgs),
    /// Remove volumes that no VM holds, and their data
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// Size, such as 10G; with an image its size when left out
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub size: Option<u32>,
    /// Image to start from
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Pool to lie in
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// Keep it when the VM that made it is deleted
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, Args)]
pub struct VolumeUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// New size; it can only grow
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub size: Option<u32>,
    /// Keep it when the VM that made it is deleted (true), or not (false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub keep: Option<bool>,
}
