//! What is left of a group that lost its majority: all that its survivor has, or a refusal, and a group made of it.

use std::fs;
use std::time::Duration;

use tamdao_store::backend::raft::{DiskError, OpenError, RaftConfig, RaftStore};
use tamdao_store::contract::within;
use tamdao_store::kv::{Key, Kv, Prefix, Read, Revision, StoreError, Txn};
use tamdao_store::mvcc::View;

use crate::cluster::{Cluster, applied, leads};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Members that do not write snapshots by themselves and wait little for a majority that is gone.
fn alone() -> Cluster {
    Cluster::new(|config| {
        // Long enough that the leader still believes in its lease when it proposes.
        config.election_min = Duration::from_secs(16);
        config.election_max = Duration::from_secs(32);
        config.commit_timeout = Duration::from_millis(500);
    })
}

async fn write(store: &RaftStore, from: u64, to: u64) -> Revision {
    let mut last = Revision(0);
    for at in from..to {
        let txn = Txn::new().put(key(&format!("/r/{at:04}")), format!("value {at}"));
        last = within("a commit", store.commit(txn)).await.unwrap();
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_has_all_of_its_snapshot_and_all_of_its_log() {
    let cluster = alone();
    let [a, b, c] = cluster.three().await;
    write(&a.store, 0, 40).await;
    within("a snapshot", a.store.snapshot()).await.unwrap();
    write(&a.store, 40, 60).await;
    let before = within("a list", a.store.list(&Prefix::all(), Read::Linearizable)).await.unwrap();
    assert!(matches!(RaftStore::remains(&a.config), Err(OpenError::Disk(DiskError::InUse { .. }))));
    b.kill().await;
    c.kill().await;
    // On its disk and acknowledged by nobody: had another member answered, its client would have been told that it is
    // done, and this member would hold the very same.
    let unknown = a.store.commit(Txn::new().put(key("/open"), "x")).await;
    assert_eq!(unknown, Err(StoreError::Unknown));
    let id = a.store.id();
    let config = a.kill().await;
    let remains = RaftStore::remains(&config).unwrap();
    assert_eq!((remains.member, remains.cluster, remains.open), (id, cluster.id, 1));
    let mut names: Vec<&str> = remains.members.iter().map(|member| member.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!((names, remains.last.0), (vec!["a", "b", "c"], remains.term));
    let mut entries: Vec<_> = remains.state.entries().collect();
    let open = entries.iter().position(|entry| entry.key == key("/open")).expect("the open entry is kept");
    assert_eq!(entries.remove(open).value, "x");
    assert_eq!((entries, remains.state.revision), (before.0, before.1.next()));
    // Nobody else gets the directory meanwhile, and nothing was changed in it.
    assert!(matches!(RaftStore::remains(&config), Err(OpenError::Disk(DiskError::InUse { .. }))));
    let state = remains.state.clone();
    drop(remains);
    assert_eq!(RaftStore::remains(&config).unwrap().state.digest(), state.digest());

    // A group of one that is made of it holds the same, and whoever joins is sent it.
    let anew = Cluster::new(|_| {});
    RaftStore::found_from(&anew.config("a", "unused"), anew.id, state.clone()).unwrap();
    let first = anew.start("a").await;
    leads(&first.store).await;
    let second = anew.add(&first.store, "b").await;
    applied(&second.store, state.revision).await;
    let there =
        within("a list", second.store.list(&Prefix::all(), Read::AtLeast(state.revision))).await.unwrap();
    assert_eq!(there.0, state.entries().collect::<Vec<_>>());
}

/// A member's directory after forty commits and a snapshot in their middle.
async fn stopped(cluster: &Cluster) -> (RaftConfig, View) {
    let a = cluster.found("a").await;
    write(&a.store, 0, 20).await;
    within("a snapshot", a.store.snapshot()).await.unwrap();
    write(&a.store, 20, 40).await;
    let config = a.kill().await;
    let state = RaftStore::remains(&config).unwrap().state.clone();
    (config, state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_or_no_member_is_refused() {
    let cluster = Cluster::new(|_| {});
    let none = cluster.config("none", "unused");
    assert!(matches!(RaftStore::remains(&none), Err(OpenError::Directory { .. })));
    assert!(!none.directory.exists(), "looking leaves nothing behind");
    // Opened once, and never part of a group.
    cluster.start("none").await.kill().await;
    assert!(matches!(RaftStore::remains(&none), Err(OpenError::Directory { .. })));

    let (config, state) = stopped(&cluster).await;
    let path = config.directory.join("log.redb");
    // Also the pages of a file that was closed in order are proven.
    drop(redb::Database::open(&path).unwrap());
    let whole = fs::read(&path).unwrap();
    let at = whole.windows(8).position(|bytes| bytes == b"value 30").expect("the entry lies in the file");
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let told = RaftStore::remains(&config).map(|remains| remains.state.digest());
    assert!(told.is_err(), "an altered entry was taken for good");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(RaftStore::remains(&config).is_err(), "half a log was taken for good");
    fs::write(&path, &whole).unwrap();
    assert_eq!(RaftStore::remains(&config).unwrap().state.digest(), state.digest());
}
