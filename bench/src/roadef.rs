//! Instances of the ROADEF/EURO challenge 2012, with the cost of an assignment and the rules that it breaks, by the
//! challenge's own definitions and sums. Deliberately absent: a solver, which is `rebalance`, and any part of the
//! scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};

use crate::stream::data;

/// Amounts are whole numbers without a unit. Machines, services and processes go by their position.
#[derive(Debug, Clone)]
pub struct Instance {
    pub resources: Vec<Resource>,
    pub machines: Vec<Machine>,
    pub services: Vec<Service>,
    pub processes: Vec<Process>,
    pub balances: Vec<Balance>,
    /// Weights of moves: of processes, of services, between machines.
    pub weights: [u64; 3],
    /// The machine of each process at the start.
    pub start: Vec<usize>,
}

#[derive(Debug, Clone)]
pub struct Resource {
    /// A process that moves holds it on both machines.
    pub transient: bool,
    pub weight: u64,
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub neighborhood: usize,
    pub location: usize,
    pub capacity: Vec<u64>,
    pub safety: Vec<u64>,
    pub move_cost: Vec<u64>,
}

#[derive(Debug, Clone)]
pub struct Service {
    /// Least number of locations that its processes are in.
    pub spread: usize,
    /// Each process needs one of these services in its neighborhood, of each of them.
    pub depends_on: Vec<usize>,
}

#[derive(Debug, Clone)]
pub struct Process {
    pub service: usize,
    pub needs: Vec<u64>,
    pub move_cost: u64,
}

#[derive(Debug, Clone)]
pub struct Balance {
    pub of: usize,
    pub to: usize,
    pub target: u64,
    pub weight: u64,
}

/// Parts of the objective, weights applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    pub load: u64,
    pub balance: u64,
    pub process_moves: u64,
    pub service_moves: u64,
    pub machine_moves: u64,
}

impl Cost {
    pub fn total(&self) -> u64 {
        self.load + self.balance + self.process_moves + self.service_moves + self.machine_moves
    }
}

/// What an assignment breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breach {
    Capacity { machine: usize, resource: usize },
    Conflict { service: usize, machine: usize },
    Spread { service: usize },
    Dependency { service: usize, on: usize, neighborhood: usize },
}

/// Whole numbers one after the other.
struct Numbers<'a>(std::str::SplitAsciiWhitespace<'a>);

impl Numbers<'_> {
    fn next<T: FromStr>(&mut self) -> Result<T> {
        let word = self.0.next().context("the instance ends early")?;
        word.parse().map_err(|_| anyhow!("{word} is not a whole number"))
    }

    fn many<T: FromStr>(&mut self, count: usize) -> Result<Vec<T>> {
        (0..count).map(|_| self.next()).collect()
    }
}

impl Instance {
    /// Of `bench/data/roadef2012`, such as `a1_1`.
    pub fn read(name: &str) -> Result<Self> {
        let (model, start) =
            (format!("roadef2012/model_{name}.txt.gz"), format!("roadef2012/assignment_{name}.txt.gz"));
        Self::parse(&data(&model)?, &data(&start)?).with_context(|| format!("instance {name}"))
    }

    fn parse(model: &str, start: &str) -> Result<Self> {
        let mut numbers = Numbers(model.split_ascii_whitespace());
        let n = &mut numbers;
        let resources = (0..n.next()?)
            .map(|_| Ok(Resource { transient: n.next::<u8>()? == 1, weight: n.next()? }))
            .collect::<Result<Vec<_>>>()?;
        let (r, m) = (resources.len(), n.next()?);
        let machine = |n: &mut Numbers| {
            Ok(Machine {
                neighborhood: n.next()?,
                location: n.next()?,
                capacity: n.many(r)?,
                safety: n.many(r)?,
                move_cost: n.many(m)?,
            })
        };
        let machines = (0..m).map(|_| machine(n)).collect::<Result<Vec<_>>>()?;
        let service = |n: &mut Numbers| {
            let (spread, count) = (n.next()?, n.next()?);
            Ok(Service { spread, depends_on: n.many(count)? })
        };
        let services = (0..n.next()?).map(|_| service(n)).collect::<Result<Vec<_>>>()?;
        let process =
            |n: &mut Numbers| Ok(Process { service: n.next()?, needs: n.many(r)?, move_cost: n.next()? });
        let processes = (0..n.next()?).map(|_| process(n)).collect::<Result<Vec<_>>>()?;
        let balance = |n: &mut Numbers| {
            Ok(Balance { of: n.next()?, to: n.next()?, target: n.next()?, weight: n.next()? })
        };
        let balances = (0..n.next()?).map(|_| balance(n)).collect::<Result<Vec<_>>>()?;
        let weights = [n.next()?, n.next()?, n.next()?];
        ensure!(n.0.next().is_none(), "the instance goes on after its end");
        let start = Numbers(start.split_ascii_whitespace()).many(processes.len())?;
        ensure!(start.iter().all(|machine| *machine < m), "a process starts on a machine that is not there");
        Ok(Self { resources, machines, services, processes, balances, weights, start })
    }

