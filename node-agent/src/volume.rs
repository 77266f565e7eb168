//! Volumes as files of directory pools: `<pool>/volumes/<uuid>.qcow2`.
//!
//! Invariant: a file of that name is whole, since it is made aside, fsynced and renamed without replacing. The
//! rename comes before the ledger: killed between the two, the next pass finds the file and writes it down; killed
//! earlier, the left-over aside is thrown away. Once the ledger says made, nothing here makes it again.
//! Deliberately absent: when to do it (`reconcile`), and any removal but of one volume's file on its own order.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::process::Command;
use uuid::Uuid;

use crate::checkpoint::checkpoint;
use crate::desired::{Digest, WantedPool, WantedVolume};
use crate::ledger::{Ledger, LedgerError, sync_dir};
use crate::reconcile::{FileFact, PoolFact};

/// Room that a pool must have before a thin file is made in it, MiB.
const ROOM_MIB: u64 = 64;
/// From this share of its capacity on a pool is called almost full, percent.
const ALARM_PERCENT: u64 = 90;
/// The marker of a pool: its id in one line.
const MARKER: &str = ".tamdao-pool";

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("qemu-img: {0}")]
    QemuImg(String),
    #[error("the pool has {free_mib} MiB left; {ROOM_MIB} are needed to make a file")]
    PoolFull { free_mib: u64 },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl VolumeError {
    /// One CamelCase word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { source, .. }
                if source.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) =>
            {
                "PoolFull"
            }
            Self::Io { .. } => "VolumeIo",
            Self::QemuImg(message) if message.contains("No space left") => "PoolFull",
            Self::QemuImg(_) => "QemuImg",
            Self::PoolFull { .. } => "PoolFull",
            Self::Refused(_) => "VolumeRefused",
            Self::Ledger(_) => "LedgerUnwritable",
        }
    }

    /// It will not pass before something else is asked for.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

type Result<T> = std::result::Result<T, VolumeError>;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError + '_ {
    move |source| VolumeError::Io { path: path.to_owned(), source }
}

/// Where a volume's file is.
#[must_use]
pub fn file_path(pool: &Path, volume: Uuid) -> PathBuf {
    pool.join("volumes").join(format!("{volume}.qcow2"))
}

/// Where the file that another node sends for a volume is written until it is whole.
#[must_use]
pub fn arriving_path(pool: &Path, volume: Uuid) -> PathBuf {
    pool.join("volumes").join(format!("{volume}.qcow2.arriving"))
}

/// Looks at a volume's file.
#[must_use]
pub fn look(pool: &Path, volume: Uuid) -> FileFact {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(file_path(pool, volume)) {
        Ok(metadata) => FileFact { exists: metadata.is_file(), used_mib: (metadata.blocks() * 512) >> 20 },
        Err(_) => FileFact::default(),
    }
}

/// Looks at a pool. A local one that was never `known` is made with its marker; the second value then says so.
/// Without its marker a known or shared pool is absent: another file system may stand in its place.
#[must_use]
pub fn look_at_pool(id: Uuid, pool: &WantedPool, known: bool) -> (PoolFact, bool) {
    let absent = |message: String| (PoolFact { message, ..PoolFact::default() }, false);
    let marker = pool.path.join(MARKER);
    let mut made = false;
    let found = match std::fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !pool.shared && !known => {
            if let Err(error) = make_pool(id, pool) {
                return absent(format!("{}: {error}", pool.path.display()));
            }
            made = true;
            id.to_string()
        }
        Err(error) => return absent(format!("{}: {error}", marker.display())),
    };
    if found.trim() != id.to_string() {
        return absent(format!("{}: belongs to pool {}", marker.display(), found.trim()));
    }
    if let Err(error) = make_directories(&pool.path) {
        return absent(format!("{}: {error}", pool.path.display()));
    }
    match rustix::fs::statvfs(&pool.path) {
        Ok(stat) => {
            let mib = |blocks: u64| {
                u64::try_from((u128::from(blocks) * u128::from(stat.f_frsize)) >> 20).unwrap_or(0)
            };
            let capacity_mib = mib(stat.f_blocks);
            let used_mib = capacity_mib.saturating_sub(mib(stat.f_bavail));
            let percent = used_mib * 100 / capacity_mib.max(1);
            let message =
                if percent >= ALARM_PERCENT { format!("almost full: {percent} %") } else { String::new() };
            (PoolFact { ready: true, capacity_mib, used_mib, message }, made || !known)
        }
        Err(error) => absent(format!("{}: {error}", pool.path.display())),
    }
}

