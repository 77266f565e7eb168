//! The odd one out: a member whose state after some log entry is not that on which a majority agrees.
//!
//! Equal logs give equal states, so one that differs has a bug or a disk that lied. It stops itself, writes down why,
//! and is not opened again: what it would say is not the cloud's. No member judges another one, and without a majority
//! that agrees nobody is judged. Deliberately absent: anything about what differs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::REJOIN;
use super::node::Node;
use crate::kv::{Checkpoint, Result, StoreError};

/// Under this name lies why the member must not be opened.
pub const ODD: &str = "odd";

/// The first entry after which as many others as are a majority of the voters agree on another state than ours.
fn differs(ours: &[Checkpoint], others: &[Vec<Checkpoint>], voters: usize) -> Option<Checkpoint> {
    let agreed = |our: &&Checkpoint| {
        let theirs = others.iter().filter_map(|other| other.iter().find(|one| one.index == our.index));
        let different: Vec<&Checkpoint> = theirs.filter(|their| their != our).collect();
        different.iter().any(|one| different.iter().filter(|other| other == &one).count() > voters / 2)
    };
    ours.iter().find(agreed).copied()
}

impl Node {
    /// Refuses what would be answered from a state that is not the others'.
    pub fn must_be_even(&self) -> Result<()> {
        self.odd.get().map_or(Ok(()), |reason| Err(StoreError::unavailable(reason.clone())))
    }

    /// Compares this member's state with all others', and stops it when it is the odd one.
    pub async fn judge(self: &Arc<Self>) {
        let voters: Vec<_> = self.seated().into_iter().filter(|member| member.voter).collect();
        let mut others = Vec::new();
        for member in voters.iter().filter(|member| member.id != self.id) {
            others.extend(self.checkpoints_of(member).await.ok());
        }
        let Some(at) = differs(&self.progress.checkpoints(), &others, voters.len()) else { return };
        let reason = format!(
            "its state after log entry {} is not the one that the others agree on; {REJOIN}",
            at.index
        );
        tracing::error!(%reason, "this controller's store stops");
        let (sender, written) = tokio::sync::oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        self.disk.put(ODD, reason.clone().into_bytes(), true, done);
        // What cannot be written down now is found again after the next start.
        let _ = written.await;
        let _ = self.odd.set(reason);
        self.stopped.store(true, Ordering::Release);
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "the replicated log did not stop cleanly");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use uuid::Uuid;

    use super::*;
    use crate::backend::raft::{OpenError, PlainDial, RaftConfig, RaftStore};
    use crate::contract::within;
    use crate::kv::{Key, Kv as _, Membership as _, Read, Revision, Role, Txn};
    use crate::mvcc::Command;

    fn told(index: u64, state: u8) -> Checkpoint {
        Checkpoint { index, revision: Revision(index), digest: [state; 32] }
    }

    #[test]
    fn only_a_majority_that_agrees_makes_one_the_odd_one() {
        let ours = [told(256, 1), told(512, 2)];
        let same = vec![told(512, 2)];
        let other = vec![told(256, 1), told(512, 3)];
        let third = vec![told(512, 4)];
        let at = |others: &[&Vec<Checkpoint>], voters| {
            let others: Vec<_> = others.iter().map(|other| (*other).clone()).collect();
            differs(&ours, &others, voters).map(|at| at.index)
        };
        assert_eq!(at(&[&other, &other], 3), Some(512));
        assert_eq!(at(&[&other, &third], 3), None, "they do not agree");
        assert_eq!(at(&[&other, &same], 3), None, "the other one is odd");
        assert_eq!(at(&[&other], 3), None, "one of three is no majority");
        assert_eq!(at(&[&other], 2), None, "nobody knows which of two is odd");
        assert_eq!(at(&[&other, &other], 5), None);
        assert_eq!(at(&[&other, &other, &other], 5), Some(512));
    }

    async fn start(folder: &std::path::Path, name: &str) -> (RaftStore, RaftConfig) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut config = RaftConfig::new(folder.join(name), name, &address);
        (config.heartbeat, config.election_min) = (Duration::from_millis(100), Duration::from_millis(1000));
        let store = RaftStore::open(config.clone(), Arc::new(PlainDial)).await.unwrap();
        let service = store.service();
        tokio::spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await
        });
        (store, config)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_odd_one_stops_and_stays_away() {
        let (folder, cluster) = (tempfile::tempdir().unwrap(), Uuid::new_v4());
        let (a, _) = start(folder.path(), "a").await;
        a.init(cluster).await.unwrap();
        let mut others = Vec::new();
        for name in ["b", "c"] {
            let (store, config) = start(folder.path(), name).await;
            store.join(cluster).await.unwrap();
            let seated = async {
                while a.add_member(store.seat()).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            within("a seat", seated).await;
            others.push((store, config));
        }
        let (b, (c, config)) = (&others[0].0, &others[1]);
        // What no log entry did.
        let wrong = Txn::new().put(Key::new("/wrong").unwrap(), "");
        c.node.hub.write(|mvcc| mvcc.apply(Command::Txn(wrong)));
        for at in 0..300 {
            within("a commit", a.commit(Txn::new().put(Key::new("/1").unwrap(), at.to_string())))
                .await
                .unwrap();
        }
        for store in [b, c] {
            within("a read", store.get(&Key::new("/1").unwrap(), Read::Linearizable)).await.unwrap();
        }
        for store in [&a, b, c] {
            store.node.judge().await;
        }
        for store in [&a, b] {
            assert_eq!(store.status().error, None);
        }
        let status = c.status();
        assert_eq!(status.role, Role::Stopped);
        assert!(status.error.as_ref().is_some_and(|error| error.contains("add it again")), "{status:?}");
        assert!(c.commit(Txn::new().put(Key::new("/2").unwrap(), "")).await.is_err());
        let read = c.get(&Key::new("/1").unwrap(), Read::AtLeast(Revision(1))).await;
        assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
        within("a commit", a.commit(Txn::new().put(Key::new("/2").unwrap(), ""))).await.unwrap();
        c.shutdown().await;
        match RaftStore::open(config.clone(), Arc::new(PlainDial)).await.err() {
            Some(OpenError::Directory { reason, .. }) => assert!(reason.contains("add it again"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
