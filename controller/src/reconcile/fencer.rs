//! The fencer: looks for evidence that a lost node runs none of its protected VMs. It reads the silence of storage leases
//! through nodes that hold the same pools, and takes a goodbye for what it is.
//!
//! Invariants: nobody is judged before a whole session timeout has passed since this leader began to accept sessions, and
//! nobody who has a session; what is committed is a proof or a word about the search, and what lies between two readings
//! is lost with the office, so that the next leader reads anew. Deliberately absent: power fencing, and restarting
//! anything.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::fence::{Doubt, Evidence, Reading, Silence, apart_ms, silence};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::{NodeId, PoolId, SessionId};
use tamdao_seams::{Mutant, has};
use tamdao_store::view::View;
use tokio::time::Instant;

use super::Loop;
use crate::decide::fence;
use crate::refusal::Refusal;
use crate::sessions::LeaseTold;
use crate::shared::Shared;

/// How long a reading may take before another node is asked.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause before the next try after a reading that failed.
const RETRY: Duration = Duration::from_secs(3);
/// A reader that was not heard for so long is not asked.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// More than what is needed between two readings, because two clocks count it.
const MARGIN: Duration = Duration::from_millis(300);

/// See the module. One is made for each office.
pub struct Fencer {
    /// When this leader began to accept sessions.
    since: Instant,
    searches: BTreeMap<(NodeId, PoolId), Search>,
}

/// How the silence of one node on one pool is being found out.
struct Search {
    /// The lost node's boot and session that the search is about.
    about: (String, Option<SessionId>),
    reader: Option<NodeId>,
    /// Asked and not answered.
    asked: Option<Instant>,
    next: Instant,
    first: Option<(Reading, Instant)>,
}

impl Fencer {
    pub fn new(since: Instant) -> Self {
        Self { since, searches: BTreeMap::new() }
    }
}

#[async_trait]
impl Loop for Fencer {
    fn name(&self) -> &'static str {
        "fencer"
    }

    fn period(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn wakes_on_change(&self) -> bool {
        false
    }

    fn rests_in_recovery(&self) -> bool {
        false
    }

    async fn pass(&mut self, shared: &Shared) -> Result<u64, Refusal> {
        let readings = shared.sessions.take_readings();
        let (now, timeout) = (shared.clock.instant(), shared.sessions.timeout());
        if now.saturating_duration_since(self.since) <= timeout && !has(Mutant::LeaderJudgesAtOnce) {
            return Ok(0);
        }
        let view = shared.cache.view();
        let lost = view.nodes.iter().filter(|node| {
            let phase = node.status.phase;
            matches!(phase, NodePhase::Unreachable | NodePhase::Fencing | NodePhase::Fenced)
                && shared.sessions.silence(node.id(), now).is_none_or(|silence| silence > timeout)
        });
        let lost: Vec<_> = lost.map(|node| node.value.clone()).collect();
        let mut open = 0;
        let mut asked = Vec::new();
        for node in &lost {
            let question = fence::question(&view, node);
            if question.vms.is_empty() || view.cluster().is_some_and(|it| it.is_disarmed(shared.clock.now()))
            {
                continue;
            }
            open += question.vms.len() as u64;
            let said_goodbye =
                node.status.goodbye.is_some_and(|said| Some(said.session) == node.status.session);
            if said_goodbye || has(Mutant::EvacuateWithoutProof) {
                // An agent that is only restarted is back before.
                let gone_ms = shared.clock.now().since(node.status.phase_time);
                if u128::from(gone_ms) > timeout.as_millis() {
                    prove(shared, node, Evidence::Goodbye, "its own agent".into()).await?;
                }
                continue;
            }
            if node.status.phase == NodePhase::Unreachable {
                let (id, session) = (node.id(), node.status.session);
                let sought = shared.writer.submit(move |draft, moment| {
                    fence::seek(draft, moment, id, session);
                    Ok(())
                });
                sought.await?;
            }
            if question.pools.is_empty() {
                let message = "no keeper guards its VMs on a shared pool, so nothing but its power or a person can say \
                               that they do not run: tamdao node attest-gone";
                tell(shared, node, "NoEvidence", message).await?;
            }
            for pool in question.pools {
                asked.push((node.id(), pool));
                self.search(shared, &view, node, pool, &readings).await?;
            }
        }
        self.searches.retain(|search, _| asked.contains(search));
        Ok(open)
    }
}

