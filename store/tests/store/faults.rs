//! What is acknowledged while leaders come and go, and what is said when nobody can know.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use tamdao_store::contract::within;
use tamdao_store::kv::{
    Change, Election, Key, Kv, Membership, Prefix, Read, Revision, Role, StoreError, Txn,
};

use crate::cluster::{Cluster, applied, until};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// What one writer was told about its own key, in order.
#[derive(Default)]
struct Told {
    acknowledged: Vec<(Revision, u64)>,
    attempts: u64,
}

/// Writers through every member while the leader is cut off, handed over and killed; afterwards
/// every acknowledged write is in the history, at its revision, and the state is its last effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_while_leaders_change() {
    let cluster = Cluster::new(|config| config.commit_timeout = Duration::from_secs(3));
    let [a, b, c] = cluster.three().await;
    let all = Prefix::all();
    let done = Arc::new(AtomicBool::new(false));
    let writers = [&a, &b, &c].into_iter().enumerate().map(|(number, member)| {
        let (store, done) = (member.store.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut told, name) = (Told::default(), key(&format!("/w/{number}")));
            while !done.load(Ordering::Acquire) {
                told.attempts += 1;
                let txn = Txn::new().put(name.clone(), told.attempts.to_string());
                match store.commit(txn).await {
                    Ok(revision) => told.acknowledged.push((revision, told.attempts)),
                    Err(StoreError::Unknown | StoreError::Unavailable { .. }) => {
                        tokio::task::yield_now().await
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            told
        })
    });
    let writers: Vec<_> = writers.collect();
    let start = done_revision(&b.store).await;
    applied(&b.store, Revision(start.0 + 20)).await;

    cluster.links.isolate(a.address());
    until(&b.store, "another leader", |status| {
        status.leader.as_ref().is_some_and(|leader| leader.id != a.store.id())
    })
    .await;
    let now = done_revision(&b.store).await;
    applied(&b.store, Revision(now.0 + 20)).await;
    cluster.links.heal();
    let leader = b.store.status().leader.unwrap();
    let (leading, other) = if leader.id == b.store.id() { (&b, &c) } else { (&c, &b) };
    // A handover may lose its race with an election; the history must hold either way.
    let _ = leading.store.transfer_leadership(other.store.id()).await;
    let now = done_revision(&a.store).await;
    applied(&a.store, Revision(now.0 + 20)).await;

    done.store(true, Ordering::Release);
    let told: Vec<Told> =
        within("the writers", join_all(writers)).await.into_iter().map(Result::unwrap).collect();
    let last = within("a barrier", b.store.barrier()).await.unwrap();
    for member in [&a, &b, &c] {
        applied(&member.store, last).await;
        let mut history: BTreeMap<Revision, (String, u64)> = BTreeMap::new();
        let mut watched = member.store.watch(&all, Revision::ZERO).await.unwrap();
        while !history.contains_key(&last) {
            let batch = within("history", watched.next()).await.unwrap().unwrap();
            for change in batch.changes {
                let Change::Put(entry) = change else { panic!("nothing was removed") };
                let number = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                assert!(history.insert(batch.revision, (entry.key.to_string(), number)).is_none());
            }
        }
        for (number, told) in told.iter().enumerate() {
            let name = format!("/w/{number}");
            assert!(!told.acknowledged.is_empty());
            for (revision, attempt) in &told.acknowledged {
                assert_eq!(
                    history.get(revision),
                    Some(&(name.clone(), *attempt)),
                    "an acknowledged write is lost"
                );
            }
            let order: Vec<u64> = history.values().filter(|(key, _)| *key == name).map(|(_, n)| *n).collect();
            assert!(
                order.windows(2).all(|pair| pair[0] < pair[1]),
                "written twice or out of order: {order:?}"
            );
        }
    }
    let listed: Vec<_> =
        join_all([&a, &b, &c].map(|member| member.store.list(&all, Read::AtLeast(last)))).await;
    assert!(listed.windows(2).all(|pair| pair[0] == pair[1]));
}

