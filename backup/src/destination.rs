//! Where backups are kept: a directory, or a bucket of S3-compatible storage.
//!
//! Its invariants: a name stands for a whole file or for none; and a file counts as whole only after all of it was read
//! and hashed, since nobody but a recipient can open it. Every name of the crate `object_store` stays in this file.
//! Deliberately absent: what is due and what may go (`schedule`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload,
    RetryConfig,
};
use sha2::{Digest, Sha256};
use tamdao_model::TimeMs;
use tamdao_model::convert::metadata::timestamp;
use tamdao_proto::v1;

use crate::file::{Head, head};
use crate::schedule::{BackupName, SUFFIX};

/// Bytes that are sent or asked for at once. S3 takes no part below 5 MiB but the last.
const PART: usize = 8 << 20;
/// For one part, or one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What is asked again at once after a server's own fault; what fails then is the caller's to try later.
const RETRIES: usize = 3;
const RETRIED_FOR: Duration = Duration::from_secs(60);
/// More than any first line.
const LINE: usize = 8_192;

/// Why a destination cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("{0:?} is neither s3://bucket/prefix nor a directory")]
    Place(String),
    #[error("{place}: {reason}")]
    Failed { place: String, reason: String },
    #[error("{place}: there is no {name}")]
    Absent { place: String, name: String },
}

/// Where backups are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Directory(PathBuf),
    /// A bucket, and what all names in it begin with, without a slash at either end; empty for nothing.
    Bucket {
        bucket: String,
        prefix: String,
    },
}

impl Place {
    /// Reads `s3://bucket/prefix`, or the path of a directory.
    ///
    /// # Errors
    /// `Place` if the text is empty, names no bucket, or is a URL of something else.
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        let wrong = || DestinationError::Place(text.to_owned());
        let Some(rest) = text.strip_prefix("s3://") else {
            let is_path = !text.is_empty() && !text.contains("://");
            return if is_path { Ok(Self::Directory(text.into())) } else { Err(wrong()) };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
        if bucket.is_empty() || !bucket.chars().all(allowed) || Path::parse(prefix.trim_matches('/')).is_err()
        {
            return Err(wrong());
        }
        Ok(Self::Bucket { bucket: bucket.into(), prefix: prefix.trim_matches('/').into() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// How a bucket is reached. A directory needs nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The URL of the service; empty for Amazon's own. With `http://` nothing is encrypted on the way but the backup itself.
    pub endpoint: String,
    pub region: String,
    pub credentials: Credentials,
    /// Certificates of CAs, PEM, that are trusted beside the system's; empty for none.
    pub ca_pem: String,
}

/// Who asks. It is not shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    pub key_id: String,
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

impl Credentials {
    /// Reads the form of Amazon's own tools: lines `aws_access_key_id = …` and `aws_secret_access_key = …`. None unless
    /// both are there, once each.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let mut values = lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim());
            values.next().filter(|value| !value.is_empty() && values.next().is_none()).map(str::to_owned)
        };
        Some(Self { key_id: value("aws_access_key_id")?, secret: value("aws_secret_access_key")? })
    }

    /// Reads the variables that Amazon's tools know, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. None unless both say
    /// something.
    pub fn from_environment() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self { key_id: variable("AWS_ACCESS_KEY_ID")?, secret: variable("AWS_SECRET_ACCESS_KEY")? })
    }
}

/// One file of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name within the destination.
    pub name: String,
    pub bytes: u64,
    /// Changes when the file is written anew: the time of that and what the storage calls its version.
    pub version: String,
}

/// What one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As a schedule wrote it: the name says the checksum of all of it.
    Whole(BackupName, Head),
    /// Its first line is well; whether the rest is, only who can open it knows. What was made by hand.
    Unproven(Head),
    /// What is wrong.
    Damaged(String),
    /// Why it could not be read this time, which says nothing of the file.
    Unread(String),
}

impl Verdict {
    /// The name of one that is whole.
    pub fn whole(&self) -> Option<&BackupName> {
        match self {
            Self::Whole(name, _) => Some(name),
            _ => None,
        }
    }

    /// What is wrong with it, or was with reading it.
    pub fn fault(&self) -> Option<&str> {
        match self {
            Self::Damaged(fault) | Self::Unread(fault) => Some(fault),
            _ => None,
        }
    }

    /// What its first line says, of one that is not damaged.
    pub fn head(&self) -> Option<&Head> {
        match self {
            Self::Whole(_, head) | Self::Unproven(head) => Some(head),
            _ => None,
        }
    }

