//! What stands for Raft: commits that come late, twice or without an answer, followers that lag, leaders that change and
//! do not know it yet. Kinder to nobody than Raft is: a commit may come to the store from a controller that no longer
//! leads, so that only the guards are left to refuse it.

use tamdao_store::kv::{Key, Kv, Revision, StoreError, Txn};

use crate::controller::Process;
use crate::store::Letter;
use crate::world::{Event, Reply, World};

/// How often a letter is tried that does not come through, and how long apart.
const TRIES: u32 = 10;
const AGAIN_MS: u64 = 300;

impl World {
    /// Whether a controller reaches another one that is alive, itself being two of three with it.
    fn has_quorum(&self, at: usize) -> bool {
        let others = self.controllers.iter().enumerate().filter(|(other, controller)| {
            *other != at && controller.connected && controller.runs(self.now_ms)
        });
        self.controllers[at].connected && others.count() > 0
    }

    pub fn start_controller(&mut self, at: usize) {
        if self.controllers[at].process.is_some() {
            return;
        }
        let controller = &mut self.controllers[at];
        controller.clock.advance(controller.local_ms(self.now_ms));
        controller.process = Some(Process::start(at, &self.truth.store, controller.clock.clone()));
        controller.follows = false;
        self.tell(|| format!("c{} starts", at + 1));
    }

    pub fn crash_controller(&mut self, at: usize) {
        self.tell(|| format!("c{} crashes", at + 1));
        self.controllers[at].process = None;
        for id in self.connections_of(at) {
            self.reset(id);
        }
    }

    /// Runs a controller until it waits, and posts its letters.
    pub fn run_controller(&mut self, at: usize) {
        let now_ms = self.now_ms;
        let controller = &mut self.controllers[at];
        if !controller.runs(now_ms) {
            return;
        }
        controller.clock.advance(controller.local_ms(now_ms));
        let Some(process) = &mut controller.process else { return };
        if !process.tasks.run() {
            return;
        }
        let asked = process.bmc.take();
        let letters = std::mem::take(&mut *process.outbox.lock().expect("no holder of the lock panics"));
        for letter in letters {
            match letter {
                Letter::Commit { txn, reply } => self.post_commit(at, txn, reply),
                Letter::Barrier { reply } => {
                    let delay = self.chance.between(1, 10);
                    self.plan(delay, Event::Barrier { from: at, reply, tries: 0 });
                }
            }
        }
        for asked in asked {
            self.ask_bmc(asked);
        }
        self.pump(at);
    }

    fn post_commit(&mut self, from: usize, txn: Txn, reply: Reply) {
        let late = self.troubled && self.chance.one_in(60);
        let delay = if late { self.chance.between(500, 4_000) } else { self.chance.between(1, 15) };
        if self.troubled && self.chance.one_in(120) {
            // The request is lost, and nobody knows it.
            let after = self.chance.between(500, 2_000);
            return self.plan(after, Event::Answered { from, reply, outcome: Err(StoreError::Unknown) });
        }
        if late && self.chance.one_in(2) {
            // It is given up before it lands.
            self.plan(delay, Event::Lands { from, txn, reply: None, tries: 0 });
            return self.plan(delay / 2, Event::Answered { from, reply, outcome: Err(StoreError::Unknown) });
        }
        self.plan(delay, Event::Lands { from, txn, reply: Some(reply), tries: 0 });
    }

    pub fn land(&mut self, from: usize, txn: Txn, reply: Option<Reply>, tries: u32) {
        if !self.has_quorum(from) {
            if tries < TRIES {
                return self.plan(AGAIN_MS, Event::Lands { from, txn, reply, tries: tries + 1 });
            }
            if let Some(reply) = reply {
                self.plan(0, Event::Answered { from, reply, outcome: Err(StoreError::Unknown) });
            }
            return;
        }
        let outcome = self.truth.apply(txn);
        if outcome.is_ok() {
            let breach = self.checks.deposed.wrote(from, self.office);
            self.blame(breach);
            for other in (0..self.controllers.len()).filter(|other| *other != from) {
                self.let_follow(other);
            }
        }
        let Some(reply) = reply else { return };
        let (delay, outcome) = match self.troubled && self.chance.one_in(50) {
            true => (self.chance.between(300, 2_000), Err(StoreError::Unknown)),
            false => (self.chance.between(1, 10), outcome),
        };
        self.plan(delay, Event::Answered { from, reply, outcome });
    }

