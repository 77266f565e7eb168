//! Whether who asks may have what he asks: the request's own words, resolved in a view and judged by the one table.
//!
//! Its invariant: the message that is judged is the message that is carried out, on both faces, and a change is judged
//! on the very draft that it is decided on. Roles are looked up there too, so a token that is revoked or has expired
//! stops at once. Deliberately absent: the table (`tamdao_model::role`), and who somebody is (`auth`).

use prost::Message;
use tamdao_model::agency::Agency;
use tamdao_model::role::{self, Grant, Place, Role, Row, Target, Verdict};
use tamdao_model::role_binding::Subject;
use tamdao_model::{AgencyId, Kind, Scope, TimeMs};
use tamdao_store::view::View;
use tonic::{Code, Request};

use crate::audit;
use crate::auth::{self, Principal};
use crate::decide::{quota, recovery};
use crate::methods::{Method, RESOURCE_NAME, catalogue};
use crate::refusal::Refusal;

/// Who asks by which method about which agency; judged anew wherever it matters.
#[derive(Debug, Clone)]
pub struct Asking {
    pub principal: Principal,
    row: &'static Row,
    wanted: Wanted,
}

/// What a request names, not yet resolved.
#[derive(Debug, Clone)]
enum Wanted {
    Cloud,
    Shared,
    Seen,
    Agency(String),
    Above(String),
}

impl Asking {
    /// Reads a request of a service. The method is known by the type of its request.
    pub fn of<M: Message>(request: &Request<M>) -> Self {
        let principal = auth::principal(request.metadata());
        let name = std::any::type_name::<M>();
        match catalogue().taking(name.rsplit("::").next().unwrap_or(name)) {
            Some(method) => Self::by(principal, method, &request.get_ref().encode_to_vec()),
            None => Self { principal, row: &role::UNKNOWN, wanted: Wanted::Cloud },
        }
    }

    /// The same for a stream, whose first message names an agency.
    pub fn streaming(principal: Principal, method: &str, agency: &str) -> Self {
        audit::names(agency, "");
        let row = role::row(method);
        let wanted = match agency {
            "" if row.place == Place::AgencyOrCloud => Wanted::Cloud,
            name => Wanted::Agency(name.to_owned()),
        };
        Self { principal, row, wanted }
    }

    fn by(principal: Principal, method: &Method, message: &[u8]) -> Self {
        let row = role::row(method.path.trim_start_matches("/tamdao.v1."));
        let field = |path: &str| method.text_in(message, path);
        let name = Some(field("name")).filter(|name| !name.is_empty());
        audit::names(&field("agency"), &name.unwrap_or_else(|| field(RESOURCE_NAME)));
        let agency = |empty: Wanted| match field("agency") {
            name if name.is_empty() => empty,
            name => Wanted::Agency(name),
        };
        let lists = ["List", "Watch"].iter().any(|verb| method.path.contains(&format!("/{verb}")));
        let wanted = match row.place {
            Place::Cloud => Wanted::Cloud,
            Place::Shared => Wanted::Shared,
            Place::Agency if lists => agency(Wanted::Seen),
            // What is in an agency has its agency named: none is found without.
            Place::Agency => Wanted::Agency(field("agency")),
            Place::AgencyOrShared => agency(if lists { Wanted::Seen } else { Wanted::Shared }),
            Place::AgencyOrCloud => agency(Wanted::Cloud),
            Place::Itself => match field("name") {
                name if name.is_empty() => Wanted::Seen,
                name => Wanted::Agency(name),
            },
            Place::Above => Wanted::Above(field("name")),
            Place::Parent => match field("agency.spec.parent") {
                name if name.is_empty() => Wanted::Cloud,
                name => Wanted::Agency(name),
            },
        };
        Self { principal, row, wanted }
    }

