//! VMs. The spec is what users asked for, with names resolved to ids; the status is what placement decided and
//! the node reported. The phase is derived from both in [`phase`], never set by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::condition::Conditions;
use crate::fence::FenceProof;
use crate::record::resource;
use crate::sealed::Sealed;
use crate::{
    ActionId, AgencyId, FlavorId, ImageId, Meta, MoveId, Name, NetworkId, NodeId, PlacementGroupId, Scope,
    TimeMs, VmId, VolumeId,
};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    pub meta: Meta,
    pub agency: AgencyId,
    pub spec: VmSpec,
    pub status: VmStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The flavor that the size was taken from, for people.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub flavor: Option<FlavorId>,
    /// Of that flavor, at the time when the size was taken from it.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub flavor_class: Option<Name>,
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
    pub firmware: Firmware,
    pub os_type: OsType,
    pub graphics: Graphics,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub secure_boot: bool,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub tpm: bool,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub direct_boot: Option<DirectBoot>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub ssh_keys: Vec<String>,
    /// May hold passwords, so it is sealed.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub user_data: Option<Sealed>,
    pub run: RunPolicy,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub delete_protection: bool,
    pub hostname: Name,
    /// The one node that it may run on.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub pin: Option<NodeId>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub node_labels: BTreeMap<String, String>,
    /// Its node must not have them.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub forbidden_node_labels: BTreeMap<String, String>,
    /// A higher one is placed and restarted first.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub priority: u32,
    /// VMs of different classes never share a node; none is a class too.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub isolation_class: Option<Name>,
    /// In the order that users wrote, without repetition.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub placement_groups: Vec<PlacementGroupId>,
    #[serde(default)]
    pub on_node_loss: OnNodeLoss,
    /// So many NUMA cells of its node, over which it is split evenly; 0 lies anywhere.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub numa_cells: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub maintenance: MaintenancePolicy,
    /// What users asked last.
    pub power: Power,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub stop: StopMode,
    /// The last reboot or reset asked for.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub action: Option<Action>,
    /// Deletion was asked for and not yet confirmed.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub deleting: bool,
}

/// One disk, with its volume already made as a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub source: DiskSource,
    pub kind: DiskKind,
    /// 1 boots first; 0 means the order of the list.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub boot_order: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// `created` says that the volume was made for this VM and goes with it unless it is to be kept.
    Volume {
        volume: VolumeId,
        created: bool,
    },
    Iso {
        image: ImageId,
    },
    /// An empty cdrom.
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    Disk,
    Cdrom,
}

/// One interface, with its addresses already held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub network: NetworkId,
    /// Six bytes in hex with colons, lower case.
    pub mac: String,
    pub addresses: Vec<IpNet>,
    /// Addresses that the user asked for by name; the others were chosen.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub wanted: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectBoot {
    pub kernel: ImageId,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub initrd: Option<ImageId>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub command_line: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OsType {
    Linux,
    Windows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Graphics {
    None,
    Vnc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPolicy {
    Always,
    OnFailure,
    Stopped,
}

/// What becomes of it when its node is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNodeLoss {
    /// Restarted elsewhere, if another node can run it.
    #[default]
    Evacuate,
    Stay,
}

/// What becomes of it, while it runs, when its node is drained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaintenancePolicy {
    #[default]
    Migrate,
    /// Shut down where it is, and started again when the node returns.
    ShutDown,
    Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    On,
    Off,
    Paused,
}

/// How to switch it off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopMode {
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub force: bool,
    /// How long ACPI may take, seconds; 0 means the default.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub deadline_s: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    pub id: ActionId,
    pub kind: ActionKind,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub deadline_s: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    Reboot,
    Reset,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    pub phase: VmPhase,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub conditions: Conditions,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub observed_generation: u64,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub node: Option<NodeId>,
    /// Grows each time the VM is given to another node; 0 before placement.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub incarnation: u64,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub platform: Option<Platform>,
    /// What the node said last; none before its first report.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub seen: Option<Seen>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub guest: Guest,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub started_time: Option<TimeMs>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub action_done: Option<ActionId>,
    /// Its open move. While there is one the VM may be on either node.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub moving: Option<MoveId>,
    /// The highest incarnation ever given, also by a move that was given up; 0 means that `incarnation` is.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub incarnation_given: u64,
    /// Restarts elsewhere after the loss of a node, the newest last; [`crate::limits::EVACUATIONS_KEPT`] at most.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub evacuations: Vec<Evacuation>,
    /// A drain has moved it or shut it down, and its node's return makes that good.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub drained: Option<Drained>,
}

