//! Backups: all records of a cloud at one revision in one file that only its recipients can read.
//!
//! The invariant: what is read is what was written, byte for byte, or it is an error; nothing is guessed, skipped or
//! mended. Deliberately absent: where the records come from, and what a restore makes of them.

pub mod check;
pub mod destination;
pub mod file;
pub mod schedule;
mod seal;

pub use destination::{Access, Credentials, Destination, DestinationError, Found, Place, Verdict};
pub use file::{About, BackupError, Content, Entry, Head, head, open, write};
pub use schedule::{BackupName, Keep};
pub use seal::{Identities, Recipients};
