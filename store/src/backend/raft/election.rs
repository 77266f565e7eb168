//! The office on Raft: whoever leads the group writes the leader's record and holds the office.
//!
//! Its invariant: an office ends, for its holder, before another can begin without being handed
//! over, because it ends at nine tenths of the time for which the quorum promised to elect nobody
//! else. Clocks only make the loss early; the barrier is the epoch in every transaction. A Raft
//! term is never used to fence.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::RaftStore;
use super::codec;
use super::node::{Backoff, Node, Proposed};
use super::types::{Ballot, Metrics};
use crate::kv::{Election, Key, Leadership, Result, StoreError, Txn};
use crate::mvcc::{Applied, Command};

#[async_trait]
impl Election for RaftStore {
    async fn campaign(&self) -> Result<Leadership> {
        let node = &self.node;
        let mut metrics = node.raft.metrics();
        let mut backoff = Backoff::new();
        loop {
            let now = metrics.borrow_watched().clone();
            if let Err(error) = &now.running_state {
                return Err(StoreError::unavailable(error.to_string()));
            }
            if !holds(&now, node.id) {
                if metrics.changed().await.is_err() {
                    return Err(StoreError::unavailable("the store is stopped"));
                }
                continue;
            }
            // Never forwarded: the office is for the one who leads, and for nobody on its behalf.
            let txn = Txn::new().put(Key::leader(), node.config.name.clone().into_bytes());
            match node.propose_here(codec::command(&Command::Txn(txn))).await {
                Proposed::Applied(Applied::Committed(epoch), _) => {
                    let (sender, lost) = watch::channel(false);
                    let vote = now.vote;
                    // The task ends with the office, or when nobody listens any more.
                    tokio::spawn(guard(Arc::clone(node), vote, sender));
                    tracing::info!(epoch = epoch.0, "took office");
                    return Ok(Leadership::new(epoch, lost));
                }
                Proposed::Applied(other, _) => {
                    return Err(StoreError::invalid(format!("the leader's record gave {other:?}")));
                }
                // Not confirmed yet, or lost again at once: the next round sees which.
                Proposed::NotLeader(_) | Proposed::Unknown => backoff.wait().await,
            }
        }
    }
}

fn holds(metrics: &Metrics, id: u64) -> bool {
    metrics.state.is_leader() && metrics.current_leader == Some(id)
}

/// Tells the holder when the office is lost: another vote, another state, or a quorum's silence.
async fn guard(node: Arc<Node>, vote: Ballot, sender: watch::Sender<bool>) {
    let lease = node.config.quorum_lease().mul_f64(0.9);
    let mut metrics = node.raft.metrics();
    let began = Instant::now();
    loop {
        let now = metrics.borrow_watched().clone();
        if !holds(&now, node.id) || now.vote != vote || now.running_state.is_err() {
            break;
        }
        // Before the first acknowledgement the lease counts from when the office began.
        let silence = now.last_quorum_acked.map_or_else(|| began.elapsed(), |acked| acked.elapsed());
        let left = lease.saturating_sub(silence);
        if left.is_zero() && !alone(&now) {
            break;
        }
        let pause = if left.is_zero() { lease } else { left };
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
            changed = metrics.changed() => if changed.is_err() { break },
        }
    }
    tracing::warn!("lost office");
    sender.send_replace(true);
}

/// A group of one voter is its own quorum, and nobody else can be elected.
fn alone(metrics: &Metrics) -> bool {
    metrics.membership_config.voter_ids().count() == 1
}
