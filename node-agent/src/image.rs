//! The image cache: `<data_dir>/images/<sha256>`, one copy per node, fetched from any controller.
//!
//! Invariants: a file under its digest has been read whole and has that digest; a download that broke off goes on
//! where it stopped, and one with a wrong checksum is thrown away; an image that is wanted, or backs a volume or
//! guest of this node, is never evicted. One download for each image: the caller runs one step per image.
//! Deliberately absent: formats, which volumes check, and retries, which the reconciler times.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::checkpoint::checkpoint;
use crate::desired::Digest;
use crate::dial::{Dial, chain};
use crate::ledger::sync_dir;

/// Room that must stay free on the cache's file system, MiB.
const RESERVE_MIB: u64 = 64;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// Every controller's own reason.
    #[error("no controller gave it: {0}")]
    Unavailable(String),
    #[error("{controller} sent other bytes: their SHA-256 is {found}")]
    Checksum { controller: String, found: String },
    #[error("{needed_mib} MiB are needed, {free_mib} MiB are free")]
    NoRoom { needed_mib: u64, free_mib: u64 },
}

impl ImageError {
    /// One CamelCase word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "ImageIo",
            Self::Unavailable(_) => "ImageUnavailable",
            Self::Checksum { .. } => "ImageChecksum",
            Self::NoRoom { .. } => "ImageCacheFull",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    bytes: u64,
    used: SystemTime,
}

/// The cache of this node.
#[derive(Debug)]
pub struct ImageCache {
    dir: PathBuf,
    limit_bytes: u64,
    cached: Mutex<BTreeMap<Digest, Cached>>,
}

impl ImageCache {
    /// Opens the directory and takes stock.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(dir: &Path, limit_mib: u64) -> Result<Self, ImageError> {
        use std::os::unix::fs::PermissionsExt;
        let io = |source| ImageError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711)).map_err(io)?;
        let mut cached = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            // Parts of downloads have other names, and stay to be gone on with.
            if let Some(digest) = name.to_str().and_then(|name| Digest::parse(name).ok()) {
                let metadata = entry.metadata().map_err(io)?;
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                cached.insert(digest, Cached { bytes: metadata.len(), used });
            }
        }
        Ok(Self { dir: dir.to_owned(), limit_bytes: limit_mib << 20, cached: Mutex::new(cached) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Cached>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The images that are here.
    #[must_use]
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.lock().keys().cloned().collect()
    }

    /// What the cache holds, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().values().map(|cached| cached.bytes).sum()
    }

    /// Where an image is, or will be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.as_str())
    }

    /// Notes that an image is used now, so that others are evicted before it.
    pub fn touch(&self, digest: &Digest) {
        let now = SystemTime::now();
        if let Some(cached) = self.lock().get_mut(digest) {
            cached.used = now;
        }
        let file = std::fs::File::options().append(true).open(self.path(digest));
        // Only the order of eviction after a restart hangs on it.
        let _ = file.and_then(|file| file.set_modified(now));
    }

    /// Fetches an image from the first controller that gives it whole.
    ///
    /// # Errors
    /// None does, what came has another checksum, or the disk is full. What came so far is kept to go on with.
    pub async fn fetch(
        &self,
        digest: &Digest,
        controllers: &[String],
        dial: &Dial,
    ) -> Result<(), ImageError> {
        if self.lock().contains_key(digest) {
            return Ok(());
        }
        let part = self.dir.join(format!("{digest}.part"));
        let mut reasons = Vec::new();
        for controller in controllers {
            match self.fetch_from(digest, controller, dial, &part).await {
                Ok(()) => return self.keep(digest, &part).await,
                Err(ImageError::Unavailable(reason)) => reasons.push(format!("{controller}: {reason}")),
                Err(error @ ImageError::Checksum { .. }) => {
                    let io = |source| ImageError::Io { path: part.clone(), source };
                    tokio::fs::remove_file(&part).await.map_err(io)?;
                    tracing::warn!(%digest, error = %error, "image thrown away");
                    // Another controller may have the right bytes; if this was the last one, say so.
                    if controllers.last() == Some(controller) {
                        return Err(error);
                    }
                    reasons.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Err(ImageError::Unavailable(reasons.join("; ")))
    }

    async fn fetch_from(
        &self,
        digest: &Digest,
        controller: &str,
        dial: &Dial,
        part: &Path,
    ) -> Result<(), ImageError> {
        let io = |source| ImageError::Io { path: part.to_owned(), source };
        let broken = |message: String| ImageError::Unavailable(message);
        let (mut hash, mut have) = read_part(part).await.map_err(io)?;
        if have > 0 && hex::encode(hash.clone().finalize()) == digest.as_str() {
            // Killed between the last byte and the rename.
            return Ok(());
        }
        let began = Instant::now();
        let mut response = dial
            .get(controller, &format!("/images/{digest}"), have)
            .await
            .map_err(|error| broken(chain(&error)))?;
        if response.status() == reqwest::StatusCode::RANGE_NOT_SATISFIABLE {
            // The part is whole or too long: start over.
            (hash, have) = (Sha256::new(), 0);
            response = dial
                .get(controller, &format!("/images/{digest}"), 0)
                .await
                .map_err(|error| broken(chain(&error)))?;
        }
        let resumed = response.status() == reqwest::StatusCode::PARTIAL_CONTENT && starts_at(&response, have);
        if !resumed && response.status() != reqwest::StatusCode::OK {
            return Err(broken(format!("answered {}", response.status())));
        }
        if !resumed {
            (hash, have) = (Sha256::new(), 0);
        }
        let expected = response.content_length();
        self.check_room(expected.unwrap_or(0))?;
        let mut file = tokio::fs::File::options()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(part)
            .await
            .map_err(io)?;
        let total = expected.map_or(0, |more| have + more);
        tracing::info!(%digest, controller, from_bytes = have, total_bytes = total, "image download begins");
        let (mut came, mut next_word) = (0u64, have + total / 4);
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    file.flush().await.map_err(io)?;
                    return Err(broken(format!("broke off after {} bytes: {}", have + came, chain(&error))));
                }
            };
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(io)?;
            came += chunk.len() as u64;
            if total > 0 && have + came >= next_word && have + came < total {
                tracing::info!(%digest, done_bytes = have + came, total_bytes = total, "image download goes on");
                next_word += total / 4;
            }
        }
        file.flush().await.map_err(io)?;
        if expected.is_some_and(|expected| came < expected) {
            return Err(broken(format!("broke off after {} of {total} bytes", have + came)));
        }
        file.sync_all().await.map_err(io)?;
        let found = hex::encode(hash.finalize());
        if found != digest.as_str() {
            return Err(ImageError::Checksum { controller: controller.to_owned(), found });
        }
        let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%digest, bytes = have + came, elapsed_ms, "image fetched");
        Ok(())
    }

    fn check_room(&self, more_bytes: u64) -> Result<(), ImageError> {
        let io = |error: rustix::io::Errno| ImageError::Io { path: self.dir.clone(), source: error.into() };
        let stat = rustix::fs::statvfs(&self.dir).map_err(io)?;
        let free_mib = (stat.f_bavail * stat.f_frsize) >> 20;
        let needed_mib = (more_bytes >> 20) + RESERVE_MIB;
        if free_mib < needed_mib { Err(ImageError::NoRoom { needed_mib, free_mib }) } else { Ok(()) }
    }

    /// Gives a checked download its name.
    async fn keep(&self, digest: &Digest, part: &Path) -> Result<(), ImageError> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path(digest);
        let io = |source| ImageError::Io { path: path.clone(), source };
        tokio::fs::set_permissions(part, std::fs::Permissions::from_mode(0o444)).await.map_err(io)?;
        tokio::fs::rename(part, &path).await.map_err(io)?;
        sync_dir(&self.dir).map_err(io)?;
        let bytes = tokio::fs::metadata(&path).await.map_err(io)?.len();
        self.lock().insert(digest.clone(), Cached { bytes, used: SystemTime::now() });
        checkpoint("image-fetched").await;
        Ok(())
    }

    /// Removes what is not in `keep`, the longest unused first, until the cache is within its limit. Returns what
    /// went.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn evict(&self, keep: &BTreeSet<Digest>) -> Result<Vec<Digest>, ImageError> {
        let mut cached = self.lock();
        let gone = choose(&cached, self.limit_bytes, keep);
        for digest in &gone {
            let path = self.path(digest);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ImageError::Io { path, source });
                }
                _ => drop(cached.remove(digest)),
            }
        }
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let part = name.to_str().and_then(|name| name.strip_suffix(".part"));
            if part
                .and_then(|digest| Digest::parse(digest).ok())
                .is_some_and(|digest| !keep.contains(&digest))
            {
                // Half of what nobody wants; if it cannot be removed now, the next time will do.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(gone)
    }
}

