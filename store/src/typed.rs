//! Typed transactions: a draft of the future, and its commit under guards.
//!
//! Its invariant: every record that a draft writes is guarded by the revision that the draft read, so a commit
//! either finds the world as it was drafted from, or changes nothing. A lost reply is settled here by sending the
//! same transaction again: its guards let it happen once. Deliberately absent: decisions, and retries of a
//! conflict, which need the decision to be taken anew.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tamdao_model::{Resource, Scope, Stored};
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use crate::kv::{Guard, Key, Kv, MAX_TXN_BYTES, MAX_TXN_OPS, Op, Read, Revision, StoreError, Txn};
use crate::view::{Envelope, Held, Record, View};

/// How often a transaction with a lost reply is sent again before its outcome is called unknown.
const SETTLE_ATTEMPTS: usize = 5;

/// A view of the future, and what has to be written to reach it. A clone is cheap: it is how a refused decision
/// is taken back.
///
/// What it writes has the revision that comes after the view's, which is the one that it will get unless another
/// writer comes first; then its guards fail. So a draft can stand on another that is not committed yet.
#[derive(Debug, Clone)]
pub struct Draft {
    view: View,
    id: Uuid,
    /// What its commit will be.
    revision: Revision,
    writes: OrdMap<Key, Write>,
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Write {
    guard: Option<Guard>,
    /// None deletes.
    value: Option<Bytes>,
}

impl Draft {
    /// Starts from a view. `id` names the transaction and must be fresh.
    pub fn new(view: View, id: Uuid) -> Self {
        let revision = view.revision.next();
        Self { view, id, revision, writes: OrdMap::new(), bytes: 0 }
    }

    /// The future as drafted so far.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Records to be written, deletions too.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether it fits one transaction beside two more guards, the leader's and the one on the draft before.
    pub fn fits(&self) -> bool {
        self.writes.len() <= MAX_TXN_OPS - 2 && self.bytes < MAX_TXN_BYTES - 4_096
    }

    /// The view once this is committed, for the draft that comes next, and a guard that then holds and did not
    /// before: with it the next one is committed only if this one is. None for a draft that writes nothing.
    pub fn ahead(&self) -> Option<(View, Guard)> {
        let put = self.writes.iter().find(|(_, write)| write.value.is_some());
        let guard = match put {
            Some((key, _)) => Guard::Unchanged(key.clone(), self.revision),
            None => Guard::Absent(self.writes.keys().next()?.clone()),
        };
        Some((View { revision: self.revision, ..self.view.clone() }, guard))
    }

    /// Each record that was written or deleted since an earlier clone of this draft: how it was then, and how it is.
    pub fn since(&self, earlier: &Self) -> Vec<(Option<Record>, Option<Record>)> {
        let keys = earlier.writes.diff(&self.writes).map(|difference| match difference {
            DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key,
            DiffItem::Update { new: (key, _), .. } => key,
        });
        let both = keys.map(|key| (earlier.view.at(key), self.view.at(key)));
        both.filter(|(before, after)| before.is_some() || after.is_some()).collect()
    }

    /// Writes a record, new or changed.
    pub fn put<T: Held>(&mut self, record: T) {
        let key = key_of(&record);
        let value = encode(self.id, &record);
        let before = T::rows_mut(&mut self.view).put(&key, Arc::new(record), self.revision);
        let guard = match before {
            Some(row) => Guard::Unchanged(key.clone(), row.revision),
            None => Guard::Absent(key.clone()),
        };
        self.write(key, guard, Some(value));
    }

    /// Deletes a record; one that is not there changes nothing.
    pub fn delete<T: Held>(&mut self, key: impl std::fmt::Display) {
        let key = key_in::<T>(&key);
        if let Some(row) = T::rows_mut(&mut self.view).remove(&key) {
            let guard = Guard::Unchanged(key.clone(), row.revision);
            self.write(key, guard, None);
        }
    }

    /// Writes a new resource and takes its name.
    pub fn create<T: Held + Resource>(&mut self, resource: T) {
        let key = name_key::<T>(resource.scope(), resource.meta().name.as_str());
        let value = Bytes::from(resource.meta().id.to_string());
        self.write(key.clone(), Guard::Absent(key), Some(value));
        self.put(resource);
    }

    /// Deletes a resource and frees its name.
    pub fn remove<T: Held + Resource>(&mut self, id: Uuid) {
        let Some(row) = T::rows(&self.view).get(id) else { return };
        let name = name_key::<T>(row.scope(), row.meta().name.as_str());
        self.delete::<T>(id);
        self.free(name);
    }

