//! The lines between agents and controllers, and the agent's end of a session. A line is like TCP: in order, whole, and
//! silent while its link is cut; who gives it up loses what was on its way.

use std::collections::VecDeque;

use tamdao_model::convert::agent::show_inventory;
use tamdao_node_agent::news::News;
use tamdao_proto::agent::v1 as wire;
use tamdao_proto::agent::v1::session_request::Message as Said;
use tamdao_proto::agent::v1::session_response::Message as Heard;
use tokio::sync::mpsc::error::TryRecvError;

use crate::SESSION_TIMEOUT;
use crate::controller::Stream;
use crate::world::{Event, World, node_id};

/// How long a cut link waits before it tries again.
const RESEND_MS: u64 = 250;

/// One line. `None` in a queue is its end.
pub struct Connection {
    pub node: usize,
    pub life: u64,
    pub controller: usize,
    stream: Option<Stream>,
    up: Way<wire::SessionRequest>,
    down: Way<wire::SessionResponse>,
    /// The controller has no part in it any more.
    ended: bool,
}

/// One direction.
struct Way<T> {
    messages: VecDeque<(u64, Option<T>)>,
    last_ms: u64,
    resends: bool,
}

impl<T> Way<T> {
    fn new() -> Self {
        Self { messages: VecDeque::new(), last_ms: 0, resends: false }
    }

    /// Puts a message behind all others; answers when it comes.
    fn push(&mut self, at_ms: u64, message: Option<T>) -> u64 {
        self.last_ms = self.last_ms.max(at_ms);
        self.messages.push_back((self.last_ms, message));
        self.last_ms
    }

    fn pop(&mut self, now_ms: u64) -> Option<Option<T>> {
        let due = self.messages.front().is_some_and(|(at, _)| *at <= now_ms);
        due.then(|| self.messages.pop_front()).flatten().map(|(_, message)| message)
    }
}

impl World {
    pub fn connections_of(&self, controller: usize) -> Vec<u64> {
        let of = self.connections.iter().filter(|(_, line)| line.controller == controller);
        of.map(|(id, _)| *id).collect()
    }

    fn latency(&mut self) -> u64 {
        if self.troubled && self.chance.one_in(40) {
            self.chance.between(50, 1_500)
        } else {
            self.chance.between(1, 8)
        }
    }

    fn send_up(&mut self, id: u64, message: Option<Said>) {
        let at_ms = self.now_ms + self.latency();
        let Some(line) = self.connections.get_mut(&id) else { return };
        let request = message.map(|message| wire::SessionRequest { message: Some(message) });
        let at_ms = line.up.push(at_ms, request);
        self.plan(at_ms - self.now_ms, Event::Up { connection: id });
    }

    fn send_down(&mut self, id: u64, message: Option<wire::SessionResponse>) {
        let at_ms = self.now_ms + self.latency();
        let Some(line) = self.connections.get_mut(&id) else { return };
        let at_ms = line.down.push(at_ms, message);
        self.plan(at_ms - self.now_ms, Event::Down { connection: id });
    }

    /// The agent's end is closed by its kernel.
    pub fn close_line(&mut self, id: u64) {
        self.send_up(id, None);
    }

    /// The controller's end is gone, as when its process died.
    pub fn reset(&mut self, id: u64) {
        if let Some(line) = self.connections.get_mut(&id) {
            line.stream = None;
            line.ended = true;
            self.send_down(id, None);
        }
    }

