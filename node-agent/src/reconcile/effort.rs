//! What failed, how often, and when it may be tried again.
//!
//! Invariant: a permanent failure is not tried again until what was asked for changes; any other is tried again
//! after 1 s, doubling up to 5 min. Deliberately absent: clocks; the time is an argument.

use std::collections::BTreeMap;

use tamdao_proto::agent::v1::Problem;
use uuid::Uuid;

use crate::desired::Digest;

/// What a step is about. One step at a time works on a subject.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Subject {
    Vm(Uuid),
    Volume(Uuid),
    Image(Digest),
    /// The move of a VM, beside what is done to the VM itself.
    Move(Uuid),
}

/// Tries of one kind of step on one subject that have failed in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Effort {
    /// The kind of step.
    pub step: &'static str,
    /// What was asked for: a VM's incarnation and generation, a volume's size.
    pub stamp: (u64, u64),
    /// When it may be tried again, ms of CLOCK_BOOTTIME.
    pub not_before_ms: u64,
    /// With `attempts` filled in.
    pub problem: Problem,
}

/// The wait after the given number of failures in a row, ms.
#[must_use]
pub fn back_off_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(16);
    (1000u64 << doublings).min(300_000)
}

/// All failures that still count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Efforts(BTreeMap<Subject, Effort>);

impl Efforts {
    /// Notes a failure.
    pub fn fail(
        &mut self,
        subject: Subject,
        step: &'static str,
        stamp: (u64, u64),
        problem: Problem,
        now_ms: u64,
    ) {
        let before = self.0.get(&subject).filter(|effort| effort.step == step && effort.stamp == stamp);
        let attempts = before.map_or(0, |effort| effort.problem.attempts) + 1;
        let problem = Problem { attempts, ..problem };
        let not_before_ms = now_ms + back_off_ms(attempts);
        self.0.insert(subject, Effort { step, stamp, not_before_ms, problem });
    }

    /// Notes a success: earlier failures no longer count.
    pub fn clear(&mut self, subject: &Subject) {
        self.0.remove(subject);
    }

    /// Forgets failures with this reason, since their cause is known to be gone.
    pub fn clear_reason(&mut self, reason: &str) {
        self.0.retain(|_, effort| effort.problem.reason != reason);
    }

    /// Forgets what is not named any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&Subject) -> bool) {
        self.0.retain(|subject, _| keep(subject));
    }

    #[must_use]
    pub fn get(&self, subject: &Subject) -> Option<&Effort> {
        self.0.get(subject)
    }

    /// Whether such a step must wait: until when, or `u64::MAX` for as long as nothing else is asked for.
    #[must_use]
    pub fn wait(&self, subject: &Subject, step: &str, stamp: (u64, u64), now_ms: u64) -> Option<u64> {
        let effort = self.0.get(subject).filter(|effort| effort.step == step && effort.stamp == stamp)?;
        if effort.problem.permanent {
            return Some(u64::MAX);
        }
        (effort.not_before_ms > now_ms).then_some(effort.not_before_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(permanent: bool) -> Problem {
        Problem { reason: "R".into(), permanent, ..Default::default() }
    }

    #[test]
    fn back_off_doubles_from_a_second_to_five_minutes() {
        let waits: Vec<u64> = [1, 2, 3, 9, 10, 40, u32::MAX].map(back_off_ms).to_vec();
        assert_eq!(waits, [1000, 2000, 4000, 256_000, 300_000, 300_000, 300_000]);
    }

    #[test]
    fn another_step_or_another_wish_starts_anew() {
        let subject = Subject::Vm(Uuid::from_u128(1));
        let mut efforts = Efforts::default();
        efforts.fail(subject.clone(), "start", (1, 1), problem(true), 0);
        assert_eq!(efforts.wait(&subject, "start", (1, 1), u64::MAX - 1), Some(u64::MAX));
        assert_eq!(efforts.wait(&subject, "destroy", (1, 1), 0), None);
        assert_eq!(efforts.wait(&subject, "start", (1, 2), 0), None);
        efforts.fail(subject.clone(), "start", (1, 2), problem(false), 0);
        efforts.fail(subject.clone(), "start", (1, 2), problem(false), 0);
        assert_eq!(efforts.get(&subject).map(|effort| effort.problem.attempts), Some(2));
        assert_eq!(efforts.wait(&subject, "start", (1, 2), 0), Some(2000));
        assert_eq!(efforts.wait(&subject, "start", (1, 2), 2000), None);
    }
}
