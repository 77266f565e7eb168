//! Who leads, and who has a seat: what stands beside the store where several controllers share it.
//!
//! Its invariant: an office has an epoch, the revision that wrote the leader's record, and every
//! transaction of the leader carries the guard on it; being told of a loss late is harmless then.
//! Deliberately absent: what a leader does.

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Guard, Key, Member, Result, Revision};

/// The way into office.
#[async_trait]
pub trait Election: Send + Sync {
    /// Waits until this controller leads, writes the leader's record, and returns the office.
    ///
    /// # Errors
    /// `Unavailable` when the backend is stopped for good.
    async fn campaign(&self) -> Result<Leadership>;
}

/// An office, held until it is lost. Dropping it does not resign.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// The revision that wrote the leader's record: the fencing token.
    pub epoch: Revision,
    lost: watch::Receiver<bool>,
}

impl Leadership {
    /// For backends: an office that is lost when `lost` turns true or its sender is gone.
    pub fn new(epoch: Revision, lost: watch::Receiver<bool>) -> Leadership {
        Leadership { epoch, lost }
    }

    /// The guard that every transaction of this leader carries.
    pub fn guard(&self) -> Guard {
        Guard::Unchanged(Key::leader(), self.epoch)
    }

    /// Whether the office is lost already.
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Returns when the office is lost.
    pub async fn lost(&self) {
        // An error means that the sender is gone, and with it the one who could vouch for us.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }
}

/// The seats of the group; only a backend that is made of controllers has them.
#[async_trait]
pub trait Membership: Send + Sync {
    /// All seats, in the order of their ids.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn members(&self) -> Result<Vec<Member>>;

    /// Seats a controller that already runs with an empty data directory: as a learner first, and
    /// as a voter once it has caught up. Seating one that is seated with the same data is no
    /// change; with a new name or address these are rewritten.
    ///
    /// # Errors
    /// `Unavailable`; `Unknown` when the change may yet happen; `Invalid`.
    async fn add_member(&self, member: Member) -> Result<()>;

    /// Takes a seat away; one that is not there is no error.
    ///
    /// # Errors
    /// `Invalid` for the last voter; `Unavailable`; `Unknown`.
    async fn remove_member(&self, id: u64) -> Result<()>;

    /// Hands leadership to another voter and returns when that one leads.
    ///
    /// # Errors
    /// `Invalid` when `to` is not a voter; `Unavailable` when it did not take over in time.
    async fn transfer_leadership(&self, to: u64) -> Result<()>;
}