    pub fn deliver_up(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let Some(line) = self.connections.get_mut(&id) else { return };
        line.up.resends = false;
        if self.cut_up.contains(&(line.node, line.controller)) {
            if !std::mem::replace(&mut line.up.resends, true) {
                self.plan(RESEND_MS, Event::Up { connection: id });
            }
            return;
        }
        let (node, controller) = (line.node, line.controller);
        let Some(process) = self.controllers[controller].process.as_mut() else {
            line.up.messages.clear();
            return self.reset(id);
        };
        while let Some(message) = line.up.pop(now_ms) {
            if line.stream.is_none() && !line.ended {
                line.stream = Some(process.accept(node_id(node)));
            }
            let Some(stream) = &line.stream else { continue };
            match message {
                // An end that does not listen any more is found by its own end of the line.
                Some(message) => drop(stream.to_controller.unbounded_send(Ok(message))),
                None => stream.to_controller.close_channel(),
            }
        }
    }

    /// Takes what a controller has said on its lines.
    pub fn pump(&mut self, controller: usize) {
        for id in self.connections_of(controller) {
            while let Some(stream) = self.connections.get_mut(&id).and_then(|line| line.stream.as_mut()) {
                match stream.from_controller.try_recv() {
                    Ok(Ok(message)) => self.send_down(id, Some(message)),
                    Ok(Err(_)) | Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => self.reset(id),
                }
            }
        }
    }

    pub fn deliver_down(&mut self, id: u64) {
        let now_ms = self.now_ms;
        let Some(line) = self.connections.get_mut(&id) else { return };
        line.down.resends = false;
        let (node, life) = (line.node, line.life);
        let agent = self.nodes[node].agent.as_ref();
        let Some(agent) = agent.filter(|agent| agent.life == life && agent.line == Some(id)) else {
            // Nobody is there to hear it; once the other end knows, the line is forgotten.
            if line.ended {
                self.connections.remove(&id);
            }
            return;
        };
        let wait = match agent.paused_until > now_ms {
            true => Some(agent.paused_until - now_ms),
            false => self.cut_down.contains(&(node, line.controller)).then_some(RESEND_MS),
        };
        if let Some(wait) = wait {
            if !std::mem::replace(&mut line.down.resends, true) {
                self.plan(wait, Event::Down { connection: id });
            }
            return;
        }
        loop {
            let Some(line) = self.connections.get_mut(&id) else { return };
            let Some(message) = line.down.pop(now_ms) else { return };
            match message.and_then(|message| message.message) {
                Some(message) => self.hear(node, id, message),
                None => self.hang_up(node, "the line has ended"),
            }
        }
    }

    // The agent's end.

    /// Calls a controller, one after the other.
    fn dial(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        let Some(agent) = host.agent.as_mut() else { return };
        let controller = agent.dials % self.controllers.len();
        agent.dials += 1;
        self.next_connection += 1;
        let id = self.next_connection;
        (agent.line, agent.up, agent.heard_at) = (Some(id), false, self.now_ms);
        agent.session += 1;
        agent.news = News::default();
        agent.answered_ms = None;
        let life = agent.life;
        let hello = wire::Hello {
            session_id: tamdao_seams::fresh_id().to_string(),
            boot_id: host.boot_id.clone(),
            agent_version: "sim".into(),
            level: 1,
            highest_revision: host.ledger.revision,
            highest_epoch: host.ledger.epoch,
            address: host.name.clone(),
            host_uuid: crate::bmc::host_uuid(node).to_string(),
            moves_port: 7003,
            cluster_id: String::new(),
            carries_files: true,
        };
        let (up, down) = (Way::new(), Way::new());
        let line = Connection { node, life, controller, stream: None, up, down, ended: false };
        self.connections.insert(id, line);
        self.send_up(id, Some(Said::Hello(hello)));
    }

    /// Gives the line up; nothing is stopped for it.
    pub fn hang_up(&mut self, node: usize, why: &str) {
        let again = self.chance.between(200, 900);
        let now_ms = self.now_ms;
        let Some(agent) = self.nodes[node].agent.as_mut() else { return };
        let was_up = std::mem::replace(&mut agent.up, false);
        agent.dial_at = now_ms + again;
        agent.desired.cut();
        agent.answered_ms = None;
        let Some(id) = agent.line.take() else { return };
        self.send_up(id, None);
        if was_up {
            self.tell(|| format!("n{node} has no session any more: {why}"));
            self.pass_soon(node);
        }
    }

