//! Machine reassignment (ROADEF/EURO 2012) by simulated annealing over shifts and swaps of processes, with every part of
//! the objective kept up to date, as noisy local searches did in the challenge (Gavranović et al. 2012; Ritt 2012). It
//! stands beside the product and measures what a day's work on a known method gives; the scheduler has no part in it.
//! Its invariant: every assignment on the way keeps every rule. Deliberately absent: ejection chains.

use std::time::Duration;

use crate::fleet::random;
use crate::roadef::Instance;
use crate::speed::now;

/// Moves between two looks at the clock.
const BATCH: usize = 2_000;
/// Worsening moves that are sampled for the first temperature.
const SAMPLES: usize = 2_000;
/// How far a run cools.
const COOLED: f64 = 1e-5;

/// The best assignment after each of these processor times, each of which is one further run from the best so far: the
/// first from hot to cold, the later ones from less hot.
pub fn solve(instance: &Instance, times: &[Duration]) -> Vec<Vec<usize>> {
    let mut state = State::new(instance);
    let mut draw = random(0x10ad);
    let begin = now();
    let hot = state.worsening(&mut draw);
    let (mut best, mut found) = ((state.cost(), state.places.clone()), Vec::new());
    let mut from = Duration::ZERO;
    for (at, until) in times.iter().enumerate() {
        let length = until.saturating_sub(from).as_secs_f64().max(1e-3);
        // Each later run begins cooler: it is there to improve what is good already.
        let first = hot / 10f64.powi(i32::try_from(at).unwrap_or(9));
        loop {
            let passed = (now() - begin).saturating_sub(from).as_secs_f64() / length;
            if passed >= 1.0 {
                break;
            }
            let heat = first * COOLED.powf(passed);
            for _ in 0..BATCH {
                state.step(heat, &mut draw);
            }
            if state.cost() < best.0 {
                best = (state.cost(), state.places.clone());
            }
        }
        state.put(&best.1);
        found.push(best.1.clone());
        from = *until;
    }
    found
}

/// An assignment that keeps every rule, with all sums that a move changes.
struct State<'a> {
    of: &'a Instance,
    /// Services that depend on each service.
    dependents: Vec<Vec<usize>>,
    neighborhoods: usize,
    locations: usize,
    places: Vec<usize>,
    /// By machine and resource: what it holds, and with what has left it of transient resources.
    used: Vec<i64>,
    held: Vec<i64>,
    /// By service and machine, location, neighborhood: its processes there.
    on: Vec<u16>,
    at: Vec<u16>,
    near: Vec<u16>,
    /// By service: locations with a process of it, processes that moved; by number of moved ones: services.
    spread: Vec<usize>,
    moved: Vec<usize>,
    by_moved: Vec<usize>,
    most_moved: usize,
    /// Load and balance by machine, and all costs but the services'.
    machine: Vec<i64>,
    sum: i64,
}

impl<'a> State<'a> {
    fn new(of: &'a Instance) -> Self {
        let mut dependents = vec![Vec::new(); of.services.len()];
        for (at, service) in of.services.iter().enumerate() {
            service.depends_on.iter().for_each(|on| dependents[*on].push(at));
        }
        let neighborhoods = of.machines.iter().map(|machine| machine.neighborhood + 1).max().unwrap_or(0);
        let locations = of.machines.iter().map(|machine| machine.location + 1).max().unwrap_or(0);
        let (m, s, r) = (of.machines.len(), of.services.len(), of.resources.len());
        let mut state = Self {
            of,
            dependents,
            neighborhoods,
            locations,
            places: of.start.clone(),
            used: vec![0; m * r],
            held: vec![0; m * r],
            on: vec![0; s * m],
            at: vec![0; s * locations],
            near: vec![0; s * neighborhoods],
            spread: vec![0; s],
            moved: vec![0; s],
            by_moved: vec![0; of.processes.len() + 1],
            most_moved: 0,
            machine: vec![0; m],
            sum: 0,
        };
        state.by_moved[0] = s;
        for process in 0..of.processes.len() {
            let to = of.start[process];
            state.count(process, to, 1);
            for (d, need) in of.processes[process].needs.iter().enumerate() {
                state.used[to * r + d] += signed(*need);
                state.held[to * r + d] += signed(*need);
            }
        }
        for machine in 0..m {
            state.machine[machine] = state.machine_cost(machine);
        }
        let stay = |machine: &usize| signed(of.weights[2] * of.machines[*machine].move_cost[*machine]);
        state.sum = state.machine.iter().sum::<i64>() + of.start.iter().map(stay).sum::<i64>();
        state
    }