impl Fencer {
    /// Takes the readings of one node's lease on one pool further.
    async fn search(
        &mut self,
        shared: &Shared,
        view: &View,
        node: &Node,
        pool: PoolId,
        readings: &[LeaseTold],
    ) -> Result<(), Refusal> {
        let now = shared.clock.instant();
        let about = (node.status.boot_id.clone(), node.status.session);
        let new = Search { about: about.clone(), reader: None, asked: None, next: now, first: None };
        let search = self.searches.entry((node.id(), pool)).or_insert(new);
        if search.about != about {
            *search = Search { about, reader: None, asked: None, next: now, first: None };
        }
        let pool_name =
            view.pools.get(pool).map_or_else(|| pool.to_string(), |pool| pool.meta.name.to_string());
        for told in readings.iter().filter(|told| (told.node, told.pool) == (node.id(), pool)) {
            match search.take(told, now) {
                Step::Proven(silence) => {
                    let reader = view.nodes.get(told.reader);
                    let reader =
                        reader.map_or_else(|| told.reader.to_string(), |row| row.meta.name.to_string());
                    return prove(shared, node, Evidence::StorageSilence { pool, silence }, reader).await;
                }
                Step::Doubt(doubt) => {
                    let (reason, message) = explain(doubt, &pool_name);
                    tell(shared, node, reason, &message).await?;
                }
                Step::Failed(error) => {
                    tracing::debug!(node = %node.id(), error, "lease not read");
                }
                Step::Wait => {}
            }
        }
        if search.asked.is_some_and(|at| now.saturating_duration_since(at) > PATIENCE) {
            // Perhaps the storage hangs there; another one may see it.
            search.give_up(now);
        }
        if search.asked.is_some() || now < search.next {
            return Ok(());
        }
        match reader(shared, view, node.id(), pool, search.reader, search.first.is_some()) {
            Some(reader) => {
                if search.reader != Some(reader) {
                    (search.reader, search.first) = (Some(reader), None);
                }
                if shared.sessions.ask_for_lease(reader, pool, node.id()) {
                    search.asked = Some(now);
                }
                Ok(())
            }
            None => {
                search.next = now + RETRY;
                search.first = None;
                let message = format!(
                    "no node that is heard holds a lease of its own on pool {pool_name}, so nobody can look"
                );
                tell(shared, node, "NoReader", &message).await
            }
        }
    }
}

/// What a reading brought.
enum Step {
    Proven(Silence),
    Doubt(Doubt),
    Failed(String),
    Wait,
}

impl Search {
    fn take(&mut self, told: &LeaseTold, now: Instant) -> Step {
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
        let Some((first, at)) = &self.first else {
            self.begin(reading, now);
            return Step::Wait;
        };
        match silence(&self.about.0, first, &reading) {
            Ok(silence) => Step::Proven(silence),
            Err(Doubt::TooClose) => {
                let due = *at + Duration::from_millis(apart_ms(lease_ms)) + MARGIN;
                self.next = due.min(now + pause(lease_ms)).max(now + RETRY.min(pause(lease_ms)));
                Step::Wait
            }
            Err(doubt) => {
                self.begin(reading, now);
                Step::Doubt(doubt)
            }
        }
    }

    fn begin(&mut self, reading: Reading, now: Instant) {
        self.next = now + pause(reading.record.lease_ms);
        self.first = Some((reading, now));
    }

