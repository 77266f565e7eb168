//! Audit records in the contract.

use tamdao_proto::v1;

use super::held::show as show_id;
use super::{Twin, metadata};
use crate::audit::Audit;
use crate::lookup::Lookup;
use crate::{AgencyId, ControllerId, Kind};

/// Shows a record; `revision` is that of its commit, 0 for what is in the journal alone.
pub fn show(audit: &Audit, revision: u64, lookup: &dyn Lookup) -> v1::AuditRecord {
    let agency = |id: Option<AgencyId>| id.map(|id| show_id(lookup, Kind::Agency, id)).unwrap_or_default();
    let controller = |id: ControllerId| show_id(lookup, Kind::Controller, id);
    let changes = audit.changes.iter().map(|change| v1::AuditChange {
        kind: change.kind.clone(),
        agency: agency(change.agency),
        name: change.name.clone(),
        id: change.id.clone(),
        before: change.before.clone(),
        after: change.after.clone(),
    });
    v1::AuditRecord {
        id: audit.id.to_string(),
        time: metadata::timestamp(audit.time),
        principal: audit.principal.clone(),
        role: audit.role.map(Twin::number).unwrap_or_default(),
        role_agency: agency(audit.role_agency),
        peer: audit.peer.clone(),
        via: audit.via.map(controller).unwrap_or_default(),
        controller: controller(audit.controller),
        method: audit.method.clone(),
        agency: audit.agency.clone(),
        name: audit.name.clone(),
        request_id: audit.request_id.map(|id| id.to_string()).unwrap_or_default(),
        code: audit.code.clone(),
        reason: audit.reason.clone(),
        changes: changes.collect(),
        count: audit.count,
        revision,
    }
}
