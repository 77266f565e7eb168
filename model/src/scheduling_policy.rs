//! The scheduling policy: how the cluster places VMs, as its admins want it. There is one, made with the cluster. Which
//! parts a score has is the engine's business: the names here were checked when they were written.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::record::resource;
use crate::vm::Platform;
use crate::{ClusterId, Meta, Name, SchedulingPolicyId, Scope, TimeMs};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulingPolicy {
    pub meta: Meta,
    pub spec: SchedulingPolicySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulingPolicySpec {
    /// By the names of the engine's parts; what is left out has its default.
    #[serde(default)]
    pub weights: BTreeMap<String, u32>,
    /// "node" or failure-domain keys of which any one value may fail.
    #[serde(default)]
    pub guarded_failure_domains: BTreeSet<String>,
    /// The CPU model of VMs that start for the first time; empty leaves it to the node.
    #[serde(default, skip_serializing_if = "crate::record::is_default")]
    pub cpu_model: String,
}

resource!(SchedulingPolicy, SchedulingPolicy, |_| Scope::Cluster);

impl SchedulingPolicy {
    /// The name of the only one.
    pub const NAME: &str = "default";

    /// The policy of a new cluster. It has the cluster's own id, so that there can be no second one.
    pub fn of(cluster: ClusterId, now: TimeMs) -> Self {
        let name = Name::new(Self::NAME).expect("it is a name");
        Self { meta: Meta::new(cluster, name, now), spec: SchedulingPolicySpec::default() }
    }

    /// The platform of VMs that never started, as far as it is said; the node says the rest.
    pub fn first_platform(&self) -> Option<Platform> {
        let cpu_model = self.spec.cpu_model.clone();
        (!cpu_model.is_empty()).then(|| Platform { machine_type: String::new(), cpu_model })
    }

    pub fn id(&self) -> SchedulingPolicyId {
        SchedulingPolicyId(self.meta.id)
    }
}
