//! Sessions: agents and the leader hearing each other. All of it is the leader's memory; what matters for ever (a
//! session that opened, a node that fell silent) is committed.
//!
//! Invariants: what is sent to an agent rests on a state read after its hello was committed; a session ends with
//! the office; one node has one session. Deliberately absent: judging silence (the `liveness` loop does).

pub mod expand;
mod progress;
mod stream;
pub mod tunnel;
mod went_back;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tamdao_model::fence::Reading;
use tamdao_model::{MoveId, NodeId, PoolId, SessionId, TimeMs, VmId, VolumeId};
use tamdao_proto::agent::v1 as agent;
use tamdao_store::cache::Commit;
use tamdao_store::kv::Revision;
use tamdao_store::view::{Delta, Record, View};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::Status;
use uuid::Uuid;

use crate::refusal::Refusal;

pub use stream::{AgentApi, hold};

/// Messages that wait for an agent at most; one that does not read them loses its session.
const TO_AGENT: usize = 256;
/// Lease readings that wait for the fencer at most.
const READINGS: usize = 1_024;
/// A machine that speaks in another's name is told of so often.
const CLONE_TOLD: Duration = Duration::from_secs(600);

/// The sessions that are open here.
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    /// Nodes whose hellos are being committed, once for each.
    arriving: Mutex<Vec<NodeId>>,
    tunnels: tunnel::Waiting,
    progress: progress::Progress,
    timeout: Duration,
    /// For how long a node whose link flaps has to be heard before it takes VMs again.
    steady: Duration,
    /// When it was last told of each node, and why, that another machine speaks in its name.
    clones: Mutex<BTreeMap<(NodeId, &'static str), Instant>>,
    /// Looks at other nodes' leases that agents have sent and the fencer has not taken yet.
    readings: Mutex<Vec<LeaseTold>>,
    /// Held by whoever readies the records of a store that went back in time.
    readying: tokio::sync::Mutex<()>,
}

/// What a node said of another node's lease.
#[derive(Debug, Clone)]
pub struct LeaseTold {
    pub reader: NodeId,
    pub node: NodeId,
    pub pool: PoolId,
    /// Or why there is none.
    pub reading: Result<Reading, String>,
}

/// One open session.
pub struct Session {
    pub id: SessionId,
    pub node: NodeId,
    pub boot_id: String,
    /// The office that it was opened under.
    pub epoch: Revision,
    to_agent: mpsc::Sender<Result<agent::SessionResponse, Status>>,
    heard: Mutex<Heard>,
    dirty: Mutex<Dirty>,
    wake: Notify,
    closed: tokio_util::sync::CancellationToken,
}

/// When something last came from an agent.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    time: TimeMs,
}

/// What an agent has to be told anew.
#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    vms: BTreeSet<VmId>,
    volumes: BTreeSet<VolumeId>,
}

