//! How long one decision takes, on one thread, by the thread's own clock: what else the machine does is not counted.
//! A decision is one `place`; a rate counts the `assign` too. Between two of them a random VM leaves, so that the
//! fleet stays as full as it is. Deliberately absent: the controller's part of a placement, which is a commit.

use std::time::Duration;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use tamdao_scheduler::place::place;

use crate::fleet::{Fleet, Kind};

/// Decisions of one case, and how many before are not counted.
pub(crate) const DECISIONS: usize = 20_000;
const WARM_UP: usize = 500;

/// What one fleet showed.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub per_second: f64,
    pub refused: usize,
    pub decisions: usize,
}

/// The processor time of this thread so far. Asking costs about a quarter of a microsecond.
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Measures one fleet.
pub fn measure(kind: Kind, nodes: usize, percent: u64) -> Result<Speed> {
    let mut fleet = Fleet::new(kind, nodes, percent)?;
    let mut took = Vec::with_capacity(DECISIONS);
    let mut whole = Duration::ZERO;
    let mut refused = 0;
    for n in 0..WARM_UP + DECISIONS {
        fleet.leave()?;
        let vm = fleet.vm();
        let begin = now();
        let answer = place(&fleet.view, &vm);
        let decided = now() - begin;
        if let Ok(placement) = &answer {
            fleet.view.assign(placement.node, vm.clone())?;
            fleet.placed.push((placement.node, vm.id));
        }
        if n >= WARM_UP {
            whole += now() - begin;
            took.push(decided);
            refused += usize::from(answer.is_err());
        }
    }
    Ok(Speed::of(took, whole, refused))
}

impl Speed {
    /// Of the time of each decision, and of all with what they left behind.
    pub(crate) fn of(mut took: Vec<Duration>, whole: Duration, refused: usize) -> Self {
        took.sort_unstable();
        let at = |per_mille: usize| took[(took.len() * per_mille / 1_000).min(took.len() - 1)];
        Self {
            p50: at(500),
            p99: at(990),
            p999: at(999),
            per_second: took.len() as f64 / whole.as_secs_f64(),
            refused,
            decisions: took.len(),
        }
    }
}
