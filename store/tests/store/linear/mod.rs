//! Clients of three members, each a process of its own, while links are cut, members are killed, stopped and slow, and
//! the lead is given away: what the clients saw is what one register for each key could have shown (linearizability).
//!
//! The checker is todc-utils' of Wing and Gong's algorithm with Lowe's memory of what was tried (decision 0206).

pub mod process;
pub mod register;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use process::{Answer, Ask, Process};
use register::{Op, Seen, linearizable};
use tamdao_store::contract::within;
use uuid::Uuid;

const NAMES: [&str; 3] = ["a", "b", "c"];
const KEYS: u64 = 3;
const CLIENTS: u64 = 6;

/// Three processes.
struct Group {
    folder: tempfile::TempDir,
    members: Vec<tokio::sync::RwLock<Arc<Process>>>,
    /// Of each its number and address.
    seats: Vec<(u64, String)>,
}

/// What befalls them, from a seed.
struct Dice(u64);

impl Dice {
    /// Knuth's linear congruential generator (MMIX), its better half.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

impl Group {
    async fn new() -> Group {
        let folder = tempfile::tempdir().unwrap();
        let (mut members, mut seats, cluster) = (Vec::new(), Vec::new(), Uuid::new_v4());
        for name in NAMES {
            let member = Process::start(folder.path(), name, "127.0.0.1:0");
            let Some(Answer::Seat { id, address }) = within("a start", member.ask(Ask::Seat)).await else {
                panic!("{name} does not start")
            };
            if members.is_empty() {
                assert_eq!(within("a founding", member.ask(Ask::Init(cluster))).await, Some(Answer::Done));
            } else {
                assert_eq!(within("an id", member.ask(Ask::Join(cluster))).await, Some(Answer::Done));
            }
            members.push(member);
            seats.push((id, address));
        }
        for (at, (id, address)) in seats.iter().enumerate().skip(1) {
            let add = || Ask::Add { id: *id, name: NAMES[at].into(), address: address.clone() };
            // The founder may not lead yet.
            let seated = async {
                while members[0].ask(add()).await != Some(Answer::Done) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            within("a seat", seated).await;
        }
        let members = members.into_iter().map(|member| tokio::sync::RwLock::new(Arc::new(member))).collect();
        Group { folder, members, seats }
    }

    async fn member(&self, at: usize) -> Arc<Process> {
        Arc::clone(&*self.members[at].read().await)
    }

    fn others(&self, at: usize) -> Vec<String> {
        let others = self.seats.iter().enumerate().filter(|(other, _)| *other != at);
        others.map(|(_, (_, address))| address.clone()).collect()
    }

    /// One misfortune and its end. How long it lasts is no matter to what must hold.
    async fn suffer(&self, dice: &mut Dice) {
        let (at, kind) = (dice.below(3) as usize, dice.below(6));
        let lasting = Duration::from_millis(100 + dice.below(1_500));
        let member = self.member(at).await;
        match kind {
            0 => {
                member.pause(true);
                tokio::time::sleep(lasting).await;
                member.pause(false);
            }
            1 => {
                member.kill().await;
                tokio::time::sleep(lasting).await;
                *self.members[at].write().await = self.restarted(at).await;
            }
            // Cut off in both directions, in one, or slow.
            2..=4 => {
                let (ours, address) = (self.others(at), self.seats[at].1.clone());
                member.ask(if kind == 4 { Ask::Hold(ours) } else { Ask::Cut(ours) }).await;
                if kind == 2 {
                    for other in (0..3).filter(|other| *other != at) {
                        self.member(other).await.ask(Ask::Cut(vec![address.clone()])).await;
                    }
                }
                tokio::time::sleep(lasting).await;
                for each in 0..3 {
                    self.member(each).await.ask(Ask::Heal).await;
                }
            }
            _ => {
                let to = self.seats[(at + 1) % 3].0;
                for each in 0..3 {
                    self.member(each).await.ask(Ask::Yield(to)).await;
                }
            }
        }
    }

    async fn restarted(&self, at: usize) -> Arc<Process> {
        let member = Process::start(self.folder.path(), NAMES[at], &self.seats[at].1);
        assert!(within("a restart", member.ask(Ask::Seat)).await.is_some(), "{} is back", NAMES[at]);
        Arc::new(member)
    }
}

/// What all clients of a round share.
struct Round {
    name: String,
    over: AtomicBool,
    clock: AtomicU64,
    numbers: AtomicU64,
    seen: Mutex<Vec<Seen>>,
}

impl Round {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// One operation at one member.
    async fn act(&self, member: &Process, kind: u64, key: u64, last: &mut Option<(u64, u64)>) {
        let (name, number) = (format!("{}/{key}", self.name), self.numbers.fetch_add(1, Ordering::SeqCst));
        let swap = last.take().filter(|_| kind == 1);
        let began = self.tick();
        let answer = match (kind, swap) {
            (0, _) => member.ask(Ask::Put { key: name, value: number, guard: None }).await,
            (1, Some((_, revision))) => {
                member.ask(Ask::Put { key: name, value: number, guard: Some(revision) }).await
            }
            _ => member.ask(Ask::Get { key: name }).await,
        };
        let ended = Some(self.tick());
        let (op, ended) = match (kind, swap, answer) {
            (_, _, Some(Answer::Found(found))) => {
                *last = found;
                (Op::Read(found.map(|(number, _)| number)), ended)
            }
            (0, _, Some(Answer::Done)) => (Op::Write(number), ended),
            (1, Some((from, _)), Some(Answer::Done)) => (Op::Swap(from, number), ended),
            (1, Some((from, _)), Some(Answer::Conflict)) => (Op::Unswapped(from), ended),
            // It says that nothing was written, and is held to that: a read of its number has no write.
            (_, _, Some(Answer::Refused)) => return,
            (0, _, Some(Answer::Unknown) | None) => (Op::Write(number), None),
            (1, Some((from, _)), Some(Answer::Unknown) | None) => (Op::MaybeSwap(from, number), None),
            (_, _, None) => return,
            (_, _, Some(other)) => panic!("{other:?} is no answer"),
        };
        self.seen.lock().unwrap().push(Seen { key, began, ended, op });
    }
}

async fn client(group: &Group, round: &Round, number: u64) {
    let (key, mut step, mut last) = (number % KEYS, number, None);
    while !round.over.load(Ordering::Acquire) {
        step += 1;
        let member = group.member(((number + step / 7) % 3) as usize).await;
        round.act(&member, step % 3, key, &mut last).await;
        // So that histories stay such that they can be judged.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Misfortunes one after another; then the group must answer again, and the round is over.
async fn befall(group: &Group, round: &Round, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        group.suffer(dice).await;
    }
    let healed = async {
        for member in 0..3 {
            let ask = || Ask::Put { key: format!("{}/healed", round.name), value: 0, guard: None };
            while group.member(member).await.ask(ask()).await != Some(Answer::Done) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    within("a healed group", healed).await;
    round.over.store(true, Ordering::Release);
}

fn asked(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|asked| asked.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_is_what_one_register_could_show() {
    let seed = asked("TAMDAO_TEST_SEED", 1);
    let (group, mut dice) = (Group::new().await, Dice(seed));
    for number in 0..asked("TAMDAO_TEST_ROUNDS", 4) {
        let round = Round {
            name: format!("/{number}"),
            over: AtomicBool::new(false),
            clock: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
            seen: Mutex::default(),
        };
        let clients = join_all((0..CLIENTS).map(|number| client(&group, &round, number)));
        futures::join!(clients, befall(&group, &round, &mut dice));
        let seen = round.seen.into_inner().unwrap();
        assert!(!seen.is_empty(), "round {number}: nothing was answered at all");
        for key in 0..KEYS {
            let of_key: Vec<Seen> = seen.iter().filter(|one| one.key == key).cloned().collect();
            assert!(linearizable(&of_key), "round {number} of seed {seed}, key {key}: {of_key:#?}");
        }
    }
}

#[test]
fn a_stale_read_is_found() {
    let one = |began, ended, op| Seen { key: 0, began, ended, op };
    let fine =
        [one(0, Some(1), Op::Write(1)), one(2, None, Op::Write(2)), one(3, Some(4), Op::Read(Some(1)))];
    assert!(linearizable(&fine));
    let later = [one(5, Some(6), Op::Read(Some(2)))];
    assert!(linearizable(&[&fine[..], &later].concat()));
    let stale = [one(7, Some(8), Op::Read(Some(1)))];
    assert!(!linearizable(&[&fine[..], &later, &stale].concat()));
    // A write that was refused and is read all the same has no write.
    assert!(!linearizable(&[&fine[..], &[one(5, Some(6), Op::Read(Some(9)))]].concat()));
    assert!(!linearizable(&[one(0, Some(1), Op::Write(1)), one(2, Some(3), Op::Unswapped(1))]));
}
