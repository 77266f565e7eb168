//! What benches have in common: a value out of sorted ones, milliseconds, and where they speak.

use std::time::Duration;

/// The value below which this share of a sorted list lies.
pub fn at(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Tells a line to whoever watches; figures as data go to a file.
#[expect(clippy::print_stderr, reason = "a bench tells what it measures")]
pub fn say(line: &str) {
    eprintln!("{line}");
}
