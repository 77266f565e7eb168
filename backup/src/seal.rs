//! Who can read a backup: recipients and identities in the form of the `age` tool, which also opens our files by hand.
//! Every name of the crate of that name stays in this file.

use std::io::Read;
use std::iter;
use std::str::FromStr;

use age::x25519;

use crate::file::BackupError;

/// The public keys that a backup is encrypted to.
#[derive(Debug, Clone)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// Reads public keys, `age1…`.
    ///
    /// # Errors
    /// `Recipient` with the first text that is none, or when there is none at all.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BackupError> {
        let read = |text: &str| {
            x25519::Recipient::from_str(text.trim()).map_err(|_| BackupError::Recipient(text.to_owned()))
        };
        let all = texts.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() { Err(BackupError::Recipient(String::new())) } else { Ok(Self(all)) }
    }

    pub(crate) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, BackupError> {
        use std::io::Write as _;
        let recipients = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        let failed = |error: &dyn std::fmt::Display| BackupError::Seal(error.to_string());
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| failed(&error))?;
        let mut sealed = Vec::with_capacity(plain.len() + plain.len() / 1_024 + 1_024);
        let mut out = encryptor.wrap_output(&mut sealed).map_err(|error| failed(&error))?;
        out.write_all(plain).map_err(|error| failed(&error))?;
        out.finish().map_err(|error| failed(&error))?;
        Ok(sealed)
    }
}

/// The secret keys of who may read.
pub struct Identities(Vec<x25519::Identity>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({}, hidden)", self.0.len())
    }
}

impl Identities {
    /// Reads a file as `age-keygen` writes it: one secret key on each line that is neither empty nor begins with `#`.
    ///
    /// # Errors
    /// `Identity` when there is none, or a line is no key; what the line says is not repeated.
    pub fn parse(text: &str) -> Result<Self, BackupError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys = lines.map(|line| x25519::Identity::from_str(line).map_err(|_| BackupError::Identity));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(BackupError::Identity) } else { Ok(Self(keys)) }
    }

    /// A fresh one and its public key, for tests.
    pub fn generate() -> (Self, String) {
        let identity = x25519::Identity::generate();
        let recipient = identity.to_public().to_string();
        (Self(iter::once(identity).collect()), recipient)
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, BackupError> {
        let damaged = |error: &dyn std::fmt::Display| BackupError::Damaged(error.to_string());
        let decryptor = age::Decryptor::new(sealed).map_err(|error| damaged(&error))?;
        let keys = self.0.iter().map(|key| key as &dyn age::Identity);
        let mut plain = Vec::with_capacity(sealed.len());
        let mut input = decryptor.decrypt(keys).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => BackupError::WrongKey,
            error => damaged(&error),
        })?;
        input.read_to_end(&mut plain).map_err(|error| damaged(&error))?;
        Ok(plain)
    }
}