    /// Writes a resource that may have another name, or another owner, than before: the old name is freed and the new
    /// one taken.
    pub fn rename<T: Held + Resource>(&mut self, resource: T) {
        let id = resource.meta().id;
        let Some(row) = T::rows(&self.view).get(id) else { return };
        let old = name_key::<T>(row.scope(), row.meta().name.as_str());
        let new = name_key::<T>(resource.scope(), resource.meta().name.as_str());
        if old != new {
            self.free(old);
            self.write(new.clone(), Guard::Absent(new), Some(Bytes::from(id.to_string())));
        }
        self.put(resource);
    }

    fn free(&mut self, name: Key) {
        // The name's record changes only together with the resource's, which is guarded.
        self.bytes += name.as_str().len();
        match self.writes.get(&name).is_some_and(|write| matches!(write.guard, Some(Guard::Absent(_)))) {
            true => drop(self.writes.remove(&name)),
            false => drop(self.writes.insert(name, Write { guard: None, value: None })),
        }
    }

    fn write(&mut self, key: Key, guard: Guard, value: Option<Bytes>) {
        let size = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let Some(write) = self.writes.get_mut(&key) else {
            self.bytes += 2 * key.as_str().len() + size(&value);
            self.writes.insert(key, Write { guard: Some(guard), value });
            return;
        };
        // The first guard stays: it speaks of what is committed. What is replaced no longer counts.
        self.bytes -= size(&write.value);
        if matches!(write.guard, Some(Guard::Absent(_))) && value.is_none() {
            // Made and deleted in one draft: nothing to do at all.
            self.bytes -= 2 * key.as_str().len();
            self.writes.remove(&key);
        } else {
            self.bytes += size(&value);
            write.value = value;
        }
    }

    /// The transaction, with further guards such as the leader's.
    pub fn into_txn(self, guards: impl IntoIterator<Item = Guard>) -> Txn {
        let mut txn =
            Txn { guards: guards.into_iter().collect(), ops: Vec::with_capacity(self.writes.len()) };
        for (key, write) in self.writes {
            txn.guards.extend(write.guard);
            txn.ops.push(match write.value {
                Some(value) => Op::Put(key, value),
                None => Op::Delete(key),
            });
        }
        txn
    }

    /// The transaction's id, which every record written by it carries.
    pub fn id(&self) -> Uuid {
        self.id
    }
}

/// Commits, and after a lost reply finds out what became of it.
///
/// # Errors
/// As [`Kv::commit`]; `Unknown` only when another writer has come since, or the store cannot be reached.
pub async fn commit(kv: &dyn Kv, id: Uuid, txn: Txn) -> Result<Revision, StoreError> {
    let mut outcome = kv.commit(txn.clone()).await;
    let lost = outcome == Err(StoreError::Unknown);
    for _ in 0..SETTLE_ATTEMPTS {
        match outcome {
            Err(StoreError::Unknown) if has(Mutant::UnknownIsDone) => return kv.barrier().await,
            // The guards let the same transaction happen once, however often it is sent.
            Err(StoreError::Unknown) => outcome = kv.commit(txn.clone()).await,
            Err(StoreError::Conflict { .. }) => break,
            // It says that this attempt did nothing, and not what became of the one whose reply was lost.
            Err(StoreError::Unavailable { .. }) if lost => return Err(StoreError::Unknown),
            settled => return settled,
        }
    }
    match outcome {
        Err(StoreError::Conflict { key }) => match written_by(kv, id, &txn).await? {
            Some(revision) => Ok(revision),
            None => Err(StoreError::Conflict { key }),
        },
        other => other,
    }
}

/// The revision at which this transaction was applied, if one of its records still shows it.
async fn written_by(kv: &dyn Kv, id: Uuid, txn: &Txn) -> Result<Option<Revision>, StoreError> {
    for op in &txn.ops {
        let Op::Put(key, value) = op else { continue };
        // Names hold no envelope; every transaction writes at least one record that does.
        if !value.starts_with(b"{") {
            continue;
        }
        let Some(entry) = kv.get(key, Read::Linearizable).await? else { continue };
        let envelope: Option<Envelope<serde::de::IgnoredAny>> = serde_json::from_slice(&entry.value).ok();
        if envelope.is_some_and(|envelope| envelope.txn == id) {
            return Ok(Some(entry.mod_revision));
        }
    }
    Ok(None)
}

fn key_of<T: Stored>(record: &T) -> Key {
    key_in::<T>(&record.key())
}

fn key_in<T: Stored>(key: &impl std::fmt::Display) -> Key {
    Key::new(format!("/{}/{key}", T::KIND)).expect("kinds, ids and names make valid keys")
}

fn name_key<T: Stored>(scope: Scope, name: &str) -> Key {
    Key::new(format!("/name/{}/{scope}/{name}", T::KIND)).expect("kinds, ids and names make valid keys")
}

fn encode<T: Stored>(txn: Uuid, record: &T) -> Bytes {
    let envelope = Envelope { txn, record };
    Bytes::from(serde_json::to_vec(&envelope).expect("records are plain data"))
}

#[cfg(test)]
mod tests {
    use tamdao_model::agency::Usage;
    use tamdao_model::assignment::Assignment;
    use tamdao_model::quota::Measure;
    use tamdao_model::{AgencyId, NodeId};

