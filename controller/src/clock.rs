//! The seam to time: the one place where the controller asks what time it is, so that a simulation can answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tamdao_model::TimeMs;
use tokio::time::Instant;

/// Time as the controller sees it.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// The time of day, for records that people read. It may jump.
    fn now(&self) -> TimeMs;
    /// Time that only goes forward, for timeouts.
    fn instant(&self) -> Instant;
    async fn sleep(&self, duration: Duration);
}

/// The machine's own clocks.
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> TimeMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