    fn give_up(&mut self, now: Instant) {
        (self.asked, self.first, self.next) = (None, None, now + RETRY);
    }
}

/// Between two looks: often enough to say soon that a lease is alive.
fn pause(lease_ms: u64) -> Duration {
    Duration::from_millis((lease_ms / 3).clamp(200, 20_000))
}

/// Who reads: the one who has begun, as long as it may; else the next after the one who failed.
fn reader(
    shared: &Shared,
    view: &View,
    lost: NodeId,
    pool: PoolId,
    last: Option<NodeId>,
    begun: bool,
) -> Option<NodeId> {
    let now = shared.clock.instant();
    let may = |node: &Node| {
        node.id() != lost
            && node.status.phase == NodePhase::Ready
            && node.status.pools.get(&pool).is_some_and(|seen| seen.ready && seen.lease.is_some())
            && shared.sessions.silence(node.id(), now).is_some_and(|silence| silence <= HEARD_WITHIN)
    };
    let able: Vec<NodeId> = view.nodes.iter().filter(|node| may(node)).map(|node| node.id()).collect();
    let next = || able.iter().find(|id| last.is_none_or(|last| **id > last)).or(able.first()).copied();
    last.filter(|last| begun && able.contains(last)).or_else(next)
}

fn explain(doubt: Doubt, pool: &str) -> (&'static str, String) {
    let reason = match doubt {
        Doubt::Alive => "StorageLeaseAlive",
        Doubt::NotArmed | Doubt::WatchdogTooSlow => "NoWatchdog",
        Doubt::Released => "StorageLeaseReleased",
        Doubt::OtherBoot => "OtherBoot",
        Doubt::TooClose | Doubt::ReaderBlind | Doubt::ReaderChanged => "ReadingAgain",
    };
    let message = match doubt {
        Doubt::Alive => format!(
            "its agent is not heard, and its storage lease on pool {pool} is renewed: it lives, its VMs are left alone, \
             and nothing is powered off"
        ),
        other => format!("its storage lease on pool {pool}: {other}"),
    };
    (reason, message)
}

async fn prove(shared: &Shared, node: &Node, evidence: Evidence, by: String) -> Result<(), Refusal> {
    tracing::warn!(node = %node.id(), evidence = %evidence, "node is fenced");
    let proof = fence::proof_of(node, evidence, by, shared.clock.now());
    let decided = shared.writer.submit(move |draft, moment| fence::prove(draft, moment, proof.clone()));
    match decided.await {
        Ok(_) => Ok(()),
        // It was heard in the last moment: the next pass sees it as it is.
        Err(refusal) if refusal.code == tonic::Code::FailedPrecondition => {
            tracing::info!(node = %node.id(), error = %refusal, "proof not taken");
            Ok(())
        }
        Err(refusal) => Err(refusal),
    }
}

async fn tell(shared: &Shared, node: &Node, reason: &str, message: &str) -> Result<(), Refusal> {
    let told = node.status.conditions.get(fence::CONDITION);
    if told.is_some_and(|told| told.reason == reason && told.message == message) {
        return Ok(());
    }
    let (id, reason, message) = (node.id(), reason.to_owned(), message.to_owned());
    let decided = shared.writer.submit(move |draft, moment| {
        fence::tell(draft, moment, id, &reason, &message);
        Ok(())
    });
    decided.await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let about = ("b1".to_owned(), None);
        let mut search = Search { about, reader: None, asked: None, next: now, first: None };
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
    async fn a_reading_that_fails_begins_anew() {
        let now = Instant::now();
        let about = ("b1".to_owned(), None);
        let mut search = Search { about, reader: None, asked: None, next: now, first: None };
        ask(&mut search, now, &told(READER, 1_000, 7));
        let failed = LeaseTold { reading: Err("it hangs".into()), ..told(READER, 2_000, 7) };
        assert!(matches!(ask(&mut search, now, &failed), Step::Failed(_)));
        assert!(search.first.is_none() && search.next > now);
    }
}
