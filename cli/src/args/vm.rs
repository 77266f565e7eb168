//! `tamdao vm …`, as clap types. Only the form is checked here; what a VM may be is the controller's to say.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{DeleteArgs, EditArgs, ListArgs, NameArg, NewArgs, VmMigrateArgs, WaitArgs};
use crate::quantity::{parse_duration, parse_mib};

#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// List VMs
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one VM with its conditions and last events
    Get(NameArg),
    /// Make a VM and wait until it runs
    Create(Box<VmCreateArgs>),
    /// Change labels, keys, protection, run policy or what decides the place
    Update(VmUpdateArgs),
    /// Start a stopped VM
    Start(VmPowerArgs),
    /// Shut a VM down: by ACPI, and by force after the deadline
    Stop(VmStopArgs),
    /// Shut a VM down and start it again
    Reboot(VmRebootArgs),
    /// Press the reset button
    Reset(VmResetArgs),
    /// Freeze a VM in memory
    Pause(VmPowerArgs),
    /// Let a paused VM go on
    Resume(VmPowerArgs),
    /// Give a VM another size
    Resize(VmResizeArgs),
    /// Move a VM to another node, while it runs where that can be
    Migrate(VmMigrateArgs),
    /// Give a VM with its disks and addresses to another agency; it runs on
    HandOver(VmHandOverArgs),
    /// Remove VMs with their disks
    #[command(visible_alias = "rm")]
    Delete(VmDeleteArgs),
    /// Say why a VM is where it is, or what it waits for
    Explain(NameArg),
    /// What became of a VM: its events, and each restart elsewhere with its proof
    History(NameArg),
    /// Join the serial console; Ctrl-] then "." leaves it
    Console(VmConsoleArgs),
    /// Print the serial log that the node keeps
    Log(VmLogArgs),
    /// Follow changes as they happen
    Watch(VmWatchArgs),
}

