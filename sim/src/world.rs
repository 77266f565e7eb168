//! The world: controllers, nodes, their storage and networks, one queue of what is to happen, and the story of what did.
//!
//! Invariant: the next event is the earliest, and of equals the one that was planned first; everything else follows from
//! the seed. After each event every checker looks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use tamdao_model::NodeId;
use tamdao_proto::agent::v1 as wire;
use tamdao_store::backend::memory::MemoryStore;
use tamdao_store::cache::Cache;
use tamdao_store::kv::{Kv, Revision, Txn};
use tamdao_store::view::View;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::bmc::{Answer, Asked, Bmcs};
use crate::chance::Chance;
use crate::check::{Breach, Checks};
use crate::controller::Controller;
use crate::faults::Fault;
use crate::host::{Access, Host, Renewed, Storage};
use crate::line::Connection;
use crate::swarm::Swarm;
use crate::tasks::Tasks;
use crate::work::Work;

/// What can happen. An event that speaks of a life that is over does nothing.
pub enum Event {
    /// A commit comes to the store, and to nobody's knowledge yet.
    Lands {
        from: usize,
        txn: Txn,
        reply: Option<Reply>,
        tries: u32,
    },
    /// Its answer comes back.
    Answered {
        from: usize,
        reply: Reply,
        outcome: tamdao_store::kv::Result<Revision>,
    },
    Barrier {
        from: usize,
        reply: Reply,
        tries: u32,
    },
    /// A controller applies what it has been sent.
    Follows {
        controller: usize,
    },
    /// Somebody looks whether there is a leader.
    Election,
    /// A leader learns that it is none any more.
    Deposed {
        controller: usize,
        epoch: Revision,
    },
    /// A controller's own timer, or the end of its pause.
    Wakes {
        controller: usize,
    },
    StartController {
        controller: usize,
    },
    /// The next message of a connection can be delivered, towards the controller or the agent.
    Up {
        connection: u64,
    },
    Down {
        connection: u64,
    },
    /// The agent's second.
    Beat {
        node: usize,
        life: u64,
    },
    Pass {
        node: usize,
        life: u64,
    },
    Act {
        node: usize,
        life: u64,
        doing: u64,
    },
    StartAgent {
        node: usize,
        boot: u64,
    },
    Keeper {
        node: usize,
        boot: u64,
    },
    Watchdog {
        node: usize,
        boot: u64,
    },
    Boot {
        node: usize,
    },
    LeaseLands {
        node: usize,
        record: crate::host::LeaseRecord,
    },
    LeaseWritten {
        node: usize,
        boot: u64,
        renewed: Renewed,
    },
    Killed {
        node: usize,
        boot: u64,
        vm: Uuid,
    },
    /// A guest has heard ACPI and is off.
    Off {
        node: usize,
        boot: u64,
        vm: Uuid,
        incarnation: u64,
    },
    Migrates {
        node: usize,
        boot: u64,
        vm: Uuid,
    },
    LeaseRead {
        node: usize,
        life: u64,
        reading: Box<wire::LeaseReading>,
    },
    Fault,
    Heals(Fault),
    /// The next stage of a path to the storage that is dying.
    Decays {
        node: usize,
        access: Access,
    },
    Work,
    /// A question has come to a BMC, an answer back from it, and the power has gone.
    BmcIsAsked(Asked),
    BmcAnswers(Answer),
    BmcSwitches {
        node: usize,
        boot: u64,
    },
}

pub type Reply = oneshot::Sender<tamdao_store::kv::Result<Revision>>;

struct Planned {
    at_ms: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.order).cmp(&(other.at_ms, other.order))
    }
}

/// What is sworn by: the store's own state, folded as it is committed.
pub struct Truth {
    pub store: MemoryStore,
    pub cache: Cache,
    tasks: Tasks,
    pub seen: Revision,
}

/// See the module.
pub struct World {
    pub now_ms: u64,
    pub chance: Chance,
    pub swarm: Swarm,
    queue: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    pub events: u64,
    pub controllers: Vec<Controller>,
    pub nodes: Vec<Host>,
    pub storage: Storage,
    pub bmcs: Bmcs,
    pub truth: Truth,
    pub connections: BTreeMap<u64, Connection>,
    pub next_connection: u64,
    /// Cut links: from a node to a controller, back, and between nodes.
    pub cut_up: BTreeSet<(usize, usize)>,
    pub cut_down: BTreeSet<(usize, usize)>,
    pub cut_nodes: BTreeSet<usize>,
    /// Faults still happen.
    pub troubled: bool,
    pub leaderless_since: Option<u64>,
    /// Who took office last, and when.
    pub office: Option<(usize, Revision, u64)>,
    pub work: Work,
    pub checks: Checks,
    /// What happened, as a person reads it; none unless it is asked for.
    pub story: Option<Vec<String>>,
    pub breach: Option<Breach>,
    wakes: Vec<Option<u64>>,
}

pub fn node_id(at: usize) -> NodeId {
    NodeId(Uuid::from_u128(0x100 + at as u128))
}

impl Truth {
    fn new() -> Self {
        let store = MemoryStore::new("truth");
        let kv: Arc<dyn Kv> = Arc::new(store.clone());
        let (cache, feed) = Cache::new(kv);
        let mut tasks = Tasks::default();
        tasks.spawn(async move { drop(feed.run().await) });
        Self { store, cache, tasks, seen: Revision::ZERO }
    }

    pub fn view(&self) -> Arc<View> {
        self.cache.view()
    }

