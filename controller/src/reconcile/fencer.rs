//! The fencer: looks for evidence that a lost node runs none of its protected VMs. It reads the silence of storage leases
//! through nodes that hold the same pools, takes its power by its BMCs, and takes a goodbye for what it is.
//!
//! Leases are looked at from the first heartbeats that are missed, so that the time of a session is not lost for them.
//!
//! Invariants: nobody is judged before a whole session timeout has passed since this leader began to accept sessions, and
//! nobody who has a session; of who is only suspected nothing is told or committed. What is committed is a proof or a word
//! about the search, and what lies between two readings is lost with the office, so that the next leader reads anew.
//! Nothing is powered off while the brake holds, the cloud recovers, or a storage lease of the node is seen alive, nor
//! before that it will be is committed. Deliberately absent: restarting anything, and powering on.

mod power;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use tamdao_model::fence::{Doubt, Evidence, FenceProof};
use tamdao_model::node::{Node, NodePhase};
use tamdao_model::{NodeId, PoolId};
use tamdao_seams::{Mutant, has};
use tamdao_store::view::View;
use tokio::time::Instant;

use power::{Taking, Turn};
use search::{RETRY, Search, Step};

use super::Loop;
use crate::decide::fence;
use crate::refusal::Refusal;
use crate::sessions::LeaseTold;
use crate::shared::Shared;

/// How long a reading may take before another node is asked.
const PATIENCE: Duration = Duration::from_secs(15);
/// A reader that was not heard for so long is not asked.
const HEARD_WITHIN: Duration = Duration::from_secs(5);
/// Who has missed so much is looked at: two heartbeats.
const SUSPECT: Duration = Duration::from_millis(2_500);

/// See the module. One is made for each office.
pub struct Fencer {
    /// When this leader began to accept sessions.
    since: Instant,
    searches: BTreeMap<(NodeId, PoolId), Search>,
    takings: BTreeMap<NodeId, Taking>,
}

/// How far the silence of a node's agent has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has missed heartbeats: readings of its leases begin, and nothing else does.
    Suspected,
    /// Its session has timed out, and this leader has waited for it for as long.
    Lost,
}

impl Stage {
    /// What is to be done about a node that has been silent for so long; `silence` is none if this leader, in office for
    /// `office`, never heard it.
    fn of(phase: NodePhase, silence: Option<Duration>, office: Duration, timeout: Duration) -> Option<Self> {
        let judged = matches!(phase, NodePhase::Unreachable | NodePhase::Fencing | NodePhase::Fenced);
        let may_judge = office > timeout || has(Mutant::LeaderJudgesAtOnce);
        match silence {
            silence if judged && may_judge && silence.is_none_or(|silence| silence > timeout) => {
                Some(Self::Lost)
            }
            silence => (silence.unwrap_or(office) > SUSPECT).then_some(Self::Suspected),
        }
    }
}

