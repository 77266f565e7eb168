//! `sim`: lives seeds through, and tells the story of the first that breaks a rule.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use tamdao_seams::Mutant;
use tamdao_sim::{History, live};

/// Seeds within which each deliberate bug has to be found.
const BOUND: u64 = 200;

/// The product under a simulated network, clock, storage and hypervisor.
#[derive(Parser)]
struct Arguments {
    /// Live this seed alone, and tell its story
    #[arg(long)]
    seed: Option<u64>,
    /// So many seeds, on all cores
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// With this deliberate bug in the product
    #[arg(long)]
    mutant: Option<String>,
    /// Find every deliberate bug, and print the table of how many seeds it took
    #[arg(long)]
    mutants: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody is left to be told when this cannot be written either.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let mutant = match &arguments.mutant {
        Some(name) => Some(mutant(name)?),
        None => None,
    };
    if arguments.mutants {
        return table(arguments.from);
    }
    match arguments.seed {
        Some(seed) => tell(seed, mutant),
        None => many(arguments.from, arguments.seeds, mutant),
    }
}

fn mutant(name: &str) -> anyhow::Result<Mutant> {
    let found = Mutant::ALL.into_iter().find(|one| format!("{one:?}") == name);
    found.ok_or_else(|| anyhow::anyhow!("no deliberate bug is called {name}: they are {:?}", Mutant::ALL))
}

fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// One seed with its story. True if all rules hold.
fn tell(seed: u64, mutant: Option<Mutant>) -> anyhow::Result<bool> {
    let history = live(seed, mutant, true);
    for line in &history.story {
        say(line)?;
    }
    match &history.breach {
        Some(breach) => say(&format!("seed {seed} breaks a rule: {breach}"))?,
        None => say(&format!("seed {seed}: {} events, {} commits", history.events, history.revision))?,
    }
    Ok(history.breach.is_none())
}

/// Lives seeds on all cores until one of them breaks a rule; answers the lowest that did, and how many events there were.
fn search(from: u64, seeds: u64, mutant: Option<Mutant>) -> (Option<(u64, History)>, u64) {
    let (next, events, lowest) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = || {
        let mut found: Option<(u64, History)> = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds || seed > lowest.load(Ordering::Relaxed) {
                return found;
            }
            let history = live(seed, mutant, false);
            events.fetch_add(history.events, Ordering::Relaxed);
            if history.breach.is_some() {
                lowest.fetch_min(seed, Ordering::Relaxed);
                found = found.or(Some((seed, history)));
            }
        }
    };
    let found = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let found =
            workers.into_iter().filter_map(|worker| worker.join().expect("a simulation does not panic"));
        found.min_by_key(|(seed, _)| *seed)
    });
    (found, events.into_inner())
}

fn many(from: u64, seeds: u64, mutant: Option<Mutant>) -> anyhow::Result<bool> {
    let began = Instant::now();
    let (found, events) = search(from, seeds, mutant);
    let seconds = began.elapsed().as_secs_f64();
    if let Some((seed, _)) = found {
        tell(seed, mutant)?;
        let with = mutant.map_or_else(String::new, |mutant| format!(" --mutant {mutant:?}"));
        say(&format!("replay: cargo xtask sim --seed {seed}{with}"))?;
        return Ok(false);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    say(&format!(
        "{seeds} seeds hold: {:.1} histories and {:.0} events a second and core, {:.0} events a history",
        seeds as f64 / seconds / cores,
        events as f64 / seconds / cores,
        events as f64 / seeds as f64
    ))?;
    Ok(true)
}

/// Finds each deliberate bug. True if all were found within the bound.
fn table(from: u64) -> anyhow::Result<bool> {
    say("| bug | seeds | rule | what was seen |\n|---|---:|---|---|")?;
    let mut all = true;
    for mutant in Mutant::ALL {
        match search(from, BOUND, Some(mutant)).0 {
            Some((seed, History { breach: Some(breach), .. })) => {
                say(&format!("| {mutant:?} | {} | {} | {} |", seed - from + 1, breach.rule, breach.what))?;
            }
            _ => {
                all = false;
                say(&format!("| {mutant:?} | more than {BOUND} | | |"))?;
            }
        }
    }
    Ok(all)
}
