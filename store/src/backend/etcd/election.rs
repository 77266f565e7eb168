//! The office on etcd: the leader's record hangs on the leader's presence and goes with it.
//!
//! Its invariant: the revision that wrote the record is the epoch, so etcd itself takes the leader's guard away when
//! the presence's lease ends, and only then can another controller write the record. The holder leaves office before
//! that (presence.rs). Clocks only make the loss early; the barrier is the guard. Deliberately absent: etcd's own
//! election service, whose key would be a second truth beside the record (decision 0202).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{EtcdStore, Node, Seat};
use crate::kv::{
    Election, Entry, Guard, Key, Leadership, Member, Membership, Result, Revision, StoreError, Txn,
};

#[async_trait]
impl Election for EtcdStore {
    async fn campaign(&self) -> Result<Leadership> {
        let node = &self.node;
        let mut pause = Duration::from_millis(20);
        loop {
            let guard = node.vacant().await?;
            let lease = node.present().await?;
            let txn = Txn { guards: vec![guard], ..Txn::new() }.put(Key::leader(), node.me.seat().encode());
            match node.write(&txn, Some(lease)).await {
                Ok(epoch) => {
                    let (sender, lost) = watch::channel(false);
                    tokio::spawn(hold(Arc::clone(node), lease, epoch, sender));
                    return Ok(Leadership::new(epoch, lost));
                }
                // Somebody else was first, or nobody knows: look again, at what is there now.
                Err(error) => {
                    tracing::debug!(%error, "not in office yet");
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                    // An error is met again by whoever asks next.
                    let _ = node.barrier().await;
                }
            }
        }
    }
}

impl Node {
    fn leader(&self) -> Option<Entry> {
        self.hub.read(|mvcc| mvcc.get(&Key::leader()))
    }

    /// Waits until nobody else leads, as this controller sees it; the guard says so of the record.
    ///
    /// A record of this controller's own is of an office that it held before, in this process or in the one before
    /// it, and rewriting the record ends that one.
    async fn vacant(&self) -> Result<Guard> {
        loop {
            let seen = self.hub.revision();
            match self.leader() {
                _ if seen == Revision::ZERO => {}
                None => return Ok(Guard::Absent(Key::leader())),
                Some(record) if Seat::decode(&record.value).is_some_and(|seat| seat.id == self.me.id) => {
                    return Ok(Guard::Unchanged(Key::leader(), record.mod_revision));
                }
                Some(_) => {}
            }
            self.hub.reached(seen.next()).await?;
        }
    }

    /// The lease of the presence, once there is one.
    async fn present(&self) -> Result<i64> {
        let mut presence = self.presence.subscribe();
        let presence = presence.wait_for(Option::is_some).await.map(|presence| *presence);
        let none = || StoreError::unavailable("the store is stopped");
        presence.ok().flatten().ok_or_else(none)
    }

    /// Whether this controller holds the office, as far as it knows.
    pub(super) fn leads(&self) -> bool {
        let ours = |record: Entry| Seat::decode(&record.value).is_some_and(|seat| seat.id == self.me.id);
        self.presence.borrow().is_some() && self.leader().is_some_and(ours)
    }

    /// Returns when the leader's record is not this one any more.
    async fn superseded(&self, epoch: Revision) {
        let mut reached = self.hub.reached(epoch).await;
        while reached.is_ok() {
            let seen = self.hub.revision();
            if self.leader().is_none_or(|record| record.mod_revision != epoch) {
                return;
            }
            reached = self.hub.reached(seen.next()).await;
        }
    }
}

/// Tells the holder of an office when it is lost.
async fn hold(node: Arc<Node>, lease: i64, epoch: Revision, lost: watch::Sender<bool>) {
    let mut presence = node.presence.subscribe();
    tokio::select! {
        // An error means that the store is gone, and the presence with it.
        _ = presence.wait_for(|presence| *presence != Some(lease)) => {}
        () = node.superseded(epoch) => {}
        () = lost.closed() => {}
    }
    lost.send_replace(true);
}

/// Controllers have no seats in etcd: who has a presence takes part. What would change etcd's own members is refused.
#[async_trait]
impl Membership for EtcdStore {
    async fn members(&self) -> Result<Vec<Member>> {
        self.node.barrier().await?;
        Ok(self.node.members())
    }

    /// No change: it takes its place itself when it runs.
    async fn add_member(&self, _member: Member) -> Result<()> {
        Ok(())
    }

    /// No change: it loses its place when its presence ends, and who is not in the records is refused.
    async fn remove_member(&self, _id: u64) -> Result<()> {
        Ok(())
    }

    async fn transfer_leadership(&self, _to: u64) -> Result<()> {
        let reason = "on etcd the office goes to whichever controller is first; stop the leader's process to have \
                      another one lead, and see to etcd's own members with etcdctl";
        Err(StoreError::invalid(reason))
    }
}
