//! Amounts as people write and read them: sizes, ages, durations, counts. Pure: the present time is an argument. Sizes
//! are binary (K, M, G, T mean KiB and so on) and a bare number is refused, because a forgotten unit would silently
//! mean something a thousand times too small.

use std::time::Duration;

/// Reads a size such as 512M, 1.5G or 2TiB as MiB.
pub fn parse_mib(text: &str) -> Result<u32, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "m" => 1.0,
        "g" => 1024.0,
        "t" => 1024.0 * 1024.0,
        "" if !number.is_empty() => return Err(format!("say the unit: {number}M or {number}G")),
        _ => return Err("expected a size such as 512M, 10G or 1T".to_owned()),
    };
    let value: f64 = number.parse().map_err(|_| "expected a size such as 512M, 10G or 1T".to_owned())?;
    let mib = value * scale;
    if mib.fract() != 0.0 {
        return Err("must be a whole number of MiB".to_owned());
    }
    if !(1.0..=f64::from(u32::MAX)).contains(&mib) {
        return Err("must be between 1M and 4095T".to_owned());
    }
    Ok(mib as u32)
}

/// Reads a time such as 90s, 5m or 1h30m.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a time such as 90s, 5m or 1h30m".to_owned())
}

/// Reads a time such as 2026-11-22T20:00:00Z as seconds since 1970.
pub fn parse_moment(text: &str) -> Result<i64, String> {
    let time = humantime::parse_rfc3339_weak(text).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let seconds = since.and_then(|since| i64::try_from(since.as_secs()).ok());
    seconds.ok_or_else(|| "expected a time such as 2026-11-22T20:00:00Z, in UTC".to_owned())
}

/// Shows MiB in the largest unit that keeps three digits.
pub fn mib(amount: u64) -> String {
    scaled(amount as f64, &["MiB", "GiB", "TiB", "PiB"])
}

/// Shows bytes in the largest unit that keeps three digits.
pub fn bytes(amount: u64) -> String {
    scaled(amount as f64, &["B", "KiB", "MiB", "GiB", "TiB"])
}

fn scaled(mut amount: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let rounded = (amount * 10.0).round() / 10.0;
    if rounded.fract() == 0.0 || amount >= 100.0 {
        format!("{:.0} {}", amount, units[unit])
    } else {
        format!("{rounded:.1} {}", units[unit])
    }
}

/// Shows a share of a whole, such as "3/16".
pub fn share(part: impl std::fmt::Display, whole: impl std::fmt::Display) -> String {
    format!("{part}/{whole}")
}

/// Shows how long ago a time was, seconds since 1970 both.
pub fn age(now_s: i64, then_s: i64) -> String {
    let seconds = (now_s - then_s).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        172_800..63_072_000 => format!("{}d", seconds / 86_400),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

/// Shows a time to come in the same way.
pub fn until(now_s: i64, then_s: i64) -> String {
    if then_s <= now_s { "now".to_owned() } else { age(then_s, now_s) }
}

/// Shows the time of day, UTC.
pub fn clock(time_s: i64) -> String {
    let seconds = time_s.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// Shows a time with its day, UTC.
pub fn moment(time_s: i64) -> String {
    let since = Duration::from_secs(u64::try_from(time_s).unwrap_or(0));
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// Shows a duration as it may be typed, such as 5m.
pub fn duration(time: Duration) -> String {
    // As exact as people read it.
    let whole = match time.as_secs() {
        0 => Duration::from_millis(time.subsec_millis().into()),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(whole).to_string()
}

/// Counts in words: "1 disk", "3 disks".
pub fn count(number: usize, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, expected) in
            [("512M", 512), ("2G", 2048), ("1.5g", 1536), ("1TiB", 1 << 20), ("2GB", 2048), ("64MiB", 64)]
        {
            assert_eq!(parse_mib(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn sizes_without_sense_are_refused() {
        for text in ["10", "", "G", "-1G", "0G", "1.3333M", "10X", "1..5G", "9999999T", "10 G"] {
            assert!(parse_mib(text).is_err(), "{text}");
        }
        assert_eq!(parse_mib("10"), Err("say the unit: 10M or 10G".to_owned()));
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(mib(512), "512 MiB");
        assert_eq!(mib(1536), "1.5 GiB");
        assert_eq!(mib(2048), "2 GiB");
        assert_eq!(mib(387_012), "378 GiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(10 << 30), "10 GiB");
        assert_eq!(age(100, 58), "42s");
        assert_eq!(age(100_000, 0), "27h");
        assert_eq!(age(0, 50), "0s");
        assert_eq!(until(0, 3_600), "60m");
    }
}
