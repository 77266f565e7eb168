//! Where chores write: standard error, because what they run writes to standard output.

/// Writes one line.
#[expect(clippy::print_stderr, reason = "the one place that writes")]
pub fn say(line: &str) {
    eprintln!("{line}");
}
