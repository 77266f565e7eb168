//! The agent's loop: look, decide, begin, say. The decision, the assignment's folding, the memory of failures, the news
//! and the ledger's record are the product's; the loop around them is written again here without threads and files.

use std::collections::{BTreeMap, BTreeSet};

use tamdao_node_agent::desired::Desired;
use tamdao_node_agent::hypervisor::Exit;
use tamdao_node_agent::keeper::KeeperFact;
use tamdao_node_agent::news::News;
use tamdao_node_agent::reconcile::{self, Efforts, FileFact, PoolFact, Step, Subject, View, believed_alive};
use tamdao_proto::agent::v1::session_request::Message as Said;
use tamdao_seams::{Mutant, has};
use uuid::Uuid;

use crate::hands::Doing;
use crate::host::Host;
use crate::world::{Event, World};
use crate::{LOCAL, SHARED};

/// How often it looks when nothing happens.
const PERIOD_MS: u64 = 2_500;
/// Rounds of steps that only write down, in one pass.
const ROUNDS: usize = 8;

/// One life of an agent's process. All of it is lost with it.
#[derive(Default)]
pub struct Agent {
    pub life: u64,
    pub paused_until: u64,
    pub line: Option<u64>,
    /// The line is a session.
    pub up: bool,
    pub session: u64,
    pub dials: usize,
    pub dial_at: u64,
    pub heard_at: u64,
    pub sequence: u64,
    pub beat_ms: u64,
    pub answered_ms: Option<u64>,
    pub news: News,
    pub desired: Desired,
    pub efforts: Efforts,
    pub busy: BTreeMap<Subject, Step>,
    pub doings: BTreeMap<u64, Doing>,
    pub next_doing: u64,
    /// VMs whose files are being carried away and shall not.
    pub recalled: BTreeSet<Uuid>,
    pub exits: BTreeMap<Uuid, Exit>,
    pub keeper: KeeperFact,
    /// When the next pass is planned for.
    pass_at: u64,
}

impl World {
    pub fn start_agent(&mut self, at: usize, boot: u64) {
        let host = &mut self.nodes[at];
        if !host.up || host.boot != boot || host.agent.is_some() {
            return;
        }
        host.lives += 1;
        let life = host.lives;
        let mut agent = Agent { life, pass_at: u64::MAX, dials: at, ..Agent::default() };
        if has(Mutant::StartFromLedger) {
            agent.desired = host.remembered.clone();
        }
        host.agent = Some(agent);
        self.tell(|| format!("n{at}: the agent starts"));
        self.plan(1, Event::Beat { node: at, life });
        self.pass_soon(at);
    }

    pub fn crash_agent(&mut self, at: usize) {
        let host = &mut self.nodes[at];
        let Some(agent) = host.agent.take() else { return };
        let boot = host.boot;
        self.tell(|| format!("n{at}: the agent crashes"));
        if let Some(line) = agent.line {
            // The kernel closes its socket.
            self.close_line(line);
        }
        let back = self.chance.between(200, 6_000);
        self.plan(back, Event::StartAgent { node: at, boot });
    }

    /// Has the agent look in a moment.
    pub fn pass_soon(&mut self, at: usize) {
        let delay = self.chance.between(1, 20);
        self.pass_in(at, delay);
    }

    fn pass_in(&mut self, at: usize, in_ms: u64) {
        let when = self.now_ms + in_ms;
        let Some(agent) = self.nodes[at].agent.as_mut() else { return };
        if when < agent.pass_at {
            agent.pass_at = when;
            let life = agent.life;
            self.plan(in_ms, Event::Pass { node: at, life });
        }
    }

    pub fn pass(&mut self, at: usize, life: u64) {
        let now_ms = self.now_ms;
        let Some(agent) = self.nodes[at].agent.as_mut().filter(|agent| agent.life == life) else { return };
        // An earlier look was planned since; this one is its echo.
        if agent.pass_at != now_ms {
            return;
        }
        agent.pass_at = u64::MAX;
        if agent.paused_until > now_ms {
            let pause = agent.paused_until - now_ms;
            return self.pass_in(at, pause);
        }
        self.look(at);
        let wake_ms = self.decide(at);
        let host = &self.nodes[at];
        let wake = wake_ms.map(|wake_ms| wake_ms.saturating_sub(host.clock_ms(now_ms)).max(20));
        self.pass_in(at, wake.unwrap_or(PERIOD_MS).min(PERIOD_MS));
    }

