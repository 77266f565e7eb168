//! Tokens in the contract. The secret is not here: only its digest is kept, and that is not shown.

use tamdao_proto::v1;

use super::{Checks, Invalid, New, Shown, Twin, metadata};
use crate::lookup::Lookup;
use crate::role::Role;
use crate::token::Token;
use crate::{Kind, Meta, Resource};

/// How long a token can be used when nobody said, and at most, seconds.
pub const TOKEN_TTL_DEFAULT_S: u32 = 90 * 86_400;
pub const TOKEN_TTL_MAX_S: u32 = 366 * 86_400;

impl Shown for Token {
    type Proto = v1::Token;
    const MESSAGE: &'static str = "tamdao.v1.Token";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Token {
        let ttl_s = self.expire_time.0.saturating_sub(self.meta.create_time.0) / 1_000;
        v1::Token {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::TokenSpec {
                role: self.role.number(),
                ttl_s: u32::try_from(ttl_s).unwrap_or(u32::MAX),
            }),
            status: Some(v1::TokenStatus {
                expire_time: metadata::timestamp(self.expire_time),
                created_by: self.created_by.clone(),
            }),
        }
    }
}

/// Reads a request for a token; `digest` is that of the secret made for it.
pub fn read(
    proto: v1::Token,
    new: New,
    lookup: &dyn Lookup,
    digest: String,
    created_by: String,
) -> Result<Token, Invalid> {
    let mut checks = Checks::new(Kind::Token, lookup);
    let meta: Meta = metadata::read(&mut checks, proto.metadata, &new);
    let spec = proto.spec.unwrap_or_default();
    let role: Role = checks.choice("spec.role", spec.role, None);
    if new.scope.agency().is_some() && !role.is_of_agencies() {
        checks.wrong("spec.role", "is held at the cloud only; leave the agency empty");
    }
    let ttl_s = match spec.ttl_s {
        0 => TOKEN_TTL_DEFAULT_S,
        ttl_s => checks.number("spec.ttl_s", ttl_s, 1..=TOKEN_TTL_MAX_S, "or 0 for 90 days"),
    };
    let expire_time = new.now.plus_ms(u64::from(ttl_s) * 1_000);
    let token = Token { meta, agency: new.scope.agency(), role, digest, expire_time, created_by };
    debug_assert_eq!(token.scope(), new.scope);
    checks.finish(token)
}
