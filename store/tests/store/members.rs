//! Members that come, go, restart, fall behind and move; and clusters that must not mix.

use std::sync::Arc;

use tamdao_store::backend::raft::{OpenError, PlainDial, RaftConfig, RaftStore};
use tamdao_store::contract::within;
use tamdao_store::kv::{Key, Kv, Membership, Read, Revision, Role, StoreError, Txn};
use uuid::Uuid;

use crate::cluster::{Cluster, Running, applied, leads, until};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn put(store: &RaftStore, name: &str) -> Revision {
    within("a commit", store.commit(Txn::new().put(key(name), name.to_owned()))).await.unwrap()
}

async fn holds(store: &RaftStore, name: &str, read: Read) -> bool {
    within("a read", store.get(&key(name), read)).await.unwrap().is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_member_keeps_its_id_and_what_was_acknowledged() {
    let cluster = Cluster::new(|_| {});
    let member = cluster.found("a").await;
    let id = member.store.id();
    let mut last = Revision::ZERO;
    for round in 0..50 {
        last = put(&member.store, &format!("/r/{round}")).await;
    }
    member.kill().await;
    let member = cluster.start("a").await;
    assert_eq!(member.store.id(), id);
    assert_eq!(member.store.cluster_id(), Some(cluster.id));
    leads(&member.store).await;
    assert_eq!(within("a barrier", member.store.barrier()).await.unwrap(), last);
    assert!(holds(&member.store, "/r/0", Read::Linearizable).await);
    member.store.init(cluster.id).await.unwrap();
    assert!(matches!(member.store.init(Uuid::new_v4()).await, Err(StoreError::Invalid { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_from_a_snapshot_gives_the_same_state_and_a_short_history() {
    let cluster = Cluster::new(|config| {
        config.snapshot_entries = 20;
        config.keep_entries = 5;
    });
    let member = cluster.found("a").await;
    let mut last = Revision::ZERO;
    for round in 0..100 {
        last = put(&member.store, &format!("/r/{}", round % 30)).await;
    }
    until(&member.store, "a snapshot", |status| status.snapshot >= 80).await;
    member.store.set_level(4).await.unwrap();
    let before = member.store.list(&tamdao_store::kv::Prefix::all(), Read::Linearizable).await.unwrap();
    member.kill().await;
    let member = cluster.start("a").await;
    let after = within("a list", member.store.list(&tamdao_store::kv::Prefix::all(), Read::Linearizable))
        .await
        .unwrap();
    assert_eq!(before, after);
    let status = member.store.status();
    assert_eq!(status.level, 4);
    assert!(status.oldest > Revision(0));
    let gone = member.store.watch(&tamdao_store::kv::Prefix::all(), Revision(1)).await.err();
    assert_eq!(gone, Some(StoreError::Compacted { oldest: status.oldest }));
    assert_eq!(put(&member.store, "/next").await, last.next());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_member_catches_up_by_the_log() {
    let cluster = Cluster::new(|_| {});
    let [a, b, c] = cluster.three().await;
    put(&a.store, "/before").await;
    c.kill().await;
    let mut last = Revision::ZERO;
    for round in 0..100 {
        last = put(&a.store, &format!("/while/{round}")).await;
    }
    let c = cluster.start("c").await;
    applied(&c.store, last).await;
    assert_eq!(c.store.status().snapshot, 0);
    assert!(holds(&c.store, "/while/99", Read::AtLeast(last)).await);
    assert_eq!(c.store.status().oldest, Revision::ZERO, "all history came by the log");
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_member_catches_up_by_a_snapshot() {
    let cluster = Cluster::new(|config| {
        config.snapshot_entries = 50;
        config.keep_entries = 10;
    });
    let [a, b, c] = cluster.three().await;
    put(&a.store, "/before").await;
    let id = c.store.id();
    c.kill().await;
    // Larger than one chunk of the transfer.
    let big = vec![7_u8; 300 << 10];
    let mut last = Revision::ZERO;
    for round in 0..400 {
        let value = if round % 50 == 0 { big.clone() } else { vec![1] };
        let txn = Txn::new().put(key(&format!("/while/{round}")), value);
        last = within("a commit", a.store.commit(txn)).await.unwrap();
    }
    until(&a.store, "a purge", |status| status.snapshot >= 300 && status.first_log >= 200).await;
    let c = cluster.start("c").await;
    assert_eq!(c.store.id(), id);
    applied(&c.store, last).await;
    assert!(c.store.status().oldest > Revision::ZERO, "its history begins at the snapshot");
    let all = tamdao_store::kv::Prefix::all();
    let (ours, theirs) =
        (a.store.list(&all, Read::Linearizable).await, c.store.list(&all, Read::AtLeast(last)).await);
    assert_eq!(ours.unwrap(), theirs.unwrap());
    // Digests are taken at the same entries everywhere, so the members can be compared.
    for round in 0..300 {
        last = put(&a.store, &format!("/after/{round}")).await;
    }
    applied(&c.store, last).await;
    let (ours, theirs) = (a.store.status().checkpoints, c.store.status().checkpoints);
    assert!(theirs.iter().any(|checkpoint| ours.contains(checkpoint)), "{ours:?} {theirs:?}");
    assert_eq!(within("a comparison", a.store.compare()).await, []);
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_are_added_and_removed_and_the_leader_can_leave() {
    let cluster = Cluster::new(|_| {});
    let [a, b, c] = cluster.three().await;
    let ids = [a.store.id(), b.store.id(), c.store.id()];
    let voters = |members: &[tamdao_store::kv::Member]| members.iter().filter(|member| member.voter).count();
    let members = within("members", b.store.members()).await.unwrap();
    assert_eq!((members.len(), voters(&members)), (3, 3));
    assert_eq!(members.iter().find(|member| member.id == ids[2]).unwrap().name, "c");
    within("again", a.store.add_member(b.store.seat())).await.unwrap();
    let refused = b.store.remove_member(ids[2]).await;
    let leader = Some(a.address().to_owned());
    assert!(matches!(refused, Err(StoreError::Unavailable { leader: at, .. }) if at == leader));

    within("removal", a.store.remove_member(ids[2])).await.unwrap();
    within("again", a.store.remove_member(ids[2])).await.unwrap();
    c.kill().await;
    let mut thief = b.store.seat();
    thief.id = 42;
    assert!(matches!(a.store.add_member(thief).await, Err(StoreError::Invalid { .. })));

    // A new directory is a new member, even under the same name.
    std::fs::remove_dir_all(cluster.config("c", "").directory).unwrap();
    let c = cluster.add(&a.store, "c").await;
    assert_ne!(c.store.id(), ids[2]);
    within("removal of the leader", a.store.remove_member(ids[0])).await.unwrap();
    until(&b.store, "another leader", |status| {
        status.leader.as_ref().is_some_and(|leader| leader.id != ids[0])
    })
    .await;
    let last = put(&b.store, "/after").await;
    applied(&c.store, last).await;
    assert_eq!(within("members", c.store.members()).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_voter_stays() {
    let cluster = Cluster::new(|_| {});
    let a = cluster.found("a").await;
    assert!(matches!(a.store.remove_member(a.store.id()).await, Err(StoreError::Invalid { .. })));
    put(&a.store, "/still").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request() {
    let cluster = Cluster::new(|_| {});
    let [a, b, c] = cluster.three().await;
    applied(&b.store, put(&a.store, "/before").await).await;
    within("a transfer", a.store.transfer_leadership(b.store.id())).await.unwrap();
    leads(&b.store).await;
    assert_eq!(a.store.status().role, Role::Follower);
    put(&c.store, "/after").await;
    assert!(matches!(b.store.transfer_leadership(42).await, Err(StoreError::Invalid { .. })));
    assert!(matches!(a.store.transfer_leadership(c.store.id()).await, Err(StoreError::Unavailable { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_found_again() {
    let cluster = Cluster::new(|_| {});
    let [a, b, c] = cluster.three().await;
    let (id, old) = (c.store.id(), c.address().to_owned());
    // The old port stays taken, by nobody who answers.
    c.kill().await;
    let _squatter = tokio::net::TcpListener::bind(&old).await;
    let c = cluster.start("c").await;
    assert_ne!(c.address(), old);
    until(&a.store, "the new address", |status| {
        status.members.iter().any(|member| member.id == id && member.address == c.address())
    })
    .await;
    let last = put(&b.store, "/after").await;
    applied(&c.store, last).await;
}

/// One of only two moves, and its old port is taken by somebody who does not answer.
async fn one_of_two_moves(moves: &str) {
    let cluster = Cluster::new(|_| {});
    let a = cluster.found("a").await;
    let b = cluster.add(&a.store, "b").await;
    applied(&b.store, put(&a.store, "/before").await).await;
    let (moving, stays) = if moves == "a" { (a, b) } else { (b, a) };
    let (id, old) = (moving.store.id(), moving.address().to_owned());
    moving.kill().await;
    let _squatter = tokio::net::TcpListener::bind(&old).await;
    let moved = cluster.start(moves).await;
    assert_ne!(moved.address(), old);
    until(&stays.store, "the new address", |status| {
        status.members.iter().any(|member| member.id == id && member.address == moved.address())
    })
    .await;
    let last = put(&stays.store, "/after").await;
    applied(&moved.store, last).await;
    applied(&stays.store, put(&moved.store, "/from there").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_of_two_moves() {
    one_of_two_moves("b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_two_moves() {
    one_of_two_moves("a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_moved_at_once_find_each_other_when_one_goes_back() {
    let cluster = Cluster::new(|_| {});
    let a = cluster.found("a").await;
    let b = cluster.add(&a.store, "b").await;
    applied(&b.store, put(&a.store, "/before").await).await;
    let old = a.address().to_owned();
    a.kill().await;
    b.kill().await;
    let (lost, b) = (cluster.start("a").await, cluster.start("b").await);
    assert!(
        lost.address() != old && lost.store.status().members.iter().all(|seat| seat.address != b.address())
    );
    lost.kill().await;
    let a = cluster.start_at("a", &old).await;
    until(&a.store, "the other's new address", |status| {
        status.members.iter().any(|member| member.address == b.address())
    })
    .await;
    applied(&b.store, put(&a.store, "/after").await).await;
}

/// What the leader of a group says to one that has no seat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_learns_that_it_was_and_does_no_harm() {
    let cluster = Cluster::new(|config| {
        config.commit_timeout = std::time::Duration::from_secs(2);
        config.read_timeout = std::time::Duration::from_secs(2);
    });
    let [a, b, c] = cluster.three().await;
    applied(&c.store, put(&a.store, "/before").await).await;
    assert!(!c.store.status().removed);
    within("removal", a.store.remove_member(c.store.id())).await.unwrap();
    let refused = c.store.barrier().await;
    assert!(
        matches!(&refused, Err(StoreError::Unavailable { reason, .. }) if reason.contains("no seat")),
        "{refused:?}"
    );
    assert!(c.store.status().removed && !a.store.status().removed && !b.store.status().removed);
    let refused = c.store.commit(Txn::new().put(key("/from/outside"), "x".to_owned())).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    applied(&b.store, put(&a.store, "/after").await).await;
    assert!(!holds(&a.store, "/from/outside", Read::Linearizable).await);
    // After a restart it finds out again.
    c.kill().await;
    let c = cluster.start("c").await;
    assert!(c.store.barrier().await.is_err());
    assert!(c.store.status().removed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_of_another_cluster_is_refused() {
    let (one, other) = (
        Cluster::new(|config| config.join_timeout = std::time::Duration::from_secs(2)),
        Cluster::new(|_| {}),
    );
    let (a, x) = (one.found("a").await, other.found("x").await);
    let refused = a.store.add_member(x.store.seat()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "it never catches up: {refused:?}");
    let seats = a.store.members().await.unwrap();
    assert!(seats.iter().any(|member| member.id == x.store.id() && !member.voter));
    put(&a.store, "/still").await;
    put(&x.store, "/still").await;
    within("removal", a.store.remove_member(x.store.id())).await.unwrap();
    assert_eq!(x.store.members().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_one_owner_and_must_be_whole() {
    let cluster = Cluster::new(|_| {});
    let a: Running = cluster.found("a").await;
    let config: RaftConfig = a.config.clone();
    let again = RaftStore::open(config.clone(), Arc::new(PlainDial)).await.err();
    assert!(matches!(again, Some(OpenError::Disk(_))), "{again:?}");
    put(&a.store, "/1").await;
    a.store.snapshot().await.unwrap();
    until(&a.store, "a snapshot", |status| status.snapshot > 0).await;
    a.kill().await;
    std::fs::remove_file(config.directory.join("log.redb")).unwrap();
    let torn = RaftStore::open(config, Arc::new(PlainDial)).await.err();
    assert!(matches!(torn, Some(OpenError::Directory { .. })), "{torn:?}");
}

/// Writes, takes a snapshot, stops, and turns one bit of the snapshot over.
async fn with_a_spoiled_snapshot(cluster: &Cluster, purged: bool) -> (RaftConfig, Revision) {
    let a = cluster.found("a").await;
    let last = put(&a.store, "/1").await;
    a.store.snapshot().await.unwrap();
    until(&a.store, "a snapshot", |status| status.snapshot > 0 && (status.first_log > 0) == purged).await;
    let config = a.kill().await;
    let mut files =
        std::fs::read_dir(config.directory.join("snapshots")).unwrap().map(|file| file.unwrap().path());
    let newest = files.find(|path| path.extension().is_some_and(|end| end == "snapshot")).unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    (config, last)
}

fn set_aside(config: &RaftConfig) -> bool {
    let mut files =
        std::fs::read_dir(config.directory.join("snapshots")).unwrap().map(|file| file.unwrap().path());
    files.any(|path| path.extension().is_some_and(|end| end == "corrupt"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_snapshot_is_set_aside_and_the_log_replaces_it() {
    let cluster = Cluster::new(|_| {});
    let (config, last) = with_a_spoiled_snapshot(&cluster, false).await;
    let a = cluster.start("a").await;
    leads(&a.store).await;
    assert_eq!(within("a barrier", a.store.barrier()).await.unwrap(), last);
    assert!(holds(&a.store, "/1", Read::Linearizable).await);
    assert!(set_aside(&config));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_snapshot_that_the_log_cannot_replace_stops_the_member() {
    let cluster = Cluster::new(|config| config.keep_entries = 0);
    let (config, _) = with_a_spoiled_snapshot(&cluster, true).await;
    for _ in 0..2 {
        match RaftStore::open(config.clone(), Arc::new(PlainDial)).await.err() {
            Some(OpenError::Snapshot(error)) => {
                assert!(error.to_string().contains("add it again"), "{error}")
            }
            other => panic!("{other:?}"),
        }
        assert!(set_aside(&config));
    }
}
