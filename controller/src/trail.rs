//! The trail: this controller's way into its own journal for what is in no transaction, and how far the journal has come.
//!
//! Its invariants: what waits for the journal is bounded, whatever is refused: of each sort of request so many are told
//! one by one in a minute, the rest as one record for each caller, method and reason with their count, and beyond that
//! as one for the sort; and a flood of one sort takes nothing from the others. No count is lost while the process lives.
//! Deliberately absent: the writing (`reconcile/journalist.rs`).

pub mod read;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Mutex;

use tamdao_model::audit::Audit;
use tamdao_model::{ControllerId, TimeMs};
use tamdao_store::journal::End;
use tamdao_store::kv::Revision;
use tokio::sync::watch;

use crate::auth::Principal;
use crate::rate::TOO_OFTEN;

const MINUTE_MS: u64 = 60_000;
/// Records of one sort that are told one by one in a minute.
const SINGLES: u32 = 60;
/// Callers, methods and reasons of one sort that have a record of their own in a minute, beyond those.
const FOLDS: usize = 32;
/// Records that wait for a journal that cannot be written.
const QUEUE: usize = 5_000;
/// At most so many are written at once.
const AT_ONCE: usize = 500;

/// See the module.
#[derive(Debug)]
pub struct Trail {
    pub me: ControllerId,
    /// Where the journal lies.
    pub directory: PathBuf,
    waiting: Mutex<Waiting>,
    reached: watch::Sender<Reached>,
    export: Mutex<Option<Export>>,
}

/// How far a receiver has the audit records of this journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// host:port.
    pub receiver: String,
    /// It has all audit records through this entry of the journal.
    pub delivered: u64,
    /// Why it gets nothing now; empty if it does.
    pub trouble: String,
}

/// How far the journal has come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reached {
    /// It holds every commit through this one.
    pub through: Revision,
    /// How many of those that were handed in here are in it.
    pub noted: u64,
    /// None before it was opened.
    pub end: Option<End>,
}

/// The sorts of records, each with an allowance of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sort {
    RefusedAnonymous,
    Refused,
    /// Only counted: it is all alike, and must not hide what else is refused.
    TooOften,
    Done,
}

/// What is told as one: caller, host, method, code and reason; all empty for the rest of a sort.
type Alike = (Sort, [String; 5]);

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Audit>,
    /// How many ever came into the queue.
    noted: u64,
    minute: u64,
    singles: BTreeMap<Sort, u32>,
    folds: BTreeMap<Alike, Audit>,
}

impl Trail {
    pub fn new(me: ControllerId, directory: PathBuf) -> Self {
        let (waiting, reached, export) = (Mutex::default(), watch::Sender::default(), Mutex::default());
        Self { me, directory, waiting, reached, export }
    }

    /// How far the receiver is; none where there is none.
    pub fn export(&self) -> Option<Export> {
        self.export.lock().expect("no holder of the lock panics").clone()
    }

    /// Says so. It must be said before anything is let go that a receiver may not have.
    pub fn exported(&self, export: Export) {
        *self.export.lock().expect("no holder of the lock panics") = Some(export);
    }

    /// Takes a record that is in no transaction. It is on disk soon, not yet.
    pub fn note(&self, record: Audit) {
        let mut waiting = self.waiting();
        waiting.turn(record.time);
        let sort = match record.is_refused() {
            false => Sort::Done,
            true if record.principal == Principal::Anonymous.to_string() => Sort::RefusedAnonymous,
            true if record.reason == TOO_OFTEN => Sort::TooOften,
            true => Sort::Refused,
        };
        let full = waiting.queue.len() >= QUEUE;
        let told = waiting.singles.entry(sort).or_default();
        if *told < SINGLES && !full && sort != Sort::TooOften {
            *told += 1;
            waiting.push(record);
        } else {
            waiting.fold(sort, record);
        }
    }

    /// What is to be written next, the oldest first; it waits until it [is written](Self::wrote).
    pub fn next(&self, now: TimeMs) -> Vec<Audit> {
        let mut waiting = self.waiting();
        waiting.turn(now);
        waiting.queue.iter().take(AT_ONCE).cloned().collect()
    }

    /// So many of what was to be written next are on disk, and all commits through a revision.
    pub fn wrote(&self, count: usize, through: Revision, end: &End) {
        self.waiting().queue.drain(..count);
        self.reached.send_modify(|reached| {
            reached.noted += count as u64;
            reached.through = through;
            reached.end = Some(end.clone());
        });
    }

    /// How many came in so far, told one by one.
    pub fn noted(&self) -> u64 {
        self.waiting().noted
    }

    /// How far the journal has come, and every time that it comes further.
    pub fn reached(&self) -> watch::Receiver<Reached> {
        self.reached.subscribe()
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder of the lock panics")
    }
}

impl Waiting {
    fn push(&mut self, record: Audit) {
        self.queue.push_back(record);
        self.noted += 1;
    }

