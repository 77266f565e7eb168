//! What is expected of a live move, from what was measured just before it: disks first, then the memory in passes, each
//! of which sends what the guest has dirtied during the last one, until the rest can be sent while it stands still. Pure.
//!
//! Source of the model: QEMU's pre-copy (`migration/migration.c`, `migration/ram.c`: `migration_trigger_throttle`) with
//! the parameters that libvirt leaves as they are: 300 ms of downtime, and with auto-converge 20 % of slowing, 10 % more
//! each time that two looks, a second apart at least, found more dirtied than half of what was sent, 99 % at most.
//! Deliberately absent: a guest that changes its ways, what it writes to its disks meanwhile, and pages that it writes
//! again and again, which count once in a measurement and once for each pass in a move: then it takes longer.

use serde::{Deserialize, Serialize};

/// What can be sent while the guest stands still, s.
const DOWNTIME_S: f64 = 0.3;
/// By how much a guest is slowed down at first, each time more, and at most, percent.
const SLOWED_FIRST: u32 = 20;
const SLOWED_MORE: u32 = 10;
const SLOWED_MOST: u32 = 99;

/// What is known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// The memory that the guest has in use, bytes.
    pub memory_bytes: u64,
    /// What is to be copied of its disks, bytes.
    pub disk_bytes: u64,
    /// How much memory it dirties, bytes a second.
    pub dirty_bytes_per_s: u64,
    /// What can be sent, bytes a second; 0 is not known.
    pub bytes_per_s: u64,
    /// It stands still while its memory is copied (docs/decisions/0112).
    pub emulated: bool,
    /// It may be slowed down.
    pub auto_converge: bool,
    /// How long sending may take, ms.
    pub limit_ms: u64,
}

/// What is expected if the guest goes on as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    pub verdict: Verdict,
    /// The memory that is to be sent, bytes; what the guest dirties meanwhile comes on top.
    pub memory_bytes: u64,
    /// What is to be copied of its disks, bytes.
    pub disk_bytes: u64,
    pub dirty_bytes_per_s: u64,
    /// 0 is not known.
    pub bytes_per_s: u64,
    /// How long sending takes, ms; 0 where it does not arrive.
    pub time_ms: u64,
    /// How long the guest stands still, ms; 0 where it does not arrive.
    pub downtime_ms: u64,
    /// By how much it is slowed down at the end, percent.
    pub slowed_percent: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Arrives,
    /// Because the guest is slowed down; without that it would not, or not in time.
    ArrivesSlowed,
    /// It would take longer than a move may.
    TooLong,
    /// The guest dirties memory faster than it can be sent.
    Never,
    /// Nobody knows what can be sent.
    Unknown,
}

/// The forecast of a move.
#[must_use]
pub fn forecast(measured: &Measured) -> Forecast {
    let plain = passes(measured, false);
    let slowed = if measured.auto_converge { passes(measured, true) } else { plain };
    let (verdict, end) = match (plain, slowed) {
        (_, Outcome::Unknown) => (Verdict::Unknown, None),
        (Outcome::Arrives(_), Outcome::Arrives(end)) => (Verdict::Arrives, Some(end)),
        (_, Outcome::Arrives(end)) => (Verdict::ArrivesSlowed, Some(end)),
        (_, Outcome::TooLong) => (Verdict::TooLong, None),
        (_, Outcome::Never) => (Verdict::Never, None),
    };
    let ms = |seconds: f64| (seconds * 1_000.0).round() as u64;
    Forecast {
        verdict,
        memory_bytes: measured.memory_bytes,
        disk_bytes: measured.disk_bytes,
        dirty_bytes_per_s: measured.dirty_bytes_per_s,
        bytes_per_s: measured.bytes_per_s,
        time_ms: end.map_or(0, |end| ms(end.time_s)),
        downtime_ms: end.map_or(0, |end| ms(end.downtime_s)),
        slowed_percent: end.map_or(0, |end| end.slowed),
    }
}

