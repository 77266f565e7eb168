//! Who may do what: roles, where they are held, and the one table of all methods.
//!
//! Its invariant: [`judge`] is the only answer to "may they", for every face, list and watch; a method without a row is
//! for cloud admins. What somebody may not read he cannot tell from what does not exist. Deliberately absent: who
//! somebody is, and what a request names; both are arguments.

use serde::{Deserialize, Serialize};

use crate::AgencyId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    CloudAdmin,
    /// Nodes, pools and controllers; nothing of agencies.
    Operator,
    /// Reads everything, changes nothing.
    Auditor,
    /// An agency's own things, its tokens, and the agencies below it.
    AgencyAdmin,
    /// An agency's own things.
    Member,
    /// Reads an agency's own things.
    Viewer,
}

impl Role {
    pub const ALL: [Self; 6] =
        [Self::CloudAdmin, Self::Operator, Self::Auditor, Self::AgencyAdmin, Self::Member, Self::Viewer];

    /// Whether it means something at an agency; the others are held at the cloud only.
    pub fn is_of_agencies(self) -> bool {
        match self {
            Self::CloudAdmin | Self::Operator => false,
            Self::Auditor | Self::AgencyAdmin | Self::Member | Self::Viewer => true,
        }
    }
}

/// A role that somebody holds: at the cloud, which is above every agency, or at one agency and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub role: Role,
    pub at: Option<AgencyId>,
}

/// Of what a method speaks, and so where a role must be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The cloud itself.
    Cloud,
    /// What everybody shares: a role anywhere will do.
    Shared,
    /// The agency in the field `agency`; if that is empty, all that the caller may see.
    Agency,
    /// The agency in the field `agency`; if that is empty, what everybody shares.
    AgencyOrShared,
    /// The agency in the field `agency`; if that is empty, the cloud.
    AgencyOrCloud,
    /// The agency in the field `name`; if that is empty, all that the caller may see.
    Itself,
    /// The one above the agency in the field `name`: what an agency is, it does not say itself.
    Above,
    /// The agency in the field `agency.spec.parent`; if that is empty, the cloud.
    Parent,
}

/// One method: its path as gRPC has it without "/tamdao.v1.", and who may call it.
#[derive(Debug)]
pub struct Row {
    pub method: &'static str,
    pub place: Place,
    pub roles: &'static [Role],
}

const ALL: &[Role] = &Role::ALL;
const CLOUD: &[Role] = &[Role::CloudAdmin];
const HOSTS: &[Role] = &[Role::CloudAdmin, Role::Operator];
const SEE_HOSTS: &[Role] = &[Role::CloudAdmin, Role::Operator, Role::Auditor];
const AUDIT: &[Role] = &[Role::CloudAdmin, Role::Auditor];
const READ: &[Role] = &[Role::CloudAdmin, Role::Auditor, Role::AgencyAdmin, Role::Member, Role::Viewer];
const WRITE: &[Role] = &[Role::CloudAdmin, Role::AgencyAdmin, Role::Member];
const MAKE: &[Role] = &[Role::CloudAdmin, Role::Operator, Role::AgencyAdmin, Role::Member];
const MANAGE: &[Role] = &[Role::CloudAdmin, Role::AgencyAdmin];
const SEE_TOKENS: &[Role] = &[Role::CloudAdmin, Role::Auditor, Role::AgencyAdmin];

macro_rules! table {
    ($($service:literal { $($method:ident $place:ident $roles:ident;)* })*) => {
        &[$($(Row {
            method: concat!($service, "/", stringify!($method)),
            place: Place::$place,
            roles: $roles,
        },)*)*]
    };
}

