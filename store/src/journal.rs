//! The journal: what happened, for as long as the disk is given to it, in files that only grow.
//!
//! Its invariants: an entry that [`Journal::append`] has returned for is on disk; every entry holds the hash of the
//! one before it, so a missing or changed one is found by [`verify`]; after a crash the torn end of the last file,
//! and nothing else, is cut off. An entry is one line of JSON, so that people and other programs can read it.
//! Deliberately absent: what is worth an entry, and following the store; the controller does both.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use tamdao_model::TimeMs;

use crate::files::{Files, Handle, How, Stream, System, make_folder};
use crate::kv::Revision;

#[cfg(test)]
mod power_cuts;
mod read;

use read::first_of;
pub use read::{Reader, Told, Verified, verify};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// A file takes this many bytes, then the next one begins.
const SEGMENT_BYTES: u64 = 64 << 20;
/// The hash before the first entry of all.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What goes wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    /// An entry before the end is not what was written.
    #[error("{path}, line {line}: {reason}")]
    Damaged { path: PathBuf, line: usize, reason: String },
}

/// One entry as a line holds it.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Counts the entries from 1.
    sequence: u64,
    /// The commit that it is part of.
    revision: u64,
    /// The record's key, unique in its commit.
    key: String,
    record: Box<RawValue>,
    /// Hash of the entry before.
    previous: String,
    /// SHA-256 over previous, sequence, revision, key and record, hex.
    hash: String,
    /// The entry with which the write of this one began, if another: all before that one was on disk by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<u64>,
}

impl Line {
    fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{}\n{}\n{}\n{}\n", self.previous, self.sequence, self.revision, self.key));
        hash.update(self.record.get());
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What is to be written.
#[derive(Debug, Clone)]
pub struct Entry {
    pub revision: Revision,
    pub key: String,
    /// JSON.
    pub record: String,
}

/// Where a journal ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub sequence: u64,
    pub revision: Revision,
    /// Keys of the entries of that revision: its commit may be written in part.
    pub keys: Vec<String>,
    /// Of the last entry, hex; it covers all before it.
    pub hash: String,
}

/// What a journal keeps; beyond either bound the oldest files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub bytes: u64,
    /// Since an entry was written; a file goes when its last entry is older.
    pub age_ms: u64,
}

/// The files of one controller, open for writing.
#[derive(Debug)]
pub struct Journal {
    files: Arc<dyn Files>,
    directory: PathBuf,
    file: Arc<dyn Handle>,
    path: PathBuf,
    bytes: u64,
    end: End,
    /// When something was last written.
    written: TimeMs,
    keep: Keep,
}

impl Journal {
    /// Opens the journal, or begins one, and cuts off what a crash left half written.
    ///
    /// # Errors
    /// When the files cannot be used, or an entry before the end of the last file is damaged.
    pub fn open(directory: &Path, keep: Keep) -> Result<Self, JournalError> {
        Self::open_on(Arc::new(System), directory, keep)
    }

    /// The same on files that are not the operating system's.
    pub(crate) fn open_on(files: Arc<dyn Files>, directory: &Path, keep: Keep) -> Result<Self, JournalError> {
        make_folder(&*files, directory).map_err(failed(directory))?;
        let segments = segments(&*files, directory)?;
        let mut end = End { sequence: 0, revision: Revision::ZERO, keys: Vec::new(), hash: GENESIS.into() };
        let path = segments.last().cloned().unwrap_or_else(|| segment(directory, 1));
        let mut good = 0;
        if !segments.is_empty() {
            let (read, bytes) = read_last(&*files, &path)?;
            good = bytes;
            match read {
                Some(read) => end = read,
                // The file was begun and nothing of it reached the disk: the one before it has the end.
                None => {
                    if let Some(before) = segments.len().checked_sub(2).map(|at| &segments[at]) {
                        end = read_last(&*files, before)?.0.unwrap_or(end);
                    }
                }
            }
        }
        let file = files.open(&path, How::Write).map_err(failed(&path))?;
        // Taken before the file is touched: its time is that of its last entry.
        let written = modified(&*file, &path)?;
        if file.size().map_err(failed(&path))? != good {
            file.set_size(good).map_err(failed(&path))?;
        }
        file.sync().map_err(failed(&path))?;
        files.sync_folder(directory).map_err(failed(directory))?;
        Ok(Self { files, directory: directory.into(), file, path, bytes: good, end, written, keep })
    }

