//! How the silence of one node's lease on one pool is found out: when it is read again, and what two readings make.
//! Without I/O; deliberately absent: who reads, and what is made of a proof.

use std::time::Duration;

use tamdao_model::fence::{Doubt, Reading, Silence, apart_ms, not_alive_after_ms, silence};
use tamdao_model::{NodeId, SessionId};
use tokio::time::Instant;

use crate::sessions::LeaseTold;

/// The pause before the next try after a reading that failed.
pub(super) const RETRY: Duration = Duration::from_secs(3);
/// More than what is needed between two readings, because two clocks count it.
const MARGIN: Duration = Duration::from_millis(300);
/// A lease that nobody could read for so long is not seen alive.
const BLIND: Duration = Duration::from_secs(20);

/// How the silence of one node on one pool is being found out.
pub(super) struct Search {
    /// The lost node's boot and session that the search is about.
    pub(super) about: (String, Option<SessionId>),
    pub(super) reader: Option<NodeId>,
    /// Asked and not answered.
    pub(super) asked: Option<Instant>,
    pub(super) next: Instant,
    pub(super) first: Option<(Reading, Instant)>,
    pub(super) pulse: Pulse,
    /// Whether the node could be powered off, so that it is worth knowing soon that the lease stands still.
    pub(super) quick: bool,
}

/// Whether somebody renews a lease, whatever its silence would prove.
pub(super) struct Pulse {
    since: Instant,
    /// The first reading since the record last changed, and for how long it has stood still since, ms.
    mark: Option<(Reading, u64)>,
    seen_alive: bool,
}

impl Pulse {
    fn new(since: Instant) -> Self {
        Self { since, mark: None, seen_alive: false }
    }

    fn take(&mut self, reading: &Reading) {
        let by = |reading: &Reading| (reading.reader, reading.session);
        match &mut self.mark {
            Some((mark, _)) if mark.record != reading.record => {
                self.seen_alive = true;
                self.mark = Some((reading.clone(), 0));
            }
            Some((mark, stood_ms)) if by(mark) == by(reading) => {
                *stood_ms = reading.began_ms.saturating_sub(mark.ended_ms);
                self.seen_alive &= !self.stands();
            }
            _ => self.mark = Some((reading.clone(), 0)),
        }
    }

    pub(super) fn stands(&self) -> bool {
        let mark = self.mark.as_ref();
        mark.is_some_and(|(mark, stood_ms)| *stood_ms >= not_alive_after_ms(mark.record.lease_ms))
    }

    /// Whether the node may be powered off for all that this lease says.
    pub(super) fn allows(&self, now: Instant) -> bool {
        let blind = now.saturating_duration_since(self.since) > BLIND;
        self.stands() || (blind && !self.seen_alive)
    }
}

/// What a reading brought.
pub(super) enum Step {
    Proven(Silence),
    Doubt(Doubt),
    Failed(String),
    Wait,
}

impl Search {
    pub(super) fn new(about: (String, Option<SessionId>), now: Instant) -> Self {
        let pulse = Pulse::new(now);
        Self { about, reader: None, asked: None, next: now, first: None, pulse, quick: false }
    }

    /// Between two looks: often enough to say soon that a lease is alive.
    fn pause(&self, lease_ms: u64) -> Duration {
        match self.quick {
            true => Duration::from_millis((lease_ms / 20).clamp(200, 3_000)),
            false => Duration::from_millis((lease_ms / 3).clamp(200, 20_000)),
        }
    }

    pub(super) fn take(&mut self, told: &LeaseTold, now: Instant) -> Step {
        if self.asked.is_none() || self.reader != Some(told.reader) {
            return Step::Wait;
        }
        self.asked = None;
        let reading = match &told.reading {
            Ok(reading) => reading.clone(),
            Err(error) => {
                self.give_up(now);
                return Step::Failed(error.clone());
            }
        };
        let lease_ms = reading.record.lease_ms;
        self.pulse.take(&reading);
        let Some((first, at)) = &self.first else {
            self.begin(reading, now);
            return Step::Wait;
        };
        match silence(&self.about.0, first, &reading) {
            Ok(silence) => {
                // It is asked again if this came too early to be used.
                self.next = now + self.pause(lease_ms);
                Step::Proven(silence)
            }
            Err(Doubt::TooClose) => {
                let due = *at + Duration::from_millis(apart_ms(lease_ms)) + MARGIN;
                let regular = now + self.pause(lease_ms);
                // No look so short before the one that counts that it would hold that up.
                self.next = match regular + RETRY.min(self.pause(lease_ms)) < due {
                    true => regular,
                    false => due.max(now + MARGIN),
                };
                Step::Wait
            }
            Err(doubt) => {
                self.begin(reading, now);
                Step::Doubt(doubt)
            }
        }
    }