    /// The same caller, who would make or change a resource of this kind; an empty agency is the cluster.
    pub fn to_apply(&self, view: &View, kind: Kind, agency: &str, name: &str) -> Self {
        let there = kind == Kind::Agency && view.agencies.find(Scope::Cluster, name).is_some();
        let (method, wanted) = match kind {
            Kind::Agency if there => ("AgencyService/UpdateAgency", Wanted::Above(name.to_owned())),
            Kind::Agency => return self.to_place_under(""),
            Kind::Flavor => ("FlavorService/CreateFlavor", Wanted::Cloud),
            Kind::Image => ("ImageService/CreateImage", owned(agency)),
            Kind::Network => ("NetworkService/CreateNetwork", owned(agency)),
            Kind::PlacementGroup => ("PlacementGroupService/CreatePlacementGroup", owned(agency)),
            Kind::Pool => ("PoolService/CreatePool", Wanted::Cloud),
            Kind::RoleBinding => ("RoleBindingService/CreateRoleBinding", owned(agency)),
            Kind::Vm => ("VmService/CreateVm", owned(agency)),
            Kind::Volume => ("VolumeService/CreateVolume", owned(agency)),
            Kind::Node | Kind::SchedulingPolicy | Kind::Controller | Kind::Move | Kind::Token => {
                ("", Wanted::Cloud)
            }
        };
        Self { principal: self.principal.clone(), row: role::row(method), wanted }
    }

    /// The same caller, who would make a VM in this agency: whoever gives one to it needs as much there.
    pub fn to_take_over(&self, agency: &str) -> Self {
        let wanted = Wanted::Agency(agency.to_owned());
        Self { principal: self.principal.clone(), row: role::row("VmService/CreateVm"), wanted }
    }

    /// The same caller, who would make an agency under this one; empty for the top.
    pub fn to_place_under(&self, parent: &str) -> Self {
        let wanted = match parent {
            "" => Wanted::Cloud,
            parent => Wanted::Agency(parent.to_owned()),
        };
        Self { principal: self.principal.clone(), row: role::row("AgencyService/CreateAgency"), wanted }
    }

    /// The caller, if he may.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound` where he may not know that there is anything; `Unauthenticated` when his token
    /// has gone or expired.
    pub fn judge(&self, view: &View, now: TimeMs) -> Result<Caller, Refusal> {
        let grants = grants(view, &self.principal, now)?;
        // After who asks was looked at, so that a stranger learns nothing of the cloud.
        let allowed = self.judge_roles(view, grants)?;
        recovery::admit(view, self.row.method)?;
        Ok(allowed)
    }

    fn judge_roles(&self, view: &View, grants: Vec<Grant>) -> Result<Caller, Refusal> {
        let name = match &self.wanted {
            Wanted::Agency(name) | Wanted::Above(name) => name.as_str(),
            Wanted::Cloud | Wanted::Shared | Wanted::Seen => "",
        };
        let target = match &self.wanted {
            Wanted::Cloud => Target::Cloud,
            Wanted::Shared => Target::Shared,
            Wanted::Seen => Target::Seen,
            Wanted::Agency(name) => Target::Agency(line_of(view, name)),
            Wanted::Above(name) => Target::Above(line_of(view, name)),
        };
        match role::judge(&grants, self.row, &target) {
            Verdict::Allowed => Ok(Caller { grants, row: self.row }),
            Verdict::Denied => Err(self.denied(&grants)),
            Verdict::Hidden => Err(match name {
                "" => Refusal::field("agency", "must be given"),
                name => Refusal::not_found(Kind::Agency, name),
            }),
        }
    }

    fn denied(&self, grants: &[Grant]) -> Refusal {
        let held: Vec<String> = grants.iter().map(|grant| word(grant.role)).collect();
        let needed: Vec<String> = self.row.roles.iter().map(|role| word(*role)).collect();
        let message = format!("{} may not call {} here", self.principal, self.row.method);
        if held.is_empty() {
            let hint = "nobody has given it a role: tamdao role-binding create NAME --user or --group";
            return Refusal::new(Code::PermissionDenied, "NotAllowed", message).hint(hint);
        }
        Refusal::new(Code::PermissionDenied, "NotAllowed", message).hint(format!(
            "it has the role {}; one of {} is needed",
            held.join(", "),
            needed.join(", ")
        ))
    }
}

/// The agency, or the cloud for none.
fn owned(agency: &str) -> Wanted {
    if agency.is_empty() { Wanted::Cloud } else { Wanted::Agency(agency.to_owned()) }
}

