//! Names: a lower-case letter, then letters, digits and hyphens, not ending in a hyphen, at most 63 bytes, so that
//! each is a DNS label, a path segment and a key. A UUID is not a name, so that either can stand in a request.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

/// The longest name, bytes.
pub const NAME_MAX: usize = 63;

/// The same text with its letters composed (Unicode NFC), so that what looks equal is equal: keyboards and files write
/// Vietnamese either way.
pub fn composed(text: &str) -> String {
    text.nfc().collect()
}

/// A valid name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("has {0} bytes, {NAME_MAX} are allowed")]
    TooLong(usize),
    #[error("must be a lower-case letter followed by lower-case letters, digits and hyphens")]
    Character,
    #[error("must not end in a hyphen")]
    Ending,
    #[error("is a UUID; names must not look like ids")]
    Uuid,
}

impl Name {
    /// Checks a text and takes it as a name.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        match bytes.len() {
            0 => return Err(NameError::Empty),
            1..=NAME_MAX => {}
            long => return Err(NameError::TooLong(long)),
        }
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        if !bytes[0].is_ascii_lowercase() || !bytes.iter().all(inner) {
            // A UUID may begin with a digit: say what it really is.
            return Err(if uuid::Uuid::parse_str(text).is_ok() {
                NameError::Uuid
            } else {
                NameError::Character
            });
        }
        if bytes.ends_with(b"-") {
            return Err(NameError::Ending);
        }
        if uuid::Uuid::parse_str(text).is_ok() {
            return Err(NameError::Uuid);
        }
        Ok(Self(text.into()))
    }

    /// The first name of all in their order.
    pub fn lowest() -> Self {
        Self("a".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
