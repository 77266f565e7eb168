//! `cargo xtask`: the project's own chores, so that a fresh machine needs nothing but cargo to run them.

mod bench;
mod ci;
mod output;
mod tidy;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tam Đảo's chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run all checks and tests, installing what they need
    Ci {
        /// Also run what takes longer than a change should wait for
        #[arg(long)]
        long: bool,
    },
    /// Measure, on this machine
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Live seeded histories of the product over a simulated network, clock, storage and hypervisor. Without a flag, a
    /// hundred seeds; --seed N tells one's story, --seeds N --from M live many, --mutants looks for every deliberate bug
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Upgrade clouds of real processes from the newest release to this version
    Upgrade,
    /// Check what the compiler does not: imports between crates, file heads and lengths, words
    Tidy,
}

#[derive(Subcommand)]
enum Bench {
    /// The API: three controllers with fsync, a fleet of nodes that answer at once, clients over gRPC and REST
    Api {
        /// Also write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Availability: nodes that are lost, moves beside bare `virsh migrate`, a drain, an evacuation; needs root
    Availability {
        /// Also write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Run only these cases: losses, migration, drain, evacuation
        #[arg(long, value_name = "CASE")]
        only: Vec<String>,
        /// The nodes' storage lease
        #[arg(long, value_name = "MS", default_value_t = 60_000)]
        lease_ms: u64,
    },
    /// Manifests: the province of deploy/examples, and a stack of 5,000 resources
    Manifests {
        /// Also write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The scheduler, alone: public streams of requests and fleets of its own making. Writes docs/performance.md
    Scheduler {
        /// Also write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Run only these cases: tightness, speed, spread, cells, guarded, storm, fragments, emptying, planted, maintenance, evening,
        /// ganeti, rebalance
        #[arg(long, value_name = "CASE")]
        only: Vec<String>,
        /// Processor seconds for each of the 13 instances of the global rebalance
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        rebalance_seconds: u64,
    },
    /// A start: from an accepted create to QEMU running, beside a bare `virsh start`; needs root
    Start {
        /// Also write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Ci { long } => ci::run(long),
        Chore::Upgrade => upgrade::run(),
        Chore::Bench { what: Bench::Api { json } } => bench::api(json),
        Chore::Bench { what: Bench::Availability { json, only, lease_ms } } => {
            bench::availability(json, &only, lease_ms)
        }
        Chore::Bench { what: Bench::Manifests { json } } => bench::manifests(json),
        Chore::Bench { what: Bench::Scheduler { json, only, rebalance_seconds } } => {
            bench::scheduler(json, &only, rebalance_seconds)
        }
        Chore::Bench { what: Bench::Start { json } } => bench::start(json),
        Chore::Sim { arguments } => ci::simulate(&arguments, None),
        Chore::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The top of the repository.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
