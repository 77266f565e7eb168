//! The bytes of images: received, checked, kept under their digest, and copied to every controller.
//!
//! Its invariant: a file under a digest's name has that digest and was on disk before its record says so; a record
//! says that a controller holds it only when it does. What a user sends is hostile until it was inspected. Only the
//! leader writes records; every controller copies what it lacks. Deliberately absent: the nodes' own caches.

mod blobs;
mod fetch;
mod http;
mod inspect;
mod intake;
mod record;
mod replicate;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use futures::{Stream, StreamExt};
use tamdao_model::image::{ImageKind, ImageStatus};
use tamdao_model::{ControllerId, ImageId, Kind};
use tamdao_store::cache::Cache;
use tamdao_store::kv::Revision;
use tonic::{Code, Status};

use crate::admission::Writer;
use crate::config::ImagesConfig;
use crate::forward::Forward;
use crate::peers::Peers;
use crate::refusal::Refusal;
use blobs::Blobs;
use intake::{Form, Intake};

pub use fetch::run as fetch;
pub use http::routes;
pub use replicate::run as replicate;

/// A sender that is silent for so long has gone, even if its connection stands.
const IDLE: Duration = Duration::from_secs(60);

/// What is wrong with an image or with its way here.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file itself is not acceptable; another attempt would not help.
    #[error("{message}")]
    Refused { reason: &'static str, message: String },
    /// The bytes broke off or did not come; another attempt may help.
    #[error("{0}")]
    Broken(String),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
}

impl ImageError {
    fn refused(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { reason, message: message.into() }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Refused { reason, .. } => reason,
            Self::Broken(_) => "BrokenOff",
            Self::File { .. } => "DiskFailed",
        }
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        let (reason, message) = (error.reason(), error.to_string());
        match error {
            ImageError::Refused { .. } => Self::new(Code::InvalidArgument, reason, message)
                .hint("the image is Failed; send another file to the same image, or delete it"),
            ImageError::Broken(_) => {
                Self::new(Code::Aborted, reason, message).hint("nothing was stored; send the file again")
            }
            ImageError::File { .. } => {
                Self::new(Code::Internal, reason, message).hint("look at the controller's disk")
            }
        }
    }
}

/// A file that is kept, as its record will say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Digest of the stored file, hex.
    pub sha256: String,
    pub size_bytes: u64,
    /// qcow2 or raw; empty for kernels and ram disks.
    pub format: String,
    pub virtual_size_mib: u32,
}

impl Stored {
    fn write_to(&self, status: &mut ImageStatus) {
        status.sha256.clone_from(&self.sha256);
        status.size_bytes = self.size_bytes;
        status.format.clone_from(&self.format);
        status.virtual_size_mib = self.virtual_size_mib;
    }
}

/// What [`Images`] works with.
pub struct Setup {
    /// Where the files lie; made when it does not exist.
    pub directory: PathBuf,
    pub me: ControllerId,
    pub limits: ImagesConfig,
    pub cache: Cache,
    pub writer: Writer,
    pub peers: Peers,
    /// By which a follower tells the leader what it holds.
    pub forward: Forward,
}

/// The images of this controller.
pub struct Images {
    me: ControllerId,
    blobs: Blobs,
    limits: ImagesConfig,
    cache: Cache,
    writer: Writer,
    peers: Peers,
    forward: Forward,
    /// Imports that run here now; one at a time for each image.
    running: Mutex<HashSet<ImageId>>,
}