/// What a drain did to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Where it was. A second drain on its way does not change that.
    pub from: NodeId,
    /// It was shut down by its own policy and is started again.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub shut_down: bool,
}

/// One restart on another node after the VM's own was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evacuation {
    pub time: TimeMs,
    /// The nodes' names at that time.
    pub from: Name,
    pub to: Name,
    /// On the new node.
    pub incarnation: u64,
    /// That the lost node did not run it any more.
    pub proof: FenceProof,
}

/// What the node's last report said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub state: GuestState,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub exit: Option<GuestExit>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub problem: Option<Problem>,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub pause_reason: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub vcpus: u32,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub memory_mib: u32,
    /// The node's keeper has it: it does not outlive the node's storage lease.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub guarded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    Absent,
    Preparing,
    Starting,
    Running,
    Paused,
    Stopping,
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestExit {
    ByItself,
    OnOrder,
    Failed,
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub reason: String,
    pub message: String,
    /// It will not pass by itself.
    pub permanent: bool,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub attempts: u32,
}

/// What the guest sees of the hypervisor; changed only by a cold start that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    pub machine_type: String,
    pub cpu_model: String,
}

/// What the guest agent says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub ready: bool,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub hostname: String,
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub addresses: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmPhase {
    #[default]
    Pending,
    Scheduled,
    Starting,
    Running,
    Paused,
    Stopping,
    Stopped,
    Deleting,
    Failed,
    Unknown,
}

resource!(Vm, Vm, |vm| Scope::Agency(vm.agency));

impl Vm {
    pub fn id(&self) -> VmId {
        VmId(self.meta.id)
    }

    /// The volumes of its disks, in order.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        self.spec.disks.iter().filter_map(|disk| match disk.source {
            DiskSource::Volume { volume, .. } => Some(volume),
            DiskSource::Iso { .. } | DiskSource::Empty => None,
        })
    }

    /// The images that its node needs: ISOs, kernel and initrd. Those of volumes are the volumes' own.
    pub fn images(&self) -> impl Iterator<Item = ImageId> + '_ {
        let isos = self.spec.disks.iter().filter_map(|disk| match disk.source {
            DiskSource::Iso { image } => Some(image),
            DiskSource::Volume { .. } | DiskSource::Empty => None,
        });
        let boot = self.spec.direct_boot.iter().flat_map(|boot| [Some(boot.kernel), boot.initrd]).flatten();
        isos.chain(boot)
    }

    /// The incarnation for the next node that it is given to: never one that any node has heard of.
    pub fn next_incarnation(&self) -> u64 {
        self.status.incarnation.max(self.status.incarnation_given) + 1
    }

    /// Whether the user wants it to run now.
    pub fn wants_on(&self) -> bool {
        !self.spec.deleting && self.spec.run != RunPolicy::Stopped && self.spec.power != Power::Off
    }
}

/// The phase of a VM. `reachable` says whether its node is heard.
pub fn phase(vm: &Vm, reachable: bool) -> VmPhase {
    if vm.spec.deleting {
        return VmPhase::Deleting;
    }
    if vm.status.node.is_none() {
        return VmPhase::Pending;
    }
    if !reachable {
        return VmPhase::Unknown;
    }
    let Some(seen) = &vm.status.seen else { return VmPhase::Scheduled };
    let failed = seen.problem.as_ref().is_some_and(|p| p.permanent);
    match (seen.state, vm.wants_on()) {
        (GuestState::Running, true) => VmPhase::Running,
        (GuestState::Running | GuestState::Stopping, _) => VmPhase::Stopping,
        (GuestState::Paused, true) => VmPhase::Paused,
        (GuestState::Paused, false) => VmPhase::Stopping,
        (GuestState::Absent | GuestState::Preparing | GuestState::Starting, true) if failed => {
            VmPhase::Failed
        }
        (GuestState::Absent | GuestState::Preparing, true) => VmPhase::Scheduled,
        (GuestState::Starting, true) => VmPhase::Starting,
        (GuestState::Stopped, true) if failed => VmPhase::Failed,
        // It shut itself down and its policy leaves it off; with any other exit the node is about to start it.
        (GuestState::Stopped, true)
            if seen.exit == Some(GuestExit::ByItself) && vm.spec.run == RunPolicy::OnFailure =>
        {
            VmPhase::Stopped
        }
        (GuestState::Stopped, true) => VmPhase::Starting,
        (GuestState::Absent | GuestState::Preparing | GuestState::Starting | GuestState::Stopped, false) => {
            VmPhase::Stopped
        }
    }
}
