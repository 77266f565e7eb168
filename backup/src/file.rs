//! The file: one line of JSON that anyone can read, then the same line and the content, encrypted.
//!
//! The first line serves `list` and people; nothing is believed of it before the encrypted copy says the same. The
//! content is the cluster key and the records in the order of their keys, under a SHA-256 that the line holds. By hand:
//! `tail -n +2 FILE | age -d -i KEY`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::seal::{Identities, Recipients};

/// The form of the file that this version writes, and the newest that it reads.
const FORM: u32 = 1;
/// The longest first line, bytes.
const LINE: usize = 4_096;
/// Bytes before a record's key: two lengths and two revisions.
const RECORD_HEAD: usize = 24;
const KEY_BYTES: usize = 32;

/// Why a backup cannot be written or believed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{0:?} is no public key of age (age1…)")]
    Recipient(String),
    #[error("the identity file holds no secret key of age, or a line that is none (AGE-SECRET-KEY-1…)")]
    Identity,
    #[error("the backup is not encrypted to this identity")]
    WrongKey,
    #[error("the backup cannot be encrypted: {0}")]
    Seal(String),
    #[error("this is no backup of a cloud: {0}")]
    NotOne(String),
    #[error(
        "the backup has form {0}, this version reads {FORM} and older; take the version that wrote it or a newer one"
    )]
    TooNew(u32),
    #[error("the backup is damaged: {0}")]
    Damaged(String),
}

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub cluster: Uuid,
    pub cluster_name: String,
    /// The newest commit in it.
    pub revision: u64,
    /// The level of the records' encodings.
    pub level: u32,
    /// When it was taken, ms since 1970.
    pub time_ms: u64,
    /// The version of the controller that took it.
    pub version: String,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub tamdao_backup: u32,
    #[serde(flatten)]
    pub about: About,
    pub records: u64,
    /// SHA-256 of the content before it was encrypted, hex.
    pub sha256: String,
}

/// One record as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    pub create_revision: u64,
    pub mod_revision: u64,
}

/// What a backup holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// Opens the sealed fields of the records. It is not in the store, and without it no certificate can be signed again.
    pub cluster_key: [u8; KEY_BYTES],
    pub entries: Vec<Entry>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Content({} records)", self.entries.len())
    }
}

/// Makes the whole file.
///
/// # Errors
/// `Seal` when the system gives no random numbers.
pub fn write(about: About, content: &Content, recipients: &Recipients) -> Result<Vec<u8>, BackupError> {
    let mut body = content.cluster_key.to_vec();
    for entry in &content.entries {
        let length =
            |bytes: usize| u32::try_from(bytes).expect("a record is shorter than a transaction may be");
        body.extend(length(entry.key.len()).to_be_bytes());
        body.extend(length(entry.value.len()).to_be_bytes());
        body.extend(entry.create_revision.to_be_bytes());
        body.extend(entry.mod_revision.to_be_bytes());
        body.extend(entry.key.as_bytes());
        body.extend(&entry.value);
    }
    let head = Head {
        tamdao_backup: FORM,
        about,
        records: content.entries.len() as u64,
        sha256: hex::encode(Sha256::digest(&body)),
    };
    let mut line = serde_json::to_vec(&head).expect("a head is plain data");
    line.push(b'\n');
    let plain = [line.as_slice(), &body].concat();
    line.extend(recipients.seal(&plain)?);
    Ok(line)
}

/// What the first line says. Nothing of it is proven: [`open`] does that.
///
/// # Errors
/// `NotOne`, `TooNew`.
pub fn head(file: &[u8]) -> Result<Head, BackupError> {
    Ok(split(file)?.0)
}

/// Reads a whole file, and believes nothing that is not proven.
///
/// # Errors
/// `WrongKey`, and `Damaged` for every file that is not as it was written.
pub fn open(file: &[u8], identities: &Identities) -> Result<(Head, Content), BackupError> {
    let (head, line, sealed) = split(file)?;
    let plain = identities.open(sealed)?;
    let body = plain
        .strip_prefix(line)
        .ok_or_else(|| damaged("its first line is not the one that was encrypted"))?;
    if hex::encode(Sha256::digest(body)) != head.sha256 {
        return Err(damaged("its checksum is wrong"));
    }
    let content = read_body(body)?;
    if content.entries.len() as u64 != head.records {
        let (held, told) = (content.entries.len(), head.records);
        return Err(damaged(&format!("it holds {held} records and says that it has {told}")));
    }
    Ok((head, content))
}

fn damaged(reason: &str) -> BackupError {
    BackupError::Damaged(reason.to_owned())
}

fn split(file: &[u8]) -> Result<(Head, &[u8], &[u8]), BackupError> {
    let end = file.iter().take(LINE).position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| BackupError::NotOne("it does not begin with one line of JSON".into()))?;
    let (line, sealed) = file.split_at(end + 1);
    let form: serde_json::Value =
        serde_json::from_slice(line).map_err(|error| BackupError::NotOne(error.to_string()))?;
    match form["tamdao_backup"].as_u64() {
        None | Some(0) => return Err(BackupError::NotOne("its first line does not say so".into())),
        Some(form) if form > u64::from(FORM) => {
            return Err(BackupError::TooNew(u32::try_from(form).unwrap_or(u32::MAX)));
        }
        Some(_) => {}
    }
    let head: Head = serde_json::from_value(form).map_err(|error| BackupError::NotOne(error.to_string()))?;
    Ok((head, line, sealed))
}

fn read_body(body: &[u8]) -> Result<Content, BackupError> {
    let short = || damaged("it ends within a record");
    let (key, mut rest) = body.split_at_checked(KEY_BYTES).ok_or_else(short)?;
    let mut entries: Vec<Entry> = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_at_checked(RECORD_HEAD).ok_or_else(short)?;
        let length =
            |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize;
        let revision = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let (key, after) = after.split_at_checked(length(0)).ok_or_else(short)?;
        let (value, after) = after.split_at_checked(length(4)).ok_or_else(short)?;
        let key = String::from_utf8(key.to_vec()).map_err(|_| damaged("a key is no text"))?;
        if entries.last().is_some_and(|last| last.key >= key) {
            return Err(damaged("its keys are not in order"));
        }
        let value = Bytes::copy_from_slice(value);
        entries.push(Entry { key, value, create_revision: revision(8), mod_revision: revision(16) });
        rest = after;
    }
    Ok(Content { cluster_key: key.try_into().expect("it was split there"), entries })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
