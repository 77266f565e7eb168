//! The suite that every backend passes unchanged: what the words of [`crate::kv`] mean.
//!
//! A backend gives a [`Fixture`] and calls [`contract_tests!`](crate::contract_tests), which makes
//! one test of each case. The cases name outcomes and never durations, take no faults for granted
//! and inject none; what a backend does under its own faults is tested beside that backend.
//! Deliberately absent: sleeping. What has to come is waited for, under one generous deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::BoxStream;

use crate::kv::{
    Batch, Change, Entry, Key, Kv, LEADER_KEY, Leadership, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_OPS, Prefix,
    Read, Result, Revision, StoreError, Txn,
};

/// How long anything may take before a case calls it lost; generous, and never what is measured.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One store under test, empty but for what its leader needs, with two handles on it.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The handle under test.
    fn kv(&self) -> Arc<dyn Kv>;

    /// Another handle on the same store; another controller where there are several.
    fn peer(&self) -> Arc<dyn Kv>;

    /// Makes one of the store's controllers the leader, anew.
    async fn campaign(&self) -> Leadership;
}

/// Makes one test of every case, each with a fixture of its own.
#[macro_export]
macro_rules! contract_tests {
    ($fixture:expr) => {
        $crate::contract_tests! { @cases $fixture;
            a_record_is_written_read_and_removed
            a_list_is_sorted_and_ends_at_its_prefix
            a_commit_takes_one_revision_and_nothing_takes_none
            a_conflict_names_its_key_and_writes_nothing
            limits_are_typed_and_name_what_is_wrong
            racing_writers_lose_no_update
            a_peer_reads_what_was_acknowledged
            a_revision_never_reached_is_ahead
            watch_is_ordered
            watch_is_unique
            watch_is_atomic
            watch_is_reliable
            watch_is_resumable
            watch_is_bookmarked
            a_forgotten_history_is_compacted
            a_watcher_that_never_reads_holds_up_nobody
            levels_only_rise
            an_epoch_fences_the_leader_before
        }
    };
    (@cases $fixture:expr; $($case:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let fixture = $fixture.await;
            $crate::contract::within(stringify!($case), $crate::contract::$case(&fixture)).await;
        }
    )*};
}

/// Runs a case or one of its steps under the deadline.
///
/// # Panics
/// When the deadline passes: a wait that never ends is a failure with a name.
pub async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, step)
        .await
        .unwrap_or_else(|_| panic!("{what} did not end in {DEADLINE:?}"))
}

fn key(text: &str) -> Key {
    Key::new(text).expect("cases use valid keys")
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text).expect("cases use valid prefixes")
}

fn done<T>(result: Result<T>) -> T {
    result.expect("this call must succeed")
}

async fn put(kv: &Arc<dyn Kv>, at: &str, value: &str) -> Revision {
    done(kv.commit(Txn::new().put(key(at), value.to_owned())).await)
}

async fn get(kv: &Arc<dyn Kv>, at: &str) -> Option<Entry> {
    done(kv.get(&key(at), Read::Linearizable).await)
}

type Watched = BoxStream<'static, Result<Batch>>;

async fn follow(kv: &Arc<dyn Kv>, at: &str, after: Revision) -> Watched {
    done(kv.watch(&prefix(at), after).await)
}

/// The next batch that changes something, and the bookmarks that came before it.
async fn next_change(watched: &mut Watched) -> Batch {
    loop {
        let batch = within("a watched change", watched.next()).await;
        let batch = done(batch.expect("a watch does not end by itself"));
        if !batch.is_bookmark() {
            return batch;
        }
    }
}

/// Writes, reads and deletes one record, and checks the revisions that it shows.
pub async fn a_record_is_written_read_and_removed(store: &impl Fixture) {
    let kv = store.kv();
    assert_eq!(get(&kv, "/vm/1").await, None);
    let first = put(&kv, "/vm/1", "a").await;
    let second = put(&kv, "/vm/1", "b").await;
    let entry = get(&kv, "/vm/1").await.expect("it was written");
    assert_eq!((entry.key.as_str(), &entry.value[..]), ("/vm/1", &b"b"[..]));
    assert_eq!((entry.create_revision, entry.mod_revision), (first, second));
    done(kv.commit(Txn::new().unchanged(key("/vm/1"), second).delete(key("/vm/1"))).await);
    assert_eq!(get(&kv, "/vm/1").await, None);
    let again = put(&kv, "/vm/1", "").await;
    let entry = get(&kv, "/vm/1").await.expect("an empty value is a value");
    assert_eq!((entry.create_revision, entry.mod_revision), (again, again));
}

