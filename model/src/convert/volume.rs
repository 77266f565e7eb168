//! Volumes in the contract. A size of 0 with an image stays 0 here: the caller takes the image's.

use pbjson_types::FieldMask;
use tamdao_proto::v1;
use uuid::Uuid;

use super::held::{Held, show as show_id};
use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, check, metadata};
use crate::lookup::Lookup;
use crate::volume::{Volume, VolumeSpec, VolumeStatus};
use crate::{AgencyId, Kind, PoolId, Scope, limits};

/// The name of the pool that is meant where none is named.
pub const DEFAULT_POOL: &str = "default";

/// The pool that is meant where none is named, if there is one.
pub fn default_pool(lookup: &dyn Lookup) -> Option<PoolId> {
    lookup.id(Kind::Pool, Scope::Cluster, DEFAULT_POOL).map(PoolId)
}

impl Shown for Volume {
    type Proto = v1::Volume;
    const MESSAGE: &'static str = "tamdao.v1.Volume";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Volume {
        let (spec, status) = (&self.spec, &self.status);
        v1::Volume {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::VolumeSpec {
                pool: show_id(lookup, Kind::Pool, spec.pool),
                size_mib: spec.size_mib,
                image: spec.image.map(|id| show_id(lookup, Kind::Image, id)).unwrap_or_default(),
                keep_on_delete: spec.keep_on_delete,
            }),
            status: Some(v1::VolumeStatus {
                phase: self.phase_number(),
                conditions: metadata::conditions(&status.conditions),
                observed_generation: status.observed_generation,
                node: status.node.map(|id| show_id(lookup, Kind::Node, id)).unwrap_or_default(),
                vm: status.vm.map(|id| show_id(lookup, Kind::Vm, id)).unwrap_or_default(),
                size_mib: status.size_mib,
                used_mib: status.used_mib,
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        self.status.phase.number()
    }
}

impl Public for Volume {
    fn create(proto: v1::Volume, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::Volume, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let agency = new.scope.agency().unwrap_or_else(|| {
            checks.wrong("metadata.agency", "must be given: every volume belongs to an agency");
            AgencyId(Uuid::nil())
        });
        let spec = read(&mut checks, agency, proto.spec.unwrap_or_default());
        checks.finish(Self { meta, agency, spec, status: VolumeStatus::default() })
    }

    fn update(
        &self,
        proto: v1::Volume,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let image = self.spec.image.map(|id| (Kind::Image, id.0));
        let held = Held::new(lookup, [Some((Kind::Pool, self.spec.pool.0)), image].into_iter().flatten());
        let fixed = ["spec.pool", "spec.size_mib", "spec.image"];
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &fixed, &held)?;
        let mut spec = read(&mut checks, self.agency, proto.spec.unwrap_or_default());
        spec.deleting = self.spec.deleting;
        checks.fixed("spec.pool", &self.spec.pool, &spec.pool, "make another volume there");
        checks.fixed("spec.image", &self.spec.image, &spec.image, "make another volume from it");
        if spec.size_mib < self.spec.size_mib {
            let (now, wanted) = (check::grouped(self.spec.size_mib), check::grouped(spec.size_mib));
            checks.wrong("spec.size_mib", format!("is {wanted}; a volume can only grow, from {now} on"));
        }
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, spec, ..self.clone() })
    }
}

fn read(checks: &mut Checks<'_>, agency: AgencyId, spec: v1::VolumeSpec) -> VolumeSpec {
    let pool = match spec.pool.as_str() {
        "" => default_pool(checks.lookup()).unwrap_or_else(|| {
            let message = format!("must be given: there is no pool named {DEFAULT_POOL:?} to take instead");
            checks.wrong("spec.pool", message);
            PoolId(Uuid::nil())
        }),
        name => checks.id("spec.pool", Kind::Pool, &[Scope::Cluster], name),
    };
    let scopes = [Scope::Agency(agency), Scope::Cluster];
    let image = checks.id_if_given("spec.image", Kind::Image, &scopes, &spec.image);
    check_size(checks, "spec.size_mib", spec.size_mib, image.is_some());
    VolumeSpec { pool, size_mib: spec.size_mib, image, keep_on_delete: spec.keep_on_delete, deleting: false }
}

/// The size of a volume to make; 0 is allowed with an image only.
pub(super) fn check_size(checks: &mut Checks<'_>, field: &str, size_mib: u32, image: bool) {
    let extra = if image { "or 0 for the image's size" } else { "" };
    if size_mib != 0 || !image {
        checks.number(field, size_mib, limits::VOLUME_MIB, extra);
    }
}
