//! What the keeper decides, as a function of what happened and of the time: when to renew, whom to kill, whether the
//! watchdog may still be fed. Times count from the *sending* of the last renewal that succeeded, since that is the
//! latest moment of which a reader of the record can be sure.
//!
//! With a lease of L: at 2/3 L without a renewal the pool's guests are killed; while one of them is not reaped at
//! 5/6 L the watchdog starves, and its timeout is at most L/6, so that at L nothing runs. The invariant: at every
//! tick each guest that is not being killed has all its pools renewed within 2/3 L. Deliberately absent: I/O, clocks
//! and processes.

use std::collections::{BTreeMap, BTreeSet};

use tamdao_seams::{Mutant, has};

use crate::boot::BootMs;
use crate::protocol::{PoolId, PoolStatus, VmId};

/// A shorter lease than this leaves no time for anything.
pub const LEASE_MIN_MS: u64 = 600;
pub const LEASE_MAX_MS: u64 = 600_000;

/// Why the keeper does not do what it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a lease of {lease_ms} ms is not between {LEASE_MIN_MS} and {LEASE_MAX_MS} ms")]
    LeaseOutOfRange { lease_ms: u64 },
    #[error(
        "the watchdog takes {timeout_ms} ms to fire, and a lease of {lease_ms} ms allows it {most_ms} ms"
    )]
    WatchdogTooSlow { timeout_ms: u64, lease_ms: u64, most_ms: u64 },
    #[error("no lease is held on pool {0}")]
    NotHeld(PoolId),
    #[error("the lease on pool {0} has not been renewed in time")]
    Lapsed(PoolId),
    #[error("the lease on pool {0} has lapsed since the guest was to begin under it")]
    Broken(PoolId),
    #[error("vm {0} is guarded already, as another process")]
    AlreadyGuarded(VmId),
    #[error("guests on pool {pool} are still there: {guests}")]
    GuestsLeft { pool: PoolId, guests: usize },
}

/// One write of a pool's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    pub pool: PoolId,
    pub lease_ms: u64,
    pub sent_at: BootMs,
    /// Of an armed watchdog.
    pub watchdog_timeout_ms: Option<u64>,
    /// The last one: the record then says that nothing is held.
    pub released: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    pub renew: Vec<Renewal>,
    /// To be killed, and said again until they are reaped.
    pub kill: Vec<VmId>,
    pub feed: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Keeper {
    /// None where there is no watchdog: then guests are killed just so, and nobody may trust the silence.
    watchdog_timeout_ms: Option<u64>,
    leases: BTreeMap<PoolId, Lease>,
    guests: BTreeMap<VmId, Guest>,
}

#[derive(Debug)]
struct Lease {
    /// What readers of the record may count with: never more than what is written there.
    lease_ms: u64,
    wanted_ms: u64,
    renewed_at: Option<BootMs>,
    /// When the first renewal of the present unbroken holding was sent.
    held_since: Option<BootMs>,
    under_way: Option<Renewal>,
    next_at: BootMs,
    lapsed: bool,
    lapses: u64,
    releasing: bool,
}

#[derive(Debug)]
struct Guest {
    pools: BTreeSet<PoolId>,
    dying: bool,
}

impl Lease {
    /// How long ago the last good renewal was sent; none before the first.
    fn age(&self, now: BootMs) -> Option<u64> {
        Some(now.since(self.renewed_at?))
    }

    fn is_fresh(&self, now: BootMs) -> bool {
        self.age(now).is_some_and(|age| age < kill_after(self.lease_ms))
    }
}

fn kill_after(lease_ms: u64) -> u64 {
    lease_ms * 2 / 3
}

fn starve_after(lease_ms: u64) -> u64 {
    lease_ms * 5 / 6
}

impl Keeper {
    pub fn new(watchdog_timeout_ms: Option<u64>) -> Self {
        Self { watchdog_timeout_ms, ..Self::default() }
    }