fn make_pool(id: Uuid, pool: &WantedPool) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(&pool.path)?;
    // QEMU's user must be able to pass through, whatever umask the agent runs under.
    std::fs::set_permissions(&pool.path, std::fs::Permissions::from_mode(0o755))?;
    crate::ledger::write_file(&pool.path.join(MARKER), format!("{id}\n").as_bytes(), 0o644)
}

fn make_directories(pool: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for name in ["volumes", "images"] {
        let dir = pool.join(name);
        if !dir.is_dir() {
            std::fs::create_dir_all(&dir)?;
            // QEMU, which is another user, must be able to pass; whose files it opens is libvirt's to say.
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        }
    }
    Ok(())
}

/// What `qemu-img info` says of a file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    pub format: String,
    /// Bytes.
    pub virtual_size: u64,
    pub backing_filename: Option<String>,
    #[serde(default)]
    pub format_specific: serde_json::Value,
}

impl Info {
    /// The virtual size in MiB, rounded up.
    #[must_use]
    pub fn size_mib(&self) -> u32 {
        u32::try_from(self.virtual_size.div_ceil(1 << 20)).unwrap_or(u32::MAX)
    }
}

/// Reads what a file is; works while a guest has it open.
///
/// # Errors
/// qemu-img cannot be run, or does not understand the file.
pub async fn info(path: &Path) -> Result<Info> {
    let output = qemu_img(&["info", "-U", "--output=json"], &[path.as_os_str()]).await?;
    serde_json::from_slice(&output).map_err(|error| VolumeError::QemuImg(error.to_string()))
}

/// Refuses a file that QEMU's own lock says to be in use.
///
/// # Errors
/// It is in use, or cannot be read.
pub async fn check_unused(path: &Path) -> Result<()> {
    qemu_img(&["info", "-f", "qcow2", "--output=json"], &[path.as_os_str()]).await.map(drop)
}

async fn qemu_img(words: &[&str], more: &[&std::ffi::OsStr]) -> Result<Vec<u8>> {
    let output = Command::new("qemu-img")
        .args(words)
        .args(more)
        .env("LC_ALL", "C")
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| VolumeError::QemuImg(error.to_string()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("qemu-img: ").to_owned();
    Err(VolumeError::QemuImg(said))
}

/// An image's file and what it is.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: PathBuf,
    pub info: Info,
}

impl Source {
    /// # Errors
    /// As for [`info`].
    pub async fn read(path: PathBuf) -> Result<Self> {
        let info = info(&path).await?;
        Ok(Self { path, info })
    }
}

/// One volume with all that its steps need.
#[derive(Clone, Debug)]
pub struct Volume {
    pub id: Uuid,
    pub wanted: WantedVolume,
    pub pool: WantedPool,
}

impl Volume {
    #[must_use]
    pub fn path(&self) -> PathBuf {
        file_path(&self.pool.path, self.id)
    }

    /// Whether the pool is still there: between the look and the act its file system may have gone, and what lies
    /// under a mount point is not the pool.
    fn check_pool(&self) -> Result<()> {
        let marker = self.pool.path.join(MARKER);
        let found = std::fs::read_to_string(&marker).map_err(io(&marker))?;
        if found.trim() == self.wanted.pool.to_string() {
            return Ok(());
        }
        Err(io(&marker)(std::io::Error::other("is another pool's")))
    }

