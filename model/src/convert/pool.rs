//! Pools in the contract. How a pool stands on each node is the nodes' status: the caller fills `status.phase`
//! and `status.nodes`.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::held::{Held, show as show_id};
use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, metadata, syntax};
use crate::lookup::Lookup;
use crate::pool::{Pool, PoolSpec};
use crate::{Kind, limits};

impl Shown for Pool {
    type Proto = v1::Pool;
    const MESSAGE: &'static str = "tamdao.v1.Pool";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Pool {
        let spec = &self.spec;
        v1::Pool {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::PoolSpec {
                kind: spec.kind.number(),
                shared: spec.shared,
                path: spec.path.clone(),
                nodes: spec.nodes.iter().map(|id| show_id(lookup, Kind::Node, *id)).collect(),
                overcommit_percent: spec.overcommit_percent,
                reserve_mib: spec.reserve_mib,
            }),
            status: Some(v1::PoolStatus { observed_generation: self.meta.generation, ..Default::default() }),
        }
    }
}

impl Public for Pool {
    fn create(proto: v1::Pool, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::Pool, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        checks.finish(Self { meta, spec })
    }

    fn update(
        &self,
        proto: v1::Pool,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let held = Held::new(lookup, self.spec.nodes.iter().map(|id| (Kind::Node, id.0)));
        let fixed = ["spec.kind", "spec.shared", "spec.path"];
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &fixed, &held)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        let another = "make another pool with it";
        checks.fixed("spec.kind", &self.spec.kind, &spec.kind, another);
        checks.fixed("spec.shared", &self.spec.shared, &spec.shared, another);
        checks.fixed("spec.path", &self.spec.path, &spec.path, another);
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, spec })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::PoolSpec) -> PoolSpec {
    let kind = checks.choice("spec.kind", spec.kind, None);
    checks.ok("spec.path", syntax::path(&spec.path));
    let nodes = checks.ids("spec.nodes", Kind::Node, &spec.nodes);
    let overcommit_percent = match spec.overcommit_percent {
        0 => 100,
        percent => {
            let range = limits::POOL_OVERCOMMIT_PERCENT;
            checks.number("spec.overcommit_percent", percent, range, "or 0 for 100")
        }
    };
    PoolSpec {
        kind,
        shared: spec.shared,
        path: spec.path,
        nodes,
        overcommit_percent,
        reserve_mib: spec.reserve_mib,
    }
}
