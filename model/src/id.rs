//! Typed ids: newtypes over UUID, so that a VM's id cannot be taken for a node's. Ids are never made here; whoever
//! needs a new one passes a UUID in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    )*};
}

ids! {
    /// A tenant.
    AgencyId,
    /// A hypervisor host.
    NodeId,
    /// A virtual machine.
    VmId,
    /// A disk.
    VolumeId,
    /// A place for disks.
    PoolId,
    /// A named size.
    FlavorId,
    /// A file that machines start from.
    ImageId,
    /// A provider network.
    NetworkId,
    /// VMs that are placed with regard to one another.
    PlacementGroupId,
    /// How the cluster places VMs.
    SchedulingPolicyId,
    /// A process of the control plane.
    ControllerId,
    /// One stream between an agent and the leader.
    SessionId,
    /// One thing that happened.
    EventId,
    /// A permission to join.
    JoinTokenId,
    /// A reboot or reset, done at most once.
    ActionId,
    /// One cloud; a restore begins a new one.
    ClusterId,
    /// One migration of one VM.
    MoveId,
    /// A way in.
    TokenId,
    /// A role that somebody was given.
    RoleBindingId,
    /// One request in the audit log.
    AuditId,
}