    fn begin(&mut self, reading: Reading, now: Instant) {
        self.next = now + self.pause(reading.record.lease_ms);
        self.first = Some((reading, now));
    }

    pub(super) fn give_up(&mut self, now: Instant) {
        (self.asked, self.first, self.next) = (None, None, now + RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tamdao_model::PoolId;
    use tamdao_model::fence::RecordSeen;
    use uuid::Uuid;

    const READER: NodeId = NodeId(Uuid::from_u128(1));
    const LOST: NodeId = NodeId(Uuid::from_u128(2));
    const POOL: PoolId = PoolId(Uuid::from_u128(3));
    const LEASE_MS: u64 = 6_000;

    fn told(reader: NodeId, at_ms: u64, counter: u64) -> LeaseTold {
        let reading = Reading {
            reader,
            session: SessionId(Uuid::from_u128(4)),
            began_ms: at_ms,
            ended_ms: at_ms + 5,
            own_renewed_ms: Some(at_ms - 900),
            record: RecordSeen {
                boot_id: "b1".into(),
                counter,
                lease_ms: LEASE_MS,
                watchdog_timeout_ms: Some(1_000),
                released: false,
            },
        };
        LeaseTold { reader, node: LOST, pool: POOL, reading: Ok(reading) }
    }

    /// Has the reader asked and takes what it says.
    fn ask(search: &mut Search, now: Instant, told: &LeaseTold) -> Step {
        (search.reader, search.asked) = (Some(READER), Some(now));
        search.take(told, now)
    }

    #[tokio::test]
    async fn two_readings_far_enough_apart_prove_and_one_that_moved_begins_anew() {
        let now = Instant::now();
        let mut search = Search::new(("b1".to_owned(), None), now);
        assert!(matches!(search.take(&told(READER, 1_000, 7), now), Step::Wait), "nobody was asked");
        assert!(search.first.is_none());
        assert!(matches!(ask(&mut search, now, &told(READER, 1_000, 7)), Step::Wait));
        assert!(matches!(ask(&mut search, now, &told(READER, 5_000, 7)), Step::Wait), "too close");
        let first = |search: &Search| search.first.as_ref().map(|(reading, _)| reading.began_ms);
        assert_eq!(first(&search), Some(1_000), "the first one stays the first");
        assert!(matches!(ask(&mut search, now, &told(READER, 6_000, 8)), Step::Doubt(Doubt::Alive)));
        assert_eq!(first(&search), Some(6_000));
        let other = NodeId(Uuid::from_u128(9));
        assert!(matches!(ask(&mut search, now, &told(other, 20_000, 8)), Step::Wait), "another one's word");
        let Step::Proven(silence) = ask(&mut search, now, &told(READER, 15_000, 8)) else {
            panic!("it is silent")
        };
        assert_eq!((silence.counter, silence.apart_ms), (8, 8_995));
    }

    #[tokio::test]
    async fn a_lease_that_moves_forbids_power_off_until_it_stands_and_one_that_nobody_reads_does_not_for_long()
     {
        let now = Instant::now();
        let reading = |at_ms, counter| told(READER, at_ms, counter).reading.unwrap();
        let mut pulse = Pulse::new(now);
        assert!(!pulse.allows(now) && !pulse.allows(now + BLIND), "nobody has looked yet");
        assert!(pulse.allows(now + BLIND + RETRY), "nobody can");
        // A lease of six seconds is renewed every second.
        for (at_ms, counter, allows) in [
            (1_000, 7, false),
            (2_000, 8, false),
            (4_500, 8, false),
            (5_005, 8, true),
            (5_600, 9, false),
            (8_605, 9, true),
        ] {
            pulse.take(&reading(at_ms, counter));
            assert_eq!(pulse.allows(now), allows, "at {at_ms} ms");
        }
        pulse.take(&reading(9_000, 10));
        assert!(
            !pulse.allows(now + BLIND + RETRY),
            "who was seen alive last is not taken for dead by the blind"
        );
        // Another reader's clock says nothing of how long it stood.
        let other = Reading { reader: LOST, ..reading(90_000, 10) };
        pulse.take(&other);
        assert!(!pulse.allows(now));
    }

    #[tokio::test]
    async fn a_reading_that_fails_begins_anew() {
        let now = Instant::now();
        let mut search = Search::new(("b1".to_owned(), None), now);
        ask(&mut search, now, &told(READER, 1_000, 7));
        let failed = LeaseTold { reading: Err("it hangs".into()), ..told(READER, 2_000, 7) };
        assert!(matches!(ask(&mut search, now, &failed), Step::Failed(_)));
        assert!(search.first.is_none() && search.next > now);
    }
}
