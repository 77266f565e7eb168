//! `cargo xtask ci`: the judgement of a change, step by step, with the time that each step took.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::output::say;
use crate::{root, tidy, upgrade};

/// Versions of the tools that are installed where they are missing.
const NEXTEST: &str = "cargo-nextest@0.9.143";
const DENY: &str = "cargo-deny@0.18.9";

/// The feature with which binaries and tests are built: it lets a test kill an agent in the middle of a step.
pub const HOOKS: &str = "tamdao-node-agent/test-hooks";
/// Histories of the simulation.
const SEEDS: &str = "2000";
/// What is done more often with the disk's, the members' and the controllers' misfortunes.
const CUTS: &str = "test(/power_cuts::|linear::/)";
/// Manifests that are broken.
const BROKEN: &str = "test(/^tests::fuzz::/)";
/// For properties, in place of 256.
const MANY_CASES: &[(&str, &str)] = &[("PROPTEST_CASES", "2000")];

/// Runs every step; the first that fails ends the run.
pub fn run(long: bool) -> Result<()> {
    let mut steps = Steps::default();
    steps.run("packages", || command("deploy/install-packages", &[]))?;
    steps.run("format", || command("cargo", &["fmt", "--all", "--check"]))?;
    steps.run("tidy", tidy::run)?;
    steps.run("shell", shellcheck)?;
    steps.run("lints", || {
        command(
            "cargo",
            &["clippy", "--workspace", "--all-targets", "--all-features", "--", "--deny", "warnings"],
        )
    })?;
    // The tests start these as processes, so they are built before.
    steps.run("binaries", || command("cargo", &["build", "--workspace", "--bins", "--features", HOOKS]))?;
    steps.run("tests", || {
        install_nextest()?;
        nextest(&["--workspace", "--features", HOOKS], &[])
    })?;
    if long {
        longer(&mut steps)?;
    }
    steps.summary();
    Ok(())
}

/// What takes longer than a change should wait for: the same tests with more cases, and again and again.
fn longer(steps: &mut Steps) -> Result<()> {
    steps.run("dependencies", || {
        install("deny", DENY)?;
        // Advisories need a database from the network, which a build must not depend on.
        command("cargo", &["deny", "check", "bans", "licenses", "sources"])
    })?;
    // The reference that places must agree with tries everything, which takes an optimiser to be tried often.
    steps.run("cases", || {
        let mut pure = vec!["--profile", "cases", "--cargo-profile", "cases"];
        let crates = ["tamdao-model", "tamdao-scheduler", "tamdao-keeper", "tamdao-manifests"];
        pure.extend(crates.iter().flat_map(|one| ["-p", one]));
        nextest(&pure, MANY_CASES)?;
        let others = "test(/mvcc_tests::|decide::tests::|reconcile::tests::properties/)";
        nextest(&["--workspace", "--profile", "cases", "--features", HOOKS, "-E", others], MANY_CASES)
    })?;
    steps.run("fuzz", || {
        // Manifests from bytes to plan, with the corpus broken in many ways (decision 0241).
        let broken =
            ["--profile", "cases", "--cargo-profile", "cases", "-p", "tamdao-manifests", "-E", BROKEN];
        nextest(&broken, &[("PROPTEST_CASES", "50000")])?;
        nextest(
            &["--workspace", "--profile", "fuzz", "--features", HOOKS],
            &[("TAMDAO_TEST_EXAMPLES", "100")],
        )
    })?;
    steps.run("province", || {
        let province = ["--workspace", "--features", HOOKS, "-E", "test(/api::province::/)"];
        nextest(&province, &[("TAMDAO_TEST_PROVINCE", "whole")])
    })?;
    // Power cuts of the store's files, and rounds of misfortunes that clients live through.
    steps.run("cuts", || {
        let cuts = ["--workspace", "--profile", "cases", "--features", HOOKS, "-E", CUTS];
        nextest(&cuts, &[("TAMDAO_TEST_CUTS", "4000"), ("TAMDAO_TEST_ROUNDS", "120")])
    })?;
    steps.run("seeds", || simulate(&["--seeds".into(), SEEDS.into()], Some("cases")))?;
    steps.run("losses", || nextest(&["--workspace", "--profile", "long", "--features", HOOKS], &[]))?;
    steps.run("upgrade", upgrade::run)?;
    // A fault that needs luck to be seen gets its chances.
    steps.run("repeats", || {
        nextest(&["--workspace", "--profile", "repeats", "--stress-count", "10", "--features", HOOKS], &[])
    })
}

/// Builds the simulation with what the tests are built with, and runs it.
pub fn simulate(arguments: &[String], profile: Option<&str>) -> Result<()> {
    let mut build = vec!["build", "--quiet", "--workspace", "--bin", "sim", "--features", HOOKS];
    build.extend(profile.iter().flat_map(|profile| ["--profile", profile]));
    command("cargo", &build)?;
    let program = root().join("target").join(profile.unwrap_or("debug")).join("sim");
    let mut simulation = Command::new(program);
    simulation.args(arguments);
    finish(simulation)
}

/// Runs tests.
pub fn nextest(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["nextest", "run"]).args(arguments).envs(environment.iter().copied());
    finish(command)
}

/// The steps so far and how long each took.
#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> Result<()> {
        say(&format!("== {name}"));
        let began = Instant::now();
        step().with_context(|| format!("step {name} failed"))?;
        self.0.push((name, began.elapsed()));
        Ok(())
    }

    fn summary(&self) {
        say("== all steps passed");
        for (name, took) in &self.0 {
            say(&format!("{name:>14} {:>5} s", took.as_secs()));
        }
        let all: Duration = self.0.iter().map(|(_, took)| *took).sum();
        say(&format!("{:>14} {:>5} s", "together", all.as_secs()));
    }
}

/// Runs a program at the top of the repository.
pub fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command)
}

fn finish(mut command: Command) -> Result<()> {
    // What cargo told this program of its own package would be told to the cargo that it calls, and ring, which
    // watches these, would be built anew with all above it whenever cargo is next called from a shell.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    let status = command.current_dir(root()).status();
    let status = status.with_context(|| format!("{command:?} cannot be started"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// What runs the tests.
pub fn install_nextest() -> Result<()> {
    install("nextest", NEXTEST)
}

/// Installs a cargo subcommand where it is missing.
fn install(subcommand: &str, package: &str) -> Result<()> {
    let there =
        Command::new("cargo").args([subcommand, "--version"]).output().is_ok_and(|o| o.status.success());
    if there {
        return Ok(());
    }
    say(&format!("installing {package}"));
    command("cargo", &["install", "--locked", package])
}

/// Every shell script that git knows.
fn shellcheck() -> Result<()> {
    let listed =
        Command::new("git").args(["grep", "-lE", "^#!.*\\b(ba)?sh\\b"]).current_dir(root()).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let scripts: Vec<&str> = listed.lines().filter(|path| !path.ends_with(".md")).collect();
    let mut arguments = vec!["--external-sources", "--source-path=SCRIPTDIR"];
    arguments.extend(scripts);
    command("shellcheck", &arguments)
}
