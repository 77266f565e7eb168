//! What a simulation may change in the product: which deliberate bug is in it, and where its fresh ids come from.
//!
//! Invariant: without the feature `armed`, which only the simulation asks for, no bug can be chosen and every id is
//! random, so that the compiler leaves nothing of this behind. Deliberately absent: everything else that a simulation
//! needs; time, storage and hypervisor have seams of their own.

use uuid::Uuid;

/// A deliberate bug: breaks one rule of the safety protocol, to show that the simulation would find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// A lost node is taken for fenced without evidence.
    EvacuateWithoutProof,
    /// Silence of a host without a watchdog is believed.
    SilenceWithoutWatchdog,
    /// A storage lease counts from when the answer came, not from when the renewal was sent.
    LeaseCountedFromReceipt,
    /// A new leader judges nodes before they could come to it.
    LeaderJudgesAtOnce,
    /// After a boot the agent starts what it ran before.
    StartFromLedger,
    /// A source that a broken move left standing goes on before the target has cleared.
    ResumeOnLostReply,
    /// A proof stays with a node that has come back, and counts at its next loss.
    ProofUsedTwice,
    /// A deposed leader goes on writing, and agents listen to it.
    DeposedLeader,
    /// A guest that the assignment does not name is destroyed.
    AbsenceIsACommand,
    /// A file that is missing is made again.
    MissingDiskMadeAgain,
    /// A deletion frees the addresses before the guest is gone.
    AddressFreedEarly,
    /// The brake holds for a rack that was planned for.
    BrakeStopsRack,
    /// The keeper takes a guest under a lease that was broken since its start was decided.
    BrokenHoldingTaken,
    /// A commit whose answer was lost is taken for done.
    UnknownIsDone,
    /// A deletion does not give back its agency's usage.
    UsageForgotten,
    /// A VM grows without a look at whether its node has room.
    NoRoomTaken,
    /// A BMC that takes the command to power off is believed without a look at the power.
    PowerOffUnread,
    /// A BMC is believed whatever machine it stands for.
    WrongMachineBelieved,
    /// A VM that is off is let go of without its local disks.
    DisksLeftBehind,
    /// A guest that libvirt lists no more is said to be gone, whether or not its process was reaped.
    GoneBeforeReaped,
}

impl Mutant {
    pub const ALL: [Self; 20] = [
        Self::EvacuateWithoutProof,
        Self::SilenceWithoutWatchdog,
        Self::LeaseCountedFromReceipt,
        Self::LeaderJudgesAtOnce,
        Self::StartFromLedger,
        Self::ResumeOnLostReply,
        Self::ProofUsedTwice,
        Self::DeposedLeader,
        Self::AbsenceIsACommand,
        Self::MissingDiskMadeAgain,
        Self::AddressFreedEarly,
        Self::BrakeStopsRack,
        Self::BrokenHoldingTaken,
        Self::UnknownIsDone,
        Self::UsageForgotten,
        Self::NoRoomTaken,
        Self::PowerOffUnread,
        Self::WrongMachineBelieved,
        Self::DisksLeftBehind,
        Self::GoneBeforeReaped,
    ];
}

#[cfg(not(feature = "armed"))]
mod plain {
    use super::{Mutant, Uuid};

    /// Whether this bug is in the product: never.
    #[inline(always)]
    pub const fn has(_: Mutant) -> bool {
        false
    }

    /// A fresh id.
    pub fn fresh_id() -> Uuid {
        Uuid::new_v4()
    }
}

#[cfg(feature = "armed")]
mod armed {
    use std::cell::Cell;

    use super::{Mutant, Uuid};

    thread_local! {
        static CHOSEN: Cell<Option<Mutant>> = const { Cell::new(None) };
        static DRAWN: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// Whether this bug is in the product, on this thread.
    pub fn has(mutant: Mutant) -> bool {
        CHOSEN.get() == Some(mutant)
    }

    /// Puts a bug into the product, on this thread; none takes it out.
    pub fn choose(mutant: Option<Mutant>) {
        CHOSEN.set(mutant);
    }

    /// Has fresh ids drawn from a seed from here on, on this thread; none makes them random.
    pub fn draw_ids(seed: Option<u64>) {
        DRAWN.set(seed);
    }

    /// A fresh id.
    pub fn fresh_id() -> Uuid {
        let Some(state) = DRAWN.get() else { return Uuid::new_v4() };
        let (high, state) = split_mix(state);
        let (low, state) = split_mix(state);
        DRAWN.set(Some(state));
        uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes()).into_uuid()
    }

    /// Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (2014): a number and the next state.
    pub fn split_mix(state: u64) -> (u64, u64) {
        let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31), state)
    }
}

#[cfg(feature = "armed")]
pub use armed::{choose, draw_ids, fresh_id, has, split_mix};
#[cfg(not(feature = "armed"))]
pub use plain::{fresh_id, has};
