//! Nodes in the contract. What VMs hold on a node and when it was last heard lie elsewhere: the caller fills
//! `allocatable`, `allocated`, `vms` and `last_seen`.

use std::collections::{BTreeMap, BTreeSet};

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, Violation, agent, check, metadata, syntax};
use crate::limits;
use crate::lookup::Lookup;
use crate::node::{Drain, Node, NodeSpec};
use crate::placement_group::NODE;

impl Shown for Node {
    type Proto = v1::Node;
    const MESSAGE: &'static str = "tamdao.v1.Node";

    fn show(&self, revision: u64, lookup: &dyn Lookup) -> v1::Node {
        let (spec, status) = (&self.spec, &self.status);
        let domains = spec.failure_domains.iter().map(|(key, values)| {
            (key.clone(), v1::DomainValues { values: values.iter().cloned().collect() })
        });
        v1::Node {
            metadata: metadata::show(self, revision, lookup),
            spec: Some(v1::NodeSpec {
                cordoned: spec.cordoned,
                failure_domains: domains.collect(),
                cpu_overcommit_percent: spec.cpu_overcommit_percent,
                memory_overcommit_percent: spec.memory_overcommit_percent,
                reserve_memory_mib: spec.reserve_memory_mib,
                support_ends: spec.support_ends.clone(),
            }),
            status: Some(v1::NodeStatus {
                phase: self.phase_number(),
                conditions: metadata::conditions(&status.conditions),
                observed_generation: self.meta.generation,
                address: status.address.clone(),
                inventory: Some(agent::show_inventory(&status.inventory)),
                boot_id: status.boot_id.clone(),
                foreign: status.foreign,
                keeper_version: status.keeper.clone(),
                drain: status.drain.as_ref().map(show_drain),
                fence_proofs: status.fence.iter().flat_map(|f| &f.proofs).map(agent::show_proof).collect(),
                ..Default::default()
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        self.status.phase.number()
    }
}

fn show_drain(drain: &Drain) -> v1::NodeDrain {
    v1::NodeDrain {
        phase: drain.phase.number(),
        since: metadata::timestamp(drain.since),
        deadline: drain.deadline.and_then(metadata::timestamp),
        asked_by: drain.asked_by.clone(),
        reason: drain.reason.clone(),
        vms_left: drain.left,
        // The caller counts them.
        vms_away: 0,
        allow_cold: drain.allow_cold,
        unguarded: drain.unguarded,
    }
}

impl Public for Node {
    fn create(_: v1::Node, _: New, _: &dyn Lookup) -> Result<Self, Invalid> {
        let message = "cannot be created; nodes join by themselves: make a join token (CreateJoinToken) and give \
                       it to the node's agent";
        Err(Violation::new("node", message).into())
    }

    fn update(
        &self,
        proto: v1::Node,
        mask: Option<&FieldMask>,
        lookup: &dyn Lookup,
    ) -> Result<Self, Invalid> {
        let Update { proto, mut meta, mut checks, .. } = update::begin(self, proto, mask, &[], lookup)?;
        let spec = read(&mut checks, proto.spec.unwrap_or_default());
        let memory_mib = self.status.inventory.memory_mib;
        if memory_mib > 0 && u64::from(spec.reserve_memory_mib) >= memory_mib {
            let reserve = check::grouped(spec.reserve_memory_mib);
            let all = check::grouped(memory_mib);
            let message = format!("is {reserve}; the node has {all} MiB in all, so no VM would fit");
            checks.wrong("spec.reserve_memory_mib", message);
        }
        update::raise(&mut meta, spec != self.spec);
        checks.finish(Self { meta, spec, status: self.status.clone() })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::NodeSpec) -> NodeSpec {
    let failure_domains = read_domains(checks, spec.failure_domains);
    if spec.cpu_overcommit_percent > 0 {
        let (range, default) = (limits::CPU_OVERCOMMIT_PERCENT, limits::CPU_OVERCOMMIT_DEFAULT_PERCENT);
        let extra = format!("or 0 for {default}");
        checks.number("spec.cpu_overcommit_percent", spec.cpu_overcommit_percent, range, &extra);
    }
    if spec.memory_overcommit_percent > 0 {
        let range = limits::MEMORY_OVERCOMMIT_PERCENT;
        let percent = spec.memory_overcommit_percent;
        checks.number("spec.memory_overcommit_percent", percent, range, "or 0 for 100");
    }
    if !spec.support_ends.is_empty() {
        checks.ok("spec.support_ends", syntax::date(&spec.support_ends));
    }
    NodeSpec {
        cordoned: spec.cordoned,
        failure_domains,
        cpu_overcommit_percent: spec.cpu_overcommit_percent,
        memory_overcommit_percent: spec.memory_overcommit_percent,
        reserve_memory_mib: spec.reserve_memory_mib,
        support_ends: spec.support_ends,
    }
}

fn read_domains(
    checks: &mut Checks<'_>,
    domains: impl IntoIterator<Item = (String, v1::DomainValues)>,
) -> BTreeMap<String, BTreeSet<String>> {
    const FIELD: &str = "spec.failure_domains";
    // Sorted first, so that violations come in the same order each time.
    let domains: BTreeMap<_, _> = domains.into_iter().collect();
    if !checks.count(FIELD, domains.len(), limits::FAILURE_DOMAINS) {
        return BTreeMap::new();
    }
    let mut read = BTreeMap::new();
    for (key, v1::DomainValues { values }) in domains {
        let at = format!("{FIELD}[{}]", syntax::quote(&key));
        checks.ok(&at, syntax::label_key(&key).map_err(|m| format!("the key {m}")));
        if key == NODE {
            checks.wrong(&at, "is not a key: each node is a failure domain of this name by itself");
        }
        let values_at = format!("{at}.values");
        if values.is_empty() {
            checks.wrong(&values_at, "is empty; give one or more, such as A and B for two power feeds");
        }
        if checks.count(&values_at, values.len(), limits::FAILURE_DOMAINS) {
            for (i, value) in values.iter().enumerate() {
                let value_at = format!("{values_at}[{i}]");
                match value.as_str() {
                    "" => checks.wrong(&value_at, "is empty; a name such as r2 is needed"),
                    value => {
                        checks.ok(&value_at, syntax::label_value(value));
                    }
                }
            }
        }
        read.insert(key, values.into_iter().collect());
    }
    read
}
