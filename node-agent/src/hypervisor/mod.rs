//! The seam between the agent and what runs guests: what can be asked of a hypervisor, and what it answers.
//!
//! Invariants: a domain is ours only if its name and its metadata both say so, and a domain that is not ours is
//! counted and otherwise never touched; every start leaves the guest paused, so that whatever must guard it can
//! be told before its first instruction; every order names the incarnation that it is meant for; `destroy`
//! returns only when the QEMU process is gone.
//!
//! Deliberately absent: policy (what should run, retries, deadlines of ACPI), files (volumes, images, seeds) and
//! packet filters. They are the caller's; a hypervisor is given paths and device names that already exist.

pub mod contract;
pub mod domain_xml;
#[cfg(test)]
mod domain_xml_tests;
pub mod fake;
pub mod host;
pub mod libvirt;
pub mod migration;
pub mod probe;
pub mod xml;

use std::path::PathBuf;
use std::time::SystemTime;

use async_trait::async_trait;
use tamdao_keeper::protocol::ProcessId;
use tamdao_proto::agent::v1::Machine;
use tamdao_proto::v1::{DiskKind, GuestStatus, Inventory, Platform};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;
use uuid::Uuid;

use self::migration::{Dirtying, Migration, MigrationProgress};

pub type Result<T> = std::result::Result<T, HypervisorError>;

/// A hypervisor on this host. All calls may be repeated; none retries by itself. Calls for one VM should not
/// overlap: the caller works on a VM from one task.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// What the host has. `agent_version` and `clock_offset_ms` are left empty: they are the session's to fill.
    async fn inventory(&self) -> Result<Inventory>;

    /// Every domain on the host: ours in order of VM id, the others as a number.
    async fn observe(&self) -> Result<Observation>;

    /// Creates the domain and leaves it paused before its first instruction ([`PauseReason::NotYetRun`]);
    /// `resume` runs it. An empty platform in the spec is resolved here and returned in [`Domain::platform`].
    /// Answers [`HypervisorError::Exists`] if the VM has a domain, whatever its incarnation.
    async fn start(&self, spec: &DomainSpec) -> Result<Domain>;

    /// Lets a paused guest run. A guest that runs already is no error.
    async fn resume(&self, vm: Uuid, incarnation: u64) -> Result<()>;

    /// The QEMU process of a domain, be it paused or running.
    async fn process(&self, vm: Uuid, incarnation: u64) -> Result<ProcessId>;

    /// Freezes a guest. A guest that is paused already is no error, and keeps its reason.
    async fn pause(&self, vm: Uuid, incarnation: u64) -> Result<()>;

    /// Presses the power button by ACPI and returns at once; the guest may ignore it.
    async fn shutdown(&self, vm: Uuid, incarnation: u64) -> Result<()>;

    /// Kills the guest and returns when its QEMU process is gone. A VM without a domain is no error, and a lower
    /// incarnation than the given one is destroyed too; a higher one is refused as stale.
    async fn destroy(&self, vm: Uuid, incarnation: u64) -> Result<()>;

    /// Resets the machine at once, like its reset button.
    async fn reset(&self, vm: Uuid, incarnation: u64) -> Result<()>;

    /// Gives a running guest a new size where that can be done live, wholly or not at all.
    async fn resize(&self, vm: Uuid, incarnation: u64, vcpus: u32, memory_mib: u32) -> Result<Resized>;

    /// Records in the domain that this generation of the spec has been acted on.
    async fn set_generation(&self, vm: Uuid, incarnation: u64, generation: u64) -> Result<()>;

    /// Sends a running guest to another host, and returns when it is gone from here, or when it is not. The guest
    /// arrives paused ([`PauseReason::NotYetRun`]) under its new incarnation and stays so until `resume` over there.
    /// After an error nobody knows what became of it before `migration` says that none is at work and the domain has
    /// been looked at: it runs here, stands still here, or is gone.
    async fn migrate(&self, vm: Uuid, incarnation: u64, migration: &Migration) -> Result<()>;

    /// Gives up the migration that is at work; the guest goes on here. Without one it is `Refused`.
    async fn abort_migration(&self, vm: Uuid, incarnation: u64) -> Result<()>;

    /// How far the migration out of this host is; `None` while none is at work, or the VM has no domain.
    async fn migration(&self, vm: Uuid) -> Result<Option<MigrationProgress>>;

    /// Measures for a second how much memory the guest changes; one that stands still changes none. Meanwhile the guest
    /// runs on, and may be sent. A second measurement at the same time may be refused.
    async fn dirtying(&self, vm: Uuid) -> Result<Dirtying>;

    /// What the guest agent says; `None` while none is connected or when it does not answer within two seconds.
    async fn guest(&self, vm: Uuid) -> Result<Option<GuestStatus>>;

    /// Joins the guest's serial port. Only one holder at a time: `Refused` with the reason `ConsoleBusy` unless
    /// `force` takes it away. Dropping the stream lets go of it.
    async fn console(&self, vm: Uuid, force: bool) -> Result<Console>;

    /// Counters of all our running domains, in order of VM id.
    async fn stats(&self) -> Result<Vec<DomainStats>>;

    /// How the last domain of the VM ended, from the hypervisor's own records; `None` where they do not tell.
    /// This is for ends that no event told of, because the agent or its connection was away.
    async fn last_exit(&self, vm: Uuid) -> Result<Option<Exit>>;

    /// What happens from now on. A receiver that lags loses events, and events are lost while the connection is
    /// and shortly after it is back: they are a reason to look, and `observe` is the truth.
    fn events(&self) -> broadcast::Receiver<DomainEvent>;
}