    /// No assignment costs less: all that is needed of a resource beyond all that is safe costs its weight.
    pub fn least(&self) -> u64 {
        let least = self.resources.iter().enumerate().map(|(r, resource)| {
            let needed: u64 = self.processes.iter().map(|process| process.needs[r]).sum();
            let safe: u64 = self.machines.iter().map(|machine| machine.safety[r]).sum();
            resource.weight * needed.saturating_sub(safe)
        });
        least.sum()
    }

    /// What each machine holds of each resource.
    fn used(&self, places: &[usize]) -> Vec<Vec<u64>> {
        let mut used = vec![vec![0; self.resources.len()]; self.machines.len()];
        for (process, machine) in self.processes.iter().zip(places) {
            for (used, need) in used[*machine].iter_mut().zip(&process.needs) {
                *used += need;
            }
        }
        used
    }

    /// What an assignment costs; `places` has the machine of each process.
    pub fn cost(&self, places: &[usize]) -> Cost {
        let mut cost = Cost::default();
        for (machine, used) in self.machines.iter().zip(self.used(places)) {
            for (r, resource) in self.resources.iter().enumerate() {
                cost.load += resource.weight * used[r].saturating_sub(machine.safety[r]);
            }
            let free = |r: usize| machine.capacity[r].saturating_sub(used[r]);
            for balance in &self.balances {
                let wanted = balance.target * free(balance.of);
                cost.balance += balance.weight * wanted.saturating_sub(free(balance.to));
            }
        }
        let mut moved: BTreeMap<usize, u64> = BTreeMap::new();
        for (process, (from, to)) in self.processes.iter().zip(self.start.iter().zip(places)) {
            if from != to {
                cost.process_moves += self.weights[0] * process.move_cost;
                *moved.entry(process.service).or_default() += 1;
            }
            cost.machine_moves += self.weights[2] * self.machines[*from].move_cost[*to];
        }
        cost.service_moves = self.weights[1] * moved.into_values().max().unwrap_or(0);
        cost
    }

    /// Every rule that an assignment breaks; none if it may be made.
    pub fn breaches(&self, places: &[usize]) -> BTreeSet<Breach> {
        let mut breaches = self.over_capacity(places);
        let mut machines: BTreeSet<(usize, usize)> = BTreeSet::new();
        let mut locations = vec![BTreeSet::new(); self.services.len()];
        let mut neighborhoods = vec![BTreeSet::new(); self.services.len()];
        for (process, machine) in self.processes.iter().zip(places) {
            let service = process.service;
            if !machines.insert((service, *machine)) {
                breaches.insert(Breach::Conflict { service, machine: *machine });
            }
            locations[service].insert(self.machines[*machine].location);
            neighborhoods[service].insert(self.machines[*machine].neighborhood);
        }
        for (at, service) in self.services.iter().enumerate() {
            if locations[at].len() < service.spread {
                breaches.insert(Breach::Spread { service: at });
            }
            for on in &service.depends_on {
                let alone = neighborhoods[at].difference(&neighborhoods[*on]);
                breaches.extend(alone.map(|place| Breach::Dependency {
                    service: at,
                    on: *on,
                    neighborhood: *place,
                }));
            }
        }
        breaches
    }

