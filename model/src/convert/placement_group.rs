//! Placement groups in the contract. How many members there are is the VMs' own: the caller fills `status.vms`.

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, metadata, syntax};
use crate::lookup::Lookup;
use crate::placement_group::{
    NODE, PlacedBy, PlacementGroup, PlacementGroupSpec, PlacementRule, PlacementRuleKind,
};
use crate::{AgencyId, Kind, limits};

impl Shown for PlacementGroup {
    type Proto = v1::PlacementGroup;
    const MESSAGE: &'static str = "tamdao.v1.PlacementGroup";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::PlacementGroup {
        v1::PlacementGroup {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::PlacementGroupSpec { rules: self.spec.rules.iter().map(show_rule).collect() }),
            status: Some(v1::PlacementGroupStatus {
                observed_generation: self.meta.generation,
                ..Default::default()
            }),
        }
    }
}

fn show_rule(rule: &PlacementRule) -> v1::PlacementRule {
    let by = match &rule.by {
        PlacedBy::Node => NODE.to_owned(),
        PlacedBy::Domain(key) => key.clone(),
    };
    v1::PlacementRule { kind: rule.kind.number(), by, at_most: rule.at_most, preferred: rule.preferred }
}

impl Public for PlacementGroup {
    fn create(proto: v1::PlacementGroup, new: New, lookup: &dyn Lookup) -> Result<Self, Invalid> {
        let mut checks = Checks::new(Kind::PlacementGroup, lookup);
        let meta = metadata::read(&mut checks, proto.metadata, &new);
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        let agency = new.scope.agency().unwrap_or_else(|| {
            checks.wrong("metadata.agency", "must be given: a placement group belongs to an agency");
            AgencyId(uuid::Uuid::nil())
        });
        checks.finish(Self { meta, agency, spec })
    }

    fn update(
        &self,
        proto: v1::PlacementGroup,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &[], lookup)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, agency: self.agency, spec })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::PlacementGroupSpec) -> PlacementGroupSpec {
    if !checks.count("spec.rules", spec.rules.len(), limits::PLACEMENT_RULES) {
        return PlacementGroupSpec::default();
    }
    let rules = spec.rules.into_iter().enumerate();
    PlacementGroupSpec { rules: rules.map(|(i, rule)| read_rule(checks, i, rule)).collect() }
}

fn read_rule(checks: &mut Checks<'_>, i: usize, rule: v1::PlacementRule) -> PlacementRule {
    let at = format!("spec.rules[{i}]");
    let kind = checks.choice(&format!("{at}.kind"), rule.kind, None);
    let by = match rule.by.as_str() {
        "" | NODE => PlacedBy::Node,
        key => {
            checks.ok(&format!("{at}.by"), syntax::label_key(key));
            PlacedBy::Domain(key.to_owned())
        }
    };
    let at_most_at = format!("{at}.at_most");
    let at_most = match (kind, rule.at_most) {
        (PlacementRuleKind::Apart, 0) => 1,
        (PlacementRuleKind::Apart, number) => {
            checks.number(&at_most_at, number, limits::MEMBERS_AT_MOST, "or 0 for 1")
        }
        (PlacementRuleKind::Together, 0) => 0,
        (PlacementRuleKind::Together, _) => {
            checks.wrong(&at_most_at, "must be 0 with kind PLACEMENT_RULE_KIND_TOGETHER; it is for APART");
            0
        }
    };
    PlacementRule { kind, by, at_most, preferred: rule.preferred }
}
