//! Flavors in the contract. A flavor's size never changes, because VMs say that they were made from it.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, metadata};
use crate::flavor::{Flavor, FlavorSpec};
use crate::lookup::Lookup;
use crate::{Kind, Name, limits};

impl Shown for Flavor {
    type Proto = v1::Flavor;
    const MESSAGE: &'static str = "tamdao.v1.Flavor";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Flavor {
        let FlavorSpec { vcpus, memory_mib, class } = self.spec.clone();
        v1::Flavor {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::FlavorSpec {
                vcpus,
                memory_mib,
                class: class.map(String::from).unwrap_or_default(),
            }),
        }
    }
}

impl Public for Flavor {
    fn create(proto: v1::Flavor, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::Flavor, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        checks.finish(Self { meta, spec })
    }

    fn update(
        &self,
        proto: v1::Flavor,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let fixed = ["spec.vcpus", "spec.memory_mib", "spec.class"];
        let Update { proto, meta, mut checks, .. } = update::begin(self, proto, mask, &fixed, lookup)?;
        let spec = proto.spec.unwrap_or_default();
        let another = "make another flavor and resize the VMs to it";
        checks.fixed("spec.vcpus", &self.spec.vcpus, &spec.vcpus, another);
        checks.fixed("spec.memory_mib", &self.spec.memory_mib, &spec.memory_mib, another);
        let class = self.spec.class.as_ref().map_or("", Name::as_str);
        checks.fixed("spec.class", &class, &spec.class.as_str(), another);
        checks.finish(Self { meta, spec: self.spec.clone() })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::FlavorSpec) -> FlavorSpec {
    FlavorSpec {
        vcpus: checks.number("spec.vcpus", spec.vcpus, limits::VCPUS, ""),
        memory_mib: checks.number("spec.memory_mib", spec.memory_mib, limits::MEMORY_MIB, ""),
        class: (!spec.class.is_empty()).then(|| checks.name("spec.class", &spec.class)),
    }
}
