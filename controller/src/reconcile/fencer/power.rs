//! Taking a lost node's power through its BMCs, one after the other, until one of them has shown that it is off.
//!
//! Invariants: what is asked first is whose machine it is; Off counts by looks that began after the command was sent, and
//! what the command was answered never does. Deliberately absent: whether it may be powered off at all, which is asked
//! for between the first look and the command, and committing anything.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tamdao_model::SessionId;
use tamdao_model::bmc::{Bmc as Record, Seen, check_machine};
use tamdao_model::fence::{Evidence, Look, PowerDoubt, power_off};
use tamdao_model::node::Node;
use tamdao_seams::{Mutant, has};
use tokio::time::Instant;
use uuid::Uuid;

use crate::bmc::{Access, Bmc, Fault};
use crate::pki::ClusterKey;

/// A machine that is not off after this time is not going to be.
const OFF_WITHIN: Duration = Duration::from_secs(40);
/// Between two looks while it goes off.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Before all BMCs are tried anew: at first, and when that has doubled each time.
const AGAIN_AFTER: Duration = Duration::from_secs(15);
const AGAIN_AFTER_AT_MOST: Duration = Duration::from_secs(300);

/// How the power of one node is being taken.
pub struct Taking {
    /// The lost node's boot and session that this is about.
    pub about: (String, Option<SessionId>),
    host: Uuid,
    bmcs: Vec<Record>,
    /// The BMC whose turn it is.
    at: usize,
    step: Step,
    pause: Duration,
    /// What was wrong with those whose turn is over.
    wrong: Vec<Trouble>,
}

/// Why a BMC has brought no proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
}

type Call<T> = BoxFuture<'static, Result<T, Fault>>;

enum Step {
    Begin {
        not_before: Instant,
    },
    /// Whose machine is it?
    Ask(Call<Seen>),
    /// It is the node's, and waits for leave to be powered off.
    Ready,
    Command {
        sent: Instant,
        call: Call<()>,
    },
    Watch(Watch),
}

/// After the command.
struct Watch {
    sent: Instant,
    /// What the command was answered, if not well.
    refused: Option<Fault>,
    first: Option<Look>,
    /// When it began, and the look itself.
    call: Option<(Instant, Call<Seen>)>,
    next: Instant,
    last: Trouble,
}

/// What a turn has brought.
pub enum Turn {
    Wait,
    /// The BMC of this URL stands for the node's machine: it may be commanded.
    Ready(String),
    /// All BMCs have been tried.
    Failed(Vec<Trouble>),
    Proven(Evidence),
}

impl Taking {
    pub fn new(node: &Node, now: Instant) -> Self {
        let about = (node.status.boot_id.clone(), node.status.session);
        let (step, bmcs) = (Step::Begin { not_before: now }, node.spec.bmcs.clone());
        Self { about, host: node.status.host_uuid, bmcs, at: 0, step, pause: AGAIN_AFTER, wrong: Vec::new() }
    }

    /// Whether this is still about the node as its record has it. One BMC's command says nothing of another one's looks.
    pub fn is_about(&self, node: &Node) -> bool {
        let session = (&self.about.0, self.about.1) == (&node.status.boot_id, node.status.session);
        session && self.host == node.status.host_uuid && self.bmcs == node.spec.bmcs
    }

