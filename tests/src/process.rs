//! A child process with its output in a file. It is known by its id and start time, so that a later process with the
//! same id is never ended in its place; it ends when its [`Process`] goes.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::Result;
use crate::wait::{eventually, not_yet};

/// One running child.
pub struct Process {
    pub name: String,
    pub log: PathBuf,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command; its output is added to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("{}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A Ctrl-C at the test's terminal is for the test, which then ends its children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child, ended: None })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system does not know the child.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Ends it at once, as a crash would.
    ///
    /// # Errors
    /// When the system does not know the child.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            self.child.kill()?;
            self.ended = Some(self.child.wait()?);
        }
        Ok(())
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it has not ended after a minute.
    pub async fn stop(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            signal(self.id(), Signal::TERM)?;
        }
        self.wait(Duration::from_secs(60)).await?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it has not within `patience`.
    pub async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let what = format!("{} has ended", self.name);
        eventually(&what, patience, async || match self.ended()? {
            Some(status) => Ok(status),
            None => not_yet("it runs"),
        })
        .await
    }

    /// The last lines of its output.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = self.kill();
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// When there is none.
pub fn signal(id: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("0 is no process")?;
    kill_process(pid, signal).with_context(|| format!("process {id}"))
}

/// The children of a process.
///
/// # Errors
/// When /proc cannot be read.
pub fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if stat(id).is_some_and(|stat| stat.0 == parent) {
            found.push(id);
        }
    }
    Ok(found)
}

/// When a process started, in the kernel's ticks; none when there is no such process.
pub fn start_time(id: u32) -> Option<u64> {
    stat(id).map(|stat| stat.1)
}

/// The parent and the start time of a process that is not a zombie.
fn stat(id: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may have spaces and parentheses itself.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

/// Runs a command to its end; its stdout, trimmed.
///
/// # Errors
/// When it fails, with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, said(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command to its end, however that is.
///
/// # Errors
/// When it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output();
    output.with_context(|| format!("{} cannot be run", command.get_program().display()))
}

/// What a command said on both outputs.
pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    format!("{}\n{}", text(&output.stderr), text(&output.stdout)).trim().to_owned()
}

/// The last lines of a file; what is wrong with it when it cannot be read.
pub fn tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({error})"),
    }
}

/// Makes an empty file that only its owner may read.
///
/// # Errors
/// When it cannot be written.
pub fn secret_file(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
