//! What makes a host of the testbed one whose guests are guarded: a shared directory, a keeper inside and a watchdog
//! outside. And what may go wrong with each.

use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::Signal;

use crate::process::{Process, children, signal};
use crate::slot::Slot;
use crate::testbed::Testbed;
use crate::wait::{SOON, eventually, not_yet};
use crate::{Result, binaries};

/// Where the shared pool lies on every host.
pub const SHARED: &str = "/var/lib/libvirt/shared";
/// A storage lease, ms: long enough for a machine that compiles beside the test.
pub const LEASE_MS: u64 = 18_000;
/// The watchdog's part of it, ms.
const WATCHDOG_MS: u64 = 3_000;

/// What becomes of a process that is killed while it has a file open on a storage that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// It dies, as one that has nothing under way.
    Dies,
    /// It stays and cannot be reaped, as one that waits for a disk that is dead: each close waits for the storage.
    Stays,
}

/// Keeper, watchdog and shared storage of one host.
pub struct Guarded {
    pub node: String,
    pub log: PathBuf,
    testbed: Testbed,
    shared: PathBuf,
    config: PathBuf,
    keeper: Option<Process>,
    watchdog: Option<Process>,
    /// The storage is a file system in a process, which can be stopped.
    hang: Option<Hang>,
    storage: Option<Process>,
}

impl Guarded {
    /// Mounts the shared directory of the slot in a host and starts its watchdog and its keeper.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub async fn start(slot: &Slot, testbed: &Testbed, node: &str, hang: Option<Hang>) -> Result<Self> {
        let home = slot.directory.join(node);
        std::fs::create_dir_all(&home)?;
        let shared = slot.directory.join("shared");
        std::fs::create_dir_all(&shared)?;
        let config = home.join("keeper.toml");
        let text = format!(
            "watchdog = '/run/tamdao-keeper/watchdog'\nwatchdog_timeout_ms = {WATCHDOG_MS}\n\
             socket = '/run/tamdao-keeper/socket'\nstate = '/run/tamdao-keeper/state.json'\n"
        );
        std::fs::write(&config, text)?;
        let (node, log, testbed) = (node.to_owned(), home.join("keeper.log"), testbed.clone());
        let (keeper, watchdog, storage) = (None, None, None);
        let mut guarded = Self { node, log, testbed, shared, config, keeper, watchdog, hang, storage };
        guarded.begin(slot).await?;
        Ok(guarded)
    }

    /// Starts everything again after a boot of the host.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn begin(&mut self, slot: &Slot) -> Result<()> {
        match self.hang {
            Some(hang) => self.lay(hang).await?,
            None => self.mount()?,
        }
        let seconds = (WATCHDOG_MS / 1_000).to_string();
        let mut command = self.testbed.watchdog(&self.node, &seconds);
        let watchdog = Process::start(&format!("the watchdog of {}", self.node), &mut command, &self.log)?;
        slot.note(watchdog.id())?;
        self.watchdog = Some(watchdog);
        let pipe = self.testbed.directory.join(&self.node).join("run/tamdao-keeper/watchdog");
        eventually("the watchdog listens", SOON, async || match pipe.exists() {
            true => Ok(()),
            false => not_yet("there is no pipe"),
        })
        .await?;
        self.start_keeper()
    }

    fn start_keeper(&mut self) -> Result<()> {
        let mut command = self.testbed.inside(&self.node);
        command.arg(binaries::find("tamdao-keeper")?).arg("--config").arg(&self.config);
        self.keeper = Some(Process::start(&format!("the keeper of {}", self.node), &mut command, &self.log)?);
        Ok(())
    }

    /// The keeper dies, and comes back at once, as its service manager has it.
    ///
    /// # Errors
    /// When it does not run, or does not come back.
    pub async fn kill_keeper(&mut self) -> Result<()> {
        self.signal_keeper(Signal::KILL)?;
        let mut old = self.keeper.take().context("the keeper is not started")?;
        old.wait(SOON).await?;
        self.start_keeper()
    }

    /// Lays a file system that is a process of the host over the shared directory. With locks forwarded the hosts see
    /// each other's image locks, and the kernel asks the file system at each close and waits for it, also for a process that
    /// was killed. Without that a host has its locks for itself.
    async fn lay(&mut self, hang: Hang) -> Result<()> {
        self.testbed.shell(&self.node, &format!("mkdir -p {SHARED}"))?;
        let mut command = self.testbed.inside(&self.node);
        command.args(["bindfs", "-f", "--multithreaded", "--forward-odirect=4096"]);
        if hang == Hang::Stays {
            command.arg("--enable-lock-forwarding");
        }
        command.arg(&self.shared).arg(SHARED);
        let name = format!("the storage of {}", self.node);
        self.storage = Some(Process::start(&name, &mut command, &self.log)?);
        eventually("the shared directory is there", SOON, async || {
            self.testbed.shell(&self.node, &format!("mountpoint {SHARED}")).map(drop)
        })
        .await
    }

    /// The storage hangs from here on, or answers again: whoever asks it waits.
    ///
    /// # Errors
    /// When it is none that can hang.
    pub fn hang(&self, hangs: bool) -> Result<()> {
        let storage = self.storage.as_ref().context("this storage is no process")?;
        let how = if hangs { Signal::STOP } else { Signal::CONT };
        children(storage.id())?.into_iter().try_for_each(|child| signal(child, how))
    }

    /// The storage is there.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn mount(&self) -> Result<()> {
        let line = format!("mkdir -p {SHARED} && mount --bind {} {SHARED}", self.shared.display());
        self.testbed.shell(&self.node, &line).map(drop)
    }

    /// The storage goes away, as a cable that is pulled.
    ///
    /// # Errors
    /// When it cannot be unmounted.
    pub fn unmount(&self) -> Result<()> {
        self.testbed.shell(&self.node, &format!("umount -l {SHARED}")).map(drop)
    }

    /// The host's network goes away, or comes back.
    ///
    /// # Errors
    /// When the link cannot be set.
    pub fn link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.testbed.shell(&self.node, &format!("ip link set uplink {state}")).map(drop)
    }

    /// Forgets the processes of a host whose power was cut.
    pub fn end(&mut self) {
        self.keeper = None;
        self.watchdog = None;
        self.storage = None;
    }

    /// Sends a signal to the keeper itself, which is the child of what was started.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_keeper(&self, how: Signal) -> Result<()> {
        let keeper = self.keeper.as_ref().context("the keeper is not started")?;
        children(keeper.id())?.into_iter().try_for_each(|child| signal(child, how))
    }
}

/// Writes the marker that makes a directory the pool with this id.
///
/// # Errors
/// When it cannot be written.
pub fn mark(slot: &Path, pool: &str) -> Result<()> {
    Ok(std::fs::write(slot.join("shared").join(".tamdao-pool"), format!("{pool}\n"))?)
}
