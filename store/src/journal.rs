//! The journal: what happened, for as long as the disk is given to it, in files that only grow.
//!
//! Its invariants: an entry that [`Journal::append`] has returned for is on disk; every entry holds the hash of the
//! one before it, so a missing or changed one is found by [`verify`]; after a crash the torn end of the last file,
//! and nothing else, is cut off. An entry is one line of JSON, so that people and other programs can read it.
//! Deliberately absent: what is worth an entry, and following the store; the controller does both.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::kv::Revision;

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
    hash: String,
}

/// The files of one controller, open for writing.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    path: PathBuf,
    bytes: u64,
    end: End,
    keep_bytes: u64,
}

impl Journal {
    /// Opens the journal, or begins one, and cuts off what a crash left half written. `keep_bytes` bounds its size:
    /// beyond it the oldest files go.
    ///
    /// # Errors
    /// When the files cannot be used, or an entry before the end of the last file is damaged.
    pub fn open(directory: &Path, keep_bytes: u64) -> Result<Self, JournalError> {
        fs::create_dir_all(directory).map_err(failed(directory))?;
        let segments = segments(directory)?;
        let mut end = End { sequence: 0, revision: Revision::ZERO, keys: Vec::new(), hash: GENESIS.into() };
        let path = segments.last().cloned().unwrap_or_else(|| segment(directory, 1));
        let mut good = 0;
        if !segments.is_empty() {
            let (read, bytes) = read_last(&path)?;
            good = bytes;
            match read {
                Some(read) => end = read,
                // The file was begun and nothing of it reached the disk: the one before it has the end.
                None => {
                    if let Some(before) = segments.len().checked_sub(2).map(|at| &segments[at]) {
                        end = read_last(before)?.0.unwrap_or(end);
                    }
                }
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed(&path))?;
        file.set_len(good).map_err(failed(&path))?;
        file.sync_all().map_err(failed(&path))?;
        sync_directory(directory)?;
        Ok(Self { directory: directory.into(), file, path, bytes: good, end, keep_bytes })
    }

    /// Where it ends.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Writes entries in order and returns when they are on disk. Those that are there already are left out.
    ///
    /// # Errors
    /// When the disk fails; what was written before stays.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut text = String::new();
        for entry in entries {
            let known = entry.revision < self.end.revision
                || (entry.revision == self.end.revision && self.end.keys.contains(&entry.key));
            if known {
                continue;
            }
            text.push_str(&self.next(entry));
            text.push('\n');
        }
        if text.is_empty() {
            return Ok(());
        }
        let path = self.path.clone();
        self.file.write_all(text.as_bytes()).map_err(failed(&path))?;
        self.file.sync_data().map_err(failed(&path))?;
        self.bytes += text.len() as u64;
        if self.bytes >= SEGMENT_BYTES {
            self.turn()?;
        }
        Ok(())
    }

    /// The line of an entry; the end moves with it.
    fn next(&mut self, entry: &Entry) -> String {
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

    /// Begins the next file and lets the oldest go.
    fn turn(&mut self) -> Result<(), JournalError> {
        self.path = segment(&self.directory, self.end.sequence + 1);
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        self.file = file.map_err(failed(&self.path))?;
        self.bytes = 0;
        let mut all = segments(&self.directory)?;
        let mut size: u64 =
            all.iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).sum();
        while size > self.keep_bytes && all.len() > 2 {
            let oldest = all.remove(0);
            size -= fs::metadata(&oldest).map_or(0, |meta| meta.len());
            fs::remove_file(&oldest).map_err(failed(&oldest))?;
        }
        sync_directory(&self.directory)
    }
}

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub files: usize,
    pub entries: u64,
}

