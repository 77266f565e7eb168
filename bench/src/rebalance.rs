//! Machine reassignment (ROADEF/EURO 2012) by simulated annealing over shifts, swaps and chains of two processes, as
//! noisy local searches did in the challenge (Gavranović et al. 2012; Ritt 2012). What a change costs is known before it
//! is made, since almost all are rejected. It stands beside the product and measures what a day's work on a known
//! method gives; the scheduler has no part in it. Its invariant: every assignment on the way keeps every rule.

use std::time::Duration;

use crate::fleet::Random;
use crate::roadef::Instance;
use crate::speed::now;

/// Changes that are tried between two looks at the clock.
const BATCH: usize = 5_000;
/// The first heat, in parts of what a mean process costs where nothing is safe.
const HOT: f64 = 0.2;
/// And at most this many parts for each second and process: what has little time begins cooler.
const PACE: f64 = 80.0;
/// How far a run cools.
const COOLED: f64 = 1e-4;
/// Of 16 changes that are tried, so many are swaps and so many are chains; the others are shifts.
const SWAPS: usize = 8;
const CHAINS: usize = 2;
/// Of 16 changes, so many begin at a machine that costs much.
const DEAR: usize = 8;

/// The best assignment after each of these processor times, each of which is one further run from hot to cold that
/// begins at the best so far.
pub fn solve(instance: &Instance, times: &[Duration]) -> Vec<Vec<usize>> {
    // Sums over resources are most of the work: their number is fixed when this is built.
    match instance.resources.len() {
        0..=4 => run::<4>(instance, times),
        5..=8 => run::<8>(instance, times),
        _ => run::<12>(instance, times),
    }
}

