//! The loop: look, decide, do, say. Woken by the leader, by the hypervisor, by the end of a step, by the next
//! deadline and every few seconds; what woke it is forgotten, since the look tells all.
//!
//! Invariants: one step at a time for a VM, volume or image; nothing is decided on a look older than the last
//! step; the report that goes out was made after the ledger's own steps were done. Deliberately absent: decisions
//! (`reconcile`), the doing (`operate`) and the wire (`session`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tamdao_proto::agent::v1 as wire;
use tamdao_proto::v1::GuestStatus;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::desired::{Desired, Intent, WantedVm};
use crate::hypervisor::{Change, Domain, DomainEvent, Exit};
use crate::keeper::KeeperFact;
use crate::ledger::{REMEMBER_S, State};
use crate::moves::{Arrival, Arrivals};
use crate::operate::{Context, OperateError, Operator};
use crate::reconcile::turns::Turns;
use crate::reconcile::{self, Efforts, FileFact, Go, PoolFact, Step, Subject, View};
use crate::session::{Answered, Event};
use crate::volume;

/// How often it looks when nothing happens.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a pool's file system may take to answer before the pool is called absent.
const POOL_PATIENCE: Duration = Duration::from_secs(3);
/// How long steps may take to end when the agent is to stop.
const FINISH: Duration = Duration::from_secs(10);
/// How many rounds of ledger-only steps one pass may take.
const ROUNDS: usize = 8;

/// ms of CLOCK_BOOTTIME, which goes on while the host sleeps.
#[must_use]
pub fn boot_clock_ms() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The controllers to ask, those told by the leader first.
#[must_use]
pub fn controllers(state: &State, configured: &[String]) -> Vec<String> {
    let mut all = state.controllers.clone();
    all.extend(configured.iter().filter(|one| !state.controllers.contains(*one)).cloned());
    all
}

/// A look at one pool and the files of its wanted volumes, and whether the pool is newly known.
type PoolLook = (PoolFact, bool, BTreeMap<Uuid, FileFact>);

/// What the loop keeps between passes. All of it may be lost.
pub struct Node {
    operator: Arc<Operator>,
    configured: Vec<String>,
    desired: Desired,
    domains: BTreeMap<Uuid, Domain>,
    foreign: u32,
    away: Option<String>,
    observed: bool,
    exits: BTreeMap<Uuid, Exit>,
    pools: BTreeMap<Uuid, PoolFact>,
    keeper: KeeperFact,
    files: BTreeMap<Uuid, FileFact>,
    /// Looks that have not come back: a file server that is away holds whoever asks it.
    looking: BTreeMap<Uuid, JoinHandle<PoolLook>>,
    efforts: Efforts,
    busy: BTreeMap<Subject, Step>,
    turns: Turns,
    steps: JoinSet<Result<(), OperateError>>,
    at_work: BTreeMap<Id, (Step, (u64, u64))>,
    guests: watch::Receiver<BTreeMap<Uuid, GuestStatus>>,
    to_ask: watch::Sender<BTreeSet<Uuid>>,
    reports: watch::Sender<Option<Arc<wire::Report>>>,
    readings: mpsc::Sender<wire::LeaseReading>,
    /// The session that the assignment is of.
    session: Option<u64>,
    answered: watch::Receiver<Option<Answered>>,
    /// Readings at work, by pool.
    reading: BTreeMap<Uuid, JoinHandle<()>>,
    /// The packet filter has been written once since the agent began.
    filtered: bool,
    /// A complete assignment came: what nobody speaks of any more may be forgotten.
    forget: bool,
    _asking: AbortOnDropHandle<()>,
}

impl Node {
    /// `configured` are the controllers of the configuration, `boots_at_once` guests boot side by side; reports go out by `reports`, readings of other nodes'
    /// leases by `readings`. `answered` says how long the leader was there.
    #[must_use]
    pub fn new(
        operator: Arc<Operator>,
        configured: Vec<String>,
        boots_at_once: usize,
        reports: watch::Sender<Option<Arc<wire::Report>>>,
        readings: mpsc::Sender<wire::LeaseReading>,
        answered: watch::Receiver<Option<Answered>>,
    ) -> Self {
        let (to_ask, asked) = watch::channel(BTreeSet::new());
        let (answers, guests) = watch::channel(BTreeMap::new());
        let asking = tokio::spawn(crate::guests::ask(operator.hypervisor.clone(), asked, answers));
        Self {
            operator,
            configured,
            desired: Desired::default(),
            domains: BTreeMap::new(),
            foreign: 0,
            away: None,
            observed: false,
            exits: BTreeMap::new(),
            pools: BTreeMap::new(),
            keeper: KeeperFact::default(),
            files: BTreeMap::new(),
            looking: BTreeMap::new(),
            efforts: Efforts::default(),
            busy: BTreeMap::new(),
            turns: Turns::new(boots_at_once),
            steps: JoinSet::new(),
            at_work: BTreeMap::new(),
            guests,
            to_ask,
            reports,
            readings,
            session: None,
            answered,
            reading: BTreeMap::new(),
            filtered: false,
            forget: false,
            _asking: AbortOnDropHandle::new(asking),
        }
    }

