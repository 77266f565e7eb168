//! Tries whether KVM runs guests as it should. A `/dev/kvm` may be there and open, and a guest under it run
//! hundreds of times slower than emulated, which looks like a hang: only a race against emulation tells.
//!
//! The guest is one boot sector that enters long mode, counts down from half a billion and writes a byte to the
//! serial port. Deliberately absent: libvirt, which would need a domain and a log for this.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Emulation takes two seconds for it, a working KVM a fraction of one; a busy host takes longer for both.
const DEADLINE: Duration = Duration::from_secs(60);

const DEVICE: &str = "/dev/kvm";

/// The boot sector's code, made from:
///
/// ```text
///     cli; xorw %ax,%ax; movw %ax,%ds; movw %ax,%es; cld
///     movw $0x1000,%di; movw $0x1800,%cx; rep stosw             # page tables at 0x1000: zeros,
///     movw $0x2003,0x1000; movw $0x3003,0x2000; movw $0x0083,0x3000   # and the first 2 MiB as they are
///     movl %cr4,%eax; orb $0x20,%al; movl %eax,%cr4             # PAE
///     movl $0x1000,%eax; movl %eax,%cr3
///     movl $0xc0000080,%ecx; rdmsr; orb $1,%ah; wrmsr           # long mode
///     lgdt table; movl %cr0,%eax; orl $0x80000001,%eax; movl %eax,%cr0; ljmp $0x08,$long
/// .code64
/// long: movl $500000000,%ecx
/// 1:  decl %ecx; jnz 1b
///     movw $0x3f8,%dx; movb $'K',%al; outb %al,%dx
/// 2:  hlt; jmp 2b
/// gdt: .quad 0, 0x00209a0000000000
/// table: .word 15; .long gdt
/// ```
#[rustfmt::skip]
const CODE: [u8; CODE_LENGTH] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0xfc, 0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xf3, 0xab,
    0xc7, 0x06, 0x00, 0x10, 0x03, 0x20, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0xc7, 0x06, 0x00, 0x30,
    0x83, 0x00, 0x0f, 0x20, 0xe0, 0x0c, 0x20, 0x0f, 0x22, 0xe0, 0x66, 0xb8, 0x00, 0x10, 0x00, 0x00,
    0x0f, 0x22, 0xd8, 0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x80, 0xcc, 0x01, 0x0f, 0x30,
    0x0f, 0x01, 0x16, 0x79, 0x7c, 0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22,
    0xc0, 0xea, 0x56, 0x7c, 0x08, 0x00, 0xb9, 0x00, 0x65, 0xcd, 0x1d, 0xff, 0xc9, 0x75, 0xfc, 0x66,
    0xba, 0xf8, 0x03, 0xb0, 0x4b, 0xee, 0xf4, 0xeb, 0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, 0x0f, 0x00, 0x69, 0x7c, 0x00, 0x00,
];
const CODE_LENGTH: usize = 127;

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
    #[error("it is slower than emulation")]
    Slow,
}

/// Whether a guest under KVM beats an emulated one. Takes less than a second where it does and two where not.
pub async fn kvm_runs(emulator: &Path) -> Result<(), ProbeError> {
    if !Path::new(DEVICE).exists() {
        return Err(ProbeError::NoDevice);
    }
    beats(emulator, "kvm", "tcg").await
}

/// Both run at the same time, so that a busy host is no excuse for either.
async fn beats(emulator: &Path, first: &str, second: &str) -> Result<(), ProbeError> {
    let rival = async {
        match gives_sign(emulator, second).await {
            Ok(()) => {}
            // A rival that cannot run proves nothing.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        outcome = gives_sign(emulator, first) => outcome,
        () = rival => Err(ProbeError::Slow),
    }
}

async fn gives_sign(emulator: &Path, accelerator: &str) -> Result<(), ProbeError> {
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
        .arg(format!("if=none,id=probe,format=raw,file={}", image.path().display()))
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

    const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

    /// The sector itself is right: it speaks where emulation runs it.
    #[tokio::test]
    async fn an_emulated_machine_gives_the_sign() {
        gives_sign(Path::new(EMULATOR), "tcg").await.unwrap();
    }

    #[tokio::test]
    async fn a_rival_that_cannot_run_proves_nothing() {
        beats(Path::new(EMULATOR), "tcg", "nonsense").await.unwrap();
    }

    /// Whatever this machine's KVM is, there is a verdict.
    #[tokio::test]
    async fn kvm_gets_a_verdict() {
        let verdict = kvm_runs(Path::new(EMULATOR)).await;
        assert!(!matches!(verdict, Err(ProbeError::Silent | ProbeError::Io(_))), "{verdict:?}");
    }

    #[tokio::test]
    async fn a_machine_that_cannot_start_says_why() {
        let error = beats(Path::new(EMULATOR), "nonsense", "tcg").await.unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }
}