    /// Where it ends.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Writes entries in order and returns when they are on disk. Those that are there already are left out. Each day
    /// has files of its own, so that what is too old can go by whole files.
    ///
    /// # Errors
    /// When the disk fails; what was written before stays.
    pub fn append(&mut self, entries: &[Entry], now: TimeMs) -> Result<(), JournalError> {
        if self.bytes > 0 && now.0 / DAY_MS != self.written.0 / DAY_MS && entries.iter().any(|e| !self.has(e))
        {
            self.turn()?;
        }
        let (mut text, before) = (String::new(), self.end.clone());
        for entry in entries {
            if self.has(entry) {
                continue;
            }
            text.push_str(&self.next(entry, before.sequence + 1));
            text.push('\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        let written = self.file.write_at(text.as_bytes(), self.bytes).and_then(|()| self.file.sync());
        if let Err(error) = written {
            // What a failed sync leaves may be in memory only, and must not be found and taken for written.
            let _ = self.file.set_size(self.bytes);
            self.end = before;
            return Err(failed(&self.path)(error));
        }
        self.bytes += text.len() as u64;
        self.written = now;
        if self.bytes >= SEGMENT_BYTES {
            self.turn()?;
        }
        Ok(())
    }

    /// Writes what is part of no commit, as [`Self::append`] does, behind the entries of the last one.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn note(&mut self, entries: Vec<Entry>, now: TimeMs) -> Result<(), JournalError> {
        let revision = self.end.revision;
        let entries: Vec<Entry> = entries.into_iter().map(|entry| Entry { revision, ..entry }).collect();
        self.append(&entries, now)
    }

    fn has(&self, entry: &Entry) -> bool {
        entry.revision < self.end.revision
            || (entry.revision == self.end.revision && self.end.keys.contains(&entry.key))
    }

    /// Lets the oldest files go, as far as the journal keeps too much. The one that is being written stays. Where somebody
    /// is to have all entries and has them only through `delivered`, a file that he lacks is not let go for its age; for
    /// its size it is, since a full disk would end the journal.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn trim(&self, now: TimeMs, delivered: Option<u64>) -> Result<(), JournalError> {
        let mut all = Vec::new();
        for path in segments(&*self.files, &self.directory)? {
            let file = self.files.open(&path, How::Read).map_err(failed(&path))?;
            let (size, written) = (file.size().map_err(failed(&path))?, modified(&*file, &path)?);
            all.push((path, size, written));
        }
        let mut size: u64 = all.iter().map(|(_, size, _)| size).sum();
        for pair in all.windows(2) {
            let ((oldest, bytes, written), (next, ..)) = (&pair[0], &pair[1]);
            let wanted = delivered.is_some_and(|through| first_of(next) > through + 1);
            let old = now.0.saturating_sub(written.0) > self.keep.age_ms;
            if *oldest == self.path || size <= self.keep.bytes && (wanted || !old) {
                break;
            }
            size -= bytes;
            self.files.remove(oldest).map_err(failed(oldest))?;
            // Each by itself: one that came back after a power cut behind one that did not would be a gap.
            self.files.sync_folder(&self.directory).map_err(failed(&self.directory))?;
        }
        Ok(())
    }

