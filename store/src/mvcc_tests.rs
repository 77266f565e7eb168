//! The core against a naive model: whole copies of plain maps, one per revision.
//!
//! The model is too slow and too large to ship, and simple enough to be believed. What it checks
//! is the state after every command, the history as watchers see it, and that the digest kept
//! while writing equals the one computed anew.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Plain = BTreeMap<String, (Vec<u8>, u64, u64)>;

type Changed = BTreeMap<String, Option<Vec<u8>>>;

#[derive(Default)]
struct Model {
    now: Plain,
    revision: u64,
    /// What each revision changed: the key, and its value unless it was removed.
    log: Vec<(u64, Changed)>,
}

impl Model {
    fn apply(&mut self, txn: &Txn) -> Applied {
        for guard in &txn.guards {
            let found = self.now.get(guard.key().as_str());
            let holds = match guard {
                Guard::Absent(_) => found.is_none(),
                Guard::Unchanged(_, revision) => {
                    found.is_some_and(|(_, _, modified)| *modified == revision.0)
                }
            };
            if !holds {
                return Applied::Conflict(guard.key().clone());
            }
        }
        let mut changes = Changed::new();
        for op in &txn.ops {
            let key = op.key().as_str().to_owned();
            match op {
                Op::Put(_, value) => {
                    let created = self.now.get(&key).map_or(self.revision + 1, |(_, created, _)| *created);
                    self.now.insert(key.clone(), (value.to_vec(), created, self.revision + 1));
                    changes.insert(key, Some(value.to_vec()));
                }
                Op::Delete(_) => {
                    if self.now.remove(&key).is_some() {
                        changes.insert(key, None);
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision += 1;
            self.log.push((self.revision, changes));
        }
        Applied::Committed(Revision(self.revision))
    }
}

fn key() -> impl Strategy<Value = Key> {
    (0..6u8, 0..2u8).prop_map(|(id, kind)| Key::new(format!("/{}/{id}", ["a", "ab"][kind as usize])).unwrap())
}

fn txn() -> impl Strategy<Value = Txn> {
    let guard = (key(), prop::option::of(0..40u64)).prop_map(|(key, revision)| match revision {
        Some(revision) => Guard::Unchanged(key, Revision(revision)),
        None => Guard::Absent(key),
    });
    let op = (key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..4)));
    (prop::collection::vec(guard, 0..2), prop::collection::btree_map(key(), op, 0..5)).prop_map(
        |(guards, ops)| {
            let ops = ops.into_iter().map(|(key, (_, value))| match value {
                Some(value) => Op::Put(key, value.into()),
                None => Op::Delete(key),
            });
            Txn { guards, ops: ops.collect() }
        },
    )
}

fn plain(view: &View) -> Plain {
    let entries = view.entries().map(|entry| {
        let Entry { key, value, create_revision, mod_revision } = entry;
        (key.as_str().to_owned(), (value.to_vec(), create_revision.0, mod_revision.0))
    });
    entries.collect()
}

proptest! {
    #[test]
    fn the_core_behaves_as_the_naive_model(txns in prop::collection::vec(txn(), 0..40), forget in 0..40u64) {
        let (mut core, mut model) = (Mvcc::new(), Model::default());
        let mut snapshots = Vec::new();
        for txn in txns {
            prop_assert_eq!(model.apply(&txn), core.apply(Command::Txn(txn)));
            prop_assert_eq!(&model.now, &plain(&core.view()));
            snapshots.push((core.view(), model.now.clone()));
        }
        for (view, then) in &snapshots {
            prop_assert_eq!(then, &plain(view), "a snapshot does not change under later writes");
            let again = View::from_entries(view.revision, view.level, view.entries());
            prop_assert_eq!((view.digest(), view.bytes), (again.digest(), again.bytes));
        }
        for prefix in ["/a/", "/ab/", "/"] {
            let prefix = Prefix::new(prefix).unwrap();
            let listed: Vec<String> = core.view().list(&prefix).map(|entry| entry.key.to_string()).collect();
            let expected: Vec<String> =
                model.now.keys().filter(|key| key.starts_with(prefix.as_str())).cloned().collect();
            prop_assert_eq!(listed, expected);
        }
        let forget = Revision(forget);
        let (oldest, ahead) = match core.apply(Command::Compact(forget)) {
            Applied::Ahead(_) => (Revision::ZERO, true),
            Applied::Compacted(oldest) => (oldest, false),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(ahead, forget.0 > model.revision);
        prop_assert_eq!(oldest, if ahead { Revision::ZERO } else { forget });
        let mut cursor = oldest;
        for (revision, changes) in model.log.iter().filter(|(revision, _)| *revision > oldest.0) {
            let commit = core.commit_after(cursor).unwrap();
            cursor = commit.revision;
            prop_assert_eq!(cursor.0, *revision);
            let seen = commit.changes.iter().map(|change| match change {
                Change::Put(entry) => (entry.key.to_string(), Some(entry.value.to_vec())),
                Change::Delete(key) => (key.to_string(), None),
            });
            prop_assert_eq!(&seen.collect::<BTreeMap<_, _>>(), changes);
        }
        prop_assert!(core.commit_after(cursor).is_none());
    }

    #[test]
    fn equal_commands_give_equal_digests_and_any_difference_another(txns in prop::collection::vec(txn(), 1..20)) {
        let (mut one, mut other) = (Mvcc::new(), Mvcc::new());
        for txn in txns {
            one.apply(Command::Txn(txn.clone()));
            other.apply(Command::Txn(txn));
        }
        prop_assert_eq!(one.digest(), other.digest());
        other.apply(Command::Txn(Txn::new().put(Key::new("/a/0").unwrap(), "another")));
        prop_assert_ne!(one.digest(), other.digest());
    }
}

#[test]
fn history_is_bounded_by_commits_and_by_bytes() {
    let key = Key::new("/big").unwrap();
    let mut core = Mvcc::new();
    for _ in 0..HISTORY_COMMITS + 5 {
        core.apply(Command::Txn(Txn::new().put(key.clone(), "")));
    }
    assert_eq!(core.oldest(), Revision(5));
    let mut core = Mvcc::new();
    let value = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..70 {
        core.apply(Command::Txn(Txn::new().put(key.clone(), value.clone())));
    }
    assert!(core.history_bytes <= HISTORY_BYTES);
    let kept = (HISTORY_BYTES >> 20) as u64 - 1;
    assert_eq!(core.oldest(), Revision(70 - kept), "each commit takes a little over a mebibyte");
    assert_eq!(core.get(&key).map(|entry| entry.create_revision), Some(Revision(1)));
}

#[test]
fn a_level_only_rises() {
    let mut core = Mvcc::new();
    assert_eq!(core.apply(Command::SetLevel(2)), Applied::Level(2));
    assert_eq!(core.apply(Command::SetLevel(1)), Applied::Level(2));
    assert_eq!(core.revision(), Revision::ZERO);
}
