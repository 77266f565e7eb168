//! Liveness: notices nodes whose agents are silent, and keeps the phases of their VMs in step. It only detects:
//! the VMs of a silent node are left alone until the fencer has proven something of it.

use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::node::NodePhase;
use tamdao_model::{NodeId, VmId};
use tamdao_seams::{Mutant, has};
use tokio::time::Instant;

use super::Loop;
use crate::decide::node;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// VMs whose phases are derived anew in one decision.
const PER_DECISION: usize = 100;

/// See the module. One is made for each office.
pub struct Liveness {
    /// When this leader began to accept sessions: it judges nobody before a whole timeout has passed since.
    since: Instant,
}

impl Liveness {
    pub fn new(since: Instant) -> Self {
        Self { since }
    }
}

#[async_trait]
impl Loop for Liveness {
    fn name(&self) -> &'static str {
        "liveness"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn wakes_on_change(&self) -> bool {
        false
    }

    fn rests_in_recovery(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let now = shared.clock.instant();
        let timeout = shared.sessions.timeout();
        let view = shared.cache.view();
        for row in view.nodes.iter() {
            let id = row.id();
            let silent = match shared.sessions.silence(id, now) {
                Some(silence) => silence > timeout,
                None => {
                    now.saturating_duration_since(self.since) > timeout || has(Mutant::LeaderJudgesAtOnce)
                }
            };
            if silent {
                shared.sessions.end(id);
                if matches!(row.status.phase, NodePhase::Ready | NodePhase::NotReady | NodePhase::Returning) {
                    lose(shared, id, timeout).await?;
                }
            }
            refresh(shared, id).await?;
        }
        let steady_ms = shared.sessions.steady_ms();
        for id in node::steady_again(&shared.cache.view(), shared.clock.now(), steady_ms) {
            let decided = shared.writer.submit(move |draft, moment| {
                node::release(draft, moment, id, steady_ms);
                Ok(())
            });
            decided.await?;
        }
        Ok(0)
    }
}

async fn lose(shared: &Shared, id: NodeId, timeout: Duration) -> Result<(), Refusal> {
    tracing::warn!(node = %id, "node is unreachable");
    let message = format!("its agent has not been heard for {} s; its VMs are left alone", timeout.as_secs());
    let decided = shared.writer.submit(move |draft, moment| {
        node::lose(draft, moment, id, &message);
        Ok(())
    });
    decided.await.map(|_| ())
}

/// Derives anew the phases that no longer follow from what is known of the node.
async fn refresh(shared: &Shared, id: NodeId) -> Result<(), Refusal> {
    let stale: Vec<VmId> = node::stale_phases(&shared.cache.view(), id);
    for chunk in stale.chunks(PER_DECISION) {
        let chunk = chunk.to_vec();
        let decided = shared.writer.submit(move |draft, _| {
            node::refresh_phases(draft, &chunk);
            Ok(())
        });
        decided.await?;
    }
    Ok(())
}
