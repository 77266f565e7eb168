//! One thread for each pool writes its record, because a write to a dead disk returns when it likes. The thread holds
//! the counter: it goes on from what the record says, so that it grows also over a keeper's restart.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use uuid::Uuid;

use crate::core::Renewal;
use crate::lease::{self, LeaseError, LeaseRecord};
use crate::protocol::{NodeId, PoolId};

/// How a write ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) renewal: Renewal,
    pub(crate) result: Result<(), LeaseError>,
}

/// Where outcomes go, and what wakes their reader.
#[derive(Debug, Clone)]
pub(crate) struct Outcomes {
    pub(crate) to: Sender<Outcome>,
    pub(crate) wake: Arc<OwnedFd>,
}

/// The writer of one pool's record. Dropped, its thread ends after the write that is under way.
#[derive(Debug)]
pub(crate) struct Writer {
    orders: Sender<Renewal>,
}

/// What of a record does not change.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) pool: PoolId,
    pub(crate) node: NodeId,
    pub(crate) path: PathBuf,
    pub(crate) boot_id: Uuid,
}

impl Writer {
    pub(crate) fn start(place: Place, outcomes: Outcomes) -> std::io::Result<Self> {
        let (orders, queue) = channel();
        let name = format!("pool {}", place.pool);
        thread::Builder::new().name(name).spawn(move || serve(&place, &queue, &outcomes))?;
        Ok(Self { orders })
    }

    pub(crate) fn write(&self, renewal: Renewal) {
        // The thread ends only after this end is dropped.
        let _ = self.orders.send(renewal);
    }
}

fn serve(place: &Place, queue: &Receiver<Renewal>, outcomes: &Outcomes) {
    let mut counter = None;
    for renewal in queue {
        let result = renew(place, &mut counter, &renewal);
        if outcomes.to.send(Outcome { renewal, result }).is_err() {
            return;
        }
        let _ = rustix::io::write(&outcomes.wake, &[0]);
    }
}

fn renew(place: &Place, counter: &mut Option<u64>, renewal: &Renewal) -> Result<(), LeaseError> {
    let last = match *counter {
        Some(last) => last,
        None => match lease::read(&place.path, place.node) {
            Ok(record) => record.map_or(0, |record| record.counter),
            // A record that nobody can read holds nobody back; a boot's first counter need only be new.
            Err(LeaseError::Unreadable { .. }) => crate::boot::BootMs::now().0,
            Err(error) => return Err(error),
        },
    };
    let next = last.wrapping_add(1);
    let record = LeaseRecord {
        node: place.node,
        boot_id: place.boot_id,
        counter: next,
        lease_ms: renewal.lease_ms,
        watchdog_timeout_ms: renewal.watchdog_timeout_ms,
        released: renewal.released,
    };
    // Counted even if the write fails: it may have reached the disk.
    *counter = Some(next);
    lease::write(&place.path, place.pool, &record)
}
