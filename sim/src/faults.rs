//! What goes wrong, at random, and how it comes right again.

use tamdao_node_agent::hypervisor::Exit;
use uuid::Uuid;

use crate::host::Access;
use crate::short;
use crate::world::{Event, World};

/// What ends by itself after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A node's links to controllers: upwards, downwards or both.
    Links {
        node: usize,
        up: bool,
        down: bool,
    },
    /// A node's link to other nodes.
    Neighbours {
        node: usize,
    },
    Storage {
        node: usize,
    },
    /// Cut from everything, storage too.
    Island {
        node: usize,
    },
    Controller {
        controller: usize,
    },
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    Links,
    Island,
    Decay,
    Storage,
    Power,
    Dies,
    AgentCrashes,
    AgentStops,
    KeeperStops,
    KeeperCrashes,
    Frozen,
    ControllerCrashes,
    ControllerStops,
    ControllerAlone,
    LeaderChanges,
    RackPower,
    RackSwitch,
    Backbone,
    FileLost,
    Neighbours,
    GuestDies,
    Libvirt,
}

/// How often each happens where a seed draws nothing else.
pub const STRIKES: [(Strike, u64); 22] = [
    (Strike::Links, 4),
    (Strike::Island, 5),
    (Strike::Decay, 4),
    (Strike::Storage, 3),
    (Strike::Power, 2),
    (Strike::Dies, 1),
    (Strike::AgentCrashes, 2),
    (Strike::AgentStops, 2),
    (Strike::KeeperStops, 1),
    (Strike::KeeperCrashes, 1),
    (Strike::Frozen, 1),
    (Strike::ControllerCrashes, 2),
    (Strike::ControllerStops, 2),
    (Strike::ControllerAlone, 1),
    (Strike::LeaderChanges, 1),
    (Strike::RackPower, 1),
    (Strike::RackSwitch, 1),
    (Strike::Backbone, 1),
    (Strike::FileLost, 1),
    (Strike::Neighbours, 1),
    (Strike::GuestDies, 1),
    (Strike::Libvirt, 1),
];

impl World {
    /// One more fault, and the next one planned.
    pub fn strike(&mut self) {
        if !self.troubled {
            return;
        }
        let delay = self.chance.between(800, 7_000);
        self.plan(delay, Event::Fault);
        let node = match self.swarm.weak.filter(|_| self.chance.one_in(2)) {
            Some(weak) => weak % self.nodes.len(),
            None => self.chance.index(self.nodes.len()),
        };
        let controller = self.chance.index(3);
        let Some(strike) = self.chance.weigh(&self.swarm.strikes) else { return };
        match strike {
            Strike::Links => {
                let (up, down) = [(true, true), (true, false), (false, true)][self.chance.index(3)];
                self.cut_links(node, up, down);
            }
            Strike::Island => self.island(node),
            Strike::Decay => self.decay(node),
            Strike::Storage => self.storage_fails(node),
            Strike::Power => self.lose_power(node),
            Strike::Dies => self.die(node),
            Strike::AgentCrashes => self.crash_agent(node),
            Strike::AgentStops => self.stop_agent(node),
            Strike::KeeperStops => self.stop_keeper(node),
            Strike::KeeperCrashes => self.crash_keeper(node),
            Strike::Frozen => {
                // Silent and frozen at once: what a watchdog is for.
                self.cut_links(node, true, true);
                self.stop_keeper_for(node, 40_000);
            }
            Strike::ControllerCrashes => self.fail_controller(controller),
            Strike::ControllerStops => self.stop_controller(controller),
            Strike::ControllerAlone => self.isolate(controller),
            Strike::LeaderChanges => self.change_leader(controller),
            Strike::RackPower => self.lose_rack(node),
            Strike::RackSwitch => self.cut_rack(node),
            Strike::Backbone => (0..self.nodes.len()).for_each(|at| self.cut_links(at, true, true)),
            Strike::FileLost => self.lose_file(),
            Strike::Neighbours => {
                self.cut_nodes.insert(node);
                self.tell(|| format!("n{node} does not reach other nodes"));
                self.heal_in(2_000, 20_000, Fault::Neighbours { node });
            }
            Strike::GuestDies => self.guest_dies(node),
            Strike::Libvirt => self.libvirt_dies(node),
        }
    }

    fn heal_in(&mut self, low_ms: u64, high_ms: u64, fault: Fault) {
        let delay = self.chance.between(low_ms, high_ms);
        self.plan(delay, Event::Heals(fault));
    }

