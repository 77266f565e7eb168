//! Waiting for a state: look, and look again until it is there or the deadline has passed. What was seen last is in
//! the error, so that a test that fails says what the cloud did instead.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::Instant;

use crate::Result;

/// How long between two looks. The first ones follow faster, because most states are there at once.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// An ordinary change in the control plane, seconds; generous, because test machines are busy.
pub const SOON: Duration = Duration::from_secs(60);
/// A guest that boots under emulation beside compilers.
pub const BOOT: Duration = Duration::from_secs(240);

/// What is looked for can never come; waiting ends at once.
#[derive(Debug)]
pub struct Hopeless(pub String);

impl std::fmt::Display for Hopeless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hopeless {}

/// Says that the state is not there yet, and what is there instead.
pub fn not_yet<T>(seen: impl std::fmt::Display) -> Result<T> {
    Err(anyhow!("{seen}"))
}

/// Looks until `look` brings a value.
///
/// # Errors
/// After `patience`, with what was seen last; at once when it is [`Hopeless`].
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSE_FIRST;
    loop {
        let error = match look().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.downcast_ref::<Hopeless>().is_some() {
            return Err(error.context(format!("{what} will never be")));
        }
        if Instant::now() >= deadline {
            return Err(error.context(format!("not within {} s: {what}; seen last", patience.as_secs())));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
