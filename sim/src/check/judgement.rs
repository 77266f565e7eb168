//! A new leader judges nobody before one whole session timeout.

use tamdao_model::node::{Node, NodePhase};
use tamdao_store::kv::Revision;

use super::Breach;
use crate::SESSION_TIMEOUT;

pub fn check(
    before: &Node,
    after: &Node,
    now_ms: u64,
    office: Option<(usize, Revision, u64)>,
) -> Option<Breach> {
    let judged = after.status.phase == NodePhase::Unreachable
        && !matches!(before.status.phase, NodePhase::Unreachable | NodePhase::Fencing);
    let (at, epoch, since_ms) = office?;
    // Its clock may be fast.
    let soonest_ms = SESSION_TIMEOUT.as_millis() as u64 * 99 / 100;
    (judged && now_ms - since_ms < soonest_ms).then(|| {
        let what = format!(
            "c{} gives up {} {} ms after it took office, epoch {epoch}",
            at + 1,
            after.meta.name,
            now_ms - since_ms
        );
        Breach { rule: "judgement", what }
    })
}