    /// Applies a transaction now.
    pub fn apply(&mut self, txn: Txn) -> tamdao_store::kv::Result<Revision> {
        let done = futures::FutureExt::now_or_never(self.store.commit(txn));
        self.tasks.run();
        done.expect("the store in memory answers at once")
    }
}

impl World {
    pub fn new(seed: u64, keep_story: bool) -> Self {
        let mut chance = Chance::new(seed);
        let controllers =
            (0..3).map(|_| Controller::new(chance.between(995_000, 1_005_000), chance.below(400))).collect();
        let swarm = Swarm::draw(&mut chance);
        Self {
            now_ms: 0,
            chance,
            swarm,
            queue: BinaryHeap::new(),
            planned: 0,
            events: 0,
            controllers,
            nodes: Vec::new(),
            storage: Storage::default(),
            bmcs: Bmcs::draw(seed, 0),
            truth: Truth::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            cut_up: BTreeSet::new(),
            cut_down: BTreeSet::new(),
            cut_nodes: BTreeSet::new(),
            troubled: true,
            leaderless_since: None,
            office: None,
            work: Work::default(),
            checks: Checks::default(),
            story: keep_story.then(Vec::new),
            breach: None,
            wakes: vec![None; 3],
        }
    }

    /// Plans an event so many ms from now.
    pub fn plan(&mut self, in_ms: u64, event: Event) {
        self.planned += 1;
        let planned = Planned { at_ms: self.now_ms + in_ms, order: self.planned, event };
        self.queue.push(Reverse(planned));
    }

    /// Writes a line of the story, if one is kept.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        let now_ms = self.now_ms;
        if let Some(story) = &mut self.story {
            story.push(format!("{:>4}.{:03} s  {}", now_ms / 1_000, now_ms % 1_000, line()));
        }
    }

    pub fn blame(&mut self, breach: Option<Breach>) {
        if let Some(breach) = breach
            && self.breach.is_none()
        {
            self.tell(|| format!("BREACH {breach}"));
            self.breach = Some(breach);
        }
    }

    /// Lets all happen that is due before this moment, or until a rule is broken.
    pub fn run_until(&mut self, end_ms: u64) {
        while self.breach.is_none() {
            let due = self.queue.peek().map(|Reverse(planned)| planned.at_ms).filter(|at| *at < end_ms);
            let Some(at_ms) = due else { break };
            let Some(Reverse(planned)) = self.queue.pop() else { break };
            self.now_ms = at_ms;
            self.events += 1;
            self.happen(planned.event);
            self.settle();
            self.check();
        }
        self.now_ms = self.now_ms.max(end_ms);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Lands { from, txn, reply, tries } => self.land(from, txn, reply, tries),
            Event::Answered { from, reply, outcome } => self.answer(from, reply, outcome),
            Event::Barrier { from, reply, tries } => self.barrier(from, reply, tries),
            Event::Follows { controller } => self.follow(controller),
            Event::Election => self.look_for_leader(),
            Event::Deposed { controller, epoch } => self.depose(controller, epoch),
            Event::Wakes { controller } => self.wakes[controller] = None,
            Event::StartController { controller } => self.start_controller(controller),
            Event::Up { connection } => self.deliver_up(connection),
            Event::Down { connection } => self.deliver_down(connection),
            Event::Beat { node, life } => self.beat(node, life),
            Event::Pass { node, life } => self.pass(node, life),
            Event::Act { node, life, doing } => self.act(node, life, doing),
            Event::StartAgent { node, boot } => self.start_agent(node, boot),
            Event::Keeper { node, boot } => self.keeper_ticks(node, boot),
            Event::Watchdog { node, boot } => self.watchdog_looks(node, boot),
            Event::Boot { node } => self.boot(node),
            Event::LeaseLands { node, record } => self.lease_lands(node, record),
            Event::LeaseWritten { node, boot, renewed } => self.lease_written(node, boot, &renewed),
            Event::Killed { node, boot, vm } => self.killed(node, boot, vm),
            Event::Off { node, boot, vm, incarnation } => self.goes_off(node, boot, vm, incarnation),
            Event::Migrates { node, boot, vm } => self.migrate_on(node, boot, vm),
            Event::LeaseRead { node, life, reading } => self.lease_was_read(node, life, *reading),
            Event::Fault => self.strike(),
            Event::Heals(fault) => self.heal(fault),
            Event::Decays { node, access } => self.decays(node, access),
            Event::Work => self.ask(),
            Event::BmcIsAsked(asked) => self.bmc_is_asked(asked),
            Event::BmcAnswers(answer) => answer.give(),
            Event::BmcSwitches { node, boot } => self.bmc_switches(node, boot),
        }
    }

    /// Runs the controllers until they wait, and takes what they have sent.
    fn settle(&mut self) {
        for at in 0..self.controllers.len() {
            self.run_controller(at);
            let due = self.controllers[at].due();
            let due = due.filter(|due| self.wakes[at].is_none_or(|planned| *due < planned));
            if let Some(due) = due {
                self.wakes[at] = Some(due);
                self.plan(due.saturating_sub(self.now_ms), Event::Wakes { controller: at });
            }
        }
    }
}

impl Truth {
    /// Whether a disk of the VM is this volume.
    pub fn uses(&self, vm: Uuid, volume: Uuid) -> bool {
        let view = self.view();
        view.vms.get(tamdao_model::VmId(vm)).is_some_and(|vm| vm.volumes().any(|id| id.0 == volume))
    }
}