impl Images {
    /// Opens the store of files, and removes what an earlier run has left half done.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(setup: Setup) -> Result<Self, ImageError> {
        let Setup { directory, me, limits, cache, writer, peers, forward } = setup;
        let blobs = Blobs::open(directory)?;
        Ok(Self { me, blobs, limits, cache, writer, peers, forward, running: Mutex::default() })
    }

    /// Receives the file of an image, checks and keeps it, and returns the revision that says so.
    ///
    /// # Errors
    /// `FailedPrecondition` when the image does not wait for a file, `InvalidArgument` when the file is not
    /// acceptable, `Aborted` when it broke off.
    pub async fn receive<S>(&self, image: ImageId, chunks: S, gzip: bool) -> Result<Revision, Refusal>
    where
        S: Stream<Item = Result<Bytes, Status>> + Send,
    {
        let _running = self.claim(image)?;
        let (expected, _) =
            self.writer.submit(move |draft, moment| record::begin(draft, image, moment.now)).await?;
        let form = if gzip { Form::Gzip } else { Form::Plain };
        let chunks =
            chunks.map(|chunk| chunk.map_err(|status| ImageError::Broken(status.message().to_owned())));
        match self.keep(chunks, form, &expected).await {
            Ok(stored) => self.commit(image, stored).await,
            Err(error) => {
                tracing::warn!(%image, %error, "image not accepted");
                let (reason, message) = (error.reason(), error.to_string());
                let refused = matches!(error, ImageError::Refused { .. });
                let told = self.writer.submit(move |draft, moment| match refused {
                    true => record::fail(draft, image, reason, &message, moment.now),
                    false => record::wait(draft, image, reason, &message, moment.now),
                });
                told.await?;
                Err(error.into())
            }
        }
    }

    /// Takes a stream of bytes in and inspects the file that it makes.
    async fn keep<S>(&self, chunks: S, form: Form, expected: &record::Expected) -> Result<Stored, ImageError>
    where
        S: Stream<Item = Result<Bytes, ImageError>> + Send,
    {
        let mut intake = Intake::new(self.blobs.part().await?, form, self.limits.max_bytes);
        let mut chunks = std::pin::pin!(chunks);
        loop {
            let next = tokio::time::timeout(IDLE, chunks.next()).await;
            let next = next.map_err(|_| ImageError::Broken("nothing more was sent".into()))?;
            match next {
                Some(chunk) => intake.push(&chunk?).await?,
                None => break,
            }
        }
        let received = intake.finish().await?;
        if !expected.sha256.is_empty() && !expected.sha256.eq_ignore_ascii_case(&received.sent_sha256) {
            let message = format!(
                "the file as sent has sha256 {}, spec.sha256 is {}",
                received.sent_sha256, expected.sha256
            );
            return Err(ImageError::refused("ChecksumMismatch", message));
        }
        let facts =
            inspect::inspect(received.part.path(), expected.kind, received.size_bytes, &self.limits).await?;
        received.part.keep_as(&received.sha256).await?;
        Ok(Stored {
            sha256: received.sha256,
            size_bytes: received.size_bytes,
            format: facts.format,
            virtual_size_mib: facts.virtual_size_mib,
        })
    }

    async fn commit(&self, image: ImageId, stored: Stored) -> Result<Revision, Refusal> {
        let me = self.me;
        let decided = self
            .writer
            .submit(move |draft, moment| record::store(draft, image, &stored, me, moment.now))
            .await?;
        Ok(decided.1)
    }

    /// Makes sure that an image is imported once at a time.
    fn claim(&self, image: ImageId) -> Result<Running<'_>, Refusal> {
        match self.running.lock().expect("no holder of the lock panics").insert(image) {
            true => Ok(Running { images: self, image }),
            false => Err(Refusal::precondition("Importing", "a file for this image is arriving already")),
        }
    }

    fn runs(&self, image: ImageId) -> bool {
        self.running.lock().expect("no holder of the lock panics").contains(&image)
    }
}

/// An import that runs; dropping it, as when the caller has gone, ends the claim.
struct Running<'a> {
    images: &'a Images,
    image: ImageId,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.images.running.lock().expect("no holder of the lock panics").remove(&self.image);
    }
}

/// Shared handles, as the loops take them.
pub type Handle = Arc<Images>;

fn not_found(image: ImageId) -> Refusal {
    Refusal::not_found(Kind::Image, &image.to_string())
}

/// Whether a file of this kind is looked into, or taken as it is.
fn is_disk(kind: ImageKind) -> bool {
    match kind {
        ImageKind::Disk => true,
        ImageKind::Kernel | ImageKind::Initrd | ImageKind::Iso => false,
    }
}
