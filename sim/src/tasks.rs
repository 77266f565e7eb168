//! One controller's tasks and clock, on one thread and in one order: what the product awaits is polled here, when it is
//! woken, first come first served, and of those that are woken together the first that began. A controller that is paused
//! is simply not run.
//!
//! Invariant: what happens follows from the order of wakes alone; no clock of the machine and no other thread has a part
//! in it.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tamdao_controller::clock::Clock;
use tamdao_model::TimeMs;
use tokio::time::Instant;

/// What time of day it is when a history begins.
const DAWN_MS: u64 = 1_700_000_000_000;
/// Polls at one moment; more is a task that wakes itself for ever.
const POLLS: usize = 200_000;

type Woken = Arc<Mutex<Vec<u64>>>;

struct Bell {
    task: u64,
    woken: Woken,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        if !self.rung.swap(true, Ordering::Relaxed) {
            self.woken.lock().expect("no holder of the lock panics").push(self.task);
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Tasks {
    tasks: BTreeMap<u64, (BoxFuture<'static, ()>, Arc<Bell>)>,
    woken: Woken,
    next: u64,
}

impl Tasks {
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> u64 {
        self.next += 1;
        let bell =
            Arc::new(Bell { task: self.next, woken: self.woken.clone(), rung: AtomicBool::new(false) });
        bell.clone().wake();
        self.tasks.insert(self.next, (Box::pin(task), bell));
        self.next
    }

    pub fn cancel(&mut self, task: u64) {
        self.tasks.remove(&task);
    }

    pub fn has(&self, task: u64) -> bool {
        self.tasks.contains_key(&task)
    }

    /// Polls until nobody is woken any more. Says whether anybody was.
    pub fn run(&mut self) -> bool {
        let mut queue = VecDeque::new();
        for polls in 0..POLLS {
            // What one poll woke is put in order: tokio's watch wakes its many waiters in an order that it draws.
            let mut woken = std::mem::take(&mut *self.woken.lock().expect("no holder of the lock panics"));
            woken.sort_unstable();
            queue.extend(woken);
            let Some(id) = queue.pop_front() else { return polls > 0 };
            let Some((task, bell)) = self.tasks.get_mut(&id) else { continue };
            bell.rung.store(false, Ordering::Relaxed);
            let waker = Waker::from(bell.clone());
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                self.tasks.remove(&id);
            }
        }
        panic!("a task wakes itself for ever");
    }
}

#[derive(Default)]
struct Timers {
    next: u64,
    waiting: BTreeMap<(u64, u64), Waker>,
}

/// A controller's clock, which may be fast or slow and wrong about the time of day.
pub struct SimClock {
    now_ms: AtomicU64,
    skew_ms: u64,
    timers: Arc<Mutex<Timers>>,
}

impl SimClock {
    pub fn new(skew_ms: u64) -> Self {
        Self { now_ms: AtomicU64::new(0), skew_ms, timers: Arc::default() }
    }

    /// Goes on to this moment of its own and wakes those who have waited for it.
    pub fn advance(&self, now_ms: u64) {
        self.now_ms.fetch_max(now_ms, Ordering::Relaxed);
        let mut timers = self.timers.lock().expect("no holder of the lock panics");
        let later = timers.waiting.split_off(&(now_ms + 1, 0));
        for waker in std::mem::replace(&mut timers.waiting, later).into_values() {
            waker.wake();
        }
    }

    /// When the next one waits for, by its own time.
    pub fn due(&self) -> Option<u64> {
        let timers = self.timers.lock().expect("no holder of the lock panics");
        timers.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }
}

/// A moment from which all moments of the simulation count; only differences are ever looked at.
fn dawn() -> Instant {
    static DAWN: OnceLock<Instant> = OnceLock::new();
    *DAWN.get_or_init(Instant::now)
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> TimeMs {
        TimeMs(DAWN_MS + self.skew_ms + self.now_ms())
    }

    fn instant(&self) -> Instant {
        dawn() + Duration::from_millis(self.now_ms())
    }

    async fn sleep(&self, duration: Duration) {
        let due = self.now_ms() + u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4).max(1);
        Sleep { due, key: None, timers: self.timers.clone() }.await;
    }
}

struct Sleep {
    due: u64,
    /// In the list of timers; none before the first poll.
    key: Option<(u64, u64)>,
    timers: Arc<Mutex<Timers>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timers = self.timers.clone();
        let mut timers = timers.lock().expect("no holder of the lock panics");
        match self.key {
            Some(key) if !timers.waiting.contains_key(&key) => Poll::Ready(()),
            Some(key) => {
                timers.waiting.insert(key, context.waker().clone());
                Poll::Pending
            }
            None => {
                timers.next += 1;
                let key = (self.due, timers.next);
                timers.waiting.insert(key, context.waker().clone());
                self.key = Some(key);
                Poll::Pending
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.lock().expect("no holder of the lock panics").waiting.remove(&key);
        }
    }
}
