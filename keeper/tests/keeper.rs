//! The keeper as a process of its own, with real processes to guard and a real directory as the pool.

#![allow(clippy::unwrap_used, reason = "clippy knows tests by #[test] and not their fixtures")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tamdao_keeper::client::{self, ClientError};
use tamdao_keeper::lease::{self, LeaseRecord};
use tamdao_keeper::process::start_time;
use tamdao_keeper::protocol::{NodeId, PoolId, ProcessId, Request, Status, VmId};
use uuid::Uuid;

/// Short enough for a test, long enough for a busy machine to renew in time.
const LEASE_MS: u64 = 6_000;
const POOL: PoolId = PoolId(Uuid::from_u128(1));
const NODE: NodeId = NodeId(Uuid::from_u128(2));
const GUEST: VmId = VmId(Uuid::from_u128(3));

/// A directory with a pool, and a keeper that runs.
struct Bed {
    dir: tempfile::TempDir,
    keeper: Child,
}

impl Bed {
    fn new(watchdog: bool) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir(dir.path().join("pool")).unwrap();
        let mut config = format!("socket = '{0}/socket'\nstate = '{0}/state.json'\n", dir.path().display());
        if watchdog {
            mknodat(CWD, dir.path().join("watchdog"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            config +=
                &format!("watchdog = '{}/watchdog'\nwatchdog_timeout_ms = 1000\n", dir.path().display());
        }
        fs::write(dir.path().join("keeper.toml"), config).unwrap();
        let keeper = start(&dir.path().join("keeper.toml"));
        let bed = Self { dir, keeper };
        bed.mount();
        eventually("the keeper answers", || client::status(&bed.socket()).is_ok());
        bed
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn pool(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    fn mount(&self) {
        fs::write(self.pool().join(".tamdao-pool"), POOL.to_string()).unwrap();
    }

    /// Without its marker the pool is as good as gone.
    fn unmount(&self) {
        fs::remove_file(self.pool().join(".tamdao-pool")).unwrap();
    }

    fn ask(&self, request: Request) -> Result<(), ClientError> {
        client::change(&self.socket(), &request)
    }

    fn status(&self) -> Status {
        client::status(&self.socket()).unwrap()
    }

    fn record(&self) -> Option<LeaseRecord> {
        lease::read(&self.pool(), NODE).unwrap()
    }

    fn hold(&self) {
        self.ask(Request::Hold { pool: POOL, node: NODE, path: self.pool(), lease_ms: LEASE_MS }).unwrap();
        eventually("the lease is held", || self.status().pools.iter().any(|pool| pool.fresh));
    }

    fn guard(&self, guest: &Child) -> Result<(), ClientError> {
        self.ask(Request::Guard {
            vm: GUEST,
            incarnation: 1,
            process: id(guest),
            pools: BTreeSet::from([POOL]),
            under: BTreeMap::new(),
        })
    }

    /// Kills the keeper and starts it again.
    fn restart(&mut self) {
        self.keeper.kill().unwrap();
        self.keeper.wait().unwrap();
        self.keeper = start(&self.dir.path().join("keeper.toml"));
        eventually("the keeper answers again", || client::status(&self.socket()).is_ok());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn start(config: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tamdao-keeper")).arg("--config").arg(config).spawn().unwrap()
}

/// A process in a guest's place.
struct Guest(Child);

impl Guest {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn id(child: &Child) -> ProcessId {
    let pid = i32::try_from(child.id()).unwrap();
    ProcessId { pid, start_time: start_time(pid).unwrap() }
}

fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < until, "not in a minute: {what}");
        std::thread::sleep(Duration::from_millis(10)); // interval
    }
}

#[test]
fn a_lease_is_renewed_and_given_back() {
    let bed = Bed::new(false);
    bed.hold();
    let first = bed.record().unwrap();
    assert_eq!(
        (first.node, first.lease_ms, first.watchdog_timeout_ms, first.released),
        (NODE, LEASE_MS, None, false)
    );
    eventually("the counter grows", || bed.record().unwrap().counter > first.counter);
    bed.ask(Request::Release { pool: POOL }).unwrap();
    eventually("the record says so", || bed.record().unwrap().released);
    eventually("nothing is held", || bed.status().pools.is_empty());
}

#[test]
fn a_guest_whose_storage_is_lost_is_killed() {
    let bed = Bed::new(false);
    bed.hold();
    let mut guest = Guest::new();
    bed.guard(&guest.0).unwrap();
    let refusal = bed.ask(Request::Release { pool: POOL }).unwrap_err();
    assert!(refusal.to_string().contains("guests on pool"), "{refusal}");
    assert!(guest.is_alive());
    bed.unmount();
    eventually("the guest is killed", || !guest.is_alive());
    eventually("it is guarded no more", || bed.status().guests.is_empty());
    assert_eq!(bed.status().pools[0].lapses, 1);
    let mut another = Guest::new();
    let refusal = bed.guard(&another.0).unwrap_err();
    assert!(refusal.to_string().contains("has not been renewed in time"), "{refusal}");
    bed.mount();
    eventually("the lease is held again", || bed.status().pools[0].fresh);
    bed.guard(&another.0).unwrap();
    assert!(another.is_alive());
}

#[test]
fn a_keeper_that_was_killed_guards_on() {
    let mut bed = Bed::new(false);
    bed.hold();
    let mut guest = Guest::new();
    bed.guard(&guest.0).unwrap();
    let before = bed.record().unwrap();
    bed.restart();
    assert_eq!(bed.status().guests.len(), 1);
    eventually("the counter goes on", || bed.record().unwrap().counter > before.counter);
    // Asked again by an agent that does not know, it is the same guard.
    bed.guard(&guest.0).unwrap();
    assert!(guest.is_alive());
    bed.unmount();
    eventually("the guest is killed", || !guest.is_alive());
}

#[test]
fn a_guest_that_ends_by_itself_is_forgotten() {
    let bed = Bed::new(false);
    bed.hold();
    let mut guest = Guest::new();
    bed.guard(&guest.0).unwrap();
    guest.0.kill().unwrap();
    // Not reaped by its parent, it is a zombie, and gone all the same.
    eventually("it is guarded no more", || bed.status().guests.is_empty());
    assert!(!guest.is_alive());
}

#[test]
fn another_process_under_the_same_number_is_not_guarded() {
    let bed = Bed::new(false);
    bed.hold();
    let guest = Guest::new();
    let process = ProcessId { start_time: id(&guest.0).start_time + 1, ..id(&guest.0) };
    let request = Request::Guard {
        vm: GUEST,
        incarnation: 1,
        process,
        pools: BTreeSet::from([POOL]),
        under: BTreeMap::new(),
    };
    assert!(bed.ask(request).unwrap_err().to_string().contains("there is no process"));
    assert!(bed.status().guests.is_empty());
}

#[test]
fn there_is_one_keeper() {
    let bed = Bed::new(false);
    let second = start(&bed.dir.path().join("keeper.toml")).wait().unwrap();
    assert!(!second.success());
    assert!(client::status(&bed.socket()).is_ok());
}

#[test]
fn the_watchdog_is_fed_while_a_lease_is_held() {
    let bed = Bed::new(true);
    let fifo = bed.dir.path().join("watchdog");
    let reader = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    let mut heard = String::new();
    let hear = |heard: &mut String| {
        let mut part = [0; 64];
        if let Ok(read) = rustix::io::read(reader.as_fd(), &mut part) {
            heard.push_str(std::str::from_utf8(&part[..read]).unwrap());
        }
    };
    assert_eq!(bed.status().watchdog_timeout_ms, None);
    bed.hold();
    assert_eq!(bed.record().unwrap().watchdog_timeout_ms, Some(1_000));
    eventually("it is fed", || {
        hear(&mut heard);
        heard.len() > 3
    });
    bed.ask(Request::Release { pool: POOL }).unwrap();
    eventually("it may rest", || {
        hear(&mut heard);
        heard.ends_with('V')
    });
}

#[test]
fn what_is_no_request_is_refused() {
    let bed = Bed::new(false);
    let mut stream = std::os::unix::net::UnixStream::connect(bed.socket()).unwrap();
    std::io::Write::write_all(&mut stream, b"{\"hold\": 5}\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("{\"refused\""), "{answer}");
}