    /// The file that this is said of, as the contract shows it.
    pub fn shown(&self, found: &Found) -> v1::KeptBackup {
        let file = v1::KeptBackup { name: found.name.clone(), bytes: found.bytes, ..Default::default() };
        let Some(Head { about, records, .. }) = self.head() else {
            return v1::KeptBackup { fault: self.fault().unwrap_or_default().to_owned(), ..file };
        };
        v1::KeptBackup {
            proven: self.whole().is_some(),
            cluster_id: about.cluster.to_string(),
            cluster_name: about.cluster_name.clone(),
            revision: about.revision,
            records: *records,
            time: timestamp(TimeMs(about.time_ms)),
            ..file
        }
    }
}

/// An opened destination; a clone is another handle.
#[derive(Clone)]
pub struct Destination {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    place: Place,
}

impl Destination {
    /// Asks nobody yet, but that a directory is there: one that is not may be a disk that is not mounted, and must not be
    /// made where it would be.
    ///
    /// # Errors
    /// `Failed` when there is no such directory, or the access cannot be used.
    pub fn open(place: Place, access: &Access) -> Result<Self, DestinationError> {
        let opened: object_store::Result<(Arc<dyn ObjectStore>, Path)> = match &place {
            Place::Directory(path) => LocalFileSystem::new_with_prefix(path)
                .map(|store| (Arc::new(store) as Arc<dyn ObjectStore>, Path::default())),
            Place::Bucket { bucket, prefix } => s3(bucket, access)
                .map(|store| (Arc::new(store) as Arc<dyn ObjectStore>, Path::from(prefix.as_str()))),
        };
        let (store, prefix) = opened.map_err(|error| failed(&place, &error))?;
        Ok(Self { store, prefix, place })
    }

    /// What it is called.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Writes a file as a whole or not at all; when it returns the file outlives a power cut.
    ///
    /// # Errors
    /// When it cannot be written; nothing has that name then.
    pub async fn put(&self, name: &str, file: Bytes) -> Result<(), DestinationError> {
        let path = self.path(name);
        let sent = match file.len() <= PART {
            true => self.store.put(&path, PutPayload::from_bytes(file)).await.map(drop),
            false => self.put_parts(&path, &file).await,
        };
        sent.map_err(|error| failed(&self.place, &error))?;
        let Place::Directory(directory) = &self.place else { return Ok(()) };
        let paths = [directory.join(name), directory.clone()];
        let synced = tokio::task::spawn_blocking(move || {
            paths.iter().try_for_each(|path| std::fs::File::open(path)?.sync_all())
        });
        let synced = synced.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        synced.map_err(|error| DestinationError::Failed {
            place: self.place.to_string(),
            reason: error.to_string(),
        })
    }

    async fn put_parts(&self, path: &Path, file: &Bytes) -> object_store::Result<()> {
        let mut upload = self.store.put_multipart(path).await?;
        let sent = send(&mut *upload, file).await;
        if sent.is_err() {
            // What has come already is of no use. A server that is gone forgets it by a rule of its own.
            let _ = upload.abort().await;
        }
        sent
    }

    /// All that is called a backup, by name.
    ///
    /// # Errors
    /// When the destination does not answer.
    pub async fn list(&self) -> Result<Vec<Found>, DestinationError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let listed = self.store.list_with_delimiter(prefix).await;
        let objects = listed.map_err(|error| failed(&self.place, &error))?.objects;
        let mut found: Vec<Found> = objects.into_iter().filter_map(found).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// What every file is that is called a backup, by name. Of those that are `known` and have not been written since
    /// nothing is read again.
    ///
    /// # Errors
    /// When the destination cannot be listed. That one file cannot be read is its verdict, and nobody else's trouble.
    pub async fn survey(
        &self,
        known: &[(Found, Verdict)],
    ) -> Result<Vec<(Found, Verdict)>, DestinationError> {
        let mut all = Vec::new();
        for found in self.list().await? {
            let known =
                known.iter().find(|(one, verdict)| *one == found && !matches!(verdict, Verdict::Unread(_)));
            let verdict = match known {
                Some((_, verdict)) => verdict.clone(),
                None => match self.judge(&found).await {
                    Ok(verdict) => verdict,
                    // It was removed since it was listed.
                    Err(DestinationError::Absent { .. }) => continue,
                    Err(error) => Verdict::Unread(error.to_string()),
                },
            };
            all.push((found, verdict));
        }
        Ok(all)
    }

