//! A place of its own for each cloud that is up at the same time: a number that gives prefix, directory and network.
//! Whoever holds the lock on a slot's file owns it; the lock ends with its process, however that ends. Who takes a slot
//! first removes what the last owner left: processes, namespaces, links, files.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::Result;
use crate::process::{signal, start_time};
use crate::testbed::Testbed;

/// Not the build's directory: sockets of libvirt and QEMU have paths of 107 bytes at most.
const HOME: &str = "/var/tmp/tamdao-tests";
const SLOTS: u8 = 40;
const PROCESSES: &str = "processes";

/// One taken place.
pub struct Slot {
    pub number: u8,
    pub directory: PathBuf,
    _lock: File,
}

impl Slot {
    /// Takes the first free place, and cleans all free ones.
    ///
    /// # Errors
    /// When all are taken, or what was left there cannot be removed.
    pub fn take() -> Result<Self> {
        let home = Path::new(HOME);
        std::fs::create_dir_all(home).with_context(|| format!("{HOME} cannot be made"))?;
        let mut taken = None;
        for number in 0..SLOTS {
            let (path, directory) = (home.join(format!("{number}.lock")), home.join(number.to_string()));
            if taken.is_some() && !directory.exists() {
                continue;
            }
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            sweep(number, &directory)
                .with_context(|| format!("what an earlier run left in {}", directory.display()))?;
            if taken.is_none() {
                std::fs::create_dir_all(&directory)?;
                taken = Some(Self { number, directory, _lock: lock });
            }
        }
        match taken {
            Some(slot) => Ok(slot),
            None => bail!("all {SLOTS} places in {HOME} are taken by tests that run now"),
        }
    }

    /// Notes a process, so that it can be found when this one is killed.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub fn note(&self, id: u32) -> Result<()> {
        use std::io::Write;
        let mut file = OpenOptions::new().create(true).append(true).open(self.directory.join(PROCESSES))?;
        if let Some(started) = start_time(id) {
            writeln!(file, "{id} {started}")?;
        }
        Ok(())
    }

    /// Removes everything of this place.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clear(&self) -> Result<()> {
        sweep(self.number, &self.directory)
    }
}

/// Removes what belongs to a place that nobody holds.
fn sweep(number: u8, directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    for line in std::fs::read_to_string(directory.join(PROCESSES)).unwrap_or_default().lines() {
        let mut words = line.split(' ').map(str::parse::<u64>);
        let (Some(Ok(id)), Some(Ok(started))) = (words.next(), words.next()) else { continue };
        let id = u32::try_from(id)?;
        if start_time(id) == Some(started) {
            // It may end between the look and the signal.
            let _ = signal(id, Signal::KILL);
        }
    }
    Testbed::of(number, directory).down()?;
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
