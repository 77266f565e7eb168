//! A member's directory on a disk that loses power: log, vote and snapshots after each cut are what they were at a
//! moment not before the last acknowledgement.
//!
//! First without the consensus library and in one thread, so that a seed replays to the byte and the power can go at
//! every single operation; then a whole member with all its threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::FutureExt as _;
use openraft::storage::{IOFlushed, RaftLogStorage as _};
use openraft::type_config::TypeConfigExt as _;
use openraft::vote::RaftLeaderId as _;
use openraft::{EntryPayload, RaftLogReader as _};
use uuid::Uuid;

use super::disk::{Disk, Writer};
use super::log::Log;
use super::snapshot::{Image, Snapshots};
use super::types::{Ballot, LeaderId, LogEntry, LogId, Proposal, SnapshotMeta, StoredMembership, Types};
use super::{CLUSTER_ID, NODE_ID, Opened, PlainDial, RaftConfig, RaftStore};
use crate::files::make_folder;
use crate::files::simulated::{Dice, Lie, Simulated, cuts};
use crate::kv::{Entry, Key, Kv as _, Prefix, Read, Revision, Txn};
use crate::mvcc::View;

const FOLDER: &str = "/data/member";
const CLUSTER: Uuid = Uuid::from_u128(7);
const NODE: u64 = 1;

type Written = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// A log as its readers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    vote: Option<Ballot>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, (LogId, Bytes)>,
}

impl Held {
    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, (id, _))| *id).max(self.purged)
    }

    fn id(&self, index: u64) -> Option<LogId> {
        let purged = self.purged.filter(|id| id.index == index);
        self.entries.get(&index).map(|(id, _)| *id).or(purged)
    }
}

/// What a member was told to write, and what it was told is written.
struct Known {
    /// Whether it has a number of its own.
    numbered: bool,
    /// What the log held after each write since the last restart.
    history: Vec<Held>,
    /// Of these, the newest that was acknowledged.
    certain: usize,
    committed: Option<LogId>,
    /// The states of which snapshots were begun, and the newest that was acknowledged.
    images: BTreeMap<LogId, [u8; 32]>,
    snapshot: Option<LogId>,
}

struct Member {
    log: Log,
    writer: Writer,
    snapshots: Arc<Snapshots>,
    image: Option<Image>,
}

fn config() -> RaftConfig {
    let mut config = RaftConfig::new(FOLDER, "a", "127.0.0.1:1");
    config.keep_snapshots = 2;
    config
}

/// Opens the directory as a controller does that starts.
fn open(disk: &Simulated, known: &mut Known) -> Result<Member, String> {
    let (files, config, told) =
        (disk.mounted(), config(), |error: &dyn std::error::Error| format!("it does not open: {error}"));
    make_folder(&*files, &config.directory).map_err(|error| told(&error))?;
    let opened = Disk::prepare(&*files, &config.directory.join("log.redb"));
    let (disk, mut writer) = opened.map_err(|error| told(&error))?;
    let number = disk.get(NODE_ID).map_err(|error| told(&error))?;
    if number.is_none() {
        if known.numbered {
            return Err("its log is gone".into());
        }
        disk.put(CLUSTER_ID, CLUSTER.as_bytes().to_vec(), true, Box::new(|_| {}));
        let (done, written) = std::sync::mpsc::channel();
        let done = Box::new(move |result: std::io::Result<()>| {
            let _ = done.send(result.is_ok());
        });
        disk.put(NODE_ID, NODE.to_be_bytes().to_vec(), true, done);
        writer.work();
        known.numbered = written.recv() == Ok(true);
    }
    let opened = Opened::read_with(files, &config, &Arc::new(disk)).map_err(|error| told(&error))?;
    writer.work();
    if (opened.id, opened.cluster) != (NODE, Some(CLUSTER)) {
        return Err(format!("it is member {} of cluster {:?}", opened.id, opened.cluster));
    }
    Ok(Member { log: opened.log, writer, snapshots: opened.snapshots, image: opened.image })
}

async fn held(log: &mut Log) -> Result<Held, String> {
    let mut held =
        Held { vote: log.read_vote().await.unwrap_or(None), purged: log.purged(), ..Held::default() };
    let entries = log.try_get_log_entries(0..).await.map_err(|error| error.to_string())?;
    for entry in entries {
        let EntryPayload::Normal(Proposal(bytes)) = entry.payload else {
            return Err(format!("{} was never written", entry.log_id));
        };
        held.entries.insert(entry.log_id.index, (entry.log_id, bytes));
    }
    Ok(held)
}

