//! Clients of three controllers, each a process in a network of its own, while links between them are cut one way or both,
//! and controllers are killed and stopped: what clients saw through the public API is what one register for each flavor
//! could have shown (linearizability). A register is a label of the flavor; a swap is an update that names the revision
//! which a read has shown; what was not answered may have happened, or not.
//!
//! The judge is the store's own (decision 0206), and so are the rounds (`TAMDAO_TEST_ROUNDS`, `TAMDAO_TEST_SEED`).

#[path = "../../../../store/tests/store/linear/register.rs"]
mod register;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::{join_all, try_join};
use register::{Op, Seen, linearizable};
use rustix::process::Signal;
use tamdao_proto::v1::flavor_service_client::FlavorServiceClient;
use tamdao_proto::v1::{
    CreateFlavorRequest, Flavor, FlavorSpec, GetFlavorRequest, Metadata, UpdateFlavorRequest,
};
use tamdao_tests::api::{Api, Wire};
use tamdao_tests::controller::Controller;
use tamdao_tests::island::{Island, Way};
use tamdao_tests::process::signal;
use tamdao_tests::slot::Slot;
use tamdao_tests::wait::SOON;
use tamdao_tests::{Cloud, Result, eventually};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

const KEYS: u64 = 3;
const CLIENTS: u64 = 6;
const LABEL: &str = "number";
/// How long a client waits for an answer. What comes later it never sees.
const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_of_controllers_see_is_what_one_register_could_show() -> Result<()> {
    let seed = asked("TAMDAO_TEST_SEED", 1);
    let mut cloud = Cloud::builder().controllers(3).apart().bare().start().await?;
    let mut dice = Dice(seed);
    let api = cloud.api.clone();
    for number in 0..asked("TAMDAO_TEST_ROUNDS", 3) {
        let round = Round::begin(&api, number).await?;
        let mut members =
            Members { controllers: &mut cloud.controllers, islands: &cloud.islands, slot: &cloud.slot };
        let clients = async { Ok(join_all((0..CLIENTS).map(|number| client(&api, &round, number))).await) };
        try_join(clients, befall(&api, &round, &mut members, &mut dice)).await?;
        let seen = round.seen.into_inner().expect("no client panics");
        // The first write of each register was before anything befell anybody.
        let answered = seen.iter().filter(|one| one.ended.is_some()).count() as u64;
        ensure!(answered > KEYS, "round {number}: nothing was answered at all");
        for key in 0..KEYS {
            let of_key: Vec<Seen> = seen.iter().filter(|one| one.key == key).cloned().collect();
            ensure!(judged(&of_key), "round {number} of seed {seed}, key {key}: {of_key:#?}");
        }
    }
    cloud.done()
}

/// Writes of which nobody knows and whose number nobody has read need not have been, so they are left out at first: each
/// doubles what there is to try.
fn judged(seen: &[Seen]) -> bool {
    let read = |number: u64| {
        seen.iter().any(|one| match one.op {
            Op::Read(found) => found == Some(number),
            Op::Swap(from, _) | Op::MaybeSwap(from, _) | Op::Unswapped(from) => from == number,
            Op::Write(_) => false,
        })
    };
    let needed = |one: &&Seen| match one.op {
        Op::Write(number) | Op::MaybeSwap(_, number) => one.ended.is_some() || read(number),
        Op::Read(_) | Op::Swap(..) | Op::Unswapped(_) => true,
    };
    let needed: Vec<Seen> = seen.iter().filter(needed).cloned().collect();
    linearizable(&needed) || (needed.len() < seen.len() && linearizable(seen))
}

/// What befalls controllers, from a seed.
struct Dice(u64);

impl Dice {
    /// Knuth's linear congruential generator (MMIX), its better half.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The controllers, as what befalls them sees them.
struct Members<'a> {
    controllers: &'a mut [Controller],
    islands: &'a [Island],
    slot: &'a Slot,
}

impl Members<'_> {
    /// One misfortune and its end. How long it lasts is no matter to what must hold; the longer ones have others lead.
    async fn suffer(&mut self, dice: &mut Dice) -> Result<()> {
        let (at, kind) = (dice.below(self.islands.len() as u64) as usize, dice.below(5));
        let lasting = Duration::from_millis(200 + dice.below(4_000));
        let controller = &mut self.controllers[at];
        match kind {
            0 => {
                let id = controller.id().context("it runs")?;
                signal(id, Signal::STOP)?;
                tokio::time::sleep(lasting).await;
                signal(id, Signal::CONT)?;
            }
            1 => {
                controller.kill()?;
                tokio::time::sleep(lasting).await;
                controller.start(self.slot)?;
            }
            _ => {
                let others = self.islands.iter().enumerate().filter(|(other, _)| *other != at);
                let others: Vec<String> = others.map(|(_, island)| island.address.clone()).collect();
                let way = [Way::Both, Way::In, Way::Out][kind as usize - 2];
                self.islands[at].cut(&others, way)?;
                tokio::time::sleep(lasting).await;
                self.islands[at].heal()?;
            }
        }
        Ok(())
    }
}

/// What all clients of a round share.
struct Round {
    number: u64,
    over: AtomicBool,
    clock: AtomicU64,
    numbers: AtomicU64,
    seen: Mutex<Vec<Seen>>,
}