#[derive(Debug, Args)]
pub struct VmCreateArgs {
    #[command(flatten)]
    pub new: NewArgs,
    /// Size by name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["vcpus", "memory"])]
    pub flavor: Option<String>,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u32>,
    /// Image to boot from; makes the first disk
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Size of the boot disk (10G), or one more disk: "size=10G[,image=NAME][,pool=NAME][,keep]"; repeat for more
    #[arg(long = "disk", value_name = "SIZE|DISK")]
    pub disks: Vec<String>,
    /// Existing volume to attach; repeat for more
    #[arg(long = "volume", value_name = "NAME")]
    pub volumes: Vec<String>,
    /// ISO image to attach as a cdrom; repeat for more
    #[arg(long = "iso", value_name = "IMAGE")]
    pub isos: Vec<String>,
    /// Network: "NAME[,address=ADDRESS][,mac=MAC]"; repeat for more
    #[arg(long = "network", value_name = "NETWORK")]
    pub networks: Vec<String>,
    /// Public key for the default user: a file, or the key itself; repeat for more
    #[arg(long = "ssh-key", value_name = "FILE|KEY")]
    pub ssh_keys: Vec<String>,
    /// File with cloud-init's user data
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// What the guest is told to be called
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// When the machine should run; a guest that shuts itself down stays off with on-failure, the default
    #[arg(long, value_name = "WHEN", value_enum)]
    pub run: Option<Run>,
    /// How the machine boots [default: bios]
    #[arg(long, value_name = "KIND", value_enum)]
    pub firmware: Option<FirmwareArg>,
    /// Family of the guest's operating system [default: linux]
    #[arg(long, value_name = "FAMILY", value_enum)]
    pub os_type: Option<OsTypeArg>,
    /// The machine's screen [default: none]
    #[arg(long, value_name = "KIND", value_enum)]
    pub graphics: Option<GraphicsArg>,
    /// Ask for UEFI secure boot
    #[arg(long)]
    pub secure_boot: bool,
    /// Give the machine an emulated TPM 2.0
    #[arg(long)]
    pub tpm: bool,
    /// Kernel image to boot directly
    #[arg(long, value_name = "IMAGE")]
    pub kernel: Option<String>,
    /// Initial ram disk for the kernel
    #[arg(long, value_name = "IMAGE", requires = "kernel")]
    pub initrd: Option<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    pub cmdline: Option<String>,
    /// Pin the VM to one node (cloud admins)
    #[arg(long, value_name = "NODE")]
    pub pin_node: Option<String>,
    /// Split it evenly over so many NUMA cells of its node, and keep it there
    #[arg(long, value_name = "N")]
    pub numa_cells: Option<u32>,
    #[command(flatten)]
    pub place: VmPlaceArgs,
    /// Refuse deletion until this is taken away
    #[arg(long)]
    pub delete_protection: bool,
    /// Wait until the guest agent answers, not only until QEMU runs
    #[arg(long, conflicts_with = "no_wait")]
    pub wait_ready: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct VmUpdateArgs {
    #[command(flatten)]
    pub edit: EditArgs,
    /// When the machine should run
    #[arg(long, value_name = "WHEN", value_enum)]
    pub run: Option<Run>,
    /// Refuse deletion (true), or allow it again (false)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub delete_protection: Option<bool>,
    /// Public keys instead of the present ones: a file, or the key itself; repeat for more
    #[arg(long = "ssh-key", value_name = "FILE|KEY")]
    pub ssh_keys: Vec<String>,
    #[command(flatten)]
    pub place: VmPlaceArgs,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// What decides the place of a VM, at its making and later.
#[derive(Debug, Args)]
pub struct VmPlaceArgs {
    /// Label that its node must have, or "KEY-" to ask no longer; repeat for more
    #[arg(long = "node-label", value_name = "KEY=VALUE")]
    pub node_labels: Vec<String>,
    /// Label that its node must not have, or "KEY-" to allow it; repeat for more
    #[arg(long = "forbid-node-label", value_name = "KEY=VALUE")]
    pub forbidden_node_labels: Vec<String>,
    /// What is placed and restarted first, 0 to 1000 [at first: 0]
    #[arg(long, value_name = "N")]
    pub priority: Option<u32>,
    /// Placement group to join, or "NAME-" to leave; repeat for more
    #[arg(long = "group", value_name = "NAME")]
    pub groups: Vec<String>,
    /// Isolation class, or "" for none; VMs of different classes never share a node
    #[arg(long, value_name = "CLASS")]
    pub isolation: Option<String>,
    /// What becomes of it when its node is lost [at first: evacuate]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub on_node_loss: Option<NodeLoss>,
    /// What becomes of it when its node is drained [at first: migrate]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub maintenance: Option<Maintenance>,
}

#[derive(Debug, Args)]
pub struct VmPowerArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct VmHandOverArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Agency that is to own it
    #[arg(long, value_name = "AGENCY")]
    pub to: String,
    /// What it is called there [default: as before]
    #[arg(long = "name", value_name = "NAME")]
    pub new_name: Option<String>,
    /// Only say whether it can be done
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short = 'y')]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct VmStopArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Stop at once, like pulling the plug
    #[arg(long)]
    pub force: bool,
    /// How long the guest may take after ACPI [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// Answer yes to the question that --force asks
    #[arg(long, short = 'y')]
    pub yes: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct VmRebootArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// How long the guest may take after ACPI [default: 2m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct VmResetArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Answer yes to the question
    #[arg(long, short = 'y')]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct VmResizeArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// New size by name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["vcpus", "memory"], required_unless_present_any = ["vcpus", "memory"])]
    pub flavor: Option<String>,
    /// New number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u32>,
    /// New memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u32>,
    /// Check everything, change nothing, and show the difference
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: WaitArgs,
}

#[derive(Debug, Args)]
pub struct VmDeleteArgs {
    #[command(flatten)]
    pub delete: DeleteArgs,
    /// Stop the guest at once instead of by ACPI
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct VmConsoleArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Take the console from whoever has it open
    #[arg(long)]
    pub force: bool,
    /// When stdin has ended: leave after this time without output
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub idle_timeout: Duration,
}

#[derive(Debug, Args)]
pub struct VmLogArgs {
    /// Name or id, or AGENCY/NAME
    pub name: String,
    /// Go on printing what is written from now on
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Print this many of the last lines
    #[arg(long, short = 'n', value_name = "LINES")]
    pub tail: Option<usize>,
}

#[derive(Debug, Args)]
pub struct VmWatchArgs {
    /// Name or id, or AGENCY/NAME; all VMs when left out
    pub name: Option<String>,
    /// Only those with these labels
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub labels: String,
    /// All agencies, also when there is a default one
    #[arg(long, short = 'A')]
    pub all_agencies: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Run {
    Always,
    OnFailure,
    Stopped,
}

/// What becomes of a VM when its node is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Maintenance {
    Migrate,
    ShutDown,
    Block,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum NodeLoss {
    Evacuate,
    Stay,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FirmwareArg {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OsTypeArg {
    Linux,
    Windows,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum GraphicsArg {
    None,
    Vnc,
}
