//! Nothing acknowledged is lost: a VM whose creation was answered well is there until its deletion was asked for.

use std::collections::BTreeSet;

use tamdao_model::VmId;
use tamdao_store::view::View;

use super::Breach;
use crate::short;

#[derive(Default)]
pub struct Acknowledged {
    pub created: BTreeSet<VmId>,
    /// Asked to be deleted, with whatever answer.
    pub doomed: BTreeSet<VmId>,
}

impl Acknowledged {
    pub fn check(&self, view: &View) -> Option<Breach> {
        let lost = self.created.difference(&self.doomed).find(|vm| view.vms.get(**vm).is_none())?;
        let what = format!("vm {} was created, and is not there", short(lost.0));
        Some(Breach { rule: "acknowledged", what })
    }
}
