//! Files under their digest: `<directory>/<sha256>`, and `*.part` for what is not whole yet.
//!
//! Its invariant: a file without `.part` is whole, on disk, and has the digest of its name. A part is removed when
//! whoever writes it gives up, and at the start.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::ImageError;

const PART: &str = "part";

/// The directory.
#[derive(Debug, Clone)]
pub struct Blobs {
    directory: PathBuf,
}

/// Whether a text is a digest as we write them; only such texts become paths.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Blobs {
    /// Makes the directory if it has to, and removes parts of an earlier run. Parts of copies are kept: they are
    /// named by their digest and go on where they broke off.
    pub fn open(directory: PathBuf) -> Result<Self, ImageError> {
        let blobs = Self { directory };
        let failed = |source| blobs.failed(&blobs.directory, source);
        std::fs::create_dir_all(&blobs.directory).map_err(failed)?;
        for entry in std::fs::read_dir(&blobs.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if path.extension().is_some_and(|extension| extension == PART) && !is_digest(stem) {
                std::fs::remove_file(&path).map_err(|source| blobs.failed(&path, source))?;
            }
        }
        Ok(blobs)
    }

    /// A new file that has no digest yet.
    pub async fn part(&self) -> Result<Part, ImageError> {
        let path = self.directory.join(Uuid::new_v4().to_string()).with_extension(PART);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).await;
        let file = file.map_err(|source| self.failed(&path, source))?;
        Ok(Part { blobs: self.clone(), path, file, keep: false })
    }

    /// A part whose digest is known before its bytes, and how much of it is there already. It stays when dropped.
    pub async fn resume(&self, sha256: &str) -> Result<(Part, u64), ImageError> {
        let path = self.path(sha256).with_extension(PART);
        let opened = async {
            let file = OpenOptions::new().append(true).create(true).open(&path).await?;
            let length = file.metadata().await?.len();
            Ok((file, length))
        };
        let (file, length) = opened.await.map_err(|source| self.failed(&path, source))?;
        Ok((Part { blobs: self.clone(), path, file, keep: true }, length))
    }

    /// Where the file of this digest lies.
    pub fn path(&self, sha256: &str) -> PathBuf {
        debug_assert!(is_digest(sha256), "only digests become paths");
        self.directory.join(sha256)
    }

    /// The size of the file of this digest, if it is here.
    pub async fn size(&self, sha256: &str) -> Option<u64> {
        tokio::fs::metadata(self.path(sha256)).await.ok().map(|metadata| metadata.len())
    }

    /// The digests of all files here, parts of copies included.
    pub async fn list(&self) -> Result<Vec<String>, ImageError> {
        let failed = |source| self.failed(&self.directory, source);
        let mut found = Vec::new();
        let mut entries = tokio::fs::read_dir(&self.directory).await.map_err(failed)?;
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let path = entry.path();
            found.extend(
                path.file_stem().and_then(|stem| stem.to_str()).filter(|s| is_digest(s)).map(str::to_owned),
            );
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Removes a file and its part.
    pub async fn remove(&self, sha256: &str) -> Result<(), ImageError> {
        for path in [self.path(sha256), self.path(sha256).with_extension(PART)] {
            match tokio::fs::remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.failed(&path, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&self, path: &Path, source: io::Error) -> ImageError {
        ImageError::File { path: path.to_owned(), source }
    }
}

/// A file that is being written.
pub struct Part {
    blobs: Blobs,
    path: PathBuf,
    file: File,
    /// It survives being dropped.
    keep: bool,
}

impl Part {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).await.map_err(|source| self.blobs.failed(&self.path, source))
    }

    /// Brings what was written to the disk.
    pub async fn sync(&mut self) -> Result<(), ImageError> {
        let synced = async {
            self.file.flush().await?;
            self.file.sync_all().await
        };
        synced.await.map_err(|source| self.blobs.failed(&self.path, source))
    }

    /// Makes it the file of this digest, which its bytes must have.
    pub async fn keep_as(mut self, sha256: &str) -> Result<(), ImageError> {
        self.sync().await?;
        let target = self.blobs.path(sha256);
        let renamed = async {
            tokio::fs::rename(&self.path, &target).await?;
            File::open(&self.blobs.directory).await?.sync_all().await
        };
        renamed.await.map_err(|source| self.blobs.failed(&target, source))?;
        self.keep = true;
        Ok(())
    }

    /// Removes it now.
    pub async fn discard(mut self) {
        self.keep = false;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "part of an image not removed");
        }
    }
}