    /// Goes on as far as it can without waiting. `since` is where the looks' ms count from.
    pub fn turn(
        &mut self,
        node: &Node,
        key: &ClusterKey,
        power: &Arc<dyn Bmc>,
        now: Instant,
        since: Instant,
    ) -> Turn {
        let Some(bmc) = node.spec.bmcs.get(self.at) else { return Turn::Wait };
        let access = match Access::open(key, bmc) {
            Ok(access) => access,
            Err(fault) => return self.fail(node, now, fault.reason(), &fault.to_string()),
        };
        match &mut self.step {
            Step::Begin { not_before } if now < *not_before => Turn::Wait,
            Step::Begin { .. } if node.drilled(&bmc.url).is_none_or(|drilled| drilled.said_on.is_none()) => {
                let message = "has not been known to say On of this node while it was heard, so that its Off would prove \
                               nothing";
                self.fail(node, now, "NotDrilled", message)
            }
            Step::Begin { .. } => {
                self.step = Step::Ask(look(power, access, self.host));
                Turn::Wait
            }
            Step::Ask(call) => match call.now_or_never() {
                None => Turn::Wait,
                Some(Err(fault)) => self.fail(node, now, fault.reason(), &fault.to_string()),
                Some(Ok(seen)) => match check_machine(self.host, seen.system_uuid) {
                    Err(wrong) => self.fail(node, now, wrong.reason, &wrong.message),
                    Ok(()) => {
                        self.step = Step::Ready;
                        Turn::Ready(bmc.url.clone())
                    }
                },
            },
            Step::Ready => Turn::Ready(bmc.url.clone()),
            Step::Command { sent, call } => match call.now_or_never() {
                None => Turn::Wait,
                Some(Err(fault @ (Fault::WrongMachine(_) | Fault::NoForceOff))) => {
                    self.fail(node, now, fault.reason(), &fault.to_string())
                }
                Some(Ok(())) if has(Mutant::PowerOffUnread) => self.proven(bmc.url.clone(), self.host),
                // A machine that is off already refuses the command; what counts is what is looked at.
                Some(answer) => {
                    let last = Trouble { reason: "StillOn", message: "was not looked at".into() };
                    let (sent, refused) = (*sent, answer.err());
                    self.step =
                        Step::Watch(Watch { sent, refused, first: None, call: None, next: now, last });
                    Turn::Wait
                }
            },
            Step::Watch(watch) => match watch.turn(self.host, access, power, now, since) {
                Seeing::Wait => Turn::Wait,
                Seeing::Off(uuid) => self.proven(bmc.url.clone(), uuid),
                Seeing::TooLate(Trouble { reason, message }) => self.fail(node, now, reason, &message),
            },
        }
    }

    /// Sends the command, for which there is leave.
    pub fn command(&mut self, node: &Node, key: &ClusterKey, power: &Arc<dyn Bmc>, now: Instant) {
        let access = node.spec.bmcs.get(self.at).and_then(|bmc| Access::open(key, bmc).ok());
        let (Step::Ready, Some(access)) = (&self.step, access) else { return };
        let (power, host) = (power.clone(), self.host);
        let call = begin(async move { power.force_off(&access, host).await });
        self.step = Step::Command { sent: now, call };
    }

    fn proven(&self, bmc: String, system_uuid: Uuid) -> Turn {
        Turn::Proven(Evidence::PowerOff { bmc, system_uuid: system_uuid.to_string() })
    }

    /// Goes on to the next BMC.
    fn fail(&mut self, node: &Node, now: Instant, reason: &'static str, message: &str) -> Turn {
        let url = node.spec.bmcs.get(self.at).map_or("", |bmc| bmc.url.as_str());
        self.wrong.push(Trouble { reason, message: format!("BMC {url} {message}") });
        self.at += 1;
        if self.at < node.spec.bmcs.len() {
            self.step = Step::Begin { not_before: now };
            return Turn::Wait;
        }
        (self.at, self.step) = (0, Step::Begin { not_before: now + self.pause });
        self.pause = (self.pause * 2).min(AGAIN_AFTER_AT_MOST);
        Turn::Failed(std::mem::take(&mut self.wrong))
    }
}

enum Seeing {
    Wait,
    Off(Uuid),
    TooLate(Trouble),
}