impl Sessions {
    /// `timeout` is after how much silence an agent counts as unreachable; `steady`, for how long a node whose link flaps
    /// has to be heard before it takes VMs again.
    pub fn new(timeout: Duration, steady: Duration) -> Self {
        Self {
            open: Mutex::default(),
            arriving: Mutex::default(),
            tunnels: tunnel::Waiting::default(),
            progress: progress::Progress::default(),
            timeout,
            steady,
            clones: Mutex::default(),
            readings: Mutex::default(),
            readying: tokio::sync::Mutex::default(),
        }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub fn steady_ms(&self) -> u64 {
        u64::try_from(self.steady.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether an event should tell that another machine speaks in this node's name: it tries again every few seconds.
    fn is_news_of_clone(&self, node: NodeId, reason: &'static str, now: Instant) -> bool {
        let mut clones = self.clones.lock().expect("no holder of the lock panics");
        let is_news =
            clones.get(&(node, reason)).is_none_or(|told| now.saturating_duration_since(*told) > CLONE_TOLD);
        if is_news {
            clones.insert((node, reason), now);
        }
        is_news
    }

    /// When this node was last heard, if it has a session here.
    pub fn last_heard(&self, node: NodeId) -> Option<TimeMs> {
        let session = self.get(node)?;
        let heard = session.heard.lock().expect("no holder of the lock panics");
        Some(heard.time)
    }

    /// How long this node has been silent; none if it has no session here. One that arrives is not silent: its record
    /// names the new session before that is open.
    pub fn silence(&self, node: NodeId, now: Instant) -> Option<Duration> {
        if self.arriving.lock().expect("no holder of the lock panics").contains(&node) {
            return Some(Duration::ZERO);
        }
        self.get(node).map(|session| session.silence(now))
    }

    /// This node's hello is being committed, for as long as the answer is held.
    fn arrive(&self, node: NodeId) -> Arriving<'_> {
        self.arriving.lock().expect("no holder of the lock panics").push(node);
        Arriving { sessions: self, node }
    }

    /// How far a move is, as its source said last.
    pub fn progress(&self, id: MoveId) -> Option<tamdao_proto::v1::MoveProgress> {
        self.progress.of(id)
    }

    /// How many agents are heard here.
    pub fn count(&self) -> usize {
        self.open.lock().expect("no holder of the lock panics").len()
    }

    /// Asks a node to read another node's lease record on a pool; the answer comes by [`Sessions::take_readings`]. False
    /// if it is not heard.
    pub fn ask_for_lease(&self, reader: NodeId, pool: PoolId, node: NodeId) -> bool {
        let asked = agent::ReadLease { pool_id: pool.to_string(), node_id: node.to_string() };
        let message = agent::session_response::Message::ReadLease(asked);
        self.get(reader).is_some_and(|session| session.send(message).is_ok())
    }

    /// The lease readings that have come since.
    pub fn take_readings(&self) -> Vec<LeaseTold> {
        std::mem::take(&mut *self.readings.lock().expect("no holder of the lock panics"))
    }

    fn keep_reading(&self, told: LeaseTold) {
        let mut readings = self.readings.lock().expect("no holder of the lock panics");
        // Nobody takes them while no node is fenced; the newest are worth the most.
        if readings.len() >= READINGS {
            readings.remove(0);
        }
        readings.push(told);
    }

    fn get(&self, node: NodeId) -> Option<Arc<Session>> {
        self.open.lock().expect("no holder of the lock panics").get(&node).cloned()
    }

    /// Registers a session; an older one of the same node ends.
    fn open(&self, session: Arc<Session>) {
        let old = self.open.lock().expect("no holder of the lock panics").insert(session.node, session);
        if let Some(old) = old {
            old.closed.cancel();
        }
    }

    /// Forgets a session, unless another one has taken its place.
    fn close(&self, session: &Session) {
        session.closed.cancel();
        let mut open = self.open.lock().expect("no holder of the lock panics");
        if open.get(&session.node).is_some_and(|present| present.id == session.id) {
            open.remove(&session.node);
        }
    }

    /// Ends a node's session, such as after it was silent for too long.
    pub fn end(&self, node: NodeId) {
        if let Some(session) = self.get(node) {
            self.close(&session);
        }
    }

    /// Ends all sessions: the office is lost.
    pub fn end_all(&self) {
        let open = std::mem::take(&mut *self.open.lock().expect("no holder of the lock panics"));
        for session in open.into_values() {
            session.closed.cancel();
        }
    }

    /// Notes whom these commits concern. The view holds all of them.
    pub fn note(&self, commits: &[Commit], view: &View) {
        let mut gone = Vec::new();
        {
            let open = self.open.lock().expect("no holder of the lock panics");
            if open.is_empty() {
                return;
            }
            for delta in commits.iter().flat_map(|commit| commit.deltas.iter()) {
                note(delta, &open, view);
                if let (Some(Record::Node(node)), None) = (&delta.before, &delta.after) {
                    gone.extend(open.get(&node.id()).cloned());
                }
            }
        }
        gone.iter().for_each(|session| self.dismiss(session));
        // What was told before records went back is void, and what was held back since is told anew: in new sessions, which
        // begin with whole reports.
        if commits.iter().flat_map(|commit| commit.deltas.iter()).any(changes_recovery) {
            self.end_all();
        }
    }

    /// Ends the session of a node that was removed, and says so.
    fn dismiss(&self, session: &Session) {
        let refusal = agent::Refusal {
            reason: "NodeRemoved".into(),
            message: "this node was removed from the cluster".into(),
        };
        // An agent that does not listen is cut off all the same.
        let _ = session.send(agent::session_response::Message::Refusal(refusal));
        self.close(session);
    }

    /// Asks a node's agent for a tunnel.
    ///
    /// # Errors
    /// When the node is not heard.
    pub fn open_tunnel(
        &self,
        node: NodeId,
        purpose: agent::open_tunnel::Purpose,
    ) -> Result<tunnel::Tunnel, Refusal> {
        let session = self.get(node).ok_or_else(|| {
            Refusal::unavailable("the VM's node is not heard now")
                .hint("tamdao node list shows which nodes are heard")
        })?;
        let (id, tunnel) = self.tunnels.expect(node);
        let message = agent::session_response::Message::OpenTunnel(agent::OpenTunnel {
            tunnel_id: id.to_string(),
            purpose: Some(purpose),
        });
        session.send(message).map_err(|_| Refusal::unavailable("the VM's node does not listen now"))?;
        Ok(tunnel)
    }
}

fn changes_recovery(delta: &Delta) -> bool {
    let recovers = |record: &Option<Record>| match record {
        Some(Record::Cluster(cluster)) => Some((cluster.recovery.is_some(), cluster.base)),
        _ => None,
    };
    delta.before.is_some() && recovers(&delta.before) != recovers(&delta.after)
}

/// Marks what one change makes new for which sessions.
fn note(delta: &Delta, open: &BTreeMap<NodeId, Arc<Session>>, view: &View) {
    let mark = |node: Option<NodeId>, mark: &dyn Fn(&mut Dirty)| {
        if let Some(session) = node.and_then(|node| open.get(&node)) {
            mark(&mut session.dirty.lock().expect("no holder of the lock panics"));
            session.wake.notify_one();
        }
    };
    match delta.after.as_ref().or(delta.before.as_ref()) {
        Some(Record::Vm(vm)) => {
            let id = vm.id();
            for node in expand::told_of(view, vm) {
                mark(Some(node), &|dirty| dirty.vms.extend([id]));
            }
        }
        Some(Record::Volume(volume)) => {
            let id = volume.id();
            mark(volume.status.node, &|dirty| dirty.volumes.extend([id]));
            // A shared volume names no node, but its VM does.
            if let Some(vm) = volume.status.vm.and_then(|vm| view.vms.get(vm)) {
                for node in expand::told_of(view, vm) {
                    mark(Some(node), &|dirty| {
                        dirty.volumes.insert(id);
                        dirty.vms.insert(vm.id());
                    });
                }
            }
        }
        Some(Record::Assignment(assignment)) => {
            let before = match &delta.before {
                Some(Record::Assignment(before)) => Some(before),
                _ => None,
            };
            let changed_vm =
                |id: &VmId| before.is_none_or(|before| before.vms.get(id) != assignment.vms.get(id));
            let changed_volume = |id: &VolumeId| {
                before.is_none_or(|before| before.volumes.get(id) != assignment.volumes.get(id))
            };
            mark(Some(assignment.node), &|dirty| {
                dirty.vms.extend(assignment.vms.keys().filter(|id| changed_vm(id)));
                dirty.volumes.extend(assignment.volumes.keys().filter(|id| changed_volume(id)));
            });
        }
        Some(Record::Move(one)) => {
            let id = one.spec.vm;
            mark(Some(one.spec.source), &|dirty| dirty.vms.extend([id]));
            mark(Some(one.spec.target), &|dirty| dirty.vms.extend([id]));
        }
        // What was held back from a node that was fenced is told when it is cleared.
        Some(Record::Node(node)) => {
            if let Some(Record::Node(before)) = &delta.before
                && expand::is_held_back(before.status.phase)
                && !expand::is_held_back(node.status.phase)
            {
                mark(Some(node.id()), &|dirty| dirty.all = true);
            }
        }
        Some(Record::Pool(_) | Record::Network(_) | Record::Image(_)) => {
            for session in open.values() {
                mark(Some(session.node), &|dirty| dirty.all = true);
            }
        }
        _ => {}
    }
}

/// A hello on its way to be a session.
struct Arriving<'a> {
    sessions: &'a Sessions,
    node: NodeId,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let mut arriving = self.sessions.arriving.lock().expect("no holder of the lock panics");
        if let Some(at) = arriving.iter().position(|node| *node == self.node) {
            arriving.swap_remove(at);
        }
    }
}