    fn cost(&self) -> i64 {
        self.sum + signed(self.of.weights[1]) * signed(self.most_moved as u64)
    }

    /// Load and balance of one machine.
    fn machine_cost(&self, machine: usize) -> i64 {
        let (of, r) = (&self.of.machines[machine], self.of.resources.len());
        let used = &self.used[machine * r..(machine + 1) * r];
        let mut cost = 0;
        for (d, resource) in self.of.resources.iter().enumerate() {
            cost += signed(resource.weight) * (used[d] - signed(of.safety[d])).max(0);
        }
        for balance in &self.of.balances {
            let free = |d: usize| signed(of.capacity[d]) - used[d];
            let wanted = signed(balance.target) * free(balance.of) - free(balance.to);
            cost += signed(balance.weight) * wanted.max(0);
        }
        cost
    }

    /// Enters a process where it is, or strikes it, as its service counts.
    fn count(&mut self, process: usize, machine: usize, by: i32) {
        let service = self.of.processes[process].service;
        let place = &self.of.machines[machine];
        let add = |count: &mut u16| *count = count.saturating_add_signed(by as i16);
        add(&mut self.on[service * self.of.machines.len() + machine]);
        add(&mut self.near[service * self.neighborhoods + place.neighborhood]);
        let at = &mut self.at[service * self.locations + place.location];
        add(at);
        if by > 0 && *at == 1 {
            self.spread[service] += 1;
        } else if by < 0 && *at == 0 {
            self.spread[service] -= 1;
        }
    }

    /// Whether the process may go there, by every rule but room.
    fn may(&self, process: usize, to: usize) -> bool {
        let service = self.of.processes[process].service;
        let (from, there) = (&self.of.machines[self.places[process]], &self.of.machines[to]);
        if self.on[service * self.of.machines.len() + to] > 0 {
            return false;
        }
        let at = |location: usize| self.at[service * self.locations + location];
        if from.location != there.location
            && at(from.location) == 1
            && at(there.location) > 0
            && self.spread[service] <= self.of.services[service].spread
        {
            return false;
        }
        let near = |service: usize, place: usize| self.near[service * self.neighborhoods + place];
        from.neighborhood == there.neighborhood
            || self.of.services[service]
                .depends_on
                .iter()
                .all(|on| *on == service || near(*on, there.neighborhood) > 0)
                && (near(service, from.neighborhood) > 1
                    || self.dependents[service]
                        .iter()
                        .all(|by| *by == service || near(*by, from.neighborhood) == 0))
    }

    /// Whether there is room.
    fn fits(&self, process: usize, to: usize) -> bool {
        let r = self.of.resources.len();
        let comes_home = self.of.start[process] == to;
        let needs = self.of.processes[process].needs.iter().zip(&self.of.resources);
        needs.enumerate().all(|(d, (need, resource))| {
            let more = if comes_home && resource.transient { 0 } else { signed(*need) };
            self.held[to * r + d] + more <= signed(self.of.machines[to].capacity[d])
        })
    }

    /// Moves without asking.
    fn shift(&mut self, process: usize, to: usize) {
        let (from, home) = (self.places[process], self.of.start[process]);
        let (of, r) = (&self.of.processes[process], self.of.resources.len());
        for (d, need) in of.needs.iter().enumerate() {
            let (need, transient) = (signed(*need), self.of.resources[d].transient);
            self.used[from * r + d] -= need;
            self.used[to * r + d] += need;
            if !(transient && from == home) {
                self.held[from * r + d] -= need;
            }
            if !(transient && to == home) {
                self.held[to * r + d] += need;
            }
        }
        self.count(process, from, -1);
        self.count(process, to, 1);
        for machine in [from, to] {
            let cost = self.machine_cost(machine);
            self.sum += cost - self.machine[machine];
            self.machine[machine] = cost;
        }
        let costs = &self.of.machines[home].move_cost;
        self.sum += signed(self.of.weights[2]) * (signed(costs[to]) - signed(costs[from]));
        let by = i64::from(to != home) - i64::from(from != home);
        self.sum += by * signed(self.of.weights[0] * of.move_cost);
        if by != 0 {
            let moved = &mut self.moved[of.service];
            self.by_moved[*moved] -= 1;
            *moved = moved.saturating_add_signed(by as isize);
            self.by_moved[*moved] += 1;
            self.most_moved = self.most_moved.max(*moved);
            while self.most_moved > 0 && self.by_moved[self.most_moved] == 0 {
                self.most_moved -= 1;
            }
        }
        self.places[process] = to;
    }

