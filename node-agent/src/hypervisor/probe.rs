//! Tries whether KVM runs a guest. A `/dev/kvm` may be there and open, and a guest under it still hang: only a
//! guest that has done something proves it.
//!
//! The guest is one boot sector that writes a byte to the serial port and halts. Deliberately absent: libvirt,
//! which would need a domain and a log for this.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// It takes a fraction of a second where KVM works.
const DEADLINE: Duration = Duration::from_secs(5);

const DEVICE: &str = "/dev/kvm";

/// `mov dx, 0x3f8; mov al, 'K'; out dx, al; cli; hlt; jmp $-1`
const CODE: [u8; 10] = [0xba, 0xf8, 0x03, 0xb0, b'K', 0xee, 0xfa, 0xf4, 0xeb, 0xfd];

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("there is no {DEVICE}")]
    NoDevice,
    #[error("the trial machine cannot be made: {0}")]
    Io(#[from] std::io::Error),
    #[error("the trial machine ended without a sign: {0}")]
    Ended(String),
    #[error("the trial machine gave no sign within {} s", DEADLINE.as_secs())]
    Silent,
}

/// Runs the boot sector under KVM.
pub async fn kvm_runs(emulator: &Path) -> Result<(), ProbeError> {
    if !Path::new(DEVICE).exists() {
        return Err(ProbeError::NoDevice);
    }
    runs(emulator, "kvm").await
}

async fn runs(emulator: &Path, accelerator: &str) -> Result<(), ProbeError> {
    let mut sector = [0u8; 512];
    sector[..CODE.len()].copy_from_slice(&CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut image = tempfile::NamedTempFile::new()?;
    image.write_all(&sector)?;
    let mut machine = Command::new(emulator)
        .args(["-accel", accelerator, "-machine", "pc", "-m", "16", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-boot", "c", "-device", "ide-hd,drive=probe"])
        .arg("-drive")
        .arg(format!("if=none,id=probe,format=raw,readonly=off,file={}", image.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(mut serial), Some(mut words)) = (machine.stdout.take(), machine.stderr.take()) else {
        return Err(ProbeError::Ended("it has no output".to_owned()));
    };
    let sign = async {
        let mut byte = [0u8];
        while serial.read(&mut byte).await? == 1 {
            if byte == *b"K" {
                return Ok(());
            }
        }
        let mut said = String::new();
        (&mut words).take(4096).read_to_string(&mut said).await?;
        Err(ProbeError::Ended(said.trim().to_owned()))
    };
    let outcome = tokio::time::timeout(DEADLINE, sign).await.unwrap_or(Err(ProbeError::Silent));
    // Reap it: it halts and would never end by itself. It may have ended already.
    let _ = machine.kill().await;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sector itself is right: it speaks where emulation runs it.
    #[tokio::test]
    async fn an_emulated_machine_gives_the_sign() {
        runs(Path::new("/usr/bin/qemu-system-x86_64"), "tcg").await.unwrap();
    }

    #[tokio::test]
    async fn a_machine_that_cannot_start_says_why() {
        let error = runs(Path::new("/usr/bin/qemu-system-x86_64"), "nonsense").await.unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
}
