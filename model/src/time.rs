//! Points in time as data: milliseconds since 1970, UTC. There is no clock here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Milliseconds since the beginning of 1970, UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeMs(pub u64);

impl TimeMs {
    /// The time `ms` later.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How much later this is than `earlier`, ms; 0 if it is not.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for TimeMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};
        let nanos = i128::from(self.0) * 1_000_000;
        let text =
            OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|t| t.format(&Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("beyond the calendar"))
    }
}