    /// Reads the whole of one file and says what it is.
    ///
    /// # Errors
    /// When it cannot be read; that says nothing of the file.
    pub async fn judge(&self, found: &Found) -> Result<Verdict, DestinationError> {
        let (mut hash, mut line) = (Sha256::new(), Vec::new());
        self.read(found, |part| {
            line.extend(part.iter().take(LINE - line.len()));
            hash.update(part);
        })
        .await?;
        let head = match head(&line) {
            Ok(head) => head,
            Err(error) => return Ok(Verdict::Damaged(error.to_string())),
        };
        let sha256 = hex::encode(hash.finalize());
        Ok(match found.name.parse::<BackupName>() {
            Ok(name) if name.is_of(&head, &sha256) => Verdict::Whole(name, head),
            Ok(_) => Verdict::Damaged(
                "it is not as it was written: its checksum is not the one in its name".into(),
            ),
            Err(_) => Verdict::Unproven(head),
        })
    }

    /// One whole file.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub async fn get(&self, name: &str) -> Result<Vec<u8>, DestinationError> {
        let at = self.store.head(&self.path(name)).await;
        let found = at.map_err(|error| self.at(name, &error))?;
        let found = Found { name: name.to_owned(), bytes: found.size, version: version(&found) };
        let mut file = Vec::new();
        self.read(&found, |part| file.extend_from_slice(part)).await?;
        Ok(file)
    }

    /// Removes one file; that it is gone already is as good.
    ///
    /// # Errors
    /// When it is still there.
    pub async fn remove(&self, name: &str) -> Result<(), DestinationError> {
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(&self.place, &error)),
        }
    }

    /// Part by part, so that a slow line meets no timeout and no large file lies in memory.
    async fn read(&self, found: &Found, mut take: impl FnMut(&[u8])) -> Result<(), DestinationError> {
        let path = self.path(&found.name);
        let mut at = 0;
        while at < found.bytes {
            let end = found.bytes.min(at + PART as u64);
            let part = self.store.get_range(&path, at..end).await;
            let part = part.map_err(|error| self.at(&found.name, &error))?;
            if part.is_empty() {
                // It is shorter than it was when it was listed; what was read is judged.
                break;
            }
            take(&part);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    fn at(&self, name: &str, error: &object_store::Error) -> DestinationError {
        match error {
            object_store::Error::NotFound { .. } => {
                DestinationError::Absent { place: self.place.to_string(), name: name.to_owned() }
            }
            error => failed(&self.place, error),
        }
    }
}

async fn send(upload: &mut dyn MultipartUpload, file: &Bytes) -> object_store::Result<()> {
    let mut rest = file.clone();
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(PART));
        upload.put_part(PutPayload::from_bytes(part)).await?;
    }
    upload.complete().await.map(drop)
}

fn s3(bucket: &str, access: &Access) -> object_store::Result<AmazonS3> {
    let mut options =
        ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
    for certificate in Certificate::from_pem_bundle(access.ca_pem.as_bytes())? {
        options = options.with_root_certificate(certificate);
    }
    let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRIED_FOR, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&access.region)
        .with_access_key_id(&access.credentials.key_id)
        .with_secret_access_key(&access.credentials.secret)
        .with_client_options(options)
        .with_retry(retry);
    if !access.endpoint.is_empty() {
        builder =
            builder.with_endpoint(&access.endpoint).with_allow_http(access.endpoint.starts_with("http://"));
    }
    builder.build()
}

fn found(object: ObjectMeta) -> Option<Found> {
    let name = object.location.filename().filter(|name| name.ends_with(SUFFIX))?.to_owned();
    Some(Found { name, bytes: object.size, version: version(&object) })
}

fn version(object: &ObjectMeta) -> String {
    format!("{} {}", object.last_modified, object.e_tag.as_deref().unwrap_or_default())
}

/// What storage says, in one line that is the same for the same cause: services answer with pages of XML, of which the
/// code is what people look for, and the library says before the cause how long each attempt took.
fn failed(place: &Place, error: &object_store::Error) -> DestinationError {
    let text = error.to_string();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let words = text.split('<').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let cause = words.rsplit(" - ").next().unwrap_or_default().trim_end_matches([':', ' ']);
    let is_refused = ["401 Unauthorized", "403 Forbidden"].iter().any(|status| cause.contains(status));
    let reason = match (is_refused, code) {
        (true, Some((code, _))) => format!("the credentials are refused ({code})"),
        (true, None) => "the credentials are refused".to_owned(),
        (false, Some((code, _))) => format!("{cause} ({code})"),
        (false, None) => cause.to_owned(),
    };
    DestinationError::Failed { place: place.to_string(), reason }
}

#[cfg(test)]
#[path = "destination_tests.rs"]
mod tests;