impl Watch {
    fn turn(
        &mut self,
        host: Uuid,
        access: Access,
        power: &Arc<dyn Bmc>,
        now: Instant,
        since: Instant,
    ) -> Seeing {
        let ms =
            |at: Instant| u64::try_from(at.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        if let Some((began, call)) = &mut self.call {
            let Some(answer) = call.now_or_never() else { return Seeing::Wait };
            let look = answer.map(|seen| Look { began_ms: ms(*began), ended_ms: ms(now), seen });
            (self.call, self.next) = (None, now + LOOK_EVERY);
            match look {
                Err(fault) => {
                    self.first = None;
                    self.last = Trouble { reason: fault.reason(), message: fault.to_string() };
                }
                Ok(look) => {
                    // The first one alone: its own doubts, but for being too close to itself.
                    let first = self.first.unwrap_or(look);
                    match power_off(host, ms(self.sent), &first, &look) {
                        Ok(()) => return Seeing::Off(look.seen.system_uuid),
                        Err(PowerDoubt::TooClose) => self.first = Some(first),
                        Err(doubt) => {
                            self.first = None;
                            self.last = Trouble { reason: reason(&doubt), message: doubt.to_string() };
                        }
                    }
                }
            }
        }
        if now.saturating_duration_since(self.sent) > OFF_WITHIN {
            let Trouble { reason, message } = self.last.clone();
            let after_s = OFF_WITHIN.as_secs();
            let message = match &self.refused {
                None => format!("{message}, {after_s} s after it was told to power off"),
                Some(fault) => format!(
                    "{message}, {after_s} s after it was told to power off, to which it said: it {fault}"
                ),
            };
            return Seeing::TooLate(Trouble { reason, message });
        }
        if now >= self.next {
            self.call = Some((now, look(power, access, host)));
        }
        Seeing::Wait
    }
}

fn reason(doubt: &PowerDoubt) -> &'static str {
    match doubt {
        PowerDoubt::Machine(wrong) => wrong.reason,
        PowerDoubt::NotOff => "StillOn",
        PowerDoubt::TooEarly | PowerDoubt::TooClose => "LookingAgain",
    }
}

fn look(power: &Arc<dyn Bmc>, access: Access, host: Uuid) -> Call<Seen> {
    let power = power.clone();
    begin(async move { power.look(&access, host).await })
}

