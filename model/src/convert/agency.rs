//! Agencies in the contract. What an agency uses is another record: the caller fills `status.usage`.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, metadata};
use crate::agency::{Agency, AgencySpec, Usage};
use crate::lookup::Lookup;
use crate::{Kind, limits};

impl Shown for Agency {
    type Proto = v1::Agency;
    const MESSAGE: &'static str = "tamdao.v1.Agency";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Agency {
        let AgencySpec { description, contact } = self.spec.clone();
        v1::Agency {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::AgencySpec { description, contact }),
            status: Some(v1::AgencyStatus {
                phase: self.phase_number(),
                conditions: Vec::new(),
                observed_generation: self.meta.generation,
                usage: None,
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        v1::AgencyPhase::Active.into()
    }
}

impl Public for Agency {
    fn create(proto: v1::Agency, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::Agency, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        checks.finish(Self { meta, spec })
    }

    fn update(
        &self,
        proto: v1::Agency,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &[], lookup)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, spec })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::AgencySpec) -> AgencySpec {
    // A description is free text: lines may be broken in it.
    let flat = spec.description.replace(['\n', '\r', '\t'], " ");
    checks.text("spec.description", flat, limits::DESCRIPTION_CHARS);
    let contact = checks.text("spec.contact", spec.contact, limits::CONTACT_CHARS);
    AgencySpec { description: spec.description, contact }
}

/// Shows what an agency holds.
pub fn show_usage(usage: &Usage) -> v1::Usage {
    v1::Usage {
        vms: usage.vms,
        vcpus: usage.vcpus,
        memory_mib: usage.memory_mib,
        disk_mib: usage.disk_mib,
        volumes: usage.volumes,
        addresses: usage.addresses,
    }
}