    /// Makes the file. `image` is of the cache, when it starts from one.
    ///
    /// # Errors
    /// There is no room, the image or the size cannot be used, or a step of it fails: nothing is left but aside.
    pub async fn make(&self, image: Option<&Source>, ledger: &Ledger) -> Result<()> {
        self.check_pool()?;
        let path = self.path();
        let dir = path.parent().ok_or_else(|| VolumeError::Refused("a pool needs a path".into()))?.to_owned();
        let aside = dir.join(format!(".{}.making", self.id));
        match tokio::fs::remove_file(&aside).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&aside)(error)),
            _ => {}
        }
        let stat = rustix::fs::statvfs(&dir).map_err(|error| io(&dir)(error.into()))?;
        let free_mib = (stat.f_bavail * stat.f_frsize) >> 20;
        if free_mib < ROOM_MIB {
            return Err(VolumeError::PoolFull { free_mib });
        }
        let size_mib = self.create(&aside, image).await?;
        tokio::fs::File::open(&aside).await.map_err(io(&aside))?.sync_all().await.map_err(io(&aside))?;
        checkpoint("volume-aside").await;
        // Never over a file that is there, whoever made it.
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &aside,
            rustix::fs::CWD,
            &path,
            rustix::fs::RenameFlags::NOREPLACE,
        )
        .map_err(|error| io(&path)(error.into()))?;
        sync_dir(&dir).map_err(io(&dir))?;
        checkpoint("volume-renamed").await;
        self.write_down(size_mib, ledger).await?;
        checkpoint("volume").await;
        Ok(())
    }

    /// Makes the file aside and returns its virtual size, MiB.
    async fn create(&self, aside: &Path, image: Option<&Source>) -> Result<u32> {
        let Some(image) = image else {
            if self.wanted.size_mib == 0 {
                return Err(VolumeError::Refused("an empty volume needs a size".into()));
            }
            let size = format!("{}M", self.wanted.size_mib);
            qemu_img(&["create", "-q", "-f", "qcow2"], &[aside.as_os_str(), size.as_ref()]).await?;
            return Ok(self.wanted.size_mib);
        };
        let what = &image.info;
        let hostile =
            what.backing_filename.is_some() || what.format_specific["data"]["data-file"].is_string();
        if hostile || !matches!(what.format.as_str(), "qcow2" | "raw") {
            // The controller refuses such images; one that got here must not be opened for a guest.
            return Err(VolumeError::Refused(
                "the image refers to other files, or is neither qcow2 nor raw".into(),
            ));
        }
        let size_mib = if self.wanted.size_mib == 0 { what.size_mib() } else { self.wanted.size_mib };
        if size_mib < what.size_mib() {
            let message = format!("{size_mib} MiB are asked for, the image has {} MiB", what.size_mib());
            return Err(VolumeError::Refused(message));
        }
        let backing = self.backing(&image.path).await?;
        let size = format!("{size_mib}M");
        let words = ["create", "-q", "-f", "qcow2", "-F", &what.format, "-b", &backing];
        qemu_img(&words, &[aside.as_os_str(), size.as_ref()]).await?;
        Ok(size_mib)
    }

    /// Receives a file that another node sends, and puts it in the place of the one that was made for it.
    ///
    /// # Errors
    /// It does not come whole, is no disk that a guest may have, or cannot be written: the one that was made stays.
    pub async fn receive(
        &self,
        stream: &mut (impl tokio::io::AsyncRead + Unpin),
        size_bytes: u64,
        image: Option<&Source>,
        ledger: &Ledger,
    ) -> Result<()> {
        self.check_pool()?;
        let aside = arriving_path(&self.pool.path, self.id);
        let received = crate::moves::files::receive(stream, &aside, size_bytes).await;
        let placed = match received {
            Ok(()) => self.place(&aside, image, ledger).await,
            Err(error) => Err(io(&aside)(error)),
        };
        if placed.is_err() {
            // It may have filled the pool. If it cannot be removed now, it is when the move is cleared.
            let _ = tokio::fs::remove_file(&aside).await;
        }
        placed
    }

    async fn place(&self, aside: &Path, image: Option<&Source>, ledger: &Ledger) -> Result<()> {
        let words = ["info", "-f", "qcow2", "--output=json"];
        let what: Info = serde_json::from_slice(&qemu_img(&words, &[aside.as_os_str()]).await?)
            .map_err(|error| VolumeError::QemuImg(error.to_string()))?;
        if what.format_specific["data"]["data-file"].is_string() {
            return Err(VolumeError::Refused("the file that was sent refers to another one".into()));
        }
        if what.backing_filename.is_some() {
            // Each node has its cache elsewhere.
            let image =
                image.ok_or_else(|| VolumeError::Refused("a volume without image has a base".into()))?;
            let backing = self.backing(&image.path).await?;
            let words = ["rebase", "-q", "-u", "-f", "qcow2", "-F", &image.info.format, "-b", &backing];
            qemu_img(&words, &[aside.as_os_str()]).await?;
        }
        tokio::fs::File::open(aside).await.map_err(io(aside))?.sync_all().await.map_err(io(aside))?;
        checkpoint("disk-aside").await;
        self.check_pool()?;
        let path = self.path();
        std::fs::rename(aside, &path).map_err(io(&path))?;
        if let Some(dir) = path.parent() {
            sync_dir(dir).map_err(io(dir))?;
        }
        checkpoint("disk-placed").await;
        // As large as it came: what it was to grow to before it left, it grows to here.
        self.write_down(what.size_mib(), ledger).await
    }

    /// The backing file's name as the overlay says it. In a local pool it is the cache's; a shared pool keeps its
    /// own copy beside the volumes, by a relative name, since other nodes have other caches.
    async fn backing(&self, image: &Path) -> Result<String> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| VolumeError::Refused("a path is not UTF-8".into()))
        };
        let Some(digest) = self.wanted.image.as_ref().filter(|_| self.pool.shared) else {
            return text(image);
        };
        let copy = shared_image(&self.pool, digest);
        if !copy.exists() {
            let aside = self.pool.path.join("images").join(format!(".{digest}.{}", Uuid::new_v4()));
            tokio::fs::copy(image, &aside).await.map_err(io(&aside))?;
            tokio::fs::File::open(&aside).await.map_err(io(&aside))?.sync_all().await.map_err(io(&aside))?;
            tokio::fs::rename(&aside, &copy).await.map_err(io(&copy))?;
            sync_dir(&self.pool.path.join("images")).map_err(io(&copy))?;
        }
        Ok(format!("../images/{digest}"))
    }

    async fn write_down(&self, size_mib: u32, ledger: &Ledger) -> Result<()> {
        let (pool, image, copy) = (self.wanted.pool, self.wanted.image.clone(), self.wanted.copy);
        ledger
            .volume(self.id, move |record| {
                record.pool = pool;
                record.made = true;
                record.size_mib = size_mib;
                record.image = image;
                record.deleted = false;
                record.copy = copy;
            })
            .await?;
        Ok(())
    }

    /// Writes down a file that is there and not in the ledger.
    ///
    /// # Errors
    /// It was removed on order, or is no qcow2.
    pub async fn recognise(&self, ledger: &Ledger) -> Result<()> {
        if ledger
            .state()
            .volumes
            .get(&self.id)
            .is_some_and(|record| record.deleted && record.copy >= self.wanted.copy)
        {
            return Err(VolumeError::Refused("it was deleted, and a file of its name has come back".into()));
        }
        let what = info(&self.path()).await?;
        if what.format != "qcow2" {
            return Err(VolumeError::Refused(format!("its file is {}, not qcow2", what.format)));
        }
        self.write_down(what.size_mib(), ledger).await
    }

    /// Makes the file larger. Only while no guest has it open.
    ///
    /// # Errors
    /// qemu-img refuses, for example because the file is locked.
    pub async fn grow(&self, size_mib: u32, ledger: &Ledger) -> Result<()> {
        let path = self.path();
        let size = format!("{size_mib}M");
        if info(&path).await?.virtual_size < u64::from(size_mib) << 20 {
            qemu_img(&["resize", "-q", "-f", "qcow2"], &[path.as_os_str(), size.as_ref()]).await?;
        }
        ledger.volume(self.id, move |record| record.size_mib = size_mib).await?;
        Ok(())
    }

    /// Removes the file and its data. A file that is not there is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn delete(&self, ledger: &Ledger) -> Result<()> {
        self.check_pool()?;
        let path = self.path();
        for path in [arriving_path(&self.pool.path, self.id), path.clone()] {
            match tokio::fs::remove_file(&path).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&path)(error)),
                _ => {}
            }
        }
        if let Some(dir) = path.parent() {
            sync_dir(dir).map_err(io(dir))?;
        }
        checkpoint("volume-removed").await;
        let (pool, copy) = (self.wanted.pool, self.wanted.copy);
        ledger
            .volume(self.id, move |record| {
                record.pool = pool;
                record.copy = record.copy.max(copy);
                record.made = false;
                record.deleted = true;
                record.image = None;
            })
            .await?;
        Ok(())
    }
}

/// A shared pool's own copy of an image.
#[must_use]
pub fn shared_image(pool: &WantedPool, digest: &Digest) -> PathBuf {
    pool.path.join("images").join(digest.as_str())
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
