//! The desk on a store in memory whose commits can be kept in the air, lose their replies and meet other writers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::BoxStream;
use tamdao_model::AgencyId;
use tamdao_model::agency::Usage;
use tamdao_model::quota::Measure;
use tamdao_store::backend::memory::MemoryStore;
use tamdao_store::kv::{Batch, Election, Entry, Prefix, Read, Result, Status, Txn};
use tokio::sync::Semaphore;

use super::*;
use crate::clock::SystemClock;

/// What happens to the first commits after the office is taken, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its reply comes when a permit does.
    Held,
    /// Another writer changes the record that it changes, just before it.
    Overtaken,
    /// It is applied, and its reply is lost once the next commit is applied too.
    ReplyLost,
}

struct Store {
    inner: MemoryStore,
    fates: Vec<Fate>,
    commits: AtomicUsize,
    permits: Semaphore,
}

fn agency() -> AgencyId {
    AgencyId(Uuid::from_u128(7))
}

fn add_one(draft: &mut Draft, _: &mut Moment) -> std::result::Result<u32, Refusal> {
    let mut usage = draft.view().usage(agency());
    usage.amounts = usage.amounts.plus(&[(Measure::Vms, 1)].into_iter().collect());
    draft.put(usage.clone());
    Ok(vms(&usage))
}

fn vms(usage: &Usage) -> u32 {
    u32::try_from(usage.amounts.of(&Measure::Vms)).unwrap()
}

#[async_trait]
impl Kv for Store {
    async fn commit(&self, txn: Txn) -> Result<Revision> {
        let number = self.commits.fetch_add(1, Ordering::SeqCst);
        match self.fates.get(number) {
            None => self.inner.commit(txn).await,
            Some(Fate::Held) => {
                let outcome = self.inner.commit(txn).await;
                self.permits.acquire().await.unwrap().forget();
                outcome
            }
            Some(Fate::Overtaken) => {
                let mut other = Draft::new(stored(&self.inner).await, Uuid::new_v4());
                add_one(&mut other, &mut Moment { now: TimeMs(0) }).unwrap();
                self.inner.commit(other.into_txn([])).await.unwrap();
                self.inner.commit(txn).await
            }
            Some(Fate::ReplyLost) => {
                let applied = self.inner.commit(txn).await.unwrap();
                while self.inner.status().revision <= applied {
                    tokio::task::yield_now().await;
                }
                Err(StoreError::Unknown)
            }
        }
    }

    async fn get(&self, key: &Key, read: Read) -> Result<Option<Entry>> {
        self.inner.get(key, read).await
    }

    async fn list(&self, prefix: &Prefix, read: Read) -> Result<(Vec<Entry>, Revision)> {
        self.inner.list(prefix, read).await
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<BoxStream<'static, Result<Batch>>> {
        self.inner.watch(prefix, after).await
    }

    async fn compact(&self, through: Revision) -> Result<()> {
        self.inner.compact(through).await
    }

    async fn barrier(&self) -> Result<Revision> {
        self.inner.barrier().await
    }

    async fn set_level(&self, level: u32) -> Result<u32> {
        self.inner.set_level(level).await
    }

    fn status(&self) -> Status {
        self.inner.status()
    }
}

/// What the store holds, seen by a cache of its own.
async fn stored(store: &MemoryStore) -> View {
    let (cache, feed) = Cache::new(Arc::new(store.clone()));
    let feed = tokio::spawn(feed.run());
    let view = cache.at_least(store.status().revision).await.unwrap();
    feed.abort();
    (*view).clone()
}

struct Bench {
    store: Arc<Store>,
    writer: Writer,
    office: watch::Sender<Option<Leadership>>,
}

async fn bench(fates: &[Fate]) -> Bench {
    let inner = MemoryStore::new("c1");
    let leadership = inner.campaign().await.unwrap();
    let (commits, permits) = (AtomicUsize::new(0), Semaphore::new(0));
    let store = Arc::new(Store { inner, fates: fates.to_vec(), commits, permits });
    let (cache, feed) = Cache::new(store.clone());
    tokio::spawn(feed.run());
    cache.at_least(leadership.epoch).await.unwrap();
    let (office, held) = watch::channel(Some(leadership));
    let (writer, desk) = Writer::new(store.clone(), cache, Arc::new(SystemClock), held);
    tokio::spawn(desk.run());
    Bench { store, writer, office }
}