    /// Runs until `stop`; then lets the steps at work come to their end, and says whether no guest of ours runs.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) -> bool {
        let mut changes = self.operator.hypervisor.events();
        loop {
            let wake_ms = self.pass().await;
            let pause =
                wake_ms.map_or(PERIOD, |at| Duration::from_millis(at.saturating_sub(boot_clock_ms())));
            tokio::select! {
                () = stop.cancelled() => break,
                Some(event) = events.recv() => {
                    self.hear(event);
                    while let Ok(event) = events.try_recv() {
                        self.hear(event);
                    }
                }
                change = changes.recv() => {
                    self.note(change);
                    while let Ok(change) = changes.try_recv() {
                        self.note(Ok(change));
                    }
                }
                Some(done) = self.steps.join_next_with_id() => {
                    self.done(done);
                    while let Some(done) = self.steps.try_join_next_with_id() {
                        self.done(done);
                    }
                }
                Ok(()) = self.guests.changed() => {}
                () = self.operator.moves.changed.notified() => {}
                () = tokio::time::sleep(pause.min(PERIOD)) => {}
            }
        }
        self.finish().await
    }

    async fn finish(&mut self) -> bool {
        let all = async {
            while let Some(done) = self.steps.join_next_with_id().await {
                self.done(done);
            }
        };
        let finished = tokio::time::timeout(FINISH, all).await.is_ok();
        let nothing_runs = self.operator.hypervisor.observe().await.is_ok_and(|now| now.ours.is_empty());
        // Nothing runs, and the storage leases say so too.
        finished && nothing_runs && self.operator.keeper.release_all().await
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Assignment(session, assignment) => {
                self.session = Some(session);
                for fault in self.desired.apply(&assignment) {
                    tracing::error!(error = %fault, "entry of the assignment cannot be understood");
                }
                self.forget |= assignment.complete;
                tracing::debug!(
                    epoch = assignment.epoch,
                    revision = assignment.revision,
                    complete = assignment.complete,
                    vms = assignment.vms.len(),
                    "assignment taken"
                );
            }
            Event::Down => {
                self.session = None;
                self.desired.cut();
            }
            Event::ReadLease(asked) => self.read_lease(asked),
        }
    }

    /// Reads another node's lease, off the loop: the storage may hang. One reading of a pool at a time.
    fn read_lease(&mut self, asked: wire::ReadLease) {
        let ids = (Uuid::try_parse(&asked.pool_id), Uuid::try_parse(&asked.node_id));
        let (Ok(pool), Ok(node)) = ids else { return };
        let path = self.desired.pools.get(&pool).filter(|pool| pool.shared).map(|pool| pool.path.clone());
        if self.reading.get(&pool).is_some_and(|reading| !reading.is_finished()) {
            return;
        }
        let (keeper, readings) = (self.operator.keeper.clone(), self.readings.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let reading = match path {
                Some(path) => keeper.read_lease(&path, pool, node),
                None => wire::LeaseReading {
                    pool_id: asked.pool_id,
                    node_id: asked.node_id,
                    error: "this node does not hold the pool".to_owned(),
                    ..wire::LeaseReading::default()
                },
            };
            // A session that is over asks again.
            let _ = readings.try_send(reading);
        });
        self.reading.insert(pool, reading);
    }

    fn note(&mut self, change: Result<DomainEvent, broadcast::error::RecvError>) {
        match change {
            Ok(DomainEvent::Lifecycle { vm, change: Change::Stopped(exit) }) => {
                self.exits.insert(vm, exit);
            }
            // What an earlier domain's end was is of no use any more.
            Ok(DomainEvent::Lifecycle { vm, change: Change::Started }) => {
                self.exits.remove(&vm);
            }
            Ok(DomainEvent::AgentConnected { .. }) => self.to_ask.send_modify(|_| {}),
            Ok(DomainEvent::IoError { vm, path, reason }) => {
                tracing::warn!(%vm, path, reason, "guest has an input or output error");
            }
            Ok(DomainEvent::ConnectionUp) => self.efforts.clear_reason("HypervisorAway"),
            Ok(DomainEvent::Lifecycle { .. } | DomainEvent::ConnectionLost) | Err(_) => {}
        }
    }

    fn done(&mut self, done: Result<(Id, Result<(), OperateError>), JoinError>) {
        let (id, result) = match done {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(OperateError::Overtaken("the step did not come to its end"))),
        };
        if let Some((step, stamp)) = self.at_work.remove(&id) {
            self.busy.remove(&step.subject());
            self.weigh(&step, stamp, result);
        }
    }

    /// Remembers how a step went.
    fn weigh(&mut self, step: &Step, stamp: (u64, u64), result: Result<(), OperateError>) {
        let subject = step.subject();
        let now_ms = boot_clock_ms();
        match (result, step) {
            (Ok(()), Step::Resume { why: Go::Room, .. }) => {
                // Until the guest has done well for a while, this counts as a try.
                let problem = wire::Problem {
                    reason: "IoError".to_owned(),
                    message: "QEMU paused it for an input or output error".to_owned(),
                    ..Default::default()
                };
                self.efforts.fail(subject, step.kind(), stamp, problem, now_ms);
            }
            (Ok(()), _) => {
                self.efforts.clear(&subject);
                metrics::counter!("tamdao_agent_steps_total", "step" => step.kind(), "result" => "done")
                    .increment(1);
                match step {
                    Step::RecordEnd { vm, .. } => drop(self.exits.remove(vm)),
                    Step::Start { vm, .. } => self.turns.began(*vm, now_ms),
                    _ => {}
                }
                if matches!(step, Step::FetchImage { .. }) {
                    self.evict();
                }
            }
            (Err(error), _) => {
                let problem = error.problem();
                metrics::counter!("tamdao_agent_steps_total", "step" => step.kind(), "result" => "failed")
                    .increment(1);
                let repeated =
                    self.efforts.get(&subject).is_some_and(|old| old.problem.message == problem.message);
                if repeated {
                    tracing::debug!(step = step.kind(), subject = ?subject, error = %error, "step failed again");
                } else {
                    tracing::warn!(step = step.kind(), subject = ?subject, error = %error, "step failed");
                }
                self.efforts.fail(subject, step.kind(), stamp, problem, now_ms);
            }
        }
    }

    fn evict(&self) {
        // Without a whole assignment nobody knows what is wanted.
        if !self.desired.complete {
            return;
        }
        let state = self.operator.ledger.state();
        let mut keep = self.desired.wanted_images();
        keep.extend(state.volumes.values().filter_map(|record| record.image.clone()));
        keep.extend(state.vms.values().flat_map(|record| record.images.iter().cloned()));
        match self.operator.images.evict(&keep) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(images = gone.len(), "unused images evicted"),
            Err(error) => tracing::warn!(error = %error, "unused image cannot be evicted"),
        }
    }

    /// One pass. Returns when to look again at the latest.
    async fn pass(&mut self) -> Option<u64> {
        self.operator.moves.expect(self.arrivals());
        self.look().await;
        if !self.filtered {
            match self.operator.filter().await {
                Ok(()) => self.filtered = true,
                Err(error) => tracing::warn!(error = %error, "packet filter cannot be written"),
            }
        }
        if std::mem::take(&mut self.forget) {
            self.forget().await;
        }
        for _ in 0..ROUNDS {
            let ledger = self.operator.ledger.state();
            let images = self.operator.images.digests();
            let guests = self.guests.borrow_and_update().clone();
            let answered = *self.answered.borrow();
            let answered_ms =
                answered.filter(|told| Some(told.session) == self.session).map(|told| told.sent_ms);
            let now_ms = boot_clock_ms();
            let decision = reconcile::decide(&View {
                now_ms,
                boot_id: &self.operator.boot_id,
                desired: &self.desired,
                domains: &self.domains,
                foreign: self.foreign,
                hypervisor_away: self.away.as_deref(),
                observed: self.observed,
                exits: &self.exits,
                ledger: &ledger,
                pools: &self.pools,
                files: &self.files,
                images: &images,
                guests: &guests,
                keeper: &self.keeper,
                answered_ms,
                efforts: &self.efforts,
                busy: &self.busy,
            });
            decision.well.iter().for_each(|subject| self.efforts.clear(subject));
            let (notes, work): (Vec<_>, Vec<_>) = decision.steps.into_iter().partition(Step::is_note);
            // Notes are quick, and what is said should be said with them taken.
            for step in &notes {
                let (context, stamp) = (self.context(step, now_ms), self.stamp(step));
                let result = self.operator.carry_out(step, &context).await;
                self.weigh(step, stamp, result);
            }
            if !notes.is_empty() {
                continue;
            }
            self.say(decision.report);
            let (due, booted_ms) = self.turns.take(work, &self.busy, &self.domains, &self.desired, now_ms);
            due.into_iter().for_each(|step| self.begin(step, now_ms));
            metrics::gauge!("tamdao_agent_steps_at_work").set(self.busy.len() as f64);
            if self.away.is_none() {
                metrics::gauge!("tamdao_agent_reconcile_last_success_seconds").set(wall_seconds());
            }
            return decision.wake_ms.into_iter().chain(booted_ms).min();
        }
        Some(boot_clock_ms())
    }

    /// The guests that other nodes may bring.
    fn arrivals(&self) -> Arrivals {
        let incoming = self.desired.vms.iter().filter(|(_, wanted)| wanted.intent == Intent::Incoming);
        let told = |(vm, wanted): (&Uuid, &WantedVm)| {
            let moving = wanted.moving.clone()?;
            let (pools, volumes) = (self.desired.pools.clone(), self.desired.volumes_of(wanted));
            Some((*vm, Arc::new(Arrival { wanted: wanted.clone(), moving, pools, volumes })))
        };
        incoming.filter_map(told).collect()
    }

    fn begin(&mut self, step: Step, now_ms: u64) {
        let (context, stamp) = (self.context(&step, now_ms), self.stamp(&step));
        tracing::debug!(step = step.kind(), subject = ?step.subject(), "step begins");
        self.busy.insert(step.subject(), step.clone());
        let (operator, doing) = (self.operator.clone(), step.clone());
        let task = self.steps.spawn(async move { operator.carry_out(&doing, &context).await });
        self.at_work.insert(task.id(), (step, stamp));
    }

    fn context(&self, step: &Step, now_ms: u64) -> Context {
        let mut context = Context {
            now_ms,
            pools: self.desired.pools.clone(),
            leases: self.keeper.leases.clone(),
            controllers: controllers(&self.operator.ledger.state(), &self.configured),
            ..Context::default()
        };
        match step.subject() {
            Subject::Vm(vm) | Subject::Move(vm) => {
                context.vm = self.desired.vms.get(&vm).cloned();
                context.domain = self.domains.get(&vm).cloned();
            }
            Subject::Volume(volume) => context.volume = self.desired.volumes.get(&volume).cloned(),
            Subject::Image(_) => {}
        }
        context
    }

    /// What a step was asked for; another wish is another effort.
    fn stamp(&self, step: &Step) -> (u64, u64) {
        match step.subject() {
            Subject::Vm(vm) | Subject::Move(vm) => {
                self.desired.vms.get(&vm).map_or((0, 0), |vm| (vm.incarnation, vm.generation))
            }
            Subject::Volume(volume) => self
                .desired
                .volumes
                .get(&volume)
                .map_or((0, 0), |volume| (u64::from(volume.size_mib), volume.intent as u64)),
            Subject::Image(_) => (0, 0),
        }
    }

    fn say(&self, report: wire::Report) {
        self.reports.send_if_modified(|last| {
            let news = last.as_deref() != Some(&report);
            if news {
                *last = Some(Arc::new(report));
            }
            news
        });
    }

    async fn look(&mut self) {
        match self.operator.hypervisor.observe().await {
            Ok(seen) => {
                if self.away.take().is_some() {
                    tracing::info!("hypervisor answers again");
                }
                self.observed = true;
                self.foreign = seen.foreign;
                self.domains = seen.ours.into_iter().map(|domain| (domain.vm, domain)).collect();
            }
            Err(error) => {
                if self.away.is_none() {
                    tracing::warn!(error = %error, "hypervisor does not answer");
                }
                self.away = Some(error.to_string());
            }
        }
        let answering = self.domains.values().filter(|domain| domain.guest_agent_connected);
        let answering: BTreeSet<Uuid> = answering.map(|domain| domain.vm).collect();
        self.to_ask.send_if_modified(|asked| {
            let news = *asked != answering;
            *asked = answering;
            news
        });
        self.look_for_ends().await;
        self.look_at_pools().await;
        self.look_at_keeper().await;
    }

    /// Asks the keeper, and has it hold a lease on each shared pool that is there.
    async fn look_at_keeper(&mut self) {
        let ready = |id: &Uuid| self.pools.get(id).is_some_and(|fact| fact.ready);
        let shared = || self.desired.pools.iter().filter(|(_, pool)| pool.shared);
        let needed = shared().next().is_some();
        let hold = shared().filter(|(id, _)| ready(id)).map(|(id, pool)| (*id, pool.path.clone()));
        // One that is absent now is held on to; what no whole assignment names is given back.
        let keep = self.desired.complete.then(|| shared().map(|(id, _)| *id).collect());
        let fact = self.operator.keeper.look(hold.collect(), keep).await.after(&self.keeper);
        if fact.away != self.keeper.away && needed {
            match &fact.away {
                Some(error) => {
                    tracing::warn!(error, "keeper does not answer, no guest on shared pools is started")
                }
                None => tracing::info!(version = fact.version, "keeper answers"),
            }
        }
        self.keeper = fact;
    }

    /// Asks how guests ended whose end no event told of.
    async fn look_for_ends(&mut self) {
        if self.away.is_some() {
            return;
        }
        let state = self.operator.ledger.state();
        for (vm, record) in &state.vms {
            let unknown = reconcile::believed_alive(record)
                && record.boot_id == self.operator.boot_id
                && !self.domains.contains_key(vm)
                && !self.exits.contains_key(vm);
            if unknown && let Ok(Some(exit)) = self.operator.hypervisor.last_exit(*vm).await {
                self.exits.insert(*vm, exit);
            }
        }
    }

    async fn look_at_pools(&mut self) {
        let state = self.operator.ledger.state();
        self.pools.retain(|id, _| self.desired.pools.contains_key(id));
        let mut waits = Vec::new();
        for (id, pool) in &self.desired.pools {
            let (patience, handle) = match self.looking.remove(id) {
                Some(handle) => (Duration::from_millis(20), handle),
                None => {
                    let (id, pool, known) = (*id, pool.clone(), state.pools.contains(id));
                    let volumes = self.desired.volumes.iter().filter(|(_, wanted)| wanted.pool == id);
                    let volumes: Vec<Uuid> = volumes.map(|(volume, _)| *volume).collect();
                    (POOL_PATIENCE, tokio::task::spawn_blocking(move || look_at(id, &pool, known, &volumes)))
                }
            };
            waits.push(async move {
                let mut handle = handle;
                let look = tokio::time::timeout(patience, &mut handle).await;
                (*id, look, handle)
            });
        }
        let looks = futures::future::join_all(waits).await;
        let mut fresh = Vec::new();
        for (id, look, handle) in looks {
            match look {
                Ok(Ok((fact, new, files))) => {
                    if new && fact.ready {
                        fresh.push(id);
                    }
                    self.pools.insert(id, fact);
                    self.files.extend(files);
                }
                Ok(Err(error)) => drop(self.pools.insert(id, not_ready(error.to_string()))),
                Err(_) => {
                    self.pools.insert(id, not_ready("its file system does not answer".to_owned()));
                    self.looking.insert(id, handle);
                }
            }
        }
        if !fresh.is_empty()
            && let Err(error) = self.operator.ledger.update(move |state| state.pools.extend(fresh)).await
        {
            tracing::error!(error = %error, "ledger cannot be written");
        }
    }

    /// Drops what nobody speaks of any more: deleted volumes at once, VMs after a month.
    async fn forget(&self) {
        let volumes: BTreeSet<Uuid> = self.desired.volumes.keys().copied().collect();
        let vms: BTreeSet<Uuid> = self.desired.vms.keys().chain(self.domains.keys()).copied().collect();
        let before_s = (wall_seconds() as u64).saturating_sub(REMEMBER_S);
        let change = move |state: &mut State| {
            state.volumes.retain(|id, record| !record.deleted || volumes.contains(id));
            state.vms.retain(|id, record| vms.contains(id) || record.untidy || record.touched_s >= before_s);
        };
        if let Err(error) = self.operator.ledger.update(change).await {
            tracing::error!(error = %error, "ledger cannot be written");
        }
    }
}

fn not_ready(message: String) -> PoolFact {
    PoolFact { message, ..PoolFact::default() }
}

fn look_at(id: Uuid, pool: &crate::desired::WantedPool, known: bool, volumes: &[Uuid]) -> PoolLook {
    let (fact, new) = volume::look_at_pool(id, pool, known);
    let files = volumes.iter().map(|volume| (*volume, volume::look(&pool.path, *volume))).collect();
    (fact, new, files)
}

fn wall_seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