    fn cut_links(&mut self, node: usize, up: bool, down: bool) {
        for controller in 0..3 {
            if up {
                self.cut_up.insert((node, controller));
            }
            if down {
                self.cut_down.insert((node, controller));
            }
        }
        self.tell(|| format!("n{node}: its link to the controllers is cut, up {up}, down {down}"));
        self.heal_in(2_000, 35_000, Fault::Links { node, up, down });
    }

    fn island(&mut self, node: usize) {
        for controller in 0..3 {
            self.cut_up.insert((node, controller));
            self.cut_down.insert((node, controller));
        }
        self.cut_nodes.insert(node);
        self.nodes[node].access = if self.chance.one_in(2) { Access::Hangs } else { Access::Fails };
        self.tell(|| format!("n{node} is cut from all, storage too"));
        self.heal_in(4_000, 45_000, Fault::Island { node });
    }

    /// A host whose paths go one after the other, as those of a switch or an adapter that is dying: nobody is heard, then
    /// the storage's answers come late, then they do not come at all.
    fn decay(&mut self, node: usize) {
        for controller in 0..3 {
            self.cut_up.insert((node, controller));
            self.cut_down.insert((node, controller));
        }
        self.tell(|| format!("n{node} is cut from the controllers, and its storage is about to go"));
        let (deaf, hangs) = (self.chance.between(2_000, 7_000), self.chance.between(2_000, 7_000));
        self.plan(deaf, Event::Decays { node, access: Access::Deaf });
        self.plan(deaf + hangs, Event::Decays { node, access: Access::Hangs });
        let (storage, links) = (self.chance.between(15_000, 35_000), self.chance.between(0, 10_000));
        self.plan(storage, Event::Heals(Fault::Storage { node }));
        self.plan(storage + links, Event::Heals(Fault::Links { node, up: true, down: true }));
    }

    /// The next stage of a decay that has not healed meanwhile.
    pub fn decays(&mut self, node: usize, access: Access) {
        if self.troubled && self.cut_up.contains(&(node, 0)) {
            self.nodes[node].access = access;
            self.tell(|| format!("n{node}: its storage: {access:?}"));
        }
    }

    fn storage_fails(&mut self, node: usize) {
        let access = [Access::Slow, Access::Deaf, Access::Hangs, Access::Fails][self.chance.index(4)];
        self.nodes[node].access = access;
        self.tell(|| format!("n{node}: its storage: {access:?}"));
        self.heal_in(1_000, 20_000, Fault::Storage { node });
    }

    fn lose_power(&mut self, node: usize) {
        self.power_cut(node, "somebody pulls the cable");
        let back = self.chance.between(4_000, 40_000);
        self.reboot_in(node, back);
    }

    /// Hardware of 2013 does that: one node of a history at most is never seen again.
    fn die(&mut self, node: usize) {
        if self.nodes.iter().all(|host| !host.dead) && self.chance.one_in(3) {
            self.nodes[node].dead = true;
            self.power_cut(node, "for ever");
        }
    }

    fn lose_rack(&mut self, node: usize) {
        let rack = self.nodes[node].rack;
        self.tell(|| format!("rack {rack} loses its power"));
        for at in 0..self.nodes.len() {
            if self.nodes[at].rack == rack {
                self.power_cut(at, "its rack is off");
                let back = self.chance.between(20_000, 40_000);
                self.reboot_in(at, back);
            }
        }
    }

    fn cut_rack(&mut self, node: usize) {
        let rack = self.nodes[node].rack;
        self.tell(|| format!("the switch of rack {rack} fails"));
        for at in (0..self.nodes.len()).filter(|at| self.nodes[*at].rack == rack).collect::<Vec<_>>() {
            self.island(at);
        }
    }

    fn stop_agent(&mut self, node: usize) {
        let until = self.now_ms + self.chance.between(500, 25_000);
        if let Some(agent) = self.nodes[node].agent.as_mut() {
            agent.paused_until = until;
            self.tell(|| format!("n{node}: the agent stands still until {} s", until / 1_000));
        }
    }

    fn stop_keeper(&mut self, node: usize) {
        let for_ms = self.chance.between(200, 12_000);
        self.stop_keeper_for(node, for_ms);
    }