/// A list holds all keys below its prefix in order, and no neighbour's.
pub async fn a_list_is_sorted_and_ends_at_its_prefix(store: &impl Fixture) {
    let kv = store.kv();
    for name in ["/b/3", "/b/1", "/bb/2", "/a/9", "/b/2/x", "/b-/4", "/b0/4"] {
        put(&kv, name, name).await;
    }
    let last = put(&kv, "/b/ộ", "").await;
    let (entries, revision) = done(kv.list(&prefix("/b/"), Read::AtLeast(last)).await);
    let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["/b/1", "/b/2/x", "/b/3", "/b/ộ"]);
    assert!(revision >= last);
    let (all, _) = done(kv.list(&Prefix::all(), Read::Linearizable).await);
    assert_eq!(all.iter().filter(|entry| entry.key.as_str() != LEADER_KEY).count(), 8);
    assert_eq!(done(kv.list(&prefix("/none/"), Read::Linearizable).await).0, []);
}

/// All operations of a commit share the next revision; a commit without effect has none.
pub async fn a_commit_takes_one_revision_and_nothing_takes_none(store: &impl Fixture) {
    let kv = store.kv();
    let first = put(&kv, "/n/0", "").await;
    let both = Txn::new().put(key("/n/1"), "").put(key("/n/2"), "").delete(key("/n/0"));
    let second = done(kv.commit(both).await);
    assert!(second > first);
    for name in ["/n/1", "/n/2"] {
        assert_eq!(get(&kv, name).await.map(|entry| entry.mod_revision), Some(second));
    }
    assert_eq!(done(kv.commit(Txn::new()).await), second);
    assert_eq!(done(kv.commit(Txn::new().delete(key("/n/absent"))).await), second);
    assert_eq!(put(&kv, "/n/3", "").await, second.next());
}

/// Each kind of guard fails with the key that it names, and then nothing of the rest is done.
pub async fn a_conflict_names_its_key_and_writes_nothing(store: &impl Fixture) {
    let kv = store.kv();
    let old = put(&kv, "/g/1", "old").await;
    let new = put(&kv, "/g/1", "new").await;
    let write = || Txn::new().put(key("/g/2"), "x").put(key("/g/1"), "x");
    let failing = [
        (write().absent(key("/g/1")), "/g/1"),
        (write().unchanged(key("/g/1"), old), "/g/1"),
        (write().unchanged(key("/g/1"), new).unchanged(key("/g/none"), new), "/g/none"),
        (write().unchanged(key("/g/none"), Revision::ZERO), "/g/none"),
        (write().absent(key("/g/none")).absent(key("/g/1")), "/g/1"),
    ];
    for (txn, name) in failing {
        assert_eq!(kv.commit(txn).await, Err(StoreError::Conflict { key: key(name) }));
        assert_eq!(get(&kv, "/g/1").await.map(|entry| entry.mod_revision), Some(new));
        assert_eq!(get(&kv, "/g/2").await, None);
    }
    done(kv.commit(write().absent(key("/g/2")).unchanged(key("/g/1"), new)).await);
}

