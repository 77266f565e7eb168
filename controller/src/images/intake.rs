//! Bytes on their way into a file: unpacked if they are compressed, counted and digested both as sent and as stored.
//!
//! Its invariant: no more is ever stored or held in memory than the limit allows, however well it was compressed.

use std::io::Write;

use flate2::write::MultiGzDecoder;
use ring::digest::{Context, SHA256};

use super::ImageError;
use super::blobs::Part;

/// Compressed bytes are unpacked in pieces of this size; a piece unpacks to a thousand times as much at most.
const PIECE_BYTES: usize = 16 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Gzip,
    /// Compressed if they look so.
    Detect,
}

/// A file that is arriving.
pub struct Intake {
    part: Part,
    form: Form,
    unpack: Option<MultiGzDecoder<Vec<u8>>>,
    sent: Context,
    stored: Context,
    size_bytes: u64,
    max_bytes: u64,
}

/// A file that has arrived.
pub struct Received {
    pub part: Part,
    /// Digest as sent, hex.
    pub sent_sha256: String,
    /// Digest as stored, hex.
    pub sha256: String,
    pub size_bytes: u64,
}

impl Intake {
    pub fn new(part: Part, form: Form, max_bytes: u64) -> Self {
        let unpack = (form == Form::Gzip).then(|| MultiGzDecoder::new(Vec::new()));
        let (sent, stored) = (Context::new(&SHA256), Context::new(&SHA256));
        Self { part, form, unpack, sent, stored, size_bytes: 0, max_bytes }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When there are too many, they do not unpack, or the disk fails.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        // The first chunk decides; a sender that splits the magic in two gets a raw file, which is then refused.
        if self.form == Form::Detect && !bytes.is_empty() {
            let packed = bytes.starts_with(&GZIP_MAGIC);
            self.unpack = packed.then(|| MultiGzDecoder::new(Vec::new()));
            self.form = if packed { Form::Gzip } else { Form::Plain };
        }
        self.sent.update(bytes);
        let Some(mut unpack) = self.unpack.take() else { return self.store(bytes).await };
        for piece in bytes.chunks(PIECE_BYTES) {
            unpack.write_all(piece).map_err(not_gzip)?;
            unpack.flush().map_err(not_gzip)?;
            let unpacked = std::mem::take(unpack.get_mut());
            self.store(&unpacked).await?;
        }
        self.unpack = Some(unpack);
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it is empty, or compressed and not whole.
    pub async fn finish(mut self) -> Result<Received, ImageError> {
        if let Some(unpack) = self.unpack.take() {
            let rest = unpack.finish().map_err(not_gzip)?;
            self.store(&rest).await?;
        }
        if self.size_bytes == 0 {
            return Err(ImageError::refused("Empty", "the file is empty"));
        }
        self.part.sync().await?;
        Ok(Received {
            part: self.part,
            sent_sha256: hex::encode(self.sent.finish()),
            sha256: hex::encode(self.stored.finish()),
            size_bytes: self.size_bytes,
        })
    }

    async fn store(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.size_bytes += bytes.len() as u64;
        if self.size_bytes > self.max_bytes {
            let message =
                format!("the file has more than {} MiB, the limit of this cloud", self.max_bytes >> 20);
            return Err(ImageError::refused("TooLarge", message));
        }
        self.stored.update(bytes);
        self.part.write(bytes).await
    }
}

fn not_gzip(error: std::io::Error) -> ImageError {
    ImageError::refused("NotGzip", format!("the file cannot be unpacked as gzip: {error}"))
}
