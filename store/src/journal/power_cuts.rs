//! The journal on a disk that loses power: after each cut it opens, holds all that was written, and goes on.

use super::*;
use crate::files::simulated::{Dice, Lie, Simulated, cuts};

const FOLDER: &str = "/data/journal";

/// Writes until the power goes, a few times over; says what is wrong.
fn live(seed: u64, lie: Option<Lie>) -> Result<(), String> {
    let (disk, mut dice) = (Simulated::new(), Dice::new(seed));
    disk.lie(lie);
    // What was on disk for sure when the power went, and how the entries go on.
    let (mut certain, mut revision, mut now) = (None::<End>, 0, DAY_MS);
    for _ in 0..3 {
        disk.cut_after(1 + dice.below(60));
        write(&disk, &mut dice, &mut certain, &mut revision, &mut now);
        disk.restart(&mut dice);
        let journal = Journal::open_on(disk.mounted(), Path::new(FOLDER), KEEP);
        let journal = journal.map_err(|error| format!("it does not open: {error}"))?;
        if let Some(certain) = &certain {
            let there = tempfile::tempdir().map_err(|error| error.to_string())?;
            disk.pour(Path::new(FOLDER), there.path());
            let whole = verify(there.path(), Some(certain)).map_err(|error| error.to_string())?;
            if (whole.last, &whole.hash) != (journal.end.sequence, &journal.end.hash) {
                return Err(format!(
                    "it ends with entry {}, and opens at {}",
                    whole.last, journal.end.sequence
                ));
            }
        }
        // It goes on behind what is there, as who writes it does.
        revision = journal.end.revision.0;
        certain = Some(journal.end);
    }
    Ok(())
}

const KEEP: Keep = Keep { bytes: 20_000, age_ms: u64::MAX };

fn write(disk: &Simulated, dice: &mut Dice, certain: &mut Option<End>, revision: &mut u64, now: &mut u64) {
    let Ok(mut journal) = Journal::open_on(disk.mounted(), Path::new(FOLDER), KEEP) else { return };
    loop {
        disk.set_now(*now);
        let written = match dice.below(8) {
            0 => {
                *now += DAY_MS;
                journal.trim(TimeMs(*now), None)
            }
            _ => {
                let entries: Vec<Entry> = (0..=dice.below(6)).map(|_| entry(dice, revision)).collect();
                journal.append(&entries, TimeMs(*now))
            }
        };
        match written {
            Ok(()) => *certain = Some(journal.end.clone()),
            Err(_) => return,
        }
    }
}

fn entry(dice: &mut Dice, revision: &mut u64) -> Entry {
    *revision += 1;
    let record = format!("{:?}", "x".repeat(dice.below(1_500) as usize));
    Entry { revision: Revision(*revision), key: format!("event-{revision}"), record }
}

#[test]
fn nothing_written_is_lost_wherever_the_power_goes() {
    for seed in 0..cuts(150) {
        live(seed, None).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

/// Each sync is there for a reason: without it the same seeds find something lost.
#[test]
fn a_sync_that_is_left_out_is_found() {
    let lies: [(&str, Lie); 3] = [
        ("entries", |path| path.extension().is_some()),
        ("the folder of the files", |path| path == Path::new(FOLDER)),
        ("the folder above", |path| path == Path::new("/data")),
    ];
    for (what, lie) in lies {
        let found = (0..150).find(|seed| live(*seed, Some(lie)).is_err());
        assert!(found.is_some(), "nobody misses the sync of {what}");
    }
}