/// The largest transaction passes, one more of anything is refused before it is proposed.
pub async fn limits_are_typed_and_name_what_is_wrong(store: &impl Fixture) {
    let kv = store.kv();
    let ops = |n| (0..n).fold(Txn::new(), |txn, i| txn.put(key(&format!("/l/{i}")), "x"));
    let guards = |n| (0..n).fold(Txn::new(), |txn, i| txn.absent(key(&format!("/l/none/{i}"))));
    let sized = |n: usize| Txn::new().put(key("/l/big"), vec![7; n - "/l/big".len()]);
    done(kv.commit(ops(MAX_TXN_OPS)).await);
    done(kv.commit(guards(MAX_TXN_OPS)).await);
    let revision = done(kv.commit(sized(MAX_TXN_BYTES)).await);
    for (txn, limit, actual) in [
        (ops(MAX_TXN_OPS + 1), MAX_TXN_OPS, MAX_TXN_OPS + 1),
        (guards(MAX_TXN_OPS + 1), MAX_TXN_OPS, MAX_TXN_OPS + 1),
        (sized(MAX_TXN_BYTES + 1), MAX_TXN_BYTES, MAX_TXN_BYTES + 1),
    ] {
        match kv.commit(txn).await {
            Err(StoreError::TooLarge { limit: stated, actual: found, .. }) => {
                assert_eq!((stated, found), (limit, actual));
            }
            other => panic!("{other:?}"),
        }
    }
    match kv.commit(Txn::new().put(key("/l/1"), "a").delete(key("/l/1"))).await {
        Err(StoreError::Invalid { reason }) => assert!(reason.contains("/l/1"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let long = format!("/{}", "k".repeat(MAX_KEY_BYTES));
    assert!(matches!(Key::new(long), Err(StoreError::TooLarge { limit: MAX_KEY_BYTES, .. })));
    for bad in ["", "vm", "/vm/", "/v\nm"] {
        assert!(matches!(Key::new(bad), Err(StoreError::Invalid { .. })), "{bad:?}");
    }
    assert_eq!(done(kv.barrier().await), revision, "a refused transaction takes no revision");
}

/// Many writers raise one number by compare and swap, through both handles; none is lost.
pub async fn racing_writers_lose_no_update(store: &impl Fixture) {
    const WRITERS: u64 = 8;
    const ROUNDS: u64 = 5;
    let counter = key("/counter");
    put(&store.kv(), "/counter", "0").await;
    let writers = (0..WRITERS).map(|writer| {
        let kv = if writer % 2 == 0 { store.kv() } else { store.peer() };
        let counter = counter.clone();
        async move {
            for _ in 0..ROUNDS {
                loop {
                    let entry = done(kv.get(&counter, Read::Linearizable).await).expect("it was written");
                    let number: u64 =
                        std::str::from_utf8(&entry.value).expect("digits").parse().expect("digits");
                    let txn = Txn::new()
                        .unchanged(counter.clone(), entry.mod_revision)
                        .put(counter.clone(), (number + 1).to_string());
                    match kv.commit(txn).await {
                        Ok(_) => break,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    });
    join_all(writers).await;
    let total = get(&store.kv(), "/counter").await.expect("it was written");
    assert_eq!(&total.value[..], (WRITERS * ROUNDS).to_string().as_bytes());
}

/// Both kinds of read and a barrier on another handle see what this handle was told is written.
pub async fn a_peer_reads_what_was_acknowledged(store: &impl Fixture) {
    let (kv, peer) = (store.kv(), store.peer());
    for round in 0..20 {
        let name = format!("/p/{round}");
        let (writer, reader) = if round % 2 == 0 { (&kv, &peer) } else { (&peer, &kv) };
        let revision = put(writer, &name, "x").await;
        let read = match round % 3 {
            0 => Read::AtLeast(revision),
            1 => Read::Linearizable,
            _ => Read::AtLeast(done(reader.barrier().await)),
        };
        let entry = done(reader.get(&key(&name), read).await).expect("it was acknowledged");
        assert_eq!(entry.mod_revision, revision);
    }
}

/// A reader that comes from the future is told so, instead of waiting for ever or being misled.
pub async fn a_revision_never_reached_is_ahead(store: &impl Fixture) {
    let kv = store.kv();
    let current = put(&kv, "/f", "x").await;
    let future = Revision(current.0 + 1000);
    let ahead = StoreError::Ahead { current };
    assert_eq!(kv.get(&key("/f"), Read::AtLeast(future)).await, Err(ahead.clone()));
    assert_eq!(kv.list(&Prefix::all(), Read::AtLeast(future)).await, Err(ahead.clone()));
    assert_eq!(kv.watch(&Prefix::all(), future).await.err(), Some(ahead.clone()));
    assert_eq!(kv.compact(future).await, Err(ahead));
}

/// Batches come by rising revision, whatever was written where.
pub async fn watch_is_ordered(store: &impl Fixture) {
    let kv = store.kv();
    let start = done(kv.barrier().await);
    let mut watched = follow(&store.peer(), "/o/", start).await;
    let writers = (0..4).map(|writer| {
        let kv = store.kv();
        async move {
            for round in 0..10 {
                put(&kv, &format!("/o/{writer}"), &round.to_string()).await;
            }
        }
    });
    join_all(writers).await;
    let mut last = start;
    let mut values = std::collections::BTreeMap::new();
    for _ in 0..40 {
        let batch = next_change(&mut watched).await;
        assert!(batch.revision > last);
        last = batch.revision;
        for change in batch.changes {
            let Change::Put(entry) = change else { panic!("nothing was removed") };
            assert_eq!(entry.mod_revision, batch.revision);
            let number: u64 = std::str::from_utf8(&entry.value).expect("digits").parse().expect("digits");
            let expected = values.insert(entry.key, number).map_or(0, |before| before + 1);
            assert_eq!(number, expected, "each writer's own order is kept");
        }
    }
}

/// No change comes twice, neither by one watch nor by the bookmarks between.
pub async fn watch_is_unique(store: &impl Fixture) {
    let kv = store.kv();
    let start = done(kv.barrier().await);
    let mut watched = follow(&kv, "/u/", start).await;
    let mut expected = Vec::new();
    for round in 0..30 {
        expected.push(put(&kv, "/u/1", &round.to_string()).await);
        put(&kv, "/other", "x").await;
    }
    let end = put(&kv, "/u/end", "x").await;
    expected.push(end);
    let mut seen = Vec::new();
    let mut told = start;
    while told < end {
        let batch = done(watched.next().await.expect("a watch does not end by itself"));
        assert!(batch.revision > told, "neither a batch nor a bookmark repeats a revision");
        told = batch.revision;
        if !batch.is_bookmark() {
            seen.push(batch.revision);
        }
    }
    assert_eq!(seen, expected);
}

/// All of a commit below the prefix comes in one batch, in its order, and nothing of another.
pub async fn watch_is_atomic(store: &impl Fixture) {
    let kv = store.kv();
    put(&kv, "/t/gone", "x").await;
    let start = put(&kv, "/t/kept", "x").await;
    let mut watched = follow(&store.peer(), "/t/", start).await;
    let many = (0..100).fold(Txn::new(), |txn, i| txn.put(key(&format!("/t/{:03}", 99 - i)), "x"));
    let revision = done(kv.commit(many.put(key("/elsewhere"), "x").delete(key("/t/gone"))).await);
    let batch = next_change(&mut watched).await;
    assert_eq!(batch.revision, revision);
    let mut expected: Vec<String> = (0..100).map(|i| format!("/t/{:03}", 99 - i)).collect();
    expected.push("/t/gone".into());
    let keys: Vec<String> = batch.changes.iter().map(|change| change.key().to_string()).collect();
    assert_eq!(keys, expected);
    assert_eq!(batch.changes.last(), Some(&Change::Delete(key("/t/gone"))));
}

/// What is folded from a watch equals what a list shows: no change is left out.
pub async fn watch_is_reliable(store: &impl Fixture) {
    let kv = store.kv();
    let start = done(kv.barrier().await);
    let mut watched = follow(&store.peer(), "/r/", start).await;
    let mut last = start;
    for round in 0..60_u64 {
        let name = key(&format!("/r/{}", round * 7 % 11));
        let txn =
            if round % 3 == 2 { Txn::new().delete(name) } else { Txn::new().put(name, round.to_string()) };
        last = done(kv.commit(txn).await);
    }
    let (listed, at) = done(kv.list(&prefix("/r/"), Read::Linearizable).await);
    assert_eq!(at, last);
    let mut folded = std::collections::BTreeMap::new();
    let mut told = start;
    while told < last {
        let batch = next_change(&mut watched).await;
        told = batch.revision;
        for change in batch.changes {
            match change {
                Change::Put(entry) => folded.insert(entry.key.clone(), entry),
                Change::Delete(key) => folded.remove(&key),
            };
        }
    }
    assert_eq!(folded.into_values().collect::<Vec<_>>(), listed);
}

/// A watch begun again at any revision that was told, on another handle, continues without a gap.
pub async fn watch_is_resumable(store: &impl Fixture) {
    let kv = store.kv();
    let mut revisions = vec![done(kv.barrier().await)];
    for round in 0..10 {
        revisions.push(put(&kv, "/s/1", &round.to_string()).await);
    }
    for (at, from) in revisions.iter().enumerate() {
        let handle = if at % 2 == 0 { store.peer() } else { store.kv() };
        let mut watched = follow(&handle, "/s/", *from).await;
        for expected in &revisions[at + 1..] {
            assert_eq!(next_change(&mut watched).await.revision, *expected);
        }
    }
}

/// A watch whose prefix is quiet still learns how far it has come, and can be resumed from there.
pub async fn watch_is_bookmarked(store: &impl Fixture) {
    let kv = store.kv();
    let start = put(&kv, "/q/1", "x").await;
    let mut watched = follow(&kv, "/q/", start).await;
    let mut last = start;
    for round in 0..5 {
        last = put(&kv, "/loud", &round.to_string()).await;
    }
    let mut told = start;
    while told < last {
        let batch = done(within("a bookmark", watched.next()).await.expect("a watch does not end by itself"));
        assert!(batch.is_bookmark());
        assert!(batch.revision > told && batch.revision <= last);
        told = batch.revision;
    }
    drop(watched);
    done(kv.compact(last).await);
    let mut resumed = follow(&kv, "/q/", told).await;
    let change = put(&kv, "/q/2", "x").await;
    assert_eq!(next_change(&mut resumed).await.revision, change);
}

/// A cursor older than history is told the oldest one that works; records are not touched.
pub async fn a_forgotten_history_is_compacted(store: &impl Fixture) {
    let kv = store.kv();
    let first = put(&kv, "/c/1", "a").await;
    let second = put(&kv, "/c/1", "b").await;
    let third = put(&kv, "/c/2", "c").await;
    let mut slow = follow(&kv, "/c/", first).await;
    done(kv.compact(second).await);
    done(kv.compact(first).await);
    let compacted = StoreError::Compacted { oldest: second };
    assert_eq!(kv.watch(&Prefix::all(), first).await.err(), Some(compacted.clone()));
    let told = within("the end of a slow watch", slow.next()).await;
    assert_eq!(told, Some(Err(compacted)), "a watcher overtaken by compaction learns of it");
    assert!(slow.next().await.is_none(), "and then its stream ends");
    let mut watched = follow(&kv, "/c/", second).await;
    assert_eq!(next_change(&mut watched).await.revision, third);
    assert_eq!(get(&kv, "/c/1").await.map(|entry| entry.create_revision), Some(first));
}

/// Commits go on while a watcher sleeps, and it then finds all of them.
pub async fn a_watcher_that_never_reads_holds_up_nobody(store: &impl Fixture) {
    let kv = store.kv();
    let start = done(kv.barrier().await);
    let mut asleep = follow(&kv, "/w/", start).await;
    let mut last = start;
    for round in 0..200 {
        last = put(&kv, "/w/1", &round.to_string()).await;
    }
    let mut seen = 0;
    loop {
        let batch = next_change(&mut asleep).await;
        seen += 1;
        if batch.revision == last {
            break;
        }
    }
    assert_eq!(seen, 200);
}

/// The level of encodings never goes down and every handle learns of it.
pub async fn levels_only_rise(store: &impl Fixture) {
    let (kv, peer) = (store.kv(), store.peer());
    assert_eq!(kv.status().level, 0);
    assert_eq!(done(kv.set_level(3).await), 3);
    assert_eq!(done(peer.set_level(2).await), 3);
    done(kv.barrier().await);
    assert_eq!(kv.status().level, 3);
}

/// A new office has a higher epoch, and what the office before still sends is refused.
pub async fn an_epoch_fences_the_leader_before(store: &impl Fixture) {
    let kv = store.kv();
    let before = store.campaign().await;
    let write = |office: &Leadership, value: &'static str| {
        let mut txn = Txn::new().put(key("/e/1"), value);
        txn.guards.push(office.guard());
        txn
    };
    done(kv.commit(write(&before, "before")).await);
    let stale = write(&before, "stale");
    drop(before);
    let after = store.campaign().await;
    assert_eq!(kv.commit(stale).await, Err(StoreError::Conflict { key: Key::leader() }));
    let revision = done(store.peer().commit(write(&after, "after")).await);
    assert!(revision > after.epoch);
    assert!(!after.is_lost());
    let leader = get(&kv, LEADER_KEY).await.expect("the leader wrote it");
    assert_eq!(leader.mod_revision, after.epoch);
}