/// A two-way stream of bytes: a guest's serial port.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type Console = Box<dyn Duplex>;

/// All that a domain is made of. Paths are those that QEMU sees, and absolute.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainSpec {
    pub vm: Uuid,
    pub incarnation: u64,
    pub generation: u64,
    /// Size, firmware, graphics, command line and platform are read from here; `disks`, `interfaces` and
    /// `cloud_init` are not: the fields below are what the agent made of them.
    pub machine: Machine,
    pub disks: Vec<DiskFile>,
    pub interfaces: Vec<Port>,
    /// The NoCloud ISO.
    pub seed: Option<PathBuf>,
    /// The files of `machine.direct_boot`; both are ignored without it.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// Where everything that the guest writes to its serial port is kept. One file per host and VM: virtlogd
    /// refuses a file that it has open already.
    pub serial_log: PathBuf,
    /// UEFI's variables; made by libvirt from the firmware's template at the first start.
    pub nvram: PathBuf,
}

/// One disk as QEMU opens it.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskFile {
    /// `None` is an empty cdrom.
    pub path: Option<PathBuf>,
    pub format: DiskFormat,
    pub kind: DiskKind,
    /// 1 boots first; 0 is not bootable. No two may be equal but for 0.
    pub boot_order: u32,
    /// The file is reached from other nodes too.
    pub shared: bool,
    pub readonly: bool,
    /// What the guest sees as the disk's serial number, up to 20 characters; [`disk_serial`] makes it of a
    /// volume's id. Empty for none.
    pub serial: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    Qcow2,
    Raw,
}

/// One network interface and the bridge that it is plugged into.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub mac: String,
    /// The bridge device; for a VLAN it is the one that carries this VLAN, since libvirt cannot tag on a plain
    /// Linux bridge.
    pub bridge: String,
    /// Bytes; 0 means 1,500.
    pub mtu: u32,
    /// The host's end, [`tap_name`]; known before the start so that packet filters can be.
    pub tap: String,
}

/// The host's end of a VM's interface: `tap`, 44 bits of the VM's id and the interface's place, 15 characters,
/// which is the longest name that Linux allows.
pub fn tap_name(vm: Uuid, index: usize) -> String {
    let id = vm.simple().to_string();
    format!("tap{}{:x}", &id[..11], index & 0xf)
}

/// A volume's serial number as its guest sees it: the first 20 hexadecimal digits of its id, which is all that
/// virtio has room for.
pub fn disk_serial(volume: Uuid) -> String {
    volume.simple().to_string()[..20].to_owned()
}

/// The name of a VM's domain.
pub fn domain_name(vm: Uuid) -> String {
    format!("tamdao-{vm}")
}

/// The VM that a domain's name speaks of; `None` for a foreign one.
pub fn vm_of_domain_name(name: &str) -> Option<Uuid> {
    let id = name.strip_prefix("tamdao-")?;
    let vm = Uuid::try_parse(id).ok()?;
    (domain_name(vm) == name).then_some(vm)
}

/// What is on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    pub ours: Vec<Domain>,
    /// Domains that are not ours.
    pub foreign: u32,
}

