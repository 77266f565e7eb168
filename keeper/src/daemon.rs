//! The process around the decision: one thread that counts time and never touches a disk that could hang, and one
//! writer for each pool. It is killed like any process; what follows is the watchdog's, or the next keeper's, who goes
//! on from the state. Deliberately absent: an orderly end. A keeper that guards nothing has nothing to say goodbye to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::boot::{self, BootMs};
use crate::config::Config;
use crate::core::{Keeper, Renewal};
use crate::process::Process;
use crate::protocol::{GuestStatus, LINE_MAX, PoolId, Reply, Request, Status, VmId};
use crate::state::{GuardedGuest, HeldPool, State};
use crate::storage::{Outcome, Outcomes, Place, Writer};
use crate::watchdog::Watchdog;

/// More agents than one, and a person who looks, are not there at once.
const CLIENTS_MAX: usize = 16;

/// Guards until it is killed.
pub fn run(config: &Config) -> Result<Infallible> {
    let mut daemon = Daemon::open(config)?;
    loop {
        daemon.act()?;
        daemon.wait()?;
    }
}

struct Daemon<'a> {
    config: &'a Config,
    keeper: Keeper,
    state: State,
    writers: BTreeMap<PoolId, Writer>,
    processes: BTreeMap<VmId, Process>,
    watchdog: Option<Watchdog>,
    fed_at: BootMs,
    listener: UnixListener,
    clients: Vec<Client>,
    outcomes: Outcomes,
    done: Receiver<Outcome>,
    woken: OwnedFd,
    /// Held while this process lives, so that there is one keeper.
    _lock: File,
}

struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

impl<'a> Daemon<'a> {
    fn open(config: &'a Config) -> Result<Self> {
        let directory = config.socket.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        let lock_path = config.state.with_extension("lock");
        let lock = File::create(&lock_path).with_context(|| format!("{}", lock_path.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("another keeper guards this host")?;
        if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
            tracing::warn!(error = %error, "memory is not locked, so that swapping may hold the keeper up");
        }
        let boot_id = boot::boot_id(&config.boot_id_file)
            .with_context(|| format!("{}", config.boot_id_file.display()))?;
        let state = State::load(&config.state, boot_id)
            .with_context(|| format!("{}: remove it only if no guest runs", config.state.display()))?;
        let (woken, wake) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let (to, done) = channel();
        let mut daemon = Self {
            config,
            keeper: Keeper::new(config.timeout_ms()),
            state,
            writers: BTreeMap::new(),
            processes: BTreeMap::new(),
            watchdog: None,
            fed_at: BootMs::default(),
            listener: listen(&config.socket)?,
            clients: Vec::new(),
            outcomes: Outcomes { to, wake: Arc::new(wake) },
            done,
            woken,
            _lock: lock,
        };
        daemon.go_on()?;
        tracing::info!(
            pools = daemon.state.pools.len(),
            guests = daemon.processes.len(),
            watchdog = ?config.watchdog,
            "the keeper is ready"
        );
        Ok(daemon)
    }

    /// Takes up what an earlier keeper of this boot held and guarded.
    fn go_on(&mut self) -> Result<()> {
        let now = BootMs::now();
        for (pool, held) in self.state.pools.clone() {
            self.arm()?;
            self.keeper.resume(pool, held.lease_ms, held.renewed_at, held.held_since, now)?;
            self.start_writer(pool, &held)?;
        }
        let guests = std::mem::take(&mut self.state.guests);
        for (vm, guest) in guests {
            // A process that is gone needs no guard.
            if let Ok(process) = Process::open(guest.process) {
                self.keeper.readopt(vm, guest.pools.clone());
                self.processes.insert(vm, process);
                self.state.guests.insert(vm, guest);
            }
        }
        Ok(())
    }

    /// Does what the time asks for.
    fn act(&mut self) -> Result<()> {
        let now = BootMs::now();
        let step = self.keeper.tick(now);
        for renewal in step.renew {
            if let Some(writer) = self.writers.get(&renewal.pool) {
                writer.write(renewal);
            }
        }
        for vm in step.kill {
            tracing::error!(vm = %vm, "killing a guest whose storage lease was not renewed in time");
            if let Some(process) = self.processes.get(&vm) {
                process.kill();
            }
        }
        let every_ms = self.config.watchdog_timeout_ms / 4;
        if step.feed && now.since(self.fed_at) >= every_ms {
            self.feed(now);
        }
        Ok(())
    }

    fn feed(&mut self, now: BootMs) {
        let Some(watchdog) = &mut self.watchdog else { return };
        match watchdog.feed() {
            Ok(()) => self.fed_at = now,
            Err(error) => {
                tracing::error!(error = %error, "the watchdog cannot be fed; its silence proves nothing from now on");
                self.watchdog = None;
                self.keeper.lose_watchdog();
            }
        }
    }

    /// Sleeps until something happens or the next tick is due, and takes in what happened.
    fn wait(&mut self) -> Result<()> {
        let ready = {
            let mut fds =
                vec![PollFd::new(&self.woken, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            fds.extend(self.processes.values().map(|process| PollFd::new(process, PollFlags::IN)));
            fds.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN)));
            let period_ms = i64::try_from(self.keeper.period_ms()).unwrap_or(500);
            let timeout = Timespec { tv_sec: period_ms / 1_000, tv_nsec: period_ms % 1_000 * 1_000_000 };
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>()
        };
        if ready[0] {
            self.take_outcomes()?;
        }
        let guests: Vec<VmId> = self.processes.keys().copied().collect();
        let gone = guests.iter().zip(&ready[2..]).filter(|(_, gone)| **gone).map(|(vm, _)| *vm);
        self.reap(gone.collect())?;
        let mut clients = std::mem::take(&mut self.clients);
        let mut asking = ready[2 + guests.len()..].iter();
        clients.retain_mut(|client| !asking.next().is_some_and(|ready| *ready) || self.serve(client));
        self.clients = clients;
        if ready[1] {
            self.accept();
        }
        Ok(())
    }