    /// Wants a lease on a pool. Asked again with another length, the shorter counts until a renewal has said so.
    pub fn hold(&mut self, pool: PoolId, lease_ms: u64, now: BootMs) -> Result<(), Refusal> {
        if !(LEASE_MIN_MS..=LEASE_MAX_MS).contains(&lease_ms) {
            return Err(Refusal::LeaseOutOfRange { lease_ms });
        }
        let most_ms = lease_ms / 6;
        if let Some(timeout_ms) = self.watchdog_timeout_ms.filter(|timeout| *timeout > most_ms) {
            return Err(Refusal::WatchdogTooSlow { timeout_ms, lease_ms, most_ms });
        }
        let lease = self.leases.entry(pool).or_insert(Lease {
            lease_ms,
            wanted_ms: lease_ms,
            renewed_at: None,
            held_since: None,
            under_way: None,
            next_at: now,
            lapsed: false,
            lapses: 0,
            releasing: false,
        });
        if lease.wanted_ms != lease_ms {
            lease.wanted_ms = lease_ms;
            lease.lease_ms = lease.lease_ms.min(lease_ms);
            lease.next_at = now;
        }
        if lease.releasing {
            lease.releasing = false;
            lease.next_at = now;
        }
        Ok(())
    }

    /// Takes up what an earlier keeper of this boot held; `renewed_at` and `held_since` are what it last knew.
    pub fn resume(
        &mut self,
        pool: PoolId,
        lease_ms: u64,
        renewed_at: Option<BootMs>,
        held_since: Option<BootMs>,
        now: BootMs,
    ) -> Result<(), Refusal> {
        self.hold(pool, lease_ms, now)?;
        if let Some(lease) = self.leases.get_mut(&pool) {
            lease.renewed_at = renewed_at;
            lease.held_since = held_since;
        }
        Ok(())
    }

    /// Guards a guest from now on; it must not have run before. `under` are the holdings that must not have been broken
    /// since it was decided that it may run.
    pub fn guard(
        &mut self,
        vm: VmId,
        pools: BTreeSet<PoolId>,
        under: &BTreeMap<PoolId, BootMs>,
        now: BootMs,
    ) -> Result<(), Refusal> {
        if self.guests.contains_key(&vm) {
            return Err(Refusal::AlreadyGuarded(vm));
        }
        for pool in &pools {
            let lease =
                self.leases.get(pool).filter(|lease| !lease.releasing).ok_or(Refusal::NotHeld(*pool))?;
            if !lease.is_fresh(now) {
                return Err(Refusal::Lapsed(*pool));
            }
            let broken = under.get(pool).is_some_and(|since| lease.held_since != Some(*since));
            if broken && !has(Mutant::BrokenHoldingTaken) {
                return Err(Refusal::Broken(*pool));
            }
        }
        self.guests.insert(vm, Guest { pools, dying: false });
        Ok(())
    }

    /// Takes up a guest that an earlier keeper of this boot guarded; what it did not renew in time kills it.
    pub fn readopt(&mut self, vm: VmId, pools: BTreeSet<PoolId>) {
        self.guests.insert(vm, Guest { pools, dying: false });
    }

    /// The guest's process is gone.
    pub fn reaped(&mut self, vm: VmId) {
        self.guests.remove(&vm);
    }

    /// Gives a pool's lease back, which its record then says.
    pub fn release(&mut self, pool: PoolId, now: BootMs) -> Result<(), Refusal> {
        let guests = self.guests.values().filter(|guest| guest.pools.contains(&pool)).count();
        if guests > 0 {
            return Err(Refusal::GuestsLeft { pool, guests });
        }
        let lease = self.leases.get_mut(&pool).ok_or(Refusal::NotHeld(pool))?;
        lease.releasing = true;
        // From here on the record may say released, even if its write is said to have failed.
        lease.renewed_at = None;
        lease.held_since = None;
        lease.next_at = now;
        Ok(())
    }

