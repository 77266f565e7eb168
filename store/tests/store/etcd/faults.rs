//! What holds on etcd when its servers die, its history is gone, or a controller sleeps through its lease.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use tamdao_store::backend::etcd::EtcdStore;
use tamdao_store::contract::within;
use tamdao_store::kv::{
    Change, Election, Key, Kv, Leadership, Prefix, Read, Revision, Role, StoreError, Txn,
};

use super::servers::{Servers, me, ready};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Writes a new record until that is acknowledged, however often the reply is lost.
async fn put_new(store: &EtcdStore, name: &str) -> Revision {
    let txn = Txn::new().absent(key(name)).put(key(name), name.to_owned());
    loop {
        match store.commit(txn.clone()).await {
            Ok(revision) => return revision,
            // It is there, so an attempt whose reply was lost has made it.
            Err(StoreError::Conflict { .. }) => {
                let entry = within("a read", read(store, name)).await;
                return entry.expect("a conflict on Absent says that it exists").mod_revision;
            }
            Err(StoreError::Unknown | StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

async fn read(store: &EtcdStore, name: &str) -> Option<tamdao_store::kv::Entry> {
    loop {
        match store.get(&key(name), Read::Linearizable).await {
            Ok(entry) => return entry,
            Err(StoreError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The etcd leader dies under writes: nothing acknowledged is lost, and a watch that ran on shows each commit once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_etcds_leader_loses_nothing() {
    let mut servers = Servers::three();
    let leader = servers.leader().await;
    // Both controllers talk to the one that is going to die.
    let (one, other) = (servers.open("c1", leader).await, servers.open("c2", leader).await);
    let start = one.barrier().await.unwrap();
    let mut watched = other.watch(&Prefix::new("/d/").unwrap(), start).await.unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..60 {
        if round == 20 {
            servers.kill(leader);
        }
        let name = format!("/d/{round:02}");
        acknowledged.insert(put_new(&one, &name).await, name);
    }
    let mut seen = BTreeMap::new();
    let mut last = start;
    while seen.len() < acknowledged.len() {
        let batch = within("a watched commit", watched.next()).await.unwrap().unwrap();
        assert!(batch.revision > last, "neither a batch nor a bookmark repeats a revision");
        last = batch.revision;
        for change in batch.changes {
            let Change::Put(entry) = change else { panic!("nothing was removed") };
            assert_eq!(seen.insert(entry.mod_revision, entry.key.to_string()), None);
        }
    }
    assert_eq!(seen, acknowledged);
    let (listed, _) = one.list(&Prefix::new("/d/").unwrap(), Read::Linearizable).await.unwrap();
    assert_eq!(listed.len(), acknowledged.len());
}

/// Without etcd's quorum nothing is written and the leader leaves office; with it all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcds_quorum_the_store_is_unavailable_until_it_is_back() {
    let mut servers = Servers::three();
    let mut config = servers.config(0);
    config.patience = Duration::from_secs(1);
    let store = EtcdStore::open(config, me("c1")).unwrap();
    ready(&store).await;
    let office = store.campaign().await.unwrap();
    let before = store.commit(Txn::new().put(key("/q/1"), "before")).await.unwrap();
    assert_eq!(store.get(&key("/q/1"), Read::AtLeast(before)).await.unwrap().unwrap().mod_revision, before);
    servers.kill(1);
    servers.kill(2);
    let refused = async {
        loop {
            match store.commit(Txn::new().put(key("/q/2"), "without")).await {
                Err(StoreError::Unavailable { .. }) => return,
                // Proposed to a leader that did not know yet.
                Err(StoreError::Unknown) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    within("a refusal", refused).await;
    let unread = store.get(&key("/q/1"), Read::Linearizable).await;
    assert!(matches!(unread, Err(StoreError::Unavailable { .. })), "{unread:?}");
    assert!(matches!(store.barrier().await, Err(StoreError::Unavailable { .. })));
    within("the loss of the office", office.lost()).await;
    // What was known is still told to whom that is enough.
    assert!(store.get(&key("/q/1"), Read::AtLeast(before)).await.unwrap().is_some());
    servers.run(1);
    ready(&store).await;
    put_new(&store, "/q/3").await;
    let again = within("a new office", store.campaign()).await.unwrap();
    assert!(again.epoch > office.epoch);
    assert_eq!(store.status().role, Role::Leader);
}

/// A controller that was cut off while etcd forgot what it missed lists anew; its watchers are told, and go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_that_overtakes_a_controller_costs_it_a_list() {
    let mut servers = Servers::three();
    let leads = servers.leader().await;
    let (cut, alive) = ((leads + 1) % 3, leads);
    let one = servers.open("c1", alive).await;
    let mut config = servers.config(cut);
    config.endpoints.truncate(1);
    let other = EtcdStore::open(config, me("c2")).unwrap();
    ready(&other).await;
    let start = put_new(&one, "/c/0").await;
    let mut watched = other.watch(&Prefix::all(), start).await.unwrap();
    assert!(other.get(&key("/c/0"), Read::AtLeast(start)).await.unwrap().is_some());
    servers.kill(cut);
    let mut last = start;
    for round in 1..30 {
        last = put_new(&one, &format!("/c/{round}")).await;
    }
    one.commit(Txn::new().delete(key("/c/7"))).await.unwrap();
    one.compact(last).await.unwrap();
    servers.run(cut);
    ready(&other).await;
    let told = within("the end of the watch", watched.next()).await;
    assert!(matches!(told, Some(Err(StoreError::Compacted { oldest })) if oldest > last), "{told:?}");
    let all = Prefix::new("/c/").unwrap();
    let (listed, at) = other.list(&all, Read::Linearizable).await.unwrap();
    assert_eq!(listed, one.list(&all, Read::Linearizable).await.unwrap().0);
    assert_eq!(listed.len(), 29);
    let mut again = other.watch(&all, at).await.unwrap();
    let after = put_new(&one, "/c/after").await;
    assert_eq!(within("a change", again.next()).await.unwrap().unwrap().revision, after);
}

/// A controller that sleeps through its lease finds another one in office when it wakes, and can write nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_sleeps_through_its_lease_writes_nothing() {
    let servers = Servers::start(1, None);
    let config = servers.config(0);
    let (say, hear) = tokio::sync::oneshot::channel::<Leadership>();
    let (wake, woken) = std::sync::mpsc::channel::<()>();
    // A thread whose only runtime stands still, as a paused process does.
    let sleeper = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let store = EtcdStore::open(config, me("c1")).unwrap();
            let office = store.campaign().await.unwrap();
            store.commit(guarded(&office, "before")).await.unwrap();
            say.send(office.clone()).unwrap();
            woken.recv().unwrap();
            let refused = store.commit(guarded(&office, "asleep")).await;
            let lost = within("the loss", office.lost()).await;
            (refused, lost)
        })
    });
    let before = hear.await.unwrap();
    let other = servers.open("c2", 0).await;
    let after = within("the next office", other.campaign()).await.unwrap();
    assert!(after.epoch > before.epoch);
    other.commit(guarded(&after, "after")).await.unwrap();
    wake.send(()).unwrap();
    let (refused, ()) = tokio::task::spawn_blocking(move || sleeper.join().unwrap()).await.unwrap();
    assert_eq!(refused, Err(StoreError::Conflict { key: Key::leader() }));
    assert_eq!(read(&other, "/e/1").await.unwrap().value, "after");
    let leader = other.status().leader.unwrap();
    assert_eq!((leader.name.as_str(), leader.address.as_str()), ("c2", "c2.example:7443"));
}

fn guarded(office: &Leadership, value: &'static str) -> Txn {
    let mut txn = Txn::new().put(key("/e/1"), value);
    txn.guards.push(office.guard());
    txn
}

/// A controller that stops gives its office back, so that nobody waits for the end of its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_that_is_given_back_is_free_at_once() {
    let servers = Servers::start(1, None);
    let mut config = servers.config(0);
    // Longer than the deadline of the case: who waits for it fails.
    config.lease = Duration::from_secs(600);
    let one = EtcdStore::open(config, me("c1")).unwrap();
    let office = one.campaign().await.unwrap();
    let other = servers.open("c2", 0).await;
    let next = tokio::spawn({
        let other = other.clone();
        async move { other.campaign().await }
    });
    one.shutdown().await;
    within("the loss of the office", office.lost()).await;
    let next = within("the next office", next).await.unwrap().unwrap();
    assert!(next.epoch > office.epoch);
    assert!(matches!(one.barrier().await, Err(StoreError::Unavailable { .. })));
}
