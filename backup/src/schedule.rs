//! When a backup is due, what it is called, and which ones are not needed any more. Pure.
//!
//! Its invariants: names sort by the time of their backups; the newest good backup is never expendable, nor one of
//! another cluster, nor one of the future, which a wrong clock has made. Deliberately absent: where backups lie and
//! whether they are good (`destination`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};
use uuid::Uuid;

use crate::file::Head;

/// What every backup's name ends with.
pub const SUFFIX: &str = ".tamdao-backup";
/// Of the same width at all times, and without what a shell or another system has its own use for.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second][subsecond digits:3]Z");
/// Hexadecimal digits of the file's SHA-256 in its name: it is against accidents, not against people.
const DIGEST: usize = 16;
/// The longest label, bytes.
const LABEL: usize = 40;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// The name of a backup that a schedule made: `TIME_LABEL_rREVISION_CLUSTER_DIGEST.tamdao-backup`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackupName {
    /// When it was taken, ms since 1970. First, since names sort by it.
    pub time_ms: u64,
    /// The cluster's name as far as a file may be called so; for people only.
    pub label: String,
    pub revision: u64,
    pub cluster: Uuid,
    /// The begin of the whole file's SHA-256, hex: whoever reads the file knows whether it is as it was written, without
    /// being able to open it.
    pub digest: String,
}

impl BackupName {
    /// Of a file with this head and this SHA-256, hex.
    pub fn of(head: &Head, sha256: &str) -> Self {
        let about = &head.about;
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        Self {
            time_ms: about.time_ms,
            label: about.cluster_name.chars().map(plain).take(LABEL).collect(),
            revision: about.revision,
            cluster: about.cluster,
            digest: sha256.chars().take(DIGEST).collect(),
        }
    }

    /// Whether a file of this head and this SHA-256, hex, is what the name says.
    pub fn is_of(&self, head: &Head, sha256: &str) -> bool {
        *self == Self::of(head, sha256)
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.time_ms) * 1_000_000);
        // A clock beyond the year 9999 is wrong whatever we write.
        let time = time.ok().and_then(|time| time.format(TIME).ok()).unwrap_or_default();
        let Self { label, revision, cluster, digest, .. } = self;
        write!(f, "{time}_{label}_r{revision}_{cluster}_{digest}{SUFFIX}")
    }
}

/// The text is the name of no backup that a schedule made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a scheduled backup")]
pub struct OtherName;

impl FromStr for BackupName {
    type Err = OtherName;

    /// Reads exactly what [`fmt::Display`] writes, and nothing that is only like it.
    fn from_str(text: &str) -> Result<Self, OtherName> {
        let parts: Vec<&str> = text.strip_suffix(SUFFIX).ok_or(OtherName)?.split('_').collect();
        let [time, label, revision, cluster, digest] = parts.as_slice() else { return Err(OtherName) };
        let time = PrimitiveDateTime::parse(time, TIME).map_err(|_| OtherName)?.assume_utc();
        let revision = revision.strip_prefix('r').and_then(|number| number.parse().ok());
        let name = Self {
            time_ms: u64::try_from(time.unix_timestamp_nanos() / 1_000_000).map_err(|_| OtherName)?,
            label: (*label).to_owned(),
            revision: revision.ok_or(OtherName)?,
            cluster: Uuid::parse_str(cluster).map_err(|_| OtherName)?,
            digest: (*digest).to_owned(),
        };
        if name.to_string() == text { Ok(name) } else { Err(OtherName) }
    }
}

/// Which backups are kept: the newest so many, and the newest of each of the last so many days (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// At least 1 is kept, whatever this says.
    pub last: u32,
    pub daily_days: u32,
}

/// Whether a backup is due, if those that are good were taken at `good`, ms: none lies within a period of now. One that
/// lies further in the future was made by a wrong clock, and must not keep the others from being made.
pub fn is_due(good: impl IntoIterator<Item = u64>, now_ms: u64, every_ms: u64) -> bool {
    !good.into_iter().any(|time| time.abs_diff(now_ms) < every_ms)
}

/// What may be removed of good backups, in any order; the oldest first.
pub fn expendable(good: &[BackupName], cluster: Uuid, keep: Keep, now_ms: u64) -> Vec<&BackupName> {
    let mut ours: Vec<&BackupName> =
        good.iter().filter(|name| name.cluster == cluster && name.time_ms <= now_ms).collect();
    ours.sort_unstable();
    let today = now_ms / DAY_MS;
    let mut days = BTreeSet::new();
    let mut expendable: Vec<&BackupName> = Vec::new();
    for (at, name) in ours.into_iter().rev().enumerate() {
        let day = name.time_ms / DAY_MS;
        let first_of_day = days.insert(day) && today - day < u64::from(keep.daily_days);
        if at >= keep.last.max(1) as usize && !first_of_day {
            expendable.push(name);
        }
    }
    expendable.reverse();
    expendable
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