    fn take_outcomes(&mut self) -> Result<()> {
        let mut drain = [0; 64];
        while rustix::io::read(&self.woken, &mut drain).is_ok_and(|read| read > 0) {}
        while let Ok(Outcome { renewal, result }) = self.done.try_recv() {
            if let Err(error) = &result {
                tracing::warn!(pool = %renewal.pool, error = %error, "a storage lease was not renewed");
            }
            self.keeper.written(&renewal, result.is_ok(), BootMs::now());
            if result.is_ok() {
                self.note(&renewal)?;
            }
        }
        Ok(())
    }

    /// Notes a good renewal for the next keeper.
    fn note(&mut self, renewal: &Renewal) -> Result<()> {
        let held = self.keeper.pools(BootMs::now());
        let Some(status) = held.iter().find(|pool| pool.pool == renewal.pool) else {
            return self.forget(renewal.pool);
        };
        if let Some(pool) = self.state.pools.get_mut(&renewal.pool) {
            pool.renewed_at = (!renewal.released).then_some(renewal.sent_at);
            pool.held_since = status.held_since;
        }
        self.save()
    }

    /// A lease was given back.
    fn forget(&mut self, pool: PoolId) -> Result<()> {
        self.writers.remove(&pool);
        self.state.pools.remove(&pool);
        tracing::info!(pool = %pool, "the storage lease was given back");
        // With the last one the watchdog may rest.
        if self.keeper.is_idle()
            && let Some(watchdog) = self.watchdog.take()
        {
            watchdog.disarm().context("the watchdog cannot be disarmed")?;
        }
        self.save()
    }