#[derive(Clone, Copy)]
enum Outcome {
    Arrives(End),
    TooLong,
    Never,
    Unknown,
}

#[derive(Clone, Copy)]
struct End {
    time_s: f64,
    downtime_s: f64,
    slowed: u32,
}

/// Plays the passes. Each takes longer than the downtime that would end them, so their number is bounded by the limit.
fn passes(measured: &Measured, auto_converge: bool) -> Outcome {
    if measured.bytes_per_s == 0 {
        return Outcome::Unknown;
    }
    let (pace, dirty) = (measured.bytes_per_s as f64, measured.dirty_bytes_per_s as f64);
    let memory = measured.memory_bytes as f64;
    let limit_s = measured.limit_ms as f64 / 1_000.0;
    let mut time_s = measured.disk_bytes as f64 / pace;
    let mut left = memory;
    let mut brake = Brake::default();
    loop {
        let pass_s = left / pace;
        let last = pass_s <= DOWNTIME_S || measured.emulated;
        if time_s + pass_s > limit_s {
            // Slowed as far as can be, a guest that still dirties more than is sent never comes to its last pass.
            let most = if auto_converge { SLOWED_MOST } else { 0 };
            let gains = dirty * f64::from(100 - most) / 100.0 < pace;
            return if gains || last { Outcome::TooLong } else { Outcome::Never };
        }
        time_s += pass_s;
        if last {
            return Outcome::Arrives(End { time_s, downtime_s: pass_s, slowed: brake.slowed });
        }
        let dirtied = (dirty * f64::from(100 - brake.slowed) / 100.0 * pass_s).min(memory);
        if auto_converge {
            brake.look(pass_s, left, dirtied);
        } else if dirty >= pace {
            return Outcome::Never;
        }
        left = dirtied;
    }
}

/// Auto-converge: what was sent and dirtied since the last look, and what came of the looks.
#[derive(Default)]
struct Brake {
    since_s: f64,
    sent: f64,
    dirtied: f64,
    /// Looks that found too much, since it was last slowed.
    high: u32,
    slowed: u32,
}

