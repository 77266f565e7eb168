//! Looking into a file that a stranger sent, before any guest or hypervisor does.
//!
//! Its invariant: a disk that names another file (backing file, external data file), is encrypted or damaged, or
//! claims an absurd size is refused. The header is read here first, because asking qemu-img about a file that names
//! others may already open those. Deliberately absent: repairing and converting.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tamdao_model::image::ImageKind;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::{ImageError, is_disk};
use crate::config::ImagesConfig;

const QCOW2_MAGIC: &[u8] = b"QFI\xfb";
/// Formats that a raw disk never begins with; taking them as raw would give a machine that does not boot.
const OTHERS: [(&[u8], &str); 5] = [
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"QED\0", "QED"),
];
const VDI_OFFSET: usize = 0x40;
const VDI_MAGIC: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];
const HEADER_BYTES: usize = 512;
/// What qemu-img may take: it only reads headers and tables.
const TIMEOUT: Duration = Duration::from_secs(30);
const CPU_S: u32 = 20;
const ADDRESS_SPACE_BYTES: u64 = 2 << 30;
/// qemu-img's whole answer, bytes; a file with very many snapshots could make it long.
const ANSWER_BYTES: u64 = 1 << 20;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    /// qcow2 or raw; empty for kernels and ram disks.
    pub format: String,
    /// Size of a disk made from it, MiB, rounded up; 0 for kernels and ram disks.
    pub virtual_size_mib: u32,
}

/// Finds out what a file is, or why it is not acceptable.
///
/// # Errors
/// `Refused` for what may not be used, `File` when it cannot be read or qemu-img cannot be run.
pub async fn inspect(
    path: &Path,
    kind: ImageKind,
    size_bytes: u64,
    limits: &ImagesConfig,
) -> Result<Facts, ImageError> {
    if !is_disk(kind) {
        return match kind {
            ImageKind::Iso => disk("raw", size_bytes, limits),
            _ => Ok(Facts { format: String::new(), virtual_size_mib: 0 }),
        };
    }
    let header = read_header(path).await?;
    if let Some((_, name)) = OTHERS.iter().find(|(magic, _)| header.starts_with(magic)) {
        return Err(other_format(name));
    }
    if header.get(VDI_OFFSET..VDI_OFFSET + 4) == Some(&VDI_MAGIC) {
        return Err(other_format("VDI"));
    }
    if !header.starts_with(QCOW2_MAGIC) {
        return disk("raw", size_bytes, limits);
    }
    check_header(&header)?;
    let info = ask_qemu_img(path).await?;
    check_info(&info)?;
    disk("qcow2", info.virtual_size, limits)
}

fn disk(format: &str, virtual_bytes: u64, limits: &ImagesConfig) -> Result<Facts, ImageError> {
    let mib = virtual_bytes.div_ceil(1 << 20);
    let max = u64::from(limits.max_virtual_mib);
    match u32::try_from(mib) {
        Ok(virtual_size_mib) if (1..=max).contains(&mib) => {
            Ok(Facts { format: format.to_owned(), virtual_size_mib })
        }
        _ => {
            let message = format!("the disk has a size of {virtual_bytes} bytes, {max} MiB are allowed");
            Err(ImageError::refused("VirtualSize", message))
        }
    }
}

fn other_format(name: &str) -> ImageError {
    let message =
        format!("the file is a {name} disk; convert it first: qemu-img convert -O qcow2 FILE disk.qcow2");
    ImageError::refused("OtherFormat", message)
}

async fn read_header(path: &Path) -> Result<Vec<u8>, ImageError> {
    let read = async {
        let mut header = Vec::new();
        tokio::fs::File::open(path).await?.take(HEADER_BYTES as u64).read_to_end(&mut header).await?;
        Ok(header)
    };
    read.await.map_err(|source| ImageError::File { path: path.to_owned(), source })
}

