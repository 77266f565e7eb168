//! The time that a lease is counted in: since this host's boot, suspension included. It never goes back and nobody
//! sets it, so two moments of one boot can always be compared, and those of two boots never.

use std::path::Path;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Milliseconds of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootMs(pub u64);

impl BootMs {
    /// Reads the clock.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        Self(seconds * 1_000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000)
    }

    /// How long it is since then; nothing if that is yet to come.
    pub fn since(self, then: Self) -> u64 {
        self.0.saturating_sub(then.0)
    }

    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// The id that the kernel gave this boot.
pub fn boot_id(file: &Path) -> std::io::Result<uuid::Uuid> {
    let text = std::fs::read_to_string(file)?;
    uuid::Uuid::parse_str(text.trim())
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}