/// Who was let in, and what he may see.
#[derive(Debug, Clone)]
pub struct Caller {
    grants: Vec<Grant>,
    row: &'static Row,
}

impl Caller {
    /// Whether he sees what is owned so: by an agency, with those above it, or by none.
    pub fn sees(&self, owners: &[AgencyId]) -> bool {
        role::sees(&self.grants, self.row, owners)
    }

    /// Whether he sees nodes, pools and controllers.
    pub fn sees_hosts(&self) -> bool {
        role::sees_hosts(&self.grants)
    }

    /// Whether he may give others this role at this place: nobody gives what he has not. `name` is his.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn check_gift(&self, view: &View, gift: Grant, name: &str) -> Result<(), Refusal> {
        let line = gift.at.map(|at| line(view, at)).unwrap_or_default();
        let may = self.grants.iter().any(|grant| {
            let over = grant.at.is_none_or(|place| line.contains(&place));
            over && (grant.role == Role::CloudAdmin
                || grant.role == Role::AgencyAdmin && gift.role.is_of_agencies() && gift.at.is_some())
        });
        if may {
            return Ok(());
        }
        let message = format!("{name} has not the role {} to give", word(gift.role));
        Err(Refusal::new(Code::PermissionDenied, "NotAllowed", message)
            .hint("a role can be given by a cloud admin, or below an agency by its admin"))
    }
}

/// The role as people write it.
pub fn word(role: Role) -> String {
    serde_json::to_value(role).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// An agency and those above it; itself alone when it is gone.
pub fn owners(view: &View, agency: AgencyId) -> Vec<AgencyId> {
    let line = line(view, agency);
    if line.is_empty() { vec![agency] } else { line }
}

fn line(view: &View, agency: AgencyId) -> Vec<AgencyId> {
    quota::line(view, agency).map(|row| row.id()).collect()
}

fn line_of(view: &View, name: &str) -> Vec<AgencyId> {
    let found: Option<&tamdao_store::view::Row<Agency>> = view.agencies.find(Scope::Cluster, name);
    found.map(|row| line(view, row.id())).unwrap_or_default()
}

/// The role that somebody holds now; none for those who hold none, or several at several places.
pub fn held(view: &View, principal: &Principal, now: TimeMs) -> Option<Grant> {
    let grants = grants(view, principal, now).unwrap_or_default();
    let first = grants.first().copied()?;
    grants.iter().all(|grant| grant.at == first.at).then_some(first)
}

/// Whether any role is given to this group of the identity provider.
pub fn is_bound(view: &View, group: &str) -> bool {
    let of_group = |subject: &Subject| matches!(subject, Subject::Group(name) if name == group);
    view.role_bindings.iter().any(|binding| of_group(&binding.subject))
}

/// The roles that somebody holds now.
fn grants(view: &View, principal: &Principal, now: TimeMs) -> Result<Vec<Grant>, Refusal> {
    match principal {
        Principal::Admin { .. } | Principal::Local { .. } => {
            Ok(vec![Grant { role: Role::CloudAdmin, at: None }])
        }
        Principal::Token { id, .. } => match view.tokens.get(id).filter(|token| token.is_valid(now)) {
            Some(token) => {
                let own = Grant { role: token.role, at: token.agency };
                let given = given(view, |subject| *subject == Subject::Token(*id));
                Ok(std::iter::once(own).chain(given).collect())
            }
            None => Err(auth::unknown_token()),
        },
        Principal::Person(person) if now >= person.until => Err(auth::expired()),
        Principal::Person(person) => Ok(given(view, |subject| match subject {
            Subject::User(name) => *name == person.name,
            Subject::Group(name) => person.groups.contains(name),
            Subject::Token(_) => false,
        })
        .collect()),
        Principal::Node(_) | Principal::Controller(_) | Principal::Anonymous => Ok(Vec::new()),
    }
}

/// What is given to those who are meant.
fn given(view: &View, is_meant: impl Fn(&Subject) -> bool) -> impl Iterator<Item = Grant> {
    view.role_bindings.iter().filter(move |row| is_meant(&row.subject)).map(|row| row.grant())
}
