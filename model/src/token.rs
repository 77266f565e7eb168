//! Tokens: a way in with one role at one place. The secret itself is not kept.

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::role::Role;
use crate::{AgencyId, Meta, Scope, TimeMs, TokenId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub meta: Meta,
    /// Where its role is held, and who owns it; none for the cloud.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub agency: Option<AgencyId>,
    pub role: Role,
    /// SHA-256 of the whole token, hex.
    pub digest: String,
    pub expire_time: TimeMs,
    pub created_by: String,
}

resource!(Token, Token, |token| Scope::from(token.agency));

impl Token {
    pub fn id(&self) -> TokenId {
        TokenId(self.meta.id)
    }

    /// Whether it lets anybody in.
    pub fn is_valid(&self, now: TimeMs) -> bool {
        now < self.expire_time
    }
}
