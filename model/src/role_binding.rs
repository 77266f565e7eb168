//! Role bindings: who, beside what a token has of itself, holds a role, and where.

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::role::{Grant, Role};
use crate::{AgencyId, Meta, RoleBindingId, Scope, TokenId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleBinding {
    pub meta: Meta,
    /// Where the role is held, and who owns it; none for the cloud.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: Option<AgencyId>,
    pub role: Role,
    pub subject: Subject,
}

/// Who holds it. Users and groups are the identity provider's, with their letters composed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    User(String),
    Group(String),
    Token(TokenId),
}

resource!(RoleBinding, RoleBinding, |binding| Scope::from(binding.agency));

impl RoleBinding {
    pub fn id(&self) -> RoleBindingId {
        RoleBindingId(self.meta.id)
    }

    pub fn grant(&self) -> Grant {
        Grant { role: self.role, at: self.agency }
    }
}
