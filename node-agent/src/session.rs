//! The session: finds the leader, says what this node is and has, hears what it must run.
//!
//! Invariants: nothing of a leader with a lower epoch than one heard before is taken; an assignment's epoch is in
//! the ledger before the loop hears of it; after silence for the session's timeout the stream is given up, and
//! nothing is stopped for it. The first report of a session is complete, later ones hold what changed.
//! Deliberately absent: what to do about an assignment (`node`), and the bytes of tunnels (`tunnel`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tamdao_proto::agent::v1 as wire;
use tamdao_proto::agent::v1::agent_service_client::AgentServiceClient;
use tamdao_proto::agent::v1::session_request::Message as Said;
use tamdao_proto::agent::v1::session_response::Message as Heard;
use tamdao_proto::v1::{Inventory, MoveProgress};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::checkpoint::checkpoint;
use crate::dial::{Dial, DialError, chain};
use crate::hypervisor::Hypervisor;
use crate::ledger::{Ledger, LedgerError};
use crate::moves::Moves;
use crate::news::News;
use crate::node::{boot_clock_ms, controllers};
use crate::tunnel;

/// The highest data format that this agent understands.
const LEVEL: u32 = 1;
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence before a welcome has named the session's own timeout.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the highest revision heard of is written down when nothing else is.
const NOTE_REVISION: Duration = Duration::from_secs(10);
/// How much the clocks must drift before the inventory is sent again, ms.
const CLOCK_NEWS_MS: i64 = 100;
/// Redirects followed without a pause; more means that the controllers do not agree yet.
const REDIRECTS: u32 = 3;
/// The least time between two reports: what happens within it is told together.
const REPORT_PAUSE: Duration = Duration::from_millis(25);
/// The pause after a refusal, which a retry does not cure.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// What the loop hears.
#[derive(Clone, Debug)]
pub enum Event {
    /// With the number of its session.
    Assignment(u64, Box<wire::Assignment>),
    /// The leader wants to know how another node's lease stands.
    ReadLease(wire::ReadLease),
    /// The session is over.
    Down,
}

/// The leader has answered a heartbeat: when that was sent, the session stood on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The number of the session, counted by this agent.
    pub session: u64,
    /// When the heartbeat was sent, ms of CLOCK_BOOTTIME.
    pub sent_ms: u64,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{0}")]
    Status(String),
    #[error("the leader ended the stream")]
    Ended,
    #[error("nothing was heard for {0:?}")]
    Silence(Duration),
    #[error("its epoch {theirs} is lower than {ours}, which was heard before")]
    LowerEpoch { theirs: u64, ours: u64 },
    #[error("it refuses this node: {reason}: {message}")]
    Refused { reason: String, message: String },
    #[error("not the leader")]
    Redirected { leader: String, controllers: Vec<String> },
    #[error("it spoke out of turn")]
    OutOfTurn,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the agent ends")]
    Goodbye,
}

/// All that a session needs.
pub struct Session {
    pub dial: Dial,
    pub ledger: Arc<Ledger>,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub data_dir: std::path::PathBuf,
    pub boot_id: String,
    pub host_uuid: String,
    pub address: String,
    /// Where other nodes' agents reach this one; 0 takes no part in moves.
    pub moves_port: u16,
    pub progress: watch::Receiver<BTreeMap<Uuid, MoveProgress>>,
    pub moves: Arc<Moves>,
    pub configured: Vec<String>,
    pub reports: watch::Receiver<Option<Arc<wire::Report>>>,
    pub inventory: watch::Receiver<Option<Inventory>>,
    /// Leases of other nodes that were read for the leader.
    pub readings: mpsc::Receiver<wire::LeaseReading>,
    pub events: mpsc::Sender<Event>,
    pub answered: watch::Sender<Option<Answered>>,
    /// Sessions begun so far.
    pub number: u64,
    /// The session in which the agent is, for metrics and the curious.
    pub up: watch::Sender<bool>,
}

impl Session {
    /// Where other machines reach this node: as configured, else the address from which it speaks to a controller.
    async fn address_towards(&self, controller: &str) -> String {
        if !self.address.is_empty() {
            return self.address.clone();
        }
        // A datagram socket learns its own address by being connected; nothing is sent.
        let any = if controller.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let Ok(socket) = tokio::net::UdpSocket::bind(any).await else { return String::new() };
        let connected = socket.connect(controller).await.and_then(|()| socket.local_addr());
        connected.map(|address| address.ip().to_string()).unwrap_or_default()
    }
}

/// The pause before the next try: doubling from 0.2 to 5 s, with a random half, so that a cluster's agents do not
/// come all at once.
fn pause(failures: u32) -> Duration {
    let most_ms = (200u64 << failures.min(5)).min(5000);
    let random = (Uuid::new_v4().as_u128() >> 64) as u64;
    Duration::from_millis(most_ms / 2 + random % (most_ms / 2 + 1))
}

