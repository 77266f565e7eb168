//! No VM is restarted elsewhere without a fence proof, which spoke of the node's last boot and session, was true, and was
//! made since the node last was what is not fenced.

use std::collections::BTreeMap;

use tamdao_model::fence::{Evidence, FenceProof};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::Vm;
use tamdao_model::{NodeId, SessionId};

use super::Breach;
use crate::host::Host;
use crate::short;

/// What may be concluded from: each node's proofs, by boot and session, as long as it is Fenced or has not cleared.
#[derive(Default)]
pub struct Proofs(BTreeMap<NodeId, Vec<(String, Option<SessionId>)>>);

impl Proofs {
    /// A node's record has changed.
    pub fn noted(&mut self, before: &Node, after: &Node, nodes: &[Host]) -> Option<Breach> {
        if !matches!(after.status.phase, NodePhase::Fenced | NodePhase::Returning) {
            self.0.remove(&after.id());
        }
        let count = |node: &Node| node.status.fence.as_ref().map_or(0, |fence| fence.proofs.len());
        if count(after) <= count(before) {
            return None;
        }
        let proof = after.status.fence.as_ref()?.proofs.last()?;
        self.0.entry(after.id()).or_default().push((proof.boot_id.clone(), proof.session));
        let host = nodes.iter().find(|host| after.meta.name.as_str() == host.name)?;
        let why = match &proof.evidence {
            Evidence::StorageSilence { .. } if !host.watchdog => "silence of a host without a watchdog",
            Evidence::Goodbye => "a goodbye that was never said",
            Evidence::Attestation { .. } => "evidence that nobody gave",
            Evidence::StorageSilence { .. } | Evidence::PowerOff { .. }
                if !speaks_of(proof, before, after) =>
            {
                "a proof of an earlier session"
            }
            Evidence::PowerOff { .. } if host.up && host.boot_id == proof.boot_id => "its power, which is on",
            Evidence::PowerOff { .. } => return None,
            Evidence::StorageSilence { .. } => return false_silence(host),
        };
        Some(Breach { rule: "proofs", what: format!("{} is fenced by {why}", host.name) })
    }

    /// A VM has been given to another node.
    pub fn evacuated(&self, before: &Vm, after: &Vm, nodes: &[Host]) -> Option<Breach> {
        let last = after.status.evacuations.last()?;
        if after.status.incarnation == before.status.incarnation
            || last.incarnation != after.status.incarnation
        {
            return None;
        }
        let proof = (last.proof.boot_id.clone(), last.proof.session);
        let holds = self.0.get(&last.proof.node).is_some_and(|proofs| proofs.contains(&proof));
        let runs = nodes.iter().find(|host| host.runs(after.id().0));
        let what = match (holds, runs) {
            (false, _) => "by a proof that holds no more".to_owned(),
            (true, Some(host)) => format!("and runs on {}", host.name),
            (true, None) => return None,
        };
        let what = format!("vm {} is given to another node {what}", short(after.id().0));
        Some(Breach { rule: "proofs", what })
    }
}

/// Whether a proof is about the session that was the node's last; the next one may have been opened in the same commit.
fn speaks_of(proof: &FenceProof, before: &Node, after: &Node) -> bool {
    let of = |node: &Node| (&proof.boot_id, proof.session) == (&node.status.boot_id, node.status.session);
    of(before) || of(after)
}

/// Silence says that no guest runs which the keeper has.
fn false_silence(host: &Host) -> Option<Breach> {
    let vm = host.guarded.keys().find(|vm| host.runs(**vm))?;
    let what = format!("{} is fenced by its silence, and vm {} runs there", host.name, short(*vm));
    Some(Breach { rule: "proofs", what })
}
