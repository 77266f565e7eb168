//! Files as the store uses them: the seam at which tests put a disk that loses power or is full.
//!
//! Its invariant: what has to outlive a power cut goes through here, so that a test sees every write, every sync and
//! every name. A file's sync says nothing of its name; that needs the sync of its folder. Deliberately absent: reading
//! what others write, and any cleverness; the real one passes each call on.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

#[cfg(test)]
pub mod simulated;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Read,
    /// To be read and written, and made where there is none.
    Write,
    /// To be written; an error when there is one.
    New,
}

/// A tree of files.
pub trait Files: fmt::Debug + Send + Sync {
    /// Makes a folder and those above it; none is certain to outlive a power cut.
    fn create_folders(&self, folder: &Path) -> io::Result<()>;
    fn exists(&self, path: &Path) -> bool;
    /// What is in a folder.
    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>>;
    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn Handle>>;
    /// Gives a file another name, in place of whatever had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Returns when all names in a folder are on disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
    /// Opens a database, or makes one.
    fn database(&self, builder: &redb::Builder, path: &Path) -> Result<redb::Database, redb::DatabaseError>;
}

/// An open file. It stays readable when its name is removed.
pub trait Handle: fmt::Debug + Send + Sync {
    /// Reads what is there of so many bytes; none at the end.
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of it.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    fn size(&self) -> io::Result<u64>;
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Returns when its content and size are on disk.
    fn sync(&self) -> io::Result<()>;
    /// When it was last written.
    fn modified(&self) -> io::Result<SystemTime>;
}

/// Makes a folder where there is none, and has its name on disk.
///
/// # Errors
/// What the disk says.
pub fn make_folder(files: &dyn Files, folder: &Path) -> io::Result<()> {
    let folder = std::path::absolute(folder)?;
    let missing = folder.ancestors().take_while(|above| !files.exists(above)).count();
    files.create_folders(&folder)?;
    // One that was there may have been made by a process that was killed before it came to this.
    for above in folder.ancestors().skip(1).take(missing.max(1)) {
        match files.sync_folder(above) {
            // Who may not even read it did not make what is in it.
            Err(error) if missing == 0 && error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Reads or writes a file from its begin on.
#[derive(Debug)]
pub struct Stream {
    pub handle: Arc<dyn Handle>,
    at: u64,
}

impl Stream {
    pub fn new(handle: Arc<dyn Handle>) -> Stream {
        Stream { handle, at: 0 }
    }
}

impl Read for Stream {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let read = self.handle.read_at(data, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.handle.write_at(data, self.at)?;
        self.at += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The files of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Files for System {
    fn create_folders(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }

    fn open(&self, path: &Path, how: How) -> io::Result<Arc<dyn Handle>> {
        let mut options = OpenOptions::new();
        match how {
            How::Read => options.read(true),
            How::Write => options.read(true).write(true).create(true).truncate(false),
            How::New => options.read(true).write(true).create_new(true),
        };
        Ok(Arc::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn database(&self, builder: &redb::Builder, path: &Path) -> Result<redb::Database, redb::DatabaseError> {
        builder.create(path)
    }
}

impl Handle for File {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, data, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn modified(&self) -> io::Result<SystemTime> {
        self.metadata()?.modified()
    }
}
