//! Agencies in the contract. What an agency uses is another record: the caller fills `status.usage`.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, metadata};
use crate::agency::{Agency, AgencySpec, AgencyState};
use crate::lookup::Lookup;
use crate::quota::{Amounts, Measure, Quota};
use crate::{Kind, Scope, limits};

impl Shown for Agency {
    type Proto = v1::Agency;
    const MESSAGE: &'static str = "tamdao.v1.Agency";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Agency {
        let AgencySpec { description, contact, parent, quota, state } = self.spec.clone();
        v1::Agency {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::AgencySpec {
                description,
                contact,
                parent: parent.map(|id| super::held::show(lookup, Kind::Agency, id)).unwrap_or_default(),
                quota: quota.into_iter().map(|(measure, most)| (measure.to_string(), most)).collect(),
                state: state.number(),
            }),
            status: Some(v1::AgencyStatus {
                phase: self.phase_number(),
                observed_generation: self.meta.generation,
                ..Default::default()
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        let phase = match self.spec.state {
            AgencyState::Active => v1::AgencyPhase::Active,
            AgencyState::Frozen => v1::AgencyPhase::Frozen,
            AgencyState::Archived => v1::AgencyPhase::Archived,
        };
        phase.into()
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
    AgencySpec {
        description: spec.description,
        contact: checks.text("spec.contact", spec.contact, limits::CONTACT_CHARS),
        parent: checks.id_if_given("spec.parent", Kind::Agency, &[Scope::Cluster], &spec.parent),
        quota: read_quota(checks, spec.quota),
        state: checks.choice("spec.state", spec.state, Some(AgencyState::Active)),
    }
}

fn read_quota(checks: &mut Checks<'_>, given: impl IntoIterator<Item = (String, u64)>) -> Quota {
    let mut quota = Quota::new();
    for (word, most) in given {
        let at = format!("spec.quota[{word:?}]");
        let measure = word.parse::<Measure>().map_err(|error| error.to_string());
        let measure = checks.ok(&at, measure);
        if most > limits::AMOUNT_MAX {
            checks.wrong(&at, format!("is {most}, {} is the largest", limits::AMOUNT_MAX));
        }
        quota.extend(measure.map(|measure| (measure, most)));
    }
    checks.count("spec.quota", quota.len(), limits::QUOTA_MEASURES);
    quota
}

/// Shows what an agency holds.
pub fn show_usage(amounts: &Amounts) -> v1::Usage {
    let small = |measure| u32::try_from(amounts.of(&measure)).unwrap_or(u32::MAX);
    let classes = amounts.iter().filter_map(|(measure, vms)| match measure {
        Measure::FlavorClass(class) => Some((class.to_string(), u32::try_from(vms).unwrap_or(u32::MAX))),
        _ => None,
    });
    v1::Usage {
        vms: small(Measure::Vms),
        vcpus: small(Measure::Vcpus),
        memory_mib: amounts.of(&Measure::MemoryMib),
        disk_mib: amounts.of(&Measure::DiskMib),
        volumes: small(Measure::Volumes),
        addresses: small(Measure::Addresses),
        protected_memory_mib: amounts.of(&Measure::ProtectedMemoryMib),
        flavor_classes: classes.collect(),
    }
}

/// Shows amounts by the measures' words.
pub fn show_amounts<M: FromIterator<(String, u64)>>(amounts: &Amounts) -> M {
    amounts.iter().map(|(measure, amount)| (measure.to_string(), amount)).collect()
}
