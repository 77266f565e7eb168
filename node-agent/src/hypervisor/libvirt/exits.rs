//! How a domain ended, from the log that libvirt keeps of each: the only memory of a transient domain that is gone.
//!
//! Deliberately absent: QEMU's own messages in that log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::super::Exit;

/// How much of the log's end is read, bytes. A start takes five KiB or so, most of it QEMU's command line.
const TAIL: u64 = 64 * 1024;

/// Reads the end of the log; `None` when there is none, or when its last word is not an end.
pub fn last(log: &Path) -> std::io::Result<Option<Exit>> {
    let mut file = match File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(read(&String::from_utf8_lossy(&tail)))
}

/// libvirt writes `<time>: starting up …` and `<time>: shutting down, reason=<word>`.
fn read(log: &str) -> Option<Exit> {
    let last = log.lines().rev().find(|line| {
        line.contains(": starting up libvirt version") || line.contains(": shutting down, reason=")
    })?;
    let (_, reason) = last.split_once(": shutting down, reason=")?;
    Some(match reason.trim() {
        "shutdown" => Exit::Shutdown,
        "destroyed" => Exit::Destroyed,
        "migrated" => Exit::Migrated,
        "failed" => Exit::Failed,
        // Also what libvirt writes when it comes back and finds QEMU gone.
        _ => Exit::Crashed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts() {
        let start = "2026-11-20 08:00:00.000+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4\nLC_ALL=C \\\n-name guest=x \\\n";
        let end = |word: &str| {
            format!(
                "qemu-system-x86_64: terminating\n2026-11-20 08:01:00.000+0000: shutting down, reason={word}\n"
            )
        };
        assert_eq!(read(start), None);
        assert_eq!(read(&format!("{start}{}", end("shutdown"))), Some(Exit::Shutdown));
        assert_eq!(read(&format!("{start}{}{start}", end("destroyed"))), None);
        assert_eq!(read(&format!("{start}{}", end("crashed"))), Some(Exit::Crashed));
        assert_eq!(read(&format!("{start}{}", end("unknown"))), Some(Exit::Crashed));
        assert_eq!(read(""), None);
    }
}