/// One domain of ours. Our domains are transient: one that is off is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    pub vm: Uuid,
    pub incarnation: u64,
    pub generation: u64,
    pub state: DomainState,
    pub platform: Platform,
    /// Virtual CPUs that are plugged in now.
    pub vcpus: u32,
    pub memory_mib: u32,
    /// When the domain was created, by this host's clock.
    pub started: SystemTime,
    pub guest_agent_connected: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    Running,
    Paused(PauseReason),
    /// The guest is shutting down, or QEMU is going away.
    ShuttingDown,
    /// The guest has panicked, and QEMU is still there.
    Crashed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// Created and never resumed.
    NotYetRun,
    /// Someone asked for it.
    OnDemand,
    /// A disk failed or its pool is full.
    IoError,
    /// A migration holds it.
    Migration,
    /// Anything else that libvirt knows.
    Other,
}

impl PauseReason {
    /// The word in reports; empty when on demand.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotYetRun => "not-yet-run",
            Self::OnDemand => "",
            Self::IoError => "io-error",
            Self::Migration => "migration",
            Self::Other => "other",
        }
    }
}

/// What happened. Only domains whose name is ours are spoken of.
#[derive(Clone, Debug, PartialEq)]
pub enum DomainEvent {
    Lifecycle {
        vm: Uuid,
        change: Change,
    },
    /// QEMU could not read or write; by our settings the guest is paused.
    IoError {
        vm: Uuid,
        path: String,
        reason: String,
    },
    AgentConnected {
        vm: Uuid,
        connected: bool,
    },
    /// Calls answer `Disconnected` until `ConnectionUp`; guests go on.
    ConnectionLost,
    /// Look at everything again: events of the time between are lost.
    ConnectionUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created, or arrived by a migration.
    Started,
    Paused(PauseReason),
    Resumed,
    /// The guest has begun to shut down.
    ShuttingDown,
    /// The domain is gone.
    Stopped(Exit),
    /// The guest has panicked; `Stopped` follows.
    Crashed,
}

/// How a domain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off, by itself or because it was asked by ACPI.
    Shutdown,
    /// It was destroyed through libvirt.
    Destroyed,
    /// The guest panicked or QEMU died.
    Crashed,
    /// QEMU could not be started or lost.
    Failed,
    /// It moved to another node.
    Migrated,
}

/// Whether a new size holds already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    Live,
    /// Nothing has changed; the next start will bring it.
    NeedsRestart,
}

/// Counters of one domain since it was created.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DomainStats {
    pub vm: Uuid,
    /// CPU time of QEMU and its guest, ns.
    pub cpu_ns: u64,
    /// Memory of the host that QEMU takes, KiB; 0 where it is not known.
    pub memory_rss_kib: u64,
    /// The guest's memory less what the balloon took, KiB.
    pub memory_kib: u64,
    pub disks: Vec<DiskStats>,
    pub ports: Vec<PortStats>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskStats {
    /// The device as QEMU calls it, such as vda.
    pub device: String,
    pub read_bytes: u64,
    pub read_requests: u64,
    pub write_bytes: u64,
    pub write_requests: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortStats {
    /// The host's end.
    pub tap: String,
    /// As the guest sees it: what it received.
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    #[error("vm {vm} has no domain here")]
    NotFound { vm: Uuid },
    #[error("vm {vm} already has a domain here, of incarnation {incarnation}")]
    Exists { vm: Uuid, incarnation: u64 },
    #[error("vm {vm} runs here as incarnation {running}, not {asked}")]
    Stale { vm: Uuid, asked: u64, running: u64 },
    /// Another QEMU holds the lock of a disk: the second barrier against running a VM twice has held.
    #[error("another process uses a disk of this vm: {message}")]
    ImageLocked { message: String },
    /// libvirt or QEMU said no.
    #[error("{message}")]
    Refused {
        /// One CamelCase word.
        reason: &'static str,
        /// libvirt's own words.
        message: String,
        /// It will not pass by itself.
        permanent: bool,
    },
    /// libvirt is not reachable; whether an order has been carried out is not known.
    #[error("libvirt is away: {message}")]
    Disconnected { message: String },
}

impl HypervisorError {
    /// The CamelCase word for conditions and reports.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "DomainNotFound",
            Self::Exists { .. } => "DomainExists",
            Self::Stale { .. } => "StaleIncarnation",
            Self::ImageLocked { .. } => "ImageLocked",
            Self::Refused { reason, .. } => reason,
            Self::Disconnected { .. } => "HypervisorAway",
        }
    }

    /// Whether trying again without a change of the spec is useless.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused { permanent: true, .. })
    }
}
