//! The cluster and its join tokens in the contract. The secret of a token is not here: only its digest is kept.

use tamdao_proto::v1;

use super::{Invalid, Twin, Violation, metadata, syntax};
use crate::Name;
use crate::cluster::{Cluster, JoinKind, JoinToken};

/// How long a join token can be used when nobody said, and at most, seconds.
pub const JOIN_TTL_DEFAULT_S: u32 = 3_600;
pub const JOIN_TTL_MAX_S: u32 = 604_800;
/// How often a join token can be used at most.
pub const JOIN_USES_MAX: u32 = 1_000;

/// Shows the cluster. Version, leader, controller and store are the answering controller's to say.
pub fn show(cluster: &Cluster, revision: u64) -> v1::Cluster {
    v1::Cluster {
        id: cluster.id.to_string(),
        name: cluster.name.clone(),
        level: cluster.level,
        revision,
        ha_disarmed_until: cluster.disarmed.as_ref().and_then(|off| metadata::timestamp(off.until)),
        ha_disarmed_by: cluster.disarmed.as_ref().map(|off| off.by.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

/// Shows a join token.
pub fn show_join_token(token: &JoinToken) -> v1::JoinToken {
    v1::JoinToken {
        id: token.id.to_string(),
        kind: token.kind.number(),
        expire_time: metadata::timestamp(token.expire_time),
        uses_left: token.uses_left,
        name: token.name.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// What a request for a join token asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRequest {
    pub kind: JoinKind,
    pub ttl_ms: u64,
    pub uses: u32,
    pub name: Option<Name>,
}

/// Reads a request for a join token.
pub fn read_join_token(request: &v1::CreateJoinTokenRequest) -> Result<JoinTokenRequest, Invalid> {
    let mut violations = Vec::new();
    let kind = JoinKind::from_number(request.kind).unwrap_or_else(|| {
        let allowed = "JOIN_TOKEN_KIND_NODE or JOIN_TOKEN_KIND_CONTROLLER";
        violations.push(Violation::new("kind", format!("must be {allowed}")));
        JoinKind::Node
    });
    if request.ttl_s > JOIN_TTL_MAX_S {
        let message = format!("is {}; {JOIN_TTL_MAX_S} (a week) is allowed at most", request.ttl_s);
        violations.push(Violation::new("ttl_s", message));
    }
    if request.uses > JOIN_USES_MAX {
        let message = format!("is {}; {JOIN_USES_MAX} is allowed at most", request.uses);
        violations.push(Violation::new("uses", message));
    }
    let name = match request.name.as_str() {
        "" => None,
        text => match Name::new(text) {
            Ok(name) => Some(name),
            Err(error) => {
                violations.push(Violation::new("name", syntax::name_error(&error, text)));
                None
            }
        },
    };
    if !violations.is_empty() {
        return Err(Invalid { violations });
    }
    let ttl_s = if request.ttl_s == 0 { JOIN_TTL_DEFAULT_S } else { request.ttl_s };
    Ok(JoinTokenRequest { kind, ttl_ms: u64::from(ttl_s) * 1_000, uses: request.uses.max(1), name })
}
