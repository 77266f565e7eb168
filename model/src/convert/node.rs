//! Nodes in the contract. What VMs hold on a node and when it was last heard lie elsewhere: the caller fills
//! `allocatable`, `allocated`, `vms` and `last_seen`.

use std::collections::{BTreeMap, BTreeSet};

use pbjson_types::FieldMask;
use tamdao_proto::v1;

use super::update::{self, Update};
use super::{Checks, Invalid, New, Public, Shown, Twin, Violation, agent, check, metadata, syntax};
use crate::bmc::{self, Bmc, Drilled, Trust};
use crate::limits;
use crate::lookup::Lookup;
use crate::node::{Drain, Node, NodeSpec};
use crate::placement_group::NODE;
use crate::sealed::Sealed;

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
                bmcs: spec.bmcs.iter().map(show_bmc).collect(),
            }),
            status: Some(v1::NodeStatus {
                phase: self.phase_number(),
                conditions: metadata::conditions(&status.conditions),
                observed_generation: self.meta.generation,
                address: status.address.clone(),
                inventory: Some(agent::show_inventory(&status.inventory)),
                boot_id: status.boot_id.clone(),
                boot_time: status.boot_time.and_then(metadata::timestamp),
                foreign: status.foreign,
                keeper_version: status.keeper.clone(),
                drain: status.drain.as_ref().map(show_drain),
                fence_drill: status.fence_drill.iter().map(show_drilled).collect(),
                fence_proofs: status.fence.iter().flat_map(|f| &f.proofs).map(agent::show_proof).collect(),
                ..Default::default()
            }),
        }
    }

    fn phase_number(&self) -> i32 {
        self.status.phase.number()
    }
}

/// All but its password.
fn show_bmc(bmc: &Bmc) -> v1::Bmc {
    let mut shown = v1::Bmc { url: bmc.url.clone(), username: bmc.username.clone(), ..v1::Bmc::default() };
    match &bmc.trust {
        Trust::Ca(certificates) => shown.ca_certificates.clone_from(certificates),
        Trust::Fingerprint(fingerprint) => shown.fingerprint.clone_from(fingerprint),
        Trust::Unverified => shown.unverified = true,
    }
    shown
}

fn show_drilled(drilled: &Drilled) -> v1::FenceDrill {
    v1::FenceDrill {
        url: drilled.url.clone(),
        time: metadata::timestamp(drilled.time),
        good: drilled.is_good(),
        reason: drilled.reason.clone(),
        message: drilled.message.clone(),
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
        let spec = read(&mut checks, proto.spec.unwrap_or_default(), &self.spec.bmcs);
        let memory_mib = self.status.inventory.memory_mib;
        if memory_mib > 0 && u64::from(spec.reserve_memory_mib) >= memory_mib {
            let reserve = check::grouped(spec.reserve_memory_mib);
            let all = check::grouped(memory_mib);
            let message = format!("is {reserve}; the node has {all} MiB in all, so no VM would fit");
            checks.wrong("spec.reserve_memory_mib", message);
        }
        update::raise(&mut meta, spec != self.spec);
        let mut status = self.status.clone();
        // What was found out about a BMC says nothing of another one.
        status.fence_drill.retain(|drilled| {
            let of = |bmcs: &[Bmc]| bmcs.iter().find(|bmc| bmc.url == drilled.url).cloned();
            of(&spec.bmcs).is_some_and(|bmc| of(&self.spec.bmcs) == Some(bmc))
        });
        if spec.bmcs != self.spec.bmcs {
            status.conditions.clear(bmc::CONDITION);
        }
        checks.finish(Self { meta, spec, status })
    }
}

fn read(checks: &mut Checks<'_>, spec: v1::NodeSpec, known: &[Bmc]) -> NodeSpec {
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
        bmcs: read_bmcs(checks, spec.bmcs, known),
    }
}

fn read_bmcs(checks: &mut Checks<'_>, bmcs: Vec<v1::Bmc>, known: &[Bmc]) -> Vec<Bmc> {
    if !checks.count("spec.bmcs", bmcs.len(), limits::BMCS) {
        return Vec::new();
    }
    let mut read: Vec<Bmc> = Vec::new();
    for (i, bmc) in bmcs.into_iter().enumerate() {
        let at = format!("spec.bmcs[{i}]");
        checks.ok(&format!("{at}.url"), syntax::bmc_url(&bmc.url, bmc.unverified));
        if read.iter().any(|other| other.url == bmc.url) {
            checks.wrong(&format!("{at}.url"), "is given twice");
        }
        if bmc.username.is_empty() || bmc.username.contains(':') {
            checks.wrong(&format!("{at}.username"), "must be given, and without a colon");
        }
        checks.text(&format!("{at}.username"), bmc.username.clone(), limits::BMC_USERNAME_CHARS);
        let trust = read_trust(checks, &at, &bmc);
        let before = known.iter().find(|old| (&old.url, &old.username) == (&bmc.url, &bmc.username));
        let password = match bmc.password.as_str() {
            "" => before.map(|old| old.password.clone()),
            // The caller has put it there in place of the word that came.
            sealed => Sealed::from_text(sealed),
        };
        if password.is_none() {
            checks.wrong(&format!("{at}.password"), "must be given for a url or username that is new");
        }
        let password = password.unwrap_or(Sealed(Vec::new()));
        read.push(Bmc { url: bmc.url, username: bmc.username, password, trust });
    }
    read
}

fn read_trust(checks: &mut Checks<'_>, at: &str, bmc: &v1::Bmc) -> Trust {
    let given = [!bmc.ca_certificates.is_empty(), !bmc.fingerprint.is_empty(), bmc.unverified];
    if given.iter().filter(|given| **given).count() != 1 {
        let message = "needs exactly one of ca_certificates, fingerprint and unverified, by which its answers are believed";
        checks.wrong(at, message);
    }
    if !bmc.fingerprint.is_empty() {
        let fingerprint = syntax::sha256(&bmc.fingerprint.replace(':', ""));
        return Trust::Fingerprint(checks.ok(&format!("{at}.fingerprint"), fingerprint).unwrap_or_default());
    }
    if bmc.unverified {
        return Trust::Unverified;
    }
    let field = format!("{at}.ca_certificates");
    if bmc.ca_certificates.len() > limits::BMC_CA_BYTES {
        checks.wrong(&field, format!("is longer than {} bytes", check::grouped(limits::BMC_CA_BYTES as u32)));
    } else if given[0] && !bmc.ca_certificates.contains("-----BEGIN CERTIFICATE-----") {
        checks.wrong(&field, "holds no certificate in PEM");
    }
    Trust::Ca(bmc.ca_certificates.clone())
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