    fn reap(&mut self, gone: Vec<VmId>) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        for vm in gone {
            tracing::info!(vm = %vm, "a guarded guest is gone");
            self.keeper.reaped(vm);
            self.processes.remove(&vm);
            self.state.guests.remove(&vm);
        }
        self.save()
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
            self.clients.push(Client { stream, line: Vec::new() });
        }
    }

    /// Takes what a client says and answers it; false when the client is done.
    fn serve(&mut self, client: &mut Client) -> bool {
        let mut part = [0; 4096];
        match client.stream.read(&mut part) {
            Ok(0) => return false,
            Ok(read) => client.line.extend_from_slice(&part[..read]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        if client.line.len() > LINE_MAX {
            return false;
        }
        while let Some(end) = client.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.line.drain(..=end).collect();
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(request),
                Err(error) => refused(&error),
            };
            let Ok(mut answer) = serde_json::to_vec(&reply) else { return false };
            answer.push(b'\n');
            // An answer fits into a socket's buffer; who does not read it is gone.
            if client.stream.write_all(&answer).is_err() {
                return false;
            }
        }
        true
    }

    fn answer(&mut self, request: Request) -> Reply {
        let done = match request {
            Request::Status => return Reply::Status(self.status()),
            Request::Hold { pool, node, path, lease_ms } => {
                self.hold(pool, HeldPool { node, path, lease_ms, renewed_at: None, held_since: None })
            }
            Request::Guard { vm, incarnation, process, pools, under } => {
                self.guard(vm, GuardedGuest { incarnation, process, pools }, &under)
            }
            Request::Release { pool } => {
                self.keeper.release(pool, BootMs::now()).map_err(anyhow::Error::from)
            }
        };
        done.map_or_else(|error| refused(&format!("{error:#}")), |()| Reply::Done)
    }

    fn hold(&mut self, pool: PoolId, wanted: HeldPool) -> Result<()> {
        if let Some(held) = self.state.pools.get_mut(&pool) {
            anyhow::ensure!(
                (held.node, &held.path) == (wanted.node, &wanted.path),
                "pool {pool} is held already at {}, for node {}",
                held.path.display(),
                held.node
            );
            self.keeper.hold(pool, wanted.lease_ms, BootMs::now())?;
            held.lease_ms = wanted.lease_ms;
            return self.save();
        }
        self.arm()?;
        self.keeper.hold(pool, wanted.lease_ms, BootMs::now())?;
        self.start_writer(pool, &wanted)?;
        self.state.pools.insert(pool, wanted);
        self.save()
    }

    fn guard(&mut self, vm: VmId, guest: GuardedGuest, under: &BTreeMap<PoolId, BootMs>) -> Result<()> {
        if self.state.guests.get(&vm) == Some(&guest) {
            return Ok(());
        }
        let process = Process::open(guest.process)?;
        self.keeper.guard(vm, guest.pools.clone(), under, BootMs::now())?;
        self.processes.insert(vm, process);
        self.state.guests.insert(vm, guest);
        self.save()
    }

    fn arm(&mut self) -> Result<()> {
        if let (Some(path), None) = (&self.config.watchdog, &self.watchdog) {
            let armed = Watchdog::arm(path, self.config.watchdog_timeout_ms);
            self.watchdog =
                Some(armed.with_context(|| format!("the watchdog {} cannot be armed", path.display()))?);
            self.fed_at = BootMs::now();
        }
        Ok(())
    }

    fn start_writer(&mut self, pool: PoolId, held: &HeldPool) -> Result<()> {
        let place = Place { pool, node: held.node, path: held.path.clone(), boot_id: self.state.boot_id };
        self.writers.insert(pool, Writer::start(place, self.outcomes.clone())?);
        Ok(())
    }

    fn status(&self) -> Status {
        let guests = self.state.guests.iter().map(|(vm, guest)| GuestStatus {
            vm: *vm,
            incarnation: guest.incarnation,
            process: guest.process,
            pools: guest.pools.clone(),
            dying: self.keeper.is_dying(*vm),
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.state.boot_id,
            watchdog_timeout_ms: self.watchdog.as_ref().map(|_| self.config.watchdog_timeout_ms),
            pools: self.keeper.pools(BootMs::now()),
            guests: guests.collect(),
        }
    }

    fn save(&self) -> Result<()> {
        self.state.save(&self.config.state).with_context(|| format!("{}", self.config.state.display()))
    }
}

fn listen(socket: &Path) -> Result<UnixListener> {
    // A socket that an earlier keeper left; the lock says that there is no other.
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("{}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn refused(error: &dyn std::fmt::Display) -> Reply {
    Reply::Refused { message: error.to_string() }
}