fn run<const R: usize>(instance: &Instance, times: &[Duration]) -> Vec<Vec<usize>> {
    let mut state = State::<R>::new(instance);
    let mut draw = Random(0x10ad);
    let begin = now();
    let dear = state.mean_process();
    let (mut best, mut found) = ((state.cost(), state.places.clone()), Vec::new());
    let mut from = Duration::ZERO;
    for until in times {
        let length = until.saturating_sub(from).as_secs_f64().max(1e-3);
        let hot = dear * HOT.min(PACE * length / state.places.len() as f64);
        loop {
            let passed = (now() - begin).saturating_sub(from).as_secs_f64() / length;
            if passed >= 1.0 {
                break;
            }
            let heat = hot * COOLED.powf(passed);
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

/// Whole numbers far below 2^53, which floats hold exactly, and of which processors add several at once. Resources that
/// an instance does not have are 0.
type Amounts<const R: usize> = [f64; R];

/// One process that goes from one machine to another.
#[derive(Clone, Copy)]
struct Hop {
    process: usize,
    from: usize,
    to: usize,
}

/// An assignment that keeps every rule, with all sums that a change needs.
struct State<'a, const R: usize> {
    of: &'a Instance,
    /// Services that depend on each service.
    dependents: Vec<Vec<usize>>,
    neighborhoods: usize,
    locations: usize,
    places: Vec<usize>,
    /// By machine: its processes; by process: its position there.
    members: Vec<Vec<usize>>,
    position: Vec<usize>,
    weights: Amounts<R>,
    /// By process: what it needs, and what of that it holds only where it is.
    needs: Vec<Amounts<R>>,
    light: Vec<Amounts<R>>,
    /// By machine: what is left of its capacity with what has left it of transient resources, what is left of what is
    /// safe, which may be negative, and what its capacity has beyond that.
    room: Vec<Amounts<R>>,
    safe: Vec<Amounts<R>>,
    margin: Vec<Amounts<R>>,
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
    machine: Vec<f64>,
    sum: f64,
}

impl<'a, const R: usize> State<'a, R> {
    fn new(of: &'a Instance) -> Self {
        assert!(of.resources.len() <= R, "the challenge has at most 12 resources");
        let mut dependents = vec![Vec::new(); of.services.len()];
        for (at, service) in of.services.iter().enumerate() {
            service.depends_on.iter().for_each(|on| dependents[*on].push(at));
        }
        let neighborhoods = of.machines.iter().map(|machine| machine.neighborhood + 1).max().unwrap_or(0);
        let locations = of.machines.iter().map(|machine| machine.location + 1).max().unwrap_or(0);
        let (m, s, p) = (of.machines.len(), of.services.len(), of.processes.len());
        let row = |amounts: &[u64]| std::array::from_fn(|d| amounts.get(d).map_or(0.0, |a| *a as f64));
        let stays = |d: usize| of.resources.get(d).is_some_and(|resource| resource.transient);
        let needs: Vec<Amounts<R>> = of.processes.iter().map(|process| row(&process.needs)).collect();
        let light = needs.iter().map(|need| std::array::from_fn(|d| if stays(d) { 0.0 } else { need[d] }));
        let room: Vec<Amounts<R>> = of.machines.iter().map(|machine| row(&machine.capacity)).collect();
        let safe: Vec<Amounts<R>> = of.machines.iter().map(|machine| row(&machine.safety)).collect();
        let margin = room.iter().zip(&safe).map(|(room, safe)| less(room, safe)).collect();
        let mut state = Self {
            of,
            dependents,
            neighborhoods,
            locations,
            places: of.start.clone(),
            members: vec![Vec::new(); m],
            position: vec![0; p],
            weights: std::array::from_fn(|d| of.resources.get(d).map_or(0.0, |r| r.weight as f64)),
            light: light.collect(),
            needs,
            room,
            safe,
            margin,
            on: vec![0; s * m],
            at: vec![0; s * locations],
            near: vec![0; s * neighborhoods],
            spread: vec![0; s],
            moved: vec![0; s],
            by_moved: vec![0; p + 1],
            most_moved: 0,
            machine: vec![0.0; m],
            sum: 0.0,
        };
        state.by_moved[0] = s;
        for (process, to) in of.start.iter().copied().enumerate() {
            state.count(process, to, 1);
            state.join(process, to);
            state.room[to] = less(&state.room[to], &state.needs[process]);
            state.safe[to] = less(&state.safe[to], &state.needs[process]);
        }
        state.machine = (0..m).map(|machine| state.machine_cost(machine, &state.safe[machine])).collect();
        let stay = |machine: &usize| (of.weights[2] * of.machines[*machine].move_cost[*machine]) as f64;
        state.sum = state.machine.iter().sum::<f64>() + of.start.iter().map(stay).sum::<f64>();
        state
    }

    fn cost(&self) -> f64 {
        self.sum + self.service_cost()
    }

    fn service_cost(&self) -> f64 {
        self.of.weights[1] as f64 * self.most_moved as f64
    }

    /// What a process costs where nothing is safe, on average.
    fn mean_process(&self) -> f64 {
        let cost = |needs: &Amounts<R>| needs.iter().zip(&self.weights).map(|(n, w)| n * w).sum::<f64>();
        self.needs.iter().map(cost).sum::<f64>() / self.needs.len().max(1) as f64
    }

    /// Load and balance of a machine that has this left of what is safe.
    #[inline(always)]
    fn machine_cost(&self, machine: usize, safe: &Amounts<R>) -> f64 {
        let over: Amounts<R> = std::array::from_fn(|d| self.weights[d] * (-safe[d]).max(0.0));
        let mut cost: f64 = over.iter().sum();
        for balance in &self.of.balances {
            let free = |d: usize| self.margin[machine][d] + safe[d];
            let wanted = balance.target as f64 * free(balance.of) - free(balance.to);
            cost += balance.weight as f64 * wanted.max(0.0);
        }
        cost
    }

    /// What a process takes of a machine's room when it comes, and gives back when it leaves: at home it always holds
    /// its transient resources.
    #[inline(always)]
    fn hold(&self, process: usize, machine: usize) -> &Amounts<R> {
        if self.of.start[process] == machine { &self.light[process] } else { &self.needs[process] }
    }

    /// What moving costs more than before, but for the services' part.
    #[inline(always)]
    fn toll(&self, Hop { process, from, to }: Hop) -> f64 {
        let home = self.of.start[process];
        let costs = &self.of.machines[home].move_cost;
        let between = self.of.weights[2] as f64 * (costs[to] as f64 - costs[from] as f64);
        let away = f64::from(u8::from(to != home)) - f64::from(u8::from(from != home));
        between + away * (self.of.weights[0] * self.of.processes[process].move_cost) as f64
    }

    /// Enters a process where it is, or strikes it, as its service counts.
    fn count(&mut self, process: usize, machine: usize, by: i16) {
        let service = self.of.processes[process].service;
        let place = &self.of.machines[machine];
        let add = |count: &mut u16| *count = count.saturating_add_signed(by);
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

    fn join(&mut self, process: usize, machine: usize) {
        self.position[process] = self.members[machine].len();
        self.members[machine].push(process);
    }

    /// All of a hop but its amounts and costs.
    fn relocate(&mut self, Hop { process, from, to }: Hop) {
        self.count(process, from, -1);
        self.count(process, to, 1);
        let at = self.position[process];
        self.members[from].swap_remove(at);
        if let Some(last) = self.members[from].get(at) {
            self.position[*last] = at;
        }
        self.join(process, to);
        self.places[process] = to;
        let home = self.of.start[process];
        let by = isize::from(to != home) - isize::from(from != home);
        if by != 0 {
            let moved = &mut self.moved[self.of.processes[process].service];
            self.by_moved[*moved] -= 1;
            *moved = moved.saturating_add_signed(by);
            self.by_moved[*moved] += 1;
            self.most_moved = self.most_moved.max(*moved);
            while self.most_moved > 0 && self.by_moved[self.most_moved] == 0 {
                self.most_moved -= 1;
            }
        }
    }

    /// Whether spread and dependencies hold after a hop, if they did before.
    fn settled(&self, Hop { process, from, to }: Hop) -> bool {
        let service = self.of.processes[process].service;
        if self.spread[service] < self.of.services[service].spread {
            return false;
        }
        let near = |service: usize, machine: usize| {
            self.near[service * self.neighborhoods + self.of.machines[machine].neighborhood] > 0
        };
        self.of.machines[from].neighborhood == self.of.machines[to].neighborhood
            || self.of.services[service].depends_on.iter().all(|on| near(*on, to))
                && (near(service, from) || self.dependents[service].iter().all(|by| !near(*by, from)))
    }

    /// Whether no process of the same service is there.
    #[inline(always)]
    fn is_free(&self, process: usize, to: usize) -> bool {
        self.on[self.of.processes[process].service * self.of.machines.len() + to] == 0
    }

    /// Makes a change that has room if chance at this heat keeps it and it keeps the rules. What each machine would
    /// have left of what is safe stands beside its number.
    #[inline(always)]
    fn try_hops<const H: usize, const M: usize>(
        &mut self,
        hops: [Hop; H],
        machines: [(usize, Amounts<R>); M],
        heat: f64,
        draw: &mut Random,
    ) {
        let costs: [f64; M] = std::array::from_fn(|at| self.machine_cost(machines[at].0, &machines[at].1));
        let mut worse: f64 = hops.iter().map(|hop| self.toll(*hop)).sum();
        for ((machine, _), cost) in machines.iter().zip(&costs) {
            worse += cost - self.machine[*machine];
        }
        if !keeps(worse, heat, draw) {
            return;
        }
        let before = self.service_cost();
        hops.iter().for_each(|hop| self.relocate(*hop));
        let services = self.service_cost() - before;
        if !hops.iter().all(|hop| self.settled(*hop))
            || services > 0.0 && !keeps(worse + services, heat, draw)
        {
            for Hop { process, from, to } in hops {
                self.relocate(Hop { process, from: to, to: from });
            }
            return;
        }
        self.sum += worse;
        for Hop { process, from, to } in hops {
            self.room[from] = plus(&self.room[from], self.hold(process, from));
            self.room[to] = less(&self.room[to], self.hold(process, to));
        }
        for ((machine, safe), cost) in machines.into_iter().zip(costs) {
            (self.safe[machine], self.machine[machine]) = (safe, cost);
        }
    }

    fn try_shift(&mut self, process: usize, to: usize, heat: f64, draw: &mut Random) {
        let from = self.places[process];
        if from == to || !self.is_free(process, to) || !fits(self.hold(process, to), &self.room[to]) {
            return;
        }
        let left = (from, plus(&self.safe[from], &self.needs[process]));
        let come = (to, less(&self.safe[to], &self.needs[process]));
        self.try_hops([Hop { process, from, to }], [left, come], heat, draw);
    }

    /// Each takes the other's machine.
    fn try_swap(&mut self, one: usize, other: usize, heat: f64, draw: &mut Random) {
        let (here, there) = (self.places[one], self.places[other]);
        if here == there || !self.is_free(one, there) || !self.is_free(other, here) {
            return;
        }
        let came_here = less(self.hold(other, here), self.hold(one, here));
        let came_there = less(self.hold(one, there), self.hold(other, there));
        if !fits(&came_here, &self.room[here]) || !fits(&came_there, &self.room[there]) {
            return;
        }
        let more = less(&self.needs[other], &self.needs[one]);
        let machines = [(here, less(&self.safe[here], &more)), (there, plus(&self.safe[there], &more))];
        let hops =
            [Hop { process: one, from: here, to: there }, Hop { process: other, from: there, to: here }];
        self.try_hops(hops, machines, heat, draw);
    }

    /// The first takes the place of the other, which goes to a third machine.
    fn try_chain(&mut self, one: usize, other: usize, to: usize, heat: f64, draw: &mut Random) {
        let (here, there) = (self.places[one], self.places[other]);
        let differ = here != there && there != to && to != here;
        if !differ || !self.is_free(one, there) || !self.is_free(other, to) {
            return;
        }
        let came_there = less(self.hold(one, there), self.hold(other, there));
        if !fits(self.hold(other, to), &self.room[to]) || !fits(&came_there, &self.room[there]) {
            return;
        }
        let more = less(&self.needs[one], &self.needs[other]);
        let machines = [
            (here, plus(&self.safe[here], &self.needs[one])),
            (there, less(&self.safe[there], &more)),
            (to, less(&self.safe[to], &self.needs[other])),
        ];
        let hops = [Hop { process: one, from: here, to: there }, Hop { process: other, from: there, to }];
        self.try_hops(hops, machines, heat, draw);
    }

    /// A process of the dearer of two machines, or any process.
    fn draw(&self, draw: &mut Random) -> usize {
        if draw.of(16) < DEAR {
            let (one, other) = (draw.of(self.machine.len()), draw.of(self.machine.len()));
            let dear = if self.machine[one] < self.machine[other] { other } else { one };
            if !self.members[dear].is_empty() {
                return self.members[dear][draw.of(self.members[dear].len())];
            }
        }
        draw.of(self.places.len())
    }

    /// One change at random.
    fn step(&mut self, heat: f64, draw: &mut Random) {
        let one = self.draw(draw);
        let kind = draw.of(16);
        if kind < SWAPS {
            let other = draw.of(self.places.len());
            self.try_swap(one, other, heat, draw);
            return;
        }
        let to = draw.of(self.machine.len());
        if kind < SWAPS + CHAINS {
            let other = draw.of(self.places.len());
            self.try_chain(one, other, to, heat, draw);
        } else {
            self.try_shift(one, to, heat, draw);
        }
    }

    /// Another assignment, which must keep the rules.
    fn put(&mut self, places: &[usize]) {
        for (process, to) in places.iter().copied().enumerate() {
            let from = self.places[process];
            if from == to {
                continue;
            }
            let hop = Hop { process, from, to };
            self.sum += self.toll(hop);
            self.room[from] = plus(&self.room[from], self.hold(process, from));
            self.room[to] = less(&self.room[to], self.hold(process, to));
            self.safe[from] = plus(&self.safe[from], &self.needs[process]);
            self.safe[to] = less(&self.safe[to], &self.needs[process]);
            self.relocate(hop);
        }
        for machine in 0..self.machine.len() {
            let cost = self.machine_cost(machine, &self.safe[machine]);
            self.sum += cost - self.machine[machine];
            self.machine[machine] = cost;
        }
    }
}

#[inline(always)]
fn plus<const R: usize>(one: &Amounts<R>, other: &Amounts<R>) -> Amounts<R> {
    std::array::from_fn(|d| one[d] + other[d])
}

#[inline(always)]
fn less<const R: usize>(one: &Amounts<R>, other: &Amounts<R>) -> Amounts<R> {
    std::array::from_fn(|d| one[d] - other[d])
}

/// Whether what comes on balance has room.
#[inline(always)]
fn fits<const R: usize>(comes: &Amounts<R>, room: &Amounts<R>) -> bool {
    (0..R).fold(true, |fits, d| fits & (comes[d] <= room[d]))
}

/// Metropolis. What is hardly ever kept is not drawn for.
#[inline(always)]
fn keeps(worse: f64, heat: f64, draw: &mut Random) -> bool {
    worse <= 0.0 || worse < 30.0 * heat && draw.part() < (-worse / heat).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sums that are kept are those of the checker, and no rule is broken on the way.
    fn keeps_count<const R: usize>(name: &str) {
        let instance = Instance::read(name).unwrap();
        let mut state = State::<R>::new(&instance);
        let mut draw = Random(7);
        let heat = state.mean_process() * HOT;
        for n in 0..400_000 {
            state.step(heat, &mut draw);
            if n % 40_000 == 0 {
                assert_eq!(instance.cost(&state.places).total() as f64, state.cost(), "{name}");
                assert_eq!(instance.breaches(&state.places), Default::default(), "{name}");
            }
        }
        assert_ne!(state.places, instance.start, "{name}");
        state.put(&instance.start);
        assert_eq!(instance.cost(&instance.start).total() as f64, state.cost(), "{name}");
    }

    #[test]
    fn what_is_kept_is_what_the_checker_counts() {
        keeps_count::<4>("a1_1");
        keeps_count::<4>("a1_4");
        keeps_count::<12>("a2_3");
        keeps_count::<12>("a2_4");
    }
}
