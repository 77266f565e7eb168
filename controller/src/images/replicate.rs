//! Every controller gets a copy of every image, and drops those that no record names any more.
//!
//! Its invariant: a copy is verified before it counts; a copy that broke off goes on where it stopped. The loop is
//! level-triggered: it looks at what the view wants and what the disk has, and may be killed at any line.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ::http::header::RANGE;
use ::http::{Method, Request, StatusCode};
use axum::body::{Body, Bytes};
use futures::StreamExt;
use ring::digest::{Context, SHA256};
use tamdao_model::ImageId;
use tamdao_model::image::Image;
use tamdao_store::view::View;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::blobs::is_digest;
use super::{Handle, ImageError, Images, record};
use crate::refusal::Refusal;

/// How often it looks when nothing has changed: also how soon a failed copy is tried again.
const PERIOD: Duration = Duration::from_secs(10);
/// How long a file without a record stays, since a record may be about to be written.
const LINGER: Duration = Duration::from_secs(600);
const COPY_IDLE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 1 << 20;

/// Keeps this controller's copies up to date until it is stopped.
pub async fn run(images: Handle, stop: CancellationToken) {
    let mut changes = images.cache.changes();
    let mut unwanted = HashMap::new();
    loop {
        if let Err(error) = images.copy_missing().await {
            tracing::warn!(%error, "images not copied");
        }
        if let Err(error) = images.drop_unwanted(&mut unwanted, LINGER).await {
            tracing::warn!(%error, "unused images not removed");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
            changed = changes.changed() => {
                // Many changes at once are one reason to look.
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// Digests and the images that need them.
fn wanted(view: &View) -> BTreeMap<&str, Vec<&Image>> {
    let mut wanted: BTreeMap<&str, Vec<&Image>> = BTreeMap::new();
    for image in view.images.iter().filter(|image| is_digest(&image.status.sha256)) {
        wanted.entry(&image.status.sha256).or_default().push(&image.value);
    }
    wanted
}

impl Images {
    /// Copies what is wanted and not here, and tells the leader what is here.
    ///
    /// # Errors
    /// The last failure; the other copies were tried all the same.
    pub(super) async fn copy_missing(&self) -> Result<(), ImageError> {
        let view = self.cache.view();
        let mut outcome = Ok(());
        for (sha256, images) in wanted(&view) {
            if self.blobs.size(sha256).await.is_none()
                && let Err(error) = self.copy(&view, sha256, images[0]).await
            {
                outcome = Err(error);
                continue;
            }
            for image in images.iter().filter(|image| !image.status.controllers.contains(&self.me)) {
                if let Err(error) = self.tell(image.id(), sha256).await {
                    tracing::debug!(image = %image.id(), %error, "leader not told of an image");
                }
            }
        }
        outcome
    }

    /// Copies one file from whichever controller has it.
    async fn copy(&self, view: &View, sha256: &str, image: &Image) -> Result<(), ImageError> {
        let holders = image.status.controllers.iter().filter(|id| **id != self.me);
        let mut last = ImageError::Broken("no other controller holds it".into());
        for holder in holders.filter_map(|id| view.controllers.get(id)) {
            match self.copy_from(&holder.address, sha256, image.status.size_bytes).await {
                Ok(()) => {
                    tracing::info!(image = %image.id(), from = %holder.meta.name, "image copied");
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn copy_from(&self, address: &str, sha256: &str, size_bytes: u64) -> Result<(), ImageError> {
        let (mut part, mut have) = self.blobs.resume(sha256).await?;
        if have > size_bytes {
            part.discard().await;
            return Err(ImageError::Broken("what was copied earlier is too long; it begins anew".into()));
        }
        let broken = |what: String| ImageError::Broken(format!("{address}: {what}"));
        if have < size_bytes {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = format!("/images/{sha256}").parse().expect("a digest makes a path");
            let range = format!("bytes={have}-").parse().expect("a number makes a header");
            request.headers_mut().insert(RANGE, range);
            let response = self
                .peers
                .send(address, request)
                .await
                .map_err(|error| ImageError::Broken(error.to_string()))?;
            if response.status() != StatusCode::PARTIAL_CONTENT {
                return Err(broken(format!("answered {}", response.status())));
            }
            let mut bytes = Body::new(response.into_body()).into_data_stream();
            loop {
                let next = tokio::time::timeout(COPY_IDLE, bytes.next()).await;
                let next = next.map_err(|_| broken("sent nothing more".into()))?;
                let Some(chunk) = next else { break };
                let chunk = chunk.map_err(|error| broken(error.to_string()))?;
                have += chunk.len() as u64;
                if have > size_bytes {
                    break;
                }
                part.write(&chunk).await?;
            }
        }
        part.sync().await?;
        if have < size_bytes {
            return Err(broken("broke off".into()));
        }
        if have > size_bytes || digest_of(part.path()).await? != sha256 {
            part.discard().await;
            return Err(broken("sent another file than it should".into()));
        }
        part.keep_as(sha256).await
    }

    /// Lets the record say that this controller holds the file.
    async fn tell(&self, image: ImageId, sha256: &str) -> Result<(), Refusal> {
        if self.forward.leads() {
            return self.hold(image, sha256.to_owned(), self.me).await;
        }
        let path = format!("/internal/images/{image}/held?sha256={sha256}");
        let (parts, ()) = Request::builder()
            .method(Method::POST)
            .uri(path)
            .body(())
            .expect("ids and digests make a path")
            .into_parts();
        let response = self.forward.ask(parts, Bytes::new()).await?;
        match response.status().is_success() {
            true => Ok(()),
            false => Err(Refusal::unavailable(format!("the leader answered {}", response.status()))),
        }
    }

    /// The leader's part of [`Self::tell`].
    pub(super) async fn hold(
        &self,
        image: ImageId,
        sha256: String,
        controller: tamdao_model::ControllerId,
    ) -> Result<(), Refusal> {
        let decided = self
            .writer
            .submit(move |draft, moment| record::held(draft, image, &sha256, controller, moment.now))
            .await?;
        let ((), _) = decided;
        Ok(())
    }

    /// Removes files that no record has named for a while; `since` remembers from one pass to the next.
    pub(super) async fn drop_unwanted(
        &self,
        since: &mut HashMap<String, Instant>,
        linger: Duration,
    ) -> Result<(), ImageError> {
        let view = self.cache.view();
        // Before the first list of the store everything would look unwanted.
        if view.cluster().is_none() {
            return Ok(());
        }
        let wanted = wanted(&view);
        let here = self.blobs.list().await?;
        since.retain(|sha256, _| here.contains(sha256) && !wanted.contains_key(sha256.as_str()));
        let now = Instant::now();
        for sha256 in here.iter().filter(|sha256| !wanted.contains_key(sha256.as_str())) {
            if now.duration_since(*since.entry(sha256.clone()).or_insert(now)) >= linger {
                self.blobs.remove(sha256).await?;
                tracing::info!(sha256, "unused image removed");
            }
        }
        Ok(())
    }
}

async fn digest_of(path: &std::path::Path) -> Result<String, ImageError> {
    let read = async {
        let mut file = tokio::fs::File::open(path).await?;
        let (mut digest, mut buffer) = (Context::new(&SHA256), vec![0; READ_BYTES]);
        loop {
            match file.read(&mut buffer).await? {
                0 => return Ok(hex::encode(digest.finish())),
                count => digest.update(&buffer[..count]),
            }
        }
    };
    read.await.map_err(|source| ImageError::File { path: path.to_owned(), source })
}