impl Brake {
    fn look(&mut self, pass_s: f64, sent: f64, dirtied: f64) {
        self.since_s += pass_s;
        self.sent += sent;
        self.dirtied += dirtied;
        if self.since_s < 1.0 {
            return;
        }
        if self.dirtied > self.sent / 2.0 {
            self.high += 1;
            if self.high >= 2 {
                self.high = 0;
                let more = if self.slowed == 0 { SLOWED_FIRST } else { self.slowed + SLOWED_MORE };
                self.slowed = more.min(SLOWED_MOST);
            }
        }
        (self.since_s, self.sent, self.dirtied) = (0.0, 0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const HOUR_MS: u64 = 3_600_000;

    fn guest(memory_mib: u64, dirty_mib: u64, pace_mib: u64) -> Measured {
        Measured {
            memory_bytes: memory_mib * MIB,
            disk_bytes: 0,
            dirty_bytes_per_s: dirty_mib * MIB,
            bytes_per_s: pace_mib * MIB,
            emulated: false,
            auto_converge: false,
            limit_ms: HOUR_MS,
        }
    }

    #[test]
    fn a_guest_by_hand() {
        // 10 s, then 1 s for the 100 MiB of these, and 0.1 s for the 10 MiB of that.
        let told = forecast(&guest(1_000, 10, 100));
        assert_eq!(told.verdict, Verdict::Arrives);
        assert_eq!((told.time_ms, told.downtime_ms), (11_100, 100));
        let disks = forecast(&Measured { disk_bytes: 500 * MIB, ..guest(1_000, 10, 100) });
        assert_eq!((disks.time_ms, disks.downtime_ms), (16_100, 100));
        let emulated = forecast(&Measured { emulated: true, ..guest(1_000, 900, 100) });
        assert_eq!(
            (emulated.verdict, emulated.time_ms, emulated.downtime_ms),
            (Verdict::Arrives, 10_000, 10_000)
        );
    }

    #[test]
    fn one_that_writes_faster_than_it_is_sent_comes_only_slowed() {
        let busy = guest(1_000, 150, 100);
        assert_eq!(forecast(&busy).verdict, Verdict::Never);
        let told = forecast(&Measured { auto_converge: true, ..busy });
        assert_eq!(told.verdict, Verdict::ArrivesSlowed);
        assert!((20..=99).contains(&told.slowed_percent), "{told:?}");
        assert!(told.downtime_ms <= 300);
        let wild = Measured { auto_converge: true, ..guest(1_000, 20_000, 100) };
        assert_eq!(forecast(&wild).verdict, Verdict::Never, "1 % of it is still more than is sent");
    }

    #[test]
    fn what_nobody_knows_is_not_guessed() {
        let told = forecast(&guest(1_000, 10, 0));
        assert_eq!((told.verdict, told.time_ms, told.downtime_ms), (Verdict::Unknown, 0, 0));
        let slow = Measured { limit_ms: 60_000, ..guest(100_000, 10, 100) };
        assert_eq!(forecast(&slow).verdict, Verdict::TooLong);
    }

    prop_compose! {
        fn guests()(
            memory in 1u64..1 << 20, disk in 0u64..1 << 20, dirty in 0u64..4_000, pace in 1u64..4_000,
            emulated in any::<bool>(), auto_converge in any::<bool>(), limit_ms in 0u64..100 * HOUR_MS,
        ) -> Measured {
            Measured {
                disk_bytes: disk * MIB, emulated, auto_converge, limit_ms, ..guest(memory, dirty, pace)
            }
        }
    }

    fn arrives(told: &Forecast) -> bool {
        matches!(told.verdict, Verdict::Arrives | Verdict::ArrivesSlowed)
    }

    proptest! {
        #[test]
        fn what_arrives_does_so_in_time_and_stands_still_shortly(measured in guests()) {
            let told = forecast(&measured);
            if arrives(&told) {
                prop_assert!(told.time_ms <= measured.limit_ms + 1);
                prop_assert!(told.downtime_ms <= 300 || measured.emulated);
                let all = u128::from(measured.memory_bytes + measured.disk_bytes) * 1_000;
                let least = all / u128::from(measured.bytes_per_s);
                prop_assert!(u128::from(told.time_ms) + 1 >= least, "everything is sent once at least");
            } else {
                prop_assert_eq!((told.time_ms, told.downtime_ms, told.slowed_percent), (0, 0, 0));
            }
        }

        #[test]
        fn slowing_a_guest_down_never_keeps_it_from_arriving(measured in guests()) {
            let without = forecast(&Measured { auto_converge: false, ..measured });
            let with = forecast(&Measured { auto_converge: true, ..measured });
            prop_assert!(!arrives(&without) || with.verdict == Verdict::Arrives, "{:?} {:?}", without, with);
            prop_assert!(arrives(&without) || with.verdict != Verdict::Arrives, "{:?} {:?}", without, with);
        }

        #[test]
        fn more_to_write_or_less_to_send_with_never_brings_it_sooner(
            measured in guests(), more in 0u64..1_000, less in 0u64..4_000,
        ) {
            let quiet = Measured { auto_converge: false, ..measured };
            let told = forecast(&quiet);
            let worse = Measured {
                dirty_bytes_per_s: quiet.dirty_bytes_per_s + more * MIB,
                bytes_per_s: quiet.bytes_per_s.saturating_sub(less * MIB).max(MIB),
                ..quiet
            };
            let later = forecast(&worse);
            prop_assert!(!arrives(&later) || arrives(&told));
            // A slower link may bring a guest to its last pass a pass later, and a faster one never a pass earlier.
            prop_assert!(!arrives(&later) || later.time_ms + 1 >= told.time_ms, "{:?} {:?}", told, later);
        }
    }
}
