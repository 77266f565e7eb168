//! Nodes' BMCs, each as its history has drawn it: honest, slow, deaf now and then, in the place of another one's, or a
//! liar of the kinds that can be found out. In every fifth history (seeds 3, 8, 13, …) nodes have them.
//!
//! Invariant: what BMCs draw they draw from a chance of their own, so that histories without them are what they were.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tamdao_controller::bmc::{self, Access, Bmc, Fault, LOOK_WITHIN};
use tamdao_controller::pki::ClusterKey;
use tamdao_model::bmc::{Power, Seen, Trust, is_same_machine};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::chance::Chance;
use crate::world::{Event, World};

/// What a BMC does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Takes its time for everything, and for the power most of all.
    Slow,
    /// Somebody has mixed up the cables: it is the next node's.
    OfTheNext,
    SaysOff,
    /// Takes the command and does nothing.
    Ignores,
    /// Takes the command, says Off once and does nothing.
    OffOnce,
}

const MANNERS: [(Manner, u64); 6] = [
    (Manner::Honest, 4),
    (Manner::Slow, 4),
    (Manner::OfTheNext, 2),
    (Manner::SaysOff, 1),
    (Manner::Ignores, 1),
    (Manner::OffOnce, 1),
];

/// All of them; none in four histories of five.
pub struct Bmcs {
    chance: Chance,
    pub manners: Vec<Option<Manner>>,
    /// By BMC, whether it has been told to power off and not said Off since.
    told: Vec<bool>,
}

impl Bmcs {
    pub fn draw(seed: u64, nodes: usize) -> Self {
        let mut chance = Chance::new(seed ^ 0xB3C);
        let none = seed % 5 != 3;
        let manners =
            (0..nodes).map(|_| chance.weigh(&MANNERS).filter(|_| !none && !chance.one_in(5))).collect();
        Self { chance, manners, told: vec![false; nodes] }
    }
}

/// The UUID of a node's host.
pub fn host_uuid(at: usize) -> Uuid {
    Uuid::from_u128(0x900 + at as u128)
}

/// How the records have a node's BMC.
pub fn record(key: &ClusterKey, at: usize) -> tamdao_model::bmc::Bmc {
    let password = bmc::seal(key, "a word").expect("the system gives random numbers");
    let (url, username) = (format!("https://bmc{at}"), "fencer".to_owned());
    tamdao_model::bmc::Bmc { url, username, password, trust: Trust::Unverified }
}

/// What a controller asks, until the world has taken it.
pub struct Asked {
    url: String,
    host: Uuid,
    call: Call,
}

enum Call {
    Look(oneshot::Sender<Result<Seen, Fault>>),
    ForceOff(oneshot::Sender<Result<(), Fault>>),
}

/// An answer on its way.
pub enum Answer {
    Seen(oneshot::Sender<Result<Seen, Fault>>, Result<Seen, Fault>),
    Taken(oneshot::Sender<Result<(), Fault>>, Result<(), Fault>),
}

impl Answer {
    pub fn give(self) {
        // Nobody waits for it where the controller has died or lost its office.
        match self {
            Self::Seen(reply, seen) => drop(reply.send(seen)),
            Self::Taken(reply, taken) => drop(reply.send(taken)),
        }
    }
}

/// The seam's end in a controller.
#[derive(Clone, Default)]
pub struct SimBmc(Arc<Mutex<Vec<Asked>>>);

impl SimBmc {
    pub fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.0.lock().expect("no holder of the lock panics"))
    }

    fn ask(&self, access: &Access, host: Uuid, call: Call) {
        let asked = Asked { url: access.url.clone(), host, call };
        self.0.lock().expect("no holder of the lock panics").push(asked);
    }
}

#[async_trait]
impl Bmc for SimBmc {
    async fn look(&self, access: &Access, host: Uuid) -> Result<Seen, Fault> {
        let (reply, answer) = oneshot::channel();
        self.ask(access, host, Call::Look(reply));
        answer.await.unwrap_or(Err(Fault::TooSlow(LOOK_WITHIN)))
    }

    async fn force_off(&self, access: &Access, host: Uuid) -> Result<(), Fault> {
        let (reply, answer) = oneshot::channel();
        self.ask(access, host, Call::ForceOff(reply));
        answer.await.unwrap_or(Err(Fault::TooSlow(LOOK_WITHIN)))
    }
}

