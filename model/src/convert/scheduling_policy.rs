//! The scheduling policy in the contract. The parts of the score are the engine's: the caller checks the names of the
//! weights and fills `status.score_parts`.

use std::collections::BTreeSet;

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, Shown, metadata, syntax};
use crate::limits;
use crate::lookup::Lookup;
use crate::scheduling_policy::{SchedulingPolicy, SchedulingPolicySpec};

impl Shown for SchedulingPolicy {
    type Proto = v1::SchedulingPolicy;
    const MESSAGE: &'static str = "tamdao.v1.SchedulingPolicy";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::SchedulingPolicy {
        v1::SchedulingPolicy {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::SchedulingPolicySpec {
                weights: self.spec.weights.clone(),
                guarded_failure_domains: self.spec.guarded_failure_domains.iter().cloned().collect(),
                cpu_model: self.spec.cpu_model.clone(),
            }),
            status: Some(v1::SchedulingPolicyStatus {
                observed_generation: self.meta.generation,
                ..Default::default()
            }),
        }
    }
}

impl SchedulingPolicy {
    /// This policy with the masked fields of the request; a mask of none takes display_name, labels and the spec.
    ///
    /// # Errors
    /// All that is wrong with the request.
    pub fn updated(
        &self,
        proto: v1::SchedulingPolicy,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &[], lookup)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, spec })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::SchedulingPolicySpec) -> SchedulingPolicySpec {
    if checks.count("spec.weights", spec.weights.len(), limits::SCORE_WEIGHTS) {
        for (name, weight) in &spec.weights {
            let at = format!("spec.weights[{}]", syntax::quote(name));
            checks.number(&at, *weight, limits::SCORE_WEIGHT, "");
        }
    }
    let mut guarded = BTreeSet::new();
    let keys = spec.guarded_failure_domains;
    if checks.count("spec.guarded_failure_domains", keys.len(), limits::GUARDED_FAILURE_DOMAINS) {
        for (i, key) in keys.into_iter().enumerate() {
            let at = format!("spec.guarded_failure_domains[{i}]");
            checks.ok(&at, syntax::label_key(&key));
            if !guarded.insert(key) {
                checks.wrong(&at, "is given twice; each key is guarded once");
            }
        }
    }
    if !spec.cpu_model.is_empty() {
        checks.ok("spec.cpu_model", syntax::cpu_model(&spec.cpu_model));
    }
    SchedulingPolicySpec {
        weights: spec.weights,
        guarded_failure_domains: guarded,
        cpu_model: spec.cpu_model,
    }
}