/// Opens after a cut and compares with what is known; what was found is what the next life begins with.
async fn check(disk: &Simulated, known: &mut Known) -> Result<(), String> {
    let mut member = open(disk, known)?;
    let found = held(&mut member.log).await?;
    let candidates = &known.history[known.certain..];
    if !candidates.contains(&found) {
        let certain = &candidates[0];
        return Err(format!(
            "the log holds {:?} to {:?} and the vote {:?}; {:?} to {:?} and {:?} were acknowledged",
            found.purged,
            found.last(),
            found.vote,
            certain.purged,
            certain.last(),
            certain.vote
        ));
    }
    let committed = member.log.read_committed().await.map_err(|error| error.to_string())?;
    if committed > known.committed {
        return Err(format!("it says that {committed:?} is committed, and {:?} is", known.committed));
    }
    let image = member.image.map(|image| (image.meta.last_log_id, image.view.digest()));
    let at = image.as_ref().and_then(|(at, _)| *at);
    if at < known.snapshot {
        return Err(format!("the snapshot of {:?} is lost, there is {at:?}", known.snapshot));
    }
    if let Some((at, (_, digest))) = at.zip(image)
        && known.images.get(&at) != Some(&digest)
    {
        return Err(format!("the snapshot of {at} holds something else"));
    }
    (known.history, known.certain, known.snapshot) = (vec![found], 0, at);
    Ok(())
}

/// Writes until the power goes or enough was written.
async fn work(disk: &Simulated, dice: &mut Dice, known: &mut Known, bursts: usize) {
    let Ok(mut member) = open(disk, known) else { return };
    let mut waited: Vec<(usize, Written)> = Vec::new();
    for _ in 0..bursts {
        for _ in 0..=dice.below(3) {
            if let Some(written) = write(&mut member, dice, known).await {
                waited.push((known.history.len() - 1, written));
            }
        }
        member.writer.work();
        for (at, mut written) in std::mem::take(&mut waited) {
            match (&mut written).now_or_never() {
                Some(Ok(())) => known.certain = known.certain.max(at),
                Some(Err(_)) => return,
                None => waited.push((at, written)),
            }
        }
    }
}

/// One write, and what tells that it is on disk where something does.
async fn write(member: &mut Member, dice: &mut Dice, known: &mut Known) -> Option<Written> {
    let mut held = known.history[known.history.len() - 1].clone();
    let mut log = member.log.clone();
    let mut written: Option<Written> = match dice.below(12) {
        0..=5 => {
            let term = held.vote.as_ref().map_or(1, |vote| vote.leader_id.term);
            let (sender, receiver) = Types::oneshot();
            let mut entries = Vec::new();
            for _ in 0..=dice.below(4) {
                let index = held.last().map_or(0, |id| id.index + 1);
                let id = LogId::new(LeaderId::new(term, NODE).to_committed(), index);
                let size = if dice.below(10) == 0 { 30_000 } else { 2_000 };
                let bytes = Bytes::from(vec![dice.draw() as u8; dice.below(size) as usize]);
                held.entries.insert(index, (id, bytes.clone()));
                entries.push(LogEntry { log_id: id, payload: EntryPayload::Normal(Proposal(bytes)) });
            }
            log.append(entries, IOFlushed::signal(sender)).await.ok()?;
            Some(Box::pin(async {
                receiver.await.unwrap_or_else(|_| Err(std::io::Error::other("nobody told")))
            }))
        }
        6 => {
            let term = held.vote.as_ref().map_or(1, |vote| vote.leader_id.term + 1);
            let vote = Ballot { leader_id: LeaderId::new(term, NODE), committed: dice.below(2) == 0 };
            held.vote = Some(vote);
            Some(Box::pin(async move { log.save_vote(&vote).await }))
        }
        7 => {
            let least = known.committed.map_or(0, |id| id.index);
            let last = held.last()?.index;
            let after = held.id(least + dice.below((last + 1).saturating_sub(least)))?;
            held.entries.retain(|index, _| *index <= after.index);
            Some(Box::pin(async move { log.truncate_after(Some(after)).await }))
        }
        8 => {
            let certain = &known.history[known.certain];
            let last = certain.last()?.index.min(held.last()?.index);
            let committed = held.id(dice.below(last + 1))?;
            // An entry may have been cut off and written again since.
            if certain.id(committed.index) != Some(committed) || Some(committed) <= known.committed {
                return None;
            }
            known.committed = Some(committed);
            log.save_committed(known.committed).await.ok()?;
            return None;
        }
        9 => {
            snapshot(&member.snapshots, known);
            return None;
        }
        10 => {
            let through = held.id(dice.below(known.snapshot?.index + 1))?;
            held.entries.retain(|index, _| *index > through.index);
            held.purged = held.purged.max(Some(through));
            log.purge(through).await.ok()?;
            None
        }
        _ => {
            assert_eq!(
                self::held(&mut log).await.map(|mut read| {
                    // The vote is told when it is on disk.
                    read.vote = held.vote;
                    read
                }),
                Ok(held)
            );
            return None;
        }
    };
    // What is first asked sends it.
    let early = written.as_mut().and_then(|written| written.now_or_never());
    known.history.push(held);
    if early.is_some() { None } else { written }
}