impl World {
    /// A controller has asked a BMC something, which comes there after a while, or never.
    pub fn ask_bmc(&mut self, asked: Asked) {
        let at = self.bmc_of(&asked.url);
        let slow = self.bmcs.manners[at] == Some(Manner::Slow);
        let delay = self.bmcs.chance.between(20, if slow { 4_000 } else { 400 });
        let lost = self.troubled && self.bmcs.chance.one_in(12);
        if lost {
            let within = u64::try_from(LOOK_WITHIN.as_millis()).unwrap_or(u64::MAX);
            let answer = match asked.call {
                Call::Look(reply) => Answer::Seen(reply, Err(Fault::TooSlow(LOOK_WITHIN))),
                Call::ForceOff(reply) => Answer::Taken(reply, Err(Fault::TooSlow(LOOK_WITHIN))),
            };
            return self.plan(within, Event::BmcAnswers(answer));
        }
        self.plan(delay, Event::BmcIsAsked(asked));
    }

    fn bmc_of(&self, url: &str) -> usize {
        let at = (0..self.nodes.len()).find(|at| url == format!("https://bmc{at}"));
        at.expect("the records name no other")
    }

    /// The BMC does what it is asked, and answers after a while.
    pub fn bmc_is_asked(&mut self, asked: Asked) {
        let at = self.bmc_of(&asked.url);
        let manner = self.bmcs.manners[at].unwrap_or(Manner::Honest);
        let stands_for = if manner == Manner::OfTheNext { (at + 1) % self.nodes.len() } else { at };
        let dead = self.nodes[stands_for].dead;
        let unreachable = || Fault::Unreachable("it has no power either".into());
        let answer = match asked.call {
            Call::Look(reply) if dead => Answer::Seen(reply, Err(unreachable())),
            Call::ForceOff(reply) if dead => Answer::Taken(reply, Err(unreachable())),
            Call::Look(reply) => {
                let seen =
                    Seen { system_uuid: host_uuid(stands_for), power: self.power(at, stands_for, manner) };
                Answer::Seen(reply, Ok(seen))
            }
            Call::ForceOff(reply) => {
                let uuid = host_uuid(stands_for);
                let right = is_same_machine(asked.host, uuid);
                let taken = if right { Ok(()) } else { Err(Fault::WrongMachine(uuid)) };
                if right {
                    self.power_off(at, stands_for, manner);
                }
                // Some take the command and say that they have not.
                let garbled = self.bmcs.chance.one_in(6);
                Answer::Taken(reply, taken.and(if garbled { Err(Fault::Status(409)) } else { Ok(()) }))
            }
        };
        let delay = self.bmcs.chance.between(20, if manner == Manner::Slow { 3_000 } else { 400 });
        self.plan(delay, Event::BmcAnswers(answer));
    }

    fn power(&mut self, at: usize, stands_for: usize, manner: Manner) -> Power {
        let once = manner == Manner::OffOnce && std::mem::take(&mut self.bmcs.told[at]);
        match self.nodes[stands_for].up && manner != Manner::SaysOff && !once {
            true => Power::On,
            false => Power::Off,
        }
    }

    fn power_off(&mut self, at: usize, stands_for: usize, manner: Manner) {
        self.bmcs.told[at] = true;
        self.tell(|| format!("n{stands_for} is told to power off by the BMC of n{at} ({manner:?})"));
        if matches!(manner, Manner::SaysOff | Manner::Ignores | Manner::OffOnce) {
            return;
        }
        let boot = self.nodes[stands_for].boot;
        let delay = match manner {
            Manner::Slow => self.bmcs.chance.between(500, 25_000),
            _ => self.bmcs.chance.between(1, 1_500),
        };
        self.plan(delay, Event::BmcSwitches { node: stands_for, boot });
    }

    /// The power goes off, and somebody comes to switch it on again.
    pub fn bmc_switches(&mut self, node: usize, boot: u64) {
        if self.nodes[node].up && self.nodes[node].boot == boot {
            self.power_cut(node, "its BMC has switched it off");
            let back = self.bmcs.chance.between(5_000, 30_000);
            self.reboot_in(node, back);
        }
    }
}