    /// A shift that keeps the rules; false if there was none and nothing changed.
    fn try_shift(&mut self, process: usize, to: usize) -> bool {
        let can = self.places[process] != to && self.may(process, to) && self.fits(process, to);
        if can {
            self.shift(process, to);
        }
        can
    }

    /// Each takes the other's machine; the room of what leaves is free first.
    fn try_swap(&mut self, one: usize, other: usize) -> bool {
        let (here, there) = (self.places[one], self.places[other]);
        if here == there
            || self.of.processes[one].service == self.of.processes[other].service
            || !self.may(one, there)
        {
            return false;
        }
        self.shift(one, there);
        if self.may(other, here) && self.fits(other, here) {
            self.shift(other, here);
            if self.has_room(there) {
                return true;
            }
            self.shift(other, there);
        }
        self.shift(one, here);
        false
    }

    fn has_room(&self, machine: usize) -> bool {
        let r = self.of.resources.len();
        let held = &self.held[machine * r..(machine + 1) * r];
        held.iter().zip(&self.of.machines[machine].capacity).all(|(held, room)| *held <= signed(*room))
    }

    /// One move, taken back unless it is better or chance at this heat keeps it.
    fn step(&mut self, heat: f64, draw: &mut impl FnMut(usize) -> usize) {
        let before = self.cost();
        let one = draw(self.places.len());
        let here = self.places[one];
        if draw(2) == 0 {
            let to = draw(self.of.machines.len());
            if self.try_shift(one, to) && !keeps(self.cost() - before, heat, draw) {
                self.shift(one, here);
            }
        } else {
            let other = draw(self.places.len());
            let there = self.places[other];
            if self.try_swap(one, other) && !keeps(self.cost() - before, heat, draw) {
                self.shift(one, here);
                self.shift(other, there);
            }
        }
    }

    /// A tenth of the mean of what shifts at random make worse.
    fn worsening(&mut self, draw: &mut impl FnMut(usize) -> usize) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0f64);
        for _ in 0..SAMPLES {
            let (process, to) = (draw(self.places.len()), draw(self.of.machines.len()));
            let (before, here) = (self.cost(), self.places[process]);
            if self.try_shift(process, to) {
                let worse = (self.cost() - before).max(0) as f64;
                (sum, count) = (sum + worse, count + f64::from(u8::from(worse > 0.0)));
                self.shift(process, here);
            }
        }
        sum / count.max(1.0) / 10.0
    }

    /// Another assignment, which must keep the rules.
    fn put(&mut self, places: &[usize]) {
        for (process, to) in places.iter().enumerate() {
            if self.places[process] != *to {
                self.shift(process, *to);
            }
        }
    }
}

/// Metropolis.
fn keeps(worse: i64, heat: f64, draw: &mut impl FnMut(usize) -> usize) -> bool {
    worse <= 0 || (draw(1 << 30) as f64) < f64::from(1 << 30) * (-(worse as f64) / heat).exp()
}

/// Amounts and costs of the challenge are far below 2^63.
fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sums that are kept are those of the checker, and no rule is broken on the way.
    #[test]
    fn what_is_kept_is_what_the_checker_counts() {
        for name in ["a1_1", "a1_4", "a2_4"] {
            let instance = Instance::read(name).unwrap();
            let mut state = State::new(&instance);
            let mut draw = random(7);
            let heat = state.worsening(&mut draw);
            for n in 0..20_000 {
                state.step(heat, &mut draw);
                if n % 2_000 == 0 {
                    assert_eq!(signed(instance.cost(&state.places).total()), state.cost(), "{name}");
                    assert_eq!(instance.breaches(&state.places), Default::default(), "{name}");
                }
            }
            assert_ne!(state.places, instance.start, "{name}");
            state.put(&instance.start);
            assert_eq!(signed(instance.cost(&instance.start).total()), state.cost(), "{name}");
        }
    }
}
