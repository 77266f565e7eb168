//! Reading a journal: on from any entry while it is being written, and as a whole, to see that it is what was written.
//!
//! Its invariant: what has no end of line yet is no entry; whoever reads on finds it when it is whole.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tamdao_model::TimeMs;

use super::{End, GENESIS, JournalError, Line, failed, modified, segments};
use crate::files::System;
use crate::kv::Revision;

/// An entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub sequence: u64,
    pub revision: Revision,
    pub key: String,
    /// JSON.
    pub record: String,
    /// Hex; it covers all entries before this one.
    pub hash: String,
}

/// Reads entries in their order, and goes on when more are written.
#[derive(Debug)]
pub struct Reader {
    directory: PathBuf,
    /// The file that is being read, and how many of its bytes were.
    file: Option<(PathBuf, BufReader<File>, u64)>,
    after: u64,
    since: TimeMs,
}

impl Reader {
    /// Begins behind the entry of this sequence, 0 for the oldest, and leaves out files that were last written before
    /// `since`. Looks at nothing yet.
    pub fn new(directory: &Path, after: u64, since: TimeMs) -> Self {
        Self { directory: directory.into(), file: None, after, since }
    }

    /// The next entry; none when there is none yet.
    ///
    /// # Errors
    /// When a file cannot be read, or an entry is no entry.
    pub fn read(&mut self) -> Result<Option<Told>, JournalError> {
        let mut torn_at = None;
        loop {
            if self.file.is_none() && !self.open()? {
                return Ok(None);
            }
            let Some((path, file, at)) = self.file.as_mut() else { return Ok(None) };
            let mut text = Vec::new();
            let read = file.read_until(b'\n', &mut text).map_err(failed(path))?;
            if text.last() != Some(&b'\n') {
                file.seek(SeekFrom::Start(*at)).map_err(failed(path))?;
                let Some(next) = next_of(&self.directory, path)? else { return Ok(None) };
                // The next file was begun after this one was written to its end, so one more look shows that.
                if file.get_ref().metadata().map_err(failed(path))?.len() == *at {
                    self.file = Some(open_file(next)?);
                } else if torn_at.replace(*at) == Some(*at) {
                    return Err(JournalError::Damaged {
                        path: path.clone(),
                        line: 0,
                        reason: format!("what stands after entry {} has no end", self.after),
                    });
                }
                continue;
            }
            *at += read as u64;
            let line: Line = serde_json::from_slice(&text).map_err(|error| JournalError::Damaged {
                path: path.clone(),
                line: 0,
                reason: format!("after entry {}: {error}", self.after),
            })?;
            if line.sequence <= self.after {
                continue;
            }
            self.after = line.sequence;
            return Ok(Some(Told {
                sequence: line.sequence,
                revision: Revision(line.revision),
                key: line.key,
                record: line.record.get().to_owned(),
                hash: line.hash,
            }));
        }
    }

    /// Opens the file in which the next entry is; false when there is none.
    fn open(&mut self) -> Result<bool, JournalError> {
        let files = segments(&System, &self.directory)?;
        // The last file that begins at or before what comes next; all are there only if none was let go.
        let first = files.iter().rposition(|path| first_of(path) <= self.after + 1).unwrap_or(0);
        for path in files.into_iter().skip(first) {
            let opened = open_file(path)?;
            if modified(opened.1.get_ref(), &opened.0)? >= self.since {
                self.file = Some(opened);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn open_file(path: PathBuf) -> Result<(PathBuf, BufReader<File>, u64), JournalError> {
    let file = File::open(&path).map_err(failed(&path))?;
    Ok((path, BufReader::new(file), 0))
}

fn next_of(directory: &Path, after: &Path) -> Result<Option<PathBuf>, JournalError> {
    Ok(segments(&System, directory)?.into_iter().find(|path| path.as_path() > after))
}

/// The sequence with which a file begins, as its name says it.
pub(super) fn first_of(path: &Path) -> u64 {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    name.trim_start_matches("journal-").parse().unwrap_or(0)
}

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub files: usize,
    pub entries: u64,
    /// Sequence of the oldest entry; 0 in an empty journal.
    pub first: u64,
    /// Sequence and hash of the newest.
    pub last: u64,
    pub hash: String,
}

/// Reads everything and checks that no entry is missing, changed or elsewhere. `end` is where the journal is known to
/// have come: without it one cannot tell that its last entries are missing. What is being written meanwhile is no
/// damage. Older files may have been let go.
///
/// # Errors
/// `Damaged` names the first line that is not what was written.
pub fn verify(directory: &Path, end: Option<&End>) -> Result<Verified, JournalError> {
    let files = segments(&System, directory)?;
    let mut found = Verified { files: files.len(), entries: 0, first: 0, last: 0, hash: GENESIS.into() };
    let mut met = end.is_none_or(|end| end.sequence == 0);
    for (at, path) in files.iter().enumerate() {
        let mut reader = BufReader::new(File::open(path).map_err(failed(path))?);
        let mut text = Vec::new();
        for number in 1.. {
            text.clear();
            let read = reader.read_until(b'\n', &mut text).map_err(failed(path))?;
            let whole = text.last() == Some(&b'\n');
            if read == 0 || !whole && at + 1 == files.len() {
                break;
            }
            let damaged = |reason: String| JournalError::Damaged { path: path.clone(), line: number, reason };
            let line: Line = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
            if line.digest() != line.hash {
                return Err(damaged("its content was changed".into()));
            }
            if found.entries > 0 && (line.sequence != found.last + 1 || line.previous != found.hash) {
                return Err(damaged(format!("entry {} does not follow entry {}", line.sequence, found.last)));
            }
            if number == 1 && first_of(path) != line.sequence {
                return Err(damaged(format!("the file does not begin with entry {}", first_of(path))));
            }
            if end.is_some_and(|end| end.sequence == line.sequence && end.hash != line.hash) {
                return Err(damaged(format!("entry {} is not what was written", line.sequence)));
            }
            met |= end.is_some_and(|end| end.sequence == line.sequence);
            if found.entries == 0 {
                found.first = line.sequence;
            }
            found.entries += 1;
            (found.last, found.hash) = (line.sequence, line.hash);
        }
    }
    match (met, end) {
        (false, Some(end)) => Err(JournalError::Damaged {
            path: files.last().cloned().unwrap_or_else(|| directory.into()),
            line: usize::try_from(found.entries).unwrap_or(usize::MAX),
            reason: format!("entries {} to {} are missing at the end", found.last + 1, end.sequence),
        }),
        _ => Ok(found),
    }
}