    pub fn beat(&mut self, node: usize, life: u64) {
        let (now_ms, timeout_ms) = (self.now_ms, SESSION_TIMEOUT.as_millis() as u64);
        let Some(agent) = self.nodes[node].agent.as_mut().filter(|agent| agent.life == life) else { return };
        let pause = agent.paused_until.saturating_sub(now_ms);
        if pause > 0 {
            return self.plan(pause, Event::Beat { node, life });
        }
        self.plan(1_000, Event::Beat { node, life });
        let local_ms = self.nodes[node].clock_ms(now_ms);
        let Some(agent) = self.nodes[node].agent.as_mut() else { return };
        match agent.line {
            Some(_) if now_ms - agent.heard_at >= timeout_ms => self.hang_up(node, "silence"),
            Some(id) if agent.up => {
                agent.sequence += 1;
                agent.beat_ms = local_ms;
                let beat = wire::Heartbeat { sequence: agent.sequence, sent_time: None };
                self.send_up(id, Some(Said::Heartbeat(beat)));
            }
            Some(_) => {}
            None if agent.dial_at <= now_ms => self.dial(node),
            None => {}
        }
    }

    pub fn say(&mut self, node: usize, message: Said) {
        let line = self.nodes[node].agent.as_ref().filter(|agent| agent.up).and_then(|agent| agent.line);
        if let Some(id) = line {
            self.send_up(id, Some(message));
        }
    }

    fn hear(&mut self, node: usize, id: u64, message: Heard) {
        let now_ms = self.now_ms;
        let host = &mut self.nodes[node];
        let Some(agent) = host.agent.as_mut().filter(|agent| agent.line == Some(id)) else { return };
        agent.heard_at = now_ms;
        match message {
            Heard::Welcome(welcome) if !host.ledger.takes(welcome.epoch) => {
                self.hang_up(node, "a lower epoch")
            }
            Heard::Welcome(welcome) => {
                agent.up = true;
                host.ledger.revision = host.ledger.revision.max(welcome.revision);
                let inventory = show_inventory(&host.inventory());
                self.say(node, Said::Inventory(inventory));
                self.tell(|| format!("n{node} has a session, epoch {}", welcome.epoch));
                self.pass_soon(node);
            }
            Heard::Redirect(_) | Heard::Refusal(_) => self.hang_up(node, "not wanted there"),
            Heard::Heartbeat(answer) => {
                host.ledger.revision = host.ledger.revision.max(answer.revision);
                if answer.sequence == agent.sequence {
                    agent.answered_ms = Some(agent.beat_ms);
                }
            }
            Heard::Assignment(assignment) if !host.ledger.takes(assignment.epoch) => {
                self.hang_up(node, "a lower epoch");
            }
            Heard::Assignment(assignment) => self.take(node, &assignment),
            Heard::ReadLease(asked) => self.read_lease(node, &asked),
            Heard::OpenTunnel(_) => {}
        }
    }

    /// Takes an assignment, as `Session::take` does: first the ledger, then the loop.
    fn take(&mut self, node: usize, assignment: &wire::Assignment) {
        let host = &mut self.nodes[node];
        let Some(agent) = host.agent.as_mut() else { return };
        let breach = self.checks.epochs.taken(node, host.ledger.epoch, assignment.epoch);
        host.ledger.revision = host.ledger.revision.max(assignment.revision);
        host.ledger.epoch = host.ledger.epoch.max(assignment.epoch);
        let _faults = agent.desired.apply(assignment);
        host.ordered.extend(agent.desired.vms.iter().map(|(vm, wanted)| (*vm, wanted.incarnation)));
        host.remembered = agent.desired.clone();
        self.blame(breach);
        self.pass_soon(node);
    }
}