/// Polls a call once, so that it is under way before the next turn.
fn begin<T: Send + 'static>(call: impl Future<Output = Result<T, Fault>> + Send + 'static) -> Call<T> {
    let mut call = call.boxed();
    match (&mut call).now_or_never() {
        Some(answer) => std::future::ready(answer).boxed(),
        None => call,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use tamdao_model::bmc::{Drilled, GOOD, Power, Trust};
    use tamdao_model::node::{NodeSpec, NodeStatus};
    use tamdao_model::{Meta, Name, TimeMs};

    use super::*;

    const HOST: Uuid = Uuid::from_u128(0xA);

    /// Says what it was given, and the last of it for ever.
    struct Scripted {
        looks: Mutex<VecDeque<Result<Seen, Fault>>>,
        command: Result<(), Fault>,
        commands: Mutex<usize>,
    }

    #[async_trait]
    impl Bmc for Scripted {
        async fn look(&self, _: &Access, _: Uuid) -> Result<Seen, Fault> {
            let mut looks = self.looks.lock().unwrap();
            let next = looks.pop_front().unwrap();
            if looks.is_empty() {
                looks.push_back(next.clone());
            }
            next
        }

        async fn force_off(&self, _: &Access, _: Uuid) -> Result<(), Fault> {
            *self.commands.lock().unwrap() += 1;
            self.command.clone()
        }
    }

    fn says(power: Power) -> Result<Seen, Fault> {
        Ok(Seen { system_uuid: HOST, power })
    }

    fn node(key: &ClusterKey, said_on: &[bool]) -> Node {
        let url = |at: usize| format!("https://bmc{at}");
        let record = |at| Record {
            url: url(at),
            username: "fencer".into(),
            password: crate::bmc::seal(key, "a word").unwrap(),
            trust: Trust::Unverified,
        };
        let drilled = |(at, said_on): (usize, &bool)| Drilled {
            url: url(at),
            time: TimeMs(1),
            reason: GOOD.into(),
            message: String::new(),
            said_on: said_on.then_some(TimeMs(1)),
        };
        let spec = NodeSpec { bmcs: (0..said_on.len()).map(record).collect(), ..NodeSpec::default() };
        let fence_drill = said_on.iter().enumerate().map(drilled).collect();
        let status = NodeStatus { host_uuid: HOST, fence_drill, ..NodeStatus::default() };
        Node { meta: Meta::new(Uuid::from_u128(1), Name::new("n1").unwrap(), TimeMs(1)), spec, status }
    }

    /// How it ends, after how many seconds, and how many commands were sent.
    fn ends(
        said_on: &[bool],
        looks: Vec<Result<Seen, Fault>>,
        command: Result<(), Fault>,
    ) -> (String, u64, usize) {
        let key = ClusterKey::generate().unwrap();
        let (node, since) = (node(&key, said_on), Instant::now());
        let scripted =
            Arc::new(Scripted { looks: Mutex::new(looks.into()), command, commands: Mutex::default() });
        let power: Arc<dyn Bmc> = scripted.clone();
        let mut taking = Taking::new(&node, since);
        let (end, ms) = (0..600)
            .find_map(|half| {
                let now = since + Duration::from_millis(half * 500);
                let end = match taking.turn(&node, &key, &power, now, since) {
                    Turn::Wait => return None,
                    Turn::Ready(_) => {
                        taking.command(&node, &key, &power, now);
                        return None;
                    }
                    Turn::Failed(wrong) => wrong.iter().map(|one| one.reason).collect::<Vec<_>>().join(","),
                    Turn::Proven(evidence) => evidence.to_string(),
                };
                Some((end, half * 500))
            })
            .unwrap();
        let commands = *scripted.commands.lock().unwrap();
        (end, ms / 1_000, commands)
    }

    #[test]
    fn off_that_lasts_is_a_proof_whatever_the_command_was_answered() {
        let proof = format!("its BMC https://bmc0 (system {HOST}) said Off twice");
        let (on, off) = (|| says(Power::On), || says(Power::Off));
        assert_eq!(ends(&[true], vec![on(), off()], Ok(())), (proof.clone(), 5, 1));
        // Off already, and refused: as when a host has lost its own power.
        assert_eq!(ends(&[true], vec![off()], Err(Fault::Status(409))), (proof.clone(), 5, 1));
        // Slow, with a fault on the way; the answer to the command was lost.
        let slow = vec![on(), on(), says(Power::Between), Err(Fault::Status(503)), on(), off()];
        assert_eq!(ends(&[true], slow, Err(Fault::TooSlow(Duration::from_secs(1)))).0, proof);
        // A word of Off in between is not enough.
        let (ended, after_s, _) = ends(&[true], vec![on(), off(), on(), off()], Ok(()));
        assert!(ended == proof && after_s >= 6, "{ended} after {after_s} s");
    }

    #[test]
    fn what_stays_on_lies_or_hangs_is_none() {
        let on = || says(Power::On);
        let flicker: Vec<_> =
            (0..400).map(|at| says(if at % 3 == 2 { Power::On } else { Power::Off })).collect();
        let wrong = Ok(Seen { system_uuid: Uuid::from_u128(0xB), power: Power::Off });
        let fault = || Err(Fault::TooSlow(Duration::from_secs(8)));
        for (looks, command, ended, commands) in [
            (vec![on()], Ok(()), "StillOn", 1),
            (flicker, Ok(()), "StillOn", 1),
            (vec![wrong.clone()], Ok(()), "WrongMachine", 0),
            // Another machine answers after the command.
            (vec![on(), wrong], Ok(()), "WrongMachine", 1),
            (vec![fault()], Ok(()), "TooSlow", 0),
            (vec![on(), fault()], Ok(()), "TooSlow", 1),
            (vec![on(), says(Power::Between)], Ok(()), "StillOn", 1),
            (vec![on()], Err(Fault::Denied(403)), "StillOn", 1),
            (vec![on()], Err(Fault::NoForceOff), "NoForceOff", 1),
        ] {
            let (end, _, sent) = ends(&[true], looks.clone(), command);
            assert_eq!((end.as_str(), sent), (ended, commands), "{looks:?}");
        }
    }

    #[test]
    fn another_bmc_in_its_place_begins_anew() {
        let key = ClusterKey::generate().unwrap();
        let mut node = node(&key, &[true]);
        let taking = Taking::new(&node, Instant::now());
        assert!(taking.is_about(&node));
        node.spec.bmcs[0].username = "another".into();
        assert!(!taking.is_about(&node));
    }

    #[test]
    fn the_next_bmc_has_its_turn_and_one_that_never_said_on_has_none() {
        let looks = vec![says(Power::On), says(Power::Off)];
        let (end, _, commands) = ends(&[false, true], looks.clone(), Ok(()));
        assert_eq!((end, commands), (format!("its BMC https://bmc1 (system {HOST}) said Off twice"), 1));
        assert_eq!(ends(&[false, false], looks, Ok(())), ("NotDrilled,NotDrilled".into(), 0, 0));
    }
}