    fn stop_keeper_for(&mut self, node: usize, for_ms: u64) {
        let until = self.now_ms + for_ms;
        self.nodes[node].keeper_paused_until = until;
        self.tell(|| format!("n{node}: the keeper stands still until {} s", until / 1_000));
    }

    fn fail_controller(&mut self, controller: usize) {
        self.crash_controller(controller);
        let back = self.chance.between(500, 10_000);
        self.plan(back, Event::StartController { controller });
    }

    fn stop_controller(&mut self, controller: usize) {
        let until = self.now_ms + self.chance.between(500, 15_000);
        self.controllers[controller].paused_until = until;
        self.tell(|| format!("c{} stands still until {} s", controller + 1, until / 1_000));
        self.plan(until - self.now_ms, Event::Wakes { controller });
    }

    fn isolate(&mut self, controller: usize) {
        self.controllers[controller].connected = false;
        self.tell(|| format!("c{} reaches no other controller", controller + 1));
        if let Some(epoch) = self.controllers[controller].process.as_ref().and_then(|process| process.epoch) {
            // Its quorum lease runs out.
            let after = self.chance.between(1_000, 2_500);
            self.plan(after, Event::Deposed { controller, epoch });
        }
        self.heal_in(2_000, 15_000, Fault::Controller { controller });
    }

    fn change_leader(&mut self, to: usize) {
        if self.controllers[to].runs(self.now_ms) && self.controllers[to].connected {
            self.elect(to);
        }
    }

    /// Storage loses a file, as storage does.
    fn lose_file(&mut self) {
        let used = |world: &Self, file| {
            world
                .nodes
                .iter()
                .any(|host| host.up && host.domains.keys().any(|vm| world.truth.uses(*vm, file)))
        };
        // One that no node has written down is not lost with this: it was never made, and may be made anew.
        let known = |world: &Self, file: Uuid| {
            let mut ledgers = world.nodes.iter().map(|host| &host.ledger);
            ledgers.any(|ledger| ledger.volumes.get(&file).is_some_and(|record| record.made))
        };
        let idle = self.storage.files.iter().copied().filter(|file| known(self, *file) && !used(self, *file));
        let idle: Vec<_> = idle.collect();
        if let Some(file) = self.chance.pick(&idle) {
            self.storage.files.remove(&file);
            self.storage.lost.insert(file);
            self.tell(|| format!("the storage loses volume {}", short(file)));
        }
    }

    fn guest_dies(&mut self, node: usize) {
        let vms: Vec<_> = self.nodes[node].domains.keys().copied().collect();
        if let Some(vm) = self.chance.pick(&vms) {
            self.nodes[node].end(vm, Exit::Crashed);
            self.tell(|| format!("n{node}: vm {} dies", short(vm)));
            self.pass_soon(node);
        }
    }

    pub fn heal(&mut self, fault: Fault) {
        self.tell(|| format!("healed: {fault:?}"));
        match fault {
            Fault::Links { node, up, down } => {
                self.cut_up.retain(|(of, _)| !up || *of != node);
                self.cut_down.retain(|(of, _)| !down || *of != node);
            }
            Fault::Neighbours { node } => drop(self.cut_nodes.remove(&node)),
            Fault::Storage { node } => self.heal_storage(node),
            Fault::Island { node } => {
                self.cut_up.retain(|(of, _)| *of != node);
                self.cut_down.retain(|(of, _)| *of != node);
                self.cut_nodes.remove(&node);
                self.heal_storage(node);
            }
            Fault::Controller { controller } => self.controllers[controller].connected = true,
        }
    }

    fn heal_storage(&mut self, node: usize) {
        self.nodes[node].access = Access::Fine;
        self.land_held(node);
        self.pass_soon(node);
    }

    /// All faults are over.
    pub fn heal_all(&mut self) {
        self.tell(|| "all faults heal".to_owned());
        self.troubled = false;
        self.cut_up.clear();
        self.cut_down.clear();
        self.cut_nodes.clear();
        for controller in 0..3 {
            self.controllers[controller].connected = true;
            self.controllers[controller].paused_until = 0;
            self.start_controller(controller);
            self.plan(0, Event::Wakes { controller });
        }
        for node in 0..self.nodes.len() {
            self.heal_storage(node);
            self.nodes[node].keeper_paused_until = 0;
            if let Some(agent) = self.nodes[node].agent.as_mut() {
                agent.paused_until = 0;
            }
            if !self.nodes[node].up {
                self.reboot_in(node, 1_000);
            }
        }
    }
}