async fn done_revision(store: &tamdao_store::backend::raft::RaftStore) -> Revision {
    store.status().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_unknown_though_the_write_is_there() {
    let cluster = Cluster::new(|config| config.commit_timeout = Duration::from_secs(1));
    let [a, b, c] = cluster.three().await;
    within("a first commit", b.store.commit(Txn::new().put(key("/warm"), ""))).await.unwrap();
    cluster.links.mute(b.address(), a.address());
    let told = within("a commit", b.store.commit(Txn::new().put(key("/1"), "x"))).await;
    assert_eq!(told, Err(StoreError::Unknown));
    let found = within("a read", a.store.get(&key("/1"), Read::Linearizable)).await.unwrap();
    let revision = found.expect("the leader took it").mod_revision;
    applied(&b.store, revision).await;
    drop(c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_proposal_is_unknown_and_a_read_is_refused() {
    let cluster = Cluster::new(|config| {
        // Long enough that the leader still believes in its lease when it proposes.
        config.election_min = Duration::from_secs(16);
        config.election_max = Duration::from_secs(32);
        config.commit_timeout = Duration::from_millis(500);
        config.read_timeout = Duration::from_millis(500);
    });
    let [a, b, c] = cluster.three().await;
    let last = within("a commit", a.store.commit(Txn::new().put(key("/1"), ""))).await.unwrap();
    b.kill().await;
    c.kill().await;
    assert_eq!(a.store.commit(Txn::new().put(key("/2"), "")).await, Err(StoreError::Unknown));
    let refused = a.store.get(&key("/1"), Read::Linearizable).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    let local = a.store.get(&key("/1"), Read::AtLeast(last)).await.unwrap();
    assert!(local.is_some(), "what is known to be applied is served without a quorum");
    assert_eq!(
        a.store.get(&key("/2"), Read::AtLeast(last)).await.unwrap(),
        None,
        "and nothing uncommitted is"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_is_lost_with_the_quorum_and_its_epoch_is_fenced() {
    let cluster = Cluster::new(|config| config.commit_timeout = Duration::from_secs(2));
    let [a, b, c] = cluster.three().await;
    let office = within("a campaign", a.store.campaign()).await.unwrap();
    assert!(!office.is_lost());
    cluster.links.isolate(a.address());
    within("the loss", office.lost()).await;
    let (b_store, c_store) = (b.store.clone(), c.store.clone());
    let elected = futures::future::select(Box::pin(b_store.campaign()), Box::pin(c_store.campaign()));
    let next = within("a campaign", elected).await.factor_first().0.unwrap();
    assert!(next.epoch > office.epoch);
    cluster.links.heal();
    until(&a.store, "following", |status| status.role == Role::Follower).await;
    let mut stale = Txn::new().put(key("/stale"), "x");
    stale.guards.push(office.guard());
    let refused = loop {
        match within("a stale commit", a.store.commit(stale.clone())).await {
            Err(StoreError::Unavailable { .. } | StoreError::Unknown) => {}
            other => break other,
        }
    };
    assert_eq!(refused, Err(StoreError::Conflict { key: Key::leader() }));
    assert!(!next.is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_is_lost_when_leadership_is_handed_over() {
    let cluster = Cluster::new(|_| {});
    let [a, b, c] = cluster.three().await;
    let office = within("a campaign", a.store.campaign()).await.unwrap();
    within("a transfer", a.store.transfer_leadership(c.store.id())).await.unwrap();
    within("the loss", office.lost()).await;
    let next = within("a campaign", c.store.campaign()).await.unwrap();
    assert!(next.epoch > office.epoch);
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_keeps_its_office() {
    let cluster = Cluster::new(|_| {});
    let a = cluster.found("a").await;
    let office = within("a campaign", a.store.campaign()).await.unwrap();
    let mut last = office.epoch;
    for round in 0..50 {
        let mut txn = Txn::new().put(key("/1"), round.to_string());
        txn.guards.push(office.guard());
        last = within("a commit", a.store.commit(txn)).await.unwrap();
    }
    assert_eq!(last, Revision(office.epoch.0 + 50));
    assert!(!office.is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_waits_end_when_the_store_stops() {
    let cluster = Cluster::new(|_| {});
    let a = cluster.found("a").await;
    let mut watched = a.store.watch(&Prefix::all(), Revision::ZERO).await.unwrap();
    let store = a.store.clone();
    a.kill().await;
    assert!(matches!(within("the end", watched.next()).await, Some(Err(StoreError::Unavailable { .. }))));
    assert!(watched.next().await.is_none());
    assert!(matches!(store.commit(Txn::new().put(key("/1"), "")).await, Err(StoreError::Unavailable { .. })));
    assert_eq!(store.status().role, Role::Stopped);
    assert!(matches!(within("a campaign", store.campaign()).await, Err(StoreError::Unavailable { .. })));
}