    /// A new minute: what was told as one is told, and the allowances begin anew. While the queue is full it goes on
    /// being counted.
    fn turn(&mut self, now: TimeMs) {
        let minute = now.0 / MINUTE_MS;
        if minute == self.minute || self.queue.len() >= QUEUE {
            return;
        }
        self.minute = minute;
        self.singles.clear();
        for record in std::mem::take(&mut self.folds).into_values() {
            self.push(record);
        }
    }

    fn fold(&mut self, sort: Sort, record: Audit) {
        let host = record.peer.rsplit_once(':').map_or("", |(host, _)| host).to_owned();
        let words =
            [&record.principal, &host, &record.method, &record.code, &record.reason].map(Clone::clone);
        let known = self.folds.contains_key(&(sort, words.clone()));
        let room = self.folds.keys().filter(|(of, _)| *of == sort).count() < FOLDS;
        let alike = if known || room { words } else { Default::default() };
        let of_many = alike.iter().all(String::is_empty);
        let fold = self.folds.entry((sort, alike)).or_insert_with(|| {
            let record = Audit { peer: host, agency: String::new(), name: String::new(), ..record };
            let record = Audit { request_id: None, count: 0, ..record };
            match of_many {
                false => record,
                true => Audit {
                    principal: "various".into(),
                    role: None,
                    role_agency: None,
                    peer: String::new(),
                    via: None,
                    method: "various".into(),
                    reason: "Various".into(),
                    ..record
                },
            }
        });
        fold.count = fold.count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use tamdao_model::audit::OK;
    use uuid::Uuid;

    use super::*;

    fn record(time: u64, principal: &str, host: u32, code: &str) -> Audit {
        Audit {
            id: Uuid::nil().into(),
            time: TimeMs(time),
            principal: principal.into(),
            role: None,
            role_agency: None,
            peer: format!("192.0.2.{host}:{time}"),
            via: None,
            controller: ControllerId(Uuid::nil()),
            method: "VmService/GetVm".into(),
            agency: "a".into(),
            name: "web".into(),
            request_id: None,
            code: code.into(),
            reason: "NotAllowed".into(),
            changes: Vec::new(),
            count: 1,
        }
    }

    fn trail() -> Trail {
        Trail::new(ControllerId(Uuid::nil()), PathBuf::new())
    }

    /// Writes all that waits, and says how many records that were and for how many requests they stand.
    fn write(trail: &Trail, now: u64) -> (usize, u32) {
        let end = End { sequence: 1, revision: Revision(1), keys: Vec::new(), hash: String::new() };
        let (mut records, mut requests) = (0, 0);
        loop {
            let next = trail.next(TimeMs(now));
            if next.is_empty() {
                return (records, requests);
            }
            records += next.len();
            requests += next.iter().map(|record| record.count).sum::<u32>();
            trail.wrote(next.len(), Revision(1), &end);
        }
    }

    #[test]
    fn a_flood_is_told_in_few_records_with_its_count_and_drowns_nobody_else() {
        let trail = trail();
        for at in 0..10_000 {
            trail.note(record(at % 1_000, "anonymous", at as u32 % 50, "Unauthenticated"));
        }
        trail.note(record(999, "token:x:deploy", 1, "PermissionDenied"));
        trail.note(record(999, "admin:1", 1, OK));
        assert_eq!(write(&trail, 1_000), (SINGLES as usize + 2, SINGLES + 2));
        // The rest follows with the next minute: one for each of 32 callers, and one for all others.
        assert_eq!(write(&trail, MINUTE_MS), (FOLDS + 1, 10_000 - SINGLES));
        assert_eq!(write(&trail, 9 * MINUTE_MS), (0, 0));
    }

    #[test]
    fn who_asks_too_often_is_counted_and_hides_no_other_refusal() {
        let trail = trail();
        for at in 0..10_000 {
            let noisy = record(at % 1_000, "token:x:noisy", 1, "ResourceExhausted");
            trail.note(Audit { reason: TOO_OFTEN.into(), ..noisy });
        }
        trail.note(record(999, "token:x:deploy", 1, "PermissionDenied"));
        assert_eq!(write(&trail, 1_000), (1, 1));
        assert_eq!(write(&trail, MINUTE_MS), (1, 10_000));
    }

    #[test]
    fn what_cannot_be_written_waits_within_bounds_and_is_all_counted() {
        let trail = trail();
        for minute in 0..1_000 {
            for at in 0..100 {
                trail.note(record(minute * MINUTE_MS + at, "token:x:deploy", 1, "NotFound"));
            }
        }
        let (records, requests) = write(&trail, 1_000 * MINUTE_MS);
        assert!(records <= QUEUE + SINGLES as usize + FOLDS + 1, "{records}");
        assert_eq!(requests, 100_000);
    }

    #[test]
    fn what_was_not_written_is_given_again() {
        let trail = trail();
        trail.note(record(1, "admin:1", 1, "NotFound"));
        assert_eq!(trail.next(TimeMs(2)), trail.next(TimeMs(3)));
        assert_eq!((trail.noted(), trail.reached().borrow().noted), (1, 0));
        assert_eq!(write(&trail, 4), (1, 1));
        assert_eq!(trail.reached().borrow().noted, 1);
    }
}
