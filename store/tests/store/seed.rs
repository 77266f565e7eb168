//! A group that begins with a state: it leads by itself, counts on from that state, and sends it to whoever joins.

use tamdao_store::backend::raft::{OpenError, RaftStore};
use tamdao_store::contract::within;
use tamdao_store::kv::{Key, Kv, Prefix, Read, Revision, Txn};
use tamdao_store::mvcc::{Command, Mvcc, View};

use crate::cluster::{Cluster, applied, leads};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Twenty records, the newest at revision 1000020.
fn state() -> View {
    let mut store = Mvcc::from(View::from_entries(Revision(1_000_000), 1, []));
    for at in 0..20 {
        store.apply(Command::Txn(Txn::new().put(key(&format!("/r/{at}")), format!("value {at}"))));
    }
    store.view()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_begins_with_a_state_counts_on_and_sends_it_to_who_joins() {
    let cluster = Cluster::new(|_| {});
    let config = cluster.config("a", "unused");
    let id = RaftStore::found_from(&config, cluster.id, state()).unwrap();
    let again = RaftStore::found_from(&config, cluster.id, state());
    assert!(matches!(again, Err(OpenError::Directory { .. })), "a member is there already");
    let first = cluster.start("a").await;
    assert_eq!((first.store.id(), first.store.cluster_id()), (id, Some(cluster.id)));
    leads(&first.store).await;
    let all = within("a list", first.store.list(&Prefix::all(), Read::Linearizable)).await.unwrap();
    assert_eq!(all.0, state().entries().collect::<Vec<_>>());
    assert_eq!(all.1, Revision(1_000_020));
    let next = within("a commit", first.store.commit(Txn::new().put(key("/r/new"), "new"))).await.unwrap();
    assert_eq!(next, Revision(1_000_021));
    let second = cluster.add(&first.store, "b").await;
    applied(&second.store, next).await;
    let here = within("a list", first.store.list(&Prefix::all(), Read::AtLeast(next))).await.unwrap();
    let there = within("a list", second.store.list(&Prefix::all(), Read::AtLeast(next))).await.unwrap();
    assert_eq!(here, there);
    // It is all there after a restart too.
    second.kill().await;
    first.kill().await;
    let first = cluster.start("a").await;
    assert_eq!((first.store.id(), first.store.cluster_id()), (id, Some(cluster.id)));
}