impl Fencer {
    pub fn new(since: Instant) -> Self {
        Self { since, searches: BTreeMap::new(), takings: BTreeMap::new() }
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
        let office = now.saturating_duration_since(self.since);
        let view = shared.cache.view();
        if view.cluster().is_some_and(|it| it.is_disarmed(shared.clock.now())) {
            (self.searches, self.takings) = Default::default();
            return Ok(0);
        }
        let stage = |node: &Node| {
            let silence = shared.sessions.silence(node.id(), now);
            Stage::of(node.status.phase, silence, office, timeout)
        };
        let silent = view.nodes.iter().filter_map(|row| Some((row.value.clone(), stage(&row.value)?)));
        let silent: Vec<_> = silent.collect();
        let mut open = 0;
        let (mut asked, mut taken) = (Vec::new(), Vec::new());
        for (node, stage) in &silent {
            let question = fence::question(&view, node);
            if question.vms.is_empty() {
                continue;
            }
            let power = !node.spec.bmcs.is_empty();
            // A lease that proves nothing of a VM may still show that the node lives.
            let held = node.status.pools.iter().filter(|(_, seen)| power && seen.lease.is_some());
            let pools: BTreeSet<PoolId> = held.map(|(pool, _)| *pool).chain(question.pools.clone()).collect();
            asked.extend(pools.iter().map(|pool| (node.id(), *pool)));
            if *stage == Stage::Suspected {
                for pool in pools {
                    self.search(shared, &view, node, pool, false, &readings).await?;
                }
                continue;
            }
            open += question.vms.len() as u64;
            let said_goodbye =
                node.status.goodbye.is_some_and(|said| Some(said.session) == node.status.session);
            if said_goodbye || has(Mutant::EvacuateWithoutProof) {
                // An agent that is only restarted is back before.
                let gone_ms = shared.clock.now().since(node.status.phase_time);
                if u128::from(gone_ms) > timeout.as_millis() {
                    let by = "its own agent".to_owned();
                    prove(shared, fence::proof_of(node, Evidence::Goodbye, by, shared.clock.now())).await?;
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
            if question.pools.is_empty() && !power {
                let message = "no keeper guards its VMs on a shared pool, so nothing but its power or a person can say \
                               that they do not run: tamdao node attest-gone";
                tell(shared, node, fence::CONDITION, "NoEvidence", message).await?;
            }
            let mut proven = false;
            for pool in pools {
                let proves = question.pools.contains(&pool);
                proven |= self.search(shared, &view, node, pool, proves, &readings).await?;
            }
            // What that proof leaves open is asked by the next pass.
            if power && !proven {
                taken.push(node.id());
                self.take_power(shared, &view, node).await?;
            }
        }
        self.searches.retain(|search, _| asked.contains(search));
        self.takings.retain(|node, _| taken.contains(node));
        Ok(open)
    }
}

impl Fencer {
    /// Goes on with taking a node's power.
    async fn take_power(&mut self, shared: &Shared, view: &View, node: &Node) -> Result<(), Refusal> {
        let now = shared.clock.instant();
        let id = node.id();
        let taking = self.takings.entry(id).or_insert_with(|| Taking::new(node, now));
        if !taking.is_about(node) {
            *taking = Taking::new(node, now);
        }
        match taking.turn(node, &shared.key, &shared.bmc, now, self.since) {
            Turn::Wait => Ok(()),
            Turn::Failed(troubles) => {
                let message: Vec<&str> = troubles.iter().map(|trouble| trouble.message.as_str()).collect();
                let reason = troubles.first().map_or("NoBmc", |trouble| trouble.reason);
                tell(shared, node, fence::POWER, reason, &message.join("; ")).await
            }
            Turn::Ready(url) => {
                let lives =
                    self.searches.iter().any(|((of, _), search)| *of == id && !search.pulse.allows(now));
                if lives || !fence::may_power_off(view, id, node.status.session, shared.clock.now()) {
                    return Ok(());
                }
                // Committed first: who no longer leads powers nothing off.
                let session = node.status.session;
                let decided = shared
                    .writer
                    .submit(move |draft, moment| Ok(fence::power_off(draft, moment, id, session, &url)));
                let (leave, _) = decided.await?;
                let silent = shared.sessions.silence(id, shared.clock.instant());
                if leave && silent.is_none_or(|silence| silence > shared.sessions.timeout()) {
                    tracing::warn!(node = %id, "node is powered off");
                    taking.command(node, &shared.key, &shared.bmc, shared.clock.instant());
                }
                Ok(())
            }
            Turn::Proven(evidence) => {
                let by = format!("controller {}", shared.me.name);
                let (boot_id, session) = taking.about.clone();
                let proof = FenceProof {
                    boot_id,
                    session,
                    ..fence::proof_of(node, evidence, by, shared.clock.now())
                };
                self.takings.remove(&id);
                prove(shared, proof).await
            }
        }
    }

    /// Takes the readings of one node's lease on one pool further; `proves` if its silence would speak of some VM, and the
    /// node is lost. Says whether that was proven.
    async fn search(
        &mut self,
        shared: &Shared,
        view: &View,
        node: &Node,
        pool: PoolId,
        proves: bool,
        readings: &[LeaseTold],
    ) -> Result<bool, Refusal> {
        let now = shared.clock.instant();
        let about = (node.status.boot_id.clone(), node.status.session);
        let new = || Search::new(about.clone(), now);
        let search = self.searches.entry((node.id(), pool)).or_insert_with(new);
        if search.about != about {
            *search = new();
        }
        search.quick = !node.spec.bmcs.is_empty() && !search.pulse.stands();
        let pool_name =
            view.pools.get(pool).map_or_else(|| pool.to_string(), |pool| pool.meta.name.to_string());
        for told in readings.iter().filter(|told| (told.node, told.pool) == (node.id(), pool)) {
            match search.take(told, now) {
                Step::Proven(_) | Step::Doubt(_) if !proves => {}
                Step::Proven(silence) => {
                    let reader = view.nodes.get(told.reader);
                    let reader =
                        reader.map_or_else(|| told.reader.to_string(), |row| row.meta.name.to_string());
                    let evidence = Evidence::StorageSilence { pool, silence };
                    prove(shared, fence::proof_of(node, evidence, reader, shared.clock.now())).await?;
                    return Ok(true);
                }
                Step::Doubt(doubt) => {
                    let (reason, message) = explain(doubt, &pool_name);
                    tell(shared, node, fence::CONDITION, reason, &message).await?;
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
            return Ok(false);
        }
        match reader(shared, view, node.id(), pool, search.reader, search.first.is_some()) {
            Some(reader) => {
                if search.reader != Some(reader) {
                    (search.reader, search.first) = (Some(reader), None);
                }
                if shared.sessions.ask_for_lease(reader, pool, node.id()) {
                    search.asked = Some(now);
                }
            }
            None => {
                search.next = now + RETRY;
                search.first = None;
                if proves {
                    let message = format!(
                        "no node that is heard holds a lease of its own on pool {pool_name}, so nobody can look"
                    );
                    tell(shared, node, fence::CONDITION, "NoReader", &message).await?;
                }
            }
        }
        Ok(false)
    }
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

async fn prove(shared: &Shared, proof: FenceProof) -> Result<(), Refusal> {
    let node = proof.node;
    tracing::warn!(%node, evidence = %proof.evidence, "node is fenced");
    let decided = shared.writer.submit(move |draft, moment| fence::prove(draft, moment, proof.clone()));
    match decided.await {
        Ok(_) => Ok(()),
        // It was heard in the last moment: the next pass sees it as it is.
        Err(refusal) if refusal.code == tonic::Code::FailedPrecondition => {
            tracing::info!(%node, error = %refusal, "proof not taken");
            Ok(())
        }
        Err(refusal) => Err(refusal),
    }
}

async fn tell(
    shared: &Shared,
    node: &Node,
    condition: &'static str,
    reason: &str,
    message: &str,
) -> Result<(), Refusal> {
    let told = node.status.conditions.get(condition);
    if told.is_some_and(|told| told.reason == reason && told.message == message) {
        return Ok(());
    }
    let (id, reason, message) = (node.id(), reason.to_owned(), message.to_owned());
    let decided = shared.writer.submit(move |draft, moment| {
        fence::tell(draft, moment, id, condition, &reason, &message);
        Ok(())
    });
    decided.await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_misses_heartbeats_is_looked_at_and_who_is_silent_for_long_is_judged() {
        use NodePhase::{Fencing, Ready, Unreachable};
        let s = Duration::from_secs;
        let (timeout, long) = (s(10), s(1_000));
        let of = |phase, silence, office| Stage::of(phase, silence, office, timeout);
        for (phase, silence, office, expected) in [
            (Ready, Some(s(1)), long, None),
            (Ready, Some(s(3)), long, Some(Stage::Suspected)),
            (Ready, Some(s(11)), long, Some(Stage::Suspected)),
            (Unreachable, Some(s(11)), long, Some(Stage::Lost)),
            (Fencing, None, long, Some(Stage::Lost)),
            // It is heard again, and its record does not say so yet.
            (Fencing, Some(s(1)), long, None),
            // A new leader judges nobody, and looks at who does not come.
            (Fencing, None, s(1), None),
            (Fencing, None, s(4), Some(Stage::Suspected)),
            (Unreachable, Some(s(11)), s(10), Some(Stage::Suspected)),
            (Unreachable, Some(s(11)), s(11), Some(Stage::Lost)),
        ] {
            assert_eq!(of(phase, silence, office), expected, "{phase:?} {silence:?} {office:?}");
        }
    }
}