    /// How a write of the record ended.
    pub fn written(&mut self, renewal: &Renewal, succeeded: bool, now: BootMs) {
        let Some(lease) = self.leases.get_mut(&renewal.pool) else { return };
        lease.under_way = None;
        if !succeeded {
            lease.next_at = now.plus(renewal.lease_ms / 60);
            return;
        }
        if renewal.released {
            if lease.releasing {
                self.leases.remove(&renewal.pool);
            } else {
                // Wanted again meanwhile; the record says released until the next write.
                lease.next_at = now;
            }
            return;
        }
        let unbroken = lease.held_since.filter(|_| !lease.lapsed && lease.is_fresh(now));
        // What is being given back is not held any more, whatever write comes through.
        let counts_from = if has(Mutant::LeaseCountedFromReceipt) { now } else { renewal.sent_at };
        lease.renewed_at = (!lease.releasing).then_some(counts_from);
        lease.held_since = lease.renewed_at.map(|sent_at| unbroken.unwrap_or(sent_at));
        lease.lease_ms = renewal.lease_ms.min(lease.wanted_ms);
        lease.next_at = match renewal.lease_ms == lease.wanted_ms && !lease.releasing {
            true => renewal.sent_at.plus(renewal.lease_ms / 6),
            false => now,
        };
        lease.lapsed = !lease.is_fresh(now);
    }

    /// What the time asks for. To be called at least every [`Keeper::period_ms`].
    pub fn tick(&mut self, now: BootMs) -> Step {
        let mut step = Step { feed: true, ..Step::default() };
        let watchdog_timeout_ms = self.watchdog_timeout_ms;
        for (pool, lease) in &mut self.leases {
            if !lease.lapsed && lease.renewed_at.is_some() && !lease.is_fresh(now) {
                lease.lapsed = true;
                lease.lapses += 1;
            }
            if lease.under_way.is_none() && lease.next_at <= now {
                let renewal = Renewal {
                    pool: *pool,
                    lease_ms: lease.wanted_ms,
                    sent_at: now,
                    watchdog_timeout_ms,
                    released: lease.releasing,
                };
                lease.under_way = Some(renewal);
                step.renew.push(renewal);
            }
        }
        for (vm, guest) in &mut self.guests {
            let ages = guest.pools.iter().map(|pool| match self.leases.get(pool) {
                Some(lease) => (lease.age(now).unwrap_or(u64::MAX), lease.lease_ms),
                // A guest on a pool without a lease is as if that had run out.
                None => (u64::MAX, LEASE_MAX_MS),
            });
            for (age, lease_ms) in ages {
                guest.dying |= age >= kill_after(lease_ms);
                step.feed &= age < starve_after(lease_ms);
            }
            if guest.dying {
                step.kill.push(*vm);
            }
        }
        step
    }

    /// The watchdog cannot be fed any more. Renewals no longer promise it, since it may never fire.
    pub fn lose_watchdog(&mut self) {
        self.watchdog_timeout_ms = None;
    }

    /// How often to tick: often enough that being late by one does not matter.
    pub fn period_ms(&self) -> u64 {
        let shortest = self.leases.values().map(|lease| lease.lease_ms).min().unwrap_or(LEASE_MAX_MS);
        (shortest / 120).clamp(5, 500)
    }

    pub fn is_idle(&self) -> bool {
        self.leases.is_empty() && self.guests.is_empty()
    }

    pub fn pools(&self, now: BootMs) -> Vec<PoolStatus> {
        let pools = self.leases.iter().map(|(pool, lease)| PoolStatus {
            pool: *pool,
            lease_ms: lease.lease_ms,
            fresh: lease.is_fresh(now),
            renewed_at: lease.renewed_at,
            held_since: lease.held_since.filter(|_| lease.is_fresh(now)),
            lapses: lease.lapses,
        });
        pools.collect()
    }

    /// Guests that are being killed and not yet gone.
    pub fn is_dying(&self, vm: VmId) -> bool {
        self.guests.get(&vm).is_some_and(|guest| guest.dying)
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