impl Round {
    /// Makes the registers, so that nobody may see them without a number from then on.
    async fn begin(api: &Api, number: u64) -> Result<Self> {
        let round = Self {
            number,
            over: AtomicBool::new(false),
            clock: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
            seen: Mutex::default(),
        };
        for key in 0..KEYS {
            let first = round.numbers.fetch_add(1, Ordering::SeqCst);
            let began = round.tick();
            let request = CreateFlavorRequest {
                flavor: Some(labelled(&round.name(key), first, 0)),
                request_id: Uuid::new_v4().to_string(),
                ..CreateFlavorRequest::default()
            };
            // With the same id it is made once, however often it is asked for.
            eventually("a register", SOON, async || {
                let send = async |wire| FlavorServiceClient::new(wire).create_flavor(request.clone()).await;
                Ok(api.call(send).await?)
            })
            .await?;
            round.note(key, began, Some(round.tick()), Op::Write(first));
        }
        Ok(round)
    }

    fn name(&self, key: u64) -> String {
        format!("register-{}-{key}", self.number)
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn note(&self, key: u64, began: u64, ended: Option<u64>, op: Op) {
        self.seen.lock().expect("no client panics").push(Seen { key, began, ended, op });
    }

    /// One operation at one controller; whether it was answered.
    async fn act(&self, wire: Wire, kind: u64, key: u64, last: &mut Option<(u64, u64)>) -> bool {
        let swap = last.take().filter(|_| kind == 1);
        let began = self.tick();
        let (write, revision) = match (kind, swap) {
            (0, _) => (true, 0),
            (1, Some((_, revision))) => (true, revision),
            _ => (false, 0),
        };
        if !write {
            let found = read(wire, &self.name(key)).await;
            let ended = self.tick();
            let Ok(found) = found else { return false };
            *last = found;
            self.note(key, began, Some(ended), Op::Read(found.map(|(number, _)| number)));
            return true;
        }
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let answer = update(wire, labelled(&self.name(key), number, revision)).await;
        let ended = self.tick();
        let (op, known) = match (swap, answer) {
            (None, Ok(())) => (Op::Write(number), true),
            (Some((from, _)), Ok(())) => (Op::Swap(from, number), true),
            (Some((from, _)), Err(status)) if is_stale(&status) => (Op::Unswapped(from), true),
            (None, Err(_)) => (Op::Write(number), false),
            (Some((from, _)), Err(_)) => (Op::MaybeSwap(from, number), false),
        };
        self.note(key, began, known.then_some(ended), op);
        known
    }
}

/// The number of a register, with the revision that wrote it; none when there is no such flavor, or none on it.
async fn read(wire: Wire, name: &str) -> Result<Option<(u64, u64)>, Status> {
    let request = GetFlavorRequest { name: name.to_owned() };
    let metadata = match within(FlavorServiceClient::new(wire).get_flavor(request)).await {
        Ok(flavor) => flavor.into_inner().metadata.unwrap_or_default(),
        Err(status) if status.code() == Code::NotFound => return Ok(None),
        Err(status) => return Err(status),
    };
    let number = metadata.labels.get(LABEL).and_then(|number| number.parse().ok());
    Ok(number.map(|number| (number, metadata.revision)))
}

async fn update(wire: Wire, flavor: Flavor) -> Result<(), Status> {
    let request = UpdateFlavorRequest {
        name: flavor.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        flavor: Some(flavor),
        request_id: Uuid::new_v4().to_string(),
        ..UpdateFlavorRequest::default()
    };
    within(FlavorServiceClient::new(wire).update_flavor(request)).await.map(drop)
}

async fn within<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("no answer in time");
    tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
}

fn labelled(name: &str, number: u64, revision: u64) -> Flavor {
    let labels = [(LABEL.to_owned(), number.to_string())].into();
    let metadata = Metadata { name: name.to_owned(), labels, revision, ..Metadata::default() };
    let spec = FlavorSpec { vcpus: 1, memory_mib: 128, ..FlavorSpec::default() };
    Flavor { metadata: Some(metadata), spec: Some(spec) }
}

/// Whether it was refused because the register is at another revision.
fn is_stale(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == "StaleRevision")
}

async fn client(api: &Api, round: &Round, number: u64) {
    let (key, mut step, mut last) = (number % KEYS, number, None);
    while !round.over.load(Ordering::Acquire) {
        step += 1;
        let wire = api.wire(((number + step / 7) % api.count() as u64) as usize);
        let answered = round.act(wire, step % 3, key, &mut last).await;
        // So that histories stay such that they can be judged.
        tokio::time::sleep(Duration::from_millis(if answered { 20 } else { 300 })).await;
    }
}

/// Misfortunes one after another; then each controller must answer again, and the round is over.
async fn befall(api: &Api, round: &Round, members: &mut Members<'_>, dice: &mut Dice) -> Result<()> {
    let healed = async {
        for _ in 0..=dice.below(2) {
            members.suffer(dice).await?;
        }
        for at in 0..api.count() {
            eventually("each controller answers", 2 * SOON, async || {
                Ok(read(api.wire(at), &round.name(0)).await?)
            })
            .await?;
        }
        Ok(())
    };
    let healed = healed.await;
    // Also when it was not healed, so that clients end.
    round.over.store(true, Ordering::Release);
    healed
}

fn asked(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|asked| asked.parse().ok()).unwrap_or(otherwise)
}