/// Reads everything and checks that no entry is missing or changed.
///
/// # Errors
/// `Damaged` names the first line that is not what was written.
pub fn verify(directory: &Path) -> Result<Verified, JournalError> {
    let files = segments(directory)?;
    let mut before: Option<(u64, String)> = None;
    let mut entries = 0;
    for path in &files {
        let file = File::open(path).map_err(failed(path))?;
        for (at, line) in BufReader::new(file).lines().enumerate() {
            let text = line.map_err(failed(path))?;
            let damaged = |reason: String| JournalError::Damaged { path: path.clone(), line: at + 1, reason };
            let line: Line = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
            if line.digest() != line.hash {
                return Err(damaged("its content was changed".into()));
            }
            if let Some((sequence, hash)) = &before
                && (line.sequence != sequence + 1 || line.previous != *hash)
            {
                return Err(damaged(format!("it does not follow entry {sequence}")));
            }
            before = Some((line.sequence, line.hash));
            entries += 1;
        }
    }
    Ok(Verified { files: files.len(), entries })
}

/// The end of a file and how many of its bytes are whole lines. A torn last line is no damage, it is a crash.
fn read_last(path: &Path) -> Result<(Option<End>, u64), JournalError> {
    let mut reader = BufReader::new(File::open(path).map_err(failed(path))?);
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
            // A whole line that is not readable is the torn end only if nothing follows it.
            Err(error) => {
                let rest = reader.fill_buf().map_err(failed(path))?.is_empty();
                let reason = error.to_string();
                return if rest {
                    Ok((end, good))
                } else {
                    Err(JournalError::Damaged { path: path.into(), line: number, reason })
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

fn segment(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("journal-{first:020}.jsonl"))
}

/// The files, the oldest first.
fn segments(directory: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("journal-") && name.ends_with(".jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn sync_directory(directory: &Path) -> Result<(), JournalError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |source| JournalError::File { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(revision: u64, key: &str) -> Entry {
        Entry { revision: Revision(revision), key: key.into(), record: format!("{{\"at\":{revision}}}") }
    }

    fn only_file(directory: &Path) -> PathBuf {
        segments(directory).unwrap().remove(0)
    }

    #[test]
    fn what_was_written_is_there_after_opening_again_and_is_not_written_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), u64::MAX).unwrap();
        journal.append(&[entry(3, "a"), entry(3, "b"), entry(5, "c")]).unwrap();
        drop(journal);
        let mut journal = Journal::open(directory.path(), u64::MAX).unwrap();
        assert_eq!((journal.end().sequence, journal.end().revision), (3, Revision(5)));
        journal.append(&[entry(3, "a"), entry(5, "c"), entry(5, "d"), entry(9, "e")]).unwrap();
        assert_eq!(verify(directory.path()).unwrap(), Verified { files: 1, entries: 5 });
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_was_torn() {
        let whole = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(whole.path(), u64::MAX).unwrap();
        journal.append(&[entry(1, "a")]).unwrap();
        let first = fs::metadata(only_file(whole.path())).unwrap().len();
        journal.append(&[entry(2, "b")]).unwrap();
        let bytes = fs::read(only_file(whole.path())).unwrap();
        for length in first as usize..bytes.len() {
            let torn = tempfile::tempdir().unwrap();
            fs::write(segment(torn.path(), 1), &bytes[..length]).unwrap();
            let mut journal = Journal::open(torn.path(), u64::MAX).unwrap();
            assert_eq!(journal.end().revision, Revision(1), "torn at {length}");
            journal.append(&[entry(2, "b")]).unwrap();
            assert_eq!(fs::read(only_file(torn.path())).unwrap(), bytes);
        }
    }

    #[test]
    fn a_changed_and_a_missing_entry_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), u64::MAX).unwrap();
        journal.append(&[entry(1, "a"), entry(2, "b"), entry(3, "c")]).unwrap();
        let path = only_file(directory.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("{\"at\":2}", "{\"at\":7}")).unwrap();
        assert!(matches!(verify(directory.path()), Err(JournalError::Damaged { line: 2, .. })));
        let without: Vec<&str> =
            text.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| line).collect();
        fs::write(&path, without.join("\n")).unwrap();
        assert!(matches!(verify(directory.path()), Err(JournalError::Damaged { line: 2, .. })));
    }
}
