//! The connection to libvirtd: one thread that opens it, waits until it is lost, and opens it again.
//!
//! Invariants: a call is made on a connection that stood when it began, on a thread where it may block; while none
//! stands every call answers `Disconnected` at once; each loss and each return is an event. Deliberately absent:
//! what is called.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, oneshot};
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error;

use super::super::{DomainEvent, HypervisorError, Result};
use super::errors::Fault;
use super::ffi;

/// A libvirtd that does not answer for three times five seconds is taken as gone.
const KEEPALIVE_INTERVAL_S: i32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);

/// How long `open` waits for the first attempt.
const FIRST_ATTEMPT: Duration = Duration::from_secs(10);

/// How often a connection is looked at that nobody reported as lost.
const CHECK: Duration = Duration::from_secs(10);

/// Calls that wait for libvirtd at the same time; more wait for their turn.
const CALLS: usize = 32;

/// Events kept for a receiver that lags.
const EVENTS: usize = 4096;

struct Open {
    _subscriptions: ffi::Subscriptions,
    connect: Connect,
}

type Current = Arc<RwLock<std::result::Result<Arc<Open>, String>>>;

enum Wake {
    Closed,
    Stop,
}

/// The connection, whether it stands or not.
pub struct Link {
    current: Current,
    events: broadcast::Sender<DomainEvent>,
    calls: Arc<Semaphore>,
    wake: mpsc::Sender<Wake>,
    opened: Arc<AtomicU64>,
}

impl Link {
    /// Counts the connections so far: what was read of the host under another number may be out of date.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Acquire)
    }

    /// Starts to connect, and returns when the first attempt has succeeded, failed or taken ten seconds.
    pub async fn open(uri: &str) -> Result<Link> {
        ffi::start()
            .map_err(|error| HypervisorError::Disconnected { message: error.message().to_owned() })?;
        let (events, _) = broadcast::channel(EVENTS);
        let (wake, woken) = mpsc::channel();
        let current: Current = Arc::new(RwLock::new(Err("not connected yet".to_owned())));
        let opened = Arc::new(AtomicU64::new(0));
        let (first, attempted) = oneshot::channel();
        let keeper = Keeper {
            uri: uri.to_owned(),
            current: Arc::clone(&current),
            events: events.clone(),
            wake: wake.clone(),
            opened: Arc::clone(&opened),
        };
        std::thread::Builder::new()
            .name("libvirt-link".to_owned())
            .spawn(move || keeper.run(&woken, first))
            .map_err(|error| HypervisorError::Disconnected { message: error.to_string() })?;
        // Whatever has come of it, the calls will say so.
        let _ = tokio::time::timeout(FIRST_ATTEMPT, attempted).await;
        Ok(Link { current, events, calls: Arc::new(Semaphore::new(CALLS)), wake, opened })
    }

    pub fn events(&self) -> broadcast::Receiver<DomainEvent> {
        self.events.subscribe()
    }

    /// Runs `work` on a blocking thread. `vm` is who the call is about, for `NotFound`. The work goes on when the
    /// future is dropped.
    pub async fn call<T, F>(&self, vm: Option<Uuid>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connect) -> std::result::Result<T, Fault> + Send + 'static,
    {
        let away = |message: String| HypervisorError::Disconnected { message };
        let permit =
            Arc::clone(&self.calls).acquire_owned().await.map_err(|error| away(error.to_string()))?;
        let open = self.current.read().unwrap_or_else(PoisonError::into_inner).clone().map_err(away)?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&open.connect).map_err(|fault| {
                let connected = open.connect.is_alive().unwrap_or(false);
                fault.explain(vm, connected)
            })
        })
        .await
        .unwrap_or_else(|error| Err(away(error.to_string())))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The thread may be gone already.
        let _ = self.wake.send(Wake::Stop);
    }
}

struct Keeper {
    uri: String,
    current: Current,
    events: broadcast::Sender<DomainEvent>,
    wake: mpsc::Sender<Wake>,
    opened: Arc<AtomicU64>,
}

impl Keeper {
    fn run(self, woken: &mpsc::Receiver<Wake>, first: oneshot::Sender<()>) {
        let mut first = Some(first);
        let mut backoff = FIRST_BACKOFF;
        loop {
            let opened = self.connect();
            let up = opened.is_ok();
            match opened {
                Ok(open) => {
                    let open = Arc::new(open);
                    self.opened.fetch_add(1, Ordering::AcqRel);
                    self.set(Ok(Arc::clone(&open)));
                    self.tell(DomainEvent::ConnectionUp);
                    tracing::info!("connected to libvirt");
                    backoff = FIRST_BACKOFF;
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                    let stop = wait_for_loss(&open.connect, woken);
                    self.set(Err("the connection to libvirt was lost".to_owned()));
                    if stop {
                        return;
                    }
                    tracing::warn!("lost the connection to libvirt");
                    self.tell(DomainEvent::ConnectionLost);
                }
                Err(error) => {
                    tracing::debug!(error = error.message(), "cannot connect to libvirt");
                    self.set(Err(error.message().to_owned()));
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                }
            }
            if !up {
                // What closed callbacks of earlier connections still say does not matter here.
                match woken.recv_timeout(backoff) {
                    Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Ok(Wake::Closed) | Err(mpsc::RecvTimeoutError::Timeout) => {}
                }
                backoff = (backoff * 2).min(LAST_BACKOFF);
            }
        }
    }

    fn connect(&self) -> std::result::Result<Open, Error> {
        let connect = Connect::open(Some(&self.uri))?;
        connect.set_keep_alive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)?;
        let events = self.events.clone();
        let sink: ffi::Sink = Arc::new(move |event| {
            // Nobody may be listening.
            let _ = events.send(event);
        });
        let wake = self.wake.clone();
        let closed: ffi::Closed = Arc::new(move || {
            let _ = wake.send(Wake::Closed);
        });
        let subscriptions = ffi::subscribe(&connect, &sink, &closed)?;
        Ok(Open { _subscriptions: subscriptions, connect })
    }

    fn set(&self, state: std::result::Result<Arc<Open>, String>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn tell(&self, event: DomainEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }
}

/// Returns true when it is time to stop.
fn wait_for_loss(connect: &Connect, woken: &mpsc::Receiver<Wake>) -> bool {
    loop {
        match woken.recv_timeout(CHECK) {
            Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return true,
            Ok(Wake::Closed) | Err(mpsc::RecvTimeoutError::Timeout) => {
                // A word of an earlier connection may arrive late: only the present one counts.
                if !connect.is_alive().unwrap_or(false) {
                    return false;
                }
            }
        }
    }
}
