//! Enums that the model and the contract both have. A pair is written once, and a variant that one side lacks does
//! not compile. What zero means is said where the field is read, because it differs.

use tamdao_proto::{agent, v1};

use crate::agency::AgencyState;
use crate::cluster::JoinKind;
use crate::condition::ConditionStatus;
use crate::event::Severity;
use crate::forecast::Verdict;
use crate::image::{ImageKind, ImagePhase};
use crate::moves::MovePhase;
use crate::node::{DrainPhase, NodePhase};
use crate::placement_group::PlacementRuleKind;
use crate::pool::PoolKind;
use crate::role::Role;
use crate::vm::{
    ActionKind, DiskKind, Firmware, Graphics, GuestExit, GuestState, MaintenancePolicy, OnNodeLoss, OsType,
    Power, RunPolicy, VmPhase,
};
use crate::volume::VolumePhase;

/// An enum of the model with its number in the contract.
pub trait Twin: Copy + PartialEq + Sized + 'static {
    /// Every variant with its name in the contract, in the contract's order.
    fn words() -> Vec<(Self, &'static str)>;

    /// The contract's number.
    fn number(self) -> i32;

    /// The variant of this number; none for 0 and for numbers that are not known.
    fn from_number(number: i32) -> Option<Self>;
}

macro_rules! twins {
    ($($model:ty => $proto:ty { $($variant:ident),+ $(,)? })+) => {$(
        impl Twin for $model {
            fn words() -> Vec<(Self, &'static str)> {
                vec![$((<$model>::$variant, <$proto>::$variant.as_str_name())),+]
            }

            fn number(self) -> i32 {
                match self {
                    $(<$model>::$variant => <$proto>::$variant as i32),+
                }
            }

            fn from_number(number: i32) -> Option<Self> {
                match <$proto>::try_from(number).ok()? {
                    <$proto>::Unspecified => None,
                    $(<$proto>::$variant => Some(<$model>::$variant)),+
                }
            }
        }
    )+};
}

twins! {
    AgencyState => v1::AgencyState { Active, Frozen, Archived }
    Role => v1::Role { CloudAdmin, Operator, Auditor, AgencyAdmin, Member, Viewer }
    ConditionStatus => v1::ConditionStatus { True, False, Unknown }
    Severity => v1::EventSeverity { Info, Warning }
    JoinKind => v1::JoinTokenKind { Node, Controller }
    NodePhase => v1::NodePhase { Joining, Ready, Unreachable, NotReady, Fencing, Fenced, Returning }
    PoolKind => v1::PoolKind { Dir }
    VolumePhase => v1::VolumePhase { Pending, Creating, Available, Growing, Deleting, Failed }
    ImagePhase => v1::ImagePhase { Pending, Importing, Available, Failed }
    ImageKind => v1::ImageKind { Disk, Kernel, Initrd, Iso }
    DiskKind => v1::DiskKind { Disk, Cdrom }
    Firmware => v1::Firmware { Bios, Uefi }
    OsType => v1::OsType { Linux, Windows }
    Graphics => v1::Graphics { None, Vnc }
    RunPolicy => v1::RunPolicy { Always, OnFailure, Stopped }
    OnNodeLoss => v1::OnNodeLoss { Evacuate, Stay }
    MaintenancePolicy => v1::MaintenancePolicy { Migrate, ShutDown, Block }
    DrainPhase => v1::DrainPhase { Draining, Drained, Returning }
    PlacementRuleKind => v1::PlacementRuleKind { Apart, Together }
    Power => v1::Power { On, Off, Paused }
    VmPhase => v1::VmPhase {
        Pending, Scheduled, Starting, Running, Paused, Stopping, Stopped, Deleting, Failed, Unknown,
    }
    Verdict => v1::MoveVerdict { Arrives, ArrivesSlowed, TooLong, Never, Unknown }
    MovePhase => v1::MovePhase { Preparing, Sending, Recalling, Clearing, Done, Failed, Cancelled }
    GuestState => agent::v1::GuestState { Absent, Preparing, Starting, Running, Paused, Stopping, Stopped }
    GuestExit => agent::v1::GuestExit { ByItself, OnOrder, Failed }
    ActionKind => agent::v1::ActionKind { Reboot, Reset }
}