    fn let_follow(&mut self, controller: usize) {
        if !std::mem::replace(&mut self.controllers[controller].follows, true) {
            let lags = self.troubled && self.chance.one_in(20);
            let delay = if lags { self.chance.between(200, 3_000) } else { self.chance.between(1, 60) };
            self.plan(delay, Event::Follows { controller });
        }
    }

    pub fn follow(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        if !controller.connected {
            return self.plan(AGAIN_MS, Event::Follows { controller: at });
        }
        controller.follows = false;
        if let Some(process) = &controller.process {
            process.local.advance(self.truth.store.status().revision);
        }
    }

    pub fn answer(&mut self, from: usize, reply: Reply, outcome: tamdao_store::kv::Result<Revision>) {
        if let (Ok(revision), Some(process)) = (&outcome, &self.controllers[from].process) {
            process.local.advance(*revision);
        }
        // Whoever asked may be gone.
        let _ = reply.send(outcome);
    }

    pub fn barrier(&mut self, from: usize, reply: Reply, tries: u32) {
        let outcome = match self.has_quorum(from) {
            true => Ok(self.truth.store.status().revision),
            false if tries < TRIES => {
                return self.plan(AGAIN_MS, Event::Barrier { from, reply, tries: tries + 1 });
            }
            false => Err(StoreError::unavailable("no quorum")),
        };
        let delay = self.chance.between(1, 10);
        self.plan(delay, Event::Answered { from, reply, outcome });
    }

    /// Whether the leader can be what it believes to be.
    pub fn leader(&self) -> Option<usize> {
        let (at, epoch, _) = self.office?;
        let process = self.controllers[at].process.as_ref()?;
        let holds = process.epoch == Some(epoch) && process.lost.as_ref().is_some_and(|lost| !*lost.borrow());
        (holds && self.controllers[at].runs(self.now_ms) && self.has_quorum(at)).then_some(at)
    }

    pub fn look_for_leader(&mut self) {
        self.plan(500, Event::Election);
        if self.leader().is_some() {
            self.leaderless_since = None;
            return;
        }
        let since = *self.leaderless_since.get_or_insert(self.now_ms);
        let patience = self.chance.between(1_000, 2_500);
        if self.now_ms - since >= patience {
            let able: Vec<usize> = (0..self.controllers.len())
                .filter(|at| self.controllers[*at].runs(self.now_ms) && self.has_quorum(*at))
                .collect();
            if let Some(at) = self.chance.pick(&able) {
                self.elect(at);
            }
        }
    }

    /// Makes a controller the leader. The last one hears of it later.
    pub fn elect(&mut self, at: usize) {
        if let Some((old, epoch, _)) = self.office {
            let hears_in = self.chance.between(0, 1_500);
            let pause = self.controllers[old].paused_until.saturating_sub(self.now_ms);
            self.plan(pause + hears_in, Event::Deposed { controller: old, epoch });
        }
        let name = format!("c{}", at + 1);
        let txn = Txn::new().put(Key::leader(), name.clone().into_bytes());
        let Ok(epoch) = self.truth.apply(txn) else { return };
        self.tell(|| format!("{name} takes office, epoch {epoch}"));
        self.office = Some((at, epoch, self.now_ms));
        self.leaderless_since = None;
        if let Some(process) = &mut self.controllers[at].process {
            process.take_office(epoch);
        }
        for controller in 0..self.controllers.len() {
            self.let_follow(controller);
        }
    }

    pub fn depose(&mut self, at: usize, epoch: Revision) {
        let process = self.controllers[at].process.as_ref().filter(|process| process.epoch == Some(epoch));
        let Some(lost) = process.and_then(|process| process.lost.as_ref()) else { return };
        if !lost.send_replace(true) {
            self.tell(|| format!("c{} learns that it leads no more", at + 1));
        }
    }
}