/// The agent does not read what it is sent.
#[derive(Debug, thiserror::Error)]
#[error("the agent does not read what it is sent")]
pub struct Deaf;

impl Session {
    fn send(&self, message: agent::session_response::Message) -> Result<(), Deaf> {
        let response = agent::SessionResponse { message: Some(message) };
        self.to_agent.try_send(Ok(response)).map_err(|_| Deaf)
    }

    fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard.lock().expect("no holder of the lock panics").at)
    }

    fn hear(&self, at: Instant, time: TimeMs) {
        *self.heard.lock().expect("no holder of the lock panics") = Heard { at, time };
    }

    fn take_dirty(&self) -> Dirty {
        std::mem::take(&mut *self.dirty.lock().expect("no holder of the lock panics"))
    }
}

/// The id in a text of the wire.
fn read_id<T: From<Uuid>>(field: &'static str, text: &str) -> Result<T, Refusal> {
    Uuid::parse_str(text).map(T::from).map_err(|_| Refusal::field(field, "is not a UUID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_whose_hello_is_being_committed_is_not_silent() {
        let (sessions, node, now) = (
            Sessions::new(Duration::from_secs(5), Duration::ZERO),
            NodeId(Uuid::from_u128(1)),
            Instant::now(),
        );
        let (first, second) = (sessions.arrive(node), sessions.arrive(node));
        drop(first);
        assert_eq!(sessions.silence(node, now), Some(Duration::ZERO));
        assert_eq!(sessions.silence(NodeId(Uuid::from_u128(2)), now), None);
        drop(second);
        assert_eq!(sessions.silence(node, now), None);
    }
}
