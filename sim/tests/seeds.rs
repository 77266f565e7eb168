//! Seeds that are lived through at every change, and the deliberate bugs that they have to find.

use tamdao_seams::Mutant;
use tamdao_sim::live;

/// The seeds of every change; `cargo xtask ci --long` lives two thousand.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=40;

#[test]
fn every_rule_holds() {
    for seed in SEEDS {
        let history = live(seed, None, false);
        let told = history.breach.map(|breach| breach.to_string());
        assert_eq!(told, None, "cargo xtask sim --seed {seed}");
    }
}

#[test]
fn a_seed_replays_word_by_word() {
    for seed in [3, 11] {
        let (first, again) = (live(seed, None, true), live(seed, None, true));
        assert!(first.events > 1_000 && !first.story.is_empty());
        assert_eq!((first.events, first.revision), (again.events, again.revision));
        assert_eq!(first.story, again.story);
    }
}

/// Each bug, the seeds within which it has to be found, and the rules by which.
fn found(mutant: Mutant, within: u64, rules: &[&str]) {
    let breach = (1..=within).find_map(|seed| live(seed, Some(mutant), false).breach);
    let breach = breach.unwrap_or_else(|| panic!("{mutant:?} is not found within {within} seeds"));
    assert!(rules.contains(&breach.rule), "{mutant:?} is found by another rule: {breach}");
}

#[test]
fn evacuate_without_proof() {
    found(Mutant::EvacuateWithoutProof, 5, &["proofs", "one-place"]);
}

#[test]
fn silence_without_watchdog() {
    found(Mutant::SilenceWithoutWatchdog, 40, &["proofs", "one-place"]);
}

#[test]
fn leader_judges_at_once() {
    found(Mutant::LeaderJudgesAtOnce, 5, &["judgement"]);
}

#[test]
fn start_from_ledger() {
    found(Mutant::StartFromLedger, 20, &["starts", "one-place"]);
}

#[test]
fn deposed_leader() {
    found(Mutant::DeposedLeader, 20, &["deposed", "epochs"]);
}

#[test]
fn absence_is_a_command() {
    found(Mutant::AbsenceIsACommand, 120, &["orders"]);
}

#[test]
fn missing_disk_made_again() {
    found(Mutant::MissingDiskMadeAgain, 20, &["volumes"]);
}

#[test]
fn address_freed_early() {
    found(Mutant::AddressFreedEarly, 5, &["addresses"]);
}

#[test]
fn unknown_is_done() {
    found(Mutant::UnknownIsDone, 10, &["acknowledged"]);
}

#[test]
fn usage_forgotten() {
    found(Mutant::UsageForgotten, 5, &["usage"]);
}

#[test]
fn no_room_taken() {
    found(Mutant::NoRoomTaken, 5, &["capacity"]);
}

#[test]
fn resume_on_lost_reply() {
    found(Mutant::ResumeOnLostReply, 100, &["resumed"]);
}

#[test]
fn proof_used_twice() {
    found(Mutant::ProofUsedTwice, 80, &["proofs", "one-place"]);
}

#[test]
fn brake_stops_rack() {
    found(Mutant::BrakeStopsRack, 60, &["brake"]);
}

#[test]
fn power_off_unread() {
    found(Mutant::PowerOffUnread, 80, &["proofs", "one-place"]);
}

#[test]
fn disks_left_behind() {
    found(Mutant::DisksLeftBehind, 60, &["volumes"]);
}

#[test]
fn gone_before_reaped() {
    found(Mutant::GoneBeforeReaped, 120, &["one-place"]);
}
