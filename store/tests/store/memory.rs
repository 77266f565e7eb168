//! The contract on the memory backend, and the faults that it can inject.

use std::sync::Arc;

use futures::StreamExt as _;
use tamdao_store::backend::memory::{Fate, Faults, MemoryStore};
use tamdao_store::contract::{Fixture, within};
use tamdao_store::kv::{Election, Key, Kv, Leadership, Prefix, Read, StoreError, Txn};

struct Memory(MemoryStore);

#[async_trait::async_trait]
impl Fixture for Memory {
    fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(self.0.clone())
    }

    fn peer(&self) -> Arc<dyn Kv> {
        Arc::new(self.0.peer("b"))
    }

    async fn campaign(&self) -> Leadership {
        self.0.campaign().await.unwrap()
    }
}

mod contract {
    use super::{Memory, MemoryStore};
    tamdao_store::contract_tests!(async { Memory(MemoryStore::new("a")) });
}

struct Always(Fate);

impl Faults for Always {
    fn commit(&self, _txn: &Txn) -> Fate {
        self.0
    }

    fn read(&self) -> Fate {
        self.0
    }
}

fn put(key: &str) -> Txn {
    Txn::new().put(Key::new(key).unwrap(), "x")
}

#[tokio::test]
async fn a_lost_reply_is_unknown_whether_it_was_applied_or_not() {
    let store = MemoryStore::new("a");
    let faulty = store.peer("b");
    for (fate, error, applied) in [
        (Fate::RequestLost, StoreError::Unknown, false),
        (Fate::ReplyLost, StoreError::Unknown, true),
        (Fate::Refused, StoreError::unavailable("a fault was injected"), false),
    ] {
        faulty.inject(Arc::new(Always(fate)));
        let name = format!("/{fate:?}");
        assert_eq!(faulty.commit(put(&name)).await, Err(error));
        let found = store.get(&Key::new(&name).unwrap(), Read::Linearizable).await.unwrap();
        assert_eq!(found.is_some(), applied, "{fate:?}");
    }
    assert!(matches!(faulty.barrier().await, Err(StoreError::Unavailable { .. })));
}

#[tokio::test]
async fn a_follower_serves_the_past_until_it_advances() {
    let leader = MemoryStore::new("a");
    let first = leader.commit(put("/1")).await.unwrap();
    let follower = leader.follower("b");
    let second = follower.commit(put("/2")).await.unwrap();
    let key = Key::new("/2").unwrap();
    assert_eq!(follower.get(&key, Read::AtLeast(first)).await.unwrap(), None);
    let mut watched = follower.watch(&Prefix::all(), first).await.unwrap();
    let mut waiting = std::pin::pin!(follower.get(&key, Read::Linearizable));
    assert!(futures::poll!(&mut waiting).is_pending(), "a fresh read waits for what was acknowledged");
    follower.advance(second);
    assert_eq!(within("a read", waiting).await.unwrap().unwrap().mod_revision, second);
    assert_eq!(within("a change", watched.next()).await.unwrap().unwrap().revision, second);
    assert_eq!(follower.status().revision, second);
}

#[tokio::test]
async fn an_office_passes_on_when_it_is_dropped_or_deposed() {
    let (a, store) = (MemoryStore::new("a"), MemoryStore::new("unrelated"));
    let b = a.peer("b");
    let first = a.campaign().await.unwrap();
    let mut waiting = std::pin::pin!(b.campaign());
    assert!(futures::poll!(&mut waiting).is_pending(), "one office, one holder");
    drop(first);
    let second = within("an election", waiting).await.unwrap();
    let mut waiting = std::pin::pin!(a.campaign());
    assert!(futures::poll!(&mut waiting).is_pending());
    store.depose();
    assert!(!second.is_lost());
    a.depose();
    within("the loss", second.lost()).await;
    assert!(second.is_lost());
    assert!(within("an election", waiting).await.unwrap().epoch > second.epoch);
}
