//! A controller's presence in etcd: a lease that is kept alive, and the controller's place under it.
//!
//! Its invariant: a presence counts as held only for nine tenths of its lease, from before the last renewal was asked
//! for, so its holder always knows of its end before etcd does. Who has a place is here; who has none has been silent
//! for a whole lease. A place says nothing about records and is not part of any commit.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, PutOptions};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::link::Failure;
use super::{Node, Seat};
use crate::kv::{Result, Revision};

/// How old the revision is through which the leader has etcd forget history, and how often it does. A controller that
/// was cut off for less goes on without listing anew.
const FORGET_AFTER: Duration = Duration::from_secs(300);

#[derive(Clone, Copy)]
struct Lease {
    id: i64,
    ttl: Duration,
}

impl Lease {
    /// Until when it is surely held, if it was asked for at `asked`.
    fn until(self, asked: Instant) -> Instant {
        asked + self.ttl * 9 / 10
    }
}

/// Keeps a presence until the node is stopped, and begins a new one whenever one is lost.
pub(super) async fn run(node: Arc<Node>) {
    // Not before the root is known to belong to this cloud.
    if node.hub.reached(Revision(1)).await.is_err() {
        return;
    }
    let mut pause = Duration::from_millis(20);
    while node.running().is_ok() {
        let asked = Instant::now();
        match begin(&node).await {
            Ok(lease) => {
                pause = Duration::from_millis(20);
                node.presence.send_replace(Some(lease.id));
                keep(&node, lease, asked).await;
                node.presence.send_replace(None);
                tracing::warn!("the presence in etcd is lost");
            }
            Err(error) => tracing::debug!(%error, "no presence in etcd yet"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Takes a lease, and the controller's place under it.
async fn begin(node: &Node) -> Result<Lease> {
    let ttl = i64::try_from(node.config.lease.as_secs()).unwrap_or(i64::MAX).max(1);
    let granted = node.link.ask(|client| async move { client.lease_client().grant(ttl, None).await });
    let granted = granted.await.map_err(Failure::unanswered)?;
    // etcd may give more than is asked for, never less: its own elections must fit in.
    let lease = Lease { id: granted.id(), ttl: Duration::from_secs(granted.ttl().max(1).unsigned_abs()) };
    let (key, place) = (node.layout.place_of(node.me.id), node.me.seat().encode());
    let put = node.link.ask(|client| {
        let (key, place) = (key.clone(), place.clone());
        let options = PutOptions::new().with_lease(lease.id);
        async move { client.kv_client().put(key, place, Some(options)).await }
    });
    put.await.map_err(Failure::unanswered)?;
    Ok(lease)
}

/// Renews a lease until that fails.
async fn keep(node: &Arc<Node>, lease: Lease, asked: Instant) {
    let mut until = lease.until(asked);
    let mut old = (Instant::now(), node.hub.revision());
    loop {
        if node.running().is_err() {
            return;
        }
        // At a third of the lease, so that another member can still be asked when this one does not answer.
        sleep_until((until - lease.ttl * 6 / 10).max(Instant::now() + lease.ttl / 50)).await;
        let asked = Instant::now();
        match timeout_at(until, renew(node, lease.id)).await {
            Ok(Ok(true)) => until = lease.until(asked),
            Ok(Err(_)) if Instant::now() < until => {}
            Ok(Ok(false) | Err(_)) | Err(_) => return,
        }
        if node.leads() && old.0.elapsed() >= FORGET_AFTER {
            forget(node, old.1);
            old = (Instant::now(), node.hub.revision());
        }
    }
}

/// Asks for more time; false when etcd knows no such lease any more.
async fn renew(node: &Node, lease: i64) -> Result<bool> {
    let renewed = node.link.ask(|client| async move {
        match client.lease_client().keep_alive(lease).await {
            Ok(_) => Ok(true),
            Err(Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(error),
        }
    });
    renewed.await.map_err(Failure::unanswered)
}

/// Beside the presence, which must not be late with its next renewal.
fn forget(node: &Arc<Node>, through: Revision) {
    let node = Arc::clone(node);
    tokio::spawn(async move {
        if let Err(error) = node.forget(through).await {
            tracing::warn!(%error, "etcd's history could not be compacted");
        }
    });
}

/// Gives the presence back, and with it the place and the office, so that nobody has to wait for its end.
pub(super) async fn end(node: &Node) {
    let Some(lease) = node.presence.send_replace(None) else { return };
    let revoked = node.link.ask(|client| async move { client.lease_client().revoke(lease).await });
    if let Err(failure) = revoked.await {
        let error = failure.unanswered();
        tracing::info!(%error, "the presence was not given back, it ends by itself");
    }
}

impl Seat {
    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a seat is plain data")
    }

    /// None for what another version, or a hand, has written.
    pub(super) fn decode(value: &[u8]) -> Option<Seat> {
        serde_json::from_slice(value).ok()
    }
}