/// Every method of the public contract.
pub const TABLE: &[Row] = table! {
    "AgencyService" {
        GetAgency Itself READ; ListAgencies Itself READ; WatchAgencies Itself READ;
        CreateAgency Parent MANAGE; UpdateAgency Above MANAGE; DeleteAgency Above MANAGE;
        RenameAgency Above MANAGE;
    }
    "AuditService" { WatchAudit Agency SEE_TOKENS; VerifyAudit Cloud AUDIT; }
    "BackupService" { TakeBackup Cloud CLOUD; ListBackups Cloud SEE_HOSTS; }
    "ClusterService" {
        GetCluster Shared ALL; ListLoops Cloud SEE_HOSTS; DisarmHa Cloud HOSTS; ArmHa Cloud HOSTS;
        CreateJoinToken Cloud HOSTS; ListJoinTokens Cloud SEE_HOSTS; RevokeJoinToken Cloud HOSTS;
        DumpCluster Cloud AUDIT; ReplayDecisions Cloud AUDIT;
    }
    "ControllerService" {
        GetController Cloud SEE_HOSTS; ListControllers Cloud SEE_HOSTS; WatchControllers Cloud SEE_HOSTS;
        RemoveController Cloud HOSTS; TransferLeadership Cloud HOSTS;
    }
    "EventService" { ListEvents Agency ALL; WatchEvents Agency ALL; }
    "FlavorService" {
        GetFlavor Shared ALL; ListFlavors Shared ALL; WatchFlavors Shared ALL;
        CreateFlavor Cloud CLOUD; UpdateFlavor Cloud CLOUD; DeleteFlavor Cloud CLOUD;
    }
    "ImageService" {
        GetImage AgencyOrShared READ; ListImages AgencyOrShared READ; WatchImages AgencyOrShared READ;
        CreateImage AgencyOrCloud WRITE; UpdateImage AgencyOrCloud WRITE; DeleteImage AgencyOrCloud WRITE;
    }
    "MoveService" {
        GetMove Agency READ; ListMoves Agency READ; WatchMoves Agency READ; CancelMove Agency CLOUD;
    }
    "NetworkService" {
        GetNetwork AgencyOrShared READ; ListNetworks AgencyOrShared READ; WatchNetworks AgencyOrShared READ;
        CreateNetwork AgencyOrCloud WRITE; UpdateNetwork AgencyOrCloud WRITE; DeleteNetwork AgencyOrCloud WRITE;
    }
    "NodeService" {
        GetNode Cloud SEE_HOSTS; ListNodes Cloud SEE_HOSTS; WatchNodes Cloud SEE_HOSTS;
        UpdateNode Cloud HOSTS; DeleteNode Cloud HOSTS; CordonNode Cloud HOSTS; UncordonNode Cloud HOSTS;
        AttestNodeGone Cloud HOSTS; DrillFencing Cloud HOSTS;
        DrainNodes Cloud HOSTS; CancelDrain Cloud HOSTS; ReturnNodes Cloud HOSTS;
    }
    "PlacementGroupService" {
        GetPlacementGroup Agency READ; ListPlacementGroups Agency READ; WatchPlacementGroups Agency READ;
        CreatePlacementGroup Agency WRITE; UpdatePlacementGroup Agency WRITE; DeletePlacementGroup Agency WRITE;
    }
    "PoolService" {
        GetPool Cloud SEE_HOSTS; ListPools Cloud SEE_HOSTS; WatchPools Cloud SEE_HOSTS;
        CreatePool Cloud HOSTS; UpdatePool Cloud HOSTS; DeletePool Cloud HOSTS;
    }
    "RecoveryService" { GetRecovery Cloud SEE_HOSTS; EndRecovery Cloud CLOUD; }
    "RoleBindingService" {
        GetRoleBinding AgencyOrCloud SEE_TOKENS; ListRoleBindings Agency SEE_TOKENS; WatchRoleBindings Agency SEE_TOKENS;
        CreateRoleBinding AgencyOrCloud MANAGE; UpdateRoleBinding AgencyOrCloud MANAGE;
        DeleteRoleBinding AgencyOrCloud MANAGE;
    }
    "SchedulingPolicyService" {
        GetSchedulingPolicy Cloud SEE_HOSTS; WatchSchedulingPolicy Cloud SEE_HOSTS; UpdateSchedulingPolicy Cloud CLOUD;
    }
    // What is noted or previewed is judged once more for each resource, as if it were made.
    "StackService" { ListStackResources Agency READ; RecordApply Shared MAKE; PreviewPlan Shared MAKE; }
    "TokenService" {
        GetToken AgencyOrCloud SEE_TOKENS; ListTokens Agency SEE_TOKENS; WatchTokens Agency SEE_TOKENS;
        CreateToken AgencyOrCloud MANAGE; DeleteToken AgencyOrCloud MANAGE;
    }
    "TransferService" { UploadImage AgencyOrCloud WRITE; OpenConsole Agency WRITE; ReadSerialLog Agency WRITE; }
    "VmService" {
        GetVm Agency READ; ListVms Agency READ; WatchVms Agency READ; ExplainVm Agency READ;
        CreateVm Agency WRITE; UpdateVm Agency WRITE; DeleteVm Agency WRITE;
        StartVm Agency WRITE; StopVm Agency WRITE; RebootVm Agency WRITE; ResetVm Agency WRITE;
        PauseVm Agency WRITE; ResumeVm Agency WRITE; ResizeVm Agency WRITE; MigrateVm Agency CLOUD;
        // And what making a VM in the other agency needs.
        HandOverVm Agency MANAGE;
    }
    "VolumeService" {
        GetVolume Agency READ; ListVolumes Agency READ; WatchVolumes Agency READ;
        CreateVolume Agency WRITE; UpdateVolume Agency WRITE; DeleteVolume Agency WRITE;
    }
};