/// The fields of a qcow2 header (docs/interop/qcow2.txt of QEMU) that decide whether it is safe to open.
fn check_header(header: &[u8]) -> Result<(), ImageError> {
    let short = || ImageError::refused("Damaged", "the qcow2 header is cut off");
    let u32_at = |at: usize| Some(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_be_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let version = u32_at(4).ok_or_else(short)?;
    if !(2..=3).contains(&version) {
        return Err(ImageError::refused("Damaged", format!("qcow2 version {version} is not known")));
    }
    if u64_at(8).ok_or_else(short)? != 0 || u32_at(16).ok_or_else(short)? != 0 {
        let message =
            "the disk has a backing file; flatten it first: qemu-img convert -O qcow2 FILE disk.qcow2";
        return Err(ImageError::refused("BackingFile", message));
    }
    if u32_at(32).ok_or_else(short)? != 0 {
        return Err(ImageError::refused(
            "Encrypted",
            "the disk is encrypted inside; nobody could open it here",
        ));
    }
    if version == 3 {
        let incompatible = u64_at(72).ok_or_else(short)?;
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(ImageError::refused("ExternalData", "the disk keeps its data in another file"));
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(ImageError::refused("Damaged", "the disk is marked as corrupt"));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    full_backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Data {
    data_file: Option<String>,
    corrupt: bool,
}

/// Runs `qemu-img info` with bounds on time, memory and output.
async fn ask_qemu_img(path: &Path) -> Result<Info, ImageError> {
    let failed = |source| ImageError::File { path: "qemu-img".into(), source };
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--as={ADDRESS_SPACE_BYTES}"))
        .arg(format!("--cpu={CPU_S}"))
        .arg("--core=0")
        .args(["--", "qemu-img", "info", "--output=json", "-f", "qcow2", "--"])
        .arg(path)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let read_out = async {
            match out {
                Some(out) => out.take(ANSWER_BYTES).read_to_end(&mut answer).await,
                None => Ok(0),
            }
        };
        let read_err = async {
            match err {
                Some(err) => err.take(ANSWER_BYTES).read_to_end(&mut complaint).await,
                None => Ok(0),
            }
        };
        tokio::try_join!(read_out, read_err)?;
        Ok((child.wait().await?, answer, complaint))
    };
    let (status, answer, complaint) = match tokio::time::timeout(TIMEOUT, run).await {
        Ok(done) => done.map_err(failed)?,
        Err(_) => return Err(ImageError::refused("Unreadable", "qemu-img needed too long to read the disk")),
    };
    if !status.success() {
        // Its complaint names our path, which is of no use to the user.
        let complaint = String::from_utf8_lossy(&complaint).replace(&path.display().to_string(), "FILE");
        let message = format!("qemu-img cannot read the disk: {}", complaint.trim());
        return Err(ImageError::refused("Unreadable", message));
    }
    serde_json::from_slice(&answer).map_err(|error| {
        ImageError::refused("Unreadable", format!("qemu-img's answer is not understood: {error}"))
    })
}

/// The same questions again, answered by the program that will open the disk.
fn check_info(info: &Info) -> Result<(), ImageError> {
    let data = info.format_specific.as_ref().map(|specific| &specific.data);
    if info.format != "qcow2" {
        return Err(ImageError::refused(
            "Unreadable",
            format!("qemu-img takes the disk for {}", info.format),
        ));
    }
    if info.backing_filename.is_some() || info.full_backing_filename.is_some() {
        return Err(ImageError::refused("BackingFile", "the disk has a backing file"));
    }
    if info.encrypted {
        return Err(ImageError::refused("Encrypted", "the disk is encrypted inside"));
    }
    if data.is_some_and(|data| data.data_file.is_some()) {
        return Err(ImageError::refused("ExternalData", "the disk keeps its data in another file"));
    }
    if data.is_some_and(|data| data.corrupt) {
        return Err(ImageError::refused("Damaged", "the disk is marked as corrupt"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ImagesConfig =
        ImagesConfig { max_bytes: 1 << 30, max_virtual_mib: 1_024, ca_pem: String::new() };

    async fn made(arguments: &[&str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("base.qcow2"), b"x").unwrap();
        let made = Command::new("qemu-img")
            .current_dir(directory.path())
            .args(["create", "-q", "-f", "qcow2"])
            .args(arguments)
            .status()
            .await
            .unwrap();
        assert!(made.success(), "{arguments:?}");
        let path = directory.path().join("disk");
        (directory, path)
    }

    async fn look(path: &Path) -> Result<Facts, &'static str> {
        let size = std::fs::metadata(path).unwrap().len();
        inspect(path, ImageKind::Disk, size, &LIMITS).await.map_err(|error| error.reason())
    }

    #[tokio::test]
    async fn good_disks_are_read() {
        let (_directory, path) = made(&["disk", "20M"]).await;
        assert_eq!(look(&path).await, Ok(Facts { format: "qcow2".into(), virtual_size_mib: 20 }));
        let snapshot =
            Command::new("qemu-img").args(["snapshot", "-c", "s1"]).arg(&path).status().await.unwrap();
        assert!(snapshot.success());
        assert!(look(&path).await.is_ok());
        std::fs::write(&path, vec![1; (1 << 20) + 1]).unwrap();
        assert_eq!(look(&path).await, Ok(Facts { format: "raw".into(), virtual_size_mib: 2 }));
    }

    #[tokio::test]
    async fn hostile_disks_are_refused() {
        let cases: [(&[&str], &str); 5] = [
            (&["-u", "-b", "/etc/passwd", "-F", "raw", "disk", "10M"], "BackingFile"),
            (&["-o", "data_file=data,data_file_raw=on", "disk", "10M"], "ExternalData"),
            (&["disk", "3G"], "VirtualSize"),
            (&["disk", "2048T"], "VirtualSize"),
            (
                &[
                    "--object",
                    "secret,id=s,data=x",
                    "-o",
                    "encrypt.format=luks,encrypt.key-secret=s",
                    "disk",
                    "1M",
                ],
                "Encrypted",
            ),
        ];
        for (arguments, reason) in cases {
            let (_directory, path) = made(arguments).await;
            assert_eq!(look(&path).await, Err(reason), "{arguments:?}");
        }
    }

    #[tokio::test]
    async fn damaged_and_foreign_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, b"QFI\xfb\0\0\0\x03").unwrap();
        assert_eq!(look(&path).await, Err("Damaged"));
        let mut header = b"QFI\xfb\0\0\0\x03".to_vec();
        header.resize(600, 0);
        std::fs::write(&path, &header).unwrap();
        assert_eq!(look(&path).await, Err("Unreadable"));
        header[79] = 2;
        std::fs::write(&path, &header).unwrap();
        assert_eq!(look(&path).await, Err("Damaged"));
        for (magic, _) in OTHERS {
            std::fs::write(&path, [magic, &[0; 600]].concat()).unwrap();
            assert_eq!(look(&path).await, Err("OtherFormat"));
        }
        let kernel = inspect(&path, ImageKind::Kernel, 600, &LIMITS).await.unwrap();
        assert_eq!(kernel, Facts { format: String::new(), virtual_size_mib: 0 });
    }
}