    /// The line of an entry, in a write that begins with entry `first`; the end moves with it.
    fn next(&mut self, entry: &Entry, first: u64) -> String {
        // What is not JSON is kept as a string rather than lost.
        let record = RawValue::from_string(entry.record.clone())
            .unwrap_or_else(|_| serde_json::value::to_raw_value(&entry.record).expect("a string is JSON"));
        let mut line = Line {
            sequence: self.end.sequence + 1,
            revision: entry.revision.0,
            key: entry.key.clone(),
            record,
            previous: self.end.hash.clone(),
            hash: String::new(),
            first: Some(first).filter(|first| *first != self.end.sequence + 1),
        };
        line.hash = line.digest();
        if entry.revision != self.end.revision {
            self.end.keys.clear();
        }
        self.end.keys.push(entry.key.clone());
        (self.end.sequence, self.end.revision, self.end.hash) =
            (line.sequence, entry.revision, line.hash.clone());
        serde_json::to_string(&line).expect("plain data")
    }

    /// Begins the next file.
    fn turn(&mut self) -> Result<(), JournalError> {
        self.path = segment(&self.directory, self.end.sequence + 1);
        self.file = self.files.open(&self.path, How::Write).map_err(failed(&self.path))?;
        self.bytes = 0;
        self.files.sync_folder(&self.directory).map_err(failed(&self.directory))
    }
}

/// The end of a file and how many of its bytes are whole lines. A torn last write is no damage, it is a crash; a disk
/// may have kept its end without its middle.
fn read_last(files: &dyn Files, path: &Path) -> Result<(Option<End>, u64), JournalError> {
    let mut reader = BufReader::new(Stream::new(files.open(path, How::Read).map_err(failed(path))?));
    let (mut end, mut good, mut number): (Option<End>, u64, usize) = (None, 0, 0);
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text).map_err(failed(path))?;
        number += 1;
        if read == 0 || text.last() != Some(&b'\n') {
            return Ok((end, good));
        }
        let line: Line = match serde_json::from_slice(&text) {
            Ok(line) => line,
            // A line that is not readable is of the torn last write only if no later write follows.
            Err(error) => {
                let next = end.as_ref().map_or(first_of(path), |end| end.sequence + 1);
                let later = read_on(reader, next).map_err(failed(path))?;
                let reason = error.to_string();
                return match later {
                    false => Ok((end, good)),
                    true => Err(JournalError::Damaged { path: path.into(), line: number, reason }),
                };
            }
        };
        let revision = Revision(line.revision);
        let mut keys =
            end.take().filter(|end| end.revision == revision).map(|end| end.keys).unwrap_or_default();
        keys.push(line.key);
        end = Some(End { sequence: line.sequence, revision, keys, hash: line.hash });
        good += read as u64;
    }
}

