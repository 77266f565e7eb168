//! The leader's part: images with a URL are fetched, and imports that nobody works on are taken up again.
//!
//! Its invariant: an image in Importing without a file is either being received here, or this loop sees to it. What
//! can pass is tried again with growing pauses; what cannot makes the image Failed.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use tamdao_model::ImageId;
use tamdao_model::image::{Image, ImagePhase};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::intake::Form;
use super::{Handle, ImageError, Images, is_disk, record};
use crate::peers::chain;
use crate::refusal::Refusal;

const PERIOD: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A server may think, but not for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const REDIRECTS: usize = 5;
/// How often the condition tells how far it is: each time is a write.
const PROGRESS: Duration = Duration::from_secs(10);

/// When a URL is tried next.
struct Pause {
    length: Duration,
    until: Instant,
}

/// Sees to the images without a file while this controller leads, until it is stopped.
pub async fn run(images: Handle, stop: CancellationToken) {
    let mut changes = images.cache.changes();
    let mut pauses = HashMap::new();
    let client = match client(&images.limits.ca_pem) {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "images cannot be fetched by url");
            return;
        }
    };
    loop {
        if images.forward.leads() {
            images.see_to_all(&client, &mut pauses, &stop).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

fn client(ca_pem: &str) -> Result<reqwest::Client, reqwest::Error> {
    // The library takes the process's provider; a second call finds it set, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder();
    for certificate in reqwest::Certificate::from_pem_bundle(ca_pem.as_bytes())? {
        builder = builder.add_root_certificate(certificate);
    }
    builder
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(reqwest::redirect::Policy::limited(REDIRECTS))
        .user_agent(concat!("tamdao-controller/", env!("CARGO_PKG_VERSION")))
        .build()
}

impl Images {
    async fn see_to_all(
        &self,
        client: &reqwest::Client,
        pauses: &mut HashMap<ImageId, Pause>,
        stop: &CancellationToken,
    ) {
        let view = self.cache.view();
        pauses.retain(|id, _| view.images.get(id).is_some());
        for image in view.images.iter().filter(|image| image.status.sha256.is_empty()) {
            let id = image.id();
            let paused = pauses.get(&id).is_some_and(|pause| pause.until > Instant::now());
            if paused || self.runs(id) || stop.is_cancelled() {
                continue;
            }
            match (image.status.phase, image.spec.url.is_empty()) {
                (ImagePhase::Pending | ImagePhase::Importing, false) => {
                    let fetched = tokio::select! {
                        () = stop.cancelled() => return,
                        fetched = self.fetch(client, &image.value) => fetched,
                    };
                    match fetched {
                        Ok(()) => drop(pauses.remove(&id)),
                        Err(error) => {
                            tracing::warn!(image = %id, %error, "image not fetched");
                            let length = pauses.get(&id).map_or(FIRST_PAUSE, |pause| pause.length * 2);
                            let length = length.min(LONGEST_PAUSE);
                            pauses.insert(id, Pause { length, until: Instant::now() + length });
                        }
                    }
                }
                // Its sender has gone, or an earlier leader has.
                (ImagePhase::Importing, true) => {
                    let message = "the upload broke off; send the file again";
                    let told = self.writer.submit(move |draft, moment| {
                        record::wait(draft, id, "BrokenOff", message, moment.now)
                    });
                    if let Err(error) = told.await {
                        tracing::debug!(image = %id, %error, "image not reset");
                    }
                }
                (ImagePhase::Pending, true) | (ImagePhase::Available | ImagePhase::Failed, _) => {}
            }
        }
    }

    /// Fetches one image; an error is one that may pass.
    async fn fetch(&self, client: &reqwest::Client, image: &Image) -> Result<(), Refusal> {
        let id = image.id();
        let _running = self.claim(id)?;
        let (expected, _) =
            self.writer.submit(move |draft, moment| record::begin(draft, id, moment.now)).await?;
        match self.fetch_file(client, image, &expected).await {
            Ok(stored) => self.commit(id, stored).await.map(drop),
            Err(error) => {
                let (reason, message) = (error.reason(), error.to_string());
                let failed = matches!(error, ImageError::Refused { .. });
                let told = self.writer.submit(move |draft, moment| match failed {
                    true => record::fail(draft, id, reason, &message, moment.now),
                    false => record::wait(draft, id, reason, &message, moment.now),
                });
                told.await?;
                if failed { Ok(()) } else { Err(error.into()) }
            }
        }
    }

    async fn fetch_file(
        &self,
        client: &reqwest::Client,
        image: &Image,
        expected: &record::Expected,
    ) -> Result<super::Stored, ImageError> {
        let broken = |error: reqwest::Error| ImageError::Broken(chain(&error.without_url()));
        let response =
            client.get(&image.spec.url).send().await.map_err(|error| match error.is_builder() {
                true => ImageError::refused("BadUrl", format!("spec.url: {}", chain(&error))),
                false => broken(error),
            })?;
        let status = response.status();
        if !status.is_success() {
            let message = format!("the server answered {status}");
            // What the server blames on us stays wrong; what it blames on itself may pass.
            return Err(match status.is_client_error() && status.as_u16() != 429 {
                true => ImageError::refused("NotFetched", message),
                false => ImageError::Broken(message),
            });
        }
        let total = response.content_length();
        if total.is_some_and(|total| total > self.limits.max_bytes) {
            let message = format!("the file has more than {} MiB", self.limits.max_bytes >> 20);
            return Err(ImageError::refused("TooLarge", message));
        }
        let (id, mut arrived, mut told) = (image.id(), 0, Instant::now());
        let chunks = response.bytes_stream().then(|chunk| {
            arrived += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
            let tell = told.elapsed() >= PROGRESS;
            if tell {
                told = Instant::now();
            }
            async move {
                if tell {
                    self.tell_progress(id, arrived, total).await;
                }
                chunk.map_err(broken)
            }
        });
        // Ram disks are compressed for their kernel, which unpacks them itself.
        let form = if is_disk(expected.kind) { Form::Detect } else { Form::Plain };
        self.keep(chunks, form, expected).await
    }

    async fn tell_progress(&self, id: ImageId, arrived: u64, total: Option<u64>) {
        let message = match total {
            Some(total) => format!("{} of {} MiB have arrived", arrived >> 20, total >> 20),
            None => format!("{} MiB have arrived", arrived >> 20),
        };
        let told =
            self.writer.submit(move |draft, moment| record::progress(draft, id, &message, moment.now)).await;
        if let Err(error) = told {
            tracing::debug!(image = %id, %error, "progress not told");
        }
    }
}
