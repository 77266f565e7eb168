//! The keeper's decision against time: what must hold at every tick, whatever the disks do.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tamdao_seams::choose;
use uuid::Uuid;

const LEASE: u64 = 60_000;

fn pool(n: u128) -> PoolId {
    PoolId(Uuid::from_u128(n))
}

fn vm(n: u128) -> VmId {
    VmId(Uuid::from_u128(n))
}

/// A keeper that holds a lease renewed at 0, with one guest.
fn guarding() -> Keeper {
    let mut keeper = Keeper::new(Some(10_000));
    keeper.hold(pool(1), LEASE, BootMs(0)).unwrap();
    let step = keeper.tick(BootMs(0));
    keeper.written(&step.renew[0], true, BootMs(20));
    keeper.guard(vm(1), [pool(1)].into(), &BTreeMap::new(), BootMs(30)).unwrap();
    keeper
}

#[test]
fn a_guest_needs_a_lease_that_is_held() {
    let mut keeper = Keeper::new(None);
    let pools = BTreeSet::from([pool(1)]);
    assert_eq!(
        keeper.guard(vm(1), pools.clone(), &BTreeMap::new(), BootMs(0)),
        Err(Refusal::NotHeld(pool(1)))
    );
    keeper.hold(pool(1), LEASE, BootMs(0)).unwrap();
    assert_eq!(
        keeper.guard(vm(1), pools.clone(), &BTreeMap::new(), BootMs(0)),
        Err(Refusal::Lapsed(pool(1)))
    );
    let step = keeper.tick(BootMs(5));
    keeper.written(&step.renew[0], true, BootMs(39_000));
    assert_eq!(
        keeper.guard(vm(1), pools.clone(), &BTreeMap::new(), BootMs(40_005)),
        Err(Refusal::Lapsed(pool(1)))
    );
    assert_eq!(keeper.guard(vm(1), pools.clone(), &BTreeMap::new(), BootMs(40_004)), Ok(()));
    assert_eq!(
        keeper.guard(vm(1), pools, &BTreeMap::new(), BootMs(40_004)),
        Err(Refusal::AlreadyGuarded(vm(1)))
    );
}

#[test]
fn time_counts_from_the_sending() {
    let mut keeper = guarding();
    let renewal = keeper.tick(BootMs(10_000)).renew[0];
    // It took half a minute; what follows is counted from when it was sent.
    keeper.written(&renewal, true, BootMs(39_000));
    assert_eq!(keeper.tick(BootMs(49_999)).kill, []);
    assert_eq!(keeper.tick(BootMs(50_000)).kill, [vm(1)]);
}

#[test]
fn a_holding_is_the_same_until_it_was_broken() {
    let held_since = |keeper: &Keeper, now| keeper.pools(BootMs(now))[0].held_since;
    let mut keeper = guarding();
    let under = |since| BTreeMap::from([(pool(1), BootMs(since))]);
    assert_eq!(keeper.guard(vm(2), [pool(1)].into(), &under(0), BootMs(30)), Ok(()));
    assert_eq!(held_since(&keeper, 39_999), Some(BootMs(0)));
    let renewal = keeper.tick(BootMs(10_000)).renew[0];
    keeper.written(&renewal, true, BootMs(39_999));
    assert_eq!(held_since(&keeper, 40_000), Some(BootMs(0)), "renewed in time");
    // Nobody looked at the clock in between: what came too late still breaks it.
    let renewal = keeper.tick(BootMs(40_001)).renew[0];
    keeper.written(&renewal, true, BootMs(50_000));
    assert_eq!(held_since(&keeper, 50_001), Some(BootMs(40_001)));
    // What was decided before the break may not begin after it, though the lease is held again.
    let late = keeper.guard(vm(3), [pool(1)].into(), &under(0), BootMs(50_001));
    assert_eq!(late, Err(Refusal::Broken(pool(1))));
    assert_eq!(keeper.guard(vm(3), [pool(1)].into(), &under(40_001), BootMs(50_001)), Ok(()));
    // An earlier keeper's holding goes on if it is still in time.
    for (now, since) in [(40_999, BootMs(500)), (41_000, BootMs(41_000))] {
        let mut next = Keeper::new(None);
        next.resume(pool(1), LEASE, Some(BootMs(1_000)), Some(BootMs(500)), BootMs(now)).unwrap();
        let renewal = next.tick(BootMs(now)).renew[0];
        next.written(&renewal, true, BootMs(now));
        assert_eq!(held_since(&next, now), Some(since), "at {now}");
    }
}

#[test]
fn a_guest_that_does_not_die_starves_the_watchdog() {
    let mut keeper = guarding();
    assert!(keeper.tick(BootMs(39_999)).kill.is_empty());
    let step = keeper.tick(BootMs(40_000));
    assert_eq!((step.kill, step.feed), (vec![vm(1)], true));
    assert!(keeper.tick(BootMs(49_999)).feed);
    assert!(!keeper.tick(BootMs(50_000)).feed);
    keeper.reaped(vm(1));
    assert!(keeper.tick(BootMs(50_001)).feed);
}

#[test]
fn a_kill_is_not_taken_back() {
    let mut keeper = guarding();
    let renewal = keeper.tick(BootMs(10_000)).renew[0];
    keeper.tick(BootMs(40_000));
    keeper.written(&Renewal { sent_at: BootMs(40_100), ..renewal }, true, BootMs(40_200));
    let step = keeper.tick(BootMs(40_300));
    assert_eq!((step.kill, step.feed), (vec![vm(1)], true));
    assert_eq!(keeper.pools(BootMs(40_300))[0].lapses, 1);
}

