//! A guest's process, held by a descriptor that cannot come to mean another one. It is readable once the process is
//! gone with all its threads, and so with every file that they had open; a zombie counts as gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::protocol::ProcessId;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("there is no process {0}")]
    Gone(i32),
    #[error("process {0}: {1}")]
    Io(i32, std::io::Error),
}

/// See the module's text.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    descriptor: OwnedFd,
}

impl Process {
    /// Takes hold of a process, if it is still the one that is meant.
    pub fn open(id: ProcessId) -> Result<Self, ProcessError> {
        let pid = Pid::from_raw(id.pid).filter(|_| id.pid > 1).ok_or(ProcessError::Gone(id.pid))?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ProcessError::Gone(id.pid))?;
        // Looked at after the descriptor was taken: what it names cannot change any more.
        if start_time(id.pid)? != id.start_time {
            return Err(ProcessError::Gone(id.pid));
        }
        Ok(Self { id, descriptor })
    }

    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Kills it; that it is gone already is no error.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// When a process started, in clock ticks since boot.
pub fn start_time(pid: i32) -> Result<u64, ProcessError> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ProcessError::Gone(pid),
        _ => ProcessError::Io(pid, error),
    })?;
    // The name, in brackets, may hold anything.
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let start = after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    start.ok_or(ProcessError::Gone(pid))
}