    fn over_capacity(&self, places: &[usize]) -> BTreeSet<Breach> {
        let mut used = self.used(places);
        for (process, (from, to)) in self.processes.iter().zip(self.start.iter().zip(places)) {
            for (r, resource) in self.resources.iter().enumerate().filter(|_| from != to) {
                used[*from][r] += if resource.transient { process.needs[r] } else { 0 };
            }
        }
        let over = used.iter().enumerate().flat_map(|(machine, used)| {
            let full = &self.machines[machine].capacity;
            let over = used.iter().zip(full).enumerate().filter(|(_, (used, full))| used > full);
            over.map(move |(resource, _)| Breach::Capacity { machine, resource })
        });
        over.collect()
    }
}

/// Reference values of one instance, of `reference.txt`, which says how sure each is.
#[derive(Debug, Clone)]
pub struct Reference {
    pub name: String,
    pub published: Option<u64>,
    pub recalled: u64,
}

/// Of all instances that are solved.
pub fn references() -> Result<Vec<Reference>> {
    let text = data("roadef2012/reference.txt")?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(' ');
            let mut next = || words.next().with_context(|| format!("{line}: a value is missing"));
            let (name, published, recalled) = (next()?.to_owned(), next()?, next()?.parse()?);
            let published = (published != "-").then(|| published.parse()).transpose()?;
            Ok(Reference { name, published, recalled })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cost_is_below_the_least() {
        for reference in references().unwrap() {
            let instance = Instance::read(&reference.name).unwrap();
            assert!(instance.least() <= instance.cost(&instance.start).total(), "{}", reference.name);
            assert!(instance.least() <= reference.recalled, "{}", reference.name);
        }
    }

    #[test]
    fn every_start_costs_what_is_published_and_breaks_nothing() {
        for line in data("roadef2012/objective.txt").unwrap().lines() {
            let (name, published) = line.split_once(' ').unwrap();
            let instance = Instance::read(name).unwrap();
            let cost = instance.cost(&instance.start);
            assert_eq!(cost.total(), published.parse::<u64>().unwrap(), "{name}: {cost:?}");
            assert_eq!(instance.breaches(&instance.start), BTreeSet::new(), "{name}");
        }
    }

    /// Two machines in one location, two neighborhoods; the second resource is transient. Service 0 depends on 1.
    const SMALL: &str = "2 0 10 1 1
        2 0 0 10 10 6 6 0 3 1 0 10 10 10 10 2 0
        2 1 1 1 1 0
        3 0 4 4 5 1 4 3 7 1 3 2 9
        1 0 1 2 100 1 10 100";

    #[test]
    fn a_move_costs_and_breaks_what_it_should() {
        let instance = Instance::parse(SMALL, "0 0 1").unwrap();
        let start = instance.cost(&instance.start);
        // Machine 0 holds 8 and 7 of 6 and 6 that are safe; it has 2 and 3 free, machine 1 has 7 and 8: 2 x 7 - 8.
        assert_eq!(start, Cost { load: 21, balance: 100 + 600, ..Cost::default() });
        assert!(instance.breaches(&instance.start).is_empty());
        // Process 1 joins process 2, which is of the same service, and leaves process 0 without it.
        let moved = [0, 1, 1];
        let cost = instance.cost(&moved);
        // Machine 0: 6 and 6 free; machine 1: 3 and 5.
        let expected =
            Cost { load: 0, balance: 100 * 6 + 100, process_moves: 7, service_moves: 10, machine_moves: 300 };
        assert_eq!(cost, expected);
        let breaches = BTreeSet::from([
            Breach::Conflict { service: 1, machine: 1 },
            Breach::Dependency { service: 0, on: 1, neighborhood: 0 },
        ]);
        assert_eq!(instance.breaches(&moved), breaches);
        // All three would fit in the end, but what moves away still holds 4 of the transient resource.
        let crossed = Instance::parse(&SMALL.replace("10 10 6 6 0 3", "10 8 6 6 0 3"), "0 0 1").unwrap();
        let swap = [1, 0, 0];
        assert!(crossed.breaches(&swap).contains(&Breach::Capacity { machine: 0, resource: 1 }));
    }
}
