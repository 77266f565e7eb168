//! The watchdog: a device that resets the host unless it hears from us in time, or in its place a pipe to a process
//! that cuts the power. It is armed when the first lease is held, and disarmed when the last is given back.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::ioctl::{Updater, ioctl, opcode};

/// `WDIOC_SETTIMEOUT` of linux/watchdog.h: seconds wanted in, seconds set out.
const SET_TIMEOUT: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'W', 6);

/// An armed watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog {
    file: File,
}

impl Watchdog {
    /// Arms it. A device must take the timeout exactly; what reads a pipe has been told its own.
    pub(crate) fn arm(path: &Path, timeout_ms: u64) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
            .open(path)?;
        if file.metadata()?.file_type().is_char_device() {
            let wanted = i32::try_from(timeout_ms / 1_000).unwrap_or(i32::MAX);
            let mut seconds = wanted;
            // SAFETY: the kernel reads and writes one int for this request, which is what the type says.
            unsafe { ioctl(&file, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) }?;
            if seconds != wanted {
                let message =
                    format!("it fires after {seconds} s, not after the {wanted} s that were asked for");
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
        }
        let mut watchdog = Self { file };
        watchdog.feed()?;
        Ok(watchdog)
    }

    pub(crate) fn feed(&mut self) -> io::Result<()> {
        match self.file.write(b"f") {
            // A full pipe has enough to read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Lets it rest; the letter is the kernel's own sign that closing is meant.
    pub(crate) fn disarm(mut self) -> io::Result<()> {
        self.file.write_all(b"V")
    }
}