    use super::*;

    #[test]
    fn a_record_that_is_written_again_and_again_counts_once() {
        let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
        let node = NodeId(Uuid::from_u128(2));
        draft.put(Assignment::empty(node));
        let once = draft.bytes;
        for _ in 0..100_000 {
            draft.put(Assignment::empty(node));
        }
        assert_eq!((draft.bytes, draft.len()), (once, 1));
        assert!(draft.fits());
        draft.delete::<Assignment>(node);
        assert_eq!((draft.bytes, draft.len()), (0, 0), "made and deleted in one draft is nothing");
    }

    #[test]
    fn what_is_drafted_has_the_revision_of_its_commit_and_the_next_draft_is_guarded_by_it() {
        let agency = AgencyId(Uuid::from_u128(3));
        let view = View { revision: Revision(7), ..View::default() };
        let mut draft = Draft::new(view, Uuid::from_u128(1));
        assert!(draft.ahead().is_none(), "nothing is written yet");
        draft.put(Usage::none(agency));
        // Who decides next on the same draft sees that the record is no longer as it was.
        assert_eq!(draft.view().usages.get(agency).map(|row| row.revision), Some(Revision(8)));
        let key = key_of(&Usage::none(agency));
        let (view, guard) = draft.ahead().unwrap();
        assert_eq!((view.revision, guard), (Revision(8), Guard::Unchanged(key.clone(), Revision(8))));
        let mut next = Draft::new(view, Uuid::from_u128(2));
        next.delete::<Usage>(agency);
        assert_eq!(next.ahead().map(|(_, guard)| guard), Some(Guard::Absent(key.clone())));
        assert_eq!(next.into_txn([]).guards, [Guard::Unchanged(key, Revision(8))]);
    }

    #[test]
    fn what_one_decision_wrote_is_told_apart_from_what_those_before_it_wrote() {
        let usage = |agency: u128, vms: u64| Usage {
            amounts: [(Measure::Vms, vms)].into_iter().collect(),
            ..Usage::none(AgencyId(Uuid::from_u128(agency)))
        };
        let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
        for agency in 1..=3 {
            draft.put(usage(agency, 1));
        }
        let earlier = draft.clone();
        draft.put(usage(2, 5));
        draft.delete::<Usage>(AgencyId(Uuid::from_u128(3)));
        draft.put(usage(4, 1));
        let vms = |record: &Option<Record>| match record {
            Some(Record::Usage(usage)) => usage.amounts.of(&Measure::Vms),
            _ => 0,
        };
        let told = draft.since(&earlier);
        assert_eq!(
            told.iter().map(|(before, after)| (vms(before), vms(after))).collect::<Vec<_>>(),
            [(1, 5), (1, 0), (0, 1)]
        );
        assert!(earlier.since(&earlier.clone()).is_empty());
    }

    /// Loses the first reply, and then answers nothing.
    struct Dying(std::sync::atomic::AtomicBool);

    impl crate::backend::memory::Faults for Dying {
        fn commit(&self, _: &Txn) -> crate::backend::memory::Fate {
            use crate::backend::memory::Fate;
            match self.0.swap(true, std::sync::atomic::Ordering::Relaxed) {
                false => Fate::ReplyLost,
                true => Fate::Refused,
            }
        }
    }

    #[tokio::test]
    async fn a_lost_reply_is_not_called_undone_by_a_store_that_fails_after_it() {
        let store = crate::backend::memory::MemoryStore::new("c1");
        store.inject(Arc::new(Dying(false.into())));
        let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
        draft.put(Usage::none(AgencyId(Uuid::from_u128(3))));
        let outcome = commit(&store, Uuid::from_u128(1), draft.into_txn([])).await;
        assert_eq!(outcome, Err(StoreError::Unknown), "it was written");
        assert_eq!(store.barrier().await, Ok(Revision(1)));
    }

    #[test]
    fn a_second_write_keeps_the_guard_of_the_first() {
        let agency = AgencyId(Uuid::from_u128(3));
        let mut draft = Draft::new(View::default(), Uuid::from_u128(1));
        draft.put(Usage::none(agency));
        draft.put(Usage { amounts: [(Measure::Vms, 1)].into_iter().collect(), ..Usage::none(agency) });
        let txn = draft.into_txn([]);
        assert!(matches!(txn.guards[..], [Guard::Absent(_)]));
        assert_eq!(txn.ops.len(), 1);
    }
}