/// Whether what is left has a line of a write that began after entry `next`, which was then on disk.
fn read_on(reader: impl BufRead, next: u64) -> io::Result<bool> {
    for text in reader.split(b'\n') {
        let line: Option<Line> = serde_json::from_slice(&text?).ok();
        if line.is_some_and(|line| line.first.unwrap_or(line.sequence) > next) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn segment(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("journal-{first:020}.jsonl"))
}

/// The files, the oldest first.
fn segments(files: &dyn Files, directory: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let mut found = Vec::new();
    for path in files.list(directory).map_err(failed(directory))? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("journal-") && name.ends_with(".jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// When a file was last written.
fn modified(file: &dyn Handle, path: &Path) -> Result<TimeMs, JournalError> {
    let since =
        file.modified().map_err(failed(path))?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> JournalError + use<> {
    let path = path.to_path_buf();
    move |source| JournalError::File { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;

    use super::*;

    const ALL: Keep = Keep { bytes: u64::MAX, age_ms: u64::MAX };

    fn entry(revision: u64, key: &str) -> Entry {
        Entry { revision: Revision(revision), key: key.into(), record: format!("{{\"at\":{revision}}}") }
    }

    fn counted(directory: &Path) -> (usize, u64) {
        let verified = verify(directory, None).unwrap();
        (verified.files, verified.entries)
    }

    fn only_file(directory: &Path) -> PathBuf {
        segments(&System, directory).unwrap().remove(0)
    }

    #[test]
    fn what_was_written_is_there_after_opening_again_and_is_not_written_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        journal.append(&[entry(3, "a"), entry(3, "b"), entry(5, "c")], journal.written).unwrap();
        drop(journal);
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        assert_eq!((journal.end().sequence, journal.end().revision), (3, Revision(5)));
        journal
            .append(&[entry(3, "a"), entry(5, "c"), entry(5, "d"), entry(9, "e")], journal.written)
            .unwrap();
        assert_eq!(counted(directory.path()), (1, 5));
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_was_torn() {
        let whole = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(whole.path(), ALL).unwrap();
        journal.append(&[entry(1, "a")], journal.written).unwrap();
        let first = fs::metadata(only_file(whole.path())).unwrap().len();
        journal.append(&[entry(2, "b")], journal.written).unwrap();
        let bytes = fs::read(only_file(whole.path())).unwrap();
        for length in first as usize..bytes.len() {
            let torn = tempfile::tempdir().unwrap();
            fs::write(segment(torn.path(), 1), &bytes[..length]).unwrap();
            let mut journal = Journal::open(torn.path(), ALL).unwrap();
            assert_eq!(journal.end().revision, Revision(1), "torn at {length}");
            journal.append(&[entry(2, "b")], journal.written).unwrap();
            assert_eq!(fs::read(only_file(torn.path())).unwrap(), bytes);
        }
    }

    /// Where and why a journal is damaged, once its lines were changed so.
    fn damage(lines: &[String], end: &End) -> (usize, String) {
        let directory = tempfile::tempdir().unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(segment(directory.path(), 1), text).unwrap();
        match verify(directory.path(), Some(end)) {
            Err(JournalError::Damaged { line, reason, .. }) => (line, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whatever_is_changed_missing_or_moved_is_found_and_where() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        journal.append(&[1, 2, 3, 4].map(|at| entry(at, "a")), journal.written).unwrap();
        let end = journal.end().clone();
        assert_eq!(verify(directory.path(), Some(&end)).unwrap().hash, end.hash);
        let text = fs::read_to_string(only_file(directory.path())).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for at in 0..4 {
            let mut changed = lines.clone();
            changed[at] = changed[at].replace("{\"at\":", "{\"at\":1");
            assert_eq!(damage(&changed, &end), (at + 1, "its content was changed".into()));
            let mut missing = lines.clone();
            missing.remove(at);
            let (line, reason) = damage(&missing, &end);
            match at {
                0 => assert_eq!((line, &*reason), (1, "the file does not begin with entry 1")),
                3 => assert_eq!((line, &*reason), (3, "entries 4 to 4 are missing at the end")),
                _ => assert_eq!(
                    (line, reason),
                    (at + 1, format!("entry {} does not follow entry {at}", at + 2))
                ),
            }
        }
        for at in 1..3 {
            let mut moved = lines.clone();
            moved.swap(at, at + 1);
            assert_eq!(damage(&moved, &end).0, at + 1);
        }
        // One that is written anew, with hashes that fit, is not the one that was written.
        let forged = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(forged.path(), ALL).unwrap();
        journal.append(&[1, 2, 3, 5].map(|at| entry(at, "a")), journal.written).unwrap();
        let forged = fs::read_to_string(only_file(forged.path())).unwrap();
        let forged: Vec<String> = forged.lines().map(str::to_owned).collect();
        assert_eq!(damage(&forged, &end), (4, "entry 4 is not what was written".into()));
    }

    #[test]
    fn what_belongs_to_no_commit_stands_behind_the_last_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        journal.append(&[entry(3, "a")], journal.written).unwrap();
        journal.note(vec![entry(0, "x"), entry(0, "y")], journal.written).unwrap();
        drop(journal);
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        // The rest of that commit is not taken for written.
        journal.append(&[entry(3, "a"), entry(3, "b"), entry(4, "a")], journal.written).unwrap();
        let mut reader = Reader::new(directory.path(), 0, TimeMs(0));
        let told: Vec<_> =
            std::iter::from_fn(|| reader.read().unwrap()).map(|t| (t.revision.0, t.key)).collect();
        let expected = [(3, "a"), (3, "x"), (3, "y"), (3, "b"), (4, "a")];
        assert_eq!(told, expected.map(|(at, key)| (at, key.to_owned())));
    }

    #[test]
    fn a_reader_goes_on_over_files_from_any_entry_and_never_sees_half_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        let mut reader = Reader::new(directory.path(), 0, TimeMs(0));
        let mut told = Vec::new();
        for day in 1..=4 {
            journal.append(&[entry(2 * day, "a"), entry(2 * day + 1, "b")], TimeMs(day * DAY_MS)).unwrap();
            // What is being written by somebody else.
            let mut torn = OpenOptions::new().append(true).open(&journal.path).unwrap();
            torn.write_all(b"{\"sequence\":9").unwrap();
            told.extend(std::iter::from_fn(|| reader.read().unwrap()).map(|told| told.sequence));
            torn.set_len(journal.bytes).unwrap();
        }
        assert_eq!((left(directory.path()), &*told), (4, &[1, 2, 3, 4, 5, 6, 7, 8][..]));
        for after in 0..=8 {
            let mut reader = Reader::new(directory.path(), after, TimeMs(0));
            let rest: Vec<u64> =
                std::iter::from_fn(|| reader.read().unwrap()).map(|told| told.sequence).collect();
            assert_eq!(rest, (after + 1..=8).collect::<Vec<_>>());
        }
        // The oldest were let go: it begins with what there is.
        fs::remove_file(segment(directory.path(), 1)).unwrap();
        assert_eq!(
            Reader::new(directory.path(), 0, TimeMs(0)).read().unwrap().map(|told| told.sequence),
            Some(3)
        );
    }

    /// A journal of three days with one entry each, last written when the day began.
    fn three_days(keep: Keep) -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), keep).unwrap();
        for day in 1..=3 {
            journal.append(&[entry(day, "a")], TimeMs(day * DAY_MS)).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(day * DAY_MS);
            OpenOptions::new().write(true).open(&journal.path).unwrap().set_modified(time).unwrap();
        }
        (directory, journal)
    }

    fn left(directory: &Path) -> usize {
        segments(&System, directory).unwrap().len()
    }

    #[test]
    fn a_journal_is_kept_for_its_time() {
        let (directory, journal) = three_days(Keep { age_ms: 10 * DAY_MS, ..ALL });
        for (now, files) in [(3 * DAY_MS, 3), (11 * DAY_MS, 3), (11 * DAY_MS + 1, 2), (99 * DAY_MS, 1)] {
            journal.trim(TimeMs(now), None).unwrap();
            assert_eq!(left(directory.path()), files, "at {now}");
        }
        assert_eq!(counted(directory.path()), (1, 1));
        // The time of the last entry outlives a restart, and so does the day's own file.
        drop(journal);
        let mut journal = Journal::open(directory.path(), ALL).unwrap();
        assert_eq!(journal.written, TimeMs(3 * DAY_MS));
        journal.append(&[entry(3, "b")], TimeMs(3 * DAY_MS + 5)).unwrap();
        assert_eq!(left(directory.path()), 1);
        journal.append(&[entry(4, "a")], TimeMs(4 * DAY_MS)).unwrap();
        assert_eq!(left(directory.path()), 2);
    }

    #[test]
    fn a_journal_is_kept_up_to_its_size() {
        let (directory, mut journal) = three_days(ALL);
        let size: u64 = segments(&System, directory.path())
            .unwrap()
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        for (bytes, files) in [(size, 3), (size - 1, 2), (0, 1)] {
            journal.keep.bytes = bytes;
            // Also when somebody still lacks what goes.
            journal.trim(TimeMs(3 * DAY_MS), Some(0)).unwrap();
            assert_eq!(left(directory.path()), files);
        }
    }

    #[test]
    fn what_somebody_still_lacks_outlives_its_time() {
        let (directory, journal) = three_days(Keep { age_ms: DAY_MS, ..ALL });
        for (delivered, files) in [(0, 3), (1, 2), (1, 2), (2, 1), (3, 1)] {
            journal.trim(TimeMs(99 * DAY_MS), Some(delivered)).unwrap();
            assert_eq!(left(directory.path()), files, "delivered through {delivered}");
        }
    }
}