/// What to evict.
fn choose(cached: &BTreeMap<Digest, Cached>, limit_bytes: u64, keep: &BTreeSet<Digest>) -> Vec<Digest> {
    let mut bytes: u64 = cached.values().map(|cached| cached.bytes).sum();
    let mut unused: Vec<_> = cached.iter().filter(|(digest, _)| !keep.contains(*digest)).collect();
    unused.sort_by_key(|(digest, cached)| (cached.used, (*digest).clone()));
    let mut gone = Vec::new();
    for (digest, cached) in unused {
        if bytes <= limit_bytes {
            break;
        }
        bytes -= cached.bytes;
        gone.push(digest.clone());
    }
    gone
}

/// Whether a partial answer begins where we stopped.
fn starts_at(response: &reqwest::Response, have: u64) -> bool {
    let range = response.headers().get(reqwest::header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {have}-")))
}

/// The hash and length of what an earlier download left.
async fn read_part(part: &Path) -> std::io::Result<(Sha256, u64)> {
    let mut file = match tokio::fs::File::open(part).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Sha256::new(), 0)),
        Err(error) => return Err(error),
    };
    let (mut hash, mut have) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok((hash, have)),
            n => {
                hash.update(&buffer[..n]);
                have += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::parse(&name.repeat(64)).unwrap()
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_wanted_stays() {
        let at = |s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s);
        let cached: BTreeMap<_, _> = [("a", 1), ("b", 3), ("c", 2)]
            .map(|(name, s)| (digest(name), Cached { bytes: 10, used: at(s) }))
            .into();
        let keep = BTreeSet::from([digest("a")]);
        assert_eq!(choose(&cached, 30, &keep), []);
        assert_eq!(choose(&cached, 25, &keep), [digest("c")]);
        assert_eq!(choose(&cached, 0, &keep), [digest("c"), digest("b")]);
    }

    #[test]
    fn an_opened_cache_knows_its_files_and_no_parts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(digest("a").as_str()), b"12345").unwrap();
        std::fs::write(dir.path().join(format!("{}.part", digest("b"))), b"12").unwrap();
        let cache = ImageCache::open(dir.path(), 64).unwrap();
        assert_eq!(cache.digests(), BTreeSet::from([digest("a")]));
        assert_eq!(cache.bytes(), 5);
        cache.evict(&BTreeSet::from([digest("b")])).unwrap();
        assert!(dir.path().join(format!("{}.part", digest("b"))).exists(), "its image is wanted");
        cache.evict(&BTreeSet::new()).unwrap();
        assert!(!dir.path().join(format!("{}.part", digest("b"))).exists());
    }
}