impl Bench {
    /// Hands in so many decisions, each of which adds one. They fill several batches.
    fn add(
        &self,
        times: usize,
    ) -> impl Future<Output = Vec<std::result::Result<(u32, Revision), Refusal>>> + use<> {
        join_all((0..times).map(|_| self.writer.submit(add_one)).collect::<Vec<_>>())
    }

    async fn sum(&self) -> u32 {
        vms(&stored(&self.store.inner).await.usage(agency()))
    }
}

/// Batches enough that some stand on others.
const MANY: usize = 3 * FOLD;

#[tokio::test]
async fn full_batches_go_out_while_the_first_is_in_the_air() {
    let bench = bench(&[Fate::Held; 3]).await;
    let answers = tokio::spawn(bench.add(MANY));
    let sent = async {
        while bench.store.commits.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), sent).await.expect("three batches are in the air");
    assert!(!answers.is_finished(), "nobody is answered before the commit is known");
    bench.store.permits.add_permits(3);
    let sums: Vec<u32> = answers.await.unwrap().into_iter().map(|answer| answer.unwrap().0).collect();
    assert_eq!(sums, (1..=u32::try_from(MANY).unwrap()).collect::<Vec<_>>(), "each saw all before it");
    assert_eq!(bench.sum().await, u32::try_from(MANY).unwrap());
}

#[tokio::test]
async fn what_stands_on_a_batch_that_failed_is_decided_anew() {
    let bench = bench(&[Fate::Overtaken]).await;
    let answers = bench.add(MANY).await;
    let first = answers[0].as_ref().unwrap().0;
    assert_eq!(first, 2, "it stands on the other writer's change");
    assert!(answers.iter().all(|answer| answer.is_ok()));
    assert_eq!(bench.sum().await, u32::try_from(MANY).unwrap() + 1, "each was done once");
}

#[tokio::test]
async fn a_lost_reply_is_settled_by_the_batch_behind_it() {
    let bench = bench(&[Fate::ReplyLost]).await;
    let answers = bench.add(MANY).await;
    assert!(answers.iter().all(|answer| answer.is_ok()));
    assert_eq!(bench.sum().await, u32::try_from(MANY).unwrap(), "none was done twice");
}

#[tokio::test]
async fn a_refusal_is_told_and_changes_nothing() {
    let bench = bench(&[]).await;
    let refuse = |draft: &mut Draft, moment: &mut Moment| {
        add_one(draft, moment)?;
        Err::<(), _>(Refusal::field("it", "is not wanted"))
    };
    let (refused, added) = tokio::join!(bench.writer.submit(refuse), bench.writer.submit(add_one));
    assert!(refused.is_err());
    assert_eq!(added.unwrap().0, 1);
    assert_eq!(bench.sum().await, 1);
}

#[tokio::test]
async fn what_was_handed_in_under_one_office_is_refused_under_the_next() {
    let bench = bench(&[Fate::Held]).await;
    let first = tokio::spawn(bench.add(1));
    while bench.store.commits.load(Ordering::SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    let waiting = bench.add(MANY);
    let epoch = bench.store.inner.commit(Txn::new().put(Key::leader(), b"c1".to_vec())).await.unwrap();
    let (_holder, lost) = watch::channel(false);
    bench.office.send_replace(Some(Leadership::new(epoch, lost)));
    let anew = bench.add(1);
    bench.store.permits.add_permits(1);
    assert!(first.await.unwrap()[0].is_ok(), "it was committed under the office that it was handed in under");
    for refused in waiting.await {
        let refusal = refused.unwrap_err();
        assert!(refusal.to_string().contains("does not lead"), "{refusal}");
    }
    assert_eq!(anew.await[0].as_ref().unwrap().0, 2);
    assert_eq!(bench.sum().await, 2);
}
