//! Role bindings in the contract. Whom a token's UUID means is the controller's to look up.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, metadata};
use crate::lookup::Lookup;
use crate::role::Role;
use crate::role_binding::{RoleBinding, Subject};
use crate::{Kind, composed, limits};

const FIXED: [&str; 4] = ["spec.role", "spec.user", "spec.group", "spec.token"];

impl Shown for RoleBinding {
    type Proto = v1::RoleBinding;
    const MESSAGE: &'static str = "tamdao.v1.RoleBinding";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::RoleBinding {
        v1::RoleBinding { metadata: metadata::show(self, revision, lookup), spec: Some(spec_of(self)) }
    }
}

impl Public for RoleBinding {
    fn create(proto: v1::RoleBinding, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::RoleBinding, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = proto.spec.unwrap_or_default();
        let role: Role = checks.choice("spec.role", spec.role, None);
        let agency = new.scope.agency();
        if agency.is_some() && !role.is_of_agencies() {
            checks.wrong("spec.role", "is held at the cloud only; leave the agency empty");
        }
        let subject = subject(&mut checks, spec);
        checks.finish(Self { meta, agency, role, subject })
    }

    fn update(
        &self,
        proto: v1::RoleBinding,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let Update { proto, meta, mut checks, .. } = update::begin(self, proto, mask, &FIXED, lookup)?;
        let (is, wanted) = (spec_of(self), proto.spec.unwrap_or_default());
        let another = "make another role binding and delete this one";
        checks.fixed("spec.role", &is.role, &wanted.role, another);
        checks.fixed("spec.user", &is.user, &composed(&wanted.user), another);
        checks.fixed("spec.group", &is.group, &composed(&wanted.group), another);
        checks.fixed("spec.token", &is.token, &wanted.token, another);
        checks.finish(Self { meta, ..self.clone() })
    }
}

fn spec_of(binding: &RoleBinding) -> v1::RoleBindingSpec {
    let mut spec = v1::RoleBindingSpec { role: binding.role.number(), ..Default::default() };
    match &binding.subject {
        Subject::User(name) => spec.user.clone_from(name),
        Subject::Group(name) => spec.group.clone_from(name),
        Subject::Token(id) => spec.token = id.to_string(),
    }
    spec
}

fn subject(checks: &mut Checks<'_>, spec: v1::RoleBindingSpec) -> Subject {
    let mut named = |field, text: &str| checks.text(field, composed(text), limits::SUBJECT_CHARS);
    match (spec.user.as_str(), spec.group.as_str(), spec.token.as_str()) {
        (user, "", "") if !user.is_empty() => Subject::User(named("spec.user", user)),
        ("", group, "") if !group.is_empty() => Subject::Group(named("spec.group", group)),
        ("", "", token) if !token.is_empty() => {
            let id = token.parse().map_err(|_| "is not the UUID of a token".to_owned());
            checks.ok("spec.token", id).map_or(Subject::User(String::new()), Subject::Token)
        }
        _ => {
            checks.wrong("spec", "needs exactly one of user, group and token");
            Subject::User(String::new())
        }
    }
}
