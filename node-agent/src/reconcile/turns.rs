//! Turns: which of the steps that are due begin now. After a power cut all guests of a node are due at once, and would boot
//! more slowly together than one after the other: only so many boot side by side, those of the highest priority first.
//! Pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Step, Subject};
use crate::desired::Desired;
use crate::hypervisor::Domain;

/// After so long a guest is taken to have booted that has no guest agent to say so, ms.
const BOOT_MS: u64 = 10_000;

/// How many steps work side by side.
const STEPS_AT_ONCE: usize = 16;

/// Who has its turn. Lost with the agent, which costs nothing but some boots that are counted twice.
#[derive(Clone, Debug)]
pub struct Turns {
    boots_at_once: usize,
    /// Guests that were started: until when they boot at the latest, ms of CLOCK_BOOTTIME.
    booting: BTreeMap<Uuid, u64>,
}

impl Turns {
    #[must_use]
    pub fn new(boots_at_once: usize) -> Self {
        Self { boots_at_once, booting: BTreeMap::new() }
    }

    /// A guest was started.
    pub fn began(&mut self, vm: Uuid, now_ms: u64) {
        self.booting.insert(vm, now_ms + BOOT_MS);
    }

    /// The steps that begin now beside those that are at work, and when to look again if a start has to wait. Starts come
    /// in the order of their VM's priority, after all else, which has the order that it had.
    pub fn take(
        &mut self,
        work: Vec<Step>,
        busy: &BTreeMap<Subject, Step>,
        domains: &BTreeMap<Uuid, Domain>,
        desired: &Desired,
        now_ms: u64,
    ) -> (Vec<Step>, Option<u64>) {
        // Whose guest agent answers has booted; who is gone, or had the time for it, is not waited for either.
        let boots = |vm: &Uuid| domains.get(vm).is_some_and(|domain| !domain.guest_agent_connected);
        self.booting.retain(|vm, until_ms| now_ms < *until_ms && boots(vm));
        let begun = busy.values().filter(|step| matches!(step, Step::Start { .. })).count();
        let starts = self.boots_at_once.saturating_sub(begun + self.booting.len());
        let priority = |vm: &Uuid| desired.vms.get(vm).map_or(0, |wanted| wanted.priority);
        let (mut begin, mut others) = (Vec::new(), Vec::new());
        for step in work {
            match &step {
                Step::Start { vm, .. } => begin.push((Reverse(priority(vm)), step)),
                _ => others.push(step),
            }
        }
        begin.sort_by_key(|(priority, _)| *priority);
        let waits = begin.len() > starts;
        others.extend(begin.into_iter().take(starts).map(|(_, step)| step));
        others.truncate(STEPS_AT_ONCE.saturating_sub(busy.len()));
        (others, self.booting.values().min().copied().filter(|_| waits))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fixture::Node;
    use super::*;

    fn vm(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn start(n: u128) -> Step {
        Step::Start { vm: vm(n), again: false }
    }

    #[test]
    fn starts_take_their_turns_by_priority_and_all_else_goes_on() {
        let mut node = Node::parse("vm 1\nvm 2\nvm 3\nvm 4");
        for n in [3, 4] {
            node.desired.vms.get_mut(&vm(n)).unwrap().priority = 500;
        }
        let work = || vec![start(1), start(2), Step::Pause { vm: vm(9) }, start(3), start(4)];
        let take = |at_once, busy: &[Step]| {
            let busy = busy.iter().map(|step| (step.subject(), step.clone())).collect();
            Turns::new(at_once).take(work(), &busy, &node.domains, &node.desired, 0)
        };
        let all = [Step::Pause { vm: vm(9) }, start(3), start(4), start(1), start(2)];
        assert_eq!(take(16, &[]), (all.to_vec(), None));
        assert_eq!(take(3, &[]).0, all[..4]);
        assert_eq!(take(3, &[start(7), start(8)]).0, all[..2], "what is being started counts");
        assert_eq!(take(3, &[Step::Pause { vm: vm(7) }]).0, all[..4], "what is not does not");
    }

    #[test]
    fn a_guest_boots_until_its_agent_answers_or_its_time_is_over() {
        let node = Node::parse("vm 5\ndomain 1\ndomain 2\ndomain 3");
        let mut turns = Turns::new(3);
        (1..=4).for_each(|n| turns.began(vm(n), 1_000));
        let take = |turns: &mut Turns, domains: &BTreeMap<Uuid, Domain>, now_ms| {
            turns.take(vec![start(5)], &BTreeMap::new(), domains, &node.desired, now_ms)
        };
        assert_eq!(take(&mut turns, &node.domains, 1_000), (vec![], Some(11_000)), "three boot");
        let mut answering = node.domains.clone();
        answering.get_mut(&vm(2)).unwrap().guest_agent_connected = true;
        assert_eq!(take(&mut turns.clone(), &answering, 2_000), (vec![start(5)], None));
        assert_eq!(
            take(&mut turns.clone(), &BTreeMap::new(), 2_000).0,
            [start(5)],
            "who is gone boots no more"
        );
        assert_eq!(take(&mut turns, &node.domains, 10_999).0, []);
        assert_eq!(take(&mut turns, &node.domains, 11_000).0, [start(5)]);
    }
}