    fn look(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[at];
        let wants_lease =
            host.agent.as_ref().is_some_and(|agent| agent.desired.pools.contains_key(&SHARED.0));
        if wants_lease && host.access.works() {
            self.hold_lease(at);
        }
        let host = &mut self.nodes[at];
        let fact = match host.keeper_status(now_ms) {
            Some(status) => KeeperFact::read(&status),
            None => KeeperFact { away: Some("the keeper does not answer".into()), ..KeeperFact::default() },
        };
        let Some(agent) = host.agent.as_mut() else { return };
        agent.keeper = fact.after(&agent.keeper);
        for (vm, record) in &host.ledger.vms {
            let ended =
                believed_alive(record) && record.boot_id == host.boot_id && !host.domains.contains_key(vm);
            if ended && let Some(exit) = host.last_exits.get(vm) {
                agent.exits.insert(*vm, *exit);
            }
        }
        agent.exits.retain(|vm, _| !host.domains.contains_key(vm));
    }

    /// Decides until nothing is left to be written down; begins the rest and reports. Answers when to look again.
    fn decide(&mut self, at: usize) -> Option<u64> {
        let now_ms = self.now_ms;
        for _ in 0..ROUNDS {
            let host = &self.nodes[at];
            let agent = host.agent.as_ref()?;
            let (pools, files) = (pools(host, agent), self.files(at));
            let (images, guests) = (BTreeSet::new(), BTreeMap::new());
            let clock_ms = host.clock_ms(now_ms);
            let decision = reconcile::decide(&View {
                now_ms: clock_ms,
                boot_id: &host.boot_id,
                desired: &agent.desired,
                domains: &host.domains,
                foreign: 0,
                hypervisor_away: None,
                observed: true,
                exits: &agent.exits,
                ledger: &host.ledger,
                pools: &pools,
                files: &files,
                images: &images,
                guests: &guests,
                keeper: &agent.keeper,
                answered_ms: agent.answered_ms,
                efforts: &agent.efforts,
                busy: &agent.busy,
            });
            let agent = self.nodes[at].agent.as_mut()?;
            decision.well.iter().for_each(|subject| agent.efforts.clear(subject));
            let (notes, work): (Vec<_>, Vec<_>) = decision.steps.into_iter().partition(is_note);
            if !notes.is_empty() {
                for step in &notes {
                    self.write_down(at, step);
                }
                continue;
            }
            if agent.up
                && let Some(report) = agent.news.of(&decision.report)
            {
                self.say(at, Said::Report(report));
            }
            for step in work {
                self.begin(at, step);
            }
            return decision.wake_ms;
        }
        Some(0)
    }

    /// What is found in the pools of the volumes that the assignment names.
    fn files(&self, at: usize) -> BTreeMap<Uuid, FileFact> {
        let host = &self.nodes[at];
        let Some(agent) = &host.agent else { return BTreeMap::new() };
        let found = agent.desired.volumes.iter().map(|(id, wanted)| {
            let exists = match wanted.pool == SHARED.0 {
                true => self.storage.files.contains(id),
                false => host.files.contains(id),
            };
            (*id, FileFact { exists, used_mib: u64::from(exists) })
        });
        found.collect()
    }
}

fn pools(host: &Host, agent: &Agent) -> BTreeMap<Uuid, PoolFact> {
    let fact = |id: &Uuid| {
        let ready = *id == LOCAL.0 || host.access.works();
        let message = if ready { String::new() } else { "its file system does not answer".to_owned() };
        (*id, PoolFact { ready, capacity_mib: 100_000, used_mib: 0, message })
    };
    agent.desired.pools.keys().map(fact).collect()
}

fn is_note(step: &Step) -> bool {
    matches!(
        step,
        Step::RecordEnd { .. }
            | Step::Recognise { .. }
            | Step::Tidy { .. }
            | Step::Keep { .. }
            | Step::LetGo { .. }
    )
}
