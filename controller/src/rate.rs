//! How often somebody may ask: so that a noisy caller or agency starves neither the others nor the agents.
//!
//! Its invariant: each caller has an allowance of its own on each controller, and all callers of an agency have one
//! together; who has used up his is told when to come back, and takes nothing from anybody else. Agents and controllers
//! have none, and neither has an admin's token, which is for when all else fails. What a controller sends on was counted
//! where it came in. Deliberately absent: queues, which are memory that a noisy caller fills.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use metrics::counter;
use tamdao_model::AgencyId;
use tonic::Code;

use crate::refusal::Refusal;

/// The reason for refusing what comes too often.
pub const TOO_OFTEN: &str = "TooManyRequests";
/// Counts what was refused for it, by whose allowance was used up.
pub const LIMITED: &str = "tamdao_requests_limited_total";
/// Allowances that are remembered before those that are full again are forgotten.
const REMEMBERED: usize = 4_096;

/// What somebody may ask of one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Lasting, requests a second.
    pub per_second: NonZeroU32,
    /// At once, after a pause.
    pub burst: NonZeroU32,
}

/// What callers, and agencies with all their callers, may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowances {
    pub caller: Allowance,
    pub agency: Allowance,
}

/// The allowances of one controller, and what is left of each.
pub struct Rates<C: Clock = DefaultClock> {
    callers: Buckets<String, C>,
    agencies: Buckets<AgencyId, C>,
    clock: C,
}

type Buckets<K, C> = RateLimiter<K, HashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

impl Rates {
    pub fn new(allowances: Allowances) -> Self {
        Self::by(allowances, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Rates<C> {
    fn by(allowances: Allowances, clock: C) -> Self {
        let quota = |of: Allowance| Quota::per_second(of.per_second).allow_burst(of.burst);
        Self {
            callers: RateLimiter::hashmap_with_clock(quota(allowances.caller), clock.clone()),
            agencies: RateLimiter::hashmap_with_clock(quota(allowances.agency), clock.clone()),
            clock,
        }
    }

    /// Takes one request from the allowances of a caller and of its agency. What the caller may not ask takes nothing
    /// from the agency.
    ///
    /// # Errors
    /// `ResourceExhausted` when nothing is left of one.
    pub fn take(&self, caller: &str, agency: Option<AgencyId>) -> Result<(), Refusal> {
        take(&self.callers, &self.clock, &caller.to_owned()).map_err(|wait| too_often("caller", wait))?;
        match agency {
            Some(agency) => {
                take(&self.agencies, &self.clock, &agency).map_err(|wait| too_often("agency", wait))
            }
            None => Ok(()),
        }
    }
}

/// Or says how long to wait.
fn take<K: Hash + Eq + Clone, C: Clock>(buckets: &Buckets<K, C>, clock: &C, key: &K) -> Result<(), Duration> {
    if buckets.len() > REMEMBERED {
        buckets.retain_recent();
    }
    buckets.check_key(key).map_err(|until| until.wait_time_from(clock.now()))
}

fn too_often(whose: &'static str, wait: Duration) -> Refusal {
    counter!(LIMITED, "whose" => whose).increment(1);
    Refusal::new(Code::ResourceExhausted, TOO_OFTEN, format!("this {whose} asks too often"))
        .hint("come back when retry-after says; watch instead of asking again and again")
        .retry_after(wait)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use uuid::Uuid;

    use super::*;

    fn allowance(per_second: u32, burst: u32) -> Allowance {
        let number = |number| NonZeroU32::new(number).unwrap();
        Allowance { per_second: number(per_second), burst: number(burst) }
    }

    #[test]
    fn a_noisy_caller_takes_nothing_from_its_colleagues_and_a_noisy_agency_nothing_from_others() {
        let clock = FakeRelativeClock::default();
        let allowances = Allowances { caller: allowance(2, 3), agency: allowance(4, 5) };
        let rates = Rates::by(allowances, clock.clone());
        let [loud, quiet] = [1, 2].map(|id| Some(AgencyId(Uuid::from_u128(id))));
        // How many of a hundred are let in, and what the first is told that is not.
        let ask = |caller, agency| {
            let outcomes: Vec<_> = (0..100).map(|_| rates.take(caller, agency)).collect();
            let let_in = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            (let_in, outcomes.into_iter().find_map(Result::err).unwrap())
        };
        let (let_in, refusal) = ask("noisy", loud);
        assert_eq!((let_in, refusal.code, refusal.reason), (3, Code::ResourceExhausted, TOO_OFTEN));
        assert!((1..=501).contains(&refusal.retry_after_ms), "{refusal:?}");
        let (let_in, refusal) = ask("colleague", loud);
        assert_eq!((let_in, &*refusal.message), (2, "this agency asks too often"));
        assert_eq!(ask("other", quiet).0, 3);
        assert_eq!(ask("of the cloud", None).0, 3);
        clock.advance(Duration::from_secs(1));
        assert_eq!((ask("noisy", loud).0, ask("other", quiet).0), (2, 2));
        clock.advance(Duration::from_secs(60));
        assert_eq!((ask("noisy", loud).0, ask("colleague", loud).0), (3, 2));
    }

    #[test]
    fn those_who_have_their_whole_allowance_again_are_forgotten() {
        let clock = FakeRelativeClock::default();
        let one = allowance(1, 1);
        let rates = Rates::by(Allowances { caller: one, agency: one }, clock.clone());
        for id in 0..=REMEMBERED {
            rates.take(&id.to_string(), None).unwrap();
        }
        clock.advance(Duration::from_secs(60));
        rates.take("one more", None).unwrap();
        assert_eq!(rates.callers.len(), 1);
    }
}