impl Session {
    /// Keeps a session until told to end; then says goodbye, with whether nothing runs, and returns.
    pub async fn run(mut self, goodbye: oneshot::Receiver<bool>) {
        // The first report must be there before anyone is told anything.
        if self.reports.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut goodbye = goodbye;
        let (mut failures, mut redirects) = (0u32, 0u32);
        let mut next: Option<String> = None;
        loop {
            let all = controllers(&self.ledger.state(), &self.configured);
            let index = usize::try_from(failures).unwrap_or(0) % all.len().max(1);
            let Some(controller) = next.take().or_else(|| all.get(index).cloned()) else {
                tracing::error!("no controller is known");
                return;
            };
            let mut was_up = false;
            let error = match self.once(&controller, &mut goodbye, &mut was_up).await {
                Err(SessionError::Goodbye) | Ok(()) => return,
                Err(error) => error,
            };
            self.up.send_replace(false);
            metrics::gauge!("tamdao_agent_session_up").set(0.0);
            if was_up {
                (failures, redirects) = (0, 0);
                if self.events.send(Event::Down).await.is_err() {
                    return;
                }
            }
            if let SessionError::Redirected { leader, controllers } = &error {
                self.learn(controllers).await;
                redirects += 1;
                if !leader.is_empty() && redirects <= REDIRECTS {
                    tracing::debug!(controller, leader, "redirected");
                    next = Some(leader.clone());
                    continue;
                }
                redirects = 0;
            }
            let wait = match &error {
                SessionError::Refused { .. } => {
                    tracing::error!(controller, error = %error, "session refused");
                    REFUSED_PAUSE
                }
                _ => {
                    // Once for an outage, for whoever reads it at night; the rest is noise.
                    if failures == 0 {
                        tracing::warn!(controller, error = %error, "no session with the leader, guests run on");
                    } else {
                        tracing::debug!(controller, error = %error, "no session yet");
                    }
                    pause(failures)
                }
            };
            failures += 1;
            tokio::select! {
                _ = &mut goodbye => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn learn(&self, controllers: &[String]) {
        let good = |one: &&String| crate::config::check_host_port(one).is_ok();
        let controllers: Vec<String> = controllers.iter().filter(good).cloned().collect();
        if controllers.is_empty() {
            return;
        }
        if let Err(error) = self.ledger.update(move |state| state.controllers = controllers).await {
            tracing::error!(error = %error, "ledger cannot be written");
        }
    }

    /// One stream from its beginning to its end.
    async fn once(
        &mut self,
        controller: &str,
        goodbye: &mut oneshot::Receiver<bool>,
        was_up: &mut bool,
    ) -> Result<(), SessionError> {
        let status = |status: tonic::Status| SessionError::Status(chain(&status));
        let channel = self.dial.channel(controller).await?;
        let (say, said) = mpsc::channel(64);
        let line = Line { say, patience: FIRST_TIMEOUT };
        let state = self.ledger.state();
        line.send(Said::Hello(wire::Hello {
            session_id: Uuid::new_v4().to_string(),
            boot_id: self.boot_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            level: LEVEL,
            highest_revision: self.ledger.heard(),
            highest_epoch: state.epoch,
            address: self.address_towards(controller).await,
            host_uuid: self.host_uuid.clone(),
            moves_port: self.moves_port.into(),
            cluster_id: state.cluster_id.clone(),
            carries_files: true,
        }))
        .await?;
        self.number += 1;
        let mut client = AgentServiceClient::new(channel.clone());
        let opening = client.session(ReceiverStream::new(said));
        let silence = || SessionError::Silence(FIRST_TIMEOUT);
        let mut stream = tokio::time::timeout(FIRST_TIMEOUT, opening)
            .await
            .map_err(|_| silence())?
            .map_err(status)?
            .into_inner();
        let first = tokio::time::timeout(FIRST_TIMEOUT, stream.message()).await.map_err(|_| silence())?;
        let welcome = match first.map_err(status)?.and_then(|first| first.message) {
            Some(Heard::Welcome(welcome)) => welcome,
            Some(Heard::Redirect(wire::Redirect { leader, controllers })) => {
                return Err(SessionError::Redirected { leader, controllers });
            }
            Some(Heard::Refusal(wire::Refusal { reason, message })) => {
                return Err(SessionError::Refused { reason, message });
            }
            Some(_) => return Err(SessionError::OutOfTurn),
            None => return Err(SessionError::Ended),
        };
        if !state.takes(welcome.epoch) {
            return Err(SessionError::LowerEpoch { theirs: welcome.epoch, ours: state.epoch });
        }
        *was_up = true;
        self.welcome(controller, &welcome).await?;
        let timeout = match welcome.session_timeout_ms {
            0 => FIRST_TIMEOUT,
            given => Duration::from_millis(u64::from(given)),
        };
        let line = Line { patience: timeout, ..line };
        self.talk(&channel, &line, &mut stream, timeout, goodbye).await
    }

    async fn welcome(&self, controller: &str, welcome: &wire::Welcome) -> Result<(), SessionError> {
        let cluster = welcome.cluster_id.clone();
        let before = self.ledger.state();
        if !before.cluster_id.is_empty() && before.cluster_id != cluster {
            tracing::warn!(cluster, "the cluster has a new id: it was restored");
        }
        self.ledger.hear(welcome.revision);
        self.ledger.update(move |state| state.cluster_id = cluster).await?;
        self.learn(&welcome.controllers).await;
        self.up.send_replace(true);
        metrics::gauge!("tamdao_agent_session_up").set(1.0);
        tracing::info!(
            controller,
            epoch = welcome.epoch,
            revision = welcome.revision,
            "session with the leader"
        );
        Ok(())
    }

    async fn talk(
        &mut self,
        channel: &Channel,
        line: &Line,
        stream: &mut tonic::Streaming<wire::SessionResponse>,
        timeout: Duration,
        goodbye: &mut oneshot::Receiver<bool>,
    ) -> Result<(), SessionError> {
        let mut news = News::default();
        let mut clock = Clock::default();
        let mut tunnels = tokio::task::JoinSet::new();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut heard_at, mut noted_at) = (Instant::now(), Instant::now());
        let mut report_at = Instant::now();
        self.inventory.mark_changed();
        self.reports.mark_changed();
        loop {
            tokio::select! {
                nothing_runs = &mut *goodbye => {
                    let nothing_runs = nothing_runs.unwrap_or(false);
                    line.send(Said::Goodbye(wire::Goodbye { nothing_runs })).await?;
                    // The leader ends the stream when it has heard; if not, there is nothing to wait for.
                    let _ = tokio::time::timeout(Duration::from_secs(1), async {
                        while let Ok(Some(_)) = stream.message().await {}
                    }).await;
                    return Err(SessionError::Goodbye);
                }
                _ = beat.tick() => {
                    if heard_at.elapsed() >= timeout {
                        return Err(SessionError::Silence(timeout));
                    }
                    line.send(Said::Heartbeat(clock.beat())).await?;
                    if noted_at.elapsed() >= NOTE_REVISION {
                        noted_at = Instant::now();
                        self.ledger.update(|_| ()).await?;
                    }
                }
                Ok(()) = next_report(&mut self.reports, report_at) => {
                    report_at = Instant::now() + REPORT_PAUSE;
                    let report = self.reports.borrow_and_update().clone();
                    if let Some(report) = report.and_then(|report| news.of(&report)) {
                        let running = wire::GuestState::Running;
                        let tells = report.vms.iter().any(|vm| vm.state() == running && vm.problem.is_none());
                        if tells {
                            checkpoint("report").await;
                        }
                        line.send(Said::Report(report)).await?;
                        if tells {
                            checkpoint("reported").await;
                        }
                    }
                }
                Ok(()) = self.progress.changed() => {
                    let all = self.progress.borrow_and_update().clone();
                    for (id, progress) in all {
                        let report = wire::MoveProgressReport { move_id: id.to_string(), progress: Some(progress) };
                        line.send(Said::MoveProgress(report)).await?;
                    }
                }
                Some(reading) = self.readings.recv() => line.send(Said::LeaseReading(reading)).await?,
                Ok(()) = self.inventory.changed() => {
                    self.tell_inventory(line, &mut clock).await?;
                }
                message = stream.message() => {
                    let message = message.map_err(|status| SessionError::Status(chain(&status)))?;
                    heard_at = Instant::now();
                    match message.ok_or(SessionError::Ended)?.message {
                        Some(Heard::Heartbeat(answer)) => {
                            self.ledger.hear(answer.revision);
                            if let Some(sent_ms) = clock.sent_ms(answer.sequence) {
                                self.answered.send_replace(Some(Answered { session: self.number, sent_ms }));
                            }
                            if clock.hear(&answer) {
                                self.tell_inventory(line, &mut clock).await?;
                            }
                        }
                        Some(Heard::Assignment(assignment)) => self.take(assignment).await?,
                        Some(Heard::ReadLease(asked)) => {
                            let told = self.events.send(Event::ReadLease(asked)).await;
                            told.map_err(|_| SessionError::Goodbye)?;
                        }
                        Some(Heard::OpenTunnel(open)) => {
                            let ends = tunnel::Ends {
                                hypervisor: self.hypervisor.clone(),
                                moves: self.moves.clone(),
                                data_dir: self.data_dir.clone(),
                            };
                            tunnels.spawn(tunnel::run(channel.clone(), ends, open));
                        }
                        Some(Heard::Redirect(wire::Redirect { leader, controllers })) => {
                            return Err(SessionError::Redirected { leader, controllers });
                        }
                        Some(Heard::Refusal(wire::Refusal { reason, message })) => {
                            return Err(SessionError::Refused { reason, message });
                        }
                        Some(Heard::Welcome(_)) => return Err(SessionError::OutOfTurn),
                        // A part of a later version's; what it does not understand an agent leaves alone.
                        None => {}
                    }
                }
                Some(_) = tunnels.join_next() => {}
            }
        }
    }

    /// Takes an assignment: first the ledger, then the loop. Its revision goes to disk before the first act that
    /// it brings about (`operate.rs`); one that asks for nothing new costs no write.
    async fn take(&self, assignment: wire::Assignment) -> Result<(), SessionError> {
        let state = self.ledger.state();
        let ours = state.epoch;
        if !state.takes(assignment.epoch) {
            return Err(SessionError::LowerEpoch { theirs: assignment.epoch, ours });
        }
        self.ledger.hear(assignment.revision);
        let epoch = assignment.epoch;
        if epoch > ours {
            self.ledger.update(move |state| state.epoch = epoch).await?;
        }
        self.events
            .send(Event::Assignment(self.number, Box::new(assignment)))
            .await
            .map_err(|_| SessionError::Goodbye)
    }

    async fn tell_inventory(&mut self, line: &Line, clock: &mut Clock) -> Result<(), SessionError> {
        let Some(mut inventory) = self.inventory.borrow_and_update().clone() else { return Ok(()) };
        inventory.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        inventory.clock_offset_ms = clock.offset_ms;
        clock.told_ms = clock.offset_ms;
        line.send(Said::Inventory(inventory)).await
    }
}

/// Waits for a report that has not been seen, and for its time. Dropped half-way, it loses nothing: `changed`
/// marks a value as seen only when it returns, and is the last to wait.
async fn next_report(
    reports: &mut watch::Receiver<Option<Arc<wire::Report>>>,
    at: Instant,
) -> Result<(), watch::error::RecvError> {
    tokio::time::sleep_until(at).await;
    reports.changed().await
}

/// The agent's side of the stream.
struct Line {
    say: mpsc::Sender<wire::SessionRequest>,
    patience: Duration,
}

impl Line {
    async fn send(&self, message: Said) -> Result<(), SessionError> {
        let request = wire::SessionRequest { message: Some(message) };
        match tokio::time::timeout(self.patience, self.say.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SessionError::Ended),
            Err(_) => Err(SessionError::Silence(self.patience)),
        }
    }
}

/// Heartbeats, and the host's clock less the leader's.
#[derive(Default)]
struct Clock {
    sequence: u64,
    sent: Option<(u64, SystemTime, Instant)>,
    sent_ms: u64,
    offset_ms: i64,
    told_ms: i64,
}

impl Clock {
    fn beat(&mut self) -> wire::Heartbeat {
        self.sequence += 1;
        let now = SystemTime::now();
        self.sent_ms = boot_clock_ms();
        self.sent = Some((self.sequence, now, Instant::now()));
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let sent_time = pbjson_types::Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        };
        wire::Heartbeat { sequence: self.sequence, sent_time: Some(sent_time) }
    }

