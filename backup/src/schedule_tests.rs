//! The rules of retention, over made histories.

use proptest::prelude::*;

use super::*;
use crate::file::About;

const OURS: Uuid = Uuid::from_u128(7);
const OTHER: Uuid = Uuid::from_u128(8);
/// 22 November 2026, 15:57:55.017.
const NOW: u64 = 1_795_363_075_017;
const HOUR: u64 = 60 * 60 * 1_000;

fn name(cluster: Uuid, time_ms: u64, revision: u64) -> BackupName {
    let digest = format!("{revision:016x}");
    BackupName { time_ms, label: "north".into(), revision, cluster, digest }
}

fn head(cluster_name: &str) -> Head {
    let about = About {
        cluster: OURS,
        cluster_name: cluster_name.into(),
        revision: 412,
        level: 1,
        time_ms: NOW,
        version: "0.2.0".into(),
    };
    Head { tamdao_backup: 1, about, records: 3, sha256: String::new() }
}

#[test]
fn a_name_says_when_of_what_and_what_the_file_hashes_to() {
    let made = BackupName::of(&head("Sở Y tế / Bắc_1"), "0123456789abcdef0123");
    let text = "20261122T155755017Z_s--y-t----b-c-1_r412_00000000-0000-0000-0000-000000000007_0123456789abcdef\
                .tamdao-backup";
    assert_eq!(made.to_string(), text);
    assert_eq!(text.parse(), Ok(made.clone()));
    assert!(made.is_of(&head("Sở Y tế / Bắc_1"), "0123456789abcdef0123"));
    assert!(!made.is_of(&head("Sở Y tế / Bắc_1"), "0123456789abcdee0123"));
    assert!(!made.is_of(&head("another"), "0123456789abcdef0123"));
}

#[test]
fn what_is_only_like_a_name_is_none() {
    let made = name(OURS, NOW, 412).to_string();
    for other in [
        "tamdao-412.tamdao-backup".to_owned(),
        made.replace("_r412", "_r0412"),
        made.replace("_r412", "_r+412"),
        made.replace("0000-0000-0000", "000000000000"),
        made.replace("20261122", "20261322"),
        made.replace(SUFFIX, ".partial"),
        format!("{made}.old"),
        format!("x{made}"),
        format!("{made}#1"),
    ] {
        assert_eq!(other.parse::<BackupName>(), Err(OtherName), "{other}");
    }
}

#[test]
fn a_backup_is_due_a_period_after_the_newest_and_a_wrong_clock_does_not_stop_them() {
    let due = |times: &[u64]| is_due(times.iter().copied(), NOW, HOUR);
    assert!(due(&[]) && due(&[NOW - HOUR]) && due(&[NOW - 9 * HOUR]));
    assert!(!due(&[NOW - 9 * HOUR, NOW - HOUR + 1]) && !due(&[NOW]));
    // Another leader's clock may be a little ahead; one of next year was wrong.
    assert!(!due(&[NOW + HOUR / 2]) && due(&[NOW + 9 * HOUR, NOW - HOUR]));
}

#[test]
fn a_year_of_hourly_backups_leaves_the_last_and_one_of_each_day() {
    let keep = Keep { last: 24, daily_days: 30 };
    let mut kept: Vec<BackupName> = Vec::new();
    let mut now = NOW;
    for hour in 0..24 * 365 {
        now = NOW + hour * HOUR;
        kept.push(name(OURS, now, hour));
        let gone: Vec<String> = expendable(&kept, OURS, keep, now).iter().map(ToString::to_string).collect();
        kept.retain(|one| !gone.contains(&one.to_string()));
    }
    let days: BTreeSet<u64> = kept.iter().map(|one| one.time_ms / DAY_MS).collect();
    assert_eq!(days.len(), 30);
    assert_eq!(
        kept.len(),
        24 + 28,
        "the last 24 lie in two days, which have their newest among them or beside"
    );
    assert_eq!(kept.last().unwrap().time_ms, now);
}

fn history() -> impl Strategy<Value = Vec<BackupName>> {
    let one = (any::<bool>(), 0..40 * DAY_MS, 0..50u64).prop_map(|(ours, back, revision)| {
        // Some are of tomorrow.
        name(if ours { OURS } else { OTHER }, NOW + DAY_MS - back, revision)
    });
    prop::collection::vec(one, 0..80)
}

proptest! {
    #[test]
    fn every_name_is_read_as_it_was_written_and_sorts_by_time(
        a in 0..200_000 * DAY_MS, b in 0..200_000 * DAY_MS, revision: u64, id: u128, label in "[a-z0-9-]{0,40}"
    ) {
        let of = |time_ms| BackupName { label: label.clone(), ..name(Uuid::from_u128(id), time_ms, revision) };
        let (one, other) = (of(a), of(b));
        prop_assert_eq!(one.to_string().parse(), Ok(one.clone()));
        prop_assert_eq!(one.to_string().cmp(&other.to_string()), a.cmp(&b));
    }

    #[test]
    fn what_is_expendable_is_ours_and_of_the_past_and_is_missed_nowhere(
        good in history(), last in 0..10u32, daily_days in 0..10u32
    ) {
        let keep = Keep { last, daily_days };
        let gone = expendable(&good, OURS, keep, NOW);
        prop_assert!(gone.iter().all(|one| one.cluster == OURS && one.time_ms <= NOW));
        let past = |one: &&BackupName| one.cluster == OURS && one.time_ms <= NOW;
        let newest = good.iter().filter(past).max();
        prop_assert!(newest.is_none_or(|newest| !gone.contains(&newest)));
        let left: Vec<BackupName> = good.iter().filter(|one| !gone.contains(one)).cloned().collect();
        let days = |names: &[BackupName]| -> BTreeSet<u64> {
            let days = names.iter().filter(past).map(|one| NOW / DAY_MS - one.time_ms / DAY_MS);
            days.filter(|ago| *ago < u64::from(daily_days)).collect()
        };
        prop_assert_eq!(days(&good), days(&left), "a day has lost its last backup");
        let distinct: BTreeSet<&BackupName> = left.iter().filter(past).collect();
        let before: BTreeSet<&BackupName> = good.iter().filter(past).collect();
        prop_assert!(distinct.len() >= before.len().min(last.max(1) as usize));
        prop_assert!(distinct.len() <= (last.max(1) + daily_days) as usize);
        prop_assert!(expendable(&left, OURS, keep, NOW).is_empty(), "what is kept is kept");
    }
}