/// What stands in for a method that has no row.
pub const UNKNOWN: Row = Row { method: "", place: Place::Cloud, roles: CLOUD };

/// The row of a method, "VmService/GetVm".
pub fn row(method: &str) -> &'static Row {
    TABLE.iter().find(|row| row.method == method).unwrap_or(&UNKNOWN)
}

/// What a request is about, once its names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The cloud itself.
    Cloud,
    /// What everybody shares.
    Shared,
    /// Whatever the caller may see: the answer is filtered.
    Seen,
    /// One agency and those above it, itself first; nothing when there is no such agency.
    Agency(Vec<AgencyId>),
    /// The same, where the role must be held above the agency.
    Above(Vec<AgencyId>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// It is there, and not for him.
    Denied,
    /// To be answered as what does not exist.
    Hidden,
}

/// Says whether somebody who holds these roles may call this method on this.
pub fn judge(grants: &[Grant], row: &Row, target: &Target) -> Verdict {
    let held = |roles: &[Role], over: &[AgencyId]| {
        grants.iter().any(|grant| roles.contains(&grant.role) && grant.at.is_none_or(|at| over.contains(&at)))
    };
    let anywhere = |roles: &[Role]| grants.iter().any(|grant| roles.contains(&grant.role));
    let (allowed, seen) = match target {
        // Whoever is an admin of all agencies is none of the cloud.
        Target::Cloud => {
            let of_cloud = |grant: &Grant| {
                grant.at.is_none()
                    && row.roles.contains(&grant.role)
                    && matches!(grant.role, Role::CloudAdmin | Role::Operator | Role::Auditor)
            };
            (grants.iter().any(of_cloud), true)
        }
        Target::Shared | Target::Seen => (anywhere(row.roles), true),
        Target::Agency(line) => {
            (!line.is_empty() && held(row.roles, line), held(READ, line) && !line.is_empty())
        }
        Target::Above(line) => {
            let above = line.get(1..).unwrap_or_default();
            (!line.is_empty() && held(row.roles, above), held(READ, line) && !line.is_empty())
        }
    };
    match (allowed, seen) {
        (true, _) => Verdict::Allowed,
        (false, true) => Verdict::Denied,
        (false, false) => Verdict::Hidden,
    }
}

/// Whether one who calls this method sees what an agency owns; `line` is that agency and those above it, and empty for
/// what no agency owns.
pub fn sees(grants: &[Grant], row: &Row, line: &[AgencyId]) -> bool {
    let shared = line.is_empty() && matches!(row.place, Place::Shared | Place::AgencyOrShared);
    shared
        || grants.iter().any(|grant| {
            let reads = row.roles.contains(&grant.role) && READ.contains(&grant.role);
            reads && grant.at.is_none_or(|at| line.contains(&at))
        })
}

/// Whether somebody sees nodes, pools and controllers.
pub fn sees_hosts(grants: &[Grant]) -> bool {
    grants.iter().any(|grant| grant.at.is_none() && SEE_HOSTS.contains(&grant.role))
}