/// Takes a snapshot of what is committed.
fn snapshot(snapshots: &Snapshots, known: &mut Known) {
    let Some(id) = known.committed.filter(|id| Some(*id) > known.snapshot) else { return };
    let revision = Revision(id.index + 1);
    let value = Bytes::from(vec![id.index as u8; 3_000]);
    let entry = |at: u64| Entry {
        key: Key::new(format!("/{at:04}")).unwrap(),
        value: value.clone(),
        create_revision: revision,
        mod_revision: revision,
    };
    let view = View::from_entries(revision, 1, (0..=id.index % 5).map(entry));
    known.images.insert(id, view.digest());
    let meta = SnapshotMeta { last_log_id: Some(id), last_membership: StoredMembership::default() };
    if snapshots.write(&Image { meta, view }).is_ok() {
        known.snapshot = Some(id);
    }
}

fn nothing() -> Known {
    Known {
        numbered: false,
        history: vec![Held::default()],
        certain: 0,
        committed: None,
        images: BTreeMap::new(),
        snapshot: None,
    }
}

/// Three lives, each of which the power ends.
async fn live(seed: u64, lie: Option<Lie>) -> Result<(), String> {
    let (disk, mut dice, mut known) = (Simulated::new(), Dice::new(seed), nothing());
    disk.lie(lie);
    for _ in 0..3 {
        disk.cut_after(1 + dice.below(500));
        work(&disk, &mut dice, &mut known, 40).await;
        disk.restart(&mut dice);
        check(&disk, &mut known).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whenever_the_power_goes() {
    for seed in 0..cuts(40) {
        live(seed, None).await.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

/// The same story again and again, with the power gone at each of its operations in turn.
#[tokio::test]
async fn nothing_acknowledged_is_lost_at_whichever_operation_the_power_goes() {
    for seed in 0..cuts(20).div_ceil(20) {
        for cut in 1.. {
            let (disk, mut dice, mut known) = (Simulated::new(), Dice::new(seed), nothing());
            disk.cut_after(cut);
            work(&disk, &mut dice, &mut known, 10).await;
            let enough = disk.operations() < cut;
            disk.restart(&mut Dice::new(cut));
            let checked = check(&disk, &mut known).await;
            checked.unwrap_or_else(|wrong| panic!("seed {seed}, operation {cut}: {wrong}"));
            if enough {
                break;
            }
        }
    }
}

/// Each sync is there for a reason: without it the same seeds find something lost.
#[tokio::test]
async fn a_sync_that_is_left_out_is_found() {
    let lies: [(&str, Lie); 5] = [
        ("the log", |path| path.ends_with("log.redb")),
        ("a snapshot", |path| path.extension().is_some_and(|extension| extension == "partial")),
        ("the folder of the snapshots", |path| path.ends_with("snapshots")),
        ("the member's folder", |path| path == Path::new(FOLDER)),
        ("the folder above", |path| path == Path::new("/data")),
    ];
    for (what, lie) in lies {
        let mut found = false;
        for seed in 0..150 {
            // The file of the log may be such that reading it panics.
            let lived = std::panic::AssertUnwindSafe(live(seed, Some(lie))).catch_unwind().await;
            found |= !matches!(lived, Ok(Ok(())));
            if found {
                break;
            }
        }
        assert!(found, "nobody misses the sync of {what}");
    }
}

/// A whole member that commits until the power goes.
async fn serve(disk: &Simulated, told: &mut BTreeMap<Key, (u64, u64)>, next: &mut u64) {
    let Ok(store) = RaftStore::open_on(disk.mounted(), quick(), Arc::new(PlainDial)).await else { return };
    if store.init(CLUSTER).await.is_ok() {
        loop {
            *next += 1;
            let key = Key::new(format!("/{}", *next % 7)).unwrap();
            let numbers = told.entry(key.clone()).or_default();
            numbers.1 = *next;
            match store.commit(Txn::new().put(key, next.to_string())).await {
                Ok(_) => numbers.0 = *next,
                Err(_) => break,
            }
        }
    }
    store.shutdown().await;
}

fn quick() -> RaftConfig {
    let mut config = config();
    config.heartbeat = Duration::from_millis(20);
    config.election_min = Duration::from_millis(60);
    config.election_max = Duration::from_millis(100);
    config.commit_timeout = Duration::from_secs(10);
    (config.snapshot_entries, config.keep_entries) = (10, 5);
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_comes_back_with_all_that_it_acknowledged() {
    for seed in 0..cuts(20).div_ceil(4) {
        let (disk, mut dice) = (Simulated::new(), Dice::new(seed));
        // For each key the last number that was acknowledged, and the last that was tried.
        let (mut told, mut next) = (BTreeMap::new(), 0);
        for _ in 0..3 {
            disk.cut_after(1 + dice.below(700));
            serve(&disk, &mut told, &mut next).await;
            disk.restart(&mut dice);
            let store = RaftStore::open_on(disk.mounted(), quick(), Arc::new(PlainDial)).await;
            let store = store.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            store.init(CLUSTER).await.unwrap();
            let (listed, _) = store.list(&Prefix::all(), Read::Linearizable).await.unwrap();
            let found: BTreeMap<Key, u64> = listed
                .into_iter()
                .map(|entry| (entry.key, std::str::from_utf8(&entry.value).unwrap().parse().unwrap()))
                .collect();
            for (key, (acknowledged, tried)) in &mut told {
                let number = found.get(key).copied().unwrap_or(0);
                assert!(
                    (*acknowledged..=*tried).contains(&number),
                    "seed {seed}: {key} is {number}, {acknowledged} was acknowledged and {tried} tried"
                );
                // A write of unknown outcome that is not there now must not come later.
                (*acknowledged, *tried) = (number, number);
            }
            store.shutdown().await;
        }
    }
}

/// A byte that the disk turned over is found when the file is opened, or it was in a place that holds nothing.
#[tokio::test]
async fn a_corrupt_log_is_refused_with_a_way_out() {
    let (disk, mut dice, mut known) = (Simulated::new(), Dice::new(1), nothing());
    work(&disk, &mut dice, &mut known, 40).await;
    disk.restart(&mut Dice::new(1));
    check(&disk, &mut known).await.unwrap();
    let path = Path::new(FOLDER).join("log.redb");
    let mut refused = 0;
    for _ in 0..cuts(150) {
        let at = dice.below(disk.length(&path) as u64) as usize;
        let spoilt = disk.copied();
        spoilt.spoil(&path, at);
        match check(&spoilt, &mut known).await {
            Ok(()) => {}
            Err(reason) => {
                assert!(reason.contains("add it again"), "byte {at}: {reason}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

/// A full disk stops the member, which says so and loses nothing; with room again it goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_member_until_there_is_room() {
    let disk = Simulated::new();
    let open = || RaftStore::open_on(disk.mounted(), quick(), Arc::new(PlainDial));
    let store = open().await.unwrap();
    store.init(CLUSTER).await.unwrap();
    let key = |at: u64| Key::new(format!("/{at}")).unwrap();
    store.commit(Txn::new().put(key(0), "0")).await.unwrap();
    disk.limit(Some(0));
    let mut acknowledged = 0;
    let mut at = 0;
    while store.status().error.is_none() {
        at += 1;
        if store.commit(Txn::new().put(key(at), vec![7; 100_000])).await.is_ok() {
            acknowledged = at;
        }
    }
    let error = store.status().error.unwrap();
    assert!(error.contains("no storage space"), "{error}");
    let told = store.commit(Txn::new().put(key(at + 1), "")).await;
    assert!(told.is_err(), "{told:?}");
    store.shutdown().await;
    disk.limit(None);
    let store = open().await.unwrap();
    for at in 0..=acknowledged {
        assert!(store.get(&key(at), Read::Linearizable).await.unwrap().is_some(), "{at} is lost");
    }
    store.commit(Txn::new().put(key(at + 2), "")).await.unwrap();
    store.shutdown().await;
}