    /// When the last heartbeat was sent, ms of CLOCK_BOOTTIME, if it is the one with this number.
    fn sent_ms(&self, sequence: u64) -> Option<u64> {
        (sequence == self.sequence && sequence > 0).then_some(self.sent_ms)
    }

    /// Takes an answer; says whether the clocks have drifted enough to be told again.
    fn hear(&mut self, answer: &wire::HeartbeatAnswer) -> bool {
        let Some((sequence, sent, at)) = self.sent else { return false };
        let Some(theirs) = &answer.sent_time else { return false };
        if sequence != answer.sequence {
            return false;
        }
        // The leader's clock was read half a round trip after ours, as far as anyone knows.
        let ours = (sent + at.elapsed() / 2).duration_since(UNIX_EPOCH).unwrap_or_default();
        let ours_ms = i64::try_from(ours.as_millis()).unwrap_or(i64::MAX);
        self.offset_ms = ours_ms - (theirs.seconds * 1000 + i64::from(theirs.nanos / 1_000_000));
        (self.offset_ms - self.told_ms).abs() >= CLOCK_NEWS_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_seconds_and_are_spread() {
        for failures in 0..40 {
            let most = Duration::from_millis((200u64 << failures.min(5)).min(5000));
            let wait = pause(failures);
            assert!(wait >= most / 2 && wait <= most, "{failures}: {wait:?}");
            assert!(wait >= Duration::from_millis(100) && wait <= Duration::from_secs(5));
        }
    }
}