#[test]
fn a_shorter_lease_counts_at_once_and_a_longer_one_when_it_is_written() {
    let mut keeper = guarding();
    keeper.hold(pool(1), 120_000, BootMs(100)).unwrap();
    assert_eq!(keeper.pools(BootMs(100))[0].lease_ms, LEASE);
    let renewal = keeper.tick(BootMs(100)).renew[0];
    keeper.written(&renewal, true, BootMs(200));
    assert_eq!(keeper.pools(BootMs(200))[0].lease_ms, 120_000);
    keeper.hold(pool(1), LEASE, BootMs(300)).unwrap();
    assert_eq!(keeper.pools(BootMs(300))[0].lease_ms, LEASE);
}

#[test]
fn a_lease_is_given_back_only_without_guests() {
    let mut keeper = guarding();
    let refusal = Refusal::GuestsLeft { pool: pool(1), guests: 1 };
    assert_eq!(keeper.release(pool(1), BootMs(50)), Err(refusal));
    keeper.reaped(vm(1));
    keeper.release(pool(1), BootMs(60)).unwrap();
    assert_eq!(
        keeper.guard(vm(2), [pool(1)].into(), &BTreeMap::new(), BootMs(61)),
        Err(Refusal::NotHeld(pool(1)))
    );
    let renewal = keeper.tick(BootMs(70)).renew[0];
    assert!(renewal.released);
    keeper.written(&renewal, true, BootMs(80));
    assert!(keeper.is_idle());
}

#[test]
fn a_slow_watchdog_is_refused() {
    let mut keeper = Keeper::new(Some(10_001));
    let refusal = Refusal::WatchdogTooSlow { timeout_ms: 10_001, lease_ms: LEASE, most_ms: 10_000 };
    assert_eq!(keeper.hold(pool(1), LEASE, BootMs(0)), Err(refusal));
}

#[test]
fn a_keeper_that_is_started_again_knows_the_age() {
    let mut keeper = Keeper::new(None);
    keeper.resume(pool(1), LEASE, Some(BootMs(1_000)), Some(BootMs(500)), BootMs(30_000)).unwrap();
    keeper.readopt(vm(1), [pool(1)].into());
    assert!(keeper.tick(BootMs(30_000)).kill.is_empty());
    assert_eq!(keeper.tick(BootMs(41_000)).kill, [vm(1)]);
}

#[derive(Debug, Clone)]
enum Event {
    /// So much time passes, and the keeper ticks.
    Pass(u64),
    /// A write ends; one that failed may have reached the disk all the same.
    Written {
        succeeded: bool,
        reached: bool,
    },
    Guard(u8),
    Reaped(u8),
    Release,
    Hold(u64),
}

fn an_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1u64..15_000).prop_map(Event::Pass),
        4 => any::<(bool, bool)>().prop_map(|(succeeded, reached)| Event::Written { succeeded, reached }),
        3 => (0u8..3).prop_map(Event::Guard),
        2 => (0u8..3).prop_map(Event::Reaped),
        1 => Just(Event::Release),
        1 => prop_oneof![Just(30_000u64), Just(60_000), Just(120_000)].prop_map(Event::Hold),
    ]
}

/// Lives through the events against a model that knows what is on the disk only: when a reader may believe in silence,
/// nothing runs.
fn live(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut keeper = Keeper::new(None);
    keeper.hold(pool(1), LEASE, BootMs(0)).unwrap();
    let mut now = 0u64;
    let mut under_way = None;
    // What the record says: when its last renewal was sent, and for how long it is good.
    let mut record: Option<(u64, u64)> = None;
    let mut running = BTreeSet::new();
    for event in events {
        match event {
            Event::Pass(ms) => now += ms,
            Event::Written { succeeded, reached } => {
                if let Some(renewal) = under_way.take() {
                    let renewal: Renewal = renewal;
                    if succeeded || reached {
                        record = (!renewal.released).then_some((renewal.sent_at.0, renewal.lease_ms));
                    }
                    keeper.written(&renewal, succeeded, BootMs(now));
                }
            }
            Event::Guard(n) => {
                if keeper.guard(vm(n.into()), [pool(1)].into(), &BTreeMap::new(), BootMs(now)).is_ok() {
                    running.insert(vm(n.into()));
                }
            }
            Event::Reaped(n) => {
                keeper.reaped(vm(n.into()));
                running.remove(&vm(n.into()));
            }
            Event::Release => {
                let _ = keeper.release(pool(1), BootMs(now));
            }
            Event::Hold(lease_ms) => keeper.hold(pool(1), lease_ms, BootMs(now)).unwrap(),
        }
        let step = keeper.tick(BootMs(now));
        if let Some(renewal) = step.renew.first() {
            prop_assert!(under_way.is_none(), "two writes of one record at once");
            under_way = Some(*renewal);
        }
        let dying: BTreeSet<VmId> = step.kill.iter().copied().collect();
        let age = record.map(|(sent, lease_ms)| (now - sent, lease_ms));
        for vm in &running {
            let (age, lease_ms) = age.expect("a guest runs on a pool whose record says released");
            prop_assert!(age < lease_ms * 2 / 3 || dying.contains(vm), "{vm} runs at {age} of {lease_ms}");
            prop_assert!(
                age < lease_ms * 5 / 6 || !step.feed,
                "{vm} is there at {age} of {lease_ms}, and fed"
            );
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn nothing_runs_when_a_reader_may_believe_in_silence(events in prop::collection::vec(an_event(), 1..80)) {
        live(events)?;
    }
}

/// The property above bites. The simulation does not meet this bug: its guests are killed before it matters.
#[test]
fn a_lease_that_is_counted_from_the_answer_is_found() {
    choose(Some(Mutant::LeaseCountedFromReceipt));
    let found = TestRunner::deterministic().run(&prop::collection::vec(an_event(), 1..80), live);
    choose(None);
    assert!(found.is_err());
}
