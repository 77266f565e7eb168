//! The bytes of moves: counted, and limited by one token bucket for all of them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// Read and written at once, bytes.
const CHUNK: usize = 256 * 1024;

/// Lets so many bytes through a second, and a tenth of that at once.
pub struct Bucket {
    /// Bytes a second; 0 does not limit.
    rate: u64,
    /// Until when what has been let through is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Bucket {
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self { rate, paid: Mutex::new(None) }
    }

    /// Bytes a second; 0 does not limit.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// How long the taker of so many bytes has to wait from now.
    fn wait(&self, bytes: usize, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let burst = Duration::from_millis(100);
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let from = paid.map_or(now, |paid| paid.max(now));
        *paid = Some(from + cost);
        (from + cost).saturating_duration_since(now + burst)
    }

    /// Takes so many bytes, when their time has come.
    pub async fn take(&self, bytes: usize) {
        let wait = self.wait(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Bytes that tell nothing of a link: a move may have sent them while it waited for other things.
const TOO_FEW: u64 = 64 << 20;

/// What one move sends in its best second: what the link carries at least.
pub struct Pace {
    at: Instant,
    sent: u64,
    best: u64,
}

impl Pace {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { at: now, sent: 0, best: 0 }
    }

    /// Takes what has been sent in all by now; says the best pace so far, bytes a second, if it tells anything.
    pub fn look(&mut self, now: Instant, sent: u64) -> Option<u64> {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        if since > 0.0 {
            self.best = self.best.max((sent.saturating_sub(self.sent) as f64 / since) as u64);
            (self.at, self.sent) = (now, sent);
        }
        (sent >= TOO_FEW && self.best > 0).then_some(self.best)
    }
}

/// Carries bytes both ways until both ends have closed or one breaks. What goes out is limited and counted.
pub async fn join(
    near: impl AsyncRead + AsyncWrite + Unpin,
    far: impl AsyncRead + AsyncWrite + Unpin,
    bucket: &Bucket,
    sent: &AtomicU64,
) -> io::Result<()> {
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let uncounted = AtomicU64::new(0);
    let free = Bucket::new(0);
    let there = copy(near_read, far_write, bucket, sent);
    let back = copy(far_read, near_write, &free, &uncounted);
    tokio::try_join!(there, back).map(drop)
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bucket: &Bucket,
    counted: &AtomicU64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = from.read(&mut chunk).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        bucket.take(count).await;
        to.write_all(&chunk[..count]).await?;
        to.flush().await?;
        counted.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_let_through_is_paid_for_by_all() {
        let bucket = Bucket::new(1_000_000);
        let now = Instant::now();
        assert_eq!(bucket.wait(100_000, now), Duration::ZERO, "a tenth of a second at once");
        assert_eq!(bucket.wait(1_000_000, now), Duration::from_secs(1));
        assert_eq!(bucket.wait(1_000_000, now), Duration::from_secs(2), "whoever comes next waits behind");
        let later = now + Duration::from_secs(10);
        assert_eq!(bucket.wait(1, later), Duration::ZERO, "idle time is not saved up");
        assert_eq!(bucket.wait(1_000_000, later).as_millis(), 900);
        assert_eq!(Bucket::new(0).wait(usize::MAX, now), Duration::ZERO);
    }

    #[test]
    fn a_pace_is_that_of_the_best_second() {
        let begun = Instant::now();
        let at = |s: u64| begun + Duration::from_secs(s);
        let mut pace = Pace::new(begun);
        assert_eq!(pace.look(at(1), TOO_FEW / 2), None, "too little to tell");
        assert_eq!(pace.look(at(2), TOO_FEW * 2), Some(TOO_FEW / 2 * 3));
        assert_eq!(pace.look(at(4), TOO_FEW * 3), Some(TOO_FEW / 2 * 3), "a slower second changes nothing");
        assert_eq!(pace.look(at(4), TOO_FEW * 9), Some(TOO_FEW / 2 * 3), "no time has passed");
    }

    #[tokio::test]
    async fn both_ways_until_both_ends_close() {
        let (near, mut user) = tokio::io::duplex(64);
        let (far, mut peer) = tokio::io::duplex(64);
        let sent = AtomicU64::new(0);
        let bucket = Bucket::new(0);
        let ends = async {
            user.write_all(b"there").await.unwrap();
            user.shutdown().await.unwrap();
            let mut heard = Vec::new();
            peer.read_to_end(&mut heard).await.unwrap();
            peer.write_all(b"and back").await.unwrap();
            peer.shutdown().await.unwrap();
            let mut answer = Vec::new();
            user.read_to_end(&mut answer).await.unwrap();
            (heard, answer)
        };
        let (joined, (heard, answer)) = tokio::join!(join(near, far, &bucket, &sent), ends);
        joined.unwrap();
        assert_eq!((&heard[..], &answer[..]), (&b"there"[..], &b"and back"[..]));
        assert_eq!(sent.load(Ordering::Relaxed), 5);
    }
}
