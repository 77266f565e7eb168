//! No VM is restarted elsewhere without a fence proof, which speaks of the node's last boot and session, and is true.

use tamdao_model::fence::{Evidence, FenceProof};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::vm::Vm;
use tamdao_store::view::View;

use super::Breach;
use crate::host::Host;
use crate::short;

/// A node's record has a new proof.
pub fn fenced(before: &Node, after: &Node, nodes: &[Host]) -> Option<Breach> {
    let count = |node: &Node| node.status.fence.as_ref().map_or(0, |fence| fence.proofs.len());
    if count(after) <= count(before) {
        return None;
    }
    let proof = after.status.fence.as_ref()?.proofs.last()?;
    let host = nodes.iter().find(|host| after.meta.name.as_str() == host.name)?;
    let why = match &proof.evidence {
        Evidence::StorageSilence { .. } if !host.watchdog => "silence of a host without a watchdog",
        Evidence::Goodbye => "a goodbye that was never said",
        Evidence::PowerOff { .. } | Evidence::Attestation { .. } => "evidence that nobody gave",
        Evidence::StorageSilence { .. } => return stale(after, proof),
    };
    Some(Breach { rule: "proofs", what: format!("{} is fenced by {why}", host.name) })
}

/// A VM has been given to another node.
pub fn evacuated(before: &Vm, after: &Vm, view: &View) -> Option<Breach> {
    let last = after.status.evacuations.last()?;
    if after.status.incarnation == before.status.incarnation || last.incarnation != after.status.incarnation {
        return None;
    }
    let node = view.nodes.get(last.proof.node)?;
    let breach = stale(node, &last.proof)?;
    Some(Breach { what: format!("vm {}: {}", short(after.id().0), breach.what), ..breach })
}

fn stale(node: &Node, proof: &FenceProof) -> Option<Breach> {
    let same = (&proof.boot_id, proof.session) == (&node.status.boot_id, node.status.session);
    let phase = node.status.phase;
    let what = match (same, phase) {
        (false, _) => "the proof speaks of an earlier session",
        (true, NodePhase::Fenced | NodePhase::Returning) => return None,
        (true, _) => "the node is not fenced",
    };
    Some(Breach { rule: "proofs", what: format!("{}: {what}", node.meta.name) })
}
